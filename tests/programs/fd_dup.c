#include "common.h"
#include <linux/kcmp.h>

static const char *about = "duplicated descriptors are one open file (position, flags, kcmp), close-on-exec is each one's own; a pipe end likewise; gaps in the table";

static int a, b, c, apart, pipe_fds[2], pipe_dup, top;

static long same(int x, int y) { return syscall(SYS_kcmp, getpid(), getpid(), KCMP_FILE, x, y); }
static void setup(void) {
    MUST(write_file("file", "0123456789abcdefghijklmnopqrstuvwxyz\n") ? 0 : -1);
    a = MUST(open(work("file"), O_RDWR));
    b = MUST(dup(a));
    c = MUST(fcntl(a, F_DUPFD_CLOEXEC, 333));
    apart = MUST(open(work("file"), O_RDWR));
    MUST(pipe(pipe_fds));
    pipe_dup = MUST(dup2(pipe_fds[1], 55));
    top = MUST(dup2(a, 999));
    MUST(lseek(b, 10, SEEK_SET));
    MUST(fcntl(c, F_SETFL, O_APPEND | O_NONBLOCK));
    close(pipe_fds[1]);
}
static void spoil(void) { // one of them becomes an open file of its own, looking the same
    int fd = MUST(open(work("file"), O_RDWR | O_APPEND | O_NONBLOCK));
    MUST(lseek(fd, 10, SEEK_SET));
    MUST(dup2(fd, b));
    close(fd);
}
static void prove(void) {
    char t;
    CHECK_EQ(0, same(a, b), "kcmp of the file and its dup");
    CHECK_EQ(0, same(a, c), "kcmp of the file and its F_DUPFD");
    CHECK_EQ(0, same(a, top), "kcmp of the file and descriptor 999");
    CHECK(same(a, apart) != 0, "kcmp of two opens not 0");
    CHECK_EQ(10, lseek(a, 0, SEEK_CUR), "position");
    CHECK_EQ(1, read(a, &t, 1), "read");
    CHECK_EQ('a', t, "byte read");
    CHECK_EQ(11, lseek(b, 0, SEEK_CUR), "position by the dup");
    CHECK_EQ(11, lseek(c, 0, SEEK_CUR), "position by the F_DUPFD");
    CHECK_EQ(0, lseek(apart, 0, SEEK_CUR), "position of the other open");
    CHECK_EQ(O_APPEND | O_NONBLOCK, fcntl(a, F_GETFL) & (O_APPEND | O_NONBLOCK), "flags set by another descriptor");
    CHECK_EQ(0, fcntl(apart, F_GETFL) & (O_APPEND | O_NONBLOCK), "flags of the other open");
    CHECK_EQ(FD_CLOEXEC, fcntl(c, F_GETFD), "close-on-exec of F_DUPFD_CLOEXEC");
    CHECK_EQ(0, fcntl(a, F_GETFD), "close-on-exec of the file");
    for (int fd = 400; fd < 999; fd++) CHECK_EQ(-1, fcntl(fd, F_GETFD), "descriptor %d closed", fd);
    CHECK_EQ(-1, fcntl(pipe_fds[1], F_GETFD), "the pipe end that was closed");
    CHECK_EQ(1, write(pipe_dup, "x", 1), "write to the pipe by its dup");
    close(pipe_dup);
    CHECK_EQ(1, read(pipe_fds[0], &t, 1), "read from the pipe");
    CHECK_EQ(0, read(pipe_fds[0], &t, 1), "end of the pipe, nobody else holds it");
}
