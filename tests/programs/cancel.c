#include "common.h"
#include <poll.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/ipc.h>

static const char *about = "threads cancelled in calls that are interposed: cleanup handlers run, frames are unwound, joined as cancelled; and threads that may not be";

#ifdef __GLIBC__
#define FRAME(f) __attribute__((cleanup(f))) // as a destructor of C++
#define UNWOUND 1
#define EPOLL_WAIT SYS_epoll_wait
#else // musl runs cleanup handlers only
#define FRAME(f)
#define UNWOUND 0
#define EPOLL_WAIT SYS_epoll_pwait
#endif
static sigset_t usr2, hup;
static int set, ends[2], sems;
static struct timespec hour = {3600, 0};

static long c_sigwait(void) { int n; return sigwait(&usr2, &n); }
static long c_sigwaitinfo(void) { return sigwaitinfo(&usr2, NULL); }
static long c_sigtimedwait(void) { return sigtimedwait(&usr2, NULL, &hour); }
static long c_sigsuspend(void) { return sigsuspend(&hup); }
static long c_ppoll(void) { struct pollfd p = {ends[0], POLLIN, 0}; return ppoll(&p, 1, &hour, &hup); }
#ifdef __GLIBC__
extern int __ppoll_chk(struct pollfd *, nfds_t, const struct timespec *, const sigset_t *, size_t); // ppoll of checked builds
static long c_ppoll_chk(void) { struct pollfd p = {ends[0], POLLIN, 0}; return __ppoll_chk(&p, 1, &hour, &hup, sizeof p); }
static long c_epoll_pwait2(void) { struct epoll_event e; return epoll_pwait2(set, &e, 1, &hour, &hup); }
#endif
static long c_pselect(void) {
    fd_set r;
    FD_ZERO(&r);
    FD_SET(ends[0], &r);
    return pselect(ends[0] + 1, &r, NULL, NULL, &hour, &hup);
}
static long c_epoll_wait(void) { struct epoll_event e; return epoll_wait(set, &e, 1, 3600000); }
static long c_epoll_pwait(void) { struct epoll_event e; return epoll_pwait(set, &e, 1, 3600000, &hup); }
static long c_semtimedop(void) { struct sembuf down = {0, -1, 0}; return semtimedop(sems, &down, 1, &hour); }
static long c_syscall(void) { return syscall(SYS_pause); }
static const struct { const char *name; int nr; long (*call)(void); bool point; } calls[] = {
    {"sigwait", SYS_rt_sigtimedwait, c_sigwait, true},
    {"sigwaitinfo", SYS_rt_sigtimedwait, c_sigwaitinfo, true},
    {"sigtimedwait", SYS_rt_sigtimedwait, c_sigtimedwait, true},
    {"sigsuspend", SYS_rt_sigsuspend, c_sigsuspend, true},
    {"ppoll", SYS_ppoll, c_ppoll, true},
    {"pselect", SYS_pselect6, c_pselect, true},
    {"epoll_wait", EPOLL_WAIT, c_epoll_wait, true},
    {"epoll_pwait", SYS_epoll_pwait, c_epoll_pwait, true},
#ifdef __GLIBC__ // musl has neither
    {"__ppoll_chk", SYS_ppoll, c_ppoll_chk, true},
    {"epoll_pwait2", SYS_epoll_pwait2, c_epoll_pwait2, true},
#endif
    // no cancellation points: cancelled in them only by the asynchronous type
    {"semtimedop", SYS_semtimedop, c_semtimedop, false},
    {"syscall", SYS_pause, c_syscall, false},
};
enum how { DEFERRED, ASYNCHRONOUS, PENDING, HOWS }; // PENDING: cancelled before it gets to the call
static const char *hows[] = {"deferred", "asynchronous", "pending"};
static struct one {
    int call;
    enum how how;
    pthread_t thread;
    volatile pid_t tid;
    volatile int handlers, frames, returned;
} all[COUNT(calls) * HOWS];
static volatile bool go;

static void handler(void *arg) { ((struct one *)arg)->handlers++; }
MAYBE void frame(struct one **o) { (*o)->frames++; }
static __attribute__((noinline)) void inside(struct one *o) {
    struct one *here FRAME(frame) = o;
    pthread_cleanup_push(handler, o);
    if (o->how == PENDING) {
        pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
        o->tid = tid_now();
        while (!go) sched_yield(); // no cancellation point
        pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, NULL);
    } else o->tid = tid_now();
    calls[o->call].call();
    o->returned++;
    pthread_cleanup_pop(0);
    (void)here;
}
static void *run(void *arg) {
    struct one *o = arg;
    if (o->how == ASYNCHRONOUS) pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, NULL);
    inside(o);
    return NULL;
}
static void setup(void) {
    sigemptyset(&usr2), sigaddset(&usr2, SIGUSR2);
    sigemptyset(&hup), sigaddset(&hup, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &usr2, NULL);
    MUST(pipe(ends));
    set = MUST(epoll_create1(0));
    sems = MUST(semget(IPC_PRIVATE, 1, 0600));
    for (size_t i = 0; i < COUNT(all); i++) {
        struct one *o = &all[i];
        o->call = (int)(i / HOWS), o->how = i % HOWS;
        if (!calls[o->call].point && o->how != ASYNCHRONOUS) continue;
        MUST0(pthread_create(&o->thread, NULL, run, o));
        if (o->how == PENDING) while (!o->tid) sched_yield();
        else until_in_call(&o->tid, calls[o->call].nr);
    }
}
static void spoil(void) { // one returns from its call
    MUST0(pthread_kill(all[1].thread, SIGUSR2));
    while (!all[1].returned) sched_yield();
}
static void prove(void) {
    for (size_t i = 0; i < COUNT(all); i++)
        if (all[i].thread) MUST0(pthread_cancel(all[i].thread));
    go = true;
    for (size_t i = 0; i < COUNT(all); i++) {
        struct one *o = &all[i];
        const char *name = calls[o->call].name, *how = hows[o->how];
        void *result = NULL;
        if (!o->thread) continue;
        struct timespec soon = {now_ns(CLOCK_REALTIME) / SEC + 10, 0};
        int e = pthread_timedjoin_np(o->thread, &result, &soon);
        CHECK_EQ(0, e, "join of the thread cancelled in %s (%s)", name, how);
        CHECK(result == PTHREAD_CANCELED, "the thread in %s (%s) was cancelled", name, how);
        CHECK_EQ(1, o->handlers, "cleanup handlers run, %s (%s)", name, how);
        CHECK_EQ(UNWOUND, o->frames, "frames unwound, %s (%s)", name, how);
        CHECK_EQ(0, o->returned, "calls returned, %s (%s)", name, how);
    }
    semctl(sems, 0, IPC_RMID);
}
