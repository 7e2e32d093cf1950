#include "common.h"
#include <linux/futex.h>

static const char *about = "1,000 threads blocked on a futex: all there, each with its own TLS, all wake and end";
static const char *usage = "  --threads N    instead of 1,000";

static long n = 1000;
static uint32_t gate_word;
static long blocked, woken, interrupted, right;
static __thread long tls;
static pthread_t *handles;
static volatile pid_t *tids;

static int own_option(const char *name, const char *value) { return !strcmp(name, "--threads") && value ? (n = atol(value), 2) : 0; }
static int (*option)(const char *, const char *) = own_option;

static void *thread(void *arg) {
    tls = (long)arg * 7;
    tids[(long)arg] = (int)tid_now();
    __atomic_fetch_add(&blocked, 1, __ATOMIC_SEQ_CST);
    while (!__atomic_load_n(&gate_word, __ATOMIC_SEQ_CST))
        if (syscall(SYS_futex, &gate_word, FUTEX_WAIT_PRIVATE, 0, NULL) == -1 && errno == EINTR) __atomic_fetch_add(&interrupted, 1, __ATOMIC_SEQ_CST);
    __atomic_fetch_add(&right, tls == (long)arg * 7, __ATOMIC_SEQ_CST);
    __atomic_fetch_add(&woken, 1, __ATOMIC_SEQ_CST);
    return (void *)(tls + 1);
}
static long threads_now(void) {
    char v[32];
    return atol(field("/proc/self/status", "Threads", v, sizeof v));
}
static void setup(void) {
    handles = calloc((size_t)n, sizeof *handles);
    tids = calloc((size_t)n, sizeof *tids);
    pthread_attr_t a;
    pthread_attr_init(&a);
    pthread_attr_setstacksize(&a, 64 << 10);
    for (long i = 0; i < n; i++) MUST0(pthread_create(&handles[i], &a, thread, (void *)i));
    while (__atomic_load_n(&blocked, __ATOMIC_SEQ_CST) < n) sleep_ms(1);
    for (long i = 0; i < n; i++) until_in_call(&tids[i], SYS_futex);
}
static void spoil(void) { // one thread wakes early
    __atomic_store_n(&gate_word, 1, __ATOMIC_SEQ_CST);
    syscall(SYS_futex, &gate_word, FUTEX_WAKE_PRIVATE, 1, NULL);
    while (!__atomic_load_n(&woken, __ATOMIC_SEQ_CST)) sleep_ms(1);
}
static void prove(void) {
    CHECK_EQ(n + 1, threads_now(), "threads by /proc");
    CHECK_EQ(0, woken, "threads awake before the gate opens");
    __atomic_store_n(&gate_word, 1, __ATOMIC_SEQ_CST);
    syscall(SYS_futex, &gate_word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL);
    for (long i = 0; i < n; i++) {
        void *r = NULL;
        MUST0(pthread_join(handles[i], &r));
        CHECK_EQ(i * 7 + 1, (long)r, "value of thread %ld", i);
    }
    CHECK_EQ(n, woken, "threads woken");
    CHECK_EQ(n, right, "threads with their own TLS value");
    CHECK_EQ(0, interrupted, "EINTR of futex");
    CHECK_EQ(1, threads_now(), "threads by /proc at the end");
}
