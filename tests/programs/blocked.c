#include "common.h"
#include <dirent.h>
#include <linux/aio_abi.h>
#include <linux/futex.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <semaphore.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/uio.h>

static const char *about = "a thread blocked in one system call: it never gets EINTR, does not return early, is not lost";
static const char *usage = "  --call NAME      which (see --list)\n"
                           "  --list           names; --list-long: name, timed or untimed, what else it needs\n"
                           "  --timeout MS     of the timed ones (default 2000)\n"
                           "  --exact          a timed one must end when its time is over, not have it started again";

#define RAW(...) syscall(__VA_ARGS__)
static int64_t timeout_ms = 2000;
static bool exact;
static int fds[2], id = -1, set = -1;
static sem_t sem;
static uint32_t word, word_two;
static aio_context_t aio;
static sigset_t usr2, all_but_ours;
static volatile int usr1_runs, usr2_runs;
static char buffer[256];

static struct timespec in(int64_t ms) { return (struct timespec){ms / 1000, ms % 1000 * MS}; }
static struct timespec at(clockid_t clock) { // the deadline, absolute
    int64_t t = now_ns(clock) + timeout_ms * MS;
    return (struct timespec){t / SEC, t % SEC};
}
// ---- what each needs, made by the main thread ----
static void mk_pipe(void) { MUST(pipe(fds)); }
static void mk_full_pipe(void) {
    MUST(pipe(fds));
    MUST(fcntl(fds[1], F_SETPIPE_SZ, 4096));
    static char page[4096];
    MUST(write(fds[1], page, 4096));
}
static void mk_pair(void) { MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, fds)); }
static void mk_full_pair(void) {
    mk_pair();
    static char page[4096];
    while (send(fds[1], page, sizeof page, MSG_DONTWAIT) > 0);
}
static void mk_dgram(void) { MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, fds)); }
static struct sockaddr_in here;
static void mk_listen(void) {
    socklen_t n = sizeof here;
    here = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    fds[0] = MUST(socket(AF_INET, SOCK_STREAM, 0));
    MUST(bind(fds[0], (struct sockaddr *)&here, n)), MUST(listen(fds[0], 4)), MUST(getsockname(fds[0], (struct sockaddr *)&here, &n));
}
static void limit(void) { MUST(setsockopt(fds[0], SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){timeout_ms / 1000, timeout_ms % 1000 * 1000}, sizeof(struct timeval))); }
static void mk_pair_limit(void) { mk_pair(), limit(); }
static void mk_listen_limit(void) { mk_listen(), limit(); }
static void mk_epoll(void) {
    mk_pipe();
    set = MUST(epoll_create1(0));
    MUST(epoll_ctl(set, EPOLL_CTL_ADD, fds[0], &(struct epoll_event){.events = EPOLLIN, .data.u64 = 99}));
}
static void mk_sem(void) { sem_init(&sem, 0, 0); }
static void mk_msg(void) { id = MUST(msgget(IPC_PRIVATE, 0600)); }
static void mk_semset(void) { id = MUST(semget(IPC_PRIVATE, 1, 0600)); }
static void mk_flock(void) {
    fds[0] = MUST(open(work("lock"), O_RDWR | O_CREAT, 0600)), fds[1] = MUST(open(work("lock"), O_RDWR));
    MUST(flock(fds[1], LOCK_EX));
}
static struct flock whole(short type) { return (struct flock){.l_type = type, .l_whence = SEEK_SET}; }
static void mk_ofd(void) {
    struct flock l = whole(F_WRLCK);
    fds[0] = MUST(open(work("lock"), O_RDWR | O_CREAT, 0600)), fds[1] = MUST(open(work("lock"), O_RDWR));
    MUST(fcntl(fds[1], F_OFD_SETLK, &l));
}
static void mk_aio(void) {
    MUST(RAW(SYS_io_setup, 4, &aio));
    fds[0] = MUST(open(work("data"), O_RDWR | O_CREAT, 0600));
    MUST(write(fds[0], "content", 7));
}
static volatile int64_t began, ended;
static void mk_timerfd(void) {
    began = mono_ns(); // its time runs from here
    fds[0] = MUST(timerfd_create(CLOCK_MONOTONIC, 0));
    struct itimerspec t = {.it_value = in(timeout_ms)};
    MUST(timerfd_settime(fds[0], 0, &t, NULL));
}
static void mk_inotify(void) {
    fds[0] = MUST(inotify_init1(0));
    MUST(mkdir(work("watched"), 0700));
    MUST(inotify_add_watch(fds[0], work("watched"), IN_CREATE));
}
static void mk_eventfd(void) { fds[0] = MUST(eventfd(0, 0)); }
static void mk_signalfd(void) { fds[0] = MUST(signalfd(-1, &usr2, 0)); }
static void mk_nothing(void) {}

// ---- the calls, made by the blocked thread; raw, so that the call is the one named ----
static long c_read(void) { return RAW(SYS_read, fds[0], buffer, sizeof buffer); }
static long c_readv(void) { return RAW(SYS_readv, fds[0], &(struct iovec){buffer, sizeof buffer}, 1); }
static long c_write(void) { return RAW(SYS_write, fds[1], "more", 4); }
static long c_recv(void) { return RAW(SYS_recvfrom, fds[0], buffer, sizeof buffer, 0, NULL, NULL); }
static long c_recvmsg(void) {
    struct iovec v = {buffer, sizeof buffer};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1};
    return RAW(SYS_recvmsg, fds[0], &m, 0);
}
static long c_send(void) { return RAW(SYS_sendto, fds[1], "more", 4, 0, NULL, 0); }
static long c_accept(void) { return RAW(SYS_accept, fds[0], NULL, NULL) >= 0 ? 1 : -1; }
static long c_accept4(void) { return RAW(SYS_accept4, fds[0], NULL, NULL, SOCK_CLOEXEC) >= 0 ? 1 : -1; }
static long do_poll(int ms) {
    struct pollfd p = {fds[0], POLLIN, 0};
    return RAW(SYS_poll, &p, 1, ms);
}
static long c_poll(void) { return do_poll(-1); }
static long c_poll_timed(void) { return do_poll((int)timeout_ms); }
static long do_ppoll(struct timespec *t) {
    struct pollfd p = {fds[0], POLLIN, 0};
    uint64_t mask = 1UL << (SIGUSR2 - 1);
    return RAW(SYS_ppoll, &p, 1, t, &mask, 8);
}
static long c_ppoll(void) { return do_ppoll(NULL); }
static long c_ppoll_timed(void) { struct timespec t = in(timeout_ms); return do_ppoll(&t); }
static long do_select(struct timeval *t) {
    fd_set r;
    FD_ZERO(&r);
    FD_SET(fds[0], &r);
    return RAW(SYS_select, fds[0] + 1, &r, NULL, NULL, t);
}
static long c_select(void) { return do_select(NULL); }
static long c_select_timed(void) { struct timeval t = {timeout_ms / 1000, timeout_ms % 1000 * 1000}; return do_select(&t); }
static long do_pselect(struct timespec *t) {
    fd_set r;
    FD_ZERO(&r);
    FD_SET(fds[0], &r);
    uint64_t mask = 1UL << (SIGUSR2 - 1);
    struct { uint64_t *mask; size_t size; } sixth = {&mask, 8};
    return RAW(SYS_pselect6, fds[0] + 1, &r, NULL, NULL, t, &sixth);
}
static long c_pselect(void) { return do_pselect(NULL); }
static long c_pselect_timed(void) { struct timespec t = in(timeout_ms); return do_pselect(&t); }
static struct epoll_event event;
static long c_epoll(void) { return RAW(SYS_epoll_wait, set, &event, 1, -1); }
static long c_epoll_timed(void) { return RAW(SYS_epoll_wait, set, &event, 1, (int)timeout_ms); }
static long c_epoll_pwait(void) { uint64_t mask = 1UL << (SIGUSR2 - 1); return RAW(SYS_epoll_pwait, set, &event, 1, -1, &mask, 8); }
static long c_epoll_pwait2(void) { return RAW(SYS_epoll_pwait2, set, &event, 1, NULL, NULL, 8); }
static long c_epoll_pwait2_timed(void) { struct timespec t = in(timeout_ms); return RAW(SYS_epoll_pwait2, set, &event, 1, &t, NULL, 8); }
static long c_nanosleep(void) { struct timespec t = in(timeout_ms), left; return RAW(SYS_nanosleep, &t, &left); }
static long c_clock_rel(void) { struct timespec t = in(timeout_ms), left; return RAW(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &t, &left); }
static long c_clock_abs(void) { struct timespec t = at(CLOCK_MONOTONIC); return RAW(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL); }
static long c_clock_real(void) { struct timespec t = at(CLOCK_REALTIME); return RAW(SYS_clock_nanosleep, CLOCK_REALTIME, TIMER_ABSTIME, &t, NULL); }
static long c_futex(void) { return RAW(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, NULL); }
static long c_futex_rel(void) { struct timespec t = in(timeout_ms); return RAW(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &t); }
static long c_futex_abs(void) { struct timespec t = at(CLOCK_MONOTONIC); return RAW(SYS_futex, &word, FUTEX_WAIT_BITSET_PRIVATE, 0, &t, NULL, -1); }
static long c_futex_real(void) { struct timespec t = at(CLOCK_REALTIME); return RAW(SYS_futex, &word, FUTEX_WAIT_BITSET_PRIVATE | FUTEX_CLOCK_REALTIME, 0, &t, NULL, -1); }
static long c_futex_waitv(void) {
    struct futex_waitv v[2] = {{0, (uintptr_t)&word, FUTEX_32 | FUTEX_PRIVATE_FLAG, 0}, {0, (uintptr_t)&word_two, FUTEX_32 | FUTEX_PRIVATE_FLAG, 0}};
    return RAW(449, v, 2, 0, NULL, CLOCK_MONOTONIC);
}
static long c_sem(void) { return sem_wait(&sem); }
static long c_msgrcv(void) {
    struct { long type; char text[32]; } m;
    return RAW(SYS_msgrcv, id, &m, sizeof m.text, 0, 0);
}
static struct sembuf down = {0, -1, 0};
static long c_semop(void) { return RAW(SYS_semop, id, &down, 1); }
static long c_semtimedop(void) { return RAW(SYS_semtimedop, id, &down, 1, NULL); }
static long c_semtimedop_timed(void) { struct timespec t = in(timeout_ms); return RAW(SYS_semtimedop, id, &down, 1, &t); }
static long c_pause(void) { return RAW(SYS_pause); }
static long c_sigsuspend(void) { return RAW(SYS_rt_sigsuspend, &all_but_ours, 8); }
static long c_sigwaitinfo(void) { return RAW(SYS_rt_sigtimedwait, &usr2, NULL, NULL, 8); }
static long c_sigtimedwait(void) { struct timespec t = in(timeout_ms); return RAW(SYS_rt_sigtimedwait, &usr2, NULL, &t, 8); }
static long c_flock(void) { return RAW(SYS_flock, fds[0], LOCK_EX); }
static long c_ofd(void) { struct flock l = whole(F_WRLCK); return RAW(SYS_fcntl, fds[0], F_OFD_SETLKW, &l); }
static struct io_event io;
static long c_getevents(void) { return RAW(SYS_io_getevents, aio, 1, 1, &io, NULL); }
static long c_getevents_timed(void) { struct timespec t = in(timeout_ms); return RAW(SYS_io_getevents, aio, 1, 1, &io, &t); }

// ---- how the main thread wakes it ----
static pthread_t thread;
static volatile pid_t tid;
static void w_write(void) { MUST(write(fds[1], "wake", 4)); }
static void w_send(void) { MUST(send(fds[1], "wake", 4, 0)); }
static void w_drain(void) {
    static char page[4096];
    MUST(fcntl(fds[0], F_SETFL, O_NONBLOCK));
    while (read(fds[0], page, sizeof page) > 0 || errno != EAGAIN);
}
static void w_connect(void) { MUST(connect(MUST(socket(AF_INET, SOCK_STREAM, 0)), (struct sockaddr *)&here, sizeof here)); }
static void w_futex(void) { __atomic_store_n(&word, 1, __ATOMIC_SEQ_CST), RAW(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1); }
static void w_sem(void) { sem_post(&sem); }
static void w_msg(void) {
    struct { long type; char text[8]; } m = {5, "message"};
    MUST(msgsnd(id, &m, 8, 0));
}
static void w_semset(void) { MUST(semctl(id, 0, SETVAL, 1)); }
static void w_usr2(void) { MUST0(pthread_kill(thread, SIGUSR2)); }
static void w_flock(void) { MUST(flock(fds[1], LOCK_UN)); }
static void w_ofd(void) { struct flock l = whole(F_UNLCK); MUST(fcntl(fds[1], F_OFD_SETLK, &l)); }
static void w_aio(void) {
    static struct iocb cb, *list[] = {&cb};
    cb = (struct iocb){.aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = (uint32_t)fds[0], .aio_buf = (uintptr_t)buffer, .aio_nbytes = 7};
    MUST(RAW(SYS_io_submit, aio, 1, list));
}
static void w_inotify(void) { close(MUST(open(work("watched/new"), O_CREAT | O_WRONLY, 0600))); }
static void w_eventfd(void) { uint64_t one = 3; MUST(write(fds[0], &one, 8)); }

static const struct call {
    const char *name;
    int nr;              // the system call it blocks in
    void (*make)(void);
    long (*call)(void);
    void (*wake)(void);  // NULL: timed
    long result;         // expected; -1 with
    int error;           // this errno
    const char *needs;
} calls[] = {
    {"read_pipe", SYS_read, mk_pipe, c_read, w_write, 4, 0, "-"},
    {"readv_pipe", SYS_readv, mk_pipe, c_readv, w_write, 4, 0, "-"},
    {"write_pipe", SYS_write, mk_full_pipe, c_write, w_drain, 4, 0, "-"},
    {"read_socket", SYS_read, mk_pair, c_read, w_send, 4, 0, "-"},
    {"recv_socket", SYS_recvfrom, mk_pair, c_recv, w_send, 4, 0, "-"},
    {"recvmsg_dgram", SYS_recvmsg, mk_dgram, c_recvmsg, w_send, 4, 0, "-"},
    {"send_socket", SYS_sendto, mk_full_pair, c_send, w_drain, 4, 0, "-"},
    {"recv_rcvtimeo", SYS_recvfrom, mk_pair_limit, c_recv, NULL, -1, EAGAIN, "-"},
    {"accept", SYS_accept, mk_listen, c_accept, w_connect, 1, 0, "-"},
    {"accept4", SYS_accept4, mk_listen, c_accept4, w_connect, 1, 0, "-"},
    {"accept_rcvtimeo", SYS_accept, mk_listen_limit, c_accept, NULL, -1, EAGAIN, "-"},
    {"poll", SYS_poll, mk_pipe, c_poll, w_write, 1, 0, "-"},
    {"poll_timed", SYS_poll, mk_pipe, c_poll_timed, NULL, 0, 0, "-"},
    {"ppoll", SYS_ppoll, mk_pipe, c_ppoll, w_write, 1, 0, "-"},
    {"ppoll_timed", SYS_ppoll, mk_pipe, c_ppoll_timed, NULL, 0, 0, "-"},
    {"select", SYS_select, mk_pipe, c_select, w_write, 1, 0, "-"},
    {"select_timed", SYS_select, mk_pipe, c_select_timed, NULL, 0, 0, "-"},
    {"pselect", SYS_pselect6, mk_pipe, c_pselect, w_write, 1, 0, "-"},
    {"pselect_timed", SYS_pselect6, mk_pipe, c_pselect_timed, NULL, 0, 0, "-"},
    {"epoll_wait", SYS_epoll_wait, mk_epoll, c_epoll, w_write, 1, 0, "-"},
    {"epoll_wait_timed", SYS_epoll_wait, mk_epoll, c_epoll_timed, NULL, 0, 0, "-"},
    {"epoll_pwait", SYS_epoll_pwait, mk_epoll, c_epoll_pwait, w_write, 1, 0, "-"},
    {"epoll_pwait2", SYS_epoll_pwait2, mk_epoll, c_epoll_pwait2, w_write, 1, 0, "-"},
    {"epoll_pwait2_timed", SYS_epoll_pwait2, mk_epoll, c_epoll_pwait2_timed, NULL, 0, 0, "-"},
    {"nanosleep", SYS_nanosleep, mk_nothing, c_nanosleep, NULL, 0, 0, "-"},
    {"clock_nanosleep", SYS_clock_nanosleep, mk_nothing, c_clock_rel, NULL, 0, 0, "-"},
    {"clock_nanosleep_abs", SYS_clock_nanosleep, mk_nothing, c_clock_abs, NULL, 0, 0, "-"},
    {"clock_nanosleep_realtime_abs", SYS_clock_nanosleep, mk_nothing, c_clock_real, NULL, 0, 0, "-"},
    {"futex", SYS_futex, mk_nothing, c_futex, w_futex, 0, 0, "-"},
    {"futex_timed", SYS_futex, mk_nothing, c_futex_rel, NULL, -1, ETIMEDOUT, "-"},
    {"futex_abs", SYS_futex, mk_nothing, c_futex_abs, NULL, -1, ETIMEDOUT, "-"},
    {"futex_realtime_abs", SYS_futex, mk_nothing, c_futex_real, NULL, -1, ETIMEDOUT, "-"},
    {"futex_waitv", 449, mk_nothing, c_futex_waitv, w_futex, 0, 0, "-"},
    {"sem_wait", SYS_futex, mk_sem, c_sem, w_sem, 0, 0, "-"},
    {"msgrcv", SYS_msgrcv, mk_msg, c_msgrcv, w_msg, 8, 0, "sysv-ipc"},
    {"semop", SYS_semop, mk_semset, c_semop, w_semset, 0, 0, "sysv-ipc"},
    {"semtimedop", SYS_semtimedop, mk_semset, c_semtimedop, w_semset, 0, 0, "sysv-ipc"},
    {"semtimedop_timed", SYS_semtimedop, mk_semset, c_semtimedop_timed, NULL, -1, EAGAIN, "sysv-ipc"},
    {"pause", SYS_pause, mk_nothing, c_pause, w_usr2, -1, EINTR, "-"},
    {"sigsuspend", SYS_rt_sigsuspend, mk_nothing, c_sigsuspend, w_usr2, -1, EINTR, "-"},
    {"sigwaitinfo", SYS_rt_sigtimedwait, mk_nothing, c_sigwaitinfo, w_usr2, SIGUSR2, 0, "-"},
    {"sigtimedwait_timed", SYS_rt_sigtimedwait, mk_nothing, c_sigtimedwait, NULL, -1, EAGAIN, "-"},
    {"flock", SYS_flock, mk_flock, c_flock, w_flock, 0, 0, "-"},
    {"ofd_setlkw", SYS_fcntl, mk_ofd, c_ofd, w_ofd, 0, 0, "-"},
    {"io_getevents", SYS_io_getevents, mk_aio, c_getevents, w_aio, 1, 0, "-"},
    {"io_getevents_timed", SYS_io_getevents, mk_aio, c_getevents_timed, NULL, 0, 0, "-"},
    {"read_timerfd", SYS_read, mk_timerfd, c_read, NULL, 8, 0, "-"},
    {"read_inotify", SYS_read, mk_inotify, c_read, w_inotify, 32, 0, "-"},
    {"read_eventfd", SYS_read, mk_eventfd, c_read, w_eventfd, 8, 0, "-"},
    {"read_signalfd", SYS_read, mk_signalfd, c_read, w_usr2, sizeof(struct signalfd_siginfo), 0, "-"},
};
static const struct call *call;

static int own_option(const char *name, const char *value) {
    for (size_t i = 0; i < COUNT(calls); i++) {
        if (!strcmp(name, "--list")) printf("%s\n", calls[i].name);
        if (!strcmp(name, "--list-long")) printf("%s %s %s\n", calls[i].name, calls[i].wake ? "untimed" : "timed", calls[i].needs);
        if (!strcmp(name, "--call") && value && !strcmp(value, calls[i].name)) return call = &calls[i], 2;
    }
    if (!strncmp(name, "--list", 6)) exit(0);
    if (!strcmp(name, "--timeout") && value) return timeout_ms = atol(value), 2;
    if (!strcmp(name, "--exact")) return exact = true, 1;
    return 0;
}
static int (*option)(const char *, const char *) = own_option;

static volatile long result;
static volatile int error;
static void on_usr1(int n) { (void)n, usr1_runs++; } // sabotage only
static void on_usr2(int n) { (void)n, usr2_runs++; }
static void *run(void *arg) {
    pthread_sigmask(call->call == c_pause ? SIG_UNBLOCK : SIG_BLOCK, &usr2, NULL); // sigsuspend opens it itself
    if (!began) began = mono_ns();
    tid = tid_now();
    errno = 0;
    long r = call->call();
    error = r == -1 ? errno : 0;
    result = r;
    __atomic_store_n(&ended, mono_ns(), __ATOMIC_SEQ_CST);
    return arg;
}
static bool blocked_in_it(bool this_call) { // asleep in it by /proc; afterwards it may be in restart_syscall, or ppoll for poll
    char path[64], text[1024], *p;
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", tid);
    if (slurp(path, text, sizeof text) < 0 || !(p = strrchr(text, ')')) || p[2] != 'S') return false;
    snprintf(path, sizeof path, "/proc/self/task/%d/syscall", tid);
    if (slurp(path, text, sizeof text) <= 0) return true; // not in this kernel: the state must do
    return text[0] != 'r' && (!this_call || atoi(text) == call->nr); // not "running"
}
static void setup(void) {
    if (!call) {
        fprintf(stderr, "blocked: --call NAME is needed (see --list)\n");
        _exit(2);
    }
    sigemptyset(&usr2), sigaddset(&usr2, SIGUSR2);
    sigemptyset(&all_but_ours), sigaddset(&all_but_ours, SIGHUP);
    MUST(sigaction(SIGUSR1, &(struct sigaction){.sa_handler = on_usr1}, NULL)); // no SA_RESTART
    MUST(sigaction(SIGUSR2, &(struct sigaction){.sa_handler = on_usr2}, NULL));
    pthread_sigmask(SIG_BLOCK, &usr2, NULL);
    call->make();
    MUST0(pthread_create(&thread, NULL, run, NULL));
    while (!tid || !blocked_in_it(true)) {
        if (__atomic_load_n(&ended, __ATOMIC_SEQ_CST)) {
            if (call->nr == 449 && error == ENOSYS) skip("futex_waitv is not in this kernel");
            must_failed(call->name, __FILE__, __LINE__, error);
        }
        sched_yield();
    }
}
static void spoil(void) { // a signal of ours, whose handler is not SA_RESTART
    MUST0(pthread_kill(thread, SIGUSR1));
    sleep_ms(50);
}
static void find_again(void) { // under a new TID: the only other thread
    DIR *d = opendir("/proc/self/task");
    struct dirent *e;
    while (d && (e = readdir(d)))
        if (atoi(e->d_name) > 0 && atoi(e->d_name) != tid_now()) tid = atoi(e->d_name);
    if (d) closedir(d);
}
static void prove(void) {
    if (getenv("DORMOUSE_TEST_FRESH_PIDS")) find_again();
    int64_t opened = mono_ns(), until;
    bool was_blocked = !__atomic_load_n(&ended, __ATOMIC_SEQ_CST);
    if (call->wake) {
        CHECK(was_blocked, "%s still blocked when the gate opens (result %ld, errno %d)", call->name, result, error);
        if (was_blocked) {
            for (int i = 0; i < 1000 && !blocked_in_it(false); i++) sleep_ms(2); // it may be on its way back into the call
            CHECK(blocked_in_it(false), "%s asleep in a call by /proc", call->name);
            call->wake();
        }
        until = mono_ns() + 5 * SEC;
    } else until = opened + timeout_ms * MS + SEC; // a time-out that was started again ends by then
    while (!__atomic_load_n(&ended, __ATOMIC_SEQ_CST) && mono_ns() < until) sleep_ms(2);
    CHECK_EQ(0, usr1_runs, "signals that are not ours");
    if (!ended) {
        fail("%s, expected to return, got nothing within %lld ms of the gate", call->name, (long long)((until - opened) / MS));
    } else {
        MUST0(pthread_join(thread, NULL));
        CHECK_EQ(call->result, result, "result of %s (errno %d, %s)", call->name, error, strerror(error));
        CHECK_EQ(call->error, error, "errno of %s", call->name);
        int64_t took = ended - began;
        if (!call->wake) {
            CHECK_RANGE(timeout_ms * MS - 4 * MS * (call->call == c_recv || call->call == c_accept), INT64_MAX, took, "ns that %s took", call->name);
            if (exact) CHECK_RANGE(0, timeout_ms * MS + asleep_ns + 150 * MS, took, "ns that %s took at most", call->name);
        }
        CHECK_EQ(call->call == c_pause || call->call == c_sigsuspend, usr2_runs, "runs of the SIGUSR2 handler");
        if (set >= 0 && call->wake) CHECK_EQ(99, event.data.u64, "data of the event");
        if (call->result == 4 && (call->call == c_read || call->call == c_readv || call->call == c_recv || call->call == c_recvmsg)) CHECK_MEM("wake", buffer, 4, "what it read");
        // For the test's eyes: was there a call to interrupt, and how long was it in all?
        snprintf(extra, sizeof extra, "call %s\nblocked_at_gate %d\ntook_ms %ld\ntimeout_ms %ld\n", call->name, was_blocked, (long)(took / MS), call->wake ? -1 : (long)timeout_ms);
    }
    if (call->make == mk_msg) msgctl(id, IPC_RMID, NULL); // SysV objects outlive their makers
    if (call->make == mk_semset) semctl(id, 0, IPC_RMID);
}
