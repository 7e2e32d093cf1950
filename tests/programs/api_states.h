// For api.c: another thread that is in the middle of something, and is known to be. Each state is entered by what makes it sure (a callback, or
// the trap flag: the thread is stepped through the C library until it has taken the lock or is about to make the call), has a proof that
// holds as long as the state does, here and restored, and ends with right results when it is let go.
#include <linux/futex.h>
#include <malloc.h>
#include <stdbool.h>
#include <ucontext.h>

static volatile uint32_t let_go;
static volatile int inside; // 1: it is in the middle; 2: it was let go
static volatile pid_t holder_tid, probe_tid;
static volatile unsigned long rounds, wrong;
static pthread_t busy[2], probe;

static void wrong_unless(bool right) { wrong += !right; }

static void hold(void) {
    holder_tid = (pid_t)syscall(SYS_gettid);
    inside = 1;
    while (!let_go) syscall(SYS_futex, &let_go, FUTEX_WAIT, 0, NULL, NULL, 0);
    inside = 2;
}

// ---- what /proc says; without malloc, stdio or the loader, whose locks may be held ----

static size_t look(const char *file, char *text, size_t size) {
    int fd = open(file, O_RDONLY | O_CLOEXEC);
    size_t len = 0;
    for (ssize_t n; fd >= 0 && len < size - 1 && (n = read(fd, text + len, size - 1 - len)) > 0;) len += (size_t)n;
    if (fd >= 0) close(fd);
    text[len] = 0;
    return len;
}

// The word at which a thread sleeps in futex(2); 0: it is elsewhere.
static unsigned long asleep_at(pid_t tid) {
    char file[64], text[256], *rest;
    snprintf(file, sizeof file, "/proc/self/task/%d/syscall", tid);
    if (!tid || !look(file, text, sizeof text) || text[0] < '0' || text[0] > '9') return 0;
    if (strtol(text, &rest, 10) != SYS_futex) return 0;
    return strtoul(rest, NULL, 16);
}

// What is mapped there.
static const char *mapped(unsigned long address) {
    static char text[1 << 18];
    look("/proc/self/maps", text, sizeof text);
    for (char *line = text; line && *line;) {
        char *end = strchr(line, '\n'), *rest;
        if (end) *end = 0;
        unsigned long from = strtoul(line, &rest, 16), to = strtoul(rest + 1, NULL, 16);
        if (address >= from && address < to) return line;
        line = end ? end + 1 : NULL;
    }
    return "";
}

// ---- stepping ----

static __thread bool (*stop_here)(const greg_t *);
static __thread const unsigned char *stepped; // the instruction before

static void on_trap(int n, siginfo_t *info, void *context) {
    (void)n, (void)info;
    greg_t *r = ((ucontext_t *)context)->uc_mcontext.gregs;
    bool there = stop_here(r);
    stepped = (const unsigned char *)r[REG_RIP];
    if (!there) return;
    r[REG_EFL] &= ~0x100L;
    hold();
}

#define STEP(until)                                                                                                                \
    do {                                                                                                                           \
        stop_here = (until), stepped = NULL;                                                                                       \
        __asm__ volatile("pushfq\n orq $0x100, (%%rsp)\n popfq" ::: "memory", "cc");                                               \
    } while (0)
#define STEPPED() __asm__ volatile("pushfq\n andq $~0x100, (%%rsp)\n popfq" ::: "memory", "cc")

// The instruction before has taken a lock: a compare-and-exchange that has exchanged.
static bool has_a_lock(const greg_t *r) {
    const unsigned char *i = stepped;
    if (!i) return false;
    if (*i == 0xf0) i++;
    return i[0] == 0x0f && i[1] == 0xb1 && (r[REG_EFL] & 0x40);
}

// The next instruction is the call that makes a thread or a process, or the one by which glibc blocks all signals before that.
static bool about_to_make(const greg_t *r) {
    const unsigned char *i = (const unsigned char *)r[REG_RIP];
    long nr = r[REG_RAX];
    return i[0] == 0x0f && i[1] == 0x05 && (nr == SYS_rt_sigprocmask || nr == SYS_clone || nr == SYS_clone3);
}

// ---- malloc: in free(), which has locked the arena that the block is of ----

#define BLOCK 5000 // more than is kept by thread
static unsigned char *block;

// The thread has its own arena from now on, so that the next lock that it takes is the one that is meant.
static void use_malloc(void) {
    void *volatile some = malloc(BLOCK);
    free(some);
}
static void *free_block(void *p) {
    STEP(has_a_lock);
    free(block);
    STEPPED();
    return p;
}
static void *in_malloc_of_main(void *p) {
    use_malloc();
    return free_block(p);
}
static void *in_malloc(void *p) { // its own arena
    unsigned char *kept[64];
    for (int i = 0; i < 64; i++) memset(kept[i] = malloc(BLOCK), i, BLOCK);
    block = malloc(BLOCK);
    free_block(p);
    for (int i = 0; i < 64; i++) {
        unsigned char *new = malloc(BLOCK); // some of it was the freed block's
        memset(new, 0xff, BLOCK);
        for (int k = 0; k < BLOCK; k++) wrong_unless(kept[i][k] == i);
        free(kept[i]);
        free(new);
    }
    return p;
}
// Locks all arenas, one after the other: waits for the one that is held.
static void ask_malloc(void) {
    static char buffer[4096];
    FILE *f = fopen("/dev/null", "we");
    setvbuf(f, buffer, _IOFBF, sizeof buffer);
    probe_tid = (pid_t)syscall(SYS_gettid);
    while (inside != 1) tiny_sleep();
    wrong_unless(malloc_info(0, f) == 0);
    fclose(f);
}
static bool is_arena(unsigned long at) { return at >> 26 == (unsigned long)block >> 26; } // heaps of arenas are 64 MiB, aligned
static bool is_main_arena(unsigned long at) { return strstr(mapped(at), "/libc.so.6") != NULL; }

// ---- dlopen: in a constructor, called by the loader ----

void held_in_constructor(void) { hold(); } // called by held.so's

static void *in_dlopen(void *p) {
    char so[2048];
    ssize_t n = readlink("/proc/self/exe", so, sizeof so - 16);
    so[n] = 0;
    strcpy(strrchr(so, '/'), "/held.so");
    void *library = dlopen(so, RTLD_NOW);
    int *constructed = library ? dlsym(library, "held_constructed") : NULL;
    wrong_unless(constructed && *constructed == 42);
    wrong_unless(library && dlclose(library) == 0);
    return p;
}
static void ask_loader(void) {
    probe_tid = (pid_t)syscall(SYS_gettid);
    while (inside != 1) tiny_sleep();
    void *self = dlopen(NULL, RTLD_NOW);
    wrong_unless(self && dlsym(self, "held_in_constructor") == (void *)held_in_constructor);
}
static bool is_loader(unsigned long at) { return strstr(mapped(at), "/ld-linux-x86-64.so.2") != NULL; }

// ---- fork: in the handlers of pthread_atfork, and about to make the process, with all locks of malloc and the list of files ----

static void parent_of_one(void) {
    int status = -1;
    wrong_unless(waitpid(-1, &status, 0) > 0 && status == 0);
    hold();
}
static void forks(bool reaped) {
    int status = 0;
    pid_t child = fork();
    if (child == 0) _exit(0);
    wrong_unless(child > 0);
    if (!reaped) wrong_unless(waitpid(child, &status, 0) == child && status == 0);
}
static void *in_fork(void *p) {
    pthread_atfork(hold, NULL, NULL);
    forks(false);
    return p;
}
static void *after_fork(void *p) {
    pthread_atfork(NULL, parent_of_one, NULL);
    forks(true);
    return p;
}
static void *in_fork_locked(void *p) {
    STEP(about_to_make);
    forks(false);
    STEPPED();
    return p;
}

// ---- handlers of signals ----

static char handler_stack[64 << 10];
static volatile bool on_handler_stack;

static void handler(int n) {
    char here;
    on_handler_stack = &here >= handler_stack && &here < handler_stack + sizeof handler_stack;
    (void)n;
    hold();
}
static void *in_handler(void *p) {
    signal(SIGUSR1, handler);
    wrong_unless(raise(SIGUSR1) == 0 && !on_handler_stack);
    return p;
}
static void *in_handler_aside(void *p) {
    stack_t stack = {.ss_sp = handler_stack, .ss_size = sizeof handler_stack};
    struct sigaction a = {.sa_handler = handler, .sa_flags = SA_ONSTACK};
    sigemptyset(&a.sa_mask);
    wrong_unless(sigaltstack(&stack, NULL) == 0 && sigaction(SIGUSR1, &a, NULL) == 0);
    wrong_unless(raise(SIGUSR1) == 0 && on_handler_stack);
    stack.ss_flags = SS_DISABLE;
    wrong_unless(sigaltstack(&stack, NULL) == 0);
    return p;
}

// ---- pthread_create: the thread's stack is there, the thread is not ----

static void *nothing(void *p) { return p; }
static void *in_create(void *p) {
    pthread_t t;
    void *got = NULL;
    STEP(about_to_make);
    int r = pthread_create(&t, NULL, nothing, &busy);
    STEPPED();
    wrong_unless(r == 0 && pthread_join(t, &got) == 0 && got == &busy);
    return p;
}

// ---- exit: a thread's, in a destructor of its own data; the program's, in a handler of atexit ----

static void exiting(void *p) { (void)p; hold(); }
static void *in_exit(void *p) {
    pthread_key_t key;
    pthread_key_create(&key, exiting);
    pthread_setspecific(key, &key);
    return p;
}
static void last(void) { say("the last handler, %d", inside); }
static void *in_exit_of_all(void *p) {
    static char buffer[4096];
    FILE *f = fopen(path("buffered"), "we");
    setvbuf(f, buffer, _IOFBF, sizeof buffer);
    fputs("written as all ends\n", f);
    atexit(last);
    atexit(hold);
    exit(7);
    return p;
}

// ---- met by chance: in malloc, or pthread_create, again and again ----

static void *in_malloc_often(void *p) {
    inside = 1;
    for (unsigned seed = (unsigned)(uintptr_t)&seed; !let_go; rounds++) {
        unsigned char *some[64];
        for (int i = 0; i < 64; i++) {
            size_t n = 1 + (seed = seed * 1103515245u + 12345u) % 5000;
            some[i] = malloc(n);
            some[i][0] = some[i][n - 1] = (unsigned char)i;
        }
        for (int i = 0; i < 64; i++) {
            wrong_unless(some[i][0] == i);
            free(some[i]);
        }
    }
    return p;
}
static void *in_create_often(void *p) {
    inside = 1;
    for (; !let_go; rounds++) {
        pthread_t t;
        void *got = NULL;
        wrong_unless(pthread_create(&t, NULL, nothing, &busy) == 0 && pthread_join(t, &got) == 0 && got == &busy);
    }
    return p;
}

// ---- all of them ----

static const struct state {
    const char *name;
    void *(*thread)(void *);
    int n;                       // threads; none of those that are met by chance is known to be anywhere
    void (*ask)(void);           // in another thread: waits for the lock
    bool (*lock)(unsigned long); // whether that is where it waits
} states[] = {
    {"malloc", in_malloc, 1, ask_malloc, is_arena},
    {"malloc-main", in_malloc_of_main, 1, ask_malloc, is_main_arena},
    {"dlopen", in_dlopen, 1, ask_loader, is_loader},
    {"fork", in_fork, 1, NULL, NULL},
    {"fork-parent", after_fork, 1, NULL, NULL},
    {"fork-locked", in_fork_locked, 1, ask_malloc, is_main_arena},
    {"handler", in_handler, 1, NULL, NULL},
    {"handler-altstack", in_handler_aside, 1, NULL, NULL},
    {"create", in_create, 1, NULL, NULL},
    {"exit", in_exit, 1, NULL, NULL},
    {"exit-of-all", in_exit_of_all, 1, NULL, NULL},
    {"malloc-often", in_malloc_often, 2, NULL, NULL},
    {"create-often", in_create_often, 2, NULL, NULL},
};
static const struct state *state;

static void *run_probe(void *p) {
    state->ask();
    return p;
}

// "held": the state is the one that was meant. Else what it is.
static const char *held_now(void) {
    static char why[512];
    if (!state) return "nothing was begun";
    if (state->n > 1) return inside ? "held" : "not begun";
    unsigned long at = asleep_at(holder_tid);
    snprintf(why, sizeof why, "not held: inside %d, the holder at %#lx", inside, at);
    if (inside != 1 || at != (unsigned long)&let_go) return why;
    if (!state->ask) return "held";
    at = asleep_at(probe_tid);
    snprintf(why, sizeof why, "not held: the probe at %#lx %s", at, mapped(at));
    return at && state->lock(at) && *(volatile uint32_t *)at ? "held" : why;
}

// The same, when the threads have gone to sleep, and gone to sleep again after a checkpoint or a restore.
static const char *held(void) {
    const char *is = held_now();
    for (int i = 0; i < 20000 && inside < 2 && strcmp(is, "held"); i++) {
        tiny_sleep();
        is = held_now();
    }
    return is;
}

static const char *start(const char *what) {
    struct sigaction step = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO};
    sigaction(SIGTRAP, &step, NULL);
    inside = 0, let_go = 0, probe_tid = 0, holder_tid = 0, state = NULL;
    for (size_t i = 0; i < sizeof states / sizeof states[0]; i++)
        if (!strcmp(states[i].name, what)) state = &states[i];
    if (!state) return "no such state";
    if (state->thread == in_malloc_of_main) block = malloc(BLOCK);
    if (state->ask) {
        if (pthread_create(&probe, NULL, run_probe, NULL)) return "no thread for the probe";
        while (!probe_tid) tiny_sleep();
    }
    for (int k = 0; k < state->n; k++)
        if (pthread_create(&busy[k], NULL, state->thread, NULL)) return "no thread";
    return held();
}

static unsigned long finish(void) {
    let_go = 1;
    syscall(SYS_futex, &let_go, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
    for (int k = 0; k < state->n; k++) pthread_join(busy[k], NULL);
    if (state->ask) pthread_join(probe, NULL);
    wrong_unless(state->n > 1 || inside == 2);
    return wrong;
}
