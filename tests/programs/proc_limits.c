#include "common.h"
#include <sys/resource.h>

static const char *about = "all resource limits, soft and hard";

static struct rlimit before[RLIM_NLIMITS];

static void lower(int what, rlim_t soft, rlim_t hard) {
    struct rlimit l;
    getrlimit(what, &l);
    if (hard < l.rlim_max) l.rlim_max = hard;
    l.rlim_cur = soft < l.rlim_max ? soft : l.rlim_max;
    MUST(setrlimit(what, &l));
}
static void setup(void) {
    lower(RLIMIT_NOFILE, 777, 3333);
    lower(RLIMIT_CORE, 0, 12345678);
    lower(RLIMIT_STACK, 6 << 20, RLIM_INFINITY);
    lower(RLIMIT_FSIZE, 1L << 40, 1L << 41);
    lower(RLIMIT_MEMLOCK, 65536, 131072);
    lower(RLIMIT_CPU, 100000, 200000);
    lower(RLIMIT_MSGQUEUE, 1000, 800000);
    for (int i = 0; i < (int)RLIM_NLIMITS; i++) getrlimit(i, &before[i]);
}
static void spoil(void) { setrlimit(RLIMIT_NOFILE, &(struct rlimit){778, before[RLIMIT_NOFILE].rlim_max}); }
static void prove(void) {
    for (int i = 0; i < (int)RLIM_NLIMITS; i++) {
        struct rlimit now;
        getrlimit(i, &now);
        CHECK_EQ(before[i].rlim_cur, now.rlim_cur, "soft limit %d", i);
        CHECK_EQ(before[i].rlim_max, now.rlim_max, "hard limit %d", i);
    }
}
