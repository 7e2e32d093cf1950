#include "common.h"

static const char *about = "a main thread that stands on no stack: rsp is a number to it (assembly that needs all registers)";

static volatile int go;
static pthread_t thread;
static uint64_t expected = 0x1234567890abcdef;
static void (*rest)(void);
static uint64_t registers[4]; // rsp, rbx, r12, r13 at the end
static void *work_on(void *unused) {
    rest();
    go = 1;
    return unused;
}
// Waits with rsp and others used for numbers until it may go on.
static __attribute__((noinline)) void spin(void) {
    __asm__ volatile("push %%rbp\n push %%rbx\n push %%r12\n push %%r13\n push %%r15\n"
                     "mov %%rsp, %%r15\n"
                     "mov $0x1234567890abcdef, %%rsp\n mov $0x1111111122222222, %%rbx\n"
                     "mov $0x3333333344444444, %%r12\n mov $0x5555555566666666, %%r13\n"
                     "1: pause\n cmpl $0, %0\n je 1b\n"
                     "mov %%rsp, %1\n mov %%rbx, 8+%1\n mov %%r12, 16+%1\n mov %%r13, 24+%1\n"
                     "mov %%r15, %%rsp\n"
                     "pop %%r15\n pop %%r13\n pop %%r12\n pop %%rbx\n pop %%rbp\n"
                     : "+m"(go), "=m"(registers)
                     :
                     : "memory", "cc");
}
static void without(void (*body)(void)) {
    rest = body;
    MUST0(pthread_create(&thread, NULL, work_on, NULL));
    spin();
    pthread_join(thread, NULL);
    CHECK_EQ(expected, registers[0], "rsp");
    CHECK_EQ(0x1111111122222222LL, registers[1], "rbx");
    CHECK_EQ(0x3333333344444444LL, registers[2], "r12");
    CHECK_EQ(0x5555555566666666LL, registers[3], "r13");
}
static void (*around)(void (*)(void)) = without;

static void setup(void) {}
static void spoil(void) { expected ^= 1; }
static void prove(void) {}
