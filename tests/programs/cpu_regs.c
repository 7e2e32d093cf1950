#include "common.h"
#include <stdatomic.h>
#include <stddef.h>

static const char *about = "registers held in a tight loop and around a sleeping call: general, x87, SSE, AVX, AVX-512, MXCSR and control word";

// In and out: 32 zmm, 8 mask registers, 8 x87 registers, 10 general ones, MXCSR, control word.
struct regs {
    unsigned char zmm[32][64], st[8][16];
    uint64_t k[8], gpr[10];
    uint32_t mxcsr;
    uint16_t fcw;
} __attribute__((aligned(64)));
_Static_assert(offsetof(struct regs, st) == 2048 && offsetof(struct regs, k) == 2176 && offsetof(struct regs, gpr) == 2240, "layout");
_Static_assert(offsetof(struct regs, mxcsr) == 2320 && offsetof(struct regs, fcw) == 2324, "layout");

// long hold_LEVEL(in, out, volatile int *stop, const struct timespec *sleep or NULL): EINTRs seen.
// *stop 1: store and return; 2: the same, but spoil some registers first.
long hold_sse(struct regs *, struct regs *, volatile int *, const struct timespec *);
long hold_avx(struct regs *, struct regs *, volatile int *, const struct timespec *);
long hold_avx512(struct regs *, struct regs *, volatile int *, const struct timespec *);
__asm__(
    ".macro HOLD name, move, reg, masks\n"
    ".globl \\name\n.type \\name, @function\n\\name:\n"
    "push %rbx\npush %rbp\npush %r12\npush %r13\npush %r14\npush %r15\nsub $56, %rsp\n"
    "mov %rdi, (%rsp)\nmov %rsi, 8(%rsp)\nmov %rdx, 16(%rsp)\nmov %rcx, 24(%rsp)\nmovq $0, 32(%rsp)\n"
    "stmxcsr 40(%rsp)\nfnstcw 44(%rsp)\nldmxcsr 2320(%rdi)\nfninit\nfldcw 2324(%rdi)\n"
    ".irp i,7,6,5,4,3,2,1,0\nfldt 2048+\\i*16(%rdi)\n.endr\n"
    ".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n\\move \\i*64(%rdi), %\\reg\\i\n.endr\n"
    ".if \\masks\n.irp i,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n\\move \\i*64(%rdi), %\\reg\\i\n.endr\n.endif\n"
    ".if \\masks\n.irp i,0,1,2,3,4,5,6,7\nkmovq 2176+\\i*8(%rdi), %k\\i\n.endr\n.endif\n"
    "mov 2240(%rdi), %rbx\nmov 2248(%rdi), %rbp\nmov 2256(%rdi), %r8\nmov 2264(%rdi), %r9\nmov 2272(%rdi), %r10\n"
    "mov 2280(%rdi), %r12\nmov 2288(%rdi), %r13\nmov 2296(%rdi), %r14\nmov 2304(%rdi), %r15\nmov 2312(%rdi), %rdx\n"
    "1: mov 16(%rsp), %rax\ncmpl $0, (%rax)\njne 3f\n"
    "mov 24(%rsp), %rdi\ntest %rdi, %rdi\njz 2f\n"
    "xor %esi, %esi\nmov $35, %eax\nsyscall\ncmp $-4, %rax\njne 1b\nincq 32(%rsp)\njmp 1b\n"
    "2: pause\njmp 1b\n"
    "3: cmpl $2, (%rax)\njne 4f\nxor %ebx, %ebx\npxor %xmm5, %xmm5\n"
    "4: mov 8(%rsp), %rdi\n"
    "mov %rbx, 2240(%rdi)\nmov %rbp, 2248(%rdi)\nmov %r8, 2256(%rdi)\nmov %r9, 2264(%rdi)\nmov %r10, 2272(%rdi)\n"
    "mov %r12, 2280(%rdi)\nmov %r13, 2288(%rdi)\nmov %r14, 2296(%rdi)\nmov %r15, 2304(%rdi)\nmov %rdx, 2312(%rdi)\n"
    ".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n\\move %\\reg\\i, \\i*64(%rdi)\n.endr\n"
    ".if \\masks\n.irp i,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n\\move %\\reg\\i, \\i*64(%rdi)\n.endr\n.endif\n"
    ".if \\masks\n.irp i,0,1,2,3,4,5,6,7\nkmovq %k\\i, 2176+\\i*8(%rdi)\n.endr\n.endif\n"
    "stmxcsr 2320(%rdi)\nfnstcw 2324(%rdi)\n"
    ".irp i,0,1,2,3,4,5,6,7\nfstpt 2048+\\i*16(%rdi)\n.endr\n"
    "fninit\nfldcw 44(%rsp)\nldmxcsr 40(%rsp)\nmov 32(%rsp), %rax\n"
    "add $56, %rsp\npop %r15\npop %r14\npop %r13\npop %r12\npop %rbp\npop %rbx\nret\n"
    ".endm\n"
    "HOLD hold_sse movdqu xmm 0\n"
    "HOLD hold_avx vmovdqu ymm 0\n"
    "HOLD hold_avx512 vmovdqu64 zmm 1\n");

static const struct {
    const char *name;
    long (*hold)(struct regs *, struct regs *, volatile int *, const struct timespec *);
    size_t width;
    int vectors;
} levels[] = {{"SSE", hold_sse, 16, 16}, {"AVX", hold_avx, 32, 16}, {"AVX-512", hold_avx512, 64, 32}};
static struct holder {
    struct regs in, out;
    int level;
    bool sleeps;
    long interrupted;
} holders[6];
static volatile int stop;
static pthread_t handles[6];
static int threads;

static atomic_int begun;
static void *thread(void *arg) {
    begun++;
    static const struct timespec nap = {0, 3000000};
    struct holder *h = arg;
    h->interrupted = levels[h->level].hold(&h->in, &h->out, &stop, h->sleeps ? &nap : NULL);
    return NULL;
}
static void setup(void) {
    int best = __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512f") ? 2 : __builtin_cpu_supports("avx") ? 1 : 0;
    for (int level = 0; level <= best; level++) {
        for (int sleeps = 0; sleeps < 2; sleeps++) {
            struct holder *h = &holders[threads];
            fill(&h->in, sizeof h->in, (uint64_t)threads + 1);
            for (int i = 0; i < 8; i++) { // x87: proper numbers
                long double v = (i + 1) * 3.25L + threads;
                memset(h->in.st[i], 0, 16), memcpy(h->in.st[i], &v, 10);
            }
            h->in.mxcsr = 0x1f80 | (uint32_t)(threads % 4) << 13; // each rounding mode
            h->in.fcw = (uint16_t)(0x037f | (threads % 4) << 10);
            h->level = level, h->sleeps = sleeps;
            MUST0(pthread_create(&handles[threads++], NULL, thread, h));
        }
    }
    while (begun < threads) sched_yield();
}
static void spoil(void) { stop = 2; }
static void prove(void) {
    if (!stop) stop = 1;
    for (int t = 0; t < threads; t++) {
        MUST0(pthread_join(handles[t], NULL));
        struct holder *h = &holders[t];
        const char *name = levels[h->level].name, *how = h->sleeps ? "sleeping" : "spinning";
        for (int i = 0; i < levels[h->level].vectors; i++)
            CHECK_MEM(h->in.zmm[i], h->out.zmm[i], levels[h->level].width, "%s register %d, %s", name, i, how);
        for (int i = 0; i < 8; i++) {
            CHECK_MEM(h->in.st[i], h->out.st[i], 10, "x87 register %d, %s %s", i, name, how);
            if (h->level == 2) CHECK_HEX(h->in.k[i], h->out.k[i], "mask register %d, %s", i, how);
        }
        for (int i = 0; i < 10; i++) CHECK_HEX(h->in.gpr[i], h->out.gpr[i], "general register %d, %s %s", i, name, how);
        CHECK_HEX(h->in.mxcsr, h->out.mxcsr, "MXCSR, %s %s", name, how);
        CHECK_HEX(h->in.fcw, h->out.fcw, "x87 control word, %s %s", name, how);
        CHECK_EQ(0, h->interrupted, "EINTR of nanosleep, %s", name);
    }
}
