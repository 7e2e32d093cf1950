#include "common.h"

static const char *about = "POSIX timers: ids with gaps, time left, interval, clock, notification (signal, thread, none), one expired and pending";

// 0..6; 1 and 4 are deleted, so that the ids have gaps.
static struct {
    clockid_t clock;
    int notify, signal, value;
    int64_t left, interval;
    int flags;
} const plan[] = {
    {CLOCK_MONOTONIC, SIGEV_SIGNAL, 0, 100, 1000 * SEC, 0, 0},
    {CLOCK_MONOTONIC, SIGEV_NONE, 0, 0, 1, 0, 0},
    {CLOCK_REALTIME, SIGEV_NONE, 0, 102, 2000 * SEC, 30 * SEC, 0},
    {CLOCK_BOOTTIME, SIGEV_THREAD_ID, 3, 103, 3000 * SEC, 125 * MS, 0},
    {CLOCK_MONOTONIC, SIGEV_NONE, 0, 0, 1, 0, 0},
    {CLOCK_MONOTONIC, SIGEV_SIGNAL, 5, 105, 0, 0, 0}, // disarmed
    {CLOCK_REALTIME, SIGEV_SIGNAL, 6, 106, 5000 * SEC, 9 * SEC, TIMER_ABSTIME},
    {CLOCK_MONOTONIC, SIGEV_SIGNAL, 7, 107, 1 * MS, 0, 0}, // expires at once: pending
    {CLOCK_PROCESS_CPUTIME_ID, SIGEV_NONE, 0, 0, 600 * SEC, 0, 0},
};
static timer_t ids[COUNT(plan)];
static bool there(size_t i) { return i != 1 && i != 4; }
static int64_t armed, absolute;
static char proc_before[4096];

static void timers_file(char *out) { // without the addresses that follow the signal's number
    if (slurp("/proc/self/timers", out, 4096) < 0) out[0] = 0;
}
static struct itimerspec spec(int64_t left, int64_t interval) {
    return (struct itimerspec){{interval / SEC, interval % SEC}, {left / SEC, left % SEC}};
}
static void setup(void) {
    sigset_t rt;
    sigemptyset(&rt);
    for (int n = SIGRTMIN; n <= SIGRTMIN + 8; n++) sigaddset(&rt, n);
    pthread_sigmask(SIG_BLOCK, &rt, NULL);
    for (size_t i = 0; i < COUNT(plan); i++) {
        struct sigevent e = {.sigev_notify = plan[i].notify, .sigev_signo = SIGRTMIN + plan[i].signal, .sigev_value.sival_int = plan[i].value};
        if (plan[i].notify == SIGEV_THREAD_ID) e.sigev_notify_thread_id = tid_now();
        MUST(timer_create(plan[i].clock, &e, &ids[i]));
    }
    timer_delete(ids[1]), timer_delete(ids[4]);
    armed = mono_ns();
    absolute = now_ns(CLOCK_REALTIME) + plan[6].left;
    for (size_t i = 0; i < COUNT(plan); i++) {
        struct itimerspec t = spec(i == 6 ? absolute : plan[i].left, plan[i].interval);
        if (there(i)) MUST(timer_settime(ids[i], plan[i].flags, &t, NULL));
    }
    sleep_ms(20);
    timers_file(proc_before);
}
static void spoil(void) {
    struct itimerspec t = spec(1900 * SEC, 30 * SEC);
    timer_settime(ids[2], 0, &t, NULL);
}
static void prove(void) {
    char proc[4096];
    struct itimerspec t;
    timers_file(proc);
    if (!getenv("DORMOUSE_TEST_FRESH_PIDS")) CHECK_STR(proc_before, proc, "/proc/self/timers");
    for (size_t i = 0; i < COUNT(plan); i++) {
        if (!there(i)) {
            CHECK_ERRNO(EINVAL, syscall(SYS_timer_gettime, ids[i], &t), "deleted timer %zu", i);
            continue;
        }
        if (!CHECK_OK(timer_gettime(ids[i], &t), "timer %zu", i)) continue;
        int64_t left = t.it_value.tv_sec * SEC + t.it_value.tv_nsec;
        CHECK_EQ(plan[i].interval, t.it_interval.tv_sec * SEC + t.it_interval.tv_nsec, "interval of timer %zu", i);
        if (i == 6) CHECK_RANGE(-2000 * MS, 2000 * MS, left - (absolute - now_ns(CLOCK_REALTIME)), "deviation of the absolute timer");
        else if (i == 8) CHECK_RANGE(580 * SEC, 600 * SEC + 50 * MS, left, "CPU time left of timer 8");
        else if (i == 5 || i == 7) CHECK_EQ(0, left, "time left of timer %zu", i);
        else CHECK_LEFT(plan[i].left, armed, 100 * MS, left, "time left of timer %zu in ns", i);
    }
    for (size_t i = 0; i < COUNT(plan); i++) { // each notifies as it was told
        if (!there(i) || plan[i].notify == SIGEV_NONE) continue;
        struct itimerspec soon = spec(1 * MS, 0);
        sigset_t one;
        siginfo_t s;
        memset(&s, 0, sizeof s);
        sigemptyset(&one), sigaddset(&one, SIGRTMIN + plan[i].signal);
        if (i != 7) timer_settime(ids[i], 0, &soon, NULL); // that one is pending
        int n = sigtimedwait(&one, &s, &(struct timespec){2, 0});
        CHECK_EQ(SIGRTMIN + plan[i].signal, n, "signal of timer %zu", i);
        CHECK_EQ(plan[i].value, s.si_value.sival_int, "value of timer %zu", i);
        CHECK_EQ(SI_TIMER, s.si_code, "si_code of timer %zu", i);
        CHECK_EQ((long)ids[i], s.si_timerid, "si_timerid of timer %zu", i);
    }
    timer_t fresh;
    struct sigevent none = {.sigev_notify = SIGEV_NONE};
    if (CHECK_OK(timer_create(CLOCK_MONOTONIC, &none, &fresh), "one more timer"))
        for (size_t i = 0; i < COUNT(plan); i++) CHECK(!there(i) || fresh != ids[i], "id of the new timer, not that of timer %zu", i);
}
