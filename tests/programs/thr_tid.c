#include "common.h"
#include <dirent.h>

static const char *about = "PID and TIDs as before (unless DORMOUSE_TEST_FRESH_PIDS is set), by call, by /proc and by glibc's cache: error-checking mutexes, pthread_kill, tgkill";

#define N 8
static pid_t pid, tids[N], main_tid;
static char link_before[64];
static volatile int ready_threads, go, hits[N];
static pthread_t handles[N];
static pthread_mutex_t owned[N]; // error-checking, held by its thread (if TIDs stay): the owner is a TID in memory
static __thread int self;
static bool fresh;

static void hit(int n) { (void)n, hits[self]++, got_signal(); }
static void *thread(void *arg) {
    long i = (long)arg;
    self = (int)i;
    tids[i] = tid_now();
    pthread_mutexattr_t a;
    pthread_mutexattr_init(&a);
    pthread_mutexattr_settype(&a, i % 2 ? PTHREAD_MUTEX_ERRORCHECK : PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&owned[i], &a);
    if (!fresh) pthread_mutex_lock(&owned[i]);
    __atomic_fetch_add(&ready_threads, 1, __ATOMIC_SEQ_CST);
    while (!go) sleep_ms(2);
    if (!fresh) CHECK_EQ(tids[i], tid_now(), "gettid of thread %ld", i);
    CHECK_EQ(gettid(), tid_now(), "TID by glibc and by the kernel, thread %ld", i);
    if (fresh) pthread_mutex_lock(&owned[i]);
    CHECK_EQ(i % 2 ? EDEADLK : 0, pthread_mutex_lock(&owned[i]), "locking again what thread %ld owns", i);
    CHECK_EQ(0, pthread_mutex_unlock(&owned[i]), "unlocking it, thread %ld", i);
    if (!fresh) CHECK_EQ(pid, getpid(), "PID seen by thread %ld", i);
    while (go < 2) sleep_ms(2);
    return NULL;
}
static void setup(void) {
    fresh = getenv("DORMOUSE_TEST_FRESH_PIDS") != NULL;
    pid = (pid_t)syscall(SYS_getpid), main_tid = tid_now();
    signal(SIGUSR1, hit);
    for (long i = 0; i < N; i++) MUST0(pthread_create(&handles[i], NULL, thread, (void *)i));
    while (ready_threads < N) sleep_ms(1);
    MUST(readlink("/proc/self", link_before, sizeof link_before - 1));
}
static void spoil(void) { tids[3]++, main_tid++, pid++; } // memory cannot be made wrong in the kernel: our memory of it is
static void prove(void) {
    char link[64] = "", path[64];
    if (!fresh) {
        CHECK_EQ(pid, syscall(SYS_getpid), "getpid");
        CHECK_EQ(main_tid, tid_now(), "gettid of the main thread");
        CHECK_OK(readlink("/proc/self", link, sizeof link - 1), "/proc/self");
        CHECK_STR(link_before, link, "/proc/self");
    }
    go = 1;
    sleep_ms(20);
    int listed = 0;
    DIR *d = opendir("/proc/self/task");
    while (d && readdir(d)) listed++;
    if (d) closedir(d);
    CHECK_EQ(N + 1, listed - 2, "threads in /proc/self/task");
    for (int i = 0; i < N; i++) {
        snprintf(path, sizeof path, "/proc/self/task/%d", tids[i]);
        if (!fresh) CHECK_EQ(0, access(path, F_OK), "thread %d in /proc", i);
        CHECK_EQ(0, pthread_kill(handles[i], SIGUSR1), "pthread_kill of thread %d", i);
        if (!fresh) CHECK_OK(syscall(SYS_tgkill, pid, tids[i], SIGUSR1), "tgkill of thread %d", i);
    }
    sleep_ms(20);
    go = 2;
    for (int i = 0; i < N; i++) {
        MUST0(pthread_join(handles[i], NULL));
        CHECK(hits[i] >= 1, "signals of thread %d", i); // two may have become one
    }
}
