#include "common.h"

static const char *about = "blocked pending signals with their siginfo: process-wide and of two threads, real-time in order, standard ones once";

static sigset_t all;
static pthread_t worker;
static volatile int worker_ready, go;
static pid_t worker_tid;

static void queue(int n, int value) { MUST(sigqueue(getpid(), n, (union sigval){.sival_int = value})); }
static void to_thread(pid_t tid, int n, int value) { // thread-directed, with a siginfo of its own
    siginfo_t i = {.si_signo = n, .si_code = SI_QUEUE};
    i.si_pid = getpid(), i.si_uid = getuid(), i.si_value.sival_int = value;
    MUST(syscall(SYS_rt_tgsigqueueinfo, getpid(), tid, n, &i));
}
static void take(int n, int code, int value, const char *what) { // the next of signal n
    sigset_t one;
    siginfo_t i;
    memset(&i, 0, sizeof i);
    sigemptyset(&one), sigaddset(&one, n);
    int got = (int)syscall(SYS_rt_sigtimedwait, &one, &i, &(struct timespec){0, 0}, 8); // glibc turns SI_TKILL into SI_USER
    CHECK_EQ(n, got, "signal pending: %s", what);
    if (got != n) return;
    CHECK_EQ(code, i.si_code, "si_code of %s", what);
    if (code == SI_QUEUE) CHECK_EQ(value, i.si_value.sival_int, "value of %s", what);
    CHECK_EQ(getpid(), i.si_pid, "si_pid of %s", what);
    CHECK_EQ(getuid(), i.si_uid, "si_uid of %s", what);
}
static void none(int n, const char *what) {
    sigset_t one;
    sigemptyset(&one), sigaddset(&one, n);
    CHECK_ERRNO(EAGAIN, sigtimedwait(&one, NULL, &(struct timespec){0, 0}), "one more of %s", what);
}
static void *thread(void *arg) {
    worker_tid = tid_now();
    worker_ready = 1;
    while (!go) sleep_ms(2);
    take(SIGRTMIN + 1, SI_QUEUE, 11, "the worker's own real-time signal"); // own ones come before the process's
    take(SIGRTMIN + 1, SI_QUEUE, 12, "the worker's second");
    take(SIGUSR2, SI_TKILL, 0, "the worker's own SIGUSR2");
    return arg;
}
static void setup(void) {
    sigfillset(&all);
    MUST0(pthread_sigmask(SIG_BLOCK, &all, NULL));
    MUST0(pthread_create(&worker, NULL, thread, NULL));
    while (!worker_ready) sleep_ms(1);
    for (int i = 0; i < 5; i++) queue(SIGRTMIN + 2, 100 + i);
    queue(SIGRTMAX, -1);
    MUST(kill(getpid(), SIGRTMIN + 4));
    MUST(kill(getpid(), SIGUSR1));
    MUST(kill(getpid(), SIGUSR1)); // standard: only once
    queue(SIGTERM, 5);
    MUST(kill(getpid(), SIGINT));
    to_thread(tid_now(), SIGRTMIN + 3, 33);
    to_thread(tid_now(), SIGHUP, 34);
    to_thread(worker_tid, SIGRTMIN + 1, 11);
    to_thread(worker_tid, SIGRTMIN + 1, 12);
    MUST(syscall(SYS_tgkill, getpid(), worker_tid, SIGUSR2));
}
static void spoil(void) { // the first of five is gone
    sigset_t one;
    sigemptyset(&one), sigaddset(&one, SIGRTMIN + 2);
    sigwaitinfo(&one, NULL);
}
static void prove(void) {
    sigset_t now, pending;
    pthread_sigmask(SIG_BLOCK, NULL, &now);
    CHECK(sigismember(&now, SIGUSR1) && sigismember(&now, SIGRTMAX), "signals blocked");
    CHECK(!sigismember(&now, SIGKILL), "SIGKILL blocked");
    sigpending(&pending);
    for (int n = 1; n <= SIGRTMAX; n++) {
        bool want = n == SIGRTMIN + 2 || n == SIGRTMAX || n == SIGRTMIN + 4 || n == SIGUSR1 || n == SIGTERM || n == SIGINT || n == SIGRTMIN + 3 || n == SIGHUP;
        CHECK_EQ(want, sigismember(&pending, n) == 1, "signal %d pending for the main thread", n);
    }
    for (int i = 0; i < 5; i++) take(SIGRTMIN + 2, SI_QUEUE, 100 + i, "SIGRTMIN+2, in order");
    none(SIGRTMIN + 2, "SIGRTMIN+2");
    take(SIGRTMAX, SI_QUEUE, -1, "SIGRTMAX");
    take(SIGRTMIN + 4, SI_USER, 0, "SIGRTMIN+4 by kill");
    take(SIGUSR1, SI_USER, 0, "SIGUSR1 by kill");
    none(SIGUSR1, "SIGUSR1");
    take(SIGTERM, SI_QUEUE, 5, "SIGTERM by sigqueue");
    take(SIGINT, SI_USER, 0, "SIGINT by kill");
    take(SIGRTMIN + 3, SI_QUEUE, 33, "SIGRTMIN+3 to the main thread");
    none(SIGRTMIN + 3, "SIGRTMIN+3");
    take(SIGHUP, SI_QUEUE, 34, "SIGHUP to the main thread");
    CHECK_ERRNO(EAGAIN, sigtimedwait(&all, NULL, &(struct timespec){0, 0}), "any other signal");
    go = 1;
    MUST0(pthread_join(worker, NULL));
}
