#include "common.h"

static const char *about = "the largest gap each thread noticed while it ran: the pause of a checkpoint, measured from inside";
static const char *usage = "  --threads N    1 (default): spins on the clock. N > 1: all sleep to an absolute time, again and again\n"
                           "  --spin         N > 1: the first spins all the same\n"
                           "  --period-us P  of the sleepers; default 1000, or 50 N where that is more (20,000 wake-ups a second in all)\n"
                           "  --mib M        incompressible memory to fill first\n"
                           "  --thp          ask for huge pages for it (else refuse them)\n"
                           "  --write        the spinning thread also writes one page after the other\n"
                           "  --samples      whenever DIR/sample appears: DIR/gap gets the largest gap since the last time,\n"
                           "                 and the spinning thread's over 0.3 ms, in their order; then it is removed";

static long threads = 1, mib, period_us;
static int64_t period;
static bool thp, writes, spins, samples;
static unsigned char *memory;
struct beat {
    int64_t worst, at, beats, first;
    unsigned char pad[32];
};
static struct beat *beats;
static struct { int64_t at, length; } gaps[256]; // the spinning thread's since the last sample
static volatile unsigned gaps_count;
static volatile int stop, started;

static int own_option(const char *name, const char *value) {
    if (!strcmp(name, "--threads") && value) return threads = atol(value), 2;
    if (!strcmp(name, "--mib") && value) return mib = atol(value), 2;
    if (!strcmp(name, "--period-us") && value) return period_us = atol(value), 2;
    if (!strcmp(name, "--spin")) return spins = true, 1;
    if (!strcmp(name, "--thp")) return thp = true, 1;
    if (!strcmp(name, "--samples")) return samples = true, 1;
    if (!strcmp(name, "--write")) return writes = true, 1;
    return 0;
}
static int (*option)(const char *, const char *) = own_option;

static void *spin(void *arg) { // gap between two looks at the clock
    struct beat *b = arg;
    int64_t last = mono_ns(), now;
    size_t page = 0, pages = (size_t)mib << 8;
    b->first = last;
    __atomic_fetch_add(&started, 1, __ATOMIC_SEQ_CST);
    for (; !stop; last = now) {
        now = mono_ns();
        if (now - last > b->worst) b->worst = now - last, b->at = last;
        if (now - last > 300000 && gaps_count < COUNT(gaps)) gaps[gaps_count].at = last, gaps[gaps_count].length = now - last, gaps_count++;
        b->beats++;
        if (writes && pages) memory[(page++ % pages) * PAGE] ^= 1;
    }
    return NULL;
}
static void *beat(void *arg) { // how late a wake-up at an absolute time is; a late one starts anew
    struct beat *b = arg;
    int64_t due = mono_ns() + period * (b - beats + 1) / threads; // phases spread evenly: some thread is always about to wake
    b->first = due;
    __atomic_fetch_add(&started, 1, __ATOMIC_SEQ_CST);
    while (!stop) {
        struct timespec t = {due / SEC, due % SEC};
        int r = (int)syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
        if (r != 0) __atomic_fetch_add(&eintr_seen, 1, __ATOMIC_SEQ_CST);
        int64_t now = mono_ns(), late = now - due;
        if (late > b->worst) b->worst = late, b->at = due;
        b->beats++;
        due = late > period / 2 ? now + period : due + period;
    }
    return NULL;
}
static pthread_t *handles;
static void setup(void) {
    if (threads < 1) threads = 1;
    spins |= threads == 1;
    if (period_us <= 0) period_us = threads > 20 ? threads * 50 : 1000;
    period = period_us * 1000;
    if (mib) {
        size_t bytes = (size_t)mib << 20;
        memory = MUST(mmap(NULL, bytes + (2 << 20), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        memory = (unsigned char *)(((uintptr_t)memory + (2 << 20) - 1) & ~((2UL << 20) - 1));
        madvise(memory, bytes, thp ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
        fill(memory, bytes, 1);
    }
    beats = MUST(mmap(NULL, (size_t)threads * sizeof *beats, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    handles = calloc((size_t)threads, sizeof *handles);
    pthread_attr_t a;
    pthread_attr_init(&a);
    pthread_attr_setstacksize(&a, 128 << 10);
    for (long i = 0; i < threads; i++) MUST0(pthread_create(&handles[i], &a, i == 0 && spins ? spin : beat, &beats[i]));
    while (started < threads) sleep_ms(1);
    sleep_ms(50 + 2 * period_us / 1000);
    for (long i = 0; i < threads; i++) beats[i].worst = beats[i].at = 0; // starting up does not count
}
static void sample(void) { // the figures so far, and from here on anew
    if (!samples || access(work("sample"), F_OK) != 0) return;
    int64_t worst = 0, at = 0;
    long who = 0;
    for (long i = 0; i < threads; i++) {
        if (beats[i].worst > worst) worst = beats[i].worst, at = beats[i].at, who = i;
        beats[i].worst = beats[i].at = 0;
    }
    static char text[16384];
    int n = snprintf(text, sizeof text, "worst_ns %ld\nworst_thread %ld\nworst_at_ns %ld\n", (long)worst, who, (long)at);
    for (unsigned i = 0; i < gaps_count; i++) n += snprintf(text + n, sizeof text - (size_t)n, "gap_ns %ld %ld\n", (long)gaps[i].at, (long)gaps[i].length);
    gaps_count = 0;
    MUST(unlink(work("sample")));
    if (!write_file("gap", text)) fail("writing DIR/gap failed");
}
static void (*tick)(void) = sample;
static void spoil(void) { stop = 1, sleep_ms(20), beats[0].beats = 0, beats[threads - 1].first = 0; }
static void prove(void) {
    stop = 1;
    for (long i = 0; i < threads; i++) MUST0(pthread_join(handles[i], NULL));
    int64_t worst = 0, worst_spin = beats[0].worst;
    long who = 0;
    for (long i = 0; i < threads; i++) {
        CHECK(beats[i].beats > 0, "beats of thread %ld", i);
        CHECK(beats[i].first > 0, "start of thread %ld", i);
        if (beats[i].worst > worst) worst = beats[i].worst, who = i;
    }
    if (mib && !writes) {
        uint64_t *w = (uint64_t *)memory;
        for (size_t i = 0; i < (size_t)mib << 17; i += 512) CHECK_HEX(mix(0x100000001b3ULL + i), w[i], "memory at %#zx", i * 8);
    }
    // One "name value" a line, times in ns of CLOCK_MONOTONIC.
    int n = snprintf(extra, sizeof extra, "threads %ld\nmib %ld\nperiod_us %ld\nworst_ns %ld\nworst_thread %ld\nworst_at_ns %ld\n", threads, mib, spins && threads == 1 ? 0 : period_us,
                     (long)worst, who, (long)beats[who].at);
    if (spins)
        snprintf(extra + n, sizeof extra - (size_t)n, "spin_worst_ns %ld\nspin_at_ns %ld\nspin_beats %ld\n", (long)worst_spin, (long)beats[0].at, (long)beats[0].beats);
}
