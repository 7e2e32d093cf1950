#include "common.h"
#include <sys/prctl.h>

static const char *about = "ends of threads: join and tryjoin (clear_child_tid), a detached one, cancellation, TLS destructors, one that had ended before";

static volatile int go, destroyed, detached_done;
static pthread_key_t key;
static pthread_t handles[4], ended;
static void *address[4];

static void destructor(void *v) { __atomic_fetch_add(&destroyed, (int)(long)v, __ATOMIC_SEQ_CST); }
static void *waits(void *arg) {
    long i = (long)arg;
    pthread_setspecific(key, (void *)(i + 1));
    prctl(PR_GET_TID_ADDRESS, &address[i]);
    while (!go) sleep_ms(2);
    return (void *)(i + 100);
}
static void *forever(void *arg) {
    (void)arg;
    pthread_setspecific(key, (void *)50L);
    for (;;) pause();
    return NULL;
}
static void *returns(void *arg) { return arg; }
static void *detached(void *arg) {
    while (!go) sleep_ms(2);
    detached_done = 1;
    return arg;
}
static void setup(void) {
    pthread_t d;
    MUST0(pthread_key_create(&key, destructor));
    for (long i = 0; i < 3; i++) MUST0(pthread_create(&handles[i], NULL, waits, (void *)i));
    MUST0(pthread_create(&handles[3], NULL, forever, NULL));
    MUST0(pthread_create(&ended, NULL, returns, (void *)77L)); // ends at once, joined at the proof
    MUST0(pthread_create(&d, NULL, detached, NULL));
    MUST0(pthread_detach(d));
    sleep_ms(30);
}
static void spoil(void) {
    go = 1;
    while (!__atomic_load_n(&destroyed, __ATOMIC_SEQ_CST)) sleep_ms(1);
}
static void prove(void) {
    void *r = NULL;
    int early = pthread_tryjoin_np(handles[0], NULL);
    CHECK_EQ(EBUSY, early, "tryjoin of a running thread");
    CHECK_EQ(0, destroyed, "TLS destructors run so far");
    go = 1;
    for (long i = 0; i < 3; i++) {
        if (i == 0 && early == 0) continue; // joined already
        struct timespec limit;
        clock_gettime(CLOCK_REALTIME, &limit), limit.tv_sec += 5;
        CHECK_EQ(0, pthread_timedjoin_np(handles[i], &r, &limit), "join of thread %ld", i);
        CHECK_EQ(100 + i, (long)r, "value of thread %ld", i);
    }
    CHECK_EQ(0, pthread_join(ended, &r), "join of a thread that ended before");
    CHECK_EQ(77, (long)r, "its value");
    MUST0(pthread_cancel(handles[3]));
    CHECK_EQ(0, pthread_join(handles[3], &r), "join of the cancelled thread");
    CHECK(r == PTHREAD_CANCELED, "its value is PTHREAD_CANCELED");
    for (int i = 0; i < 200 && !detached_done; i++) sleep_ms(5);
    CHECK_EQ(1, detached_done, "the detached thread ran to its end");
    CHECK_EQ(1 + 2 + 3 + 50, destroyed, "sum of the TLS destructors");
}
