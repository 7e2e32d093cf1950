#include "common.h"

static const char *about = "the brk heap: content, its end, growing and shrinking";

#define BYTES (3UL << 20)
static unsigned char *heap, *end;
static char line_before[512];

static void setup(void) {
    mapping(&heap, NULL, line_before, sizeof line_before); // malloc takes what it needs for this, before us
    heap = MUST((unsigned char *)sbrk(BYTES));
    fill(heap, BYTES, 8);
    end = sbrk(0);
    mapping(heap, NULL, line_before, sizeof line_before);
}
static void spoil(void) { heap[12345] ^= 1; }
static void prove(void) {
    static unsigned char want[BYTES];
    char line[512];
    fill(want, BYTES, 8);
    CHECK_MEM(want, heap, BYTES, "content of the heap");
    CHECK_HEX(end, sbrk(0), "end of the heap");
    CHECK_HEX(end, syscall(SYS_brk, 0), "the kernel's end of the heap");
    mapping(heap, NULL, line, sizeof line);
    CHECK_STR(line_before, line, "maps line of the heap");
    if (CHECK_OK(sbrk(1 << 20), "growing")) {
        CHECK_EQ(0, end[PAGE], "new heap");
        end[(1 << 20) - 1] = 7;
        CHECK_OK(sbrk(-(1 << 20)), "shrinking");
    }
    CHECK_HEX(end, sbrk(0), "end of the heap after growing and shrinking");
    char *p = malloc(200000), *q = malloc(100);
    CHECK(p && q, "malloc");
    free(p), free(q);
}
