#include "common.h"
#include <sys/wait.h>

static const char *about = "leases: to read and to write, with their signal (F_SETSIG) and its owner";

static int reading, writing;
static volatile int broken = -1, broken_by;
static void on_break(int n, siginfo_t *i, void *c) {
    (void)c;
    got_signal();
    broken = i->si_fd, broken_by = n;
    fcntl(i->si_fd, F_SETLEASE, F_UNLCK);
}
static void setup(void) {
    struct sigaction a = {.sa_sigaction = on_break, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigaction(SIGRTMIN + 1, &a, NULL), sigaction(SIGRTMIN + 2, &a, NULL);
    close(MUST(open(work("read"), O_RDWR | O_CREAT, 0600)));
    reading = MUST(open(work("read"), O_RDONLY));
    writing = MUST(open(work("write"), O_RDWR | O_CREAT, 0600));
    MUST(fcntl(reading, F_SETSIG, SIGRTMIN + 1)), MUST(fcntl(writing, F_SETSIG, SIGRTMIN + 2));
    MUST(fcntl(reading, F_SETLEASE, F_RDLCK)), MUST(fcntl(writing, F_SETLEASE, F_WRLCK));
}
static void spoil(void) { MUST(fcntl(reading, F_SETLEASE, F_UNLCK)); }

// Another process opens it: it has to wait until the lease is given up, which the signal's handler does.
static void opened_by_another(const char *name, int how, int fd, int signal) {
    broken = -1;
    pid_t child = MUST(fork());
    if (!child) _exit(open(work(name), how) < 0);
    int status = -1;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {}
    CHECK_EQ(0, status, "the other process's open of %s", name);
    CHECK_EQ(fd, broken, "descriptor that its signal names, of %s", name);
    CHECK_EQ(signal, broken_by, "its signal, of %s", name);
}
static void prove(void) {
    CHECK_EQ(F_RDLCK, fcntl(reading, F_GETLEASE), "the lease to read");
    CHECK_EQ(F_WRLCK, fcntl(writing, F_GETLEASE), "the lease to write");
    CHECK_EQ(SIGRTMIN + 1, fcntl(reading, F_GETSIG), "its signal");
    CHECK_EQ(getpid(), fcntl(reading, F_GETOWN), "who gets it");
    CHECK_EQ(-1, broken, "nobody has broken one yet");
    opened_by_another("read", O_WRONLY, reading, SIGRTMIN + 1);
    opened_by_another("write", O_RDONLY, writing, SIGRTMIN + 2);
    CHECK_EQ(F_UNLCK, fcntl(writing, F_GETLEASE), "the lease that was given up");
}
