#include "common.h"
#include <pthread.h>

static const char *about = "a first thread that has ended while others run: by pthread_exit, or by exit(2) with a status";
static const char *usage = "  --what pthread|raw";
static const char *what = "pthread";
static pthread_t worker, sleeper;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static int turn, woken, ends[2] = {-1, -1};
static volatile int caught;
static char *words;

static int (*option)(const char *, const char *) = what_option;

static int leader_status; // what it ended with, if that is permitted to be seen
static char leader_state(void) {
    char path[64], text[1024] = "", state = '?';
    int pid = syscall(SYS_getpid);
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", pid);
    int fd = open(path, O_RDONLY);
    if (fd >= 0 && read(fd, text, sizeof text - 1) > 0) {
        sscanf(strrchr(text, ')') + 1, " %c", &state);
        leader_status = atoi(strrchr(text, ' ') + 1);
    }
    close(fd);
    return state;
}
static void leader_ends(void) {
    for (int k = 0; k < 5000 && leader_state() != 'Z'; k++) sleep_ms(1);
}
static void *sleeps(void *arg) { // in a call of its own until it is woken
    (void)arg;
    pthread_mutex_lock(&lock);
    while (!turn) pthread_cond_wait(&wake, &lock);
    woken = 1;
    pthread_mutex_unlock(&lock);
    return &woken;
}
static void on_signal(int n) { caught = n, got_signal(); }

static void setup(void) {
    MUST((words = malloc(2 * PAGE)) ? 0 : -1);
    for (unsigned k = 0; k < 2 * PAGE; k++) words[k] = k * 7;
    MUST(pipe2(ends, O_CLOEXEC));
    MUST(write(ends[1], "kept", 4));
    struct sigaction a = {.sa_handler = on_signal};
    MUST(sigaction(SIGUSR1, &a, NULL));
}
static void spoil(void) { words[5] ^= 1; }
static void prove(void) {
    for (unsigned k = 0; k < 2 * PAGE; k++)
        if (words[k] != (char)(k * 7)) return fail("byte %u of memory, expected %d, got %d", k, (char)(k * 7), words[k]);
    char name[16] = "", text[8] = "";
    CHECK_EQ('Z', leader_state(), "state of the first thread");
    CHECK_EQ(strcmp(what, "raw") ? 0 : 3 << 8, leader_status, "what the first thread ended with");
    CHECK_EQ(4, read(ends[0], text, 4), "what waits in the pipe");
    CHECK_STR("kept", text, "what waits in the pipe");
    CHECK_OK(pthread_getname_np(pthread_self(), name, sizeof name), "name");
    CHECK_STR("worker", name, "name of the second thread");
    // of the process, which only those that live can take
    CHECK_OK(kill(syscall(SYS_getpid), SIGUSR1), "a signal for the process");
    for (int k = 0; k < 2000 && !caught; k++) sleep_ms(1);
    CHECK_EQ(SIGUSR1, caught, "a signal for the process");
    pthread_mutex_lock(&lock);
    turn = 1;
    pthread_cond_signal(&wake);
    pthread_mutex_unlock(&lock);
    void *r = NULL;
    CHECK_EQ(0, pthread_join(sleeper, &r), "the end of the third thread");
    CHECK_EQ(1, r == &woken && woken, "what the third thread did");
}

static void (*rest)(void);
static void *works(void *arg) {
    (void)arg;
    pthread_setname_np(pthread_self(), "worker");
    leader_ends();
    rest();
    if (eintr_seen > signals_got) fail("calls interrupted with EINTR, expected at most %d, got %d", signals_got, eintr_seen);
    finish();
    return NULL;
}
static void without_leader(void (*body)(void)) {
    rest = body;
    MUST(pthread_create(&sleeper, NULL, sleeps, NULL));
    MUST(pthread_create(&worker, NULL, works, NULL));
    if (!strcmp(what, "raw")) syscall(SYS_exit, 3);
    pthread_exit(NULL);
}
static void (*around)(void (*)(void)) = without_leader;
