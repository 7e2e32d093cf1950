#include "common.h"
#include <dirent.h>

static const char *about = "what names a thread or the PID where nobody can set it right: a thread of clone(2)'s own, glibc's for timers, a folder of /proc";
static const char *usage = "  --what clone|timer|proc";
static const char *what = "clone";
static volatile int go, gone, fired;
static char stack[64 << 10] __attribute__((aligned(16)));
static timer_t timer;

static int (*option)(const char *, const char *) = what_option;

static int bare(void *arg) { // on the first thread's TLS: no call of libc that uses it
    (void)arg;
    struct timespec t = {0, 2 * MS};
    while (!go) syscall(SYS_nanosleep, &t, NULL);
    gone = 1;
    return 0;
}
static void on_timer(union sigval v) { fired = v.sival_int; }
static void setup(void) {
    if (!strcmp(what, "clone")) {
        int flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
        MUST(clone(bare, stack + sizeof stack, flags, NULL));
    } else if (!strcmp(what, "timer")) {
        struct sigevent e = {.sigev_notify = SIGEV_THREAD, .sigev_value.sival_int = 7};
        e._sigev_un._sigev_thread._function = on_timer;
        MUST(timer_create(CLOCK_MONOTONIC, &e, &timer));
    } else {
        char path[64];
        snprintf(path, sizeof path, "/proc/%d", (int)syscall(SYS_getpid));
        MUST(chdir(path));
    }
    sleep_ms(20);
}
static void spoil(void) { what = "nothing"; }
static void prove(void) {
    if (!strcmp(what, "clone")) {
        go = 1;
        for (int k = 0; k < 2000 && !gone; k++) sleep_ms(1);
        CHECK_EQ(1, gone, "the thread's end");
    } else if (!strcmp(what, "timer")) {
        struct itimerspec soon = {{0, 0}, {0, MS}};
        CHECK_OK(timer_settime(timer, 0, &soon, NULL), "the timer");
        for (int k = 0; k < 2000 && !fired; k++) sleep_ms(1);
        CHECK_EQ(7, fired, "what the timer's thread was given");
    } else if (!strcmp(what, "proc")) {
        char path[64], cwd[64] = "";
        snprintf(path, sizeof path, "/proc/%d", (int)syscall(SYS_getpid));
        CHECK_OK(getcwd(cwd, sizeof cwd), "working directory");
        CHECK_STR(path, cwd, "working directory");
    } else fail("what it is, expected one of three, got %s", what);
}
