#include "common.h"
#include "uring.h"
#include <dirent.h>
#include <sys/epoll.h>
#include <sys/resource.h>

static const char *about = "rings of io_uring whose requests a thread of the kernel's takes (SQPOLL), one on a CPU of its own, one of one thread, used before, idle: counts go on, it takes requests without a call while it is awake, and sleeps";
static const char *usage = "  --what epoll|attached|limited    what is refused: a ring in an epoll set, two with one thread, a limit of the address space\n";

static pthread_t issuer;
static pthread_barrier_t turn;
static int (*option)(const char *, const char *) = what_option;

static struct ring one, own, second;
static int file[2]; // a pipe
static char *fixed;
static cpu_set_t cpus;
static int cpu;
static struct uring_creds { unsigned uid[4], gid[4]; } before;

// What fdinfo says of a ring.
static int told(struct ring *r, const char *key) {
    char path[64], line[256];
    int value = -2;
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", r->fd);
    while (value == -2) { // while its thread is at it, nothing is told
        FILE *f = fopen(path, "re");
        while (f && fgets(line, sizeof line, f))
            if (!strncmp(line, key, strlen(key)) && line[strlen(key)] == ':') value = atoi(line + strlen(key) + 1);
        if (f) fclose(f);
    }
    return value;
}
// The kernel's thread of the ring that was made first, or second (1); in fdinfo it has the number that it has outside all PID namespaces.
static int kernels(int n) {
    DIR *tasks = opendir("/proc/self/task");
    int found = 0;
    for (struct dirent *d; tasks && n >= 0 && (d = readdir(tasks));) {
        char path[300], name[32] = "";
        snprintf(path, sizeof path, "/proc/self/task/%s/comm", d->d_name);
        FILE *f = fopen(path, "re");
        if (f && fgets(name, sizeof name, f) && !strncmp(name, "iou-sqp-", 8) && n-- == 0) found = atoi(d->d_name);
        if (f) fclose(f);
    }
    if (tasks) closedir(tasks);
    return found;
}
// Its credentials.
static struct uring_creds creds(int n) {
    struct uring_creds c = {0};
    char path[64], line[256];
    snprintf(path, sizeof path, "/proc/self/task/%d/status", kernels(n));
    FILE *f = fopen(path, "re");
    while (f && fgets(line, sizeof line, f)) {
        sscanf(line, "Uid: %u %u %u %u", &c.uid[0], &c.uid[1], &c.uid[2], &c.uid[3]);
        sscanf(line, "Gid: %u %u %u %u", &c.gid[0], &c.gid[1], &c.gid[2], &c.gid[3]);
    }
    if (f) fclose(f);
    return c;
}
// Submits what was entered without a call if the thread is awake, and waits for it without one.
static void taken(struct ring *r) {
    __atomic_store_n(word(r, r->p.sq_off.tail), r->tail, __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (__atomic_load_n(word(r, r->p.sq_off.flags), __ATOMIC_ACQUIRE) & IORING_SQ_NEED_WAKEUP) MUST(syscall(SYS_io_uring_enter, r->fd, 0, 0, IORING_ENTER_SQ_WAKEUP, NULL, 0));
}
static void waits(struct ring *r) {
    while (__atomic_load_n(word(r, r->p.cq_off.tail), __ATOMIC_ACQUIRE) == *word(r, r->p.cq_off.head)) sched_yield();
}
static void polled(struct ring *r, uint64_t data) {
    entry(r, IORING_OP_NOP, -1, NULL, 0, data);
    taken(r);
    waits(r);
    finished(r, data, 0);
}
static void sleeps(struct ring *r) {
    while (!(__atomic_load_n(word(r, r->p.sq_off.flags), __ATOMIC_ACQUIRE) & IORING_SQ_NEED_WAKEUP)) sleep_ms(1);
}
static bool make_on(struct ring *r, unsigned entries, unsigned flags) {
    struct io_uring_params p = {.flags = flags | IORING_SETUP_SQPOLL, .sq_thread_cpu = (unsigned)cpu, .sq_thread_idle = 100, .wq_fd = (unsigned)one.fd};
    return made(r, entries, p);
}

// A thread whose the second ring is. As root it is nobody, alone in the process.
static void *issues(void *arg) {
    if (geteuid() == 0) {
        MUST(syscall(SYS_setresgid, 65534, 65534, 65534));
        MUST(syscall(SYS_setresuid, 65534, 65534, 65534));
    }
    if (!make_on(&own, 4, IORING_SETUP_SINGLE_ISSUER)) own.fd = -1;
    pthread_barrier_wait(&turn);
    pthread_barrier_wait(&turn);
    if (own.fd > 0) CHECK_ERRNO(ENXIO, syscall(SYS_io_uring_register, own.fd, IORING_UNREGISTER_BUFFERS, NULL, 0), "its own thread registers");
    return arg;
}

static void setup(void) {
    MUST(pipe(file));
    MUST(sched_getaffinity(0, sizeof cpus, &cpus));
    while (!CPU_ISSET(cpu, &cpus)) cpu++;
    fixed = MUST(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (!make_on(&one, 8, CPU_COUNT(&cpus) > 1 ? IORING_SETUP_SQ_AFF : 0)) skip("no such ring: %s", strerror(errno));
    if (what) {
        if (!strcmp(what, "attached")) MUST(make_on(&second, 8, IORING_SETUP_ATTACH_WQ) ? 0 : -1);
        if (!strcmp(what, "limited")) MUST(setrlimit(RLIMIT_AS, &(struct rlimit){1UL << 40, 1UL << 40}));
        if (!strcmp(what, "epoll")) MUST(epoll_ctl(MUST(epoll_create1(0)), EPOLL_CTL_ADD, one.fd, &(struct epoll_event){.events = EPOLLIN}));
        return;
    }
    MUST(fcntl(one.fd, F_DUPFD_CLOEXEC, 90));
    MUST0(pthread_barrier_init(&turn, NULL, 2));
    MUST0(pthread_create(&issuer, NULL, issues, NULL));
    pthread_barrier_wait(&turn);
    MUST(syscall(SYS_io_uring_register, one.fd, IORING_REGISTER_BUFFERS, &(struct iovec){fixed, PAGE}, 1));
    for (uint64_t i = 0; i < 1003; i++) polled(&one, i);
    for (uint64_t i = 0; own.fd > 0 && i < 21; i++) polled(&own, i);
    for (uint64_t i = 0; i < 3; i++) entry(&one, IORING_OP_NOP, -1, NULL, 0, 5000 + i);
    taken(&one); // nobody reads these
    while (__atomic_load_n(word(&one, one.p.cq_off.tail), __ATOMIC_ACQUIRE) != 1006) sched_yield();
    entry(&one, IORING_OP_NOP, -1, NULL, 0, 6000); // prepared, not submitted
    before = creds(0);
}
static void spoil(void) {
    ((struct io_uring_cqe *)(one.rings + one.p.cq_off.cqes))[*word(&one, one.p.cq_off.head) & 15].user_data = 9;
}
static void prove(void) {
    if (what) {
        polled(&one, 1);
        return;
    }
    for (uint64_t i = 0; i < 3; i++) finished(&one, 5000 + i, 0);
    taken(&one);
    waits(&one);
    finished(&one, 6000, 0);
    struct uring_creds now = creds(0);
    CHECK_MEM(&before, &now, sizeof now, "users and groups of the kernel's thread");
    CHECK_EQ(geteuid(), now.uid[3], "user of the kernel's thread for files");
    CHECK_EQ(1007, *word(&one, one.p.cq_off.tail), "completions");
    CHECK_EQ(1007, *word(&one, one.p.sq_off.head), "requests");
    for (uint64_t i = 0; i < 300; i++) polled(&one, i); // round the ring
    MUST(write(file[1], "some", 4));
    entry(&one, IORING_OP_READ_FIXED, file[0], fixed, 4, 7000)->buf_index = 0;
    taken(&one);
    waits(&one);
    finished(&one, 7000, 4);
    CHECK_MEM("some", fixed, 4, "what was read into the registered buffer");
    sleeps(&one);
    if (CPU_COUNT(&cpus) > 1) {
        cpu_set_t on;
        CHECK_EQ(cpu, told(&one, "SqThreadCpu"), "the CPU of the kernel's thread");
        CHECK_OK(sched_getaffinity(kernels(0), sizeof on, &on), "the CPUs of the kernel's thread");
        CHECK_EQ(1, CPU_COUNT(&on), "CPUs of the kernel's thread");
        CHECK(CPU_ISSET(cpu, &on), "the kernel's thread is on CPU %d", cpu);
    }
    if (own.fd > 0) {
        for (uint64_t i = 0; i < 21; i++) polled(&own, i);
        CHECK_EQ(42, *word(&own, own.p.cq_off.tail), "completions of the ring of one thread");
        CHECK_ERRNO(EEXIST, syscall(SYS_io_uring_register, own.fd, IORING_UNREGISTER_BUFFERS, NULL, 0), "another thread registers");
        now = creds(1);
        CHECK_EQ(geteuid() ? geteuid() : 65534, now.uid[3], "user of the other kernel's thread for files");
        CHECK_EQ(geteuid() ? geteuid() : 65534, now.uid[0], "user of the other kernel's thread");
    }
    pthread_barrier_wait(&turn);
    MUST0(pthread_join(issuer, NULL));
    polled(&one, 8000);
}
