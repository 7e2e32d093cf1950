#include "common.h"
#include <linux/mempolicy.h>
#include <sched.h>
#include <semaphore.h>

static const char *about = "NUMA policy: of two threads that differ, and of private, shared and MADV_DONTFORK mappings";

static char *spread, *shared, *apart, *plain;
static sem_t go;
static pthread_t thread;
static volatile int other_mode = -1;
static uint64_t other_nodes;

static void set(int mode, uint64_t nodes) { MUST(syscall(SYS_set_mempolicy, mode, nodes ? &nodes : NULL, nodes ? 64 : 0)); }
static void bind_to(void *at, int mode) {
    uint64_t node0 = 1;
    MUST(syscall(SYS_mbind, at, PAGE, mode, &node0, 64, 0));
}
static int policy(void *at, uint64_t *nodes) {
    int mode = -1;
    *nodes = 0;
    MUST(syscall(SYS_get_mempolicy, &mode, nodes, 64, at, at ? MPOL_F_ADDR : 0));
    return mode;
}
static void *run(void *arg) {
    set(MPOL_BIND | MPOL_F_STATIC_NODES, 1);
    other_mode = 0;
    while (sem_wait(&go));
    other_mode = policy(NULL, &other_nodes);
    return arg;
}
static char *page(int flags) {
    char *p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | flags, -1, 0);
    MUST(p == MAP_FAILED ? -1 : 0);
    return p;
}
static void setup(void) {
    if (syscall(SYS_get_mempolicy, NULL, NULL, 0, NULL, 0) && errno == ENOSYS) skip("NUMA is not in this kernel");
    plain = page(MAP_PRIVATE), spread = page(MAP_PRIVATE), shared = page(MAP_SHARED), apart = page(MAP_PRIVATE);
    MUST(madvise(apart, PAGE, MADV_DONTFORK));
    bind_to(spread, MPOL_INTERLEAVE), bind_to(shared, MPOL_BIND), bind_to(apart, MPOL_PREFERRED | MPOL_F_RELATIVE_NODES);
    sem_init(&go, 0, 0);
    MUST0(pthread_create(&thread, NULL, run, NULL));
    while (other_mode) sched_yield();
    set(MPOL_INTERLEAVE | MPOL_F_STATIC_NODES, 1);
}
static void spoil(void) { set(MPOL_DEFAULT, 0); }
static void prove(void) {
    uint64_t nodes;
    CHECK_EQ(MPOL_INTERLEAVE | MPOL_F_STATIC_NODES, policy(NULL, &nodes), "policy of the main thread");
    CHECK_EQ(1, nodes, "nodes of the main thread");
    MUST(sem_post(&go));
    MUST0(pthread_join(thread, NULL));
    CHECK_EQ(MPOL_BIND | MPOL_F_STATIC_NODES, other_mode, "policy of the second thread");
    CHECK_EQ(1, other_nodes, "nodes of the second thread");
    CHECK_EQ(MPOL_DEFAULT, policy(plain, &nodes), "policy of a mapping without one");
    CHECK_EQ(MPOL_INTERLEAVE, policy(spread, &nodes), "policy of a private mapping");
    CHECK_EQ(1, nodes, "nodes of a private mapping");
    CHECK_EQ(MPOL_BIND, policy(shared, &nodes), "policy of shared memory");
    CHECK_EQ(MPOL_PREFERRED | MPOL_F_RELATIVE_NODES, policy(apart, &nodes), "policy of a MADV_DONTFORK mapping");
}
