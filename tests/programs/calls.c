#include "common.h"
#include <linux/aio_abi.h>
#include <linux/futex.h>
#include <netinet/in.h>
#include <poll.h>
#include <semaphore.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>

static const char *about = "a thread in each call that a signal can end, round after round: no EINTR, right results, each wakes when it should";
static const char *usage = "  --group NAME   all (default), tty (on the terminal at 0), outside (child and peer: wait4, connect, accept)\n"
                           "  --signals      they are ended by signals of the program's own instead: each must end its call with EINTR, once\n"
                           "  --watched      the test says who is asleep, so that no file of /proc is open while it makes checkpoints\n"
                           "  --timeout MS   of the timed, and between the wake-ups of the others (default 2000)";

#define RAW(...) syscall(__VA_ARGS__)
#define RCV_SLACK (4 * MS) // a socket's time-out is kept in the kernel's ticks

struct slot {
    const struct call *call;
    struct seen *seen;
    pthread_t thread;
    int fds[2], id, set, number;
    int64_t timeout, period; // of the call; from its begin until it is woken
    sem_t sem;
    uint32_t word;
    pthread_mutex_t lock;
    pthread_cond_t cond;
    aio_context_t aio;
    volatile int64_t woken;
    volatile bool waking; // whoever wakes it is still about it
    volatile int handled;
    volatile bool stop;
};
// What the test reads, in DIR/calls: one for each, this layout is in behaviours/calls.rs too.
static struct seen {
    char name[32];
    int32_t tid, nr, bound;
    volatile uint32_t rounds;
    volatile int64_t began, ended, worst_late, timeout, lost;
    volatile int64_t asleep; // written by the test: in round `asleep - 1` the thread was seen asleep in its call
} *shared;
// untimed; timed, and to end when it should; timed, and its time may begin anew with a checkpoint; untimed, and woken only in the proof
enum bound { WOKEN, EXACT, WHOLE, STAYS };
struct call {
    const char *name;
    int nr;
    enum bound bound;
    void (*make)(struct slot *);
    long (*call)(struct slot *);
    void (*wake)(struct slot *);
    long result;
    int error;
    char group; // a: all, t: tty, o: outside
    bool own;   // a signal of the program's own ends it anyhow, or cannot: not with --signals
};
static struct slot slots[96];
static int used;
static char group = 'a';
static bool by_signals, watched;
static int peers; // who has locked this file is the one that may: the program, be connected for an instant; the test, make a checkpoint, which refuses that
static int64_t timeout_ms = 2000;
static __thread struct slot *me;
// Masks and sets are as full as they can be: 63, the signal of a Dormouse that is preloaded, is in all of them.
static sigset_t usr2, waited, full, but_usr1, but_usr2; // `waited`: SIGUSR2 and 63

static bool timed(const struct call *c) { return c->bound == EXACT || c->bound == WHOLE; }
static struct timespec spec(int64_t ns) { return (struct timespec){ns / SEC, ns % SEC}; }
static struct timespec in(struct slot *s) { return spec(s->timeout); }
static struct timespec until(struct slot *s, clockid_t clock) { return spec(now_ns(clock) + s->timeout); }

// ---- what each needs ----
static void mk_nothing(struct slot *s) { (void)s; }
static void mk_pipe(struct slot *s) { MUST(pipe(s->fds)); }
static void mk_full_pipe(struct slot *s) {
    static char page[4096];
    mk_pipe(s);
    MUST(fcntl(s->fds[1], F_SETPIPE_SZ, 4096));
    MUST(write(s->fds[1], page, 4096));
}
static void mk_pair(struct slot *s) { MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, s->fds)); }
static int fill_up(struct slot *s) {
    static char page[4096];
    int sent = 0;
    for (ssize_t n; (n = send(s->fds[1], page, sizeof page, MSG_DONTWAIT)) > 0;) sent += (int)n;
    return sent;
}
static void mk_full_pair(struct slot *s) { mk_pair(s), s->id = fill_up(s); }
static void set_limit(struct slot *s, int which) {
    struct timeval t = {s->timeout / SEC, s->timeout % SEC / 1000};
    MUST(setsockopt(s->fds[0], SOL_SOCKET, which, &t, sizeof t));
}
static void mk_pair_limit(struct slot *s) { mk_pair(s), set_limit(s, SO_RCVTIMEO); }
static void mk_listen(struct slot *s) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof a;
    s->fds[0] = MUST(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    MUST(bind(s->fds[0], (struct sockaddr *)&a, n)), MUST(listen(s->fds[0], 4)), MUST(getsockname(s->fds[0], (struct sockaddr *)&a, &n));
    s->id = ntohs(a.sin_port);
}
static void mk_listen_limit(struct slot *s) { mk_listen(s), set_limit(s, SO_RCVTIMEO); }
static void mk_epoll(struct slot *s) {
    mk_pipe(s);
    s->set = MUST(epoll_create1(0));
    MUST(epoll_ctl(s->set, EPOLL_CTL_ADD, s->fds[0], &(struct epoll_event){.events = EPOLLIN}));
}
static void mk_signalfd(struct slot *s) { s->fds[0] = MUST(signalfd(-1, &full, SFD_CLOEXEC)); }
static void in_handler(int n);
static void mk_handler(struct slot *s) { // on no alternate stack
    mk_pipe(s);
    MUST(sigaction(SIGRTMIN + 1, &(struct sigaction){.sa_handler = in_handler, .sa_mask = full}, NULL));
}
static void mk_sem(struct slot *s) { sem_init(&s->sem, 0, 0); }
static void mk_cond(struct slot *s) { pthread_mutex_init(&s->lock, NULL), pthread_cond_init(&s->cond, NULL); }
static void mk_msg(struct slot *s) { s->id = MUST(msgget(IPC_PRIVATE, 0600)); }
static void mk_semset(struct slot *s) { s->id = MUST(semget(IPC_PRIVATE, 1, 0600)); }
static void mk_two(struct slot *s) {
    char name[32];
    snprintf(name, sizeof name, "lock%d", s->number);
    s->fds[0] = MUST(open(work(name), O_RDWR | O_CREAT, 0600)), s->fds[1] = MUST(open(work(name), O_RDWR));
}
static struct flock whole(short type) { return (struct flock){.l_type = type, .l_whence = SEEK_SET}; }
static void mk_flock(struct slot *s) { mk_two(s), MUST(flock(s->fds[1], LOCK_EX)); }
static void mk_ofd(struct slot *s) {
    struct flock l = whole(F_WRLCK);
    mk_two(s), MUST(fcntl(s->fds[1], F_OFD_SETLK, &l));
}
static void mk_aio(struct slot *s) {
    mk_two(s);
    MUST(RAW(SYS_io_setup, 4, &s->aio));
    MUST(write(s->fds[0], "content", 7));
}
static void mk_child(struct slot *s) {
    mk_pipe(s);
    if (!(s->id = MUST(fork()))) { // ends with the pipe
        char c;
        close(s->fds[1]);
        _exit(read(s->fds[0], &c, 1) == 1 ? 7 : 8);
    }
}
static void mk_backlog(struct slot *s) { // one waits, so that the next must wait to connect
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    socklen_t n = sizeof(sa_family_t);
    s->fds[0] = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    MUST(bind(s->fds[0], (struct sockaddr *)&a, n)); // the kernel gives it an abstract name
    MUST(listen(s->fds[0], 0));
    n = sizeof a;
    MUST(getsockname(s->fds[0], (struct sockaddr *)&a, &n));
    s->set = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    MUST(connect(s->set, (struct sockaddr *)&a, n));
}

// ---- the calls ----
static char sink[96][256];
// By an instruction of its own with a number from memory: no code tells which call it is, only who has seen the thread in it.
static __attribute__((noinline)) long own(const volatile int *nr, long a, long b, long c, long d) {
    register long fourth __asm__("r10") = d;
    long r;
    __asm__ volatile("syscall" : "=a"(r) : "0"((long)*nr), "D"(a), "S"(b), "d"(c), "r"(fourth) : "rcx", "r11", "memory");
    return r < 0 ? (errno = (int)-r, -1) : r;
}
static long c_read(struct slot *s) { return read(s->fds[0], sink[s->number], 4); }
static long c_write(struct slot *s) { return write(s->fds[1], "more", 4); }
static long c_send(struct slot *s) { return send(s->fds[1], "more", 4, 0); }
static long c_write_socket(struct slot *s) { return write(s->fds[1], "more", 4); }
static long c_signalfd(struct slot *s) { return read(s->fds[0], sink[s->number], sizeof sink[0]); }
static void in_handler(int n) {
    (void)n;
    me->id = (int)read(me->fds[0], sink[me->number], 4), me->set = errno;
}
static long c_handler(struct slot *s) {
    MUST0(pthread_kill(s->thread, SIGRTMIN + 1)); // its own: handled before this returns
    return errno = s->set, s->id;
}
static long c_recvmsg(struct slot *s) {
    struct iovec v = {sink[s->number], 4};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1};
    return recvmsg(s->fds[0], &m, 0);
}
static long c_accept(struct slot *s) {
    int fd = accept(s->fds[0], NULL, NULL);
    if (fd < 0) return -1;
    return close(fd), 1;
}
static long do_poll(struct slot *s, int ms) {
    struct pollfd p = {s->fds[0], POLLIN, 0};
    return poll(&p, 1, ms);
}
static long c_poll(struct slot *s) { return do_poll(s, -1); }
static long c_poll_timed(struct slot *s) { return do_poll(s, (int)(s->timeout / MS)); }
static long do_ppoll(struct slot *s, struct timespec *t) {
    struct pollfd p = {s->fds[0], POLLIN, 0};
    return ppoll(&p, 1, t, &but_usr1);
}
extern int __ppoll_chk(struct pollfd *, nfds_t, const struct timespec *, const sigset_t *, size_t); // ppoll of checked builds
static long c_ppoll_chk(struct slot *s) { struct pollfd p = {s->fds[0], POLLIN, 0}; return __ppoll_chk(&p, 1, NULL, &but_usr1, sizeof p); }
static long c_ppoll(struct slot *s) { return do_ppoll(s, NULL); }
static long c_ppoll_timed(struct slot *s) { struct timespec t = in(s); return do_ppoll(s, &t); }
static long do_select(struct slot *s, struct timeval *t) {
    fd_set r;
    FD_ZERO(&r);
    FD_SET(s->fds[0], &r);
    return select(s->fds[0] + 1, &r, NULL, NULL, t);
}
static long r_select(struct slot *s) {
    fd_set r;
    FD_ZERO(&r);
    FD_SET(s->fds[0], &r);
    return RAW(SYS_select, s->fds[0] + 1, &r, NULL, NULL, NULL);
}
static long r_select_timed(struct slot *s) {
    struct timeval t = {s->timeout / SEC, s->timeout % SEC / 1000};
    return RAW(SYS_select, 0, NULL, NULL, NULL, &t);
}
static long c_select(struct slot *s) { return do_select(s, NULL); }
static long c_select_timed(struct slot *s) { struct timeval t = {s->timeout / SEC, s->timeout % SEC / 1000}; return do_select(s, &t); }
static long do_pselect(struct slot *s, struct timespec *t) {
    fd_set r;
    FD_ZERO(&r);
    FD_SET(s->fds[0], &r);
    return pselect(s->fds[0] + 1, &r, NULL, NULL, t, &but_usr1);
}
static long c_pselect(struct slot *s) { return do_pselect(s, NULL); }
static long c_pselect_timed(struct slot *s) { struct timespec t = in(s); return do_pselect(s, &t); }
static long c_epoll(struct slot *s) { struct epoll_event e; return epoll_wait(s->set, &e, 1, -1); }
static long c_epoll_timed(struct slot *s) { struct epoll_event e; return epoll_wait(s->set, &e, 1, (int)(s->timeout / MS)); }
static long r_epoll_timed(struct slot *s) { struct epoll_event e; return RAW(SYS_epoll_wait, s->set, &e, 1, (int)(s->timeout / MS)); }
static long do_epoll_pwait(struct slot *s, int ms) {
    struct epoll_event e;
    return epoll_pwait(s->set, &e, 1, ms, &but_usr1);
}
static long c_epoll_pwait(struct slot *s) { return do_epoll_pwait(s, -1); }
static long c_epoll_pwait_timed(struct slot *s) { return do_epoll_pwait(s, (int)(s->timeout / MS)); }
static long c_epoll_pwait2(struct slot *s) { struct epoll_event e; return epoll_pwait2(s->set, &e, 1, NULL, &but_usr1); }
static long c_epoll_pwait2_timed(struct slot *s) { struct epoll_event e; struct timespec t = in(s); return epoll_pwait2(s->set, &e, 1, &t, &but_usr1); }
static long c_own_epoll(struct slot *s) { struct epoll_event e; return own(&s->call->nr, s->set, (long)&e, 1, -1); }
static long r_nanosleep(struct slot *s) { struct timespec t = in(s), left; return RAW(SYS_nanosleep, &t, &left); }
static long c_nanosleep(struct slot *s) { struct timespec t = in(s), left; return nanosleep(&t, &left); }
static long c_usleep(struct slot *s) { return usleep((unsigned)(s->timeout / 1000)); }
static long c_clock_rel(struct slot *s) { struct timespec t = in(s), left; return (errno = clock_nanosleep(CLOCK_MONOTONIC, 0, &t, &left)) ? -1 : 0; }
static long c_clock_abs(struct slot *s) { struct timespec t = until(s, CLOCK_MONOTONIC); return (errno = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL)) ? -1 : 0; }
static long c_clock_real(struct slot *s) { struct timespec t = until(s, CLOCK_REALTIME); return (errno = clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &t, NULL)) ? -1 : 0; }
static long c_futex(struct slot *s) { return RAW(SYS_futex, &s->word, FUTEX_WAIT_PRIVATE, s->word, NULL); }
static long c_futex_rel(struct slot *s) { struct timespec t = in(s); return RAW(SYS_futex, &s->word, FUTEX_WAIT_PRIVATE, 0, &t); }
static long c_futex_abs(struct slot *s) { struct timespec t = until(s, CLOCK_MONOTONIC); return RAW(SYS_futex, &s->word, FUTEX_WAIT_BITSET_PRIVATE, 0, &t, NULL, -1); }
static long c_sem(struct slot *s) { return sem_wait(&s->sem); }
static long c_sem_timed(struct slot *s) { struct timespec t = until(s, CLOCK_REALTIME); return sem_timedwait(&s->sem, &t); }
static long c_cond_timed(struct slot *s) {
    struct timespec t = until(s, CLOCK_REALTIME);
    pthread_mutex_lock(&s->lock);
    int e = pthread_cond_timedwait(&s->cond, &s->lock, &t);
    pthread_mutex_unlock(&s->lock);
    return e ? (errno = e, -1) : 0;
}
static long c_msgrcv(struct slot *s) {
    struct { long type; char text[32]; } m;
    return msgrcv(s->id, &m, sizeof m.text, 0, 0);
}
static struct sembuf down = {0, -1, 0};
static long c_semop(struct slot *s) { return semop(s->id, &down, 1); }
static long r_semop(struct slot *s) { return RAW(SYS_semop, s->id, &down, 1); }
static long c_semtimedop(struct slot *s) { struct timespec t = in(s); return semtimedop(s->id, &down, 1, &t); }
static long r_semtimedop(struct slot *s) { struct timespec t = in(s); return RAW(SYS_semtimedop, s->id, &down, 1, &t); }
static long c_pause(struct slot *s) { (void)s; return pause(); }
static long c_sigsuspend(struct slot *s) { (void)s; return sigsuspend(&but_usr2); }
static long c_sigwaitinfo(struct slot *s) { (void)s; return sigwaitinfo(&waited, NULL); }
static long c_sigwait(struct slot *s) { int n = 0; (void)s; return sigwait(&waited, &n) ? -1 : n; }
static long c_sigtimedwait(struct slot *s) { struct timespec t = in(s); return sigtimedwait(&waited, NULL, &t); }
static long r_sigtimedwait(struct slot *s) { struct timespec t = in(s); return RAW(SYS_rt_sigtimedwait, &usr2, NULL, &t, 8); }
static long c_flock(struct slot *s) { return flock(s->fds[0], LOCK_EX); }
static long c_ofd(struct slot *s) { struct flock l = whole(F_WRLCK); return fcntl(s->fds[0], F_OFD_SETLKW, &l); }
static long c_getevents(struct slot *s) { struct io_event io; return RAW(SYS_io_getevents, s->aio, 1, 1, &io, NULL); }
static long c_pgetevents(struct slot *s) { struct io_event io; return RAW(333 /* io_pgetevents */, s->aio, 1, 1, &io, NULL, NULL); }
static long c_getevents_timed(struct slot *s) { struct io_event io; struct timespec t = in(s); return RAW(SYS_io_getevents, s->aio, 1, 1, &io, &t); }
static long c_wait4(struct slot *s) {
    int status = 0;
    if (wait4(s->id, &status, 0, NULL) != s->id) return -1;
    close(s->fds[0]), close(s->fds[1]);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 0;
}
static long do_connect(struct slot *s, bool limit, bool by_itself) {
    struct sockaddr_un a;
    socklen_t n = sizeof a;
    MUST(getsockname(s->fds[0], (struct sockaddr *)&a, &n));
    int fd = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    if (limit) MUST(setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &(struct timeval){60, 0}, sizeof(struct timeval)));
    long r = by_itself ? own(&s->call->nr, fd, (long)&a, n, 0) : connect(fd, (struct sockaddr *)&a, n);
    int e = errno;
    close(s->set), s->set = fd;
    return errno = e, r;
}
static long c_connect(struct slot *s) { return do_connect(s, false, false); }
static long c_connect_limit(struct slot *s) { return do_connect(s, true, false); }
static long c_own_connect(struct slot *s) { return do_connect(s, true, true); } // without a time-out the kernel restarts it
static long c_tty_read(struct slot *s) { return read(0, sink[s->number], 4); }
static long c_tty_write(struct slot *s) { (void)s; return write(0, "more", 4); }

// ---- how they are woken ----
static void w_write(struct slot *s) { MUST(write(s->fds[1], "wake", 4)); }
static void w_drain(struct slot *s) {
    static char page[1 << 20];
    int n = s->call->call == c_write ? 4096 : s->id;
    CHECK_EQ(n, MUST(read(s->fds[0], page, (size_t)n)), "bytes taken out");
}
static void w_connect(struct slot *s) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons((uint16_t)s->id)};
    if (s->set) close(s->set);
    s->set = MUST(socket(AF_INET, SOCK_STREAM, 0));
    MUST(connect(s->set, (struct sockaddr *)&a, sizeof a));
    MUST(setsockopt(s->set, SOL_SOCKET, SO_LINGER, &(struct linger){1, 0}, sizeof(struct linger)));
    close(s->set), s->set = 0;
}
static void w_futex(struct slot *s) { __atomic_add_fetch(&s->word, 1, __ATOMIC_SEQ_CST), RAW(SYS_futex, &s->word, FUTEX_WAKE_PRIVATE, 1); }
static void w_sem(struct slot *s) { sem_post(&s->sem); }
static void w_msg(struct slot *s) {
    struct { long type; char text[8]; } m = {5, "message"};
    MUST(msgsnd(s->id, &m, 8, 0));
}
static void w_semset(struct slot *s) { MUST(semctl(s->id, 0, SETVAL, 1)); }
static void w_usr2(struct slot *s) { MUST0(pthread_kill(s->thread, SIGUSR2)); }
static void w_flock(struct slot *s) { MUST(flock(s->fds[1], LOCK_UN)); }
static void w_ofd(struct slot *s) { struct flock l = whole(F_UNLCK); MUST(fcntl(s->fds[1], F_OFD_SETLK, &l)); }
static void w_aio(struct slot *s) {
    struct iocb cb = {.aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = (uint32_t)s->fds[0], .aio_buf = (uintptr_t)sink[s->number], .aio_nbytes = 7}, *list[] = {&cb};
    MUST(RAW(SYS_io_submit, s->aio, 1, list));
}
static void w_accept(struct slot *s) { close(MUST(accept(s->fds[0], NULL, NULL))); }
static void w_tty(struct slot *s) { (void)s; /* the test writes a line */ }
static void w_flow(struct slot *s) { (void)s; MUST(tcflow(0, TCOON)); }
// before each round, where the last one has used up what was there
static void again(struct slot *s) {
    static char page[4096];
    long (*c)(struct slot *) = s->call->call;
    if (!s->seen->rounds) { if (c != c_tty_write) return; }
    else if (c == c_poll || c == c_ppoll || c == c_ppoll_chk || c == c_select || c == r_select || c == c_pselect || c == c_epoll || c == c_epoll_pwait || c == c_epoll_pwait2) { if (!by_signals) MUST(read(s->fds[0], sink[s->number], 4)); }
    else if (c == c_write && !by_signals) MUST(write(s->fds[1], page, 4092));
    else if ((c == c_send || c == c_write_socket) && !by_signals) s->id = 4 + fill_up(s);
    else if (c == c_flock && !by_signals) MUST(flock(s->fds[0], LOCK_UN)), MUST(flock(s->fds[1], LOCK_EX));
    else if (c == c_ofd && !by_signals) { struct flock u = whole(F_UNLCK), l = whole(F_WRLCK); MUST(fcntl(s->fds[0], F_OFD_SETLK, &u)), MUST(fcntl(s->fds[1], F_OFD_SETLK, &l)); }
    else if (c == c_wait4) mk_child(s);
    if (c == c_tty_write) MUST(tcflow(0, TCOOFF));
}

static const struct call calls[] = {
    {"read_pipe", SYS_read, WOKEN, mk_pipe, c_read, w_write, 4, 0, 'a', false},
    {"write_pipe", SYS_write, WOKEN, mk_full_pipe, c_write, w_drain, 4, 0, 'a', false},
    {"read_socket", SYS_read, WOKEN, mk_pair, c_read, w_write, 4, 0, 'a', false},
    {"recvmsg_socket", SYS_recvmsg, WOKEN, mk_pair, c_recvmsg, w_write, 4, 0, 'a', false},
    {"send_socket", SYS_sendto, WOKEN, mk_full_pair, c_send, w_drain, 4, 0, 'a', false},
    {"write_socket", SYS_write, WOKEN, mk_full_pair, c_write_socket, w_drain, 4, 0, 'a', false},
    {"read_signalfd", SYS_read, WOKEN, mk_signalfd, c_signalfd, w_usr2, sizeof(struct signalfd_siginfo), 0, 'a', true},
    {"read_in_handler", SYS_read, WOKEN, mk_handler, c_handler, w_write, 4, 0, 'a', true},
    {"accept", SYS_accept, WOKEN, mk_listen, c_accept, w_connect, 1, 0, 'a', false},
    {"poll", SYS_poll, WOKEN, mk_pipe, c_poll, w_write, 1, 0, 'a', false},
    {"ppoll", SYS_ppoll, WOKEN, mk_pipe, c_ppoll, w_write, 1, 0, 'a', false},
    {"ppoll_chk", SYS_ppoll, WOKEN, mk_pipe, c_ppoll_chk, w_write, 1, 0, 'a', false},
    {"raw_select", SYS_select, WOKEN, mk_pipe, r_select, w_write, 1, 0, 'a', false},
    {"select", SYS_pselect6, WOKEN, mk_pipe, c_select, w_write, 1, 0, 'a', false},
    {"pselect", SYS_pselect6, WOKEN, mk_pipe, c_pselect, w_write, 1, 0, 'a', false},
    {"epoll_wait", SYS_epoll_wait, WOKEN, mk_epoll, c_epoll, w_write, 1, 0, 'a', false},
    {"epoll_pwait", SYS_epoll_pwait, WOKEN, mk_epoll, c_epoll_pwait, w_write, 1, 0, 'a', false},
    {"epoll_pwait2", SYS_epoll_pwait2, WOKEN, mk_epoll, c_epoll_pwait2, w_write, 1, 0, 'a', false},
    {"own_epoll_wait", SYS_epoll_wait, STAYS, mk_epoll, c_own_epoll, w_write, 1, 0, 'a', true},
    {"futex", SYS_futex, WOKEN, mk_nothing, c_futex, w_futex, 0, 0, 'a', false},
    {"sem_wait", SYS_futex, WOKEN, mk_sem, c_sem, w_sem, 0, 0, 'a', false},
    {"msgrcv", SYS_msgrcv, WOKEN, mk_msg, c_msgrcv, w_msg, 8, 0, 'a', false},
    {"semop", SYS_semtimedop, WOKEN, mk_semset, c_semop, w_semset, 0, 0, 'a', false},
    {"raw_semop", SYS_semop, WOKEN, mk_semset, r_semop, w_semset, 0, 0, 'a', false},
    {"pause", SYS_pause, WOKEN, mk_nothing, c_pause, w_usr2, -1, EINTR, 'a', true},
    {"sigsuspend", SYS_rt_sigsuspend, WOKEN, mk_nothing, c_sigsuspend, w_usr2, -1, EINTR, 'a', true},
    {"sigwaitinfo", SYS_rt_sigtimedwait, WOKEN, mk_nothing, c_sigwaitinfo, w_usr2, SIGUSR2, 0, 'a', true},
    {"sigwait", SYS_rt_sigtimedwait, WOKEN, mk_nothing, c_sigwait, w_usr2, SIGUSR2, 0, 'a', true},
    {"flock", SYS_flock, WOKEN, mk_flock, c_flock, w_flock, 0, 0, 'a', false},
    {"ofd_setlkw", SYS_fcntl, WOKEN, mk_ofd, c_ofd, w_ofd, 0, 0, 'a', false},
    {"io_getevents", SYS_io_getevents, WOKEN, mk_aio, c_getevents, w_aio, 1, 0, 'a', false},
    {"io_pgetevents", 333, WOKEN, mk_aio, c_pgetevents, w_aio, 1, 0, 'a', false},
    {"poll_timed", SYS_poll, EXACT, mk_pipe, c_poll_timed, NULL, 0, 0, 'a', false},
    {"ppoll_timed", SYS_ppoll, EXACT, mk_pipe, c_ppoll_timed, NULL, 0, 0, 'a', false},
    {"raw_select_timed", SYS_select, EXACT, mk_nothing, r_select_timed, NULL, 0, 0, 'a', false},
    {"select_timed", SYS_pselect6, EXACT, mk_pipe, c_select_timed, NULL, 0, 0, 'a', false},
    {"pselect_timed", SYS_pselect6, EXACT, mk_pipe, c_pselect_timed, NULL, 0, 0, 'a', false},
    {"epoll_wait_timed", SYS_epoll_wait, EXACT, mk_epoll, c_epoll_timed, NULL, 0, 0, 'a', false},
    {"epoll_pwait_timed", SYS_epoll_pwait, EXACT, mk_epoll, c_epoll_pwait_timed, NULL, 0, 0, 'a', false},
    {"epoll_pwait2_timed", SYS_epoll_pwait2, EXACT, mk_epoll, c_epoll_pwait2_timed, NULL, 0, 0, 'a', false},
    {"raw_epoll_wait_timed", SYS_epoll_wait, WHOLE, mk_epoll, r_epoll_timed, NULL, 0, 0, 'a', false},
    {"raw_nanosleep", SYS_nanosleep, EXACT, mk_nothing, r_nanosleep, NULL, 0, 0, 'a', false},
    {"nanosleep", SYS_clock_nanosleep, EXACT, mk_nothing, c_nanosleep, NULL, 0, 0, 'a', false},
    {"usleep", SYS_clock_nanosleep, EXACT, mk_nothing, c_usleep, NULL, 0, 0, 'a', false},
    {"clock_nanosleep", SYS_clock_nanosleep, EXACT, mk_nothing, c_clock_rel, NULL, 0, 0, 'a', false},
    {"clock_nanosleep_abs", SYS_clock_nanosleep, EXACT, mk_nothing, c_clock_abs, NULL, 0, 0, 'a', false},
    {"clock_nanosleep_realtime", SYS_clock_nanosleep, EXACT, mk_nothing, c_clock_real, NULL, 0, 0, 'a', false},
    {"futex_timed", SYS_futex, EXACT, mk_nothing, c_futex_rel, NULL, -1, ETIMEDOUT, 'a', false},
    {"futex_abs", SYS_futex, EXACT, mk_nothing, c_futex_abs, NULL, -1, ETIMEDOUT, 'a', false},
    {"sem_timedwait", SYS_futex, EXACT, mk_sem, c_sem_timed, NULL, -1, ETIMEDOUT, 'a', false},
    {"cond_timedwait", SYS_futex, EXACT, mk_cond, c_cond_timed, NULL, -1, ETIMEDOUT, 'a', true},
    {"semtimedop", SYS_semtimedop, EXACT, mk_semset, c_semtimedop, NULL, -1, EAGAIN, 'a', false},
    {"raw_semtimedop", SYS_semtimedop, WHOLE, mk_semset, r_semtimedop, NULL, -1, EAGAIN, 'a', false},
    {"sigtimedwait", SYS_rt_sigtimedwait, EXACT, mk_nothing, c_sigtimedwait, NULL, -1, EAGAIN, 'a', false},
    {"raw_sigtimedwait", SYS_rt_sigtimedwait, WHOLE, mk_nothing, r_sigtimedwait, NULL, -1, EAGAIN, 'a', false},
    {"recvmsg_rcvtimeo", SYS_recvmsg, WHOLE, mk_pair_limit, c_recvmsg, NULL, -1, EAGAIN, 'a', false},
    {"accept_rcvtimeo", SYS_accept, WHOLE, mk_listen_limit, c_accept, NULL, -1, EAGAIN, 'a', false},
    {"io_getevents_timed", SYS_io_getevents, WHOLE, mk_aio, c_getevents_timed, NULL, 0, 0, 'a', false},
    {"accept", SYS_accept, WOKEN, mk_listen, c_accept, w_connect, 1, 0, 'o', false},
    {"wait4", SYS_wait4, WOKEN, mk_child, c_wait4, w_write, 7, 0, 'o', false},
    {"connect", SYS_connect, WOKEN, mk_backlog, c_connect, w_accept, 0, 0, 'o', false},
    {"connect_sndtimeo", SYS_connect, WOKEN, mk_backlog, c_connect_limit, w_accept, 0, 0, 'o', false},
    {"own_connect", SYS_connect, STAYS, mk_backlog, c_own_connect, w_accept, 0, 0, 'o', true},
    {"tty_read", SYS_read, WOKEN, mk_nothing, c_tty_read, w_tty, 4, 0, 't', false},
    {"tty_write", SYS_write, WOKEN, mk_nothing, c_tty_write, w_flow, 4, 0, 't', false},
};

static int own_option(const char *name, const char *value) {
    if (!strcmp(name, "--signals")) return by_signals = true, 1;
    if (!strcmp(name, "--watched")) return watched = true, 1;
    if (!strcmp(name, "--group") && value) return group = value[0], 2;
    if (!strcmp(name, "--timeout") && value) return timeout_ms = atol(value), 2;
    return 0;
}
static int (*option)(const char *, const char *) = own_option;

static void on_signal(int n) {
    (void)n;
    if (me) me->handled++;
}
static bool asleep_in_it(struct slot *s) {
    char path[64], text[256];
    snprintf(path, sizeof path, "/proc/self/task/%d/syscall", s->seen->tid);
    if (slurp(path, text, sizeof text) <= 0 || text[0] == 'r') return false;
    return atoi(text) == s->call->nr || atoi(text) == SYS_restart_syscall;
}
static bool asleep(struct slot *s) { return watched && ready_ns ? s->seen->asleep == s->seen->rounds + 1LL : asleep_in_it(s); }
static void *rounds(void *arg) {
    struct slot *s = me = arg;
    const struct call *c = s->call;
    if (c->call == c_pause) pthread_sigmask(SIG_UNBLOCK, &usr2, NULL);
    else pthread_sigmask(SIG_BLOCK, &waited, NULL);
    s->seen->tid = tid_now();
    while (!s->stop) {
        while (s->waking) sched_yield(); // of what is drained, the rest: a socket has room before its reader is done
        again(s);
        s->handled = 0, s->woken = 0;
        int64_t began = mono_ns();
        __atomic_store_n(&s->seen->began, began, __ATOMIC_SEQ_CST);
        errno = 0;
        long r = c->call(s);
        int e = r == -1 ? errno : 0;
        int64_t ended = mono_ns(), due = timed(c) && !by_signals ? began + s->timeout : s->woken;
        if (s->stop && (timed(c) || by_signals || c->wake == w_tty)) break;
        bool handler = by_signals || (c->result == -1 && c->error == EINTR);
        if (by_signals ? r != -1 || e != EINTR : r != c->result || e != c->error) fail("%s in round %u, expected %ld (errno %d), got %ld (errno %d, %s)", c->name, s->seen->rounds, by_signals ? -1 : c->result, by_signals ? EINTR : c->error, r, e, strerror(e));
        if (handler != (s->handled > 0)) fail("%s in round %u, expected runs of the handler: %d, got %d", c->name, s->seen->rounds, handler, s->handled);
        if (c->wake == w_tty) ; // when it was woken is the test's to know
        else if (due == 0) fail("%s in round %u, expected to be woken, got back by itself", c->name, s->seen->rounds);
        else {
            int64_t slack = c->bound == WHOLE ? RCV_SLACK : 0;
            if (ended < due - slack) fail("%s in round %u, expected no earlier end, got one %lld us before its time", c->name, s->seen->rounds, (long long)(due - ended) / 1000);
            if (ended - due > s->seen->worst_late) s->seen->worst_late = ended - due;
        }
        s->seen->ended = ended;
        __atomic_add_fetch(&s->seen->rounds, 1, __ATOMIC_SEQ_CST);
    }
    s->seen->tid = 0;
    return NULL;
}
static void wake(struct slot *s) {
    s->waking = true, s->woken = mono_ns();
    if (by_signals) MUST0(pthread_kill(s->thread, SIGUSR1));
    else s->call->wake(s);
    s->waking = false;
}
static void start(void) {
    for (size_t i = 0; i < COUNT(calls); i++) {
        if (calls[i].group != group || (by_signals && calls[i].own)) continue;
        struct slot *s = &slots[used];
        s->call = &calls[i], s->number = used, s->seen = &shared[used];
        s->period = (timeout_ms + 11 * used) * MS; // not all at once
        s->timeout = by_signals ? 60 * SEC : s->period;
        snprintf(s->seen->name, sizeof s->seen->name, "%s", calls[i].name);
        s->seen->nr = calls[i].nr, s->seen->bound = by_signals ? WOKEN : calls[i].bound, s->seen->timeout = s->timeout;
        calls[i].make(s);
        used++;
        MUST0(pthread_create(&s->thread, NULL, rounds, s));
        while (!asleep(s)) sched_yield();
    }
}
// Between `ready` and the gate, in the main thread: each that waits to be woken is, when it has slept in its call for its time.
static void wake_some(void) {
    if (group == 't' && !used && !access(work("go"), F_OK)) start(); // the terminal is nobody else's any more
    for (int i = 0; i < used; i++) {
        struct slot *s = &slots[i];
        int64_t now = mono_ns();
        if (s->call->wake == w_tty || (s->call->bound != WOKEN && !by_signals)) continue;
        // the last instant of a pause: the signal has come, its handler has run, and the call goes on (README, Limits)
        if (by_signals && s->woken && now - s->woken > 2 * SEC && s->handled) s->seen->lost++, s->woken = 0, s->handled = 0;
        if (s->woken || now - s->seen->began < s->period || !asleep(s)) continue;
        bool connected = s->call->wake == w_connect && !by_signals;
        if (connected && flock(peers, LOCK_EX | LOCK_NB)) continue;
        uint32_t round = s->seen->rounds;
        wake(s);
        if (!connected) continue;
        while (s->seen->rounds == round) sched_yield();
        MUST(flock(peers, LOCK_UN));
    }
}
static void (*tick)(void) = wake_some;
static void setup(void) {
    sigemptyset(&usr2), sigaddset(&usr2, SIGUSR2);
    waited = usr2, sigaddset(&waited, 63);
    sigfillset(&full);
    but_usr1 = full, sigdelset(&but_usr1, SIGUSR1);
    but_usr2 = full, sigdelset(&but_usr2, SIGUSR2);
    sigprocmask(SIG_BLOCK, &waited, NULL);
    for (int n = SIGUSR1; n <= SIGUSR2; n += SIGUSR2 - SIGUSR1) MUST(sigaction(n, &(struct sigaction){.sa_handler = on_signal}, NULL)); // no SA_RESTART
    peers = MUST(open(work("peers"), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
    int fd = MUST(open(work("calls"), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
    MUST(ftruncate(fd, COUNT(slots) * sizeof *shared));
    shared = mmap(NULL, COUNT(slots) * sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (shared == MAP_FAILED) must_failed("mmap", __FILE__, __LINE__, errno);
    close(fd);
    if (group == 't') {
        struct termios t;
        MUST(tcgetattr(0, &t));
        t.c_lflag &= ~(tcflag_t)(ICANON | ECHO), t.c_cc[VMIN] = 4;
        MUST(tcsetattr(0, TCSANOW, &t));
    }
    if (group != 't') start();
}
static void spoil(void) { // a signal that nobody has asked for ends one
    MUST(sigaction(SIGHUP, &(struct sigaction){.sa_handler = on_signal}, NULL));
    MUST0(pthread_kill(slots[0].thread, SIGHUP));
    sleep_ms(50);
}
static void prove(void) {
    // Every one that waits for a wake-up is in its call still; then all end.
    for (int i = 0; i < used; i++)
        if (timed(slots[i].call) && !by_signals) slots[i].stop = true; // each at the end of its time
    for (int i = 0; i < used; i++) {
        struct slot *s = &slots[i];
        int64_t patience = mono_ns() + 20 * SEC;
        while (s->woken && s->call->bound == WOKEN && !by_signals && mono_ns() < patience) sleep_ms(1); // just being woken; its next round begins
        s->stop = true;
        bool woken = false;
        while (s->seen->tid && mono_ns() < patience) {
            if (!woken && (!timed(s->call) || by_signals) && asleep_in_it(s)) s->call->wake == w_tty ? (void)pthread_kill(s->thread, SIGUSR1) : wake(s), woken = !by_signals;
            sleep_ms(1);
        }
        CHECK(!s->seen->tid, "%s ends", s->call->name);
        if (!s->seen->tid) MUST0(pthread_join(s->thread, NULL));
        if (s->call->make == mk_msg) msgctl(s->id, IPC_RMID, NULL); // SysV objects outlive their makers
        if (s->call->make == mk_semset) semctl(s->id, 0, IPC_RMID);
    }
}
