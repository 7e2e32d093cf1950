#include "common.h"
#include <sys/wait.h>
#ifndef WITH_CHILD // tree_hugetlb has one
#define WITH_CHILD false
static const char *about = "private memory of huge pages: filled, in part, not at all, read-only, without access, without a reservation, not for children";
static const char *usage = "  --shared         share it, which only root can keep: in part it is not reserved\n";
#endif
static bool shared;
static int own_option(const char *name, const char *value) {
    (void)value;
    if (!strcmp(name, "--shared")) return shared = true, 1;
    return 0;
}
static int (*option)(const char *, const char *) = own_option;

#define HUGE (2UL << 20)
#define HUGE_2MB (21 << 26) // MAP_HUGE_2MB
enum { WRITABLE, READ_ONLY, NO_ACCESS, UNRESERVED, NOT_INHERITED, KINDS };
static const struct {
    size_t pages;
    int prot, flags, advice;
} kinds[KINDS] = {
    [WRITABLE] = {3, PROT_READ | PROT_WRITE, 0, 0},
    [READ_ONLY] = {1, PROT_READ, 0, 0},
    [NO_ACCESS] = {1, PROT_NONE, 0, 0},
    [UNRESERVED] = {64, PROT_READ | PROT_WRITE, MAP_NORESERVE, 0}, // one of them is used
    [NOT_INHERITED] = {1, PROT_READ | PROT_WRITE, 0, MADV_DONTFORK},
};
static const char *const names[KINDS] = {"writable", "read-only", "without access", "unreserved", "not inherited"};
static unsigned char *areas[KINDS];
static char before[KINDS][256];
static uint64_t want[HUGE / 8];
static int to_child[2], from_child[2];
static pid_t child;

static bool in_child(int kind) { return kinds[kind].advice != MADV_DONTFORK; }
static void check(const char *who, bool all) {
    char text[256];
    for (int i = 0; i < KINDS; i++) {
        if (!all && !in_child(i)) continue;
        mapping(areas[i], "KernelPageSize", text, sizeof text);
        CHECK_STR("2048 kB", text, "%s: size of the pages of memory %s", who, names[i]);
        mapping(areas[i], "VmFlags", text, sizeof text);
        CHECK_STR(before[i], text, "%s: flags of memory %s", who, names[i]);
        if (kinds[i].prot == PROT_NONE) MUST(mprotect(areas[i], HUGE, PROT_READ));
        fill(want, HUGE, (uint64_t)i);
        CHECK_MEM(want, areas[i], HUGE, "%s: first page of memory %s", who, names[i]);
        if (kinds[i].prot == PROT_NONE) MUST(mprotect(areas[i], HUGE, PROT_NONE));
    }
    memset(want, 0, HUGE);
    CHECK_MEM(want, areas[WRITABLE] + HUGE, HUGE, "%s: a page that was not touched", who);
    fill(want, PAGE, 99);
    CHECK_MEM(want, areas[WRITABLE] + 2 * HUGE, HUGE, "%s: a page that was filled in part", who);
}
static void setup(void) {
    for (int i = 0; i < KINDS; i++) {
        int flags = (shared ? MAP_SHARED : MAP_PRIVATE) | MAP_ANONYMOUS | MAP_HUGETLB | HUGE_2MB | kinds[i].flags;
        void *at = mmap(NULL, kinds[i].pages * HUGE, PROT_READ | PROT_WRITE, flags, -1, 0);
        if (at == MAP_FAILED) skip("no huge pages: %s", strerror(errno));
        areas[i] = at;
        fill(areas[i], HUGE, (uint64_t)i);
        MUST(mprotect(areas[i], kinds[i].pages * HUGE, kinds[i].prot));
        if (kinds[i].advice) MUST(madvise(areas[i], kinds[i].pages * HUGE, kinds[i].advice));
        mapping(areas[i], "VmFlags", before[i], sizeof before[i]);
    }
    fill(areas[WRITABLE] + 2 * HUGE, PAGE, 99);
    if (!WITH_CHILD) return;
    MUST(pipe(to_child)), MUST(pipe(from_child));
    child = MUST(fork());
    if (child == 0) {
        char byte;
        long n;
        MUST(close(to_child[1]));
        areas[WRITABLE][HUGE + 5] = 0; // a page of its own
        MUST(write(from_child[1], "r", 1));
        while ((n = read(to_child[0], &byte, 1)) != 1)
            if (n == 0) _exit(0); // its parent was killed
        check("child", false);
        if (failures_count) MUST(write(from_child[1], failures, failures_len));
        _exit(failures_count);
    }
    char byte;
    MUST(read(from_child[0], &byte, 1));
}
static void spoil(void) { areas[WRITABLE][2 * HUGE + 9] ^= 1; }
static void prove(void) {
    check("first", true);
    for (size_t i = 0; i < 3; i++) areas[WRITABLE][i * HUGE + 77] = 7; // there is a page for each
    if (!WITH_CHILD) return;
    MUST(write(to_child[1], "x", 1));
    int status = -1;
    CHECK_EQ(child, waitpid(child, &status, 0), "waiting for the child");
    char said[2048] = "";
    if (status) MUST(read(from_child[0], said, sizeof said - 1));
    CHECK_STR("", said, "what the child says");
    CHECK_EQ(0, status, "status of the child");
}
