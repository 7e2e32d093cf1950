#include "common.h"
#include <sys/personality.h>
#include <sys/prctl.h>

static const char *about = "no_new_privs, personality, timer slack of two threads, parent-death signal, child subreaper, THP disable";

static volatile int ready_threads, go;
static pthread_t worker;
static long main_slack;

static void *thread(void *arg) {
    MUST(prctl(PR_SET_TIMERSLACK, 123456UL));
    ready_threads = 1;
    while (!go) sleep_ms(2);
    CHECK_EQ(123456, prctl(PR_GET_TIMERSLACK), "timer slack of the worker");
    CHECK_EQ(1, prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), "no_new_privs of the worker");
    return arg;
}
static void setup(void) {
    MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    MUST(personality(ADDR_NO_RANDOMIZE | UNAME26));
    MUST(prctl(PR_SET_TIMERSLACK, 77777UL));
    MUST(prctl(PR_SET_PDEATHSIG, SIGCONT));
    MUST(prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0));
    MUST(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0));
    main_slack = prctl(PR_GET_TIMERSLACK);
    MUST0(pthread_create(&worker, NULL, thread, NULL));
    while (!ready_threads) sleep_ms(1);
}
static void spoil(void) { prctl(PR_SET_PDEATHSIG, SIGWINCH); }
static void prove(void) {
    int n = -1;
    char v[16];
    CHECK_EQ(1, prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), "no_new_privs");
    CHECK_STR("1", field("/proc/self/status", "NoNewPrivs", v, sizeof v), "NoNewPrivs in /proc");
    CHECK_HEX(ADDR_NO_RANDOMIZE | UNAME26, personality(0xffffffff), "personality");
    CHECK_EQ(main_slack, prctl(PR_GET_TIMERSLACK), "timer slack");
    prctl(PR_GET_PDEATHSIG, &n);
    CHECK_EQ(SIGCONT, n, "parent-death signal");
    prctl(PR_GET_CHILD_SUBREAPER, &n);
    CHECK_EQ(1, n, "child subreaper");
    CHECK_EQ(1, prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0), "THP disable");
    go = 1;
    MUST0(pthread_join(worker, NULL));
}
