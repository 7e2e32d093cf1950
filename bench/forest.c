// A tree of processes for bench/run: forest DIR N MIB. The first one fills MIB MiB, has N - 1 children, all asleep, and looks at the clock every millisecond;
// DIR/sample asks for the largest gap since the last time (DIR/gap, microseconds). It ends, with all others, at DIR/gate.
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char path[2][4096];
static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}
static int is_there(const char *dir, const char *name) {
    snprintf(path[0], sizeof path[0], "%s/%s", dir, name);
    return !access(path[0], F_OK);
}
static void tell(const char *dir, const char *name, long long value) {
    snprintf(path[0], sizeof path[0], "%s/.%s", dir, name), snprintf(path[1], sizeof path[1], "%s/%s", dir, name);
    FILE *f = fopen(path[0], "w");
    if (!f) exit(1);
    fprintf(f, "%lld\n", value);
    fclose(f);
    rename(path[0], path[1]);
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    const char *dir = argv[1];
    int n = atoi(argv[2]);
    size_t bytes = (size_t)atoi(argv[3]) << 20;
    uint64_t *all = mmap(NULL, bytes + 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED) return 1;
    for (size_t i = 0; i < bytes / 8; i++) all[i] = i * 0x9e3779b97f4a7c15ULL ^ i << 7;
    for (int i = 1; i < n; i++) {
        pid_t pid = fork();
        if (pid < 0) return 1;
        if (pid == 0) {
            memset(malloc(100000), i, 100000);
            for (;;) pause();
        }
    }
    tell(dir, "ready", getpid());
    int64_t last = now(), worst = 0;
    while (!is_there(dir, "gate")) {
        struct timespec t = {0, 1000000};
        nanosleep(&t, NULL);
        int64_t at = now();
        if (at - last > worst) worst = at - last;
        last = at;
        if (is_there(dir, "sample")) {
            unlink(path[0]);
            tell(dir, "gap", worst / 1000);
            worst = 0, last = now();
        }
    }
    signal(SIGTERM, SIG_IGN);
    kill(0, SIGTERM);
    while (wait(NULL) > 0) {}
    return 0;
}
