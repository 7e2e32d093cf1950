#include "common.h"
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/wait.h>

static const char *about = "System V message queues: messages with their types in order, sizes, key and permissions, who used each last; a child waits for a message, a thread for room";
static const char *usage = "  --what client   the last to send was a process that has ended: it stays as it is if it is there\n";

static int (*option)(const char *, const char *) = what_option;

static int queue, keyed, full, emptied;
static key_t key;
static pid_t me, child;
static pthread_t waiter;
struct message {
    long type;
    char text[3000];
};
static struct message big;

static int put(int id, long type, const char *text, size_t n) {
    struct message m = {.type = type};
    memcpy(m.text, text, n);
    return (int)syscall(SYS_msgsnd, id, &m, n, 0);
}
// What /proc says that it sleeps in.
static void asleep_in(pid_t tid, long call) {
    char path[64], text[256];
    for (;; sleep_ms(2)) {
        snprintf(path, sizeof path, "/proc/%d/syscall", tid);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
        if (fd >= 0) close(fd);
        if (n > 0 && (text[n] = 0, strtol(text, NULL, 10) == call)) return;
    }
}
static pid_t waiter_tid;
static void *for_room(void *unused) {
    (void)unused;
    __atomic_store_n(&waiter_tid, tid_now(), __ATOMIC_SEQ_CST);
    return (void *)(long)put(full, 8, "at last", 7);
}
static void objects(void) {
    char ids[64];
    snprintf(ids, sizeof ids, "%d %d %d %d", keyed, queue, full, emptied);
    MUST(write_file("objects", ids) ? 0 : -1);
}
static void setup(void) {
    me = getpid();
    queue = MUST(msgget(IPC_PRIVATE, 0600));
    if (what) {
        pid_t client = MUST(fork());
        if (!client) MUST(put(queue, 3, "from a client", 13)), _exit(0);
        MUST(waitpid(client, NULL, 0));
        struct message m;
        MUST(msgrcv(queue, &m, sizeof m.text, 0, 0));
        if (!(client = MUST(fork()))) MUST(put(queue, 4, "another", 7)), _exit(0);
        MUST(waitpid(client, NULL, 0));
        keyed = full = emptied = queue;
        objects();
        return;
    }
    fill((unsigned char *)big.text, sizeof big.text, 90);
    MUST(put(queue, 7, "gone", 4)), MUST(put(queue, 5, "first", 5)), MUST(put(queue, 1, "", 0));
    MUST(put(queue, 9, big.text, sizeof big.text)), MUST(put(queue, 5, "last", 4));
    struct message m;
    MUST(msgrcv(queue, &m, sizeof m.text, 7, 0));
    struct msqid_ds s;
    MUST(msgctl(queue, IPC_STAT, &s));
    s.msg_qbytes = 9000, s.msg_perm.mode = 0620;
    MUST(msgctl(queue, IPC_SET, &s));
    emptied = MUST(msgget(IPC_PRIVATE, 0600));
    key = 0x44530000 | (me & 0xffff);
    keyed = MUST(msgget(key, IPC_CREAT | IPC_EXCL | 0600));
    if (!(child = MUST(fork()))) {
        MUST(prctl(PR_SET_PDEATHSIG, SIGKILL));
        MUST(put(emptied, 1, "by the child", 12));
        long got = syscall(SYS_msgrcv, keyed, &m, sizeof m.text, -5L, 0);
        _exit(got == 5 && m.type == 3 && !memcmp(m.text, "three", 5) ? 0 : errno);
    }
    MUST(msgrcv(emptied, &m, sizeof m.text, 0, 0));
    full = MUST(msgget(IPC_PRIVATE, 0600));
    MUST(msgctl(full, IPC_STAT, &s)), s.msg_qbytes = 3000, MUST(msgctl(full, IPC_SET, &s));
    MUST(put(full, 2, big.text, sizeof big.text));
    if (pthread_create(&waiter, NULL, for_room, NULL)) MUST(-1);
    while (!__atomic_load_n(&waiter_tid, __ATOMIC_SEQ_CST)) sleep_ms(2);
    asleep_in(waiter_tid, SYS_msgsnd), asleep_in(child, SYS_msgrcv);
    objects();
}
static void spoil(void) { MUST(put(queue, 1, "one more", 8)); }
static void next(int id, long type, long want, const char *text, size_t n, const char *which) {
    struct message m;
    CHECK_EQ((long)n, msgrcv(id, &m, sizeof m.text, type, IPC_NOWAIT), "size of %s", which);
    CHECK_EQ(want, m.type, "type of %s", which);
    CHECK_MEM(text, m.text, n, "content of %s", which);
}
static void gone(int id) { CHECK_OK(msgctl(id, IPC_RMID, NULL), "removing"); }
static void prove(void) {
    struct msqid_ds s;
    CHECK_OK(msgctl(queue, IPC_STAT, &s), "looking at it");
    if (what) {
        CHECK_EQ(1, s.msg_qnum, "how many wait");
        next(queue, 0, 4, "another", 7, "a client's message");
        gone(queue);
        return;
    }
    CHECK_EQ(4, s.msg_qnum, "how many wait");
    CHECK_EQ(3009, s.msg_cbytes, "how many bytes");
    CHECK_EQ(9000, s.msg_qbytes, "how many it may hold");
    CHECK_EQ(0620, s.msg_perm.mode & 0777, "its permissions");
    CHECK_EQ(geteuid(), s.msg_perm.cuid, "its maker");
    if (!getenv("DORMOUSE_TEST_FRESH_PIDS")) {
        CHECK_EQ(me, s.msg_lspid, "who sent last");
        CHECK_EQ(me, s.msg_lrpid, "who received last");
        CHECK_OK(msgctl(emptied, IPC_STAT, &s), "looking at the empty one");
        CHECK_EQ(child, s.msg_lspid, "who sent last to the empty one");
        CHECK_EQ(me, s.msg_lrpid, "who received last from it");
    }
    next(queue, 9, 9, big.text, sizeof big.text, "the large one, by its type");
    next(queue, 0, 5, "first", 5, "the first");
    next(queue, -4, 1, "", 0, "the empty one, by a type that is not above");
    next(queue, 0, 5, "last", 4, "the last");
    CHECK_ERRNO(ENOMSG, msgrcv(queue, &big, sizeof big.text, 0, IPC_NOWAIT), "an empty queue");
    fill((unsigned char *)big.text, sizeof big.text, 90);
    CHECK_EQ(keyed, msgget(key, 0), "the one with a key");
    CHECK_OK(put(keyed, 6, "not for it", 10), "another type"), CHECK_OK(put(keyed, 3, "three", 5), "its type");
    int status = -1;
    CHECK_EQ(child, waitpid(child, &status, 0), "waiting for the child");
    CHECK_EQ(0, status, "what it got");
    next(keyed, 0, 6, "not for it", 10, "what it left");
    next(full, 0, 2, big.text, sizeof big.text, "what fills the last");
    void *r = (void *)-1;
    pthread_join(waiter, &r);
    CHECK_EQ(0, (long)r, "the wait for room");
    next(full, 0, 8, "at last", 7, "what waited for room");
    gone(queue), gone(keyed), gone(full), gone(emptied);
}
