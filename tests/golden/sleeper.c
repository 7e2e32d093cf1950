// The program in the golden images: freestanding (no libc, no vDSO, no file of the machine's), so that an image of it can be restored
// wherever it runs (with LAUNCHED: with no file but the loader that is kept beside it). It waits in its working
// directory until a file `gate` is there, then proves its state and
// writes the file `result`: "OK" or what is wrong. make.sh builds it and makes the images.
typedef unsigned long u64;
typedef unsigned int u32;

enum { READ, WRITE, OPEN, CLOSE, MMAP = 9, MUNMAP = 11, RT_SIGACTION = 13, RT_SIGPROCMASK, ACCESS = 21, PIPE = 22, NANOSLEEP = 35, CLONE = 56, EXIT = 60, FUTEX = 202,
       LSEEK = 8, GETTID = 186, EXIT_GROUP = 231, TIMERFD_CREATE = 283, EVENTFD2 = 290 };

long call(long n, long a, long b, long c, long d, long e, long f);
// What any C library has too, and an attach makes its way in of: `syscall; ret`, and a signal handler's return.
__asm__("call:\n\tmov %rdi, %rax\n\tmov %rsi, %rdi\n\tmov %rdx, %rsi\n\tmov %rcx, %rdx\n\tmov %r8, %r10\n\tmov %r9, %r8\n\tmov 8(%rsp), %r9\n\tsyscall\n\tret\n"
        "restorer:\n\tmov $15, %rax\n\tsyscall\n");
#define CALL(n, a, b, c) call(n, (long)(a), (long)(b), (long)(c), 0, 0, 0)

static u64 in_data = 0x0123456789abcdef; // changed below: a private page of the executable
static u64 in_bss[1024];
static volatile u32 go, told;            // futexes of the second thread
static volatile u32 woken_tid;
static u64 *memory;
static int ends[2], event, data;
static u32 tid;

static u64 hash(const u64 *p, u64 n) { // FNV-1a over words
    u64 h = 0xcbf29ce484222325;
    for (u64 i = 0; i < n; i++) h = (h ^ p[i]) * 0x100000001b3;
    return h;
}
static void say(const char *name, const char *text) {
    long n = 0;
    while (text[n]) n++;
    int fd = (int)CALL(OPEN, name, 01 | 0100 | 01000 | 02000000, 0644);
    CALL(WRITE, fd, text, n);
    CALL(CLOSE, fd, 0, 0);
}
static void done(const char *wrong) {
    say("result", wrong ? wrong : "OK\n");
    CALL(EXIT_GROUP, wrong != 0, 0, 0);
}
#define CHECK(condition) do { if (!(condition)) done("FAIL: " #condition "\n"); } while (0)

static void second(void) { // blocked in a futex over the checkpoint
    while (!go) call(FUTEX, (long)&go, 0 | 128, 0, 0, 0, 0);
    woken_tid = (u32)CALL(GETTID, 0, 0, 0);
    told = 1;
    call(FUTEX, (long)&told, 1 | 128, 1, 0, 0, 0);
    for (;;) CALL(EXIT, 0, 0, 0);
}
#ifdef LAUNCHED // of a library's making: its agent has to know it
#include <pthread.h>
static void *begin(void *p) {
    tid = (u32)CALL(GETTID, 0, 0, 0);
    told = 1;
    call(FUTEX, (long)&told, 1 | 128, 1, 0, 0, 0);
    second();
    return p;
}
static void start_second(void) {
    pthread_t thread;
    if (pthread_create(&thread, 0, begin, 0) != 0) done("FAIL: pthread_create\n");
    while (!told) call(FUTEX, (long)&told, 0 | 128, 0, 0, 0, 0);
    told = 0;
}
#else
static char stack[16384] __attribute__((aligned(16)));
static void start_second(void) {
    long flags = 0x100 | 0x200 | 0x400 | 0x800 | 0x10000 | 0x40000 | 0x100000 /* VM FS FILES SIGHAND THREAD SYSVSEM PARENT_SETTID */;
    void **top = (void **)(stack + sizeof stack - 16);
    top[0] = (void *)second;
    long n = CLONE;
    register long r10 __asm__("r10") = 0, r8 __asm__("r8") = 0;
    __asm__ volatile("syscall\n\ttest %%rax, %%rax\n\tjnz 1f\n\txor %%ebp, %%ebp\n\tret\n1:" : "+a"(n) : "D"(flags), "S"(top), "d"(&tid), "r"(r10), "r"(r8) : "rcx", "r11", "memory");
}
#endif
static void setup(void) {
    in_data ^= ~0UL;
    for (u64 i = 0; i < 1024; i++) in_bss[i] = i * i;
    memory = (u64 *)call(MMAP, 0x300000000000, 1 << 16, 3, 0x22 | 0x100000, -1, 0); // at this address
    for (u64 i = 0, x = 88172645463325252; i < 8192; i++) x ^= x << 13, x ^= x >> 7, x ^= x << 17, memory[i] = x;
    CALL(PIPE, ends, 0, 0);
    CALL(WRITE, ends[1], "eleven bytes", 12);
    char one;
    CALL(READ, ends[0], &one, 1); // the rest stays in it
    event = (int)CALL(EVENTFD2, 4711, 0, 0);
    data = (int)CALL(OPEN, "data", 02000000, 0);
    CALL(LSEEK, data, 7, 0);
    u64 ignore[4] = {1}, mask = 1UL << (12 - 1);
    call(RT_SIGACTION, 10, (long)ignore, 0, 8, 0, 0);  // SIGUSR1 ignored
    call(RT_SIGPROCMASK, 2, (long)&mask, 0, 8, 0, 0);  // SIGUSR2 blocked
    start_second();
}
static void prove(void) {
    char bytes[16];
    u64 count, mask, old[4];
    CHECK(in_data == (0x0123456789abcdef ^ ~0UL));
    for (u64 i = 0; i < 1024; i++) CHECK(in_bss[i] == i * i);
    CHECK(memory == (u64 *)0x300000000000 && hash(memory, 8192) == HASH);
    CHECK(CALL(READ, ends[0], bytes, 16) == 11 && bytes[0] == 'l' && bytes[10] == 's');
    CHECK(CALL(READ, event, &count, 8) == 8 && count == 4711);
    CHECK(CALL(LSEEK, data, 0, 1) == 7);
    CHECK(CALL(READ, data, bytes, 16) == 9 && bytes[0] == '7' && bytes[8] == '\n');
    CHECK(call(RT_SIGACTION, 10, 0, (long)old, 8, 0, 0) == 0 && old[0] == 1);
    CHECK(call(RT_SIGPROCMASK, 0, 0, (long)&mask, 8, 0, 0) == 0 && mask == 1UL << (12 - 1));
    go = 1;
    CHECK(call(FUTEX, (long)&go, 1 | 128, 1, 0, 0, 0) == 1); // it waits there
    while (!told) call(FUTEX, (long)&told, 0 | 128, 0, 0, 0, 0);
    CHECK(woken_tid == tid);
    done(0);
}
__attribute__((used)) static void body(void) {
    setup();
    if (HASH == 0) { // `make.sh` asks for it
        char text[20];
        u64 h = hash(memory, 8192);
        for (int i = 0; i < 16; i++) text[i] = "0123456789abcdef"[h >> (60 - 4 * i) & 15];
        text[16] = '\n', text[17] = 0;
        say("hash", text);
        CALL(EXIT_GROUP, 0, 0, 0);
    }
    say("ready", "ready\n");
    u64 tenth[2] = {0, 10000000};
    while (CALL(ACCESS, "gate", 0, 0) != 0) CALL(NANOSLEEP, tenth, 0, 0);
    prove();
}
#ifdef LAUNCHED // by a loader, which brings the agent in
int main(void) { body(); }
#else
__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tand $-16, %rsp\n\tcall body\n");
#endif
