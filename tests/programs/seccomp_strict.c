// Strict seccomp mode (SECCOMP_MODE_STRICT) of some threads, of the first, and of all of a process: each goes on where it was, and can still do nothing but read and write.
#include "common.h"
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/wait.h>

static const char *about = "strict seccomp mode: of a thread, of several, of the first, of a process's only thread, of all its threads";
static const char *usage = "  --what thread|several|leader|alone|all  who is strict: a thread; two, one of which spins; the first thread;\n"
                           "  the only thread of a child; both threads of a child\n";
static const char *what = "thread";

enum { MOST = 2, ALTERNATE = 64 << 10 };
enum command { ADD, SPIN, FORBIDDEN };
struct question { long command, n; };
struct answer { long sum, rounds, spun; char byte; bool on_stack; };
// What a strict thread has: its own pipes, a file that it reads on, and memory.
static struct job {
    int ask[2], answer[2], file;
    pid_t pid, tid;
    pthread_t thread;
    volatile long sum, rounds, spun;
    volatile int spins;
    volatile bool on_stack;
    long expect_sum, expect_rounds;
    char *stack;
} *jobs; // shared with a child
static int made;
static __thread struct job *mine;

static int (*option)(const char *, const char *) = what_option;
static bool is(const char *w) { return !strcmp(what, w); }

static void handler(int n) { // on the alternate stack; rt_sigreturn is one of the four calls
    (void)n;
    char here;
    if (mine) mine->on_stack = &here >= mine->stack && &here < mine->stack + ALTERNATE;
}
static char byte_at(long i) { return (char)('a' + i % 26); }
// All calls from the prctl on are read, write, and, if that is asked for, one that is not let through.
static void strict(struct job *j) {
    mine = j;
    stack_t s = {.ss_sp = j->stack, .ss_size = ALTERNATE};
    MUST(sigaltstack(&s, NULL));
    j->pid = getpid();
    j->tid = tid_now();
    MUST(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT));
    struct question q;
    while (read(j->ask[0], &q, sizeof q) == sizeof q) {
        if (q.command == FORBIDDEN) syscall(SYS_getppid);
        for (j->spins = q.command == SPIN; j->spins; j->spun++) __asm__ volatile("" ::: "memory");
        struct answer a = {.on_stack = j->on_stack};
        j->sum += q.n, j->rounds++;
        a.sum = j->sum, a.rounds = j->rounds, a.spun = j->spun;
        if (read(j->file, &a.byte, 1) != 1) a.byte = '?';
        if (write(j->answer[1], &a, sizeof a) != sizeof a) break;
    }
    syscall(SYS_exit, 0);
}
static void *thread(void *arg) {
    strict(arg);
    return arg;
}
static void ask(struct job *j, long command, long n) {
    struct question q = {command, n};
    MUST(write(j->ask[1], &q, sizeof q));
    j->expect_sum += n, j->expect_rounds++;
}
static void answered(struct job *j) {
    struct answer a = {0};
    CHECK_EQ(sizeof a, read(j->answer[0], &a, sizeof a), "length of an answer");
    CHECK_EQ(j->expect_sum, a.sum, "sum in the strict thread's memory");
    CHECK_EQ(j->expect_rounds, a.rounds, "rounds of the strict thread");
    CHECK_EQ(byte_at(j->expect_rounds - 1), a.byte, "next byte of the file that it reads");
}
static char *task_field(struct job *j, const char *key, char *out, size_t size) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/task/%d/status", j->pid, j->tid);
    return field(path, key, out, size);
}
static void is_strict(struct job *j) {
    char v[32];
    CHECK_STR("1", task_field(j, "Seccomp", v, sizeof v), "Seccomp of the strict thread");
}
static struct job *new_job(void) {
    struct job *j = &jobs[made++];
    MUST(pipe2(j->ask, O_CLOEXEC));
    MUST(pipe2(j->answer, O_CLOEXEC));
    char name[16], text[200];
    snprintf(name, sizeof name, "file%d", made);
    for (size_t i = 0; i < sizeof text; i++) text[i] = byte_at((long)i);
    text[sizeof text - 1] = 0;
    if (!write_file(name, text)) must_failed("write_file", __FILE__, __LINE__, errno);
    j->file = MUST(open(work(name), O_RDONLY | O_CLOEXEC));
    j->stack = mmap(NULL, ALTERNATE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return j;
}
static void until_strict(struct job *j) {
    char v[32] = "";
    while (!j->tid || strcmp(task_field(j, "Seccomp", v, sizeof v), "1")) sleep_ms(1);
}
static void child(void) {
    pid_t pid = MUST(fork());
    if (!pid) {
        for (int i = 0; i < made; i++) close(jobs[i].ask[1]), close(jobs[i].answer[0]);
        if (is("all")) MUST0(pthread_create(&jobs[1].thread, NULL, thread, &jobs[1]));
        strict(&jobs[0]);
    }
}
static void setup(void) {
    jobs = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct sigaction a = {.sa_handler = handler, .sa_flags = SA_ONSTACK | SA_RESTART};
    MUST(sigaction(SIGUSR1, &a, NULL));
    int n = is("several") || is("all") ? 2 : 1;
    for (int i = 0; i < n; i++) new_job();
    if (is("alone") || is("all")) child();
    else if (!is("leader"))
        for (int i = 0; i < n; i++) MUST0(pthread_create(&jobs[i].thread, NULL, thread, &jobs[i]));
}
// Some rounds before anybody looks, so that there is something to keep.
static void begun(void) {
    for (int i = 0; i < made; i++) {
        until_strict(&jobs[i]);
        for (long n = 1; n < 4 + i; n++) ask(&jobs[i], ADD, n * 1000), answered(&jobs[i]);
    }
    if (is("several")) {
        ask(&jobs[1], SPIN, 7);
        while (!jobs[1].spun) sleep_ms(1);
    }
}
static void *others(void *arg) { // of a first thread that is strict
    void (*gate_and_proof)(void) = (void (*)(void))arg;
    begun();
    gate_and_proof();
    finish();
}
static void run(void (*gate_and_proof)(void)) {
    if (!is("leader")) {
        begun();
        gate_and_proof();
        return;
    }
    pthread_t t;
    MUST0(pthread_create(&t, NULL, others, (void *)gate_and_proof));
    strict(&jobs[0]);
}
static void (*around)(void (*)(void)) = run;
static void spoil(void) { // one more round, which nobody is to know of
    struct job *j = &jobs[0];
    ask(j, ADD, 1), answered(j);
    j->expect_rounds--;
}
// It is killed for what it may not do, and nobody else.
static void forbidden(struct job *j) {
    ask(j, FORBIDDEN, 0);
    bool alone = is("alone");
    if (alone) {
        int status = 0;
        MUST(waitpid(j->pid, &status, 0));
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "end of a strict process by a forbidden call, status %#x", status);
        return;
    }
    if (!is("leader") && !is("all")) MUST0(pthread_join(j->thread, NULL)); // by clear_child_tid
    char state[32] = "";
    do {
        sleep_ms(1);
        task_field(j, "State", state, sizeof state);
    } while (state[0] && state[0] != 'Z');
}
static void prove(void) {
    for (int i = 0; i < made; i++) {
        struct job *j = &jobs[i];
        is_strict(j);
        if (is("several") && i == 1) {
            long spun = j->spun;
            while (j->spun == spun) sleep_ms(1);
            j->spins = 0;
            answered(j);
        }
        ask(j, ADD, 5), answered(j);
        MUST(syscall(SYS_tgkill, j->pid, j->tid, SIGUSR1));
        while (!j->on_stack) sleep_ms(1);
        ask(j, ADD, 6), answered(j);
        is_strict(j);
    }
    char v[32];
    CHECK_STR("0", field("/proc/thread-self/status", "Seccomp", v, sizeof v), "Seccomp of who asks");
    for (int i = 0; i < made; i++) forbidden(&jobs[i]);
}
