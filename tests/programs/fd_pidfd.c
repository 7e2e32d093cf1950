#include "common.h"
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/wait.h>

static const char *about = "pidfds: of the process itself, of processes that have ended (one with two handles)";
static const char *usage = "  --what stranger [--given-up]   only one, of another process: refused\n";

static const char *what;
static bool given_up;
static int own_option(const char *name, const char *value) {
    if (!strcmp(name, "--given-up")) return given_up = true, 1;
    return !strcmp(name, "--what") && value ? what = value, 2 : 0;
}
static int (*option)(const char *, const char *) = own_option;

// Kernel 6.15: how it ended.
struct info { uint64_t mask, cgroup; uint32_t ids[11]; int32_t status; };
#define GET_INFO _IOWR(0xff, 11, struct info)
#define P_PIDFD_ 3

static int self, seven, seven_too, killed, other;
static int status_of_seven, status_of_killed;

static int handle(pid_t pid, unsigned flags) { return (int)MUST(syscall(SYS_pidfd_open, pid, flags)); }
static int status(int fd) {
    struct info i = {.mask = 8};
    return ioctl(fd, GET_INFO, &i) || !(i.mask & 8) ? -1 : i.status;
}
static void setup(void) {
    if (what) {
        other = handle(getppid(), 0);
        return;
    }
    int block[2];
    MUST(pipe(block));
    self = MUST(fcntl(handle(getpid(), O_NONBLOCK), F_DUPFD, 50));
    for (int i = 0; i < 2; i++) {
        pid_t child = MUST(fork());
        if (!child) {
            char c;
            close(block[1]);
            if (i == 0) _exit(7);
            for (;;) MUST(read(block[0], &c, 1));
        }
        if (i == 0) seven = handle(child, 0), seven_too = handle(child, O_NONBLOCK);
        else killed = handle(child, 0), MUST(kill(child, SIGTERM));
        MUST(waitpid(child, NULL, 0));
    }
    close(block[0]), close(block[1]);
    status_of_seven = status(seven), status_of_killed = status(killed);
}
static void spoil(void) { MUST(dup2(self, killed)); }

static void ended(int fd, int how, const char *who) {
    struct pollfd p = {.fd = fd, .events = POLLIN};
    siginfo_t info;
    char path[64], text[64];
    CHECK_EQ(1, poll(&p, 1, 0), "poll of %s", who);
    CHECK_HEX(POLLIN, p.revents & POLLIN, "what it says of %s", who);
    CHECK_ERRNO(ESRCH, syscall(SYS_pidfd_send_signal, fd, 0, NULL, 0), "a signal to %s", who);
    CHECK_ERRNO(ECHILD, waitid(P_PIDFD_, (id_t)fd, &info, WEXITED | WNOHANG), "waiting for %s", who);
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
    CHECK_STR("-1", field(path, "Pid", text, sizeof text), "the PID of %s", who);
    CHECK_EQ(how, status(fd), "how %s ended", who);
}
static void prove(void) {
    struct stat a, b, c;
    char path[64], text[64];
    if (given_up) {
        ended(other, status(other) < 0 ? -1 : 0, "who was given up");
        return;
    }
    if (what) {
        struct pollfd p = {.fd = other, .events = POLLIN};
        CHECK_EQ(0, poll(&p, 1, 0), "poll of the other, who lives");
        return;
    }
    struct pollfd p = {.fd = self, .events = POLLIN};
    CHECK_EQ(0, poll(&p, 1, 0), "poll of oneself");
    CHECK_OK(syscall(SYS_pidfd_send_signal, self, 0, NULL, 0), "a signal to oneself");
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", self);
    CHECK_EQ(getpid(), atoi(field(path, "Pid", text, sizeof text)), "one's own PID");
    CHECK_EQ(O_NONBLOCK, fcntl(self, F_GETFL) & O_NONBLOCK, "non-blocking");
    CHECK_EQ(0, fcntl(self, F_GETFD), "close-on-exec of a dup");
    CHECK_EQ(FD_CLOEXEC, fcntl(seven, F_GETFD), "close-on-exec");
    ended(seven, status_of_seven, "a child that ended with 7");
    ended(seven_too, status_of_seven, "the same, by its second handle");
    ended(killed, status_of_killed, "a child that was killed");
    fstat(seven, &a), fstat(seven_too, &b), fstat(killed, &c);
    CHECK_EQ(a.st_ino, b.st_ino, "both handles are of one process");
    CHECK(a.st_ino != c.st_ino, "they are not of the other");
    CHECK_ERRNO(ECHILD, waitpid(-1, NULL, WNOHANG | 0x40000000), "a child that nobody made");
    sigset_t pending;
    sigpending(&pending);
    CHECK_EQ(0, sigismember(&pending, SIGCHLD), "a SIGCHLD that waits");
}
