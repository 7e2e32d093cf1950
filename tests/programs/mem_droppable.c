#include "common.h"
#include <sys/wait.h>

static const char *about = "droppable memory (MAP_DROPPABLE), writable, read-only, with guards: still droppable, empty in a child, and with its content but for pages that the kernel has taken";

#ifndef MAP_DROPPABLE
#define MAP_DROPPABLE 0x08
#endif
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif
#define PAGES 64
#define BYTES (PAGES * PAGE)
enum { WRITABLE, READ_ONLY, GUARDED, KINDS };
static const char *const names[KINDS] = {"writable", "read-only", "guarded"};
static unsigned char *areas[KINDS], want[BYTES];
static char before[KINDS][256];
static int probe[2];
static bool guards;

static void flags_of(void *address, char *out) { // without sd (soft-dirty), which is about the past
    mapping(address, "VmFlags", out, 256);
    char *sd = strstr(out, " sd");
    if (sd) memmove(sd, sd + 3, strlen(sd + 3) + 1);
}
// Looked at all the time, so that the kernel takes others first.
static void look(void) {
    for (size_t p = 0; p < BYTES; p += PAGE) *(volatile unsigned char *)(areas[WRITABLE] + p), *(volatile unsigned char *)(areas[READ_ONLY] + p);
}
static void (*tick)(void) = look;
static bool empty(const unsigned char *page) {
    for (size_t i = 0; i < PAGE; i++) if (page[i]) return false;
    return true;
}
static void setup(void) {
    MUST(pipe(probe));
    for (int i = 0; i < KINDS; i++) {
        void *room = MUST(mmap(NULL, BYTES + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)); // borders: no merging
        areas[i] = mmap((char *)room + PAGE, BYTES, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_ANONYMOUS | MAP_DROPPABLE, -1, 0);
        if (areas[i] == MAP_FAILED) skip("MAP_DROPPABLE: %s", strerror(errno)); // kernel 6.11
        fill(areas[i], BYTES, (uint64_t)i);
    }
    MUST(mprotect(areas[READ_ONLY], BYTES, PROT_READ));
    guards = madvise(areas[GUARDED], 4 * PAGE, MADV_GUARD_INSTALL) == 0; // kernel 6.13
    for (int i = 0; i < KINDS; i++) {
        flags_of(areas[i], before[i]);
        if (!strstr(before[i], "dp")) must_failed("MAP_DROPPABLE had no effect", __FILE__, __LINE__, EINVAL);
    }
}
static void spoil(void) { memset(areas[WRITABLE], 1, BYTES); }
static void prove(void) {
    char after[256];
    for (int i = 0; i < KINDS; i++) {
        flags_of(areas[i], after);
        CHECK_STR(before[i], after, "flags of: %s", names[i]);
        fill(want, BYTES, (uint64_t)i);
        size_t from = i == GUARDED && guards ? 4 : 0, kept = 0;
        for (size_t p = from; p < PAGES; p++) {
            bool same = memcmp(want + p * PAGE, areas[i] + p * PAGE, PAGE) == 0;
            CHECK(same || empty(areas[i] + p * PAGE), "page %zu of: %s", p, names[i]);
            kept += same;
        }
        CHECK_RANGE(1, PAGES, kept, "pages with their content of: %s", names[i]);
    }
    if (guards) CHECK_ERRNO(EFAULT, write(probe[1], areas[GUARDED] + PAGE, 1), "a guard page");
    pid_t child = fork();
    if (child == 0) _exit(!empty(areas[WRITABLE]) + 2 * !empty(areas[READ_ONLY] + PAGE));
    int status = -1;
    CHECK_EQ(child, waitpid(child, &status, 0), "waiting for the child");
    CHECK_EQ(0, WEXITSTATUS(status), "in a child (1, 2: not wiped)");
    areas[WRITABLE][BYTES - 1] = 7;
    CHECK_EQ(7, areas[WRITABLE][BYTES - 1], "a byte that is written");
}
