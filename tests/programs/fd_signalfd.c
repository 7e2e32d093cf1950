#include "common.h"
#include <sys/signalfd.h>

static const char *about = "signalfds: mask, flags, and pending signals read through them";

static int one, two;
static char info[256];

static void mask_line(char *out) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", one);
    field(path, "sigmask", out, 256);
}
static void setup(void) {
    sigset_t a, b, all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL);
    sigemptyset(&a), sigaddset(&a, SIGUSR1), sigaddset(&a, SIGRTMIN + 5);
    sigemptyset(&b), sigaddset(&b, SIGHUP);
    one = MUST(signalfd(-1, &a, SFD_NONBLOCK | SFD_CLOEXEC));
    two = MUST(signalfd(-1, &b, SFD_NONBLOCK));
    sigaddset(&b, SIGTERM);
    MUST(signalfd(two, &b, 0)); // changed afterwards
    mask_line(info);
    MUST(sigqueue(getpid(), SIGRTMIN + 5, (union sigval){.sival_int = 55}));
    MUST(sigqueue(getpid(), SIGRTMIN + 5, (union sigval){.sival_int = 56}));
    MUST(kill(getpid(), SIGTERM));
    MUST(kill(getpid(), SIGUSR2)); // in neither
}
static void spoil(void) {
    sigset_t b;
    sigemptyset(&b), sigaddset(&b, SIGHUP);
    MUST(signalfd(two, &b, 0));
}
static void prove(void) {
    struct signalfd_siginfo s[4];
    char now[256];
    mask_line(now);
    CHECK_STR(info, now, "mask");
    CHECK_EQ(O_NONBLOCK, fcntl(one, F_GETFL) & O_NONBLOCK, "O_NONBLOCK");
    CHECK_EQ(FD_CLOEXEC, fcntl(one, F_GETFD), "close-on-exec");
    memset(s, 0, sizeof s);
    CHECK_EQ(2 * sizeof s[0], read(one, s, sizeof s), "bytes read of the first");
    CHECK_EQ(SIGRTMIN + 5, s[0].ssi_signo, "first signal");
    CHECK_EQ(55, s[0].ssi_int, "its value");
    CHECK_EQ(SI_QUEUE, s[0].ssi_code, "its code");
    CHECK_EQ(56, s[1].ssi_int, "value of the second");
    CHECK_EQ(getpid(), s[1].ssi_pid, "sender of the second");
    CHECK_ERRNO(EAGAIN, read(one, s, sizeof s), "another read");
    CHECK_EQ(sizeof s[0], read(two, s, sizeof s), "bytes read of the second");
    CHECK_EQ(SIGTERM, s[0].ssi_signo, "its signal");
    CHECK_EQ(SI_USER, s[0].ssi_code, "its code");
    kill(getpid(), SIGUSR1);
    CHECK_EQ(sizeof s[0], read(one, s, sizeof s), "bytes read after one more signal");
    sigset_t p;
    sigpending(&p);
    CHECK(sigismember(&p, SIGUSR2) == 1, "SIGUSR2 still pending");
}
