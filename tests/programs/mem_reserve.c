#include "common.h"

static const char *about = "a 64 GiB PROT_NONE reservation with committed islands: content, all else still PROT_NONE and unbacked";

#define TOTAL (64UL << 30)
#define ISLAND (1UL << 20)
static unsigned char *base;
static const unsigned long islands[] = {0, 1UL << 30, (17UL << 30) + 3 * PAGE, TOTAL - ISLAND};
static long size_before;

static void spans(unsigned long *none, unsigned long *open, unsigned long *other) { // bytes of the reservation by kind
    FILE *f = fopen("/proc/self/maps", "re");
    char line[PATH_MAX + 256], perms[8];
    unsigned long from, to, low = (unsigned long)base, high = low + TOTAL;
    *none = *open = *other = 0;
    while (f && fgets(line, sizeof line, f)) {
        if (sscanf(line, "%lx-%lx %7s", &from, &to, perms) != 3 || from >= high || to <= low) continue;
        from = from < low ? low : from, to = to > high ? high : to;
        if (!strcmp(perms, "---p")) *none += to - from;
        else if (!strcmp(perms, "rw-p")) *open += to - from;
        else *other += to - from;
    }
    if (f) fclose(f);
}
static long vm_size(void) { char v[64]; return atol(field("/proc/self/status", "VmSize", v, sizeof v)); }
static void setup(void) {
    base = mmap(NULL, TOTAL, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) skip("no address space for 64 GiB: %s", strerror(errno));
    for (size_t i = 0; i < COUNT(islands); i++) {
        MUST(mprotect(base + islands[i], ISLAND, PROT_READ | PROT_WRITE));
        fill(base + islands[i], ISLAND / 2, i); // the other half never touched
    }
    size_before = vm_size();
}
static void spoil(void) { base[islands[2] + 77] ^= 1; }
static void prove(void) {
    static unsigned char want[ISLAND], zero[ISLAND], in[ISLAND / PAGE];
    unsigned long none, open, other;
    char flags[256];
    for (size_t i = 0; i < COUNT(islands); i++) {
        fill(want, ISLAND / 2, i);
        CHECK_MEM(want, base + islands[i], ISLAND / 2, "island %zu", i);
        CHECK_MEM(zero, base + islands[i] + ISLAND / 2, ISLAND / 2, "second half of island %zu", i);
    }
    spans(&none, &open, &other);
    CHECK_EQ(COUNT(islands) * ISLAND, open, "bytes readable and writable");
    CHECK_EQ(TOTAL - COUNT(islands) * ISLAND, none, "bytes PROT_NONE");
    CHECK_EQ(0, other, "bytes of another kind");
    CHECK_OK(mincore(base + (2UL << 30), ISLAND, in), "mincore of the reservation");
    for (size_t i = 0; i < sizeof in; i++) CHECK_EQ(0, in[i] & 1, "page %zu of the reservation", i);
    mapping(base + (2UL << 30), "VmFlags", flags, sizeof flags);
    CHECK(strstr(flags, "nr"), "the reservation's flag nr (NORESERVE)");
    CHECK_RANGE(size_before - 1024, size_before + 1024, vm_size(), "VmSize in kB");
    CHECK_OK(mprotect(base + (5UL << 30), ISLAND, PROT_READ | PROT_WRITE), "committing one more island");
    base[5UL << 30] = 1;
}
