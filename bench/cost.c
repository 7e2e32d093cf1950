// What the agent costs a program that nobody checkpoints, for bench/run.
//   cost start N PRELOAD LAUNCHER...   N times in turns, from exec to main, us: as it is, with LD_PRELOAD=PRELOAD, by the command LAUNCHER...
//   cost main                          says the time as its main begins, and what is preloaded
//   cost calls                         says what is preloaded and its kinds of calls; then for each number of a kind on stdin ns a call, the median of
//                                      some pieces of a millisecond
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MUST(call)                                                                                 \
    ({                                                                                             \
        __typeof__(call) value_ = (call);                                                          \
        if ((long)value_ == -1) fprintf(stderr, "cost: " #call ": %s\n", strerror(errno)), exit(1); \
        value_;                                                                                    \
    })

extern char **environ;
static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}
static const char *preloaded(void) {
    const char *p = getenv("LD_PRELOAD");
    return p && *p ? p : "-";
}
// From this program's exec to its main; nothing but exec and loader is between the two.
static double start(char **argv) {
    int ends[2], status;
    MUST(pipe(ends));
    volatile int64_t began = 0;
    pid_t pid = MUST(vfork());
    if (!pid) {
        dup2(ends[1], 1), close(ends[0]), close(ends[1]);
        began = now(); // the child has our memory until its exec
        execv(argv[0], argv);
        _exit(127);
    }
    close(ends[1]);
    FILE *said = fdopen(ends[0], "r");
    long long at = 0;
    if (fscanf(said, "%lld", &at) != 1) fprintf(stderr, "cost: %s did not come to main\n", argv[0]), exit(1);
    while (getc(said) != EOF) {}
    fclose(said);
    MUST(waitpid(pid, &status, 0));
    if (status) fprintf(stderr, "cost: %s ended with status %#x\n", argv[0], status), exit(1);
    return (at - began) / 1e3;
}
static int starts(int n, char *preload, char **launcher) {
    char self[4096] = "", *plain[] = {self, "main", NULL}, *launched[64];
    MUST(readlink("/proc/self/exe", self, sizeof self - 1));
    int k = 0;
    for (; launcher[k] && k < 60; k++) launched[k] = launcher[k];
    launched[k++] = self, launched[k++] = "main", launched[k] = NULL;
    for (int i = -3; i < n; i++) { // the first only warm up
        double took[3];
        for (int j = 0; j < 3; j++) {
            int way = (i + 3 + j) % 3;
            if (way == 1) setenv("LD_PRELOAD", preload, 1);
            took[way] = start(way == 2 ? launched : plain);
            unsetenv("LD_PRELOAD");
        }
        if (i >= 0) printf("%.1f %.1f %.1f\n", took[0], took[1], took[2]);
    }
    return 0;
}

static int ep, ready;
static sigset_t some, all, old;
static volatile uint64_t seed = 88172645463325252ULL; // or the loop is none
static void cpu(void) {
    uint64_t x = seed;
    for (int i = 0; i < 100; i++) x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    seed = x;
}
static void poll_0(void) { poll(&(struct pollfd){ep, POLLIN, 0}, 1, 0); }
static void mask(void) { sigprocmask(SIG_BLOCK, &some, NULL); }
// as libraries do it around what no handler may see
static void masks(void) { sigprocmask(SIG_BLOCK, &all, &old), sigprocmask(SIG_SETMASK, &old, NULL); }
static void nanosleep_1(void) { nanosleep(&(struct timespec){0, 1}, NULL); }
static void epoll_0(void) { epoll_wait(ep, &(struct epoll_event){0}, 1, 0); }
static void epoll_timed(void) { epoll_wait(ready, &(struct epoll_event){0}, 1, 1000); }
static int ascending(const void *a, const void *b) { return *(double *)a < *(double *)b ? -1 : 1; }
static const struct { const char *name; void (*run)(void); } kinds[] = {
    {"CPU loop of 100", cpu}, {"poll(0)", poll_0}, {"sigprocmask, one", mask}, {"sigprocmask, all and back", masks},
    {"nanosleep(1 ns)", nanosleep_1}, {"epoll_wait(0)", epoll_0}, {"epoll_wait(1 s), ready", epoll_timed},
};
enum { KINDS = sizeof kinds / sizeof *kinds, PIECES = 7 };
static double per_call(void (*what)(void)) {
    int64_t began = now(), n = 0;
    for (; now() - began < 2000000; n++) what();
    n = n / 2 + 1;
    double each[PIECES];
    for (int i = 0; i < PIECES; i++) {
        began = now();
        for (int64_t j = 0; j < n; j++) what();
        each[i] = (double)(now() - began) / n;
    }
    qsort(each, PIECES, sizeof *each, ascending);
    return each[PIECES / 2];
}
static int calls(void) {
    ep = MUST(epoll_create1(0)), ready = MUST(epoll_create1(0));
    int off = MUST(eventfd(0, 0)), on = MUST(eventfd(1, 0));
    MUST(epoll_ctl(ep, EPOLL_CTL_ADD, off, &(struct epoll_event){.events = EPOLLIN}));
    MUST(epoll_ctl(ready, EPOLL_CTL_ADD, on, &(struct epoll_event){.events = EPOLLIN}));
    sigemptyset(&some), sigaddset(&some, SIGUSR1), sigfillset(&all);
    MUST(prctl(PR_SET_TIMERSLACK, 1)); // or nanosleep is a matter of 50 us
    printf("%s", preloaded());
    for (int i = 0; i < KINDS; i++) printf(";%s", kinds[i].name);
    puts(""), fflush(stdout);
    for (int i; scanf("%d", &i) == 1 && i >= 0 && i < KINDS;) printf("%.3f\n", per_call(kinds[i].run)), fflush(stdout);
    return 0;
}
int main(int argc, char **argv) {
    int64_t began = now();
    if (argc == 2 && !strcmp(argv[1], "main")) return printf("%lld %s\n", (long long)began, preloaded()), 0;
    if (argc >= 5 && !strcmp(argv[1], "start")) return starts(atoi(argv[2]), argv[3], argv + 4);
    if (argc == 2 && !strcmp(argv[1], "calls")) return calls();
    fputs("usage: cost start|main|calls ... (cost.c)\n", stderr);
    return 2;
}
