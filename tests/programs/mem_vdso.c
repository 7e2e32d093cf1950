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
static volatile bool over;
static volatile unsigned long beats;
static pthread_t thread;

// Entries as the vDSO's own symbols name them: found once and kept as pointers, as the C library does for itself.
static struct {
    int (*clock_gettime)(clockid_t, struct timespec *);
    int (*gettimeofday)(struct timeval *, void *);
    time_t (*time)(time_t *);
    long (*getcpu)(unsigned *, unsigned *, void *);
    int (*clock_getres)(clockid_t, struct timespec *);
} kept, fresh;
static void *entry(const char *name) { // NULL: it has none of that name
    char *base = (char *)getauxval(AT_SYSINFO_EHDR);
    Elf64_Phdr *h = (Elf64_Phdr *)(base + ((Elf64_Ehdr *)base)->e_phoff);
    while (h->p_type != PT_DYNAMIC) h++;
    char *strings = NULL;
    Elf64_Sym *symbols = NULL;
    uint32_t *hashes = NULL;
    for (Elf64_Dyn *d = (Elf64_Dyn *)(base + h->p_offset); d->d_tag; d++) {
        if (d->d_tag == DT_STRTAB) strings = base + d->d_un.d_ptr;
        if (d->d_tag == DT_SYMTAB) symbols = (Elf64_Sym *)(base + d->d_un.d_ptr);
        if (d->d_tag == DT_HASH) hashes = (uint32_t *)(base + d->d_un.d_ptr);
    }
    for (uint32_t i = 1; hashes && i < hashes[1]; i++)
        if (!strcmp(strings + symbols[i].st_name, name)) return base + symbols[i].st_value;
    return NULL;
}
#define LOOK_UP(into) \
    (into).clock_gettime = entry("__vdso_clock_gettime"), (into).gettimeofday = entry("__vdso_gettimeofday"), \
    (into).time = entry("__vdso_time"), (into).getcpu = entry("__vdso_getcpu"), (into).clock_getres = entry("__vdso_clock_getres")

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
static void *clocking(void *unused) { // another thread, through the pointers
    int64_t before = 0;
    for (; !over; beats++, sleep_ns(MS / 2)) {
        struct timespec t = {0};
        int64_t low = by_call(CLOCK_MONOTONIC);
        int r = kept.clock_gettime(CLOCK_MONOTONIC, &t);
        int64_t high = by_call(CLOCK_MONOTONIC), v = t.tv_sec * SEC + t.tv_nsec;
        if (r || v < low || v > high) CHECK_RANGE(low, high, v, "another thread's clock by a kept pointer (result %d)", r);
        if (v < before) CHECK_RANGE(before, INT64_MAX, v, "another thread's clock against itself before");
        before = v;
    }
    return unused;
}
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
    LOOK_UP(kept);
    CHECK(kept.clock_gettime && kept.gettimeofday && kept.time && kept.getcpu && kept.clock_getres, "all entries of the vDSO (not a proof)");
    MUST0(pthread_create(&thread, NULL, clocking, NULL));
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
    unsigned cpu, cpu2;
    int tries = 100;
    while (tries-- && (syscall(SYS_getcpu, &cpu, NULL, NULL), (int)cpu != sched_getcpu()));
    CHECK(tries >= 0, "getcpu by the vDSO and by the call, once the same in a hundred tries");
    Elf64_Ehdr *vdso = (Elf64_Ehdr *)getauxval(AT_SYSINFO_EHDR); // what debuggers and new libraries look up
    CHECK(vdso && !memcmp(vdso->e_ident, ELFMAG, SELFMAG), "an ELF header at AT_SYSINFO_EHDR");
    LOOK_UP(fresh);
    for (int i = 0; i < 2; i++) {
        __typeof__(kept) *e = i ? &fresh : &kept;
        const char *which = i ? "found again" : "kept";
        struct timespec t;
        low = by_call(CLOCK_REALTIME);
        int r = e->clock_gettime(CLOCK_REALTIME, &t) | e->gettimeofday(&tv, NULL);
        high = by_call(CLOCK_REALTIME);
        CHECK_EQ(0, r, "results of the entries %s", which);
        CHECK_RANGE(low, high, t.tv_sec * SEC + t.tv_nsec, "clock_gettime, entry %s", which);
        CHECK_RANGE(low / 1000, high / 1000, tv.tv_sec * 1000000L + tv.tv_usec, "gettimeofday in us, entry %s", which);
        CHECK_RANGE(low / SEC - 1, high / SEC, e->time(NULL), "time in s, entry %s", which);
        CHECK_EQ(0, e->clock_getres(CLOCK_MONOTONIC, &a), "clock_getres's result, entry %s", which);
        CHECK_EQ(b.tv_nsec, a.tv_nsec, "clock_getres, entry %s", which);
        for (tries = 100; tries--;) {
            syscall(SYS_getcpu, &cpu, NULL, NULL);
            if (!e->getcpu(&cpu2, NULL, NULL) && cpu == cpu2) break;
        }
        CHECK(tries >= 0, "getcpu, entry %s, once the same in a hundred tries", which);
    }
    int (*gone)(void) = entry("__vdso_clock_ticks"); // only in the tests' own
    if (gone) CHECK_EQ(-ENOSYS, gone(), "an entry that this kernel's vDSO does not have");
    unsigned long seen = beats;
    for (int i = 0; beats < seen + 3 && i < 5000; i++) sleep_ms(1);
    CHECK(beats >= seen + 3, "the other thread goes on");
    over = true;
    pthread_join(thread, NULL);
    if (fast) CHECK(faster(), "the vDSO faster than the call, as it was");
}
