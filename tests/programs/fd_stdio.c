#include "common.h"
#include <linux/kcmp.h>

static const char *about = "descriptors 0, 1, 2 (external ends): whatever they are now, they are open and writable, and a dup of stdout is one with it";

static int copy, open_before[3], mode_before[3];

static long same(int x, int y) { return syscall(SYS_kcmp, getpid(), getpid(), KCMP_FILE, x, y); }
static void say(int fd, const char *what) {
    char line[128];
    int n = snprintf(line, sizeof line, "fd_stdio %s on %d\n", what, fd);
    if (open_before[fd > 2 ? 1 : fd]) CHECK_EQ(n, write(fd, line, (size_t)n), "writing to descriptor %d", fd);
}
static void setup(void) {
    for (int fd = 0; fd < 3; fd++) {
        int flags = fcntl(fd, F_GETFL);
        open_before[fd] = flags != -1;
        mode_before[fd] = flags & O_ACCMODE;
    }
    copy = open_before[1] ? MUST(fcntl(1, F_DUPFD, 40)) : -1;
    say(1, "before"), say(2, "before");
}
static void spoil(void) { close(1), open("/dev/null", O_WRONLY), open_before[1] = 1; }
static void prove(void) {
    for (int fd = 0; fd < 3; fd++) {
        int flags = fcntl(fd, F_GETFL);
        CHECK_EQ(open_before[fd], flags != -1, "descriptor %d open", fd);
        // Read and write may have become more (a terminal), not less.
        if (open_before[fd] && flags != -1 && (flags & O_ACCMODE) != O_RDWR) CHECK_EQ(mode_before[fd], flags & O_ACCMODE, "access mode of descriptor %d", fd);
    }
    if (copy >= 0) CHECK_EQ(0, same(1, copy), "kcmp of stdout and its dup");
    else if (sabotage) fail("stdout, expected closed, got open");
    say(1, "after"), say(2, "after");
    if (copy >= 0) say(copy, "after");
}
