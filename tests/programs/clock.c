#include "common.h"
#include <linux/futex.h>
#include <sys/timerfd.h>

static const char *about = "CLOCK_MONOTONIC and BOOTTIME: by vDSO and by the call the same, never back; calls and timers with an absolute time end on time";
// DIR/ask: writes DIR/answer, both clocks in ns. DIR/again: new calls and timers, then DIR/armed. Both are removed.

enum { SLEEP, SLEEP_BOOT, FUTEX, CONDITION, TIMERFD, TIMERFD_BOOT, WAITS };
static const char *const names[WAITS] = {"clock_nanosleep", "clock_nanosleep by BOOTTIME", "futex", "pthread_cond_timedwait", "timerfd", "timerfd by BOOTTIME"};
static const clockid_t both[] = {CLOCK_MONOTONIC, CLOCK_BOOTTIME};
static struct wait {
    int what, result;
    clockid_t clock;
    int64_t due, woken; // woken: 0 until then
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t condition;
    uint32_t word;
} waits[2][WAITS];
static timer_t timer;
static int64_t timer_due, asleep_before, last[COUNT(both)];
static int set = -1;

static int64_t by_call(clockid_t id) {
    struct timespec t;
    syscall(SYS_clock_gettime, id, &t);
    return t.tv_sec * SEC + t.tv_nsec;
}
static void compare(void) {
    for (size_t i = 0; i < COUNT(both); i++) {
        int64_t low = by_call(both[i]), v = now_ns(both[i]), high = by_call(both[i]);
        if (v < low || v > high) CHECK_RANGE(low, high, v, "clock %d by the vDSO", both[i]);
        if (low < last[i]) CHECK_RANGE(last[i], INT64_MAX, low, "clock %d against itself before", both[i]);
        last[i] = high;
    }
}
static void *waiting(void *arg) {
    struct wait *w = arg;
    struct timespec due = {w->due / SEC, w->due % SEC};
    struct itimerspec at = {.it_value = due};
    uint64_t ticks = 0;
    int fd;
    switch (w->what) {
    case SLEEP:
    case SLEEP_BOOT:
        w->result = clock_nanosleep(w->clock, TIMER_ABSTIME, &due, NULL);
        break;
    case FUTEX:
        w->result = syscall(SYS_futex, &w->word, FUTEX_WAIT_BITSET_PRIVATE, 0, &due, NULL, FUTEX_BITSET_MATCH_ANY) == -1 && errno == ETIMEDOUT ? 0 : -1;
        break;
    case CONDITION:
        pthread_mutex_lock(&w->mutex);
        while (!w->result) w->result = pthread_cond_timedwait(&w->condition, &w->mutex, &due);
        pthread_mutex_unlock(&w->mutex);
        w->result -= ETIMEDOUT;
        break;
    default:
        fd = timerfd_create(w->clock, TFD_CLOEXEC);
        w->result = timerfd_settime(fd, TFD_TIMER_ABSTIME, &at, NULL);
        w->result |= read(fd, &ticks, 8) == 8 && ticks == 1 ? 0 : -1;
    }
    __atomic_store_n(&w->woken, by_call(w->clock), __ATOMIC_SEQ_CST);
    return NULL;
}
static void arm(void) {
    set++;
    asleep_before = asleep_ns;
    pthread_condattr_t monotonic;
    MUST0(pthread_condattr_init(&monotonic));
    MUST0(pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC));
    for (int i = 0; i < WAITS; i++) {
        struct wait *w = &waits[set][i];
        w->what = i;
        w->clock = i == SLEEP_BOOT || i == TIMERFD_BOOT ? CLOCK_BOOTTIME : CLOCK_MONOTONIC;
        w->due = by_call(w->clock) + 3 * SEC;
        MUST0(pthread_mutex_init(&w->mutex, NULL));
        MUST0(pthread_cond_init(&w->condition, &monotonic));
        MUST0(pthread_create(&w->thread, NULL, waiting, w));
    }
    timer_due = by_call(CLOCK_MONOTONIC) + 1000 * SEC;
    struct itimerspec at = {.it_value = {timer_due / SEC, timer_due % SEC}};
    MUST(timer_settime(timer, TIMER_ABSTIME, &at, NULL));
    sleep_ms(20); // all wait
}
static void serve(void) {
    compare();
    if (!unlink(work("ask"))) {
        char text[64];
        snprintf(text, sizeof text, "%lld %lld\n", (long long)by_call(CLOCK_MONOTONIC), (long long)by_call(CLOCK_BOOTTIME));
        if (!write_file("answer", text)) fail("write answer: %s (not a proof)", strerror(errno));
    }
    if (set == 0 && !unlink(work("again"))) {
        arm();
        if (!write_file("armed", "")) fail("write armed: %s (not a proof)", strerror(errno));
    }
}
static void (*tick)(void) = serve;

static void setup(void) {
    struct sigevent none = {.sigev_notify = SIGEV_NONE};
    MUST(timer_create(CLOCK_MONOTONIC, &none, &timer));
    compare();
    arm();
}
static void spoil(void) { last[1] += 3600 * SEC; }
static void prove(void) {
    compare();
    int64_t slack = 2 * SEC + asleep_ns - asleep_before; // what was left of a timer may not have run on in downtime
    struct itimerspec left;
    CHECK_OK(timer_gettime(timer, &left), "the timer");
    CHECK_RANGE(-20 * MS, slack, left.it_value.tv_sec * SEC + left.it_value.tv_nsec - (timer_due - by_call(CLOCK_MONOTONIC)), "deviation of the timer");
    for (int i = 0; i < WAITS; i++) {
        struct wait *w = &waits[set][i];
        while (!__atomic_load_n(&w->woken, __ATOMIC_SEQ_CST) && by_call(w->clock) < w->due + slack) sleep_ms(2);
        CHECK(w->woken, "%s has ended", names[i]);
        if (!w->woken) continue;
        CHECK_EQ(0, w->result, "result of %s", names[i]);
        CHECK_RANGE(0, slack, w->woken - w->due, "ns that %s ended after its time", names[i]);
    }
}
