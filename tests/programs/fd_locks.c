#include "common.h"
#include <sys/file.h>
#include <sys/wait.h>

static const char *about = "locks: flock, POSIX and OFD record locks with their ranges, shared and exclusive, on named and deleted files; seen by another process";

static int whole, shared, ranges, ofd, gone, folder;

static struct flock range(short type, off_t start, off_t len) { return (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = len}; }
static void set(int fd, int how, short type, off_t start, off_t len) {
    struct flock l = range(type, start, len);
    MUST(fcntl(fd, how, &l));
}
static void setup(void) {
    whole = MUST(open(work("whole"), O_RDWR | O_CREAT, 0600)), MUST(flock(whole, LOCK_EX));
    shared = MUST(open(work("shared"), O_RDONLY | O_CREAT, 0600)), MUST(flock(shared, LOCK_SH));
    MUST(dup2(shared, 40));
    ranges = MUST(open(work("ranges"), O_RDWR | O_CREAT, 0600));
    set(ranges, F_SETLK, F_WRLCK, 10, 20), set(ranges, F_SETLK, F_RDLCK, 100, 0);
    ofd = MUST(open(work("ofd"), O_RDWR | O_CREAT, 0600));
    set(ofd, F_OFD_SETLK, F_WRLCK, 7, 1), set(ofd, F_OFD_SETLK, F_RDLCK, 50, 5);
    gone = MUST(open(work("gone"), O_RDWR | O_CREAT, 0600)), MUST(unlink(work("gone")));
    set(gone, F_SETLK, F_WRLCK, 0, 0), MUST(flock(gone, LOCK_EX));
    folder = MUST(open(dir, O_RDONLY | O_DIRECTORY)), MUST(flock(folder, LOCK_SH));
}
static void spoil(void) { set(ranges, F_SETLK, F_UNLCK, 15, 1); }

// What another process is told: the type, where it begins and how long it is.
static void told(int fd, int how, off_t at, short type, off_t start, off_t len, const char *what) {
    struct flock l = range(F_WRLCK, at, 1);
    CHECK_OK(fcntl(fd, how, &l), "F_GETLK of %s", what);
    CHECK_EQ(type, l.l_type, "type of %s", what);
    if (type == F_UNLCK) return;
    CHECK_EQ(start, l.l_start, "first byte of %s", what);
    CHECK_EQ(len, l.l_len, "length of %s", what);
    if (how == F_GETLK && fd == ranges) CHECK_EQ(getppid(), l.l_pid, "holder of %s", what);
}
static bool free_for(const char *path, int how) {
    int fd = MUST(open(path, O_RDWR | O_CREAT, 0600));
    bool got = !flock(fd, how | LOCK_NB);
    close(fd);
    return got;
}
static void prove(void) {
    fflush(NULL);
    pid_t child = MUST(fork());
    if (!child) { // POSIX locks are not inherited
        told(ranges, F_GETLK, 9, F_UNLCK, 0, 0, "the byte before");
        told(ranges, F_GETLK, 15, F_WRLCK, 10, 20, "a range");
        told(ranges, F_GETLK, 30, F_UNLCK, 0, 0, "the byte behind");
        told(ranges, F_GETLK, 5000, F_RDLCK, 100, 0, "a range to the end");
        told(gone, F_GETLK, 3, F_WRLCK, 0, 0, "a deleted file");
        int other = MUST(open(work("ofd"), O_RDWR));
        told(other, F_OFD_GETLK, 7, F_WRLCK, 7, 1, "an OFD lock");
        told(other, F_OFD_GETLK, 54, F_RDLCK, 50, 5, "a shared OFD lock");
        CHECK(!free_for(work("whole"), LOCK_SH), "an exclusive flock holds");
        CHECK(!free_for(work("shared"), LOCK_EX), "a shared flock holds against an exclusive one");
        CHECK(free_for(work("shared"), LOCK_SH), "a shared flock takes another");
        int d = MUST(open(dir, O_RDONLY | O_DIRECTORY));
        CHECK(flock(d, LOCK_EX | LOCK_NB) == -1, "the folder is locked");
        dprintf(2, "%s", failures);
        _exit(failures_count != 0);
    }
    int status = -1;
    MUST(waitpid(child, &status, 0));
    CHECK_EQ(0, status, "what another process found (its status)");
    MUST(flock(40, LOCK_UN)); // one open file, one lock
    CHECK(free_for(work("shared"), LOCK_EX), "unlocked by a dup");
}
