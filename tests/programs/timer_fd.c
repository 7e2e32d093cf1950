#include "common.h"
#include <sys/ioctl.h>
#include <sys/timerfd.h>
#ifndef TFD_IOC_SET_TICKS
#define TFD_IOC_SET_TICKS _IOW('T', 0, uint64_t)
#endif

static const char *about = "timerfds: clocks, time left, interval, flags, ticks pending, absolute ones, one that a set clock cancels, disarmed ones, a blocked read";

enum { ONE_SHOT, TICKED, ABSOLUTE, BOOT, DISARMED, EXPIRED, SEVEN, BLOCKING, CANCELLED, KINDS };
static int fds[KINDS], status_flags[KINDS];
static char info[KINDS][512];
static int64_t armed, absolute, read_due;
static volatile int started, done;
static uint64_t blocked_ticks;
static ssize_t blocked_result;
static volatile int64_t read_at;
static bool seven;
static pthread_t reader;

static void set(int fd, int flags, int64_t value, int64_t interval) {
    struct itimerspec t = {{interval / SEC, interval % SEC}, {value / SEC, value % SEC}};
    MUST(timerfd_settime(fd, flags, &t, NULL));
}
static int64_t left(int fd, int64_t *interval) {
    struct itimerspec t = {{-1, 0}, {-1, 0}};
    timerfd_gettime(fd, &t);
    *interval = t.it_interval.tv_sec * SEC + t.it_interval.tv_nsec;
    return t.it_value.tv_sec * SEC + t.it_value.tv_nsec;
}
static void fdinfo(int i, char *out) { // clock, ticks, settime flags: not what changes (pos, ino, it_value)
    char path[64], text[1024], *line, *rest = text;
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fds[i]);
    slurp(path, text, sizeof text);
    for (out[0] = 0; (line = strsep(&rest, "\n"));)
        if (!strncmp(line, "clockid", 7) || !strncmp(line, "ticks", 5) || !strncmp(line, "settime", 7) || !strncmp(line, "it_interval", 11)) strcat(strcat(out, line), ";");
}
static void *read_it(void *arg) {
    started = 1;
    blocked_result = syscall(SYS_read, fds[BLOCKING], &blocked_ticks, 8);
    read_at = mono_ns();
    done = 1;
    return arg;
}
static void setup(void) {
    static const clockid_t clocks[KINDS] = {CLOCK_MONOTONIC, CLOCK_MONOTONIC, CLOCK_REALTIME, CLOCK_BOOTTIME, CLOCK_MONOTONIC, CLOCK_MONOTONIC, CLOCK_MONOTONIC, CLOCK_MONOTONIC, CLOCK_REALTIME};
    for (int i = 0; i < KINDS; i++) fds[i] = MUST(timerfd_create(clocks[i], i == BLOCKING ? TFD_CLOEXEC : TFD_NONBLOCK));
    armed = mono_ns();
    absolute = now_ns(CLOCK_REALTIME) + 4000 * SEC;
    set(fds[ONE_SHOT], 0, 1000 * SEC + 5, 0);
    set(fds[TICKED], 0, 1 * MS, 500 * SEC); // one tick pending, the next far off
    set(fds[ABSOLUTE], TFD_TIMER_ABSTIME, absolute, 60 * SEC);
    set(fds[CANCELLED], TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, absolute, 0); // when the clock is set
    set(fds[BOOT], 0, 2000 * SEC, 7 * SEC + 7);
    set(fds[EXPIRED], 0, 1 * MS, 0);
    set(fds[SEVEN], 0, 3000 * SEC, 0);
    uint64_t n = 7;
    seven = ioctl(fds[SEVEN], TFD_IOC_SET_TICKS, &n) == 0; // needs CONFIG_CHECKPOINT_RESTORE
    read_due = mono_ns() + 800 * MS;
    set(fds[BLOCKING], 0, 800 * MS, 0);
    MUST0(pthread_create(&reader, NULL, read_it, NULL));
    while (!started) sleep_ms(1);
    sleep_ms(20);
    for (int i = 0; i < KINDS; i++) {
        fdinfo(i, info[i]);
        status_flags[i] = fcntl(fds[i], F_GETFL);
    }
}
static void spoil(void) { set(fds[BOOT], 0, 2000 * SEC, 7 * SEC + 8); }
static void ticks(int i, uint64_t expected, const char *what) {
    uint64_t n = 0;
    if (expected) CHECK_EQ(8, read(fds[i], &n, 8), "read of the %s timer", what);
    if (expected) CHECK_EQ(expected, n, "ticks of the %s timer", what);
    CHECK_ERRNO(EAGAIN, read(fds[i], &n, 8), "one more read of the %s timer", what);
}
static void prove(void) {
    char now[512];
    int64_t interval;
    for (int i = 0; i < KINDS; i++) {
        fdinfo(i, now);
        if (i != BLOCKING) CHECK_STR(info[i], now, "fdinfo of timer %d", i);
        CHECK_EQ(status_flags[i], fcntl(fds[i], F_GETFL), "flags of timer %d", i);
        CHECK_EQ(i == BLOCKING ? FD_CLOEXEC : 0, fcntl(fds[i], F_GETFD), "close-on-exec of timer %d", i);
    }
    CHECK_LEFT(1000 * SEC + 5, armed, 100 * MS, left(fds[ONE_SHOT], &interval), "time left of the one-shot timer");
    CHECK_EQ(0, interval, "its interval");
    ticks(ONE_SHOT, 0, "one-shot");
    CHECK_LEFT(500 * SEC, armed, 100 * MS, left(fds[TICKED], &interval), "time left of the ticked timer");
    CHECK_EQ(500 * SEC, interval, "its interval");
    ticks(TICKED, 1, "ticked");
    CHECK_RANGE(-200 * MS, 200 * MS, left(fds[ABSOLUTE], &interval) - (absolute - now_ns(CLOCK_REALTIME)), "deviation of the absolute timer");
    CHECK_EQ(60 * SEC, interval, "its interval");
    CHECK_RANGE(-200 * MS, 200 * MS, left(fds[CANCELLED], &interval) - (absolute - now_ns(CLOCK_REALTIME)), "deviation of the one that is cancelled when the clock is set");
    CHECK_LEFT(2000 * SEC, armed, 100 * MS, left(fds[BOOT], &interval), "time left of the boottime timer");
    CHECK_EQ(7 * SEC + 7, interval, "its interval");
    CHECK_EQ(0, left(fds[DISARMED], &interval), "time left of the disarmed timer");
    ticks(DISARMED, 0, "disarmed");
    CHECK_EQ(0, left(fds[EXPIRED], &interval), "time left of the expired timer");
    ticks(EXPIRED, 1, "expired");
    if (seven) ticks(SEVEN, 7, "seven times ticked");
    for (int i = 0; i < 600 && !done; i++) sleep_ms(5);
    CHECK_EQ(1, done, "the blocked read came back");
    if (done) {
        CHECK_EQ(8, blocked_result, "its result");
        CHECK_EQ(1, blocked_ticks, "its ticks");
        CHECK_RANGE(0, INT64_MAX, read_at - read_due, "ns it came after its time");
    }
}
