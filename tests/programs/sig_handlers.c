#include "common.h"

static const char *about = "signal handlers of all 64 signals: function, flags, mask, restorer; ignored and default ones; they run";

struct kernel_action {
    void *handler;
    unsigned long flags;
    void *restorer;
    unsigned long mask;
};
static struct kernel_action before[65];
static volatile int plain_runs, info_runs, info_value;

static void plain(int n) { plain_runs += n, got_signal(); }
static void info(int n, siginfo_t *i, void *context) {
    (void)context, (void)n;
    info_runs++, info_value = i->si_value.sival_int, got_signal();
}
static void look(struct kernel_action *out) {
    for (int n = 1; n <= 64; n++) {
        memset(&out[n], 0, sizeof out[n]);
        syscall(SYS_rt_sigaction, n, NULL, &out[n], 8);
    }
}
static void setup(void) {
    struct sigaction a = {.sa_handler = plain};
    sigaddset(&a.sa_mask, SIGUSR2);
    sigaddset(&a.sa_mask, SIGRTMIN + 9);
    MUST(sigaction(SIGUSR1, &a, NULL));
    a = (struct sigaction){.sa_sigaction = info, .sa_flags = SA_SIGINFO | SA_RESTART | SA_NODEFER};
    sigfillset(&a.sa_mask);
    MUST(sigaction(SIGRTMIN + 3, &a, NULL));
    a = (struct sigaction){.sa_handler = plain, .sa_flags = SA_RESETHAND | SA_ONSTACK};
    MUST(sigaction(SIGHUP, &a, NULL));
    a = (struct sigaction){.sa_handler = plain, .sa_flags = SA_NOCLDSTOP | SA_NOCLDWAIT};
    MUST(sigaction(SIGCHLD, &a, NULL));
    signal(SIGPIPE, SIG_IGN);
    signal(SIGWINCH, SIG_IGN);
    signal(SIGTERM, SIG_DFL);
    look(before);
}
static void spoil(void) { signal(SIGUSR1, SIG_IGN); }
static void prove(void) {
    struct kernel_action after[65];
    look(after);
    for (int n = 1; n <= 64; n++) {
        CHECK_HEX(before[n].handler, after[n].handler, "handler of signal %d", n);
        CHECK_HEX(before[n].flags, after[n].flags, "flags of signal %d", n);
        CHECK_HEX(before[n].restorer, after[n].restorer, "restorer of signal %d", n);
        CHECK_HEX(before[n].mask, after[n].mask, "mask of signal %d", n);
    }
    CHECK_EQ(0, plain_runs + info_runs, "signals so far");
    raise(SIGUSR1);
    CHECK_EQ(SIGUSR1, plain_runs, "the plain handler ran");
    sigqueue(getpid(), SIGRTMIN + 3, (union sigval){.sival_int = 4711});
    CHECK_EQ(1, info_runs, "the siginfo handler ran");
    CHECK_EQ(4711, info_value, "its value");
}
