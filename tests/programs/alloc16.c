#include "common.h"

static const char *about = "16 threads that allocate, fill, check, resize, pass on and free blocks all the time: none is damaged, lost or there twice";
static const char *usage = "  --nap-us N     each thread's pause between two bursts, instead of 20,000\n  --seed N       other sizes and orders";

// What a thread holds, and what lies in the boxes by which threads pass blocks on, is bounded: 544 blocks of some 3 KiB on average.
enum { THREADS = 16, OWN = 32, BOXES = 32, BURST = 64 };
struct block {
    uint64_t seed, bytes, sum; // the words follow from the seed; sum guards the two before it
    uint64_t words[];
};
// DIR/work: for whoever watches, without a descriptor. Not part of the state: the file goes on where the program does.
struct shown {
    uint64_t ops[THREADS], damaged;
};
static struct shown *shown;
static struct block *boxes[BOXES], *left[THREADS][OWN], *spare;
static uint64_t ops[THREADS], made[THREADS], freed[THREADS], passed[THREADS];
static uint64_t seed = 16, damaged;
static int64_t nap_us = 20000;
static int over;
static pthread_t handles[THREADS];

static int own_option(const char *name, const char *value) {
    if (value && !strcmp(name, "--nap-us")) return nap_us = atol(value), 2;
    if (value && !strcmp(name, "--seed")) return seed = strtoull(value, NULL, 10), 2;
    return 0;
}
static int (*option)(const char *, const char *) = own_option;

static uint64_t sum_of(const struct block *b) { return mix(b->seed ^ mix(b->bytes)); }
static size_t bytes_of(uint64_t r) { // mostly small
    return (r % 16 ? r / 16 % 2048 : r / 16 % 65536) & ~7UL;
}
static struct block *filled(struct block *b, size_t bytes, uint64_t r) {
    b->seed = r, b->bytes = bytes, b->sum = sum_of(b);
    fill(b->words, bytes, r);
    return b;
}
static void check(struct block *b, size_t bytes, const char *when) { // its first `bytes`, by what its header says
    bool good = b->sum == sum_of(b);
    for (size_t i = 0; good && i < bytes / 8; i++) good = b->words[i] == mix(b->seed * 0x100000001b3ULL + i);
    if (good) return;
    __atomic_fetch_add(&damaged, 1, __ATOMIC_SEQ_CST);
    __atomic_fetch_add(&shown->damaged, 1, __ATOMIC_SEQ_CST);
    fail("a block of %zu bytes %s, expected it whole, got it damaged", bytes, when);
}
static struct block *give_up(long me, struct block *b) {
    check(b, b->bytes, "to be freed");
    free(b);
    freed[me]++;
    return NULL;
}
static struct block *resized(struct block *b, size_t bytes, uint64_t r) {
    size_t old = b->bytes, common = old < bytes ? old : bytes;
    check(b, old, "to be resized");
    b = realloc(b, sizeof *b + bytes);
    if (!b) must_failed("realloc", __FILE__, __LINE__, errno);
    check(b, common, "resized");
    return filled(b, bytes, r);
}
static void step(long me, struct block **own, uint64_t r) {
    struct block **b = &own[r % OWN];
    r /= OWN;
    uint64_t what = r % 4;
    r /= 4;
    if (!*b) {
        size_t bytes = bytes_of(r);
        if (!(*b = malloc(sizeof **b + bytes))) must_failed("malloc", __FILE__, __LINE__, errno);
        made[me]++;
        filled(*b, bytes, r);
    } else if (what == 0) {
        *b = give_up(me, *b);
    } else if (what == 1) {
        *b = resized(*b, bytes_of(r), r);
    } else { // another thread's for mine, or for nothing yet
        *b = __atomic_exchange_n(&boxes[r % BOXES], *b, __ATOMIC_SEQ_CST);
        if (*b) check(*b, (*b)->bytes, "passed on"), passed[me]++;
    }
}
static void *worker(void *arg) {
    long me = (long)arg;
    uint64_t r = mix(seed * THREADS + (uint64_t)me);
    struct block *own[OWN] = {0}; // known by its stack alone until the end
    while (!__atomic_load_n(&over, __ATOMIC_SEQ_CST)) {
        for (int i = 0; i < BURST; i++) step(me, own, r = mix(r));
        __atomic_fetch_add(&ops[me], BURST, __ATOMIC_SEQ_CST);
        shown->ops[me] = ops[me];
        if (nap_us) sleep_ns(nap_us * 1000);
    }
    memcpy(left[me], own, sizeof own);
    return NULL;
}
static void setup(void) {
    int fd = MUST(open(work("work"), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    MUST(ftruncate(fd, PAGE));
    shown = MUST(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    close(fd);
    for (long i = 0; i < THREADS; i++) MUST0(pthread_create(&handles[i], NULL, worker, (void *)i));
    for (long i = 0; i < THREADS; i++)
        while (!__atomic_load_n(&ops[i], __ATOMIC_SEQ_CST)) sleep_ms(1);
}
static void spoil(void) { // one bit of a block that is on its way
    struct block *b = NULL;
    int i = 0;
    while (!(b = __atomic_exchange_n(&boxes[i % BOXES], NULL, __ATOMIC_SEQ_CST))) i++;
    b->bytes ? (b->words[0] ^= 1) : (b->sum ^= 1);
    spare = __atomic_exchange_n(&boxes[i % BOXES], b, __ATOMIC_SEQ_CST);
}
static void prove(void) {
    uint64_t before[THREADS], alive = 0, balance = 0, exchanged = 0;
    for (int i = 0; i < THREADS; i++) before[i] = __atomic_load_n(&ops[i], __ATOMIC_SEQ_CST);
    for (int i = 0; i < THREADS; i++) {
        int64_t end = mono_ns() + 15 * SEC;
        while (__atomic_load_n(&ops[i], __ATOMIC_SEQ_CST) == before[i] && mono_ns() < end) sleep_ms(1);
        CHECK(__atomic_load_n(&ops[i], __ATOMIC_SEQ_CST) > before[i], "operations of thread %d after the gate", i);
    }
    __atomic_store_n(&over, 1, __ATOMIC_SEQ_CST);
    for (int i = 0; i < THREADS; i++) CHECK_EQ(0, pthread_join(handles[i], NULL), "join of thread %d", i);
    for (int i = 0; i < THREADS; i++) balance += made[i] - freed[i], exchanged += passed[i];
    for (int i = 0; i < THREADS; i++)
        for (int k = 0; k < OWN; k++)
            if (left[i][k]) check(left[i][k], left[i][k]->bytes, "left with its thread"), free(left[i][k]), alive++;
    for (int i = 0; i < BOXES; i++)
        if (boxes[i]) check(boxes[i], boxes[i]->bytes, "left in a box"), free(boxes[i]), alive++;
    if (spare) check(spare, spare->bytes, "set aside"), free(spare), alive++;
    CHECK_EQ(balance, alive, "blocks that are there, by what was made and freed");
    CHECK_EQ(0, damaged, "damaged blocks");
    CHECK(exchanged > 0, "blocks passed from thread to thread");
    snprintf(extra, sizeof extra, "passed %llu\n", (unsigned long long)exchanged);
}
