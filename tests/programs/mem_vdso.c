#include "common.h"
#include <elf.h>
#include <sched.h>
#include <sys/auxv.h>
#include <sys/time.h>

static const char *about = "the vDSO: every clock agrees with the system call, never goes back, and is still faster than the call";

static const struct {
    clockid_t id;
    const char *name;
} clocks[] = {{CLOCK_REALTIME, "realtime"},        {CLOCK_MONOTONIC, "monotonic"}, {CLOCK_BOOTTIME, "boottime"},
              {CLOCK_REALTIME_COARSE, "realtime coarse"}, {CLOCK_MONOTONIC_COARSE, "monotonic coarse"},
              {CLOCK_MONOTONIC_RAW, "monotonic raw"},     {CLOCK_TAI, "tai"}};
static int64_t last[COUNT(clocks)], shift;
static bool fast;

static int64_t by_call(clockid_t id) {
    struct timespec t;
    syscall(SYS_clock_gettime, id, &t);
    return t.tv_sec * SEC + t.tv_nsec;
}
static int64_t by_vdso(clockid_t id) { return now_ns(id) + shift; }
static void compare(void) {
    for (size_t i = 0; i < COUNT(clocks); i++) {
        int64_t low = by_call(clocks[i].id), v = by_vdso(clocks[i].id), high = by_call(clocks[i].id);
        if (v < low || v > high) CHECK_RANGE(low, high, v, "clock %s by the vDSO", clocks[i].name);
        if (v < last[i]) CHECK_RANGE(last[i], INT64_MAX, v, "clock %s against itself before", clocks[i].name);
        last[i] = v;
    }
}
static void (*tick)(void) = compare;
static int64_t best(int64_t (*clock)(clockid_t)) { // of 20 batches
    int64_t least = INT64_MAX;
    for (int b = 0; b < 20; b++) {
        int64_t from = by_call(CLOCK_MONOTONIC);
        for (int i = 0; i < 2000; i++) clock(CLOCK_MONOTONIC);
        int64_t t = by_call(CLOCK_MONOTONIC) - from;
        if (t < least) least = t;
    }
    return least;
}
static bool faster(void) { return best(by_vdso) < best(by_call); }
static void setup(void) {
    compare();
    fast = faster();
}
static void spoil(void) { shift = 5 * MS; }
static void prove(void) {
    compare();
    struct timeval tv;
    int64_t low = by_call(CLOCK_REALTIME);
    gettimeofday(&tv, NULL);
    int64_t high = by_call(CLOCK_REALTIME);
    CHECK_RANGE(low / 1000, high / 1000, tv.tv_sec * 1000000L + tv.tv_usec, "gettimeofday in us");
    CHECK_RANGE(low / SEC - 1, high / SEC, time(NULL), "time in s");
    struct timespec a, b;
    clock_getres(CLOCK_MONOTONIC, &a), syscall(SYS_clock_getres, CLOCK_MONOTONIC, &b);
    CHECK_EQ(b.tv_nsec, a.tv_nsec, "clock_getres");
    unsigned cpu;
    int tries = 100;
    while (tries-- && (syscall(SYS_getcpu, &cpu, NULL, NULL), (int)cpu != sched_getcpu()));
    CHECK(tries >= 0, "getcpu by the vDSO and by the call, once the same in a hundred tries");
    Elf64_Ehdr *vdso = (Elf64_Ehdr *)getauxval(AT_SYSINFO_EHDR); // what debuggers and new libraries look up
    CHECK(vdso && !memcmp(vdso->e_ident, ELFMAG, SELFMAG), "an ELF header at AT_SYSINFO_EHDR");
    if (fast) CHECK(faster(), "the vDSO faster than the call, as it was");
}
