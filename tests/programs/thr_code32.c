// build: static
// A thread that runs 32-bit code in a 64-bit program: to be refused by name, and unharmed.
#include "common.h"

static const char *about = "a second thread that is in a 32-bit code segment: refused by name, it runs on";
static const char *usage = "  --pause          in there it waits in pause(), by int 0x80, until SIGUSR1";
static volatile uint32_t inside, turns, leave, left, waits, paused;
static int own_option(const char *name, const char *value) {
    (void)value;
    return !strcmp(name, "--pause") ? waits = 1, 1 : 0;
}
static int (*option)(const char *, const char *) = own_option;

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
    "    cmpl $0, waits\n"
    "    je 1f\n"
    "    mov $29, %eax\n" // pause(2) of i386
    "    int $0x80\n"
    "    mov %eax, paused\n"
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

static volatile pid_t tid;
static void handler(int s) { (void)s; }
static void *thread(void *arg) {
    static char stack[64 << 10]; // for a handler: what is left of the stack pointer in there has 32 bits
    MUST(sigaltstack(&(stack_t){.ss_sp = stack, .ss_size = sizeof stack}, NULL));
    tid = tid_now();
    code32();
    left = 1;
    return arg;
}
static pthread_t other;
static void setup(void) {
    MUST(sigaction(SIGUSR1, &(struct sigaction){.sa_handler = handler, .sa_flags = SA_ONSTACK}, NULL));
    MUST0(pthread_create(&other, NULL, thread, NULL));
    while (!inside) sleep_ms(1);
    if (waits) until_in_call(&tid, 29);
}
static void spoil(void) {
    leave = 1;
    if (waits) syscall(SYS_tgkill, getpid(), tid, SIGUSR1);
    while (!left) sleep_ms(1);
}
static void prove(void) {
    uint32_t before = turns;
    if (waits) {
        sleep_ms(20);
        CHECK_EQ(0, turns, "it is still in its pause()");
        CHECK_EQ(0, paused, "what that has returned");
        MUST(syscall(SYS_tgkill, getpid(), tid, SIGUSR1));
    }
    for (int i = 0; i < 1000 && turns == before; i++) sleep_ms(1);
    CHECK_EQ(waits ? (uint32_t)-EINTR : 0, paused, "what pause() returns");
    CHECK(turns != before, "the thread goes round in its 32-bit code");
    CHECK_EQ(0, left, "it has left it");
    leave = 1;
    MUST0(pthread_join(other, NULL));
    CHECK_EQ(1, left, "it has come back from it");
}
