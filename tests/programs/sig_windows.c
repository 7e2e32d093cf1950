// One thread that blocks all signals, the agent's too, for a moment and again: nobody else could be called first, and it has to be waited for.
#include "common.h"
#include <sys/auxv.h>
#include <sys/prctl.h>

static const char *about = "all signals blocked for moments, by raw calls as libc does it, or by a handler on a small alternate stack";
static const char *usage = "  --handler  by the mask of a handler, which leaves hardly any of its alternate stack free\n"
                           "  --zero     dumpable 0\n"
                           "  --brief    and beside it threads that end as soon as they have begun, one after the other\n";
#ifndef AT_MINSIGSTKSZ
#define AT_MINSIGSTKSZ 51
#endif
static bool by_handler, zero, brief;
static int over;
static long rounds, made;
static pthread_t makes;
static char *low; // of the alternate stack; a guard is below

static int own_option(const char *name, const char *v) {
    (void)v;
    return !strcmp(name, "--handler") ? by_handler = true : !strcmp(name, "--zero") ? zero = true : !strcmp(name, "--brief") ? brief = true : 0;
}
static int (*option)(const char *, const char *) = own_option;

static void spin_ms(int64_t ms) {
    for (int64_t end = mono_ns() + ms * MS; mono_ns() < end;) continue;
}
static void handler(int sig) {
    (void)sig;
    // what is left down to the guard is less than a frame of the kernel's
    char here;
    size_t n = &here - low - 1536;
    volatile char *block = __builtin_alloca(n);
    for (size_t i = 0; i < n; i++) block[i] = 7;
    got_signal();
    spin_ms(4);
    for (size_t i = 0; i < n; i++) CHECK_EQ(7, block[i], "byte %zu of %zu of the handler's stack", i, n);
}
static void own_tick(void) {
    rounds++;
    if (by_handler) {
        raise(SIGUSR1);
        return;
    }
    uint64_t all = ~0ull, none = 0, old = 0;
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, &old, 8);
    spin_ms(4);
    CHECK_EQ(0, old, "the mask before");
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &none, NULL, 8);
}
static void (*tick)(void) = own_tick;

static void *nothing(void *p) { return p; }
static void *maker(void *p) {
    pthread_t t;
    for (; !__atomic_load_n(&over, __ATOMIC_SEQ_CST); made++) {
        MUST0(pthread_create(&t, NULL, nothing, NULL));
        MUST0(pthread_join(t, NULL));
    }
    return p;
}

static void setup(void) {
    if (zero) MUST(prctl(PR_SET_DUMPABLE, 0));
    size_t frame = getauxval(AT_MINSIGSTKSZ), size = ((frame ? frame : 2048) + 2 * PAGE) & ~(PAGE - 1);
    char *all = MUST(mmap(NULL, PAGE + size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    low = all + PAGE;
    MUST(mprotect(low, size, PROT_READ | PROT_WRITE));
    MUST(sigaltstack(&(stack_t){.ss_sp = low, .ss_size = size}, NULL));
    struct sigaction a = {.sa_handler = handler, .sa_flags = SA_ONSTACK};
    sigfillset(&a.sa_mask);
    MUST(sigaction(SIGUSR1, &a, NULL));
    if (brief) MUST0(pthread_create(&makes, NULL, maker, NULL));
}
static void spoil(void) { syscall(SYS_rt_sigprocmask, SIG_SETMASK, &(uint64_t){1 << 9}, NULL, 8); }
static void prove(void) {
    uint64_t mask = 0;
    __atomic_store_n(&over, 1, __ATOMIC_SEQ_CST);
    if (brief) {
        MUST0(pthread_join(makes, NULL));
        CHECK_RANGE(1, LONG_MAX, made, "threads");
    }
    MUST(syscall(SYS_rt_sigprocmask, SIG_SETMASK, NULL, &mask, 8));
    CHECK_HEX(0, mask, "the mask");
    CHECK_RANGE(1, LONG_MAX, rounds, "rounds");
    CHECK_EQ(by_handler ? rounds : 0, signals_got, "signals handled");
    CHECK_EQ(!zero, prctl(PR_GET_DUMPABLE), "dumpable");
    stack_t s;
    MUST(sigaltstack(NULL, &s));
    CHECK_HEX((uint64_t)low, (uint64_t)s.ss_sp, "the alternate stack");
}
