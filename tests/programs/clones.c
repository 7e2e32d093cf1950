// Processes that have one memory, made in odd ways and at odd times.
#include "common.h"
#include <sys/prctl.h>
#include <sys/wait.h>

static const char *about = "processes that have one memory, made in odd ways and at odd times";
static const char *usage = "  --what adopted   one whose parents have ended, so that only the kernel knows: refused\n"
                           "  --what loop      they come and go all the time\n"
                           "  --what many|toomany   63 of them, or 70 (refused)\n"
                           "  --what waits     one for which its sibling waits in vfork: refused\n"
                           "  --what silent    the program's own end is no news for its parent\n";
enum { MOST = 70 };
static const char *what;
static pid_t kids[MOST];
static int many;
static char *stacks[MOST + 2];

static int own_option(const char *option, const char *value) {
    if (strcmp(option, "--what") || !value) return 0;
    what = value;
    return 2;
}
static int (*option)(const char *, const char *) = own_option;
static bool is(const char *name) { return !strcmp(what, name); }

static int sleeps(void *unused) {
    (void)unused;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;) pause();
    return 0;
}
static int stays(void *unused) { // until somebody ends it
    (void)unused;
    for (;;) pause();
    return 0;
}
static int bears(void *unused) {
    (void)unused;
    _exit(clone(stays, stacks[1], CLONE_VM | SIGCHLD, NULL) < 0);
}
static int waits(void *unused) { // until the sibling that it makes has ended
    (void)unused;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    clone(sleeps, stacks[1], CLONE_VM | CLONE_VFORK | CLONE_PARENT | SIGCHLD, NULL);
    for (;;) pause();
    return 0;
}
static pid_t made(int (*does)(void *), int stack) { return (pid_t)MUST(clone(does, stacks[stack], CLONE_VM | SIGCHLD, NULL)); }

static void another(void) {
    kill(kids[0], SIGKILL);
    while (waitpid(kids[0], NULL, 0) < 0 && errno == EINTR) {}
    kids[0] = made(sleeps, 0);
}
static void setup(void) {
    for (size_t i = 0; i < COUNT(stacks); i++)
        stacks[i] = (char *)MUST(mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) + 16 * PAGE;
    if (is("silent")) {
        pid_t program = (pid_t)MUST(syscall(SYS_clone, 0L, 0L, 0L, 0L, 0L));
        int status;
        if (program) _exit(waitpid(program, &status, __WALL) < 0 ? 9 : WEXITSTATUS(status));
    }
    if (is("adopted")) {
        volatile int *there = MUST(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
        if (!(kids[many++] = MUST(fork()))) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            waitpid(made(bears, 0), NULL, 0);
            *there = 1;
            for (;;) pause();
        }
        while (!*there) sched_yield();
    }
    if (is("loop")) kids[many++] = made(sleeps, 0), tick = another;
    if (is("waits")) kids[many++] = made(waits, 0);
    for (int n = is("many") ? 63 : is("toomany") ? MOST : 0; many < n; many++) kids[many] = made(sleeps, many);
}
static void spoil(void) { kill(kids[0], SIGKILL), waitpid(kids[0], NULL, WNOWAIT | __WALL); }
static void prove(void) {
    int status = 0;
    for (int i = 0; i < many; i++) CHECK_EQ(0, waitpid(kids[i], &status, WNOHANG), "child %d has not ended", i);
    for (int i = 0; i < many; i++) {
        kill(kids[i], SIGKILL);
        CHECK_EQ(kids[i], waitpid(kids[i], &status, 0), "child %d ends", i);
        CHECK_EQ(SIGKILL, status, "how child %d has ended", i);
    }
}
