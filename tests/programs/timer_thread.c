#include "common.h"

static const char *about = "POSIX timers by the CPU time of a thread: one that it has made itself, which signals it; one of its clock, by the first thread";
static const char *usage = "";

#define SIGNAL (SIGRTMIN + 1)
#define LEFT (500 * SEC)
static pthread_t thread;
static timer_t own, others;
static volatile int burn; // milliseconds that the thread is to run
static volatile int took; // its signal, with the timer's value

static int64_t left_of(timer_t t) {
    struct itimerspec now;
    CHECK_OK(timer_gettime(t, &now), "a timer");
    return now.it_value.tv_sec * SEC + now.it_value.tv_nsec;
}
static void work_for(int ms) {
    int64_t end = now_ns(CLOCK_THREAD_CPUTIME_ID) + ms * MS;
    while (now_ns(CLOCK_THREAD_CPUTIME_ID) < end) continue;
}
static void *works(void *arg) {
    sigset_t one;
    sigemptyset(&one), sigaddset(&one, SIGNAL);
    pthread_sigmask(SIG_BLOCK, &one, NULL);
    struct sigevent e = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGNAL, .sigev_value.sival_int = 44};
    e.sigev_notify_thread_id = tid_now();
    MUST(timer_create(CLOCK_THREAD_CPUTIME_ID, &e, &own));
    for (burn = -1;; sleep_ms(1)) {
        if (burn <= 0) continue;
        work_for(burn);
        siginfo_t s;
        memset(&s, 0, sizeof s);
        if (sigtimedwait(&one, &s, &(struct timespec){0, 0}) == SIGNAL && s.si_code == SI_TIMER) took = s.si_value.sival_int;
        burn = 0;
    }
    return arg;
}
static void burns(int ms) {
    burn = ms;
    while (burn) sleep_ms(1);
}
static void setup(void) {
    MUST0(pthread_create(&thread, NULL, works, NULL));
    while (burn >= 0 && !own) sleep_ms(1);
    while (burn != -1) sleep_ms(1);
    clockid_t clock;
    MUST0(pthread_getcpuclockid(thread, &clock));
    struct sigevent none = {.sigev_notify = SIGEV_NONE};
    MUST(timer_create(clock, &none, &others));
    struct itimerspec t = {.it_value.tv_sec = LEFT / SEC};
    MUST(timer_settime(own, 0, &t, NULL)), MUST(timer_settime(others, 0, &t, NULL));
}
static void spoil(void) {
    struct itimerspec t = {.it_value.tv_sec = LEFT / SEC / 2};
    MUST(timer_settime(own, 0, &t, NULL));
}
static void prove(void) {
    timer_t const both[] = {own, others};
    for (int i = 0; i < 2; i++) {
        int64_t before = left_of(both[i]);
        CHECK_RANGE(LEFT - 20 * SEC, LEFT, before, "CPU time left of timer %d", i);
        burns(40);
        int64_t after = left_of(both[i]);
        CHECK_RANGE(40 * MS, 400 * MS, before - after, "what the thread's work has taken of timer %d", i);
        work_for(60);
        CHECK_RANGE(0, 30 * MS, after - left_of(both[i]), "what the first thread's work has taken of timer %d", i);
    }
    struct itimerspec soon = {.it_value.tv_nsec = 5 * MS};
    CHECK_OK(timer_settime(own, 0, &soon, NULL), "setting it");
    burns(40);
    CHECK_EQ(44, took, "value of the signal that the thread got");
}
