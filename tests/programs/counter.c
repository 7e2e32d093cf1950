// The spike: single-threaded, counts, and writes its count to DIR/count every 10 ms until the gate opens.
#include "common.h"

static const char *about = "a single-threaded counter writes its count to DIR/count every 10 ms; it never goes back or jumps";
static volatile unsigned long count, negative; // negative == ~count, kept apart in memory
static unsigned long writes, on_disk;

static void count_on(void) {
    count++;
    negative = ~count;
    if (count % 5) return;
    char text[32];
    snprintf(text, sizeof text, "%lu\n", count);
    MUST(write_file("count", text) ? 0 : -1);
    on_disk = count;
    writes++;
}
static void (*tick)(void) = count_on;

static void setup(void) { negative = ~count; }
static void spoil(void) { count -= 3; }
static void prove(void) {
    char text[32];
    slurp(work("count"), text, sizeof text);
    CHECK_EQ(~negative, count, "the count against its complement");
    CHECK_EQ(on_disk, strtoul(text, NULL, 10), "the count on disk");
    CHECK_EQ(count / 5, writes, "number of writes");
    snprintf(extra, sizeof extra, "count %lu\n", count);
}
