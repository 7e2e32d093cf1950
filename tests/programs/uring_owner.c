#include "common.h"
#include "uring.h"

static const char *about = "rings of io_uring that belong to one thread each (SINGLE_ISSUER; DEFER_TASKRUN), the first and three others, used before, idle: counts and unread completions go on, others get EEXIST, what is deferred waits for its thread";
static const char *usage = "  --what ended    the thread has ended, which is refused\n";

static bool ended;
static int own_option(const char *name, const char *value) { return !strcmp(name, "--what") && value && !strcmp(value, "ended") ? ended = true, 2 : 0; }
static int (*option)(const char *, const char *) = own_option;

#define RINGS 4
// The first belongs to the first thread, each of the others to one of its own. The last one's thread waits in it.
static struct ring rings[RINGS];
static const unsigned of_ring[RINGS] = {IORING_SETUP_SINGLE_ISSUER, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
    IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_NO_SQARRAY, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN};
static const unsigned entries[RINGS] = {8, 8, 64, 4};
static pthread_t threads[RINGS];
static volatile pid_t tids[RINGS];
static volatile int waited = -1;
static int file[2]; // a pipe
static char *fixed;
static bool there = true;

// One thing at a time is done, by one thread.
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static void (*job)(int);
static int whose;

static void by(int n, void (*f)(int)) {
    if (n == 0) {
        f(0);
        return;
    }
    pthread_mutex_lock(&turn);
    job = f, whose = n;
    pthread_cond_broadcast(&changed);
    while (job) pthread_cond_wait(&changed, &turn);
    pthread_mutex_unlock(&turn);
}
static void *owner(void *arg) {
    int n = (int)(intptr_t)arg;
    tids[n] = (pid_t)tid_now();
    for (bool last = false; !last;) {
        pthread_mutex_lock(&turn);
        while (!job || whose != n) pthread_cond_wait(&changed, &turn);
        void (*f)(int) = job;
        f(n);
        last = n == RINGS - 1;
        job = NULL;
        pthread_cond_broadcast(&changed);
        pthread_mutex_unlock(&turn);
    }
    if (!there) return arg;
    long r = syscall(SYS_io_uring_enter, rings[n].fd, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0);
    waited = r < 0 ? errno : 0;
    pthread_mutex_lock(&turn);
    while (!job || whose != n) pthread_cond_wait(&changed, &turn);
    job(n);
    job = NULL;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&turn);
    return arg;
}

static void begin(int n) {
    struct ring *r = &rings[n];
    if (!make(r, entries[n], of_ring[n], 0)) {
        there = false;
        return;
    }
    for (uint64_t i = 0; i < 1003; i++) nothing(r, i);
    if (n == RINGS - 1) return;
    MUST(syscall(SYS_io_uring_register, r->fd, IORING_REGISTER_BUFFERS, &(struct iovec){fixed, PAGE}, 1));
    for (uint64_t i = 0; i < 3; i++) entry(r, IORING_OP_NOP, -1, NULL, 0, 5000 + i);
    MUST(enter(r, 3)); // nobody reads these
    entry(r, IORING_OP_NOP, -1, NULL, 0, 6000 + (uint64_t)n); // prepared, not submitted
}
static void *ends(void *arg) { return begin(0), arg; }

static void setup(void) {
    MUST(pipe(file));
    fixed = MUST(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (ended) {
        MUST0(pthread_create(&threads[0], NULL, ends, NULL));
        MUST0(pthread_join(threads[0], NULL));
    }
    for (int n = 0; n < RINGS && there && !ended; n++) {
        if (n) MUST0(pthread_create(&threads[n], NULL, owner, (void *)(intptr_t)n));
        by(n, begin);
    }
    if (!there) skip("no such rings");
    if (!ended) until_in_call(&tids[RINGS - 1], SYS_io_uring_enter);
}
static void spoil(void) {
    struct ring *r = &rings[ended ? 0 : 2];
    ((struct io_uring_cqe *)(r->rings + r->p.cq_off.cqes))[*word(r, r->p.cq_off.head) & (r->p.cq_entries - 1)].user_data = 9;
}

static bool deferred(int n) { return of_ring[n] & IORING_SETUP_DEFER_TASKRUN; }
// As a thread that it does not belong to.
static void stranger(int n) {
    struct ring *r = &rings[n];
    CHECK_ERRNO(EEXIST, syscall(SYS_io_uring_register, r->fd, IORING_UNREGISTER_BUFFERS, NULL, 0), "another thread registers in ring %d", n);
    CHECK_ERRNO(EEXIST, syscall(SYS_io_uring_enter, r->fd, 1, 0, 0, NULL, 0), "another thread submits to ring %d", n);
    if (deferred(n)) CHECK_ERRNO(EEXIST, syscall(SYS_io_uring_enter, r->fd, 0, 0, IORING_ENTER_GETEVENTS, NULL, 0), "another thread asks ring %d", n);
    else CHECK_OK(syscall(SYS_io_uring_enter, r->fd, 0, 0, IORING_ENTER_GETEVENTS, NULL, 0), "another thread asks ring %d", n);
}
static void goes_on(int n) {
    struct ring *r = &rings[n];
    for (uint64_t i = 0; i < 3; i++) finished(r, 5000 + i, 0);
    CHECK_EQ(1, enter(r, 1), "submitting what was prepared (errno %d)", errno);
    finished(r, 6000 + (uint64_t)n, 0);
    CHECK_EQ(1007, *word(r, r->p.sq_off.head), "requests of ring %d", n);
    CHECK_EQ(1007, *word(r, r->p.cq_off.tail), "completions of ring %d", n);
    MUST(write(file[1], "some", 4));
    entry(r, IORING_OP_READ_FIXED, file[0], fixed, 4, 7000)->buf_index = 0;
    CHECK_EQ(1, enter(r, 1), "reading into the registered buffer");
    finished(r, 7000, 4);
    CHECK_MEM("some", fixed, 4, "what was read");
    for (uint64_t i = 0; i < 300; i++) nothing(r, i); // round the ring
    for (uint64_t i = 0; i < entries[n]; i++) entry(r, IORING_OP_NOP, -1, NULL, 0, i);
    CHECK_EQ(entries[n], enter(r, entries[n]), "a full queue");
    for (uint64_t i = 0; i < entries[n]; i++) finished(r, i, 0);
    entry(r, IORING_OP_READ, file[0], fixed, 4, 8000);
    CHECK_EQ(1, enter(r, 0), "a read that waits");
}
static void arrives(int n) {
    struct ring *r = &rings[n];
    if (deferred(n)) CHECK_EQ(*word(r, r->p.cq_off.head), __atomic_load_n(word(r, r->p.cq_off.tail), __ATOMIC_ACQUIRE), "completions of ring %d before its thread asks", n);
    CHECK_EQ(0, enter(r, 1), "waiting for the read");
    finished(r, 8000, 4);
}
static void *asks(void *arg) {
    for (int n = 0; n < RINGS; n++) stranger(n);
    return arg;
}
static void last(int n) {
    CHECK_EQ(0, waited, "errno of its wait");
    CHECK_EQ(1, *word(&rings[n], rings[n].p.cq_off.tail) - *word(&rings[n], rings[n].p.cq_off.head), "completions of the ring that is waited in");
    finished(&rings[n], 9000, 0);
    for (uint64_t i = 0; i < 20; i++) nothing(&rings[n], i);
}
static void message(int n) {
    // a completion for the last ring, by a request of this one
    entry(&rings[n], IORING_OP_MSG_RING, rings[RINGS - 1].fd, NULL, 0, 9100)->off = 9000;
    CHECK_EQ(1, enter(&rings[n], 1), "a message");
    finished(&rings[n], 9100, 0);
}
static void prove(void) {
    if (ended) {
        stranger(0);
        for (uint64_t i = 0; i < 3; i++) finished(&rings[0], 5000 + i, 0);
        return;
    }
    CHECK_EQ(-1, waited, "a thread waits for a completion");
    pthread_t other;
    MUST0(pthread_create(&other, NULL, asks, NULL));
    MUST0(pthread_join(other, NULL));
    for (int n = 1; n < RINGS; n++) stranger(n);
    for (int n = 0; n < RINGS - 1; n++) {
        by(n, goes_on);
        MUST(write(file[1], "late", 4));
        by(n, arrives);
    }
    by(1, message);
    by(RINGS - 1, last);
    CHECK_EQ(1024, *word(&rings[RINGS - 1], rings[RINGS - 1].p.cq_off.tail), "completions of the last ring");
}
