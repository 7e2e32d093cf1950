#include "common.h"
#include <poll.h>
#include <sys/ioctl.h>

static const char *about = "FIFOs: both ends here with content, open for both, a reader that never had a writer, one whose writer has gone, a writer without reader, packets, a thread that waits, O_ASYNC";
static const char *usage = "  --outside PATH   only one: the reading end of a FIFO that somebody else writes to\n";

static const char *outside;
static int own_option(const char *name, const char *value) { return !strcmp(name, "--outside") && value ? outside = value, 2 : 0; }
static int (*option)(const char *, const char *) = own_option;

static int in, in_too, out, both, fresh, left, alone, lonely, packet_in, packet_out, wait_in, wait_out;
static char big[150000];
static volatile pid_t waiter_tid;
static volatile ssize_t waited = -2;
static char waited_for[8];
static pthread_t waiter;

static int at(const char *name, int flags) { return MUST(open(work(name), flags | O_NONBLOCK)); }
static void fifo(const char *name) { MUST(mkfifo(work(name), 0600)); }
static void *wait_for_it(void *p) {
    waiter_tid = tid_now();
    waited = syscall(SYS_read, wait_in, waited_for, sizeof waited_for);
    return p;
}
static void setup(void) {
    if (outside) {
        in = MUST(open(outside, O_RDONLY | O_NONBLOCK));
        return;
    }
    fifo("both-ends"), fifo("rdwr"), fifo("fresh"), fifo("left"), fifo("alone"), fifo("packets"), fifo("waits");
    in = MUST(fcntl(at("both-ends", O_RDONLY), F_DUPFD_CLOEXEC, 60)), out = at("both-ends", O_WRONLY), in_too = at("both-ends", O_RDONLY);
    close(at("both-ends", O_RDONLY)); // leaves a gap in the numbers
    MUST(fcntl(in, F_SETPIPE_SZ, 256 << 10));
    fill(big, sizeof big / 8 * 8, 5);
    CHECK_EQ(sizeof big, write(out, big, sizeof big), "writing");
    CHECK_EQ(1000, read(in, big, 1000), "reading a part");
    both = at("rdwr", O_RDWR);
    MUST(write(both, "in it", 5));
    MUST(fcntl(both, F_SETOWN, getpid())), MUST(fcntl(both, F_SETSIG, SIGRTMIN + 3));
    fresh = at("fresh", O_RDONLY);
    left = at("left", O_RDONLY);
    int gone = at("left", O_WRONLY);
    MUST(write(gone, "last", 4)), close(gone);
    gone = at("alone", O_RDONLY), alone = at("alone", O_WRONLY), close(gone);
    lonely = MUST(fcntl(alone, F_DUPFD, 70));
    packet_in = at("packets", O_RDONLY), packet_out = at("packets", O_WRONLY);
    MUST(fcntl(packet_out, F_SETFL, O_DIRECT | O_NONBLOCK));
    MUST(write(packet_out, "one", 3)), MUST(write(packet_out, "three", 5));
    wait_out = at("waits", O_RDWR), wait_in = at("waits", O_RDONLY), close(wait_out), wait_out = at("waits", O_WRONLY);
    MUST(fcntl(wait_in, F_SETFL, 0));
    MUST0(pthread_create(&waiter, NULL, wait_for_it, NULL));
    until_in_call(&waiter_tid, SYS_read);
}
static void spoil(void) { MUST(read(in_too, big, 1)); }

static short polled(int fd) {
    struct pollfd p = {.fd = fd, .events = POLLIN | POLLOUT};
    poll(&p, 1, 0);
    return p.revents;
}
static void prove(void) {
    static char want[sizeof big], got[sizeof big];
    char text[16];
    if (outside) {
        CHECK_EQ(4, read(in, text, sizeof text), "reading what somebody else has written");
        return;
    }
    fill(want, sizeof want / 8 * 8, 5);
    CHECK_EQ(sizeof want - 1000, read(in_too, got, sizeof got), "reading the rest, by the second reader");
    CHECK_MEM(want + 1000, got, sizeof want - 1000, "the rest");
    CHECK_ERRNO(EAGAIN, read(in, got, 1), "reading from an empty one that has a writer");
    CHECK_EQ(256 << 10, fcntl(in, F_GETPIPE_SZ), "its size");
    CHECK_EQ(FD_CLOEXEC, fcntl(in, F_GETFD), "close-on-exec");
    CHECK_EQ(O_WRONLY | O_NONBLOCK, fcntl(out, F_GETFL) & (O_ACCMODE | O_NONBLOCK), "flags of the writer");
    CHECK_EQ(3, write(out, "new", 3), "writing");
    int late = at("both-ends", O_RDONLY); // it is the one with that name
    CHECK_EQ(3, read(late, text, sizeof text), "reading by its name");
    CHECK_MEM("new", text, 3, "what was read by its name");
    CHECK_EQ(5, read(both, text, sizeof text), "reading from one that is open for both");
    CHECK_MEM("in it", text, 5, "what was in it");
    CHECK_ERRNO(EAGAIN, read(both, text, 1), "reading from it when it is empty");
    CHECK_EQ(getpid(), fcntl(both, F_GETOWN), "who gets its signals");
    CHECK_EQ(SIGRTMIN + 3, fcntl(both, F_GETSIG), "which signal");
    CHECK_HEX(0, polled(fresh), "poll of one that never had a writer");
    CHECK_EQ(0, read(fresh, text, 1), "reading from it");
    CHECK_HEX(POLLIN | POLLHUP, polled(left), "poll of one whose writer has gone");
    CHECK_EQ(4, read(left, text, sizeof text), "reading what that left");
    CHECK_EQ(0, read(left, text, 1), "reading its end");
    CHECK_HEX(POLLERR, polled(alone) & POLLERR, "poll of one without reader");
    signal(SIGPIPE, SIG_IGN);
    CHECK_ERRNO(EPIPE, write(lonely, "x", 1), "writing to it");
    int reader = at("alone", O_RDONLY);
    CHECK_EQ(1, write(alone, "y", 1), "writing when a reader has come");
    CHECK_EQ(1, read(reader, text, 1), "and reading it");
    CHECK_EQ(3, read(packet_in, text, sizeof text), "the first packet");
    CHECK_EQ(5, read(packet_in, text, sizeof text), "the second packet");
    CHECK_HEX(O_DIRECT, fcntl(packet_out, F_GETFL) & O_DIRECT, "packet mode");
    CHECK_EQ(-2, waited, "nothing was read yet");
    CHECK_EQ(4, write(wait_out, "wake", 4), "waking the waiting thread");
    pthread_join(waiter, NULL);
    CHECK_EQ(4, waited, "what its read gave");
    CHECK_MEM("wake", waited_for, 4, "what it read");
}
