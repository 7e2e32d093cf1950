// Does what it is told by files: DIR/do.K holds the K-th command, the answer is the line "K ..." in DIR/log. Hooks write lines there too.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <dormouse.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/signalfd.h>
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
    if (n > (int)sizeof line - 2) n = sizeof line - 2;
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

static volatile int veto, slow, hungry;
static void wait_for_malloc(void);

static int before(void *data, char *reason, size_t size) {
    say("before %s%s", (char *)data, getpid() == (int)syscall(SYS_gettid) ? " in the main thread" : "");
    if (veto && !strcmp(data, "a")) {
        snprintf(reason, size, "a transaction is open");
        return 1;
    }
    while (slow && !strcmp(data, "a")) tiny_sleep();
    if (hungry && !strcmp(data, "a")) wait_for_malloc();
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

#include "api_states.h"

// A call in a thread that has an arena of its own since before any lock was taken, where the main thread's is locked.
static volatile int aside_wanted, aside_made;
static char aside_said[4096];

static void *aside(void *p) {
    use_malloc();
    for (int made = 0;; made++) {
        aside_made = made;
        while (aside_wanted == made) tiny_sleep();
        const char *said = outcome(dormouse_checkpoint());
        snprintf(aside_said, sizeof aside_said, "%s, generation %d", said, (int)dormouse_generation());
    }
    return p;
}
static void make_aside(void) {
    pthread_t t;
    aside_made = -1;
    if (pthread_create(&t, NULL, aside, NULL)) abort();
    while (aside_made < 0) tiny_sleep();
}
static const char *checkpoint_aside(void) {
    int n = ++aside_wanted;
    while (aside_made != n) tiny_sleep();
    return aside_said;
}

// The first calls of many functions that the agent interposes.
static void first_calls(void) {
    sigset_t none, one;
    struct timespec at_once = {0, 0};
    struct sigaction old;
    struct epoll_event event;
    struct sembuf op = {0, 1, 0};
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    sigemptyset(&none), sigemptyset(&one), sigaddset(&one, SIGURG);
    wrong_unless(sigprocmask(SIG_BLOCK, &one, NULL) == 0);
    wrong_unless(pthread_sigmask(SIG_BLOCK, &one, NULL) == 0);
    wrong_unless(raise(SIGURG) == 0 && sigwaitinfo(&one, NULL) == SIGURG);
    int got;
    wrong_unless(raise(SIGURG) == 0 && sigwait(&one, &got) == 0 && got == SIGURG);
    wrong_unless(sigtimedwait(&one, NULL, &at_once) == -1 && errno == EAGAIN);
    close(signalfd(-1, &one, SFD_CLOEXEC));
    wrong_unless(ppoll(NULL, 0, &at_once, &none) == 0);
    wrong_unless(pselect(0, NULL, NULL, NULL, &at_once, &none) == 0);
    wrong_unless(epoll_wait(epoll, &event, 1, 0) == 0);
    wrong_unless(epoll_pwait(epoll, &event, 1, 0, &none) == 0);
    wrong_unless(epoll_pwait2(epoll, &event, 1, &at_once, &none) == 0);
    wrong_unless(semtimedop(-1, &op, 1, &at_once) == -1 && errno == EINVAL);
    wrong_unless(sigaction(SIGURG, NULL, &old) == 0 && signal(SIGURG, SIG_DFL) != SIG_ERR);
    wrong_unless(execv("/nowhere", (char *[]){NULL}) == -1 && errno == ENOENT);
    close(epoll);
}

// In a handler that interrupts nothing but raise().
static volatile int handler_outcome;
static void checkpoint_handler(int n) { (void)n; handler_outcome = dormouse_checkpoint(); }

// A hook that needs memory of an arena that another thread has locked: `busy[0]`, in free() of a block of the hook thread's.
static void *eat(void *p) {
    while (!block) tiny_sleep();
    return in_malloc_of_main(p);
}
static void wait_for_malloc(void) {
    hungry = 0;
    probe_tid = (pid_t)syscall(SYS_gettid);
    block = malloc(BLOCK);
    while (inside != 1) tiny_sleep();
    unsigned char *more = malloc(BLOCK);
    memset(more, 1, BLOCK);
    free(more);
}
static void be_hungry(void) {
    static const struct state eating = {"hungry", eat, 1, ask_malloc, is_arena};
    struct sigaction step = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO};
    sigaction(SIGTRAP, &step, NULL);
    state = &eating, block = NULL, inside = 0, let_go = 0;
    if (pthread_create(&busy[0], NULL, eat, NULL)) abort();
    hungry = 1;
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
    else if (!strcmp(what, "busy")) say("%d %s", k, start(arg));
    else if (!strcmp(what, "held")) say("%d %s", k, held());
    else if (!strcmp(what, "free")) say("%d wrong %lu", k, finish());
    else if (!strcmp(what, "let")) say("%d", k), finish();
    else if (!strcmp(what, "aside")) make_aside(), say("%d", k);
    else if (!strcmp(what, "checkpoint-aside")) {
        const char *said = checkpoint_aside();
        say("%d %s", k, said);
    }
    else if (!strcmp(what, "checkpoint-in-handler")) {
        signal(SIGUSR2, checkpoint_handler);
        raise(SIGUSR2);
        say("%d %d, generation %d", k, handler_outcome, (int)dormouse_generation());
    }
    else if (!strcmp(what, "first-calls")) first_calls(), say("%d wrong %lu", k, wrong);
    else if (!strcmp(what, "hungry")) be_hungry(), say("%d", k);
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
