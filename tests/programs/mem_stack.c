#include "common.h"

static const char *about = "the stack: 4 MiB of live frames, and it still grows; a MAP_GROWSDOWN mapping likewise";

struct frame {
    struct frame *outer;
    uint64_t depth, words[60];
};
static unsigned char *grows; // lowest page of the growing mapping

static __attribute__((noinline)) uint64_t down(struct frame *outer, uint64_t depth, uint64_t bottom, void (*then)(struct frame *)) {
    struct frame f = {.outer = outer, .depth = depth};
    fill(f.words, sizeof f.words, depth);
    if (depth == bottom) then(&f);
    else down(&f, depth + 1, bottom, then);
    return hash(f.words, sizeof f.words); // not a tail call
}
static struct frame *innermost;
static void (*rest)(void);
static __attribute__((noinline)) void dip(void) { // deeper for a moment: a checkpoint needs unused stack below for a frame
    volatile char room[64 << 10];
    for (size_t i = 0; i < sizeof room; i += 1024) room[i] = 1;
}
static void at_bottom(struct frame *f) {
    innermost = f;
    dip();
    rest();
}
static void deep(void (*body)(void)) {
    rest = body;
    down(NULL, 0, 8000, at_bottom);
}
static void (*around)(void (*)(void)) = deep;

static void setup(void) {
    unsigned char *room = MUST(mmap(NULL, 16 << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    MUST(munmap(room, 16 << 20));
    grows = MUST(mmap(room + (15 << 20), 4 * PAGE, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED_NOREPLACE, -1, 0));
    fill(grows, 4 * PAGE, 1);
    for (int i = 0; i < 8; i++) grows -= PAGE, fill(grows, PAGE, 2);
}
static void spoil(void) { innermost->outer->outer->words[7] ^= 1; }
static void nothing(struct frame *f) { CHECK_EQ(12000, f->depth, "depth after more recursion"); }
static void prove(void) {
    char flags[256];
    static uint64_t want[512], frame_want[60];
    uint64_t depth = 8000;
    for (struct frame *f = innermost; f; f = f->outer, depth--) {
        CHECK_EQ(depth, f->depth, "depth of a frame");
        fill(frame_want, sizeof frame_want, depth);
        CHECK_MEM(frame_want, f->words, sizeof frame_want, "frame %lu", (unsigned long)depth);
    }
    CHECK_EQ(UINT64_MAX, depth, "frames down to the first");
    mapping(innermost, "VmFlags", flags, sizeof flags);
    CHECK(strstr(flags, "gd"), "the stack's flag gd");
    mapping(innermost, NULL, flags, sizeof flags);
    CHECK(strstr(flags, "[stack]"), "the stack's name");
    down(innermost, 8001, 12000, nothing); // 2 MiB more
    fill(want, sizeof want, 2);
    CHECK_MEM(want, grows, PAGE, "lowest page of the growing mapping");
    fill(want, sizeof want, 1);
    CHECK_MEM(want, grows + 8 * PAGE, PAGE, "first page of the growing mapping");
    mapping(grows, "VmFlags", flags, sizeof flags);
    if (!strstr(flags, "gd")) {
        fail("growing mapping, expected the flag gd, got %s", flags);
        return; // the next write would kill us
    }
    for (int i = 0; i < 8; i++) grows -= PAGE, grows[0] = 1;
    CHECK_EQ(1, grows[0], "a page it grew");
}
