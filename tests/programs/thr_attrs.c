#include "common.h"
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>

static const char *about = "eight threads, each with its own TLS, signal mask, alternate stack, name, CPU affinity, nice, policy, robust list, clear_child_tid";

struct look { // all of a thread that we can see
    uint64_t tls, mask;
    stack_t alt;
    char name[32];
    cpu_set_t cpus;
    int nice, policy, priority, marker;
    void *robust, *clear_tid;
    size_t robust_size;
};
#define N 8
static struct look before[N];
static __thread uint64_t tls = 5;
static __thread char alt_memory[32768];
static volatile int ready_threads, go, spoiled;
static pthread_t handles[N];
static int ncpu;

static void see(struct look *l) {
    memset(l, 0, sizeof *l);
    l->tls = tls;
    syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &l->mask, 8);
    sigaltstack(NULL, &l->alt);
    prctl(PR_GET_NAME, l->name);
    sched_getaffinity(0, sizeof l->cpus, &l->cpus);
    l->nice = getpriority(PRIO_PROCESS, (id_t)tid_now()); // of this thread
    struct sched_param p = {0};
    l->policy = sched_getscheduler(0);
    sched_getparam(0, &p);
    l->priority = p.sched_priority;
    syscall(SYS_get_robust_list, 0, &l->robust, &l->robust_size);
    if (prctl(PR_GET_TID_ADDRESS, &l->clear_tid)) l->clear_tid = NULL; // needs CONFIG_CHECKPOINT_RESTORE
}
static void *thread(void *arg) {
    long i = (long)arg;
    char name[16], path[64], comm[32];
    tls = 0x1000 + (uint64_t)i;
    snprintf(name, sizeof name, i == 5 ? "odd )( name %ld" : "worker-%ld", i);
    prctl(PR_SET_NAME, name);
    sigset_t block;
    sigemptyset(&block);
    sigaddset(&block, SIGUSR1), sigaddset(&block, SIGRTMIN + (int)i), sigaddset(&block, (int)(i % 2 ? SIGTERM : SIGHUP));
    pthread_sigmask(SIG_SETMASK, &block, NULL);
    if (i % 4 != 3) MUST(sigaltstack(&(stack_t){.ss_sp = alt_memory, .ss_size = sizeof alt_memory - (size_t)i * 1024}, NULL));
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    CPU_SET(i % ncpu, &cpus);
    if (i % 3) MUST(sched_setaffinity(0, sizeof cpus, &cpus));
    MUST(setpriority(PRIO_PROCESS, (id_t)tid_now(), getpriority(PRIO_PROCESS, 0) + (int)i)); // nicer only: needs no right
    if (i == 2) MUST(sched_setscheduler(0, SCHED_BATCH, &(struct sched_param){0}));
    if (i == 7) MUST(sched_setscheduler(0, SCHED_IDLE, &(struct sched_param){0}));
    see(&before[i]);
    __atomic_fetch_add(&ready_threads, 1, __ATOMIC_SEQ_CST);
    while (!go) sleep_ms(i % 2 ? 2 : 20);
    if (spoiled && i == 3) prctl(PR_SET_NAME, "spoiled");
    struct look now, *was = &before[i];
    see(&now);
    CHECK_HEX(was->tls, now.tls, "TLS value of thread %ld", i);
    CHECK_HEX(was->mask, now.mask, "signal mask of thread %ld", i);
    CHECK_HEX(was->alt.ss_sp, now.alt.ss_sp, "alternate stack of thread %ld", i);
    CHECK_EQ(was->alt.ss_size, now.alt.ss_size, "size of the alternate stack of thread %ld", i);
    CHECK_EQ(was->alt.ss_flags, now.alt.ss_flags, "flags of the alternate stack of thread %ld", i);
    CHECK_STR(was->name, now.name, "name of thread %ld", i);
    snprintf(path, sizeof path, "/proc/self/task/%d/comm", tid_now());
    slurp(path, comm, sizeof comm), comm[strcspn(comm, "\n")] = 0;
    CHECK_STR(was->name, comm, "comm of thread %ld", i);
    CHECK(CPU_EQUAL(&was->cpus, &now.cpus), "affinity of thread %ld", i);
    CHECK_EQ(was->nice, now.nice, "nice of thread %ld", i);
    CHECK_EQ(was->policy, now.policy, "policy of thread %ld", i);
    CHECK_EQ(was->priority, now.priority, "priority of thread %ld", i);
    CHECK_HEX(was->robust, now.robust, "robust list of thread %ld", i);
    CHECK_EQ(was->robust_size, now.robust_size, "robust list size of thread %ld", i);
    CHECK_HEX(was->clear_tid, now.clear_tid, "clear_child_tid of thread %ld", i);
    return (void *)(i * 3 + 1);
}
static struct look main_before;
static void setup(void) {
    cpu_set_t all;
    sched_getaffinity(0, sizeof all, &all);
    ncpu = CPU_COUNT(&all); // assumed: numbered from 0
    prctl(PR_SET_NAME, "the main thread");
    for (long i = 0; i < N; i++) MUST0(pthread_create(&handles[i], NULL, thread, (void *)i));
    while (ready_threads < N) sleep_ms(1);
    see(&main_before);
}
static void spoil(void) { spoiled = 1; }
static void prove(void) {
    struct look now;
    see(&now);
    CHECK_MEM(&main_before, &now, sizeof now, "all that is seen of the main thread");
    CHECK_STR(main_before.name, now.name, "name of the main thread");
    go = 1;
    for (long i = 0; i < N; i++) {
        void *r;
        MUST0(pthread_join(handles[i], &r));
        CHECK_EQ(i * 3 + 1, (long)r, "value of thread %ld", i);
    }
}
