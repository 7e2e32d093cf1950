#include "common.h"

static const char *about = "regular files: position, access mode, O_APPEND, O_NONBLOCK, close-on-exec, two opens with positions of their own, high numbers";

static int rw, append, other, cloexec, high, sync_fd;

static void setup(void) {
    char text[1000];
    for (int i = 0; i < 1000; i++) text[i] = (char)('a' + i % 26);
    rw = MUST(open(work("file"), O_RDWR | O_CREAT | O_TRUNC, 0600));
    MUST(write(rw, text, sizeof text));
    MUST(lseek(rw, 123, SEEK_SET));
    other = MUST(open(work("file"), O_RDONLY | O_NONBLOCK));
    MUST(lseek(other, 456, SEEK_SET));
    append = MUST(open(work("log"), O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0600));
    MUST(write(append, "one\n", 4));
    cloexec = MUST(open(work("file"), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
    high = MUST(fcntl(cloexec, F_DUPFD, 700));
    close(high);
    int fd = MUST(open(work("file"), O_RDWR));
    MUST(dup2(fd, high));
    close(fd);
    MUST(lseek(high, 5000, SEEK_SET)); // beyond the end
    sync_fd = MUST(open(work("file"), O_WRONLY | O_DSYNC | O_NOATIME));
}
static void spoil(void) { lseek(other, 457, SEEK_SET); }
static void prove(void) {
    char c[8] = "", text[64];
    CHECK_EQ(123, lseek(rw, 0, SEEK_CUR), "position of the first open");
    CHECK_EQ(456, lseek(other, 0, SEEK_CUR), "position of the second open");
    CHECK_EQ(5000, lseek(high, 0, SEEK_CUR), "position beyond the end, at descriptor %d", high);
    CHECK_EQ(O_RDWR, fcntl(rw, F_GETFL) & (O_ACCMODE | O_APPEND | O_NONBLOCK), "flags of the first open");
    CHECK_EQ(O_RDONLY | O_NONBLOCK, fcntl(other, F_GETFL) & (O_ACCMODE | O_APPEND | O_NONBLOCK), "flags of the second");
    CHECK_EQ(O_WRONLY | O_APPEND, fcntl(append, F_GETFL) & (O_ACCMODE | O_APPEND | O_NONBLOCK), "flags of the log");
    CHECK_EQ(O_WRONLY | O_DSYNC | O_NOATIME, fcntl(sync_fd, F_GETFL) & (O_ACCMODE | O_DSYNC | O_NOATIME), "O_DSYNC, O_NOATIME");
    CHECK_EQ(FD_CLOEXEC, fcntl(cloexec, F_GETFD), "close-on-exec");
    CHECK_EQ(0, fcntl(rw, F_GETFD), "no close-on-exec");
    CHECK_EQ(1, read(rw, c, 1), "read of the first open");
    CHECK_EQ('a' + 123 % 26, c[0], "byte at 123");
    CHECK_EQ(1, read(other, c, 1), "read of the second open");
    CHECK_EQ('a' + 456 % 26, c[0], "byte at 456");
    CHECK_EQ(457, lseek(other, 0, SEEK_CUR), "the second moves");
    CHECK_EQ(124, lseek(rw, 0, SEEK_CUR), "the first does not move with it");
    CHECK_EQ(4, lseek(append, 0, SEEK_CUR), "position of the log");
    CHECK_OK(lseek(append, 0, SEEK_SET), "seek in the log");
    CHECK_EQ(4, write(append, "two\n", 4), "write to the log");
    slurp(work("log"), text, sizeof text);
    CHECK_STR("one\ntwo\n", text, "the log");
}
