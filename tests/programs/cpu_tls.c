#include "common.h"
#include <asm/prctl.h>

static const char *about = "thread-local storage: __thread values, fs base and gs base of four threads";

static __thread uint64_t value = 7, block[100];
static __thread int zero;
struct look {
    unsigned long fs, gs, number;
    uint64_t cell[2]; // what gs points to
};
static struct look looks[4];
static volatile int ready_threads, go;
static void bases(unsigned long *fs, unsigned long *gs) { syscall(SYS_arch_prctl, ARCH_GET_FS, fs), syscall(SYS_arch_prctl, ARCH_GET_GS, gs); }
static void begin(struct look *l) {
    l->number = (unsigned long)(l - looks);
    l->cell[1] = 0x6500 + l->number;
    value = 1000 + l->number;
    fill(block, sizeof block, l->number);
    if (l->number < 3) MUST(syscall(SYS_arch_prctl, ARCH_SET_GS, l->cell)); // the last keeps gs base 0
    bases(&l->fs, &l->gs);
}
static void end(struct look *l) {
    unsigned long fs, gs, n = l->number, by_gs;
    uint64_t want[100];
    bases(&fs, &gs);
    CHECK_HEX(l->fs, fs, "fs base of thread %lu", n);
    CHECK_HEX(l->gs, gs, "gs base of thread %lu", n);
    CHECK_HEX(pthread_self(), fs, "fs base of thread %lu against pthread_self", n);
    CHECK_EQ(1000 + n, value, "value of thread %lu", n);
    CHECK_EQ(0, zero, "zero value of thread %lu", n);
    fill(want, sizeof want, n);
    CHECK_MEM(want, block, sizeof block, "block of thread %lu", n);
    if (n < 3 && gs == l->gs) {
        __asm__ volatile("mov %%gs:8, %0" : "=r"(by_gs));
        CHECK_HEX(0x6500 + n, by_gs, "word at gs:8 of thread %lu", n);
    }
}
static void *thread(void *arg) {
    begin(arg);
    __atomic_fetch_add(&ready_threads, 1, __ATOMIC_SEQ_CST);
    while (!go) sleep_ms(2);
    end(arg);
    return NULL;
}
static pthread_t handles[4];
static void setup(void) {
    begin(&looks[0]);
    for (int i = 1; i < 4; i++) MUST0(pthread_create(&handles[i], NULL, thread, &looks[i]));
    while (ready_threads < 3) sleep_ms(1);
}
static void spoil(void) { MUST(syscall(SYS_arch_prctl, ARCH_SET_GS, looks[1].cell)); }
static void prove(void) {
    go = 1;
    end(&looks[0]);
    for (int i = 1; i < 4; i++) MUST0(pthread_join(handles[i], NULL));
}
