#include "common.h"
#include <sys/prctl.h>
#include <sys/wait.h>

static const char *about = "nine processes that each have memory of their own at the same addresses which a snapshot child lacks (MADV_DONTFORK), or shares (MAP_SHARED)";

#define N 9
#define BYTES (32 * PAGE)
static unsigned char *lacked, *shared;
static int ready[2], go[2];
static pid_t children[N];

static bool is(const unsigned char *at, uint64_t seed) {
    static uint64_t want[BYTES / 8];
    fill(want, BYTES, seed);
    return !memcmp(want, at, BYTES);
}
static void child(int i) {
    MUST(prctl(PR_SET_PDEATHSIG, SIGKILL));
    MUST(madvise(lacked, BYTES, MADV_DONTFORK));
    MUST(mmap(shared, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
    fill(lacked, BYTES, 100 + i), fill(shared, BYTES, 200 + i);
    char byte = 'r';
    MUST(write(ready[1], &byte, 1));
    MUST(read(go[0], &byte, 1));
    if (byte == 's') lacked[PAGE] ^= 1;
    _exit((is(lacked, 100 + i) ? 0 : 1) | (is(shared, 200 + i) ? 0 : 2));
}
static void setup(void) {
    lacked = MUST(mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    shared = MUST(mmap(NULL, BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    MUST(pipe(ready)), MUST(pipe(go));
    for (int i = 0; i < N; i++)
        if (!(children[i] = MUST(fork()))) child(i);
    char byte;
    for (int i = 0; i < N; i++) MUST(read(ready[0], &byte, 1));
}
static char order = 'g';
static void spoil(void) { order = 's'; }
static void prove(void) {
    for (int i = 0; i < N; i++) CHECK_OK(write(go[1], &order, 1) - 1, "letting one go on");
    for (int i = 0; i < N; i++) {
        int status = -1;
        CHECK_OK(waitpid(-1, &status, 0), "waiting for one");
        CHECK_EQ(0, status, "what is wrong with it: 1 for what a child lacks, 2 for what it shares");
    }
}
