#include "common.h"
#include <semaphore.h>

static const char *about = "threads waiting for a mutex, a PI mutex, a robust one, a condition, a barrier, a read-write lock, a semaphore, once: all get through afterwards";

enum { MUTEX, PI, ROBUST, COND, BARRIER, RWLOCK, SEM, ONCE, KINDS };
static const char *const names[] = {"mutex", "PI mutex", "robust mutex", "condition", "barrier", "read-write lock", "semaphore", "once"};
static pthread_mutex_t mutex[3], cond_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static pthread_barrier_t barrier;
static pthread_rwlock_t rwlock = PTHREAD_RWLOCK_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static sem_t sem;
static int predicate, through[KINDS], started, errors;
static volatile int once_go;
static pthread_t handles[KINDS][3];

static void slow_once(void) { while (!once_go) sleep_ms(2); }
static void *waiter(void *arg) {
    long kind = (long)arg;
    int e = 0;
    __atomic_fetch_add(&started, 1, __ATOMIC_SEQ_CST);
    switch (kind) {
    case COND:
        pthread_mutex_lock(&cond_mutex);
        while (!predicate) e |= pthread_cond_wait(&cond, &cond_mutex);
        pthread_mutex_unlock(&cond_mutex);
        break;
    case BARRIER: e = pthread_barrier_wait(&barrier) > 0; break;
    case RWLOCK: e = pthread_rwlock_rdlock(&rwlock) || pthread_rwlock_unlock(&rwlock); break;
    case SEM: e = sem_wait(&sem) ? errno : 0; break;
    case ONCE: e = pthread_once(&once, slow_once); break;
    default: e = pthread_mutex_lock(&mutex[kind]) || pthread_mutex_unlock(&mutex[kind]);
    }
    if (e) __atomic_fetch_add(&errors, 1, __ATOMIC_SEQ_CST);
    __atomic_fetch_add(&through[kind], 1, __ATOMIC_SEQ_CST);
    return NULL;
}
static void setup(void) {
    pthread_mutexattr_t a[3];
    for (int i = 0; i < 3; i++) pthread_mutexattr_init(&a[i]);
    MUST0(pthread_mutexattr_setprotocol(&a[PI], PTHREAD_PRIO_INHERIT));
    MUST0(pthread_mutexattr_setrobust(&a[ROBUST], PTHREAD_MUTEX_ROBUST));
    for (int i = 0; i < 3; i++) pthread_mutex_init(&mutex[i], &a[i]), pthread_mutex_lock(&mutex[i]);
    pthread_barrier_init(&barrier, NULL, 4);
    pthread_rwlock_wrlock(&rwlock);
    sem_init(&sem, 0, 0);
    for (long k = 0; k < KINDS; k++)
        for (int i = 0; i < 3; i++) MUST0(pthread_create(&handles[k][i], NULL, waiter, (void *)k));
    while (__atomic_load_n(&started, __ATOMIC_SEQ_CST) < KINDS * 3) sleep_ms(1);
    sleep_ms(30);
}
static void spoil(void) {
    sem_post(&sem);
    while (!__atomic_load_n(&through[SEM], __ATOMIC_SEQ_CST)) sleep_ms(1);
}
static void prove(void) {
    for (int k = 0; k < KINDS; k++) CHECK_EQ(0, through[k], "threads through the %s before", names[k]);
    for (int i = 0; i < 3; i++) CHECK_EQ(0, pthread_mutex_unlock(&mutex[i]), "unlocking the %s", names[i]);
    pthread_mutex_lock(&cond_mutex);
    predicate = 1;
    pthread_cond_broadcast(&cond);
    pthread_mutex_unlock(&cond_mutex);
    pthread_barrier_wait(&barrier);
    pthread_rwlock_unlock(&rwlock);
    for (int i = 0; i < 3; i++) sem_post(&sem);
    once_go = 1;
    struct timespec limit;
    clock_gettime(CLOCK_REALTIME, &limit), limit.tv_sec += 5;
    for (int k = 0; k < KINDS; k++) {
        for (int i = 0; i < 3; i++) CHECK_EQ(0, pthread_timedjoin_np(handles[k][i], NULL, &limit), "join of waiter %d for the %s", i, names[k]);
        CHECK_EQ(3, through[k], "threads through the %s", names[k]);
    }
    CHECK_EQ(0, errors, "errors of the waiting calls");
}
