// Handles of relatives: the parent has them of its children, who live, have ended or were waited for, and of a thread; a child has them of the others, and of
// threads; some are one open file for both.
#include "common.h"
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/wait.h>

static const char *about = "pidfds of child, parent, sibling, thread: live, ended, waited for; in epoll sets, non-blocking, passed to another process";

#define P_PIDFD_ 3
enum { LIVE, DEAD, REAPED, WITNESS, MANY };
static pid_t kid[MANY], thread_tid;
static int handle[MANY], nonblocking, of_thread, passed, epoll, talk[2], leave[2], life[2];
static pthread_t thread;

// What the witness says of its own handles: bits that are set are wrong.
struct answer { uint32_t wrong, saw_nonblock; };

static int open_handle(pid_t pid, unsigned flags) { return (int)MUST(syscall(SYS_pidfd_open, pid, flags)); }
static int signal_to(int fd, int sig) { return (int)syscall(SYS_pidfd_send_signal, fd, sig, NULL, 0); }
static int ready(int fd) {
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return poll(&p, 1, 0) == 1 && p.revents & POLLIN;
}
static int pid_of(int fd) {
    char path[64], text[64];
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
    return atoi(field(path, "Pid", text, sizeof text));
}

static void *sleeper(void *unused) {
    char c;
    thread_tid = tid_now();
    while (read(leave[0], &c, 1) < 0 && errno == EINTR) {}
    return unused;
}

static void pass(int fd) {
    char c = 'h', control[CMSG_SPACE(sizeof fd)] = {0};
    struct msghdr m = {.msg_iov = &(struct iovec){&c, 1}, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *h = CMSG_FIRSTHDR(&m);
    h->cmsg_level = SOL_SOCKET, h->cmsg_type = SCM_RIGHTS, h->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(h), &fd, sizeof fd);
    MUST(sendmsg(talk[0], &m, 0));
}
static int receive(void) {
    int fd;
    char c, control[CMSG_SPACE(sizeof fd)] = {0};
    struct msghdr m = {.msg_iov = &(struct iovec){&c, 1}, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    MUST(recvmsg(talk[1], &m, 0));
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof fd);
    return fd;
}

static void __attribute__((noreturn)) witness(void) {
    pid_t parent = getppid(), me = getpid();
    int of_parent = open_handle(parent, 0), of_self = receive(), of_live = receive();
    int own = open_handle(me, O_NONBLOCK), of_its_thread = thread_tid ? open_handle(thread_tid, O_EXCL) : -1;
    char c = 'r';
    close(talk[0]);
    MUST(write(talk[1], &c, 1));
    while (read(talk[1], &c, 1) == 1) {
        struct answer a = {0};
        int fds[] = {of_parent, of_self, own, of_live, handle[LIVE], of_its_thread};
        int pids[] = {parent, me, me, kid[LIVE], kid[LIVE], thread_tid};
        for (unsigned i = 0; i < COUNT(fds); i++) {
            if (fds[i] < 0) continue;
            if (pid_of(fds[i]) != pids[i]) a.wrong |= 1U << i;
            if (ready(fds[i])) a.wrong |= 1U << (8 + i);
            if (signal_to(fds[i], 0)) a.wrong |= 1U << (16 + i);
        }
        siginfo_t info;
        if (waitid(P_PIDFD_, (id_t)of_live, &info, WEXITED | WNOHANG) != -1 || errno != ECHILD) a.wrong |= 1U << 30;
        a.saw_nonblock = (fcntl(of_self, F_GETFL) & O_NONBLOCK ? 1 : 0) + (fcntl(handle[LIVE], F_GETFL) & O_NONBLOCK ? 2 : 0);
        MUST(write(talk[1], &a, sizeof a));
    }
    _exit(0);
}

static void add(int fd, uint64_t data) {
    struct epoll_event e = {.events = EPOLLIN, .data.u64 = data};
    MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e));
}

static void setup(void) {
    char c;
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, talk));
    MUST(pipe2(leave, O_CLOEXEC)), MUST(pipe2(life, O_CLOEXEC));
    MUST0(pthread_create(&thread, NULL, sleeper, NULL));
    while (!thread_tid) sched_yield();
    of_thread = (int)syscall(SYS_pidfd_open, thread_tid, O_EXCL); // PIDFD_THREAD, kernel 6.9
    if (of_thread < 0) thread_tid = 0;
    for (int i = 0; i < MANY; i++) {
        kid[i] = (pid_t)MUST(fork());
        if (kid[i] == 0) {
            close(life[1]), close(leave[1]);
            if (i == WITNESS) witness();
            close(talk[0]), close(talk[1]);
            if (i == DEAD) _exit(7);
            if (i == REAPED) _exit(9);
            MUST(read(life[0], &c, 1)); // until its parent ends
            _exit(0);
        }
        handle[i] = MUST(fcntl(open_handle(kid[i], 0), F_DUPFD_CLOEXEC, 60 + 2 * i));
    }
    close(talk[1]);
    siginfo_t info;
    MUST(waitid(P_PID, (id_t)kid[DEAD], &info, WEXITED | WNOWAIT));
    MUST(waitpid(kid[REAPED], NULL, 0));
    nonblocking = open_handle(kid[WITNESS], O_NONBLOCK);
    passed = open_handle(kid[WITNESS], 0);
    pass(passed), pass(handle[LIVE]);
    MUST(read(talk[0], &c, 1));
    epoll = (int)MUST(epoll_create1(0));
    add(handle[LIVE], LIVE), add(handle[DEAD], DEAD), add(handle[WITNESS], WITNESS);
    if (of_thread >= 0) add(of_thread, MANY);
}
static void spoil(void) { MUST(fcntl(passed, F_SETFL, O_NONBLOCK)); }

static struct answer ask(void) {
    struct answer a = {.wrong = ~0U};
    CHECK_EQ(1, write(talk[0], "?", 1), "asking the witness");
    CHECK_EQ(sizeof a, read(talk[0], &a, sizeof a), "its answer");
    return a;
}
static uint64_t event(int ms) { // the only one
    struct epoll_event e[8] = {0};
    int n = epoll_wait(epoll, e, 8, ms);
    return n == 1 ? e[0].data.u64 : 1000 + (uint64_t)n;
}
static void waited(int i, int code, int status) {
    siginfo_t info = {0};
    if (!CHECK_OK(waitid(P_PIDFD_, (id_t)handle[i], &info, WEXITED), "waiting for child %d", i)) return;
    CHECK_EQ(kid[i], info.si_pid, "which child ended");
    CHECK_EQ(code, info.si_code, "what ended child %d", i);
    CHECK_EQ(status, info.si_status, "how child %d ended", i);
    CHECK_ERRNO(ESRCH, signal_to(handle[i], 0), "a signal to child %d, which is gone", i);
}

static void prove(void) {
    siginfo_t info = {0};
    CHECK_EQ(kid[LIVE], pid_of(handle[LIVE]), "whose the handle of the living child is");
    CHECK_EQ(kid[DEAD], pid_of(handle[DEAD]), "whose that of the dead one is");
    CHECK_EQ(-1, pid_of(handle[REAPED]), "whose that of the one that was waited for is");
    CHECK_EQ(0, ready(handle[LIVE]), "poll of the living child");
    CHECK_EQ(1, ready(handle[DEAD]), "poll of the dead one");
    CHECK_EQ(1, ready(handle[REAPED]), "poll of the one that was waited for");
    CHECK_OK(signal_to(handle[LIVE], 0), "a signal to the living child");
    CHECK_OK(waitid(P_PIDFD_, (id_t)handle[LIVE], &info, WEXITED | WNOHANG), "looking whether it has ended");
    CHECK_EQ(0, info.si_pid, "it has not");
    CHECK_ERRNO(EAGAIN, waitid(P_PIDFD_, (id_t)nonblocking, &info, WEXITED), "waiting by a non-blocking handle");
    CHECK_EQ(O_NONBLOCK, fcntl(nonblocking, F_GETFL) & O_NONBLOCK, "its flag");
    CHECK_ERRNO(ECHILD, waitid(P_PIDFD_, (id_t)handle[REAPED], &info, WEXITED | WNOHANG), "waiting for who was waited for");
    CHECK_EQ(FD_CLOEXEC, fcntl(handle[LIVE], F_GETFD), "close-on-exec");

    struct answer a = ask();
    CHECK_HEX(0, a.wrong, "what is wrong with the other's handles");
    CHECK_EQ(0, a.saw_nonblock, "flags of open files that both have");
    CHECK_OK(fcntl(passed, F_SETFL, O_NONBLOCK), "setting a flag of one");
    CHECK_EQ(1, ask().saw_nonblock, "the other's sight of it");
    CHECK_OK(fcntl(handle[LIVE], F_SETFL, O_NONBLOCK), "of the second");
    CHECK_EQ(3, ask().saw_nonblock, "the other's sight of both");
    CHECK_OK(fcntl(handle[LIVE], F_SETFL, 0), "taking it away");

    CHECK_EQ(DEAD, event(0), "the only one that the set tells of");
    waited(DEAD, CLD_EXITED, 7);
    CHECK_OK(epoll_ctl(epoll, EPOLL_CTL_DEL, handle[DEAD], NULL), "removing it");
    CHECK_EQ(1000, event(0), "nobody else");
    CHECK_OK(signal_to(handle[LIVE], SIGTERM), "ending the living child");
    CHECK_EQ(LIVE, event(5000), "who ended");
    waited(LIVE, CLD_KILLED, SIGTERM);
    CHECK_OK(epoll_ctl(epoll, EPOLL_CTL_DEL, handle[LIVE], NULL), "removing it");
    if (thread_tid) {
        CHECK_EQ(thread_tid, pid_of(of_thread), "which thread a handle is of");
        CHECK_EQ(O_EXCL, fcntl(of_thread, F_GETFL) & O_EXCL, "its flag");
        CHECK_EQ(0, ready(of_thread), "poll of the thread");
        CHECK_OK(signal_to(of_thread, 0), "a signal to it");
        CHECK_EQ(1, write(leave[1], "!", 1), "telling it to end");
        CHECK_EQ(MANY, event(5000), "that the thread ended");
        pthread_join(thread, NULL);
        CHECK_OK(epoll_ctl(epoll, EPOLL_CTL_DEL, of_thread, NULL), "removing it");
    }
    close(talk[0]);
    CHECK_EQ(WITNESS, event(5000), "the end of the witness");
    waited(WITNESS, CLD_EXITED, 0);
    CHECK_ERRNO(ECHILD, waitpid(-1, NULL, WNOHANG), "a child that nobody made");
}
