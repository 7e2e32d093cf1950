// Threads that go into strict seccomp mode, or set a filter, do some work there and end, one after the other.
#include "common.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>

static const char *about = "threads that go into strict seccomp mode, or set a filter, and end, one after the other: none is killed, and no call of another's is interrupted";
static const char *usage = "  --what strict|filter|signalled   signalled: strict ones, which are sent SIGUSR2\n";
static const char *what = "strict";
static int (*option)(const char *, const char *) = what_option;

static volatile int made, ended;
static volatile pid_t worker;
static volatile bool stop;
static pthread_t maker;

static void *restricted(void *unused) {
    (void)unused;
    worker = tid_now();
    if (strcmp(what, "filter")) {
        MUST(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT, 0, 0, 0));
    } else {
        struct sock_filter all = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
        struct sock_fprog program = {1, &all};
        MUST(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0));
    }
    for (volatile int i = 0; i < 1000000; i++) {}
    __atomic_add_fetch(&ended, 1, __ATOMIC_SEQ_CST);
    // one of the four calls of strict mode; the C library's way out has others
    for (;;) __asm__ volatile("syscall" : : "a"((long)SYS_exit), "D"(0L) : "rcx", "r11", "memory");
    return NULL;
}
static void *make(void *unused) {
    (void)unused;
    while (!stop) {
        pthread_t t;
        MUST0(pthread_create(&t, NULL, restricted, NULL));
        made++;
        while (!strcmp(what, "signalled") && ended < made && !stop) {
            if (worker) syscall(SYS_tgkill, getpid(), worker, SIGUSR2);
            sched_yield();
        }
        worker = 0;
        pthread_join(t, NULL);
        sleep_ms(1);
    }
    return NULL;
}
static void setup(void) {
    MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    MUST0(pthread_create(&maker, NULL, make, NULL));
}
static void spoil(void) { made++; }
static void prove(void) {
    while (made <= 10) sleep_ms(1);
    stop = true;
    pthread_join(maker, NULL);
    CHECK_EQ(made, ended, "threads that ended by themselves");
}
