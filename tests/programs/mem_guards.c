#include "common.h"
#include <sys/prctl.h>
#include <sys/shm.h>
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif

static const char *about = "guards (MADV_GUARD_INSTALL) in shared memory of no file, in two mappings of the same, in System V shared memory and private mappings of files, a deleted one among them: what they hide is there again when they are taken off";
static const char *usage = "  --no-child       have children and be a reaper, so that no snapshot child can be made\n";
static bool no_child;
static int own_option(const char *name, const char *value) {
    (void)value;
    if (!strcmp(name, "--no-child")) return no_child = true, 1;
    return 0;
}
static int (*option)(const char *, const char *) = own_option;

#define PAGES 16
#define BYTES (PAGES * PAGE)
enum { SHARED, ONE, OTHER, SEGMENT, LOCKED, NAMED, DELETED, KINDS };
static const char *const names[KINDS] = {"shared", "one mapping", "the other mapping", "System V", "locked", "of a file", "of a deleted file"};
static const bool is_private[KINDS] = {[NAMED] = true, [DELETED] = true};
static unsigned char *areas[KINDS], want[BYTES], file[BYTES];
static bool guarded[KINDS][PAGES];
static int probe[2];
static pid_t child;

static bool readable(void *address) { return write(probe[1], address, 1) == 1; } // EFAULT instead of a signal
static void guard(int kind, size_t page, size_t n) {
    if (madvise(areas[kind] + page * PAGE, n * PAGE, MADV_GUARD_INSTALL)) skip("no guards in memory %s: %s", names[kind], strerror(errno)); // kernel 6.15
    for (size_t i = 0; i < n; i++) guarded[kind][page + i] = true;
}
static void *of_file(const char *name) {
    int fd = MUST(open(work(name), O_RDWR | O_CREAT, 0600));
    fill(file, BYTES, 77);
    MUST(write(fd, file, BYTES));
    void *at = MUST(mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
    close(fd);
    return at;
}
static void *shared(void) { return MUST(mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)); }
static void setup(void) {
    MUST(pipe(probe));
    areas[SHARED] = shared(), areas[ONE] = shared();
    areas[OTHER] = MUST(mremap(areas[ONE], 0, BYTES, MREMAP_MAYMOVE));
    int id = MUST(shmget(IPC_PRIVATE, BYTES, 0600));
    areas[SEGMENT] = MUST(shmat(id, NULL, 0));
    MUST(shmctl(id, IPC_RMID, NULL));
    areas[LOCKED] = shared();
    areas[NAMED] = of_file("named"), areas[DELETED] = of_file("deleted");
    MUST(unlink(work("deleted")));
    for (int i = 0; i < KINDS; i++)
        if (i != OTHER) fill(areas[i], BYTES / 2, (uint64_t)i); // the rest is untouched, or the file's
    guard(SHARED, 0, 1), guard(SHARED, 6, 4), guard(SHARED, 15, 1); // touched, half of it, and not
    guard(ONE, 1, 2), guard(OTHER, 2, 2);
    guard(SEGMENT, 3, 1), guard(NAMED, 3, 1), guard(NAMED, 12, 1), guard(DELETED, 3, 1), guard(DELETED, 12, 1);
    guard(LOCKED, 2, 3);
    mlock(areas[LOCKED], BYTES); // says that it cannot bring in all, and locks it
    if (no_child) {
        MUST(prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0));
        int gone[2], there[2];
        char byte;
        MUST(pipe(gone)), MUST(pipe(there));
        child = MUST(fork());
        if (child == 0) {
            MUST(close(gone[1])), MUST(shmdt(areas[SEGMENT]));
            MUST(write(there[1], "x", 1));
            while (read(gone[0], &byte, 1) == -1) continue;
            _exit(0);
        }
        MUST(close(gone[0])), MUST(read(there[0], &byte, 1));
    }
}
static void spoil(void) { MUST(madvise(areas[NAMED] + 12 * PAGE, PAGE, MADV_GUARD_REMOVE)); }
static void prove(void) {
    fill(file, BYTES, 77);
    char flags[256];
    CHECK(mapping(areas[LOCKED], "VmFlags", flags, sizeof flags) && strstr(flags, " lo"), "what is guarded and locked is locked");
    for (int i = 0; i < KINDS; i++) {
        memset(want, 0, BYTES);
        if (is_private[i]) memcpy(want, file, BYTES);
        fill(want, BYTES / 2, (uint64_t)(i == OTHER ? ONE : i));
        for (size_t p = 0; p < PAGES; p++) {
            CHECK_EQ(!guarded[i][p], readable(areas[i] + p * PAGE), "readable: page %zu of memory %s", p, names[i]);
            if (!guarded[i][p]) CHECK_MEM(want + p * PAGE, areas[i] + p * PAGE, PAGE, "page %zu of memory %s", p, names[i]);
        }
        MUST(madvise(areas[i], BYTES, MADV_GUARD_REMOVE));
        if (i == DELETED) continue; // what was behind them is nobody's any more
        for (size_t p = 0; p < PAGES; p++) {
            const unsigned char *is = is_private[i] && guarded[i][p] ? file : want; // a private page is gone with its guard
            CHECK_MEM(is + p * PAGE, areas[i] + p * PAGE, PAGE, "page %zu of memory %s without its guard", p, names[i]);
        }
    }
    areas[ONE][5 * PAGE] ^= 1;
    CHECK_EQ(areas[ONE][5 * PAGE], areas[OTHER][5 * PAGE], "a byte of what two mappings share");
}
