// A thread in a call that a pending signal's handler ends: it must not sleep on. The harness stops the program and sends SIGUSR1.
#include "common.h"
#include <poll.h>
#include <sched.h>
#include <sys/epoll.h>

static const char *about = "a call ends with EINTR when a signal with a handler was pending at the checkpoint, or came in its freeze";
static const char *usage = "  --call pause|poll|read|epoll_wait  --restart  --small";
static const char *name = "pause";
static bool restart, small;
static _Alignas(64) unsigned char stack[64 << 10]; // all but the last bytes are something else of the program's
static volatile int handled, returned, error;
static int ends[2], polled;
static const struct { const char *name; long nr; } calls[] = {
    {"pause", SYS_pause}, {"poll", SYS_poll}, {"read", SYS_read}, {"epoll_wait", SYS_epoll_wait}};

static int own_option(const char *n, const char *value) {
    if (!strcmp(n, "--restart")) return restart = true, 1;
    if (!strcmp(n, "--small")) return small = true, 1;
    if (strcmp(n, "--call") || !value) return 0;
    return name = value, 2;
}
static int (*option)(const char *, const char *) = own_option;

static void handler(int s) { (void)s, handled++, got_signal(); }
// pause() on a stack that has room for nothing more: handlers have another one
static long pause_there(void) {
    long r;
    __asm__ volatile("mov %%rsp, %%rbx\n mov %[top], %%rsp\n syscall\n mov %%rbx, %%rsp"
                     : "=a"(r)
                     : "a"((long)SYS_pause), [top] "r"(stack + sizeof stack)
                     : "rbx", "rcx", "r11", "memory");
    return r < 0 ? (errno = -r, -1) : r;
}
static void *sleeper(void *arg) {
    static char other[64 << 10];
    if (small) MUST(sigaltstack(&(stack_t){.ss_sp = other, .ss_size = sizeof other}, NULL));
    char c;
    sigset_t set;
    sigemptyset(&set), sigaddset(&set, SIGUSR1);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    struct pollfd p = {.fd = ends[0], .events = POLLIN};
    *(volatile pid_t *)arg = tid_now();
    struct epoll_event e;
    long r = small ? pause_there() : !strcmp(name, "epoll_wait") ? syscall(SYS_epoll_wait, polled, &e, 1, 3600000) : !strcmp(name, "pause") ? pause() : !strcmp(name, "poll") ? poll(&p, 1, 3600000) : read(ends[0], &c, 1);
    error = r == -1 ? errno : 0;
    returned = 1;
    return NULL;
}
static void setup(void) {
    static volatile pid_t tid;
    pthread_t t;
    sigset_t set;
    sigemptyset(&set), sigaddset(&set, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    MUST(sigaction(SIGUSR1, &(struct sigaction){.sa_handler = handler, .sa_flags = (restart ? SA_RESTART : 0) | (small ? SA_ONSTACK : 0)}, NULL));
    memset(stack, 0x5a, sizeof stack);
    long nr = 0;
    for (size_t i = 0; i < COUNT(calls); i++)
        if (!strcmp(name, calls[i].name)) nr = calls[i].nr;
    MUST(pipe(ends));
    polled = MUST(epoll_create1(0));
    MUST(epoll_ctl(polled, EPOLL_CTL_ADD, ends[0], &(struct epoll_event){.events = EPOLLIN}));
    MUST0(pthread_create(&t, NULL, sleeper, (void *)&tid));
    until_in_call(&tid, nr);
}
static void spoil(void) { handled = 0; }
static void prove(void) {
    bool again = restart && !strcmp(name, "read");
    for (int i = 0; i < 2000 && !(handled && (returned || again)); i++) sleep_ms(1);
    CHECK_EQ(1, handled, "signals handled");
    if (again) {
        CHECK_EQ(0, returned, "read() under a handler with SA_RESTART has returned");
        MUST(write(ends[1], "x", 1));
        for (int i = 0; i < 2000 && !returned; i++) sleep_ms(1);
    }
    CHECK_EQ(1, returned, "%s() has returned", name);
    for (size_t i = 0; i < sizeof stack - 128; i++) CHECK_EQ(0x5a, stack[i], "byte %zu below a small stack", sizeof stack - i);
    CHECK_EQ(again ? 0 : EINTR, error, "the error of %s()", name);
}
