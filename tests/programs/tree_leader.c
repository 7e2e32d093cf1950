#include "common.h"
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

static const char *about = "a child whose first thread has ended while another runs, and what it ends with";
static const char *usage = "  --signal    the child wants a signal at its parent's end, whose first thread has ended, too: refused";
static bool wants_signal;
static pthread_t worker;
static int ends[2] = {-1, -1};
static pid_t child;
static char *words;

static int own_option(const char *name, const char *value) {
    (void)value;
    return strcmp(name, "--signal") ? 0 : (wants_signal = true, 1);
}
static int (*option)(const char *, const char *) = own_option;

static char leader_state(void) {
    char path[64], text[1024] = "", state = '?';
    int pid = syscall(SYS_getpid);
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", pid);
    int fd = open(path, O_RDONLY);
    if (fd >= 0 && read(fd, text, sizeof text - 1) > 0) sscanf(strrchr(text, ')') + 1, " %c", &state);
    close(fd);
    return state;
}
static void leader_ends(void) {
    for (int k = 0; k < 5000 && leader_state() != 'Z'; k++) sleep_ms(1);
}
static void *childs(void *arg) {
    (void)arg;
    char c = 0;
    leader_ends();
    if (send(ends[1], leader_state() == 'Z' ? "r" : "f", 1, MSG_NOSIGNAL) != 1) _exit(9); // it is ready
    ssize_t n;
    while ((n = recv(ends[1], &c, 1, 0)) < 0 && errno == EINTR) {}
    if (n != 1 || c != 'g' || leader_state() != 'Z') _exit(8);
    for (unsigned k = 0; k < 2 * PAGE; k++)
        if (words[k] != (char)(k * 7)) _exit(7);
    syscall(SYS_exit, 3); // kernels differ in whose status is the process's: the first thread's or the last one's
    return NULL;
}
static void setup(void) {
    MUST((words = malloc(2 * PAGE)) ? 0 : -1);
    for (unsigned k = 0; k < 2 * PAGE; k++) words[k] = k * 7;
    if (wants_signal) return;
    MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends));
    MUST(child = fork());
    if (!child) {
        close(ends[0]);
        if (pthread_create(&worker, NULL, childs, NULL)) _exit(9);
        syscall(SYS_exit, 3);
    }
    close(ends[1]);
    char c = 0;
    MUST(recv(ends[0], &c, 1, 0));
    MUST(c == 'r' ? 0 : -1);
}
static void spoil(void) { kill(child, SIGKILL); }
static void prove(void) {
    int status = 0;
    if (wants_signal) {
        pid_t ended = waitpid(child, &status, WNOHANG);
        CHECK_EQ(0, ended, "the child that runs");
        CHECK_OK(kill(child, SIGKILL), "the child's end");
        return;
    }
    CHECK_EQ(1, send(ends[0], "g", 1, MSG_NOSIGNAL), "the child's turn");
    pid_t ended = waitpid(child, &status, 0);
    CHECK_EQ(child, ended, "the child's end");
    CHECK_EQ(3 << 8, status, "what its threads ended with");
}

static void (*rest)(void);
static void *works(void *arg) {
    (void)arg;
    leader_ends();
    MUST(pipe(ends));
    MUST(child = fork());
    if (!child) {
        if (prctl(PR_SET_PDEATHSIG, SIGUSR1) || write(ends[1], "r", 1) != 1) _exit(9);
        for (;;) pause();
    }
    char c;
    MUST(read(ends[0], &c, 1));
    close(ends[0]), close(ends[1]);
    rest();
    finish();
    return NULL;
}
static void without_leader(void (*body)(void)) {
    if (!wants_signal) return body();
    rest = body;
    MUST(pthread_create(&worker, NULL, works, NULL));
    pthread_exit(NULL);
}
static void (*around)(void (*)(void)) = without_leader;
