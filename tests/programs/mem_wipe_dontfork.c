#include "common.h"
#include <sys/wait.h>

static const char *about = "MADV_WIPEONFORK and MADV_DONTFORK areas keep their content and guards here, and still are wiped and missing in a child";

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif
#define BYTES (64 * PAGE)
static unsigned char *wiped, *missing, *guarded[2], want[2][BYTES];
static bool guards;
static int probe[2];

static void setup(void) {
    wiped = MUST(mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    MUST(madvise(wiped, BYTES, MADV_WIPEONFORK));
    missing = MUST(mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    MUST(madvise(missing, BYTES, MADV_DONTFORK));
    fill(want[0], BYTES, 31), fill(want[1], BYTES, 32);
    memset(want[1] + PAGE, 0, PAGE);
    memcpy(wiped, want[0], BYTES), memcpy(missing, want[1], BYTES);
    MUST(pipe(probe));
    for (int i = 0; i < 2; i++) {
        guarded[i] = MUST(mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        memset(guarded[i], 7, 3 * PAGE);
        guards = madvise(guarded[i] + PAGE, PAGE, MADV_GUARD_INSTALL) == 0; // kernel 6.13
        MUST(madvise(guarded[i], 3 * PAGE, i ? MADV_DONTFORK : MADV_WIPEONFORK));
    }
}
static void spoil(void) { missing[40 * PAGE] ^= 1; }
static void prove(void) {
    unsigned char in[1];
    CHECK_MEM(want[0], wiped, BYTES, "the WIPEONFORK area");
    CHECK_MEM(want[1], missing, BYTES, "the DONTFORK area");
    for (int i = 0; guards && i < 2; i++) {
        CHECK_ERRNO(EFAULT, write(probe[1], guarded[i] + PAGE, 1), "guard %d", i);
        CHECK_EQ(7, guarded[i][0], "before guard %d", i);
        CHECK_EQ(7, guarded[i][2 * PAGE], "behind guard %d", i);
    }
    pid_t child = fork();
    if (child == 0) _exit((wiped[9] != 0) + 2 * (mincore(missing, PAGE, in) == 0));
    int status = -1;
    CHECK_EQ(child, waitpid(child, &status, 0), "waiting for the child");
    CHECK_EQ(0, WEXITSTATUS(status), "in a child (1: not wiped, 2: there)");
    CHECK_MEM(want[0], wiped, BYTES, "the WIPEONFORK area after a fork");
}
