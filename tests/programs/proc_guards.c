#include "common.h"
#include <setjmp.h>
#include <sys/prctl.h>

static const char *about = "PR_SET_MDWE, PR_SET_MEMORY_MERGE; of one thread of two PR_SET_TSC, PR_MCE_KILL, CPUID faulting, speculation control";

#ifndef PR_SET_MDWE
#define PR_SET_MDWE 65
#define PR_GET_MDWE 66
#endif
#ifndef PR_SET_MEMORY_MERGE
#define PR_SET_MEMORY_MERGE 67
#define PR_GET_MEMORY_MERGE 68
#endif
#define ARCH_GET_CPUID 0x1011
#define ARCH_SET_CPUID 0x1012

struct look {
    int tsc, mce, speculation[3];
    long cpuid;
};
static struct look before[2];
static int mdwe, merge;
static volatile int ready_threads, go, spoiled;
static pthread_t worker;
static unsigned char *merged, *unmerged;
static sigjmp_buf fault;

static void see(struct look *l) {
    memset(l, 0, sizeof *l);
    prctl(PR_GET_TSC, &l->tsc);
    l->mce = prctl(PR_MCE_KILL_GET, 0, 0, 0, 0);
    l->cpuid = syscall(SYS_arch_prctl, ARCH_GET_CPUID, 0);
    for (int i = 0; i < 3; i++) l->speculation[i] = prctl(PR_GET_SPECULATION_CTRL, i, 0, 0, 0);
}
static void same(const struct look *was, const char *who) {
    struct look now;
    see(&now);
    CHECK_EQ(was->tsc, now.tsc, "PR_GET_TSC of the %s", who);
    CHECK_EQ(was->mce, now.mce, "PR_MCE_KILL_GET of the %s", who);
    CHECK_EQ(was->cpuid, now.cpuid, "ARCH_GET_CPUID of the %s", who);
    for (int i = 0; i < 3; i++) CHECK_EQ(was->speculation[i], now.speculation[i], "PR_GET_SPECULATION_CTRL %d of the %s", i, who);
}
static void on_fault(int sig) { (void)sig, siglongjmp(fault, 1); }
static bool tsc_faults(void) {
    struct sigaction a = {.sa_handler = on_fault, .sa_flags = SA_NODEFER}, old;
    MUST(sigaction(SIGSEGV, &a, &old));
    bool faulted = sigsetjmp(fault, 1);
    if (!faulted) __builtin_ia32_rdtsc();
    MUST(sigaction(SIGSEGV, &old, NULL));
    return faulted;
}
// No clock of the vDSO here: it reads the time stamp counter.
static void nap(void) { syscall(SYS_nanosleep, &(struct timespec){0, 2000000}, NULL); }
static void *thread(void *arg) {
    MUST(prctl(PR_SET_TSC, PR_TSC_SIGSEGV, 0, 0, 0));
    MUST(prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0));
    syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0); // few machines can
    for (int i = 0; i < 3; i++) prctl(PR_SET_SPECULATION_CTRL, i, i == 2 ? PR_SPEC_ENABLE : PR_SPEC_DISABLE, 0, 0);
    see(&before[1]);
    ready_threads = 1;
    while (!go) nap();
    if (spoiled) prctl(PR_SET_TSC, PR_TSC_ENABLE, 0, 0, 0);
    same(&before[1], "worker");
    CHECK(tsc_faults(), "reading the time stamp counter, expected a fault, got none");
    prctl(PR_SET_TSC, PR_TSC_ENABLE, 0, 0, 0);
    return arg;
}
static void setup(void) {
    MUST(prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_LATE, 0, 0));
    merged = MUST(mmap(NULL, 4 * PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    unmerged = MUST(mmap(NULL, 4 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0); // a kernel without KSM cannot
    madvise(unmerged, 4 * PAGE, MADV_UNMERGEABLE);
    prctl(PR_SET_MDWE, 1, 0, 0, 0); // before 6.3: not there
    MUST0(pthread_create(&worker, NULL, thread, NULL));
    while (!ready_threads) sleep_ms(1);
    see(&before[0]);
    mdwe = prctl(PR_GET_MDWE, 0, 0, 0, 0), merge = prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 0);
}
static void spoil(void) { spoiled = 1; }
static void prove(void) {
    char flags[128];
    CHECK_EQ(mdwe, prctl(PR_GET_MDWE, 0, 0, 0, 0), "PR_GET_MDWE");
    if (mdwe == 1) {
        void *p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK_ERRNO(EACCES, mprotect(p, PAGE, PROT_READ | PROT_EXEC), "making memory executable");
    }
    CHECK_EQ(merge, prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 0), "PR_GET_MEMORY_MERGE");
    if (merge == 1) {
        mapping(merged, "VmFlags", flags, sizeof flags);
        CHECK(strstr(flags, " mg"), "flags of a mapping that is merged, expected mg, got %s", flags);
        mapping(unmerged, "VmFlags", flags, sizeof flags);
        CHECK(!strstr(flags, " mg"), "flags of a mapping that is not merged, expected no mg, got %s", flags);
    }
    same(&before[0], "main thread");
    CHECK(!tsc_faults(), "reading the time stamp counter, expected no fault, got one");
    go = 1;
    MUST0(pthread_join(worker, NULL));
}
