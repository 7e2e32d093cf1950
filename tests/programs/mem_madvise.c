#include "common.h"
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

static const char *about = "madvise flags of each area (VmFlags before and after) and guard pages";

static const struct {
    int advice;
    const char *name, *flag;
    int also;
} advices[] = {
    {MADV_HUGEPAGE, "hugepage", "hg", 0},    {MADV_NOHUGEPAGE, "nohugepage", "nh", 0}, {MADV_DONTDUMP, "dontdump", "dd", 0},
    {MADV_DONTFORK, "dontfork", "dc", 0},    {MADV_WIPEONFORK, "wipeonfork", "wf", 0}, {MADV_MERGEABLE, "mergeable", "mg", 0},
    {MADV_SEQUENTIAL, "sequential", "sr", 0}, {MADV_RANDOM, "random", "rr", 0},         {MADV_DONTFORK, "two of them", "dd", MADV_DONTDUMP},
    {MADV_NORMAL, "none", "", 0},
};
#define AREA (4UL << 20)
static unsigned char *areas[COUNT(advices)], *guarded;
static char before[COUNT(advices)][256];
static bool known[COUNT(advices)], guards;
static int probe[2];

static void flags_of(void *address, char *out) { // without sd (soft-dirty), which is about the past
    mapping(address, "VmFlags", out, 256);
    char *sd = strstr(out, " sd");
    if (sd) memmove(sd, sd + 3, strlen(sd + 3) + 1);
}
static bool readable(void *address) { return write(probe[1], address, 1) == 1; } // EFAULT instead of a signal
static void setup(void) {
    MUST(pipe(probe));
    for (size_t i = 0; i < COUNT(advices); i++) {
        void *room = MUST(mmap(NULL, AREA + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)); // borders: no merging
        areas[i] = (unsigned char *)room + PAGE;
        MUST(mprotect(areas[i], AREA, PROT_READ | PROT_WRITE));
        known[i] = madvise(areas[i], AREA, advices[i].advice) == 0;
        if (advices[i].also) madvise(areas[i], AREA, advices[i].also);
        fill(areas[i], 4 * PAGE, i);
        flags_of(areas[i], before[i]);
        if (known[i] && !strstr(before[i], advices[i].flag)) must_failed(advices[i].name, __FILE__, __LINE__, EINVAL);
    }
    guarded = MUST(mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    fill(guarded, 8 * PAGE, 99);
    guards = madvise(guarded + 2 * PAGE, 2 * PAGE, MADV_GUARD_INSTALL) == 0;
}
static void spoil(void) { madvise(areas[2], AREA, MADV_DODUMP); }
static void prove(void) {
    char after[256];
    static uint64_t want[8 * 512];
    for (size_t i = 0; i < COUNT(advices); i++) {
        flags_of(areas[i], after);
        CHECK_STR(before[i], after, "flags of the area advised %s", advices[i].name);
        fill(want, 4 * PAGE, i);
        CHECK_MEM(want, areas[i], 4 * PAGE, "content of the area advised %s", advices[i].name);
    }
    fill(want, sizeof want, 99);
    for (size_t i = 0; guards && i < 8; i++) {
        bool guard = i == 2 || i == 3;
        CHECK_EQ(!guard, readable(guarded + i * PAGE), "readable: page %zu by the guards", i);
        if (!guard && readable(guarded + i * PAGE)) CHECK_MEM((char *)want + i * PAGE, guarded + i * PAGE, PAGE, "page %zu by the guards", i);
    }
}
