#include "common.h"
#include <sys/wait.h>
#ifndef WITH_CHILD // tree_hugeshared has one
#define WITH_CHILD false
static const char *about = "shared memory of huge pages: memfds with and without descriptor, sparse, sealed, unreserved, and of no file";
static const char *usage = "  --unreserved     also one that no descriptor leads to and that is not reserved, which only root can keep\n"
                           "  --private        a memfd mapped MAP_PRIVATE, which is refused\n";
#endif
static bool unreserved, private_too;
static int own_option(const char *name, const char *value) {
    (void)value;
    if (!strcmp(name, "--unreserved")) return unreserved = true, 1;
    if (!strcmp(name, "--private")) return private_too = true, 1;
    return 0;
}
static int (*option)(const char *, const char *) = own_option;

#define HUGE (2UL << 20)
#define HUGE_2MB (21 << 26) // MAP_HUGE_2MB, MFD_HUGE_2MB
enum { OPEN, VIEW, CLOSED, ANONYMOUS, LARGE, LOST, KINDS };
static const char *const names[KINDS] = {"open", "a view of it", "closed", "anonymous", "large", "lost"};
static unsigned char *areas[KINDS];
static char before[KINDS][256];
static uint64_t want[HUGE / 8];
static int file, sealed, large, to_child[2], from_child[2];
static struct stat was[3];
static pid_t child;

static int new(const char *name, unsigned flags, size_t pages) {
    int fd = (int)memfd_create(name, MFD_HUGETLB | HUGE_2MB | flags);
    if (fd < 0) skip("no huge pages: %s", strerror(errno));
    MUST(ftruncate(fd, (off_t)(pages * HUGE)));
    return fd;
}
static unsigned char *map(int fd, int prot, size_t pages, size_t at, int flags) {
    if (fd < 0) flags |= MAP_ANONYMOUS | MAP_HUGETLB | HUGE_2MB;
    void *p = mmap(NULL, pages * HUGE, prot, MAP_SHARED | flags, fd, (off_t)(at * HUGE));
    if (p == MAP_FAILED) skip("no huge pages: %s", strerror(errno));
    return p;
}
static void has(const unsigned char *at, uint64_t seed, const char *name) {
    fill(want, HUGE, seed);
    CHECK_MEM(want, at, HUGE, "%s: a page", name);
}
static void is_empty(const unsigned char *at, const char *name) {
    memset(want, 0, HUGE);
    CHECK_MEM(want, at, HUGE, "%s: a page that was not filled", name);
}
static void check(const char *who) {
    char text[256];
    for (int i = 0; i < KINDS; i++) {
        if (!areas[i]) continue;
        mapping(areas[i], "KernelPageSize", text, sizeof text);
        CHECK_STR("2048 kB", text, "%s: size of the pages of memory %s", who, names[i]);
        mapping(areas[i], "VmFlags", text, sizeof text);
        CHECK_STR(before[i], text, "%s: flags of memory %s", who, names[i]);
    }
    has(areas[OPEN], 1, who), has(areas[OPEN] + 2 * HUGE, 2, who), has(areas[VIEW], 2, who);
    has(areas[CLOSED] + HUGE, 4, who), has(areas[ANONYMOUS], 5, who), has(areas[LARGE] + 40 * HUGE, 6, who);
    if (areas[LOST]) has(areas[LOST] + HUGE, 7, who);
}
static void setup(void) {
    file = new("open", 0, 6);
    areas[OPEN] = map(file, PROT_READ | PROT_WRITE, 4, 0, 0), areas[VIEW] = map(file, PROT_READ, 1, 2, 0);
    fill(areas[OPEN], HUGE, 1), fill(areas[OPEN] + 2 * HUGE, HUGE, 2);
    unsigned char *last = map(file, PROT_READ | PROT_WRITE, 1, 5, 0); // what is not mapped any more
    fill(last, HUGE, 3);
    MUST(munmap(last, HUGE));
    MUST(lseek(file, 12345, SEEK_SET));
    sealed = new("sealed", MFD_ALLOW_SEALING | MFD_CLOEXEC, 1);
    MUST(fcntl(sealed, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW));
    int fd = new("closed", 0, 2);
    areas[CLOSED] = map(fd, PROT_READ | PROT_WRITE, 2, 0, 0);
    fill(areas[CLOSED] + HUGE, HUGE, 4);
    if (private_too) MUST(mmap(NULL, HUGE, PROT_READ, MAP_PRIVATE, fd, 0));
    MUST(close(fd));
    areas[ANONYMOUS] = map(-1, PROT_READ | PROT_WRITE, 2, 0, 0);
    fill(areas[ANONYMOUS], HUGE, 5);
    large = new("large", 0, 64);
    areas[LARGE] = map(large, PROT_READ | PROT_WRITE, 64, 0, MAP_NORESERVE);
    fill(areas[LARGE] + 40 * HUGE, HUGE, 6);
    if (unreserved) areas[LOST] = map(-1, PROT_READ | PROT_WRITE, 8, 0, MAP_NORESERVE), fill(areas[LOST] + HUGE, HUGE, 7);
    for (int i = 0; i < KINDS; i++)
        if (areas[i]) mapping(areas[i], "VmFlags", before[i], sizeof before[i]);
    MUST(fstat(file, &was[0])), MUST(fstat(sealed, &was[1])), MUST(fstat(large, &was[2]));
    if (!WITH_CHILD) return;
    MUST(pipe(to_child)), MUST(pipe(from_child));
    child = MUST(fork());
    char byte;
    if (child == 0) {
        long n;
        MUST(close(to_child[1]));
        MUST(write(from_child[1], "r", 1));
        while ((n = read(to_child[0], &byte, 1)) != 1)
            if (n == 0) _exit(0); // its parent was killed
        check("child");
        for (int i = 0; i < KINDS; i++)
            if (areas[i] && i != VIEW) areas[i][77] = 0x5a; // which its parent sees
        if (failures_count) MUST(write(from_child[1], failures, failures_len));
        _exit(failures_count);
    }
    MUST(read(from_child[0], &byte, 1));
}
static void spoil(void) { areas[OPEN][2 * HUGE + 9] ^= 1; }
static void prove(void) {
    struct stat now;
    int fds[] = {file, sealed, large};
    check("first");
    // of the files: size, and how much of it there is
    for (int i = 0; i < 3; i++) {
        MUST(fstat(fds[i], &now));
        CHECK_EQ(was[i].st_size, now.st_size, "size of file %d", i);
        CHECK_EQ(was[i].st_blocks, now.st_blocks, "blocks of file %d", i);
        CHECK_EQ((long)HUGE, now.st_blksize, "pages of file %d", i);
    }
    CHECK_EQ(12345, lseek(file, 0, SEEK_CUR), "position");
    CHECK_EQ(F_SEAL_SHRINK | F_SEAL_GROW, fcntl(sealed, F_GET_SEALS), "seals");
    CHECK_EQ(FD_CLOEXEC, fcntl(sealed, F_GETFD), "close-on-exec");
    // it is one file: what is written through one mapping is seen through another
    is_empty(areas[OPEN] + HUGE, "open"), is_empty(areas[OPEN] + 3 * HUGE, "open"), is_empty(areas[CLOSED], "closed");
    is_empty(areas[ANONYMOUS] + HUGE, "anonymous");
    areas[OPEN][2 * HUGE + 99] ^= 0xff;
    CHECK_EQ(areas[OPEN][2 * HUGE + 99], areas[VIEW][99], "what is written is seen in a view");
    areas[OPEN][2 * HUGE + 99] ^= 0xff;
    unsigned char *last = map(file, PROT_READ, 1, 5, 0);
    has(last, 3, "a page that was not mapped");
    if (!WITH_CHILD) return;
    MUST(write(to_child[1], "x", 1));
    int status = -1;
    CHECK_EQ(child, waitpid(child, &status, 0), "waiting for the child");
    char said[2048] = "";
    if (status) MUST(read(from_child[0], said, sizeof said - 1));
    CHECK_STR("", said, "what the child says");
    CHECK_EQ(0, status, "status of the child");
    for (int i = 0; i < KINDS; i++)
        if (areas[i] && i != VIEW) CHECK_EQ(0x5a, areas[i][77], "what the child has written to memory %s", names[i]);
}
