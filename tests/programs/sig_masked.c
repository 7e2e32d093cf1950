#include "common.h"
#include <poll.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/select.h>

static const char *about = "a call under a signal mask of its own, which alone blocks two pending signals: they do not end it, and each is handled once";
static const char *usage = "  --call ppoll|pselect|epoll_pwait|sigsuspend";
static const struct { const char *name; long nr; } calls[] = {
    {"ppoll", SYS_ppoll}, {"pselect", SYS_pselect6}, {"epoll_pwait", SYS_epoll_pwait}, {"sigsuspend", SYS_rt_sigsuspend}};
static int which, ends[2], set;
static volatile int process, thread, woken, returned, result, error;
static pthread_t sleeper;

static int own_option(const char *n, const char *value) {
    if (strcmp(n, "--call") || !value) return 0;
    for (which = 0; which < (int)COUNT(calls); which++)
        if (!strcmp(value, calls[which].name)) return 2;
    return 0;
}
static int (*option)(const char *, const char *) = own_option;

static void handler(int s) { ++*(s == SIGUSR1 ? &process : s == SIGRTMIN ? &thread : &woken); }
static long call(void) {
    uint64_t mask = ~(1UL << (SIGUSR2 - 1)); // all but SIGUSR2
    struct pollfd p = {ends[0], POLLIN, 0};
    struct epoll_event e;
    struct { uint64_t *mask; size_t size; } sixth = {&mask, 8};
    fd_set r;
    FD_ZERO(&r);
    FD_SET(ends[0], &r);
    switch (which) {
    case 0: return syscall(SYS_ppoll, &p, 1, NULL, &mask, 8);
    case 1: return syscall(SYS_pselect6, ends[0] + 1, &r, NULL, NULL, NULL, &sixth);
    case 2: return syscall(SYS_epoll_pwait, set, &e, 1, -1, &mask, 8);
    default: return syscall(SYS_rt_sigsuspend, &mask, 8);
    }
}
static void *sleeps(void *arg) {
    sigset_t none;
    sigemptyset(&none);
    pthread_sigmask(SIG_SETMASK, &none, NULL);
    *(volatile pid_t *)arg = tid_now();
    result = (int)call();
    error = result == -1 ? errno : 0;
    returned = 1;
    return NULL;
}
static void setup(void) {
    static volatile pid_t tid;
    sigset_t ours;
    sigemptyset(&ours), sigaddset(&ours, SIGUSR1), sigaddset(&ours, SIGUSR2), sigaddset(&ours, SIGRTMIN);
    pthread_sigmask(SIG_BLOCK, &ours, NULL);
    for (int i = 0; i < 3; i++) MUST(sigaction((int[]){SIGUSR1, SIGUSR2, SIGRTMIN}[i], &(struct sigaction){.sa_handler = handler}, NULL));
    MUST(pipe(ends));
    set = MUST(epoll_create1(0));
    MUST(epoll_ctl(set, EPOLL_CTL_ADD, ends[0], &(struct epoll_event){.events = EPOLLIN}));
    MUST0(pthread_create(&sleeper, NULL, sleeps, (void *)&tid));
    until_in_call(&tid, calls[which].nr); // under the mask
    MUST(kill(getpid(), SIGUSR1));
    MUST0(pthread_kill(sleeper, SIGRTMIN));
}
static void spoil(void) {
    MUST0(pthread_kill(sleeper, SIGUSR2));
    sleep_ms(50);
}
static void prove(void) {
    sleep_ms(20); // it may be on its way back into the call
    CHECK_EQ(0, returned, "%s has returned (%d, errno %d)", calls[which].name, result, error);
    // Only the kernel can set the call's mask, so a handler may run before its time after a checkpoint. It must not end the call.
    snprintf(extra, sizeof extra, "handled_early %d\n", process + thread);
    if (which == 3) MUST0(pthread_kill(sleeper, SIGUSR2));
    else MUST(write(ends[1], "x", 1));
    for (int i = 0; i < 2000 && !returned; i++) sleep_ms(1);
    CHECK_EQ(1, returned, "%s has returned", calls[which].name);
    CHECK_EQ(which == 3 ? -1 : 1, result, "its result");
    CHECK_EQ(which == 3 ? EINTR : 0, error, "its error");
    CHECK_EQ(1, process, "SIGUSR1 to the process, handled");
    CHECK_EQ(1, thread, "SIGRTMIN to the thread, handled");
    CHECK_EQ(which == 3, woken, "SIGUSR2 handled");
}
