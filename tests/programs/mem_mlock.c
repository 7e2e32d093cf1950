#include "common.h"

static const char *about = "mlock and mlock2(MLOCK_ONFAULT): flags of the areas, locked amount, residence";

static const char *usage = "  --what late     locks the released area again when `act` is there, and says so by `acted`\n";

static unsigned char *locked, *on_fault, *released;
static char before[3][256], amount[64];
static bool late;
static int own_option(const char *name, const char *value) { return !strcmp(name, "--what") && value && !strcmp(value, "late") ? late = true, 2 : 0; }
static int (*option)(const char *, const char *) = own_option;

static void *area(size_t pages) { // with borders, so that it stays an area of its own
    unsigned char *p = MUST(mmap(NULL, (pages + 2) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    MUST(mprotect(p + PAGE, pages * PAGE, PROT_READ | PROT_WRITE));
    return p + PAGE;
}
static void look(char out[3][256]) {
    mapping(locked, "VmFlags", out[0], 256);
    mapping(on_fault, "VmFlags", out[1], 256);
    mapping(released, "VmFlags", out[2], 256);
}
static void lock_late(void) {
    if (!late || access(work("act"), F_OK)) return;
    late = false;
    MUST(mlock(released, 4 * PAGE));
    look(before);
    field("/proc/self/status", "VmLck", amount, sizeof amount);
    MUST(write_file("acted", "") ? 0 : -1);
}
static void (*tick)(void) = lock_late;
static void setup(void) {
    locked = area(4), on_fault = area(8), released = area(4);
    if (mlock(locked, 4 * PAGE)) skip("mlock: %s", strerror(errno));
    MUST(mlock2(on_fault, 8 * PAGE, MLOCK_ONFAULT));
    MUST(mlock(released, 4 * PAGE));
    MUST(munlock(released, 4 * PAGE));
    fill(locked, 2 * PAGE, 1);
    on_fault[PAGE] = 5;
    look(before);
    field("/proc/self/status", "VmLck", amount, sizeof amount);
}
static void spoil(void) { munlock(locked, 4 * PAGE); }
static void prove(void) {
    char after[3][256], now[64];
    unsigned char in[8];
    look(after);
    CHECK_STR(before[0], after[0], "flags of the locked area");
    CHECK_STR(before[1], after[1], "flags of the area locked on fault");
    CHECK_STR(before[2], after[2], "flags of the area released again");
    CHECK_STR(amount, field("/proc/self/status", "VmLck", now, sizeof now), "VmLck");
    mincore(locked, 4 * PAGE, in);
    for (int i = 0; i < 4; i++) CHECK_EQ(1, in[i] & 1, "residence of locked page %d", i);
    mincore(on_fault, 8 * PAGE, in);
    for (int i = 0; i < 8; i++) CHECK_EQ(i == 1, in[i] & 1, "residence of page %d locked on fault", i);
    uint64_t want[1024];
    fill(want, sizeof want, 1);
    CHECK_MEM(want, locked, sizeof want, "content of the locked area");
    CHECK_EQ(5, on_fault[PAGE], "content of the area locked on fault");
}
