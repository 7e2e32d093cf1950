// What every behaviour program shares: the protocol of README.md, main(), and the checks.
// A program includes this first and defines setup(), spoil() and prove(); the rest is optional.
#ifndef DORMOUSE_TEST_COMMON_H
#define DORMOUSE_TEST_COMMON_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <sched.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#ifndef sigev_notify_thread_id // musl's name, which glibc lacks
#define sigev_notify_thread_id _sigev_un._tid
#endif
#define MAYBE __attribute__((unused)) static
#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

// ---- what a program defines -------------------------------------------------------------------
static void setup(void); // make the state
static void spoil(void); // --sabotage: ruin it, after the gate and before the proof
static void prove(void); // check all of it, with exact values
// Optional: tentative definitions, so `static const char *about = "..."` in the program gives them a value.
static const char *about;
static void (*tick)(void);                            // called in every round of the gate loop
static int (*option)(const char *name, const char *value); // own arguments: how many it took (0: not mine)
static const char *usage;                             // text on own arguments
static const char *what;                              // NAME of `--what NAME`, if its option is what_option
static void (*around)(void (*body)(void));            // runs gate, spoil and prove: for state that lives on the stack

// ---- what a program may look at ---------------------------------------------------------------
static char dir[PATH_MAX];               // DIR, absolute
static bool sabotage;                    // --sabotage was given
static volatile int signals_got;         // a handler of the program calls got_signal() for each signal it gets
static volatile int eintr_seen;          // calls that returned EINTR: more than signals_got is a failure
static int64_t ready_ns, asleep_ns;      // monotonic time of `ready`; gaps over 20 ms in the gate loop, summed

#define PAGE 4096UL
#define MS 1000000LL
#define SEC 1000000000LL

// The option of a program that only takes which of its variants it is.
MAYBE int what_option(const char *name, const char *value) { return !strcmp(name, "--what") && value ? what = value, 2 : 0; }

MAYBE int64_t now_ns(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * SEC + t.tv_nsec;
}
MAYBE int64_t mono_ns(void) { return now_ns(CLOCK_MONOTONIC); }
MAYBE pid_t tid_now(void) { return (pid_t)syscall(SYS_gettid); } // from the kernel, no cache

MAYBE int got_signal(void) { return __atomic_add_fetch(&signals_got, 1, __ATOMIC_SEQ_CST); }

// Sleeps by the raw call; goes on after EINTR, and counts it.
MAYBE void sleep_ns(int64_t ns) {
    struct timespec want = {ns / SEC, ns % SEC}, left;
    while (syscall(SYS_nanosleep, &want, &left) == -1) {
        if (errno != EINTR) break;
        __atomic_fetch_add(&eintr_seen, 1, __ATOMIC_SEQ_CST);
        want = left;
    }
}
MAYBE void sleep_ms(int64_t ms) { sleep_ns(ms * MS); }

// A path in DIR. The eight latest stay valid.
MAYBE char *work(const char *name) {
    static char buffers[8][PATH_MAX + 256];
    static unsigned next;
    char *b = buffers[__atomic_fetch_add(&next, 1, __ATOMIC_RELAXED) % 8];
    snprintf(b, sizeof buffers[0], "%s/%s", dir, name);
    return b;
}

// ---- the result -------------------------------------------------------------------------------
static char failures[32768];
static size_t failures_len;
static int failures_count;
static pthread_mutex_t failures_lock = PTHREAD_MUTEX_INITIALIZER;

MAYBE bool write_file(const char *name, const char *text) { // whole or not at all
    char tmp[PATH_MAX + 64], *path = work(name);
    snprintf(tmp, sizeof tmp, "%s/.%s.tmp", dir, name);
    int fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0) return false;
    size_t len = strlen(text);
    bool ok = write(fd, text, len) == (ssize_t)len;
    close(fd);
    return ok && rename(tmp, path) == 0;
}

__attribute__((format(printf, 1, 2))) MAYBE void fail(const char *format, ...) {
    pthread_mutex_lock(&failures_lock);
    failures_count++;
    if (failures_len < sizeof failures - 600) {
        va_list args;
        va_start(args, format);
        failures_len += snprintf(failures + failures_len, 8, "FAIL: ");
        int n = vsnprintf(failures + failures_len, 512, format, args);
        failures_len += n < 512 ? (size_t)n : 511;
        failures[failures_len++] = '\n';
        failures[failures_len] = 0;
        va_end(args);
    }
    pthread_mutex_unlock(&failures_lock);
}

static char extra[8192]; // lines after the OK: figures (heartbeat) or notes
MAYBE void __attribute__((noreturn)) finish(void) {
    if (failures_count == 0) {
        char text[sizeof extra + 8];
        snprintf(text, sizeof text, "OK\n%s", extra);
        if (!write_file("result", text)) _exit(3);
        _exit(0);
    }
    if (!write_file("result", failures)) _exit(3);
    _exit(1);
}

// This kernel or user cannot do it: result "SKIP: why", exit 77, no `ready`. The harness decides if that is permitted.
__attribute__((format(printf, 1, 2), noreturn)) MAYBE void skip(const char *format, ...) {
    char why[512], text[600];
    va_list args;
    va_start(args, format);
    vsnprintf(why, sizeof why, format, args);
    va_end(args);
    snprintf(text, sizeof text, "SKIP: %s\n", why);
    write_file("result", text);
    _exit(77);
}

MAYBE void __attribute__((noreturn)) must_failed(const char *call, const char *file, int line, int error) {
    fail("%s:%d: %s: %s (in setup or on the way, not a proof)", file, line, call, strerror(error));
    finish();
}
// A call that must work for the test to mean anything; gives its value.
#define MUST(call)                                                                                 \
    ({                                                                                             \
        __typeof__(call) value_ = (call);                                                          \
        if ((long)value_ == -1) must_failed(#call, __FILE__, __LINE__, errno);                     \
        value_;                                                                                    \
    })
// The same for pthread calls, which return the error.
#define MUST0(call)                                                                                \
    do {                                                                                           \
        int error_ = (call);                                                                       \
        if (error_) must_failed(#call, __FILE__, __LINE__, error_);                                \
    } while (0)

// ---- checks: the format is last and says what is checked --------------------------------------
#define WHAT_(...)                                                                                 \
    char what_[256];                                                                               \
    snprintf(what_, sizeof what_, __VA_ARGS__)
#define CHECK_EQ(expected, got, ...)                                                               \
    do {                                                                                           \
        long long e_ = (long long)(expected), g_ = (long long)(got);                               \
        if (e_ != g_) {                                                                            \
            WHAT_(__VA_ARGS__);                                                                    \
            fail("%s, expected %lld, got %lld", what_, e_, g_);                                    \
        }                                                                                          \
    } while (0)
#define CHECK_HEX(expected, got, ...)                                                              \
    do {                                                                                           \
        unsigned long long e_ = (unsigned long long)(expected), g_ = (unsigned long long)(got);    \
        if (e_ != g_) {                                                                            \
            WHAT_(__VA_ARGS__);                                                                    \
            fail("%s, expected %#llx, got %#llx", what_, e_, g_);                                  \
        }                                                                                          \
    } while (0)
#define CHECK_RANGE(low, high, got, ...)                                                           \
    do {                                                                                           \
        long long l_ = (long long)(low), h_ = (long long)(high), g_ = (long long)(got);            \
        if (g_ < l_ || g_ > h_) {                                                                  \
            WHAT_(__VA_ARGS__);                                                                    \
            fail("%s, expected %lld..%lld, got %lld", what_, l_, h_, g_);                          \
        }                                                                                          \
    } while (0)
#define CHECK_STR(expected, got, ...)                                                              \
    do {                                                                                           \
        const char *e_ = (expected), *g_ = (got);                                                  \
        if (strcmp(e_, g_)) {                                                                      \
            WHAT_(__VA_ARGS__);                                                                    \
            fail("%s, expected \"%.160s\", got \"%.160s\"", what_, e_, g_);                        \
        }                                                                                          \
    } while (0)
#define CHECK_MEM(expected, got, length, ...)                                                      \
    do {                                                                                           \
        if (memcmp((expected), (got), (length))) {                                                 \
            WHAT_(__VA_ARGS__);                                                                    \
            fail("%s, expected the same %zu bytes, got others", what_, (size_t)(length));          \
        }                                                                                          \
    } while (0)
#define CHECK(condition, ...)                                                                      \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            WHAT_(__VA_ARGS__);                                                                    \
            fail("%s, expected " #condition ", got the contrary", what_);                          \
        }                                                                                          \
    } while (0)
// A call that must succeed in the proof: reports errno, and gives true if it did.
#define CHECK_OK(call, ...)                                                                        \
    ({                                                                                             \
        bool ok_ = (long)(call) != -1;                                                             \
        if (!ok_) {                                                                                \
            int error_ = errno;                                                                    \
            WHAT_(__VA_ARGS__);                                                                    \
            fail("%s, expected " #call " to succeed, got %s", what_, strerror(error_));            \
        }                                                                                          \
        ok_;                                                                                       \
    })
// A call that must fail with this errno.
#define CHECK_ERRNO(error, call, ...)                                                              \
    do {                                                                                           \
        errno = 0;                                                                                 \
        long r_ = (long)(call);                                                                    \
        int error_ = errno;                                                                        \
        if (r_ != -1 || error_ != (error)) {                                                       \
            WHAT_(__VA_ARGS__);                                                                    \
            fail("%s, expected " #error ", got %ld (%s)", what_, r_, r_ == -1 ? strerror(error_) : "success"); \
        }                                                                                          \
    } while (0)
// Time left of something that had `initial` at `since`: downtime may have been deducted or not.
#define CHECK_LEFT(initial, since, tolerance, got, ...)                                            \
    do {                                                                                           \
        int64_t passed_ = mono_ns() - (since);                                                     \
        CHECK_RANGE((initial)-passed_ - (tolerance), (initial)-passed_ + asleep_ns + (tolerance), (got), __VA_ARGS__); \
    } while (0)

// ---- patterns ---------------------------------------------------------------------------------
MAYBE uint64_t mix(uint64_t x) { // splitmix64
    x += 0x9e3779b97f4a7c15ULL;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
    return x ^ (x >> 31);
}
MAYBE __attribute__((noinline)) void fill(void *memory, size_t bytes, uint64_t seed) { // incompressible; bytes: a multiple of 8
    uint64_t *w = memory;
    for (size_t i = 0; i < bytes / 8; i++) w[i] = mix(seed * 0x100000001b3ULL + i);
}
MAYBE uint64_t hash(const void *memory, size_t bytes) {
    const unsigned char *p = memory;
    uint64_t h = 0xcbf29ce484222325ULL, w;
    for (; bytes >= 8; bytes -= 8, p += 8) {
        memcpy(&w, p, 8);
        h = (h ^ w) * 0x100000001b3ULL;
        h ^= h >> 29;
    }
    while (bytes--) h = (h ^ *p++) * 0x100000001b3ULL;
    return h;
}

// ---- /proc ------------------------------------------------------------------------------------
// Reads a whole small file; length, or -1. Always ends the buffer with a NUL.
MAYBE ssize_t slurp(const char *path, char *buffer, size_t size) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    size_t len = 0;
    ssize_t n;
    while (len < size - 1 && (n = read(fd, buffer + len, size - 1 - len)) > 0) len += (size_t)n;
    close(fd);
    buffer[len] = 0;
    return (ssize_t)len;
}
// Until the thread whose ID appears in `tid` sleeps in system call `nr`.
MAYBE void until_in_call(volatile pid_t *tid, long nr) {
    char path[64], text[64] = "";
    do {
        sched_yield();
        snprintf(path, sizeof path, "/proc/self/task/%d/syscall", *tid);
        slurp(path, text, sizeof text);
    } while (!*tid || text[0] == 'r' || atol(text) != nr);
}
// The value of "Key:" in a /proc file such as /proc/self/status, blanks stripped.
MAYBE char *field(const char *path, const char *key, char *out, size_t size) {
    char text[8192];
    out[0] = 0;
    if (slurp(path, text, sizeof text) < 0) return out;
    char *p = text;
    size_t len = strlen(key);
    while (p && *p) {
        if (!strncmp(p, key, len) && p[len] == ':') {
            p += len + 1;
            p += strspn(p, " \t");
            snprintf(out, size, "%.*s", (int)strcspn(p, "\n"), p);
            return out;
        }
        p = strchr(p, '\n');
        if (p) p++;
    }
    return out;
}
// The line "start-end perms ..." of /proc/self/FILE (maps, smaps) that covers the address; for smaps `key` gives a field of it.
MAYBE bool mapping(const void *address, const char *key, char *out, size_t size) {
    FILE *f = fopen(key ? "/proc/self/smaps" : "/proc/self/maps", "re");
    char line[PATH_MAX + 256];
    bool inside = false, found = false;
    out[0] = 0;
    while (f && !found && fgets(line, sizeof line, f)) {
        unsigned long from, to;
        line[strcspn(line, "\n")] = 0;
        if (sscanf(line, "%lx-%lx ", &from, &to) == 2) {
            inside = (unsigned long)address >= from && (unsigned long)address < to;
            if (inside && !key) found = true, snprintf(out, size, "%s", line);
        } else if (inside && key && !strncmp(line, key, strlen(key)) && line[strlen(key)] == ':') {
            char *v = line + strlen(key) + 1;
            v += strspn(v, " \t");
            size_t n = strlen(v);
            while (n && v[n - 1] == ' ') v[--n] = 0;
            found = true;
            snprintf(out, size, "%s", v);
        }
    }
    if (f) fclose(f);
    return found;
}

// ---- the protocol -----------------------------------------------------------------------------
MAYBE void wait_gate(void) {
    char pid[32], gate[PATH_MAX + 8];
    snprintf(gate, sizeof gate, "%s/gate", dir);
    snprintf(pid, sizeof pid, "%d\n", (int)syscall(SYS_getpid));
    ready_ns = mono_ns();
    if (!write_file("ready", pid)) must_failed("write ready", __FILE__, __LINE__, errno);
    int64_t last = mono_ns();
    // Ends by itself when nobody comes: counted in rounds, so that time asleep does not count.
    for (int rounds = 0; access(gate, F_OK) != 0; rounds++) {
        if (rounds > 300000) {
            fail("nobody opened the gate, expected %s, got nothing in ten minutes awake", gate);
            finish();
        }
        if (tick) tick();
        sleep_ms(2);
        int64_t now = mono_ns();
        if (now - last > 20 * MS) asleep_ns += now - last;
        last = now;
    }
}

MAYBE void body(void) {
    wait_gate();
    if (sabotage) spoil();
    prove();
}

int main(int argc, char **argv) {
    const char *given = NULL;
    for (int i = 1; i < argc; i++) {
        int took;
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (!strcmp(argv[i], "--about")) {
            printf("%s\n", about ? about : "(says nothing about itself)");
            return 0;
        } else if (!strcmp(argv[i], "--sabotage")) {
            sabotage = true;
        } else if (!strcmp(argv[i], "--dir") && value) {
            given = value, i++;
        } else if (option && (took = option(argv[i], value)) > 0) {
            i += took - 1;
        } else {
            fprintf(stderr, "%s: unknown argument %s\n", argv[0], argv[i]);
            return 2;
        }
    }
    if (!given || !realpath(given, dir)) {
        fprintf(stderr, "usage: %s --dir DIR [--sabotage] | --about%s%s\n", argv[0], usage ? "\n" : "", usage ? usage : "");
        return 2;
    }
    setup();
    if (around) around(body);
    else body();
    if (eintr_seen > signals_got)
        fail("calls interrupted with EINTR, expected at most %d (signals got), got %d", signals_got, eintr_seen);
    finish();
}
#endif
