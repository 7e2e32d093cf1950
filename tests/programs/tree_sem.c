#include "common.h"
#include <sys/ipc.h>
#include <sys/prctl.h>
#include <sys/sem.h>
#include <sys/wait.h>

static const char *about = "System V semaphores: values, who used each last, what two processes are to give back (SEM_UNDO), key and permissions; a child waits for one, a thread for zero";
static const char *usage =
    "  --what shared   a process outside has used it, and the program is to give back to it: refused\n"
    "  --what others   a process outside has used it: it stays as it is\n"
    "  --what before   nobody has used it since a child with two threads began: it keeps its time when that ends\n";

static int (*option)(const char *, const char *) = what_option;

static int set, keyed;
static key_t key;
static pid_t me, child;
static pthread_t waiter;
static time_t used;

static int op(int id, int n, int by, int flags) {
    struct sembuf s = {n, by, flags};
    return (int)syscall(SYS_semop, id, &s, 1UL);
}
// Until as many wait as there should.
static void asleep(int id, int n, int which) {
    while (semctl(id, n, which) < 1) sleep_ms(2);
}
static void *for_zero(void *unused) {
    (void)unused;
    struct sembuf s = {0, 0, 0};
    struct timespec minutes = {600, 0};
    return (void *)syscall(SYS_semtimedop, keyed, &s, 1UL, &minutes);
}
// Another process, no child of this one, that uses it and lives until the gate is open.
static void another(void) {
    pid_t between = MUST(fork());
    if (!between) {
        if (MUST(fork())) _exit(0);
        MUST(op(set, 0, 1, 0));
        MUST(write_file("used", "") ? 0 : -1);
        while (access(work("gate"), F_OK) && !kill(me, 0)) sleep_ms(2);
        _exit(0);
    }
    MUST(waitpid(between, NULL, 0));
    while (access(work("used"), F_OK)) sleep_ms(2);
}
static void *pauses(void *arg) {
    MUST(write_file("began", "") ? 0 : -1);
    while (true) pause();
    return arg;
}
static time_t last_used(void) {
    struct semid_ds s;
    MUST(semctl(set, 0, IPC_STAT, &s));
    return s.sem_otime;
}
// A process that has ended uses it, and in a later second begins one that has a list of what to give back, as all have that have threads.
static void before(void) {
    pid_t user = MUST(fork());
    if (!user) _exit(op(set, 0, 1, 0) ? errno : 0);
    MUST(waitpid(user, NULL, 0));
    used = last_used();
    while (time(NULL) <= used + 2) sleep_ms(20);
    if (!(child = MUST(fork()))) {
        MUST(prctl(PR_SET_PDEATHSIG, SIGKILL));
        if (pthread_create(&waiter, NULL, pauses, NULL)) _exit(1);
        while (true) pause();
    }
    while (access(work("began"), F_OK)) sleep_ms(2);
}
static void setup(void) {
    me = getpid();
    set = MUST(semget(IPC_PRIVATE, 4, 0600));
    unsigned short values[4] = {5, 0, 32766, 8};
    MUST(semctl(set, 0, SETALL, values));
    if (what && !strcmp(what, "before")) {
        before();
        return;
    }
    if (what) {
        MUST(op(set, 0, -2, strcmp(what, "shared") ? 0 : SEM_UNDO)), MUST(op(set, 3, -1, 0));
        another();
        return;
    }
    MUST(op(set, 0, -2, SEM_UNDO)), MUST(op(set, 2, 1, SEM_UNDO));
    key = 0x44520000 | (me & 0xffff);
    keyed = MUST(semget(key, 1, IPC_CREAT | IPC_EXCL | 0640));
    MUST(op(keyed, 0, 1, 0));
    if (!(child = MUST(fork()))) {
        MUST(prctl(PR_SET_PDEATHSIG, SIGKILL));
        MUST(op(set, 3, -1, SEM_UNDO));
        _exit(op(set, 1, -1, 0) ? errno : 0);
    }
    asleep(set, 1, GETNCNT);
    if (pthread_create(&waiter, NULL, for_zero, NULL)) MUST(-1);
    asleep(keyed, 0, GETZCNT);
    char ids[64];
    snprintf(ids, sizeof ids, "%d %d", keyed, set);
    MUST(write_file("objects", ids) ? 0 : -1);
}
static void spoil(void) {
    if (what) MUST(op(set, 3, 1, 0));
    else MUST(op(set, 0, 1, 0));
}
// A thread that can be joined still holds the list that it shares, for an instant: until it is no thread any more.
static void alone(void) {
    struct stat task;
    while (MUST(stat("/proc/self/task", &task)) == 0 && task.st_nlink > 2 + 1) sleep_ms(1);
}
static void gone(void) { CHECK_OK(semctl(set, 0, IPC_RMID), "removing"); }
static void prove(void) {
    if (what && !strcmp(what, "before")) {
        CHECK_OK(kill(child, SIGKILL), "ending the child");
        CHECK_EQ(child, waitpid(child, NULL, 0), "waiting for it");
        CHECK_EQ(used, last_used(), "the time of the last use");
        gone();
        return;
    }
    if (what) {
        CHECK_EQ(4, semctl(set, 0, GETVAL), "what both use");
        CHECK_EQ(7, semctl(set, 3, GETVAL), "another of the set");
        gone();
        return;
    }
    static const int values[4] = {3, 0, 32767, 7};
    for (int i = 0; i < 4; i++) CHECK_EQ(values[i], semctl(set, i, GETVAL), "value of %d", i);
    asleep(set, 1, GETNCNT), asleep(keyed, 0, GETZCNT);
    CHECK_EQ(1, semctl(set, 1, GETNCNT), "how many wait for it");
    if (!getenv("DORMOUSE_TEST_FRESH_PIDS")) {
        CHECK_EQ(me, semctl(set, 0, GETPID), "who used 0 last");
        CHECK_EQ(me, semctl(set, 2, GETPID), "who used 2 last");
        CHECK_EQ(child, semctl(set, 3, GETPID), "who used 3 last");
        CHECK_EQ(me, semctl(keyed, 0, GETPID), "who used the one with a key last");
    }
    CHECK_EQ(keyed, semget(key, 1, 0), "the one with a key");
    struct semid_ds s;
    CHECK_OK(semctl(keyed, 0, IPC_STAT, &s), "looking at it");
    CHECK_EQ(0640, s.sem_perm.mode & 0777, "its permissions");
    CHECK_EQ(geteuid(), s.sem_perm.cuid, "its maker");
    CHECK_EQ(1, s.sem_nsems, "how many it has");
    // the child's wait ends, and it gives back
    CHECK_OK(op(set, 1, 1, 0), "letting the child go");
    int status = -1;
    CHECK_EQ(child, waitpid(child, &status, 0), "waiting for it");
    CHECK_EQ(0, status, "how it ended");
    CHECK_EQ(8, semctl(set, 3, GETVAL), "what it has given back");
    CHECK_OK(op(keyed, 0, -1, 0), "letting the thread go");
    void *r = (void *)-1;
    pthread_join(waiter, &r);
    CHECK_EQ(0, (long)r, "its wait for zero");
    alone();
    // letting go of the list gives back, as the end of the process does
    CHECK_OK(unshare(CLONE_SYSVSEM), "giving back");
    CHECK_EQ(5, semctl(set, 0, GETVAL), "what it has given back to 0");
    CHECK_EQ(32766, semctl(set, 2, GETVAL), "what it has taken back from 2");
    CHECK_EQ(0, semctl(set, 1, GETVAL), "what nobody gives back to");
    CHECK_OK(semctl(keyed, 0, IPC_RMID), "removing the one with a key");
    gone();
}
