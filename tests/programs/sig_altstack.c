#include "common.h"

static const char *about = "alternate signal stacks of two threads, one of which is inside a handler on it, with its mask and context, at the checkpoint";

static char memory[2][65536];
static volatile int inside, go, finished, mask_in_handler, runs;
static volatile uintptr_t ran_at;
static pthread_t worker;
static stack_t before;

static bool on(uintptr_t p, int which) { return p >= (uintptr_t)memory[which] && p < (uintptr_t)memory[which] + sizeof memory[which]; }
static bool blocked(int n) {
    sigset_t now;
    pthread_sigmask(SIG_BLOCK, NULL, &now);
    return sigismember(&now, n) == 1;
}
static void lingers(int n, siginfo_t *i, void *context) { // inside it over the checkpoint
    (void)n, (void)i, (void)context;
    char here[64];
    uint64_t pattern[64];
    fill(pattern, sizeof pattern, 5);
    inside = 1;
    while (!go) sleep_ms(2);
    stack_t now;
    sigaltstack(NULL, &now);
    CHECK(on((uintptr_t)here, 1), "the lingering handler on the alternate stack");
    CHECK_EQ(SS_ONSTACK, now.ss_flags, "flags inside the handler");
    CHECK_HEX(memory[1], now.ss_sp, "alternate stack inside the handler");
    CHECK(blocked(SIGUSR1) && blocked(SIGUSR2), "signals blocked inside the handler");
    uint64_t want[64];
    fill(want, sizeof want, 5);
    CHECK_MEM(want, pattern, sizeof want, "the handler's own variables");
    got_signal();
}
static void quick(int n) {
    char here;
    (void)n, ran_at = (uintptr_t)&here, runs++, got_signal();
}
static void *thread(void *arg) {
    MUST(sigaltstack(&(stack_t){.ss_sp = memory[1], .ss_size = sizeof memory[1]}, NULL));
    double d = 1.5 + (double)(long)arg; // must survive the handler
    pthread_kill(pthread_self(), SIGUSR1);
    CHECK(d * 2 == 3.0, "a number after the handler");
    CHECK(!blocked(SIGUSR1) && !blocked(SIGUSR2), "signals unblocked after the handler");
    stack_t now;
    sigaltstack(NULL, &now);
    CHECK_EQ(0, now.ss_flags, "flags after the handler");
    finished = 1;
    return arg;
}
static void setup(void) {
    struct sigaction a = {.sa_sigaction = lingers, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigaddset(&a.sa_mask, SIGUSR2);
    MUST(sigaction(SIGUSR1, &a, NULL));
    MUST(sigaction(SIGHUP, &(struct sigaction){.sa_handler = quick, .sa_flags = SA_ONSTACK}, NULL));
    MUST(sigaltstack(&(stack_t){.ss_sp = memory[0] + 64, .ss_size = 40000}, NULL));
    sigaltstack(NULL, &before);
    MUST0(pthread_create(&worker, NULL, thread, NULL));
    while (!inside) sleep_ms(1);
}
static void spoil(void) { MUST(sigaltstack(&(stack_t){.ss_sp = memory[0] + 64, .ss_size = 30000}, NULL)); }
static void prove(void) {
    stack_t now;
    sigaltstack(NULL, &now);
    CHECK_HEX(before.ss_sp, now.ss_sp, "alternate stack of the main thread");
    CHECK_EQ(before.ss_size, now.ss_size, "its size");
    CHECK_EQ(before.ss_flags, now.ss_flags, "its flags");
    raise(SIGHUP);
    CHECK_EQ(1, runs, "the quick handler ran");
    CHECK(on(ran_at, 0), "the quick handler on the alternate stack");
    CHECK_EQ(0, finished, "the lingering handler still inside");
    go = 1;
    MUST0(pthread_join(worker, NULL));
    CHECK_EQ(1, finished, "the lingering handler returned");
}
