#include "common.h"

static const char *about = "private anonymous memory: random, zero, duplicate and never-touched pages, 64 MiB sparse, read-only and executable parts";

#define SPARSE (64UL << 20)
static unsigned char *dense, *sparse, *read_only, *code;
static uint64_t dense_hash, sparse_hash, read_only_hash;
static uint64_t bss[4096], data[512] = {1, 2, 3};

static void *anon(size_t bytes) {
    return MUST(mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
}
static int resident(void) { // pages of the sparse mapping that exist
    static unsigned char in[SPARSE / PAGE];
    int n = 0;
    mincore(sparse, SPARSE, in);
    for (size_t i = 0; i < sizeof in; i++) n += in[i] & 1;
    return n;
}
static void setup(void) {
    dense = anon(256 * PAGE);
    for (size_t i = 0; i < 256; i++) {
        if (i % 8 == 0) memset(dense + i * PAGE, 0, PAGE);          // written zeros
        else if (i % 8 < 3) fill(dense + i * PAGE, PAGE, 42);       // the same page again and again
        else fill(dense + i * PAGE, PAGE, i);
    }
    sparse = anon(SPARSE);
    madvise(sparse, SPARSE, MADV_NOHUGEPAGE);
    for (size_t i = 0; i < SPARSE; i += 37 * PAGE) sparse[i + i % PAGE] = (unsigned char)(i / PAGE + 1);
    read_only = anon(8 * PAGE);
    fill(read_only, 8 * PAGE, 77);
    MUST(mprotect(read_only, 8 * PAGE, PROT_READ));
    code = anon(PAGE);
    memcpy(code, "\xb8\x2a\x00\x00\x00\xc3", 6); // mov eax, 42; ret
    MUST(mprotect(code, PAGE, PROT_READ | PROT_EXEC));
    fill(bss, sizeof bss, 5);
    fill(data, sizeof data, 6);
    dense_hash = hash(dense, 256 * PAGE);
    read_only_hash = hash(read_only, 8 * PAGE);
    uint64_t h = 0;
    for (size_t i = 0; i < SPARSE; i += 37 * PAGE) h = mix(h ^ sparse[i + i % PAGE]);
    sparse_hash = h;
}
static void spoil(void) { dense[100 * PAGE + 5] ^= 1; }
static void prove(void) {
    char line[512];
    uint64_t h = 0, want[512];
    CHECK_RANGE(1, (int)(SPARSE / PAGE / 37 + 2) * 2, resident(), "resident pages of the sparse mapping"); // before we read it
    CHECK_HEX(dense_hash, hash(dense, 256 * PAGE), "hash of 1 MiB");
    for (size_t i = 0; i < SPARSE; i += 37 * PAGE) h = mix(h ^ sparse[i + i % PAGE]);
    CHECK_HEX(sparse_hash, h, "hash of the sparse pages");
    for (size_t i = PAGE; i < SPARSE; i += 37 * PAGE) CHECK_EQ(0, sparse[i], "untouched page at %#zx", i);
    CHECK_HEX(read_only_hash, hash(read_only, 8 * PAGE), "hash of the read-only pages");
    mapping(read_only, NULL, line, sizeof line);
    CHECK(strstr(line, "r--p"), "protection of the read-only pages");
    mapping(code, NULL, line, sizeof line);
    CHECK(strstr(line, "r-xp"), "protection of the code page");
    CHECK_EQ(42, ((int (*)(void))(uintptr_t)code)(), "made code, called");
    static uint64_t again[4096];
    fill(again, sizeof again, 5);
    CHECK_MEM(again, bss, sizeof bss, ".bss");
    fill(want, sizeof want, 6);
    CHECK_MEM(want, data, sizeof data, ".data");
}
