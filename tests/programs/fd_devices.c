#include "common.h"
#include <sys/sysmacros.h>

static const char *about = "/dev/null, zero, full, urandom and random: still what they are, with their flags";

static const struct {
    const char *path;
    int flags, minor;
} devices[] = {{"/dev/null", O_RDWR, 3}, {"/dev/zero", O_RDONLY, 5}, {"/dev/full", O_WRONLY | O_NONBLOCK, 7}, {"/dev/urandom", O_RDONLY | O_CLOEXEC, 9}, {"/dev/random", O_RDONLY, 8}, {"/dev/null", O_WRONLY | O_APPEND, 3}};
static int fds[COUNT(devices)], flags[COUNT(devices)];

static void setup(void) {
    for (size_t i = 0; i < COUNT(devices); i++) {
        fds[i] = MUST(open(devices[i].path, devices[i].flags));
        flags[i] = fcntl(fds[i], F_GETFL);
    }
}
static void spoil(void) { MUST(dup2(fds[0], fds[1])); }
static void prove(void) {
    char buffer[64], zero[64] = "";
    for (size_t i = 0; i < COUNT(devices); i++) {
        struct stat s = {0};
        fstat(fds[i], &s);
        CHECK(S_ISCHR(s.st_mode), "%s is a character device", devices[i].path);
        CHECK_EQ(makedev(1, devices[i].minor), s.st_rdev, "device of %s", devices[i].path);
        CHECK_EQ(flags[i], fcntl(fds[i], F_GETFL), "flags of %s", devices[i].path);
        CHECK_EQ(devices[i].flags & O_CLOEXEC ? FD_CLOEXEC : 0, fcntl(fds[i], F_GETFD), "close-on-exec of %s", devices[i].path);
    }
    CHECK_EQ(0, read(fds[0], buffer, 64), "read of /dev/null");
    CHECK_EQ(5, write(fds[0], "hello", 5), "write to /dev/null");
    memset(buffer, 1, 64);
    CHECK_EQ(64, read(fds[1], buffer, 64), "read of /dev/zero");
    CHECK_MEM(zero, buffer, 64, "zeros");
    CHECK_ERRNO(ENOSPC, write(fds[2], "x", 1), "write to /dev/full");
    CHECK_EQ(64, read(fds[3], buffer, 64), "read of /dev/urandom");
    CHECK(memcmp(zero, buffer, 64) != 0, "random bytes not zero");
}
