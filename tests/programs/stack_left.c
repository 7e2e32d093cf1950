#include "common.h"
#include <ucontext.h>

static const char *about = "a full main stack: live frames down to its lowest page, while the program runs on another stack (or, with --deep, on this one)";
static const char *usage = "  --deep: stay on the main stack, at its lowest";

static ucontext_t here, there;
static char other[256 << 10];
static int (*volatile swap)(ucontext_t *, const ucontext_t *) = swapcontext; // resolved now: the dynamic linker needs stack
static void (*rest)(void);
static uint64_t *lowest;
static uint64_t was[60];
static bool deep;
static int broken;
static int take(const char *name, const char *value) {
    (void)value;
    return !strcmp(name, "--deep") ? (deep = true) : 0;
}
static int (*option)(const char *, const char *) = take;
static void full(void) {
    char line[256];
    unsigned long start = 0;
    memcpy(was, lowest, sizeof was);
    mapping(lowest, NULL, line, sizeof line);
    sscanf(line, "%lx-", &start);
    if (!deep && (uintptr_t)lowest / PAGE != start / PAGE) fail("not a proof: the lowest frame is not in the lowest page of the stack");
    rest();
}

static __attribute__((noinline)) uint64_t down(int depth) {
    uint64_t words[60];
    fill(words, sizeof words, depth);
    size_t in_page = (uintptr_t)words % PAGE;
    if (depth >= 2000 && in_page > 900 && in_page < 1800) { // near the end of a page that nothing lies below
        lowest = words;
        if (deep) full();
        else swap(&here, &there);
    } else {
        down(depth + 1);
    }
    uint64_t fresh[60];
    fill(fresh, sizeof fresh, depth);
    if (words != lowest) broken += !!memcmp(words, fresh, sizeof words);
    return hash(words, sizeof words); // not a tail call
}
static void leave_full(void (*body)(void)) {
    rest = body;
    MUST(getcontext(&there));
    there.uc_stack.ss_sp = other, there.uc_stack.ss_size = sizeof other, there.uc_link = &here;
    makecontext(&there, full, 0);
    down(0);
    CHECK_EQ(0, broken, "frames of the main stack that are not what they were");
}
static void (*around)(void (*)(void)) = leave_full;

static void setup(void) {}
static void spoil(void) { lowest[5] ^= 1; }
static void prove(void) { CHECK_MEM(was, lowest, sizeof was, "the lowest frame of the main stack"); }
