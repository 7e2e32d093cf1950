// The bare limits, measured by the least that any program would have to do.
//   bare fork MIB [thp]   for each line on stdin: fork and _exit of a process with so much memory, ms
//   bare seize PID N      N times: seize, interrupt, wait, registers and detach of all threads of a process, ms each
//   bare park THREADS     for each line on stdin: the threads, asleep, are signalled one by one, wait in the handler until a fork has been made, and are
//                         woken; ms that the thread was in it that was in it longest, and ms from the first signal to the last thread's leaving
//   bare tree PROCESSES   for each line on stdin: so many processes, asleep, are signalled one by one; when all wait in the handler all fork, and go on; ms from
//                         the first signal until the last one goes on
//   bare publish DIR PACK MANIFEST N   N times: the files and folders of one checkpoint written, fsync'ed and renamed, ms each
//   bare write FILE MIB   so much incompressible memory written and fsync'ed, ms
#define _GNU_SOURCE
#include <dirent.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MUST(call)                                                                                 \
    ({                                                                                             \
        __typeof__(call) value_ = (call);                                                          \
        if ((long)value_ == -1) fprintf(stderr, "bare: " #call ": %s\n", strerror(errno)), exit(1); \
        value_;                                                                                    \
    })

static double ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}
static char *filled(size_t len, int thp) {
    char *p = MUST(mmap(NULL, len + (2 << 20), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    p = (char *)(((uintptr_t)p + (2 << 20) - 1) & ~((2UL << 20) - 1));
    madvise(p, len, thp ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    uint64_t x = 88172645463325252ULL;
    for (size_t i = 0; i < len / 8; i++) x ^= x << 13, x ^= x >> 7, x ^= x << 17, ((uint64_t *)p)[i] = x;
    return p;
}
static int bare_fork(size_t mib, int thp) {
    filled(mib << 20, thp);
    puts("ready"), fflush(stdout);
    while (getchar() != EOF) {
        double t = ms();
        pid_t c = MUST(fork());
        if (!c) _exit(0);
        printf("%.3f\n", ms() - t), fflush(stdout);
        MUST(waitpid(c, NULL, 0));
    }
    return 0;
}
static int bare_seize(int pid, int n) {
    static int tids[65536];
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/task", pid);
    for (int i = 0; i < n; i++) {
        double t = ms();
        int k = 0;
        DIR *d = opendir(path);
        if (!d) return perror(path), 1;
        for (struct dirent *e; (e = readdir(d)) && k < 65536;)
            if (e->d_name[0] != '.') tids[k++] = atoi(e->d_name);
        closedir(d);
        struct user_regs_struct r;
        for (int j = 0; j < k; j++) MUST(ptrace(PTRACE_SEIZE, tids[j], 0, 0));
        for (int j = 0; j < k; j++) MUST(ptrace(PTRACE_INTERRUPT, tids[j], 0, 0));
        for (int j = k; j--;) MUST(waitpid(tids[j], NULL, __WALL)); // the leader, which is first, last
        for (int j = 0; j < k; j++) MUST(ptrace(PTRACE_GETREGSET, tids[j], NT_PRSTATUS, &(struct iovec){&r, sizeof r}));
        for (int j = 0; j < k; j++) MUST(ptrace(PTRACE_DETACH, tids[j], 0, 0));
        printf("%.3f\n", ms() - t);
    }
    return 0;
}
static struct { double in, out; } *parks; // of each thread
static pid_t *parkers;
static int parked, released, left;
static long futex(int *at, int op, int value) { return syscall(SYS_futex, at, op | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0); }
static _Thread_local int own;
static void park(int signal) {
    (void)signal;
    double in = ms();
    int round = __atomic_load_n(&released, __ATOMIC_SEQ_CST);
    __atomic_add_fetch(&parked, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&released, __ATOMIC_SEQ_CST) == round) futex(&released, FUTEX_WAIT, round);
    parks[own].in = in, parks[own].out = ms();
    __atomic_add_fetch(&left, 1, __ATOMIC_SEQ_CST);
}
static void *sleeps(void *arg) {
    own = (int)(intptr_t)arg;
    __atomic_store_n(&parkers[own], (pid_t)syscall(SYS_gettid), __ATOMIC_SEQ_CST);
    for (;;) pause();
    return NULL;
}
static int bare_park(int n) {
    parks = calloc(n, sizeof *parks), parkers = calloc(n, sizeof *parkers);
    struct sigaction a = {.sa_handler = park, .sa_flags = SA_RESTART};
    MUST(sigaction(SIGUSR1, &a, NULL));
    pthread_attr_t attr;
    pthread_attr_init(&attr), pthread_attr_setstacksize(&attr, 64 << 10);
    for (int i = 0; i < n; i++) {
        pthread_t t;
        if (pthread_create(&t, &attr, sleeps, (void *)(intptr_t)i)) return fputs("bare: no thread\n", stderr), 1;
    }
    for (int i = 0; i < n; i++)
        while (!__atomic_load_n(&parkers[i], __ATOMIC_SEQ_CST)) sched_yield();
    puts("ready"), fflush(stdout);
    while (getchar() != EOF) {
        parked = left = 0;
        double began = ms(), worst = 0;
        for (int i = 0; i < n; i++) MUST(syscall(SYS_tgkill, getpid(), parkers[i], SIGUSR1));
        while (__atomic_load_n(&parked, __ATOMIC_SEQ_CST) < n) sched_yield();
        pid_t c = MUST(fork());
        if (!c) _exit(0);
        __atomic_add_fetch(&released, 1, __ATOMIC_SEQ_CST);
        futex(&released, FUTEX_WAKE, n);
        while (__atomic_load_n(&left, __ATOMIC_SEQ_CST) < n) sched_yield();
        double all = ms() - began;
        for (int i = 0; i < n; i++)
            if (parks[i].out - parks[i].in > worst) worst = parks[i].out - parks[i].in;
        printf("%.3f %.3f\n", worst, all), fflush(stdout);
        MUST(waitpid(c, NULL, 0));
    }
    return 0;
}
static struct { int parked, forked, turn, left; } *tree; // shared; turn: an odd one lets them fork, an even one go on
static long shared_futex(int *at, int op, int value) { return syscall(SYS_futex, at, op, value, NULL, NULL, 0); }
static void until_turn(int turn) {
    for (int now; (now = __atomic_load_n(&tree->turn, __ATOMIC_SEQ_CST)) < turn;) shared_futex(&tree->turn, FUTEX_WAIT, now);
}
static void count(int *at, int n) { // who is the last wakes the one that waits for all
    if (__atomic_add_fetch(at, 1, __ATOMIC_SEQ_CST) == n) shared_futex(at, FUTEX_WAKE, 1);
}
static void until_all(int *at, int n) {
    for (int now; (now = __atomic_load_n(at, __ATOMIC_SEQ_CST)) < n;) shared_futex(at, FUTEX_WAIT, now);
}
static int members;
static void forks(int signal) {
    (void)signal;
    int turn = __atomic_load_n(&tree->turn, __ATOMIC_SEQ_CST) + 1;
    count(&tree->parked, members);
    until_turn(turn);
    if (!MUST(fork())) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        until_turn(turn + 1);
        _exit(0);
    }
    count(&tree->forked, members);
    until_turn(turn + 1);
    count(&tree->left, members);
}
static int bare_tree(int n) {
    members = n;
    tree = mmap(NULL, sizeof *tree, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t *all = calloc(n, sizeof *all);
    struct sigaction a = {.sa_handler = forks, .sa_flags = SA_RESTART}, ignored = {.sa_handler = SIG_IGN};
    MUST(sigaction(SIGUSR1, &a, NULL));
    for (int i = 0; i < n; i++) {
        if ((all[i] = MUST(fork()))) continue;
        MUST(sigaction(SIGCHLD, &ignored, NULL));
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        memset(malloc(100000), i, 100000);
        count(&tree->left, n);
        for (;;) pause();
    }
    until_all(&tree->left, n);
    puts("ready"), fflush(stdout);
    while (getchar() != EOF) {
        memset(tree, 0, sizeof *tree);
        double began = ms();
        for (int i = 0; i < n; i++) MUST(kill(all[i], SIGUSR1));
        until_all(&tree->parked, n);
        __atomic_store_n(&tree->turn, 1, __ATOMIC_SEQ_CST), shared_futex(&tree->turn, FUTEX_WAKE, n);
        until_all(&tree->forked, n);
        __atomic_store_n(&tree->turn, 2, __ATOMIC_SEQ_CST), shared_futex(&tree->turn, FUTEX_WAKE, 2 * n);
        until_all(&tree->left, n);
        printf("%.3f\n", ms() - began), fflush(stdout);
    }
    return 0;
}

static void write_synced(const char *path, const char *from, size_t len) {
    int fd = MUST(open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    for (ssize_t n; len; from += n, len -= n) n = MUST(write(fd, from, len < 1 << 20 ? len : 1 << 20));
    MUST(fsync(fd));
    close(fd);
}
static void sync_dir(const char *path) {
    int fd = MUST(open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    MUST(fsync(fd));
    close(fd);
}
// As the store does it (image/src/store/incoming.rs): folders, pack, manifest; pack and folder moved into their place.
static int bare_publish(const char *dir, size_t pack, size_t manifest, int n) {
    MUST(chdir(dir));
    MUST(mkdir("packs", 0700));
    MUST(mkdir("checkpoints", 0700));
    char *bytes = filled(pack > manifest ? pack : manifest, 0), to[64];
    for (int i = 0; i < n; i++) {
        double t = ms();
        MUST(mkdir(".incoming", 0700));
        MUST(mkdir(".incoming/packs", 0700));
        write_synced(".incoming/packs/0", bytes, pack);
        write_synced(".incoming/manifest", bytes, manifest);
        snprintf(to, sizeof to, "packs/%d", i);
        MUST(rename(".incoming/packs/0", to));
        sync_dir("packs");
        MUST(rmdir(".incoming/packs"));
        sync_dir(".incoming");
        snprintf(to, sizeof to, "checkpoints/%d", i);
        MUST(rename(".incoming", to));
        sync_dir("checkpoints");
        printf("%.3f\n", ms() - t);
    }
    return 0;
}
static int bare_write(const char *path, size_t mib) {
    char *bytes = filled(mib << 20, 1);
    sync();
    double t = ms();
    write_synced(path, bytes, mib << 20);
    printf("%.3f\n", ms() - t);
    return 0;
}
int main(int argc, char **argv) {
    if (argc >= 3 && !strcmp(argv[1], "fork")) return bare_fork(atoi(argv[2]), argc > 3);
    if (argc == 4 && !strcmp(argv[1], "seize")) return bare_seize(atoi(argv[2]), atoi(argv[3]));
    if (argc == 3 && !strcmp(argv[1], "park")) return bare_park(atoi(argv[2]));
    if (argc == 3 && !strcmp(argv[1], "tree")) return bare_tree(atoi(argv[2]));
    if (argc == 6 && !strcmp(argv[1], "publish")) return bare_publish(argv[2], atol(argv[3]), atol(argv[4]), atoi(argv[5]));
    if (argc == 4 && !strcmp(argv[1], "write")) return bare_write(argv[2], atoi(argv[3]));
    fputs("usage: bare fork|seize|park|publish|write ... (bare.c)\n", stderr);
    return 2;
}
