// build: static
// A thread that runs 32-bit code in a 64-bit program: to be refused by name, and unharmed.
#include "common.h"

static const char *about = "a second thread that is in a 32-bit code segment: refused by name, it runs on";
static volatile uint32_t inside, turns, leave, left;

// Not position independent: the program is static and lies below 4 GiB, so that 32-bit code reaches all of it.
// The stack is not used in there, and what comes back restores it.
void code32(void);
asm(".text\n"
    "code32:\n"
    "    push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
    "    mov %rsp, stack32\n"
    "    mov $0x2b, %eax; mov %eax, %ds\n" // __USER_DS: 32-bit code needs one
    "    ljmp *door32\n"
    ".code32\n"
    "in32:\n"
    "    movl $1, inside\n"
    "1:  incl turns\n"
    "    pause\n"
    "    cmpl $0, leave\n"
    "    je 1b\n"
    "    ljmp $0x33, $out32\n"
    ".code64\n"
    "out32:\n"
    "    xor %eax, %eax; mov %eax, %ds\n"
    "    mov stack32, %rsp\n"
    "    pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n"
    "    ret\n"
    ".data\n"
    ".balign 8\n"
    "stack32: .quad 0\n"
    "door32: .long in32; .word 0x23\n" // __USER32_CS of arch/x86/include/asm/segment.h
    ".text\n");

static void *thread(void *arg) {
    code32();
    left = 1;
    return arg;
}
static pthread_t other;
static void setup(void) {
    MUST0(pthread_create(&other, NULL, thread, NULL));
    while (!inside) sleep_ms(1);
}
static void spoil(void) {
    leave = 1;
    while (!left) sleep_ms(1);
}
static void prove(void) {
    uint32_t before = turns;
    for (int i = 0; i < 1000 && turns == before; i++) sleep_ms(1);
    CHECK(turns != before, "the thread goes round in its 32-bit code");
    CHECK_EQ(0, left, "it has left it");
    leave = 1;
    MUST0(pthread_join(other, NULL));
    CHECK_EQ(1, left, "it has come back from it");
}
