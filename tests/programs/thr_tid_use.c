#include "common.h"
#include <sys/socket.h>

static const char *about = "what goes by a thread's TID or the PID, afterwards: raise, pthread_kill, cancellation, join, mutexes (recursive, error-checking, robust, priority-inheriting) taken anew, timers, owners of descriptors";

#define N 4
enum { IDLE, LOCK, RAISE, HOLD, WAIT, END };
static pthread_t handles[N], joiner, cancelled;
static volatile int todo[N], done[N], hits[N], joined, io_hits[N + 1];
static pid_t tids[N];
static __thread int self = N;
static pthread_mutex_t mutex[4]; // recursive, error-checking, robust, priority-inheriting
static timer_t timer;
static int by_tid[2], by_pid[2], by_group[2];

static void hit(int n) { (void)n, hits[self % N]++, got_signal(); }
static void on_io(int n) { (void)n, io_hits[self]++, got_signal(); }

static void lock_all(long i) {
    CHECK_EQ(0, pthread_mutex_lock(&mutex[0]), "recursive mutex, thread %ld", i);
    CHECK_EQ(0, pthread_mutex_lock(&mutex[0]), "recursive mutex again, thread %ld", i);
    CHECK_EQ(0, pthread_mutex_unlock(&mutex[0]), "its unlock, thread %ld", i);
    CHECK_EQ(0, pthread_mutex_unlock(&mutex[0]), "its last unlock, thread %ld", i);
    CHECK_EQ(0, pthread_mutex_lock(&mutex[1]), "error-checking mutex, thread %ld", i);
    CHECK_EQ(EDEADLK, pthread_mutex_lock(&mutex[1]), "error-checking mutex again, thread %ld", i);
    CHECK_EQ(0, pthread_mutex_unlock(&mutex[1]), "its unlock, thread %ld", i);
    CHECK_EQ(EPERM, pthread_mutex_unlock(&mutex[1]), "its unlock by none, thread %ld", i);
    for (int k = 2; k < 4; k++) {
        int e = pthread_mutex_lock(&mutex[k]);
        if (k == 2 && e == EOWNERDEAD) e = pthread_mutex_consistent(&mutex[k]);
        CHECK_EQ(0, e, "mutex %d, thread %ld", k, i);
        sleep_ms(2);
        CHECK_EQ(0, pthread_mutex_unlock(&mutex[k]), "unlock of mutex %d, thread %ld", k, i);
    }
}
static void *thread(void *arg) {
    long i = (long)arg;
    self = (int)i;
    tids[i] = tid_now();
    for (int last = IDLE;;) {
        int now = todo[i];
        if (now == last) {
            sleep_ms(1);
            continue;
        }
        last = now, tids[i] = tid_now();
        if (now == LOCK) lock_all(i);
        if (now == RAISE) raise(SIGUSR1);
        if (now == HOLD) pthread_mutex_lock(&mutex[2]);
        if (now == END) return (void *)(i + 1);
        done[i] = now;
    }
}
static void tell(int i, int what) {
    todo[i] = what;
    if (what == END) return;
    for (int k = 0; k < 5000 && done[i] != what; k++) sleep_ms(1);
    CHECK_EQ(what, done[i], "what thread %d has done", i);
}
// Waits for a thread by its TID, from before the checkpoint on.
static void *join(void *arg) {
    void *value = NULL;
    joined = pthread_join(handles[3], &value) == 0 && value == (void *)4;
    return arg;
}
static void *wait_for_ever(void *arg) {
    for (;;) pause();
    return arg;
}
static void owned(int *pair, int type, pid_t who) {
    struct f_owner_ex o = {type, who};
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    MUST(fcntl(pair[0], F_SETOWN_EX, &o));
    if (type != F_OWNER_PGRP) MUST(fcntl(pair[0], F_SETFL, O_ASYNC | O_NONBLOCK)); // the group is not ours alone
}
static void setup(void) {
    pthread_mutexattr_t a[4];
    for (int k = 0; k < 4; k++) pthread_mutexattr_init(&a[k]);
    MUST0(pthread_mutexattr_settype(&a[0], PTHREAD_MUTEX_RECURSIVE));
    MUST0(pthread_mutexattr_settype(&a[1], PTHREAD_MUTEX_ERRORCHECK));
    MUST0(pthread_mutexattr_setrobust(&a[2], PTHREAD_MUTEX_ROBUST));
    MUST0(pthread_mutexattr_setprotocol(&a[3], PTHREAD_PRIO_INHERIT));
    for (int k = 0; k < 4; k++) pthread_mutex_init(&mutex[k], &a[k]);
    signal(SIGUSR1, hit), signal(SIGIO, on_io);
    for (long i = 0; i < N; i++) MUST0(pthread_create(&handles[i], NULL, thread, (void *)i));
    for (long i = 0; i < N; i++) tell((int)i, LOCK);
    MUST0(pthread_create(&joiner, NULL, join, NULL));
    MUST0(pthread_create(&cancelled, NULL, wait_for_ever, NULL));
    struct sigevent e = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGUSR1};
    e.sigev_notify_thread_id = tids[1];
    MUST(timer_create(CLOCK_MONOTONIC, &e, &timer));
    owned(by_tid, F_OWNER_TID, tids[2]);
    owned(by_pid, F_OWNER_PID, (pid_t)syscall(SYS_getpid));
    owned(by_group, F_OWNER_PGRP, getpgrp());
    sleep_ms(20);
}
static void spoil(void) {
    struct f_owner_ex o = {F_OWNER_TID, tids[0]};
    MUST(fcntl(by_tid[0], F_SETOWN_EX, &o));
    fcntl(by_tid[0], F_SETOWN, 0);
}
static void owner(int fd, int type, pid_t who, const char *what) {
    struct f_owner_ex o;
    if (!CHECK_OK(fcntl(fd, F_GETOWN_EX, &o), "owner by %s", what)) return;
    CHECK_EQ(type, o.type, "type of the owner by %s", what);
    CHECK_EQ(who, o.pid, "owner by %s", what);
}
static void prove(void) {
    void *value;
    for (int i = 0; i < N; i++) {
        CHECK_EQ(0, hits[i], "signals of thread %d before", i);
        todo[i] = IDLE;
    }
    sleep_ms(10);
    for (int i = 0; i < N; i++) {
        tell(i, LOCK), tell(i, RAISE);
        CHECK_EQ(1, hits[i], "raise in thread %d", i);
    }
    for (int i = 0; i < N; i++) {
        CHECK_EQ(0, pthread_kill(handles[i], SIGUSR1), "pthread_kill of thread %d", i);
        for (int k = 0; k < 2000 && hits[i] < 2; k++) sleep_ms(1);
        CHECK_EQ(2, hits[i], "signals of thread %d after pthread_kill", i);
    }
    struct itimerspec soon = {{0, 0}, {0, MS}};
    CHECK_OK(timer_settime(timer, 0, &soon, NULL), "the timer");
    for (int k = 0; k < 2000 && hits[1] < 3; k++) sleep_ms(1);
    CHECK_EQ(3, hits[1], "signals of thread 1 after its timer");
    owner(by_tid[0], F_OWNER_TID, tids[2], "TID");
    owner(by_pid[0], F_OWNER_PID, (pid_t)syscall(SYS_getpid), "PID");
    owner(by_group[0], F_OWNER_PGRP, getpgrp(), "group");
    CHECK_EQ(1, write(by_tid[1], "x", 1), "data for thread 2's descriptor");
    for (int k = 0; k < 2000 && !io_hits[2]; k++) sleep_ms(1);
    CHECK_EQ(1, io_hits[2], "SIGIO of thread 2");
    // one dies with the robust mutex
    tell(2, HOLD);
    todo[2] = END;
    CHECK_EQ(0, pthread_join(handles[2], &value), "join of thread 2");
    CHECK_EQ(EOWNERDEAD, pthread_mutex_lock(&mutex[2]), "the robust mutex whose owner has died");
    CHECK_EQ(0, pthread_mutex_consistent(&mutex[2]), "making it consistent");
    CHECK_EQ(0, pthread_mutex_unlock(&mutex[2]), "unlocking it");
    todo[3] = END;
    CHECK_EQ(0, pthread_join(joiner, NULL), "join of the joiner");
    CHECK_EQ(1, joined, "thread 3 joined by who had waited for it");
    CHECK_EQ(0, pthread_cancel(cancelled), "pthread_cancel");
    CHECK_EQ(0, pthread_join(cancelled, &value), "join of the cancelled one");
    CHECK(value == PTHREAD_CANCELED, "what it returned");
    todo[0] = IDLE, done[0] = IDLE;
    pthread_t more; // new ones, with all that is there
    todo[2] = IDLE;
    if (pthread_create(&more, NULL, thread, (void *)2L) == 0) {
        tell(2, LOCK);
        todo[2] = END;
        CHECK_EQ(0, pthread_join(more, &value), "join of a new thread");
    } else fail("a new thread, expected success, got an error");
    CHECK_EQ(gettid(), tid_now(), "TID by glibc and by the kernel");
    todo[0] = todo[1] = END;
    for (int i = 0; i < 2; i++) CHECK_EQ(0, pthread_join(handles[i], &value), "join of thread %d", i);
    lock_all(N);
}
