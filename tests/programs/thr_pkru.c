#include "common.h"

static const char *about = "a thread that may not write to memory without a protection key, asleep: its stack and what it reads into have one";

#define STACK (1UL << 20)
static unsigned char *stack, *room;
static int wake[2], key;
static volatile unsigned found;
static volatile long got;
static volatile pid_t tid;
static pthread_t thread;

static void wrpkru(unsigned value) { __asm__ volatile("wrpkru" ::"a"(value), "c"(0), "d"(0) : "memory"); }
static void *waits(void *arg) {
    (void)arg;
    wrpkru(0);
    tid = tid_now();
    long n = SYS_read;
    unsigned pkru;
    // key 0 may be read only, while it is in read(2); nothing else is written meanwhile
    __asm__ volatile("mov %[sys], %%r8\n1:\n"
                     "xor %%ecx, %%ecx\nxor %%edx, %%edx\nmov $0x55555556, %%eax\nand %[mask], %%eax\nwrpkru\n"
                     "mov %%r8, %%rax\nmov $1, %%edx\nsyscall\ncmp $-4, %%rax\nje 1b\n"
                     "mov %%rax, %%r9\nxor %%ecx, %%ecx\nrdpkru\nmov %%eax, %%r8d\nxor %%eax, %%eax\nxor %%edx, %%edx\nwrpkru\n"
                     "mov %%r9, %[n]\nmov %%r8d, %[pkru]\n"
                     : [n] "=&r"(n), [pkru] "=&r"(pkru)
                     : [sys] "i"(SYS_read), [mask] "r"(~(3u << (2 * key))), "D"((long)wake[0]), "S"(room)
                     : "rax", "rcx", "rdx", "r8", "r9", "r11", "memory");
    got = n, found = pkru;
    return NULL;
}
static void setup(void) {
    key = pkey_alloc(0, 0);
    if (key < 0) skip("no protection keys here: %s", strerror(errno));
    MUST(pipe(wake));
    stack = MUST(mmap(NULL, STACK + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    MUST(pkey_mprotect(stack, STACK + PAGE, PROT_READ | PROT_WRITE, key));
    room = stack + STACK;
    pthread_attr_t a;
    MUST0(pthread_attr_init(&a));
    MUST0(pthread_attr_setstack(&a, stack, STACK));
    MUST0(pthread_create(&thread, &a, waits, NULL));
    until_in_call(&tid, SYS_read);
}
static void spoil(void) { key++; }
static void prove(void) {
    MUST(write(wake[1], "x", 1));
    MUST0(pthread_join(thread, NULL));
    CHECK_EQ(1, got, "what the thread has read");
    CHECK_EQ('x', *room, "what it has read into");
    CHECK_HEX(0x55555556 & ~(3u << (2 * key)), found, "its PKRU");
}
