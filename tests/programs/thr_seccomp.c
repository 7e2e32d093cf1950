// Seccomp filters that differ between threads: each has its own again, and no other's.
#include "common.h"
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/resource.h>

static const char *about = "seccomp filters that differ between threads: none, one, one and another upon it, and no_new_privs of each";
static const char *usage = "  --what nested|beside|first|deadly|many  nested: one upon another; beside each other; a first thread with all;\n"
                           "  one whose filter would kill for a call of ours; a hundred threads\n";
static const char *what = "nested";

enum { PLAIN, SHARED, MORE, BESIDE, MOST = 100 };
static pthread_t worker[MOST];
static struct job { long n; int filters; bool nnp; } jobs[MOST + 1];
static volatile int jobs_made;
static volatile int go, spoilt, bad_thread, ready_threads;
static int before; // filters that it was started with

static int (*option)(const char *, const char *) = what_option;
static bool is(const char *w) { return !strcmp(what, w); }

static int status(const char *name) {
    char v[16] = "0";
    return atoi(field("/proc/thread-self/status", name, v, sizeof v));
}
static void set(int nr, unsigned action, unsigned flags) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, action),
    };
    struct sock_fprog p = {COUNT(code), code};
    if (flags) MUST(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &p));
    else MUST(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &p));
    memset(code, 0xff, sizeof code);
}
// What a thread of this sort has set: 0 none, 1 getpriority, 2 acct, 4 umount2.
static int sets(long n) { return n == PLAIN ? 0 : n == SHARED ? 1 : n == MORE ? 1 | 2 : 1 | 4; }
static void restrict_self(struct job *j, int inherited) {
    int mine = sets(j->n) & ~inherited;
    if (mine) MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    if (mine & 1) set(SYS_getpriority, SECCOMP_RET_ERRNO | EUCLEAN, 0);
    if (mine & 2) set(SYS_acct, SECCOMP_RET_ERRNO | EMLINK, SECCOMP_FILTER_FLAG_LOG);
    if (mine & 4) set(SYS_umount2, SECCOMP_RET_ERRNO | EXDEV, 0);
    if (mine & 2 && is("deadly")) set(SYS_sigaltstack, SECCOMP_RET_KILL_PROCESS, 0);
    j->filters = status("Seccomp_filters");
    j->nnp = prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0);
}
static void gives(int number, bool filtered, int error, const char *call, long n) {
    long r = number == SYS_getpriority ? syscall(number, PRIO_PROCESS, 0) : syscall(number, "/no such/thing", 0);
    int e = r < 0 ? errno : 0;
    if (filtered) CHECK_EQ(error, e, "%s of a thread of sort %ld", call, n);
    else CHECK(e != error, "%s of a thread of sort %ld gives what only another's filter does", call, n);
}
static void denied(struct job *j) {
    int has = sets(j->n);
    gives(SYS_getpriority, has & 1, EUCLEAN, "getpriority", j->n);
    gives(SYS_acct, has & 2, EMLINK, "acct", j->n);
    gives(SYS_umount2, has & 4, EXDEV, "umount2", j->n);
    CHECK_EQ(j->filters, status("Seccomp_filters"), "filters of a thread of sort %ld", j->n);
    CHECK_EQ(has || before ? 2 : 0, status("Seccomp"), "Seccomp of a thread of sort %ld", j->n);
    CHECK_EQ(j->nnp, prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), "no_new_privs of a thread of sort %ld", j->n);
}
static void start(long n);
static void *thread(void *arg) {
    struct job *j = arg;
    // of the thread that has made it
    int inherited = is("first") ? sets(MORE) & sets(j->n) : j->n == MORE ? 1 : 0;
    restrict_self(j, inherited);
    if (j->n == SHARED && !is("many") && jobs_made == 2) start(MORE);
    __atomic_add_fetch(&ready_threads, 1, __ATOMIC_SEQ_CST);
    while (!go) {
        if (spoilt && j == &jobs[bad_thread]) set(SYS_getpriority, SECCOMP_RET_ERRNO | EMLINK, 0), spoilt = 0;
        sleep_ms(2);
    }
    denied(j);
    return arg;
}
static void start(long n) {
    struct job *j = &jobs[jobs_made];
    j->n = n;
    MUST0(pthread_create(&worker[jobs_made++], NULL, thread, j));
}
static void until_ready(int n) {
    while (__atomic_load_n(&ready_threads, __ATOMIC_SEQ_CST) < n) sleep_ms(1);
}
static void setup(void) {
    before = status("Seccomp_filters");
    struct job *first = &jobs[MOST];
    first->n = is("first") ? MORE : PLAIN;
    if (is("many")) {
        for (int i = 0; i < MOST; i++) start(i % 2 ? SHARED : PLAIN);
        until_ready(MOST);
    } else {
        start(PLAIN);
        until_ready(1);
        restrict_self(first, 0);
        if (is("first")) start(MORE), start(MORE), until_ready(3);
        else start(SHARED), until_ready(3); // which starts another
        if (is("beside")) start(BESIDE), until_ready(4), start(SHARED), until_ready(5);
    }
    first->filters = status("Seccomp_filters");
    first->nnp = prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0);
}
static void spoil(void) { // of one thread only
    bad_thread = jobs_made - 1;
    spoilt = 1;
    while (spoilt) sleep_ms(1);
}
static void prove(void) {
    denied(&jobs[MOST]);
    go = 1;
    for (int i = 0; i < jobs_made; i++) MUST0(pthread_join(worker[i], NULL));
}
