#include "common.h"
#include <sys/time.h>

static const char *about = "timers go on firing: ITIMER_REAL each 50 ms, a POSIX timer each 40 ms to one thread, one shot that comes once and not too early";

static volatile int itimer_hits, thread_hits, wrong_thread, shots;
static volatile int64_t shot_at;
static int64_t shot_due;
static volatile pid_t target;
static volatile int go;
static __thread bool is_target;
static pthread_t worker;
static timer_t periodic, once;

static void on_alarm(int n) { (void)n, itimer_hits++, got_signal(); }
static void on_timer(int n, siginfo_t *i, void *c) {
    (void)n, (void)c;
    got_signal();
    if (i->si_value.sival_int == 40) thread_hits++, wrong_thread += !is_target;
    else shots++, shot_at = mono_ns();
}
static void *thread(void *arg) {
    is_target = true;
    target = tid_now();
    while (!go) sleep_ms(5);
    return arg;
}
static void setup(void) {
    signal(SIGALRM, on_alarm);
    MUST(sigaction(SIGRTMIN + 1, &(struct sigaction){.sa_sigaction = on_timer, .sa_flags = SA_SIGINFO | SA_RESTART}, NULL));
    MUST0(pthread_create(&worker, NULL, thread, NULL));
    while (!target) sleep_ms(1);
    struct sigevent e = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMIN + 1, .sigev_value.sival_int = 40};
    e.sigev_notify_thread_id = target;
    MUST(timer_create(CLOCK_MONOTONIC, &e, &periodic));
    e = (struct sigevent){.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 1, .sigev_value.sival_int = 1};
    MUST(timer_create(CLOCK_MONOTONIC, &e, &once));
    MUST(timer_settime(periodic, 0, &(struct itimerspec){{0, 40 * MS}, {0, 40 * MS}}, NULL));
    shot_due = mono_ns() + 400 * MS;
    MUST(timer_settime(once, 0, &(struct itimerspec){{0, 0}, {0, 400 * MS}}, NULL));
    MUST(setitimer(ITIMER_REAL, &(struct itimerval){{0, 50000}, {0, 50000}}, NULL));
}
static void spoil(void) { timer_delete(periodic); }
static void prove(void) {
    int a = itimer_hits, b = thread_hits;
    int64_t from = mono_ns();
    while (mono_ns() - from < 500 * MS) sleep_ms(20);
    int64_t passed = mono_ns() - from; // a busy machine may merge some, but makes none
    CHECK_RANGE(3, passed / (50 * MS) + 2, itimer_hits - a, "SIGALRMs in half a second");
    CHECK_RANGE(3, passed / (40 * MS) + 2, thread_hits - b, "signals of the POSIX timer in half a second");
    CHECK_EQ(0, wrong_thread, "of these, in the wrong thread");
    CHECK_EQ(1, shots, "shots of the one-shot timer");
    CHECK_RANGE(0, INT64_MAX, shot_at - shot_due, "how late the shot came");
    setitimer(ITIMER_REAL, &(struct itimerval){0}, NULL);
    timer_delete(periodic), timer_delete(once);
    go = 1;
    MUST0(pthread_join(worker, NULL));
}
