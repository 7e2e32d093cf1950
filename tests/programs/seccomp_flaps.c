// Threads that go into strict seccomp mode, or set a filter, do some work there and end, one after the other.
#include "common.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/wait.h>

static const char *about = "threads that go into strict seccomp mode, or set a filter, and end, one after the other: none is killed, and no call of another's is interrupted";
static const char *usage = "  --what strict|filter|signalled   signalled: strict ones, which are sent SIGUSR2\n";
static const char *what = "strict";
static int (*option)(const char *, const char *) = what_option;

static volatile int made, ended;
static volatile pid_t worker;
static volatile bool stop, released;
static pthread_t maker;

static bool is(const char *w) { return !strcmp(what, w); }
static void *restricted(void *unused) {
    (void)unused;
    worker = tid_now();
    if (!is("filter")) {
        MUST(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT, 0, 0, 0));
    } else {
        struct sock_filter all = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
        struct sock_fprog program = {1, &all};
        MUST(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0));
    }
    for (volatile int i = 0; i < 1000000 || (is("signalled") && !released); i++) {}
    __atomic_add_fetch(&ended, 1, __ATOMIC_SEQ_CST);
    // one of the four calls of strict mode; the C library's way out has others
    for (;;) __asm__ volatile("syscall" : : "a"((long)SYS_exit), "D"(0L) : "rcx", "r11", "memory");
    return NULL;
}
// Sends SIGUSR2 to a task when it is strict; whether that waits of it then. If not, it has ended.
static bool waits_of(pid_t pid, pid_t tid) {
    char path[64], v[32] = "";
    snprintf(path, sizeof path, "/proc/%d/task/%d/status", pid, tid);
    while (strcmp(field(path, "Seccomp", v, sizeof v), "1")) sleep_ms(1);
    MUST(syscall(SYS_tgkill, pid, tid, SIGUSR2));
    for (;;) {
        if (strtoull(field(path, "SigPnd", v, sizeof v), NULL, 16) >> (SIGUSR2 - 1) & 1) return true;
        char state[32] = "";
        if (!field(path, "State", state, sizeof state)[0] || state[0] == 'Z' || state[0] == 'X') return false;
        sleep_ms(1);
    }
}
static void *make(void *unused) {
    (void)unused;
    while (!stop) {
        pthread_t t;
        worker = 0, released = false;
        MUST0(pthread_create(&t, NULL, restricted, NULL));
        made++;
        if (is("signalled")) {
            while (!worker) sleep_ms(1);
            bool waits = waits_of(getpid(), worker);
            CHECK(waits, "a signal waits of a strict thread");
            released = true;
        }
        pthread_join(t, NULL);
        sleep_ms(1);
    }
    return NULL;
}
// The same of a child, which has the program's handlers.
static void child(void) {
    volatile bool *ends = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t pid = MUST(fork());
    if (!pid) {
        MUST(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT, 0, 0, 0));
        while (!*ends) {}
        for (;;) __asm__ volatile("syscall" : : "a"((long)SYS_exit), "D"(7L) : "rcx", "r11", "memory");
    }
    bool waits = waits_of(pid, pid);
    CHECK(waits, "a signal waits of a strict child");
    *ends = true;
    int status = 0;
    MUST(waitpid(pid, &status, 0));
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7, "end of a strict child, status %#x", status);
}
static void setup(void) {
    MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    MUST0(pthread_create(&maker, NULL, make, NULL));
}
static void spoil(void) { made++; }
static void prove(void) {
    while (made <= 10) sleep_ms(1);
    stop = true;
    pthread_join(maker, NULL);
    if (is("signalled")) child();
    CHECK_EQ(made, ended, "threads that ended by themselves");
}
