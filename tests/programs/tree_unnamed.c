// A process and two children. What each has of files without a name is in setup(); the children answer questions over pipes, and end when those do.
#include "common.h"
#include <poll.h>

static const char *about = "memfds and deleted files that relatives have mapped or open, together or each by itself, sealed or not: one file for all; a FIFO between two";

#define SEALS (F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK)
enum { ALL, PAIR, LENT, SEALED, BARE, GONE, APART, FILES }; // what of each a process has: a descriptor or none, a mapping or none
static int fds[FILES], fifo_out, fifo_in;
static volatile unsigned char *maps[FILES];

struct order {
    int what, file, at;
};
static int ask[2][2], answer[2][2];
static pid_t kids[2];

static void drop(int file) {
    close(fds[file]);
    fds[file] = -1;
}
static volatile unsigned char *map(int file, size_t pages, off_t at) {
    return MUST(mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fds[file], at * (off_t)PAGE));
}
// A second open file of the same, to read.
static void reopen(int file) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fds[file]);
    int fd = MUST(open(path, O_RDONLY));
    drop(file);
    fds[file] = fd;
}

static void __attribute__((noreturn)) kid(int me) {
    close(fifo_in), close(ask[me][1]), close(answer[me][0]);
    if (me == 0) {
        maps[PAIR] = map(PAIR, 2, 0), maps[LENT] = map(LENT, 2, 0);
        drop(LENT), drop(BARE), drop(APART);
    } else {
        close(ask[0][1]), close(answer[0][0]), close(fifo_out);
        maps[PAIR] = map(PAIR, 2, 1);
        munmap((void *)maps[SEALED], PAGE), munmap((void *)maps[GONE], PAGE);
        maps[GONE] = map(GONE, 1, 0);
        reopen(LENT), reopen(BARE), reopen(APART);
    }
    drop(PAIR), drop(GONE), drop(SEALED);
    for (;;) {
        struct order o;
        long long got = 0;
        unsigned char b = 0;
        struct stat s = {0};
        if (read(ask[me][0], &o, sizeof o) != sizeof o) _exit(0);
        switch (o.what) {
        case 'r': got = maps[o.file][o.at]; break;
        case 'w': maps[o.file][o.at] = (unsigned char)(o.at + 1); break;
        case 'p': got = pread(fds[o.file], &b, 1, o.at) == 1 ? b : -errno; break;
        case 'i': fstat(fds[o.file], &s), got = (long long)s.st_ino; break;
        case 'f': got = write(fifo_out, "more", 4); break;
        }
        if (write(answer[me][1], &got, sizeof got) != sizeof got) _exit(1);
    }
}

static long long tell(int n, int what, int file, int at) {
    struct order o = {what, file, at};
    long long got = -1;
    MUST(write(ask[n][1], &o, sizeof o));
    struct pollfd p = {answer[n][0], POLLIN, 0};
    int come;
    while ((come = poll(&p, 1, 20000)) == -1 && errno == EINTR) __atomic_fetch_add(&eintr_seen, 1, __ATOMIC_SEQ_CST);
    if (come != 1 || read(answer[n][0], &got, sizeof got) != sizeof got) {
        fail("child %d answers, got nothing", n);
        finish();
    }
    return got;
}

static int gone(const char *name) {
    int fd = MUST(open(work(name), O_RDWR | O_CREAT, 0640));
    MUST(unlink(work(name)));
    return fd;
}

static void setup(void) {
    signal(SIGPIPE, SIG_IGN);
    for (int i = 0; i < FILES; i++) {
        fds[i] = i >= GONE ? gone("gone") : MUST(memfd_create("one", i == SEALED ? MFD_ALLOW_SEALING : 0));
        MUST(ftruncate(fds[i], 3 * PAGE));
    }
    maps[ALL] = map(ALL, 3, 0), maps[SEALED] = map(SEALED, 1, 0), maps[GONE] = map(GONE, 1, 0);
    MUST(mkfifo(work("fifo"), 0600));
    fifo_in = MUST(open(work("fifo"), O_RDONLY | O_NONBLOCK));
    fifo_out = MUST(open(work("fifo"), O_WRONLY));
    for (int i = 0; i < 2; i++) {
        MUST(pipe(ask[i])), MUST(pipe(answer[i]));
        if ((kids[i] = MUST(fork())) == 0) kid(i);
        close(ask[i][0]), close(answer[i][1]);
    }
    drop(PAIR), drop(GONE), close(fifo_out);
    maps[ALL][PAGE] = 11, maps[SEALED][5] = 12, maps[GONE][6] = 13;
    MUST(pwrite(fds[LENT], "l", 1, 7)), MUST(pwrite(fds[BARE], "b", 1, 8)), MUST(pwrite(fds[APART], "a", 1, 9));
    tell(0, 'w', PAIR, 20); // of the first page only this one has a mapping, of the last only the other
    tell(1, 'w', PAIR, PAGE + 21);
    CHECK_EQ(0, tell(0, 'r', SEALED, 0), "both children have all");
    MUST(fcntl(fds[SEALED], F_ADD_SEALS, SEALS));
    tell(0, 'f', 0, 0);
}
static void spoil(void) { maps[ALL][PAGE] ^= 1; }

static void same_inode(int file, const char *which) {
    struct stat s;
    CHECK_OK(fstat(fds[file], &s), "%s", which);
    CHECK_EQ((long long)s.st_ino, tell(1, 'i', file, 0), "inode of %s in the other process", which);
    CHECK_EQ(3 * PAGE, s.st_size, "size of %s", which);
    MUST(pwrite(fds[file], "x", 1, 100));
    CHECK_EQ('x', tell(1, 'p', file, 100), "what is written to %s, in the other process", which);
}

static void prove(void) {
    char b[16] = "";
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(11, tell(i, 'r', ALL, PAGE), "what all have mapped, in child %d", i);
        CHECK_EQ(13, tell(i, 'r', GONE, 6), "a deleted file without descriptor, in child %d", i);
        tell(i, 'w', ALL, 30 + i), tell(i, 'w', GONE, 40 + i);
        CHECK_EQ(31 + i, maps[ALL][30 + i], "what child %d writes to what all have mapped", i);
        CHECK_EQ(41 + i, maps[GONE][40 + i], "what child %d writes to the deleted file", i);
    }
    CHECK_EQ(11, maps[ALL][PAGE], "what all have mapped");
    CHECK_EQ(1, pread(fds[ALL], b, 1, PAGE), "reading it");
    CHECK_EQ(11, b[0], "what is read");
    CHECK_EQ(11, tell(1, 'p', ALL, PAGE), "what is read in a child");

    CHECK_EQ(21, tell(0, 'r', PAIR, 20), "the page that only the first child has mapped");
    CHECK_EQ((unsigned char)(PAGE + 22), tell(1, 'r', PAIR, PAGE + 21), "the page that only the second child has mapped");
    tell(0, 'w', PAIR, PAGE + 50);
    CHECK_EQ((unsigned char)(PAGE + 51), tell(1, 'r', PAIR, 50), "the page that both children have mapped");

    CHECK_EQ('l', tell(0, 'r', LENT, 7), "what one has open and another mapped");
    tell(0, 'w', LENT, 60);
    CHECK_EQ(1, pread(fds[LENT], b, 1, 60), "reading it");
    CHECK_EQ(61, b[0], "what is written by its mapping");
    same_inode(LENT, "a memfd that a third has mapped");
    same_inode(BARE, "a memfd that both have open");
    same_inode(APART, "a deleted file that both have open");
    CHECK_EQ('b', tell(1, 'p', BARE, 8), "content of the memfd");
    CHECK_EQ('a', tell(1, 'p', APART, 9), "content of the deleted file");

    CHECK_EQ(SEALS, fcntl(fds[SEALED], F_GET_SEALS), "seals");
    CHECK_ERRNO(EPERM, write(fds[SEALED], "x", 1), "writing to the sealed one");
    CHECK_EQ(12, tell(0, 'r', SEALED, 5), "the sealed one in a child");
    tell(0, 'w', SEALED, 70);
    CHECK_EQ(71, maps[SEALED][70], "what its old mapping still writes");

    CHECK_EQ(4, read(fifo_in, b, sizeof b), "reading the FIFO");
    CHECK_MEM("more", b, 4, "what was in it");
    CHECK_ERRNO(EAGAIN, read(fifo_in, b, sizeof b), "its writer is there");
    CHECK_EQ(4, tell(0, 'f', 0, 0), "writing to it in a child");
    CHECK_EQ(4, read(fifo_in, b, sizeof b), "reading that");
}
