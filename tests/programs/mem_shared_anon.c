#include "common.h"
#include <sys/wait.h>

static const char *about = "shared anonymous memory: content, holes, two mappings of one memory, still shared with a child made later";

#define BYTES (128 * PAGE)
static unsigned char *one, *two, *sparse, want[BYTES];

static void setup(void) {
    one = MUST(mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    fill(want, BYTES, 51);
    memset(want + 17 * PAGE, 0, 9 * PAGE);
    memcpy(one, want, BYTES);
    two = MUST(mremap(one + 32 * PAGE, 0, 32 * PAGE, MREMAP_MAYMOVE)); // a second mapping of the same memory
    sparse = MUST(mmap(NULL, 32 << 20, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    for (size_t i = 0; i < 32 << 20; i += 1 << 20) sparse[i + 5] = (unsigned char)(i >> 20);
    MUST(mprotect(sparse, PAGE, PROT_READ)); // content under a read-only page
}
static void spoil(void) { one[100 * PAGE] ^= 1; }
static void prove(void) {
    CHECK_MEM(want, one, BYTES, "content");
    CHECK_MEM(want + 32 * PAGE, two, 32 * PAGE, "content of the second mapping");
    for (size_t i = 0; i < 32 << 20; i += 1 << 20) CHECK_EQ(i >> 20, sparse[i + 5], "sparse memory at %#zx", i);
    one[33 * PAGE] = 'z';
    CHECK_EQ('z', two[PAGE], "a write to the one mapping, in the other");
    pid_t child = fork();
    if (child == 0) {
        one[5] = 'c', sparse[(9 << 20) + 6] = 'd';
        _exit(0);
    }
    waitpid(child, NULL, 0);
    CHECK_EQ('c', one[5], "a child's write");
    CHECK_EQ('d', sparse[(9 << 20) + 6], "a child's write to the sparse memory");
}
