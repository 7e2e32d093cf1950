#include "common.h"
#include <mqueue.h>

static const char *about = "POSIX message queues: attributes, messages with priorities, two open files, a thread that waits";
static const char *usage = "  --what unlinked|notified   only one, which is refused\n";

static int (*option)(const char *, const char *) = what_option;

static char name[2][64];
static int queue, reader, empty;
static volatile pid_t waiter_tid;
static volatile ssize_t waited = -2;
static char waited_for[100];
static pthread_t waiter;

static mqd_t open_queue(const char *n, int how) {
    mqd_t q = mq_open(n, how | O_CREAT, 0600, &(struct mq_attr){.mq_maxmsg = 7, .mq_msgsize = 100});
    if (q < 0 && errno == ENOSYS) skip("no message queues");
    return MUST(q);
}
static void *wait_for_it(void *p) {
    waiter_tid = tid_now();
    waited = syscall(SYS_mq_timedreceive, empty, waited_for, sizeof waited_for, NULL, NULL);
    return p;
}
static void setup(void) {
    for (int i = 0; i < 2; i++) snprintf(name[i], sizeof name[i], "/dormouse-test-%d-%d", getpid(), i);
    queue = open_queue(name[0], O_RDWR | O_NONBLOCK);
    MUST(mq_send(queue, "low", 3, 1)), MUST(mq_send(queue, "urgent", 6, 30)), MUST(mq_send(queue, "low, too", 8, 1));
    if (what) {
        struct sigevent e = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1, .sigev_value.sival_int = 42};
        if (!strcmp(what, "notified")) MUST(mq_notify(queue, &e));
        else MUST(mq_unlink(name[0]));
        return;
    }
    reader = MUST(mq_open(name[0], O_RDONLY));
    empty = open_queue(name[1], O_RDWR);
    MUST0(pthread_create(&waiter, NULL, wait_for_it, NULL));
    until_in_call(&waiter_tid, SYS_mq_timedreceive);
}
static void spoil(void) { MUST(mq_send(queue, "?", 1, 2)); }

static void next(const char *text, unsigned priority) {
    char got[101] = "";
    unsigned p = 99;
    CHECK_EQ((ssize_t)strlen(text), mq_receive(reader ? reader : queue, got, 100, &p), "length of \"%s\"", text);
    CHECK_STR(text, got, "a message");
    CHECK_EQ(priority, p, "priority of \"%s\"", text);
}
static void prove(void) {
    struct mq_attr a;
    CHECK_OK(mq_getattr(queue, &a), "attributes");
    CHECK_EQ(7, a.mq_maxmsg, "most messages");
    CHECK_EQ(100, a.mq_msgsize, "most bytes");
    CHECK_EQ(3, a.mq_curmsgs, "messages");
    CHECK_EQ(O_NONBLOCK, a.mq_flags, "flags");
    next("urgent", 30), next("low", 1), next("low, too", 1);
    char c[100];
    CHECK_ERRNO(EAGAIN, mq_receive(queue, c, sizeof c, NULL), "one message too many");
    if (what) {
        mq_unlink(name[0]);
        return;
    }
    CHECK_EQ(O_RDONLY, fcntl(reader, F_GETFL) & (O_ACCMODE | O_NONBLOCK), "flags of the reader");
    CHECK_EQ(-2, waited, "nothing was received yet");
    CHECK_OK(mq_send(empty, "wake up", 7, 3), "waking the waiting thread");
    pthread_join(waiter, NULL);
    CHECK_EQ(7, waited, "what it received");
    CHECK_MEM("wake up", waited_for, 7, "what it received");
    CHECK_OK(mq_unlink(name[0]), "the queue's name");
    CHECK_OK(mq_unlink(name[1]), "the other's name");
}
