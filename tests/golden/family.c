// The tree of processes in a golden image: a program, its child in a session of its own with a terminal, that one's child, and a child that has ended. What they
// share: memory, an open file, a pipe, a pair of sockets, a terminal, a handle. Static, so that an image of it depends on no other file. It waits until a file
// `gate` is there; then each proves its state, and the program writes the file `result`: "OK", or who is wrong. make.sh builds it and makes the image.
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#define WORDS 4096
static struct shared {
    volatile int ready, go;
    unsigned long words[WORDS];
} * shared;
static unsigned long own[WORDS]; // by fork the same in all, but for what each changes
static int data, in[2], pair[2], master, event, handle;
static pid_t program, child, grandchild, dead;

static void say(const char *name, const char *text) {
    char new[32];
    snprintf(new, sizeof new, "%s.new", name);
    int fd = open(new, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (write(fd, text, strlen(text)) < 0) _exit(99);
    close(fd), rename(new, name);
}
static void fill(unsigned long *at, unsigned long x) {
    for (int i = 0; i < WORDS; i++) at[i] = x = x * 6364136223846793005UL + 1442695040888963407UL;
}
static int filled(const unsigned long *at, unsigned long x, int but) {
    for (int i = 0; i < WORDS; i++) {
        x = x * 6364136223846793005UL + 1442695040888963407UL;
        if (at[i] != (i == but ? 7 : x)) return 0;
    }
    return 1;
}
static int has(int fd, const char *text) {
    char b[64] = "";
    ssize_t n = read(fd, b, sizeof b - 1);
    return n == (ssize_t)strlen(text) && !strcmp(b, text);
}
static void nap(void) { usleep(2000); }
#define WRONG(n, cond) do { if (!(cond)) return n; } while (0)

static int grandchild_proves(void) {
    WRONG(1, getppid() == child && getpid() == grandchild && getsid(0) == child && getpgrp() == grandchild);
    WRONG(2, filled(own, 5, 300) && filled(shared->words, 6, -1));
    WRONG(3, has(pair[1], "one") && has(pair[1], "two, longer"));
    WRONG(4, write(pair[1], "back", 4) == 4);
    return 0;
}
static int child_proves(void) {
    struct termios t;
    WRONG(1, getpid() == child && getsid(0) == child && tcgetsid(0) == child && tcgetpgrp(0) == child);
    WRONG(2, filled(own, 5, 200) && filled(shared->words, 6, -1));
    WRONG(3, has(in[0], "in the pipe"));
    WRONG(4, !tcgetattr(0, &t) && !(t.c_lflag & ECHO) && (t.c_lflag & ICANON));
    WRONG(5, has(0, "typed before\n"));
    WRONG(6, lseek(data, 0, SEEK_CUR) == 5); // one open file for all
    int status = -1;
    WRONG(7, waitpid(grandchild, &status, 0) == grandchild && status == 0);
    WRONG(8, has(pair[0], "back"));
    return 3;
}
static int program_proves(void) {
    int status = -1;
    WRONG(1, getpid() == program && waitpid(dead, &status, 0) == dead && WIFEXITED(status) && WEXITSTATUS(status) == 7);
    WRONG(2, filled(own, 5, 100) && filled(shared->words, 6, -1));
    struct winsize w;
    WRONG(3, !ioctl(master, TIOCGWINSZ, &w) && w.ws_row == 31 && w.ws_col == 97 && has(master, "to the master"));
    eventfd_t v = 0;
    WRONG(4, !eventfd_read(event, &v) && v == 9);
    char b[8] = "";
    WRONG(5, lseek(data, 0, SEEK_CUR) == 5);
    struct pollfd p = {handle, POLLIN, 0};
    WRONG(6, poll(&p, 1, 10000) == 1);
    WRONG(7, waitpid(child, &status, 0) == child);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 3) return 100 + WEXITSTATUS(status);
    WRONG(8, read(data, b, 4) == 4 && !strcmp(b, "5678"));
    return 0;
}
static void waits(void) {
    __atomic_fetch_add(&shared->ready, 1, __ATOMIC_SEQ_CST);
    while (!shared->go) nap();
}
static void child_runs(const char *slave) {
    child = getpid();
    setsid();
    int fd = open(slave, O_RDWR); // the first of its session: its controlling terminal
    struct termios t;
    tcgetattr(fd, &t);
    t.c_lflag &= ~(tcflag_t)ECHO, t.c_oflag &= ~(tcflag_t)OPOST;
    tcsetattr(fd, TCSANOW, &t);
    dup2(fd, 0), close(fd), close(in[1]), close(master);
    if (write(0, "to the master", 13) != 13) _exit(98);
    if (!(grandchild = fork())) {
        grandchild = getpid();
        setpgid(0, 0), close(pair[0]), close(in[0]);
        own[300] = 7;
        waits();
        _exit(grandchild_proves());
    }
    setpgid(grandchild, grandchild), close(pair[1]);
    own[200] = 7;
    if (write(pair[0], "one", 3) != 3 || write(pair[0], "two, longer", 11) != 11) _exit(97);
    waits();
    // what it finds wrong is its status, above 40
    int wrong = child_proves();
    _exit(wrong == 3 ? 3 : 40 + wrong);
}
int main(void) {
    signal(SIGPIPE, SIG_IGN); // brings the return from a handler with it, which an attach makes its way in of
    program = getpid();
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    fill(own, 5), fill(shared->words, 6);
    data = open("data", O_RDONLY);
    lseek(data, 5, SEEK_SET);
    master = open("/dev/ptmx", O_RDWR | O_NOCTTY);
    struct winsize size = {.ws_row = 31, .ws_col = 97};
    if (pipe(in) || socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) || grantpt(master) || unlockpt(master) || ioctl(master, TIOCSWINSZ, &size)) return 96;
    event = eventfd(9, EFD_CLOEXEC);
    const char *slave = ptsname(master);
    if (!(child = fork())) child_runs(slave);
    handle = (int)syscall(SYS_pidfd_open, child, 0);
    close(in[0]), close(pair[0]), close(pair[1]);
    if (!(dead = fork())) _exit(7);
    siginfo_t info;
    waitid(P_PID, (id_t)dead, &info, WEXITED | WNOWAIT);
    own[100] = 7;
    while (shared->ready < 2) nap();
    if (write(in[1], "in the pipe", 11) != 11 || write(master, "typed before\n", 13) != 13) return 95;
    close(in[1]);
    say("ready", "");
    while (access("gate", F_OK)) nap();
    shared->go = 1;
    int wrong = program_proves();
    char text[64];
    snprintf(text, sizeof text, wrong < 100 ? "the program: %d\n" : "below the program: %d\n", wrong);
    say("result", wrong ? text : "OK\n");
    return wrong;
}
