// Seccomp filters: what they deny stays denied, in every thread, and their number is the same.
#include "common.h"
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>

static const char *about = "seccomp filters: errors that they give, in all threads, whom they kill, and how many there are";
static const char *usage = "  --what errno|two|threads|kill|no-socket|kill-socket|no-munmap|raw";
static const char *what = "errno";
static long before; // filters that it was started with
static int filters; // that it has set
static pthread_t worker[2];
static volatile int ready_threads, go;

static int (*option)(const char *, const char *) = what_option;
static bool is(const char *w) { return !strcmp(what, w); }

static long now_set(void) {
    char v[16] = "0";
    return atol(field("/proc/thread-self/status", "Seccomp_filters", v, sizeof v));
}

// Answers with `action` to call `nr`, lets all others through.
static void set(int nr, unsigned action, bool by_syscall, unsigned flags) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, action),
    };
    struct sock_fprog p = {COUNT(code), code};
    if (is("raw")) {
        // not by a function of the C library: nobody but the kernel knows of it
        long r;
        register long flags_in_no_register __asm__("r10") = 0;
        __asm__ volatile("syscall" : "=a"(r) : "a"(SYS_seccomp), "D"(SECCOMP_SET_MODE_FILTER), "S"(flags), "d"(&p), "r"(flags_in_no_register) : "rcx", "r11", "memory");
        if (r) fail("raw seccomp gives %ld", r);
    } else if (by_syscall) MUST(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &p));
    else MUST(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &p));
    memset(code, 0xff, sizeof code); // it was read
    filters++;
}

static void gives(long result, int error, const char *call) {
    int e = errno;
    CHECK_EQ(-1, result, call);
    CHECK_EQ(error, e, call);
}
static void denied(const char *where) {
    gives(getpriority(PRIO_PROCESS, 0), EUCLEAN, where);
    CHECK_EQ(before + filters, now_set(), "filters");
    CHECK_EQ(1, prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), "no_new_privs");
}

static void *thread(void *arg) {
    __atomic_add_fetch(&ready_threads, 1, __ATOMIC_SEQ_CST);
    while (!go) sleep_ms(2);
    denied("what is denied to a worker");
    return arg;
}

static void setup(void) {
    before = now_set();
    MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    // one that the kernel does not take is none
    struct sock_fprog none = {0, NULL};
    CHECK_EQ(-1, prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &none), "a filter without instructions");
    CHECK_EQ(-1, syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, NULL), "a filter that is nowhere");
    if (is("threads"))
        for (int i = 0; i < 2; i++) MUST0(pthread_create(&worker[i], NULL, thread, NULL));
    while (is("threads") && ready_threads < 2) sleep_ms(1);
    bool all = is("threads");
    set(SYS_getpriority, SECCOMP_RET_ERRNO | EUCLEAN, all, all ? SECCOMP_FILTER_FLAG_TSYNC : 0);
    if (is("two") || all) set(SYS_acct, SECCOMP_RET_ERRNO | EMLINK, true, SECCOMP_FILTER_FLAG_LOG | (all ? SECCOMP_FILTER_FLAG_TSYNC : 0));
    if (is("kill")) set(SYS_acct, SECCOMP_RET_KILL_PROCESS, false, 0);
    if (is("no-socket")) set(SYS_socket, SECCOMP_RET_ERRNO | EXDEV, false, 0);
    if (is("kill-socket")) set(SYS_socket, SECCOMP_RET_KILL_PROCESS, false, 0);
    if (is("no-munmap")) set(SYS_munmap, SECCOMP_RET_ERRNO | EXDEV, false, 0);
}
static void spoil(void) { set(SYS_getpriority, SECCOMP_RET_ERRNO | EMLINK, false, 0), filters--; }

static void prove(void) {
    char v[16];
    denied("what is denied");
    CHECK_STR("2", field("/proc/self/status", "Seccomp", v, sizeof v), "Seccomp in /proc");
    if (is("two") || is("threads")) gives(syscall(SYS_acct, NULL), EMLINK, "acct");
    if (is("no-socket")) gives(socket(AF_UNIX, SOCK_STREAM, 0), EXDEV, "socket");
    if (is("no-munmap")) gives(munmap(NULL, PAGE), EXDEV, "munmap");
    if (is("kill") || is("kill-socket")) {
        int status = 0;
        pid_t child = fork();
        if (!child) syscall(is("kill") ? SYS_acct : SYS_socket, NULL, 0, 0), _exit(0);
        MUST(waitpid(child, &status, 0));
        CHECK_EQ(SIGSYS, WIFSIGNALED(status) ? WTERMSIG(status) : 0, "what a forbidden call ends with");
    }
    // one more for all can be set: all have the very same
    if (is("threads")) set(SYS_acct, SECCOMP_RET_ERRNO | EMLINK, true, SECCOMP_FILTER_FLAG_TSYNC);
    go = 1;
    for (int i = 0; i < 2 && worker[i]; i++) MUST0(pthread_join(worker[i], NULL));
}
