// Objects with all ends in this process, that another process (no child of it) holds too: to be refused by name, unless given up.
#include "common.h"
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/wait.h>

static const char *about = "a pipe, an eventfd, a memfd or a pair of sockets at 40 (and 41) that a second process holds too, and speaks through";
static const char *usage = "  --what pipe|eventfd|memfd|pair|datagrams|packets\n"
                           "  --given-up       ended, or closed, by a restore: that is the proof\n";
static const char *what = "pipe";
static bool given_up;
static int ends[2] = {40, 41};

static int own_option(const char *name, const char *value) {
    if (!strcmp(name, "--given-up")) return given_up = true, 1;
    return !strcmp(name, "--what") && value ? what = value, 2 : 0;
}
static int (*option)(const char *, const char *) = own_option;

// Ends with this program, or when the gate is open and it has said its word.
static void other(pid_t program) {
    while (access(work("gate"), F_OK)) {
        if (kill(program, 0)) _exit(1);
        sleep_ms(2);
    }
    uint64_t five = 5;
    _exit(write(ends[1], &five, sizeof five) == sizeof five ? 0 : 1);
}
static void setup(void) {
    int fds[2];
    if (!strcmp(what, "pipe")) MUST(pipe(fds));
    else if (!strcmp(what, "pair")) MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, fds));
    else if (!strcmp(what, "datagrams")) MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, fds));
    else if (!strcmp(what, "packets")) MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, fds));
    else fds[0] = MUST(!strcmp(what, "memfd") ? memfd_create("shared", 0) : eventfd(0, 0)), fds[1] = MUST(dup(fds[0]));
    for (int i = 0; i < 2; i++) MUST(dup2(fds[i], ends[i])), close(fds[i]);
    pid_t me = getpid(), between = MUST(fork());
    if (!between) {
        if (!MUST(fork())) other(me);
        _exit(0);
    }
    MUST(waitpid(between, NULL, 0));
}
static void spoil(void) { close(40); }
static void prove(void) {
    if (given_up) {
        signal(SIGPIPE, SIG_IGN);
        char c;
        for (int i = 0; i < 2; i++) {
            bool closed = !strcmp(what, "eventfd") || !strcmp(what, "memfd"), pipe = !strcmp(what, "pipe");
            if (closed) CHECK_ERRNO(EBADF, fcntl(ends[i], F_GETFD), "what was closed");
            else if (pipe && i) CHECK_ERRNO(EPIPE, write(ends[i], "x", 1), "writing to what was given up");
            else CHECK_EQ(0, read(ends[i], &c, 1), "reading what was given up");
            if (!closed && !pipe) CHECK_ERRNO(EPIPE, write(ends[i], "x", 1), "writing to what was given up");
        }
        return;
    }
    uint64_t got = 0;
    if (!strcmp(what, "memfd")) { // the position is one, too
        for (int i = 0; i < 1000 && lseek(40, 0, SEEK_CUR) != sizeof got; i++) sleep_ms(2);
        MUST(lseek(40, 0, SEEK_SET));
    }
    CHECK_EQ((long)sizeof got, read(40, &got, sizeof got), "reading what the other process says");
    CHECK_EQ(5, got, "what the other process says");
}
