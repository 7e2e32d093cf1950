#include "common.h"
#include <sys/wait.h>

#ifndef WITH_CHILD
#define WITH_CHILD false
static const char *about = "sealed memory (mseal): of every kind, whole and in part, guarded, locked";
#endif
static const char *usage = "  --all   everything that is mapped is sealed, the code and stack of the program and the vDSO among it\n";

static bool all;
static int own_option(const char *name, const char *value) { (void)value; return !strcmp(name, "--all") ? all = true, 1 : 0; }
static int (*option)(const char *, const char *) = own_option;

#ifndef SYS_mseal
#define SYS_mseal 462
#endif
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif
#define BYTES (16 * PAGE)
enum { WRITABLE, READ_ONLY, NONE, CODE, FILE_PRIVATE, FILE_SHARED, SHARED, PART, GUARDED, LOCKED, KINDS };
static const char *const names[KINDS] = {"writable", "read-only", "no access", "code", "private file", "shared file", "shared", "part", "guarded", "locked"};
static unsigned char *areas[KINDS], *late, *plain, want[BYTES];
static char before[KINDS][256];
static unsigned long ranges[512][2];
static size_t n_ranges;
static int gate[2], probe[2];
static pid_t child;

static int seal(void *at, size_t bytes) { return (int)syscall(SYS_mseal, at, bytes, 0UL); }
static void flags_of(void *address, char *out) { // without those that are about the past, and about how memory is accounted
    static const char *const left_out[] = {" sd", " ac", " nr"};
    mapping(address, "VmFlags", out, 256);
    for (size_t i = 0; i < COUNT(left_out); i++) {
        char *at = strstr(out, left_out[i]);
        if (at) memmove(at, at + 3, strlen(at + 3) + 1);
    }
}
static unsigned char *room(size_t bytes) { // with borders: no merging
    unsigned char *p = MUST(mmap(NULL, bytes + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    return p + PAGE;
}
static unsigned char *anonymous(int share, int seed) {
    unsigned char *p = MUST(mmap(room(BYTES), BYTES, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_ANONYMOUS | share, -1, 0));
    fill(p, BYTES, (uint64_t)seed);
    return p;
}
static unsigned char *of_file(const char *name, int share, int seed) {
    int fd = MUST(open(work(name), O_RDWR | O_CREAT | O_TRUNC, 0600));
    fill(want, BYTES, (uint64_t)seed);
    MUST(write(fd, want, BYTES));
    unsigned char *p = MUST(mmap(room(BYTES), BYTES, PROT_READ | PROT_WRITE, MAP_FIXED | share, fd, 0));
    close(fd);
    return p;
}
// Calls `f` for each mapping but [vsyscall], which is none of the process's own.
static void each_mapping(void (*f)(unsigned long from, unsigned long to)) {
    static char text[1 << 17];
    if (slurp("/proc/self/maps", text, sizeof text) < 0) must_failed("/proc/self/maps", __FILE__, __LINE__, errno);
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        unsigned long from, to;
        if (sscanf(line, "%lx-%lx ", &from, &to) == 2 && !strstr(line, "[vsyscall]")) f(from, to);
    }
}
static void seal_and_note(unsigned long from, unsigned long to) {
    if (n_ranges == COUNT(ranges)) must_failed("more mappings than expected", __FILE__, __LINE__, E2BIG);
    MUST(seal((void *)from, to - from));
    ranges[n_ranges][0] = from, ranges[n_ranges++][1] = to;
}
static void is_sealed(unsigned char *p, const char *name) {
    CHECK_ERRNO(EPERM, mprotect(p, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC), "mprotect of: %s", name);
    CHECK_ERRNO(EPERM, munmap(p, PAGE), "munmap of: %s", name);
    CHECK_ERRNO(EPERM, mmap(p, PAGE, PROT_READ, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), "mmap over: %s", name);
    CHECK_ERRNO(EPERM, mremap(p, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, plain), "mremap of: %s", name);
}
static void is_as_it_was(void) {
    char after[256];
    for (int i = 0; i < KINDS; i++) {
        flags_of(areas[i] + (i == PART ? 4 * PAGE : 0), after);
        CHECK_STR(before[i], after, "flags of: %s", names[i]);
        is_sealed(areas[i] + (i == PART ? 4 * PAGE : 0), names[i]);
        fill(want, BYTES, (uint64_t)i);
        if (i == FILE_PRIVATE) memset(want + PAGE, 0x5a, PAGE);
        if (i != NONE && i != GUARDED) CHECK_MEM(want, areas[i], BYTES, "content of: %s", names[i]);
        if (i == GUARDED) CHECK_MEM(want + 4 * PAGE, areas[i] + 4 * PAGE, BYTES - 4 * PAGE, "content behind the guards");
    }
    CHECK_ERRNO(EFAULT, write(probe[1], areas[GUARDED] + PAGE, 1), "a guard page");
    CHECK_ERRNO(EPERM, madvise(areas[READ_ONLY], PAGE, MADV_DONTNEED), "madvise of what is read-only");
}
static int in_child(void) { // exit status 0: all is well
    char c;
    ssize_t n;
    close(gate[1]);
    while ((n = read(gate[0], &c, 1)) < 0 && errno == EINTR) {}
    if (n == 0) return 4; // its parent has ended
    is_as_it_was();
    is_sealed(late, "the child's own");
    for (size_t i = 0; i < BYTES; i++) if (late[i] != 0x77) return 2;
    failures[failures_len] = 0;
    if (failures_count) write_file("child", failures);
    return failures_count != 0;
}
static void setup(void) {
    if (seal(NULL, 0)) skip("mseal: %s", strerror(errno)); // kernel 6.10
    MUST(pipe(gate)), MUST(pipe(probe));
    plain = anonymous(MAP_PRIVATE, 99), late = anonymous(MAP_PRIVATE, 98);
    for (int i = 0; i < KINDS; i++)
        areas[i] = i == FILE_PRIVATE || i == FILE_SHARED ? of_file(names[i], i == FILE_PRIVATE ? MAP_PRIVATE : MAP_SHARED, i)
                                                         : anonymous(i == SHARED ? MAP_SHARED : MAP_PRIVATE, i);
    memset(areas[FILE_PRIVATE] + PAGE, 0x5a, PAGE);
    MUST(mprotect(areas[READ_ONLY], BYTES, PROT_READ));
    MUST(mprotect(areas[NONE], BYTES, PROT_NONE));
    MUST(mprotect(areas[CODE], BYTES, PROT_READ | PROT_EXEC));
    madvise(areas[GUARDED], 4 * PAGE, MADV_GUARD_INSTALL); // kernel 6.13; without it nothing is proved of it
    mlock(areas[LOCKED], BYTES);
    for (int i = 0; i < KINDS; i++) {
        MUST(i == PART ? seal(areas[i] + 4 * PAGE, 4 * PAGE) : seal(areas[i], BYTES));
        flags_of(areas[i] + (i == PART ? 4 * PAGE : 0), before[i]);
        if (!strstr(before[i], "sl")) must_failed("mseal had no effect", __FILE__, __LINE__, EINVAL);
    }
    if (WITH_CHILD) child = MUST(fork());
    else child = -1;
    if (child == 0) {
        flags_of(areas[LOCKED], before[LOCKED]); // a fork takes locks off
        memset(late, 0x77, BYTES);
        if (seal(late, BYTES)) _exit(3);
        _exit(in_child());
    }
    if (all) each_mapping(seal_and_note);
}
static void spoil(void) { areas[WRITABLE][40] ^= 1; }
static void prove(void) {
    char now[256];
    for (size_t i = 0; i < n_ranges; i++) {
        bool there = mapping((void *)ranges[i][0], "VmFlags", now, sizeof now);
        CHECK(there && strstr(now, "sl"), "mapping %lx-%lx", ranges[i][0], ranges[i][1]);
    }
    is_as_it_was();
    if (!all) {
        CHECK_OK(mprotect(late, BYTES, PROT_READ), "what only the child has sealed");
        CHECK_OK(mprotect(areas[PART] + 8 * PAGE, PAGE, PROT_READ), "behind the sealed part");
        CHECK_OK(munmap(plain, BYTES), "what nobody has sealed");
    }
    if (!WITH_CHILD) return;
    MUST(write(gate[1], "x", 1));
    int status = -1;
    MUST(waitpid(-1, &status, 0));
    CHECK_HEX(0, status, "status of the child (0x100: see `child`, 0x200: content of its own)");
}
