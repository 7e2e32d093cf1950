// The bare limits: `bare fork MIB REPEATS [thp]`: fork and _exit of a process with that much memory, ms each;
// `bare seize PID REPEATS`: seize, interrupt, wait, read registers and detach of all threads of a process, ms each.
#define _GNU_SOURCE
#include <dirent.h>
#include <elf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}
static int bare_fork(size_t mib, int n, int thp) {
    size_t len = mib << 20;
    char *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return perror("mmap"), 1;
    madvise(p, len, thp ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    for (size_t i = 0; i < len; i += 4096) p[i] = (char)(i >> 12) | 1;
    for (int i = 0; i < n; i++) {
        double t = ms();
        pid_t c = fork();
        if (!c) _exit(0);
        printf("%.3f\n", ms() - t);
        waitpid(c, NULL, 0);
    }
    return 0;
}
static int bare_seize(int pid, int n) {
    char path[64];
    static int tids[65536];
    snprintf(path, sizeof path, "/proc/%d/task", pid);
    for (int i = 0; i < n; i++) {
        double t = ms();
        int k = 0;
        DIR *d = opendir(path);
        for (struct dirent *e; d && (e = readdir(d));)
            if (e->d_name[0] != '.') tids[k++] = atoi(e->d_name);
        closedir(d);
        for (int j = 0; j < k; j++) ptrace(PTRACE_SEIZE, tids[j], 0, 0);
        for (int j = 0; j < k; j++) ptrace(PTRACE_INTERRUPT, tids[j], 0, 0);
        for (int j = 0; j < k; j++) waitpid(tids[j], NULL, __WALL);
        struct user_regs_struct r;
        for (int j = 0; j < k; j++) ptrace(PTRACE_GETREGSET, tids[j], NT_PRSTATUS, &(struct iovec){&r, sizeof r});
        for (int j = 0; j < k; j++) ptrace(PTRACE_DETACH, tids[j], 0, 0);
        printf("%.3f\n", ms() - t);
        usleep(100000); // lets the threads run between two measurements
    }
    return 0;
}
int main(int argc, char **argv) {
    if (argc >= 4 && !strcmp(argv[1], "fork")) return bare_fork(atoi(argv[2]), atoi(argv[3]), argc > 4);
    if (argc >= 4 && !strcmp(argv[1], "seize")) return bare_seize(atoi(argv[2]), atoi(argv[3]));
    return 2;
}
