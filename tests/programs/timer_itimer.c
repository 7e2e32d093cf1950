#include "common.h"
#include <sys/time.h>

static const char *about = "interval timers REAL, VIRTUAL and PROF: time left and interval";

#define US 1000LL
static int64_t armed;
static const long value[] = {1000, 500, 700}, interval[] = {7, 3, 0};
static const char *const names[] = {"REAL", "VIRTUAL", "PROF"};

static void setup(void) {
    for (int i = 0; i < 3; i++)
        MUST(setitimer(i, &(struct itimerval){.it_value = {value[i], 250000}, .it_interval = {interval[i], 125000}}, NULL));
    armed = mono_ns();
}
static void spoil(void) { setitimer(ITIMER_VIRTUAL, &(struct itimerval){.it_value = {450, 0}, .it_interval = {3, 125000}}, NULL); }
static void prove(void) {
    for (int i = 0; i < 3; i++) {
        struct itimerval t;
        CHECK_OK(getitimer(i, &t), "getitimer");
        int64_t left = (t.it_value.tv_sec * 1000000L + t.it_value.tv_usec) * US, initial = value[i] * SEC + 250 * MS;
        if (i == 0) CHECK_LEFT(initial, armed, 200 * MS, left, "time left of REAL in ns");
        else CHECK_RANGE(initial - 20 * SEC, initial + 50 * MS, left, "time left of %s in ns", names[i]); // of CPU time: little is used
        CHECK_EQ(interval[i], t.it_interval.tv_sec, "interval of %s, s", names[i]);
        CHECK_RANGE(125000 - 4000, 125000 + 4000, t.it_interval.tv_usec, "interval of %s, us", names[i]); // CPU timers count in ticks
    }
}
