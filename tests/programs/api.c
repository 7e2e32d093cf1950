// Does what it is told by files: DIR/do.K holds the K-th command, the answer is the line "K ..." in DIR/log. Hooks write lines there too.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <dormouse.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static char dir[2048];

static void tiny_sleep(void) { usleep(500); }

static char *path(const char *name) {
    static __thread char p[4096];
    snprintf(p, sizeof p, "%s/%s", dir, name);
    return p;
}

static int there(const char *name) { return access(path(name), F_OK) == 0; }

__attribute__((format(printf, 1, 2))) static void say(const char *format, ...) {
    char line[4096];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(line, sizeof line - 1, format, args);
    va_end(args);
    line[n++] = '\n';
    int fd = open(path("log"), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0 || write(fd, line, n) != n) abort();
    close(fd);
}

static const char *outcome(int r) {
    static __thread char text[4096];
    const char *words[] = {"continued", "restored", "alone"};
    if (r >= 0) snprintf(text, sizeof text, "%s (%s)", words[r], dormouse_message());
    else snprintf(text, sizeof text, "error %d (%s)", r, dormouse_message());
    return text;
}

// ---- hooks ----

static volatile int veto, slow;

static int before(void *data, char *reason, size_t size) {
    say("before %s%s", (char *)data, getpid() == (int)syscall(SYS_gettid) ? " in the main thread" : "");
    if (veto && !strcmp(data, "a")) {
        snprintf(reason, size, "a transaction is open");
        return 1;
    }
    while (slow && !strcmp(data, "a")) tiny_sleep();
    return 0;
}
static void after(void *data, uint64_t number, const char *why) {
    if (why) say("after %s: %s", (char *)data, why);
    else say("after %s: made %d", (char *)data, (int)number);
}
static void restored(void *data, uint64_t generation) { say("restored %s: %d", (char *)data, (int)generation); }

static int hook(const char *name) {
    struct dormouse_hook h = {name, before, after, restored, (void *)name};
    return dormouse_add_hook(&h);
}

// ---- memory that is not worth keeping ----

#define BIG (32UL << 20)
static unsigned char *big;

static unsigned char noise(size_t i) { return (unsigned char)((i * 2654435761u) >> 13) | 1; }

static void make_big(void) {
    big = mmap(NULL, BIG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    unsigned x = 1;
    for (size_t i = 0; i < BIG; i++) {
        x = x * 1664525u + 1013904223u;
        big[i] = i < 4096 || i >= BIG - 4096 ? noise(i) : (unsigned char)(x >> 24) | 1;
    }
}

// The pages wholly within [1, BIG - 1) are dropped: all but the first and the last.
static const char *look_at_big(void) {
    size_t zeros = 0;
    for (size_t i = 4096; i < BIG - 4096; i++) zeros += big[i] == 0;
    for (size_t i = 0; i < 4096; i++)
        if (big[i] != noise(i) || big[BIG - 1 - i] != noise(BIG - 1 - i)) return "the first or the last page is spoilt";
    return zeros == 0 ? "all there" : zeros == BIG - 8192 ? "zeros within" : "something in between";
}

// ---- another thread that is in the middle of something ----

static volatile int inside, let_go;
static volatile unsigned long rounds, wrong;

static void hold(void) {
    inside = 1;
    while (!let_go) tiny_sleep();
    inside = 2;
}

void held_in_constructor(void) { hold(); } // called by held.so's

static void handler(int n) { (void)n; hold(); }
static void exiting(void *p) { (void)p; hold(); }

static void *in_handler(void *p) { raise(SIGUSR1); return p; }
static void *in_dlopen(void *p) {
    char so[2048];
    ssize_t n = readlink("/proc/self/exe", so, sizeof so - 16);
    so[n] = 0;
    strcpy(strrchr(so, '/'), "/held.so");
    if (!dlopen(so, RTLD_NOW)) say("dlopen: %s", dlerror());
    return p;
}
static void *in_fork(void *p) {
    pthread_atfork(hold, NULL, NULL);
    pid_t child = fork();
    if (child == 0) _exit(0);
    waitpid(child, NULL, 0);
    return p;
}
static void *in_exit(void *p) {
    pthread_key_t key;
    pthread_key_create(&key, exiting);
    pthread_setspecific(key, &key);
    return p;
}
static void *in_malloc(void *p) {
    inside = 1;
    for (unsigned seed = (unsigned)(uintptr_t)&seed; !let_go; rounds++) {
        unsigned char *block[64];
        for (int i = 0; i < 64; i++) {
            size_t n = 1 + (seed = seed * 1103515245u + 12345u) % 5000;
            block[i] = malloc(n);
            block[i][0] = block[i][n - 1] = (unsigned char)i;
        }
        for (int i = 0; i < 64; i++) {
            wrong += block[i][0] != i;
            free(block[i]);
        }
    }
    return p;
}
static void *nothing(void *p) { return p; }
static void *in_create(void *p) {
    inside = 1;
    for (; !let_go; rounds++) {
        pthread_t t;
        if (pthread_create(&t, NULL, nothing, NULL)) { wrong++; continue; }
        void *got = NULL;
        pthread_join(t, &got);
    }
    return p;
}

static pthread_t busy[2];
static int start(const char *what) {
    struct { const char *name; void *(*f)(void *); int n; } all[] = {{"handler", in_handler, 1}, {"dlopen", in_dlopen, 1}, {"fork", in_fork, 1},
        {"exit", in_exit, 1}, {"malloc", in_malloc, 2}, {"create", in_create, 2}};
    signal(SIGUSR1, handler);
    inside = let_go = 0;
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        if (strcmp(all[i].name, what)) continue;
        for (int k = 0; k < all[i].n; k++)
            if (pthread_create(&busy[k], NULL, all[i].f, NULL)) return -1;
        while (!inside) tiny_sleep();
        return all[i].n;
    }
    return -1;
}
static void finish(int n) {
    let_go = 1;
    for (int k = 0; k < n; k++) pthread_join(busy[k], NULL);
}

static void *one_of_two(void *p) {
    *(int *)p = dormouse_checkpoint();
    return NULL;
}

static void *disabled_twice(void *p) {
    dormouse_disable();
    dormouse_disable();
    say("%s: entered", (char *)p);
    while (!there("leave")) tiny_sleep();
    dormouse_enable();
    dormouse_enable();
    return NULL;
}

// ---- commands ----

static void obey(int k, char *what) {
    static int busy_threads;
    char *arg = strchr(what, ' ');
    if (arg) *arg++ = 0;
    if (!strcmp(what, "checkpoint")) {
        const char *said = outcome(dormouse_checkpoint());
        say("%d %s, generation %d", k, said, (int)dormouse_generation());
    }
    else if (!strcmp(what, "name")) say("%d %s", k, dormouse_name() ? dormouse_name() : "none");
    else if (!strcmp(what, "generation")) say("%d %d", k, (int)dormouse_generation());
    else if (!strcmp(what, "session")) say("%d %d", k, dormouse_session(arg));
    else if (!strcmp(what, "disable")) dormouse_disable(), say("%d", k);
    else if (!strcmp(what, "enable")) say("%d %d", k, dormouse_enable());
    else if (!strcmp(what, "hooks")) {
        int a = hook("a"), b = hook("b");
        say("%d %d %d", k, a, b);
    }
    else if (!strcmp(what, "timeout")) dormouse_hook_timeout(atoi(arg)), say("%d", k);
    else if (!strcmp(what, "veto")) veto = atoi(arg), say("%d", k);
    else if (!strcmp(what, "slow")) slow = atoi(arg), say("%d", k);
    else if (!strcmp(what, "unhook")) say("%d %d", k, dormouse_remove_hook(atoi(arg)));
    else if (!strcmp(what, "threads")) {
        int n = 0;
        FILE *f = fopen("/proc/self/status", "re");
        char line[256];
        while (fgets(line, sizeof line, f)) sscanf(line, "Threads: %d", &n);
        fclose(f);
        say("%d %d", k, n);
    }
    else if (!strcmp(what, "big")) make_big(), say("%d made", k);
    else if (!strcmp(what, "drop")) say("%d %ld", k, (long)dormouse_drop(big + 1, BIG - 2));
    else if (!strcmp(what, "keep")) say("%d %d", k, dormouse_keep(big + 1, BIG - 2));
    else if (!strcmp(what, "look")) say("%d %s", k, look_at_big());
    else if (!strcmp(what, "busy")) say("%d %d", k, busy_threads = start(arg));
    else if (!strcmp(what, "free")) finish(busy_threads), say("%d wrong %lu", k, wrong);
    else if (!strcmp(what, "two")) {
        pthread_t t[2];
        int r[2];
        for (int i = 0; i < 2; i++) pthread_create(&t[i], NULL, one_of_two, &r[i]);
        for (int i = 0; i < 2; i++) pthread_join(t[i], NULL);
        say("%d %d %d, generation %d", k, r[0], r[1], (int)dormouse_generation());
    }
    else if (!strcmp(what, "nested")) {
        pthread_t t[2];
        char *names[] = {"first", "second"};
        for (int i = 0; i < 2; i++) pthread_create(&t[i], NULL, disabled_twice, names[i]);
        say("%d", k);
        for (int i = 0; i < 2; i++) pthread_join(t[i], NULL);
        say("both left");
    }
    else if (!strcmp(what, "end")) exit(0);
    else say("%d unknown command", k);
}

int main(int argc, char **argv) {
    if (argc < 2) return 2;
    snprintf(dir, sizeof dir, "%s", argv[1]);
    say("ready %d", getpid());
    for (int k = 1;; k++) {
        char name[32], what[256];
        snprintf(name, sizeof name, "do.%d", k);
        while (!there(name)) tiny_sleep();
        int fd = open(path(name), O_RDONLY | O_CLOEXEC);
        ssize_t n = read(fd, what, sizeof what - 1);
        close(fd);
        what[n > 0 ? n : 0] = 0;
        obey(k, what);
    }
}
