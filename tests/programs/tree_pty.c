// Terminals inside a tree: sessions whose controlling terminals have their masters in relatives, as under script(1), tmux(1), expect(1) or sshd(8).
#include "common.h"
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <termios.h>

static const char *about = "sessions with terminals whose masters are relatives': controlling terminal, foreground group, what waits in them";

// Who there is. The program has the masters of three terminals; MUX has that of a fourth.
enum {
    SHELL,      // leads the session of terminal 0, which is its 0, 1, 2
    FOREGROUND, // its job in the foreground
    BACKGROUND, // its job in the background
    DETACHED,   // of its session, but without a terminal
    MUX,        // of its session, and has the master of terminal 3
    INNER,      // leads the session of terminal 3; has it as /dev/tty only
    CLOSED,     // leads the session of terminal 1, and has closed it
    PLAIN,      // leads a session without a terminal, and has terminal 2 as its 0
    KIDS
};
enum { ASK = 'a', READ = 'r', WRITE = 'w', SIZE = 's' };
#define TTY_FD 60
#define MASTER_FD 61

struct facts {
    int pid, ppid, sid, pgid, tty, foreground, number, interrupts, resized, length;
    char got[64];
};
static int pipes[KIDS][4]; // order read, order write, answer read, answer write
static int masters[3];
static struct facts then[KIDS];
static volatile int interrupts, resized;

static void count(int signal) {
    got_signal();
    if (signal == SIGINT) interrupts++;
    else resized++;
}

static struct facts look(void) {
    struct facts f = {.pid = getpid(), .ppid = getppid(), .sid = getsid(0), .pgid = getpgid(0), .number = -1};
    char text[512], *p;
    if (slurp("/proc/self/stat", text, sizeof text) > 0 && (p = strrchr(text, ')')))
        sscanf(p + 2, "%*c %*d %*d %*d %d %d", &f.tty, &f.foreground);
    ioctl(MASTER_FD, TIOCGPTN, &f.number);
    f.interrupts = interrupts, f.resized = resized;
    return f;
}

static void __attribute__((noreturn)) serve(int me) {
    signal(SIGINT, count), signal(SIGWINCH, count);
    for (int i = 0; i < KIDS; i++) close(pipes[i][1]), close(pipes[i][2]);
    char order;
    ssize_t n;
    while ((n = read(pipes[me][0], &order, 1)) == 1 || (n < 0 && errno == EINTR)) {
        if (n < 0) continue;
        struct facts f = look();
        int fd = me == INNER ? TTY_FD : 0;
        if (order == READ) {
            struct pollfd p = {fd, POLLIN, 0};
            f.length = poll(&p, 1, 5000) == 1 ? (int)read(fd, f.got, sizeof f.got - 1) : -2;
        } else if (order == WRITE) {
            f.length = (int)write(fd, "said\n", 5);
        } else if (order == SIZE) {
            struct winsize w = {0};
            ioctl(fd, TIOCGWINSZ, &w);
            f.length = w.ws_row * 1000 + w.ws_col;
        }
        if (write(pipes[me][3], &f, sizeof f) != sizeof f) break;
    }
    _exit(0);
}

static struct facts told(int kid, char order) {
    struct facts f = {.pid = -1};
    if (write(pipes[kid][1], &order, 1) != 1 || read(pipes[kid][2], &f, sizeof f) != sizeof f) fail("kid %d, expected an answer, got none", kid);
    return f;
}

static int new_master(void) {
    int fd = MUST(posix_openpt(O_RDWR | O_NOCTTY));
    MUST(unlockpt(fd));
    return fd;
}
static int slave_of(int master) { return MUST(ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY)); }
static void let_go_of_masters(void) {
    for (int i = 0; i < 3; i++) close(masters[i]);
}

static void inner(void) {
    int master = MASTER_FD, slave = slave_of(master);
    close(master);
    MUST(setsid());
    MUST(ioctl(slave, TIOCSCTTY, 0));
    MUST(dup2(MUST(open("/dev/tty", O_RDWR)), TTY_FD));
    for (int fd = 0; fd < 3; fd++) close(fd);
    close(slave);
    serve(INNER);
}

static void shell(void) {
    int slave = slave_of(masters[0]);
    let_go_of_masters();
    MUST(setsid());
    MUST(ioctl(slave, TIOCSCTTY, 0));
    for (int fd = 0; fd < 3; fd++) MUST(dup2(slave, fd));
    signal(SIGTTOU, SIG_IGN);
    pid_t foreground = MUST(fork());
    if (!foreground) {
        signal(SIGTTOU, SIG_DFL);
        MUST(setpgid(0, 0));
        serve(FOREGROUND);
    }
    setpgid(foreground, foreground);
    MUST(tcsetpgrp(0, foreground));
    if (!MUST(fork())) {
        MUST(setpgid(0, 0));
        serve(BACKGROUND);
    }
    if (!MUST(fork())) {
        MUST(ioctl(0, TIOCNOTTY));
        serve(DETACHED);
    }
    if (!MUST(fork())) {
        MUST(dup2(new_master(), MASTER_FD));
        if (!MUST(fork())) inner();
        serve(MUX);
    }
    serve(SHELL);
}

static void closed(void) {
    int slave = slave_of(masters[1]);
    let_go_of_masters();
    MUST(setsid());
    MUST(ioctl(slave, TIOCSCTTY, 0));
    close(slave);
    serve(CLOSED);
}

static void plain(void) {
    int slave = slave_of(masters[2]);
    let_go_of_masters();
    MUST(setsid());
    MUST(dup2(slave, 0));
    serve(PLAIN);
}

// The program's end comes before that of its terminals, and is no news to anybody.
static void setup(void) {
    for (int i = 0; i < KIDS; i++) {
        MUST(pipe(pipes[i])), MUST(pipe(pipes[i] + 2));
    }
    for (int i = 0; i < 3; i++) masters[i] = new_master();
    void (*begin[])(void) = {shell, closed, plain};
    for (size_t i = 0; i < COUNT(begin); i++) {
        if (!MUST(fork())) begin[i]();
    }
    for (int i = 0; i < KIDS; i++) close(pipes[i][0]), close(pipes[i][3]);
    for (int i = 0; i < KIDS; i++) then[i] = told(i, ASK);
    struct winsize size = {30, 90, 0, 0};
    MUST(ioctl(masters[0], TIOCSWINSZ, &size));
    for (int i = 0; i < 1000 && !told(FOREGROUND, ASK).resized; i++) sleep_ms(1);
    then[FOREGROUND] = told(FOREGROUND, ASK);
    MUST(write(masters[0], "typed\npar", 9));
    for (int n = 0; n < 10; sched_yield()) MUST(ioctl(masters[0], FIONREAD, &n)); // its echo
    told(SHELL, WRITE);
    told(INNER, WRITE);
}

static void spoil(void) { MUST(write(masters[0], "\027", 1)); } // the word is erased

static void expect(int fd, const char *text, const char *of) {
    char got[128] = "";
    size_t n = 0;
    struct pollfd p = {fd, POLLIN, 0};
    while (n < strlen(text) && poll(&p, 1, 2000) == 1) {
        ssize_t k = read(fd, got + n, sizeof got - 1 - n);
        if (k <= 0) break;
        n += (size_t)k;
    }
    CHECK_STR(text, got, "%s", of);
}

static void belongs(int kid) {
    struct facts was = then[kid], is = told(kid, ASK);
    CHECK_EQ(was.pid, is.pid, "kid %d: PID", kid);
    CHECK_EQ(was.ppid, is.ppid, "kid %d: parent", kid);
    CHECK_EQ(was.sid, is.sid, "kid %d: session", kid);
    CHECK_EQ(was.pgid, is.pgid, "kid %d: group", kid);
    CHECK_EQ(was.foreground, is.foreground, "kid %d: foreground group of its terminal", kid);
    CHECK_EQ(was.interrupts, is.interrupts, "kid %d: interrupts", kid);
    CHECK_EQ(was.resized, is.resized, "kid %d: changes of size", kid);
    int number = -1, terminals[KIDS] = {0, 0, 0, -1, 0, 3, 1, -1}, t = terminals[kid];
    if (t == 3) number = told(MUX, ASK).number;
    else if (t >= 0) ioctl(masters[t], TIOCGPTN, &number);
    CHECK_HEX(t < 0 ? 0 : 136 << 8 | (number & 0xff) | (number & ~0xff) << 12, is.tty, "kid %d: controlling terminal", kid);
}

static void prove(void) {
    for (int i = 0; i < KIDS; i++) belongs(i);
    CHECK_EQ(then[FOREGROUND].pid, then[SHELL].foreground ? told(SHELL, ASK).foreground : -1, "the job in the foreground");
    CHECK_EQ(30090, told(FOREGROUND, SIZE).length, "size of terminal 0");
    // what waited, and what comes now
    expect(masters[0], "typed\r\nparsaid\r\n", "output of terminal 0");
    struct facts f = told(FOREGROUND, READ);
    CHECK_STR("typed\n", f.got, "a line typed");
    CHECK_OK(write(masters[0], "t\n", 2), "typing on");
    f = told(FOREGROUND, READ);
    CHECK_STR("part\n", f.got, "the rest of a line");
    CHECK_OK(write(masters[2], "plain\n", 6), "typing into terminal 2");
    f = told(PLAIN, READ);
    CHECK_STR("plain\n", f.got, "a line typed into terminal 2");
    struct pollfd p = {masters[1], 0, 0};
    CHECK(poll(&p, 1, 0) == 1 && p.revents & POLLHUP, "nobody has terminal 1 open");
    // the terminal knows its groups
    CHECK_OK(write(masters[0], "\003", 1), "Ctrl-C");
    for (int i = 0; i < 1000 && !told(FOREGROUND, ASK).interrupts; i++) sleep_ms(1);
    CHECK_EQ(1, told(FOREGROUND, ASK).interrupts, "Ctrl-C to the job in the foreground");
    CHECK_EQ(0, told(BACKGROUND, ASK).interrupts, "Ctrl-C to the job in the background");
    CHECK_EQ(5, told(INNER, WRITE).length, "writing to /dev/tty");
}
