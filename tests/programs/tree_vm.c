// Processes that have one memory and are no threads (clone(2), CLONE_VM):
//
//     P --- A --- C      C shares directory, descriptors and signal handlers with A, too, and sends nothing when it ends
//     |      \--- D      D has a copy of the memory (fork)
//     |      |\-- T      a thread of A
//     |       \-- Z      Z has ended, which A has been told nothing of, and has yet to wait for
//      \--- B            B shares signal handlers with P
//       \-- X --- E      X has ended, and P has adopted E
#include "common.h"
#include <linux/futex.h>
#include <linux/kcmp.h>
#include <sys/prctl.h>
#include <sys/wait.h>

static const char *about = "processes that have one memory and are no threads, some with one set of signal handlers";
static const char *usage = "  --orphan   nobody of these has adopted E";
static bool orphan;
static int own_option(const char *given, const char *value) { return (void)value, orphan = !strcmp(given, "--orphan"); }
static int (*option)(const char *, const char *) = own_option;

enum { P, A, B, C, D, E, X, T, Z, MANY };
static const char name[] = "PABCDEXTZ";
#define STACK (64UL << 10)
#define FRESH 0x222200000000UL // where C maps memory
struct box { // of each, shared with all
    int turn, op; // an order is there when `turn` is odd; 0: P has ended
    long a, b, value;
    pid_t pid;
    int usr1, usr2, chld; // signals that came to it: told by the number that the kernel gives
};
static struct box *box;
static long word = 41;      // of the one memory, and D's copy
static char *heap, *region; // likewise
static uint64_t *own[MANY]; // each writes into its own
static uint64_t sum;

// No call of these goes through a C library: their TLS is P's.
static long call(long nr, long a, long b, long c, long d, long e, long f) {
    register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
    long r;
    __asm__ volatile("syscall" : "=a"(r) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
    return r;
}
#define RAW(nr, ...) call_(nr, ##__VA_ARGS__, 0, 0, 0, 0, 0, 0)
#define call_(nr, a, b, c, d, e, f, ...) call(nr, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

static struct box *mine(void) {
    pid_t pid = (pid_t)RAW(SYS_getpid);
    for (int i = P; i < MANY; i++)
        if (box[i].pid == pid) return &box[i];
    return &box[X];
}
static void on_usr1(int s) { (void)s, __atomic_fetch_add(&mine()->usr1, 1, __ATOMIC_SEQ_CST), got_signal(); }
static void on_usr2(int s) { (void)s, __atomic_fetch_add(&mine()->usr2, 1, __ATOMIC_SEQ_CST), got_signal(); }
static void on_chld(int s) { (void)s, __atomic_fetch_add(&mine()->chld, 1, __ATOMIC_SEQ_CST), got_signal(); }

// struct kernel_sigaction
struct action { void (*handler)(int); unsigned long flags; void *restorer; unsigned long mask; };
static void *restorer(void) {
    struct action a;
    return RAW(SYS_rt_sigaction, SIGCHLD, 0, &a, 8) ? NULL : a.restorer;
}
static long handles(int signal, void (*handler)(int)) {
    struct action a = {handler, 0x04000000, restorer(), 0};
    return RAW(SYS_rt_sigaction, signal, &a, 0, 8);
}
static long handler_of(int signal) {
    struct action a = {0};
    return RAW(SYS_rt_sigaction, signal, 0, &a, 8) ? -1 : (long)a.handler;
}

static long made(int i, long flags, int (*of)(void *));
static int serves(void *of);
static int ends_at_once(void *of) { return (int)RAW(SYS_exit_group, 4, of); }
static void obey(struct box *b) {
    long pid;
    int status = -1;
    switch (b->op) {
    case 'p': b->value = RAW(SYS_getpid); break;
    case 'P': b->value = RAW(SYS_getppid); break;
    case 'r': b->value = *(volatile long *)b->a; break;
    case 'w': *(volatile long *)b->a = b->b, b->value = 0; break;
    case 'm': b->value = RAW(SYS_mmap, b->a, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0); break;
    case 'u': b->value = RAW(SYS_munmap, b->a, 2 * PAGE); break;
    case 'h': b->value = handler_of((int)b->a); break;
    case 'H': b->value = handles((int)b->a, (void (*)(int))b->b); break;
    case 'k': pid = RAW(SYS_getpid), b->value = RAW(SYS_kill, pid, b->a); break;
    case 'c': b->value = RAW(SYS_chdir, b->a); break;
    case 'g': b->value = RAW(SYS_getcwd, b->a, PATH_MAX) > 0 ? 0 : -1; break;
    case 'o': b->value = RAW(SYS_open, b->a, O_RDONLY); break;
    case 'x': b->value = RAW(SYS_close, b->a); break;
    case 'e': RAW(SYS_exit_group, b->a); break;
    case 'q': b->value = RAW(SYS_wait4, b->a, &status, b->b), b->a = status; break;
    case 'b': b->value = made((int)b->a, b->b, b->a == Z ? ends_at_once : serves); break;
    case 'n': b->value = RAW(SYS_waitid, P_PID, b->a, 0, WEXITED | WNOWAIT | __WALL); break;
    }
}
// Orders, until P has ended.
static int serves(void *of) {
    int i = (int)(long)of;
    struct box *b = &box[i];
    if (i != E) RAW(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL);
    if (i != T) b->pid = (pid_t)RAW(SYS_getpid);
    if (i == X) {
        long r = made(E, CLONE_VM | SIGCHLD, serves);
        RAW(SYS_exit_group, r < 0);
    }
    for (int turn = 2;;) {
        int now = __atomic_load_n(&b->turn, __ATOMIC_SEQ_CST);
        if (now == turn) {
            struct timespec second = {1, 0};
            RAW(SYS_futex, &b->turn, FUTEX_WAIT, now, &second);
            if (RAW(SYS_kill, box[P].pid, 0) == -ESRCH) RAW(SYS_exit_group, 9);
            continue;
        }
        if (!now) RAW(SYS_exit_group, 9);
        obey(b);
        turn = now + 1;
        __atomic_store_n(&b->turn, turn, __ATOMIC_SEQ_CST);
        RAW(SYS_futex, &b->turn, FUTEX_WAKE, INT_MAX);
    }
    return 0;
}
// By the calling process; its PID. Each has a stack of its own, but for D.
static char *stacks;
static long made(int i, long flags, int (*of)(void *)) {
    char *top = stacks + (i + 1) * STACK;
    ((long *)top)[-1] = (long)of, ((long *)top)[-2] = i;
    long r = flags & CLONE_VM ? 0 : RAW(SYS_clone, flags);
    if (flags & CLONE_VM)
        __asm__ volatile("syscall\n\ttest %%rax, %%rax\n\tjnz 1f\n\txor %%ebp, %%ebp\n\tpop %%rdi\n\tpop %%rax\n\tcall *%%rax\n\tud2\n1:"
                         : "=a"(r) : "a"((long)SYS_clone), "D"(flags), "S"(top - 16), "d"(0L) : "rcx", "r11", "r10", "r8", "memory");
    else if (!r) of((void *)(long)i);
    return r;
}

static long ask(int i, int op, long a, long b) {
    struct box *o = &box[i];
    o->op = op, o->a = a, o->b = b;
    if (i == P) return obey(o), o->value;
    int turn = __atomic_add_fetch(&o->turn, 1, __ATOMIC_SEQ_CST);
    RAW(SYS_futex, &o->turn, FUTEX_WAKE, INT_MAX);
    for (int n = 0; __atomic_load_n(&o->turn, __ATOMIC_SEQ_CST) == turn; n++) {
        struct timespec second = {1, 0};
        RAW(SYS_futex, &o->turn, FUTEX_WAIT, turn, &second);
        if (n > 1000) return fail("%c answers to %c, expected an answer, got none", name[i], op), -1;
    }
    return o->value;
}
static void ready(int i) {
    while (!__atomic_load_n(&box[i].pid, __ATOMIC_SEQ_CST)) sched_yield();
}

static bool same_memory(int i) { return i != D; }
static int handlers(int i) { return i == B ? P : i == C || i == T ? A : i; }
static int table(int i) { return i == C || i == T ? A : i; }
static pid_t parent[MANY];

static void setup(void) {
    box = MUST(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    for (int i = P; i < MANY; i++) box[i].turn = 2;
    stacks = MUST(mmap(NULL, MANY * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    region = MUST(mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    heap = malloc(3 << 20);
    fill(heap, 3 << 20, 5), fill(region, 64 * PAGE, 6);
    sum = hash(heap, 3 << 20) ^ hash(region, 64 * PAGE);
    for (int i = P; i < MANY; i++) own[i] = (uint64_t *)(region + (size_t)i * PAGE);
    MUST(signal(SIGUSR1, on_usr1) == SIG_ERR ? -1 : 0);
    MUST(signal(SIGCHLD, on_chld) == SIG_ERR ? -1 : 0);
    box[P].pid = (pid_t)RAW(SYS_getpid);
    MUST(mkdir(work("a"), 0777)), MUST(mkdir(work("b"), 0777));
    MUST(made(A, CLONE_VM | SIGCHLD, serves) < 0 ? -1 : 0), ready(A);
    MUST(made(B, CLONE_VM | CLONE_SIGHAND | SIGCHLD, serves) < 0 ? -1 : 0), ready(B);
    MUST(prctl(PR_SET_CHILD_SUBREAPER, !orphan));
    pid_t x = (pid_t)made(X, CLONE_VM | SIGCHLD, serves);
    MUST(x < 0 ? -1 : 0);
    MUST(waitpid(x, NULL, 0));
    ready(E);
    MUST(prctl(PR_SET_CHILD_SUBREAPER, 0));
    MUST(ask(A, 'b', C, CLONE_VM | CLONE_SIGHAND | CLONE_FILES | CLONE_FS) < 0 ? -1 : 0), ready(C);
    MUST(ask(A, 'b', D, SIGCHLD) < 0 ? -1 : 0), ready(D);
    box[T].pid = (pid_t)ask(A, 'b', T, CLONE_VM | CLONE_SIGHAND | CLONE_FILES | CLONE_FS | CLONE_THREAD);
    MUST(box[T].pid < 0 ? -1 : 0);
    box[Z].pid = (pid_t)ask(A, 'b', Z, CLONE_VM);
    MUST(box[Z].pid < 0 || ask(A, 'n', box[Z].pid, 0) ? -1 : 0);
    // handlers of A's and C's own
    MUST(ask(C, 'H', SIGUSR1, (long)on_usr2) ? -1 : 0);
    MUST(ask(C, 'c', (long)work("a"), 0) ? -1 : 0);
    MUST(ask(E, 'c', (long)work("b"), 0) ? -1 : 0);
    MUST(ask(A, 'o', (long)work("a"), 0) < 0 ? -1 : 0);
    word = 42; // D has 41
    for (int i = A; i < MANY; i++)
        if (i <= E) parent[i] = (pid_t)ask(i, 'P', 0, 0);
    for (int i = A; i <= E; i++) MUST(ask(i, 'w', (long)own[i], 1000 + i) ? -1 : 0);
    box[P].chld = 0, box[A].chld = 0;
    RAW(SYS_set_tid_address, &box[E].turn); // the kernel's news of P's end: others have its memory
}
static void spoil(void) { ask(C, 'w', (long)&word, 43); }

static void kinds(void) {
    static const int kind[] = {KCMP_VM, KCMP_SIGHAND, KCMP_FILES, KCMP_FS};
    static const char *const words[] = {"memory", "handlers", "descriptors", "directory"};
    for (int i = P; i <= E; i++)
        for (int j = i + 1; j <= E; j++)
            for (size_t k = 0; k < COUNT(kind); k++) {
                bool same = k == 0 ? same_memory(i) && same_memory(j) : k == 1 ? handlers(i) == handlers(j) : table(i) == table(j);
                long r = RAW(SYS_kcmp, box[i].pid, box[j].pid, kind[k]);
                if (r == -EPERM || r == -ENOSYS) continue; // seen by what they do
                CHECK_EQ(same, r == 0, "%c and %c have the same %s", name[i], name[j], words[k]);
            }
}
static void memory(void) {
    CHECK_EQ(42, word, "the word");
    for (int i = A; i < Z; i++)
        if (i != X) CHECK_EQ(same_memory(i) ? word : 41, ask(i, 'r', (long)&word, 0), "the word that %c has", name[i]);
    for (int i = A; i <= E; i++) {
        CHECK_EQ(1000 + i, ask(i, 'r', (long)own[i], 0), "what %c wrote", name[i]);
        if (same_memory(i)) CHECK_EQ(1000 + i, *own[i], "what %c wrote, read by P", name[i]);
    }
    for (int i = A; i <= E; i++)
        if (same_memory(i)) *own[i] = mix(6 * 0x100000001b3ULL + (uint64_t)i * PAGE / 8);
    CHECK(sum == (hash(heap, 3 << 20) ^ hash(region, 64 * PAGE)), "heap and mapping");
    // what is changed by one is changed for all who have it
    for (int i = A; i < Z; i++) {
        if (i == X || !same_memory(i)) continue;
        ask(i, 'w', (long)&word, 100 + i);
        CHECK_EQ(100 + i, word, "the word after %c wrote it", name[i]);
        for (int j = A; j <= E; j++)
            CHECK_EQ(same_memory(j) ? 100 + i : 41, ask(j, 'r', (long)&word, 0), "the word that %c has after %c wrote it", name[j], name[i]);
    }
    CHECK_HEX(FRESH, ask(C, 'm', FRESH, 0), "C maps memory");
    CHECK_EQ(0, ask(B, 'w', FRESH + PAGE, 77), "B writes there");
    CHECK_EQ(77, ask(E, 'r', FRESH + PAGE, 0), "E reads it");
    CHECK_HEX(FRESH, ask(D, 'm', FRESH, 0), "D has nothing there");
    CHECK_EQ(0, ask(E, 'u', FRESH, 0), "E unmaps it");
    CHECK_HEX(FRESH, ask(B, 'm', FRESH, 0), "B finds nothing there");
}
static void signals(void) {
    for (int i = P; i <= E; i++) {
        long want = (long)(handlers(i) == A ? on_usr2 : on_usr1);
        CHECK_HEX(want, ask(i, 'h', SIGUSR1, 0), "the handler of SIGUSR1 of %c", name[i]);
        CHECK_EQ(0, ask(i, 'k', SIGUSR1, 0), "SIGUSR1 to %c", name[i]);
        if (i != D) { // whose count of what it has handled is its own
            CHECK_EQ(handlers(i) != A, box[i].usr1, "SIGUSR1 in %c by the one", name[i]);
            CHECK_EQ(handlers(i) == A, box[i].usr2, "SIGUSR1 in %c by the other", name[i]);
        }
    }
    CHECK_EQ(0, ask(B, 'H', SIGUSR2, (long)on_usr2), "B sets a handler");
    CHECK_EQ(0, ask(T, 'H', SIGUSR2, (long)on_usr1), "A's thread sets one");
    for (int i = P; i <= E; i++) {
        void (*want)(int) = handlers(i) == P ? on_usr2 : handlers(i) == A ? on_usr1 : SIG_DFL;
        CHECK_HEX(want, ask(i, 'h', SIGUSR2, 0), "the handler of SIGUSR2 of %c", name[i]);
    }
}
static void places(void) {
    static char at[PATH_MAX], home[PATH_MAX];
    MUST(getcwd(home, sizeof home) ? 0 : -1);
    for (int i = A; i <= E; i++) {
        if (i == D) continue; // its memory is not ours
        CHECK_EQ(0, ask(i, 'g', (long)at, 0), "the directory of %c", name[i]);
        CHECK_STR(table(i) == A ? work("a") : i == E ? work("b") : home, at, "the directory of %c", name[i]);
    }
    long a = ask(C, 'o', (long)work("b"), 0), b = ask(B, 'o', (long)work("b"), 0);
    CHECK_EQ(b + 1, a, "the descriptor that C opens, of A's table, which has one more than B's");
    CHECK_EQ(0, ask(A, 'x', a, 0), "A closes it");
    CHECK_EQ(-EBADF, ask(C, 'x', a, 0), "C has it no more");
}
static void ends(void) {
    for (int i = A; i <= E; i++) {
        CHECK_EQ(box[i].pid, ask(i, 'p', 0, 0), "the PID of %c", name[i]);
        if (i != E || !orphan) CHECK_EQ(parent[i], ask(i, 'P', 0, 0), "the parent of %c", name[i]);
    }
    pid_t c = box[C].pid, b = box[B].pid, z = box[Z].pid;
    CHECK_EQ(-ECHILD, ask(A, 'q', z, 0), "A waits for Z as for one by fork");
    CHECK_EQ(z, ask(A, 'q', z, __WCLONE), "A waits for Z as for a clone");
    CHECK_EQ(4 << 8, box[A].a, "how Z has ended");
    box[C].op = 'e', box[C].a = 7;
    __atomic_add_fetch(&box[C].turn, 1, __ATOMIC_SEQ_CST), RAW(SYS_futex, &box[C].turn, FUTEX_WAKE, INT_MAX);
    CHECK_EQ(-ECHILD, ask(A, 'q', c, 0), "A waits for C as for one by fork");
    CHECK_EQ(c, ask(A, 'q', c, __WCLONE), "A waits for C as for a clone");
    CHECK_EQ(7 << 8, box[A].a, "how C has ended");
    CHECK_EQ(0, box[A].chld, "SIGCHLD of C");
    box[B].op = 'e', box[B].a = 3;
    __atomic_add_fetch(&box[B].turn, 1, __ATOMIC_SEQ_CST), RAW(SYS_futex, &box[B].turn, FUTEX_WAKE, INT_MAX);
    int status = 0;
    pid_t got;
    while ((got = (pid_t)RAW(SYS_wait4, b, &status)) == -EINTR) {}
    CHECK_EQ(b, got, "P waits for B");
    CHECK_EQ(3 << 8, status, "how B has ended");
    CHECK_EQ(1, box[P].chld, "SIGCHLD of B");
    word = 5;
    CHECK_EQ(5, ask(E, 'r', (long)&word, 0), "the memory of those who are left");
}
static void prove(void) {
    kinds();
    memory();
    signals();
    places();
    ends();
    for (int i = A; i <= E; i++)
        if (i != C && i != B) RAW(SYS_kill, box[i].pid, SIGKILL);
    while (orphan && RAW(SYS_kill, box[E].pid, 0) == 0) sched_yield(); // until it has been waited for
}
