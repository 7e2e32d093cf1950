#include "common.h"
#include <sched.h>
#include <sys/rseq.h>

static const char *about = "restartable sequences: glibc's registration of every thread is still there and alive, and no update is lost in a section";

// Two threads on one CPU add to one counter without an atomic: right only if an interrupted section is aborted.
static volatile unsigned long counter;
static unsigned long added[2];
static volatile int stop, started;
static int shared_cpu;
static pthread_t handles[2];

static struct rseq *area(void) { return (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset); }
static void check_area(const char *who) {
    struct rseq *r = area();
    CHECK_ERRNO(EBUSY, syscall(SYS_rseq, r, 32, 0, RSEQ_SIG), "rseq on the area of %s once more", who); // EINVAL: another is registered
    int tries = 1000;
    unsigned cpu = 0, before = 1;
    while (tries-- && (before = r->cpu_id, syscall(SYS_getcpu, &cpu, NULL, NULL), cpu != before || r->cpu_id != before));
    CHECK_EQ(cpu, before, "CPU by rseq, %s", who);
    CHECK_EQ(r->cpu_id, r->cpu_id_start, "cpu_id_start, %s", who);
}
static bool add_one(struct rseq *r) { // false: aborted before the commit
    unsigned long tmp, spin;
    __asm__ goto volatile(
        ".pushsection __rseq_cs, \"aw\"\n.balign 32\n"
        "3: .long 0, 0\n.quad 1f, (2f - 1f), 4f\n.popsection\n"
        "lea 3b(%%rip), %[tmp]\n"
        "mov %[tmp], 8(%[rseq])\n"
        "1: mov %[counter], %[tmp]\n"
        "mov $200, %[spin]\n"
        "5: dec %[spin]\njnz 5b\n"
        "inc %[tmp]\n"
        "mov %[tmp], %[counter]\n"
        "2: jmp 6f\n"
        ".byte 0x0f, 0xb9, 0x3d\n.long 0x53053053\n"
        "4: jmp %l[aborted]\n"
        "6:\n"
        : [tmp] "=&r"(tmp), [spin] "=&r"(spin)
        : [rseq] "r"(r), [counter] "m"(counter)
        : "memory", "cc"
        : aborted);
    return true;
aborted:
    return false;
}
static void *adder(void *arg) {
    unsigned long *mine = arg;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(shared_cpu, &one);
    MUST(sched_setaffinity(0, sizeof one, &one));
    struct rseq *r = area();
    __atomic_fetch_add(&started, 1, __ATOMIC_SEQ_CST);
    for (unsigned long n = 0; !stop; n++) {
        *mine += add_one(r);
        if (n % 100000 == 0) sched_yield();
    }
    check_area("an adding thread");
    return NULL;
}
static void setup(void) {
    if (__rseq_size == 0) skip("glibc has no rseq registration here");
    shared_cpu = sched_getcpu();
    for (int i = 0; i < 2; i++) MUST0(pthread_create(&handles[i], NULL, adder, &added[i]));
    while (started < 2) sleep_ms(1);
    sleep_ms(30);
}
static void spoil(void) { MUST(syscall(SYS_rseq, area(), 32, RSEQ_FLAG_UNREGISTER, RSEQ_SIG)); }
static void prove(void) {
    check_area("the main thread");
    stop = 1;
    for (int i = 0; i < 2; i++) MUST0(pthread_join(handles[i], NULL));
    CHECK_EQ(added[0] + added[1], counter, "the counter against what both added");
    CHECK(added[0] > 0 && added[1] > 0, "both added");
}
