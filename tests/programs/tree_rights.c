#include "common.h"
#include <linux/kcmp.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

static const char *about = "descriptors in flight (SCM_RIGHTS): in streams, packets and datagrams, several at once, to a socket whose other end is closed, and of files that only a child has";
static const char *usage =
    "  --what nobody   in flight is one that nobody has open: refused\n"
    "  --what joined   bytes without any wait before those with one: refused\n"
    "  --what gone     the sender of one in a stream has closed its end: refused\n";

static int (*option)(const char *, const char *) = what_option;

static int stream[2], packet[2], dgram[2], orphan[2], file, event, ends[2];
static pid_t child;

static void pass(int to, const char *text, const int *fds, int n) {
    union { struct cmsghdr h; char room[CMSG_SPACE(8 * sizeof(int))]; } c = {.h = {CMSG_LEN(n * sizeof(int)), SOL_SOCKET, SCM_RIGHTS}};
    memcpy(CMSG_DATA(&c.h), fds, n * sizeof(int));
    struct iovec v = {(char *)text, strlen(text)};
    MUST(sendmsg(to, &(struct msghdr){NULL, 0, &v, 1, n ? &c : NULL, n ? CMSG_SPACE(n * sizeof(int)) : 0, 0}, 0));
}
// What comes: its bytes and descriptors.
static int take(int from, size_t most, const char *text, int *fds) {
    char got[64], room[CMSG_SPACE(8 * sizeof(int))];
    struct iovec v = {got, most};
    struct msghdr m = {NULL, 0, &v, 1, room, sizeof room, 0};
    ssize_t bytes = recvmsg(from, &m, MSG_DONTWAIT);
    CHECK_EQ((ssize_t)strlen(text), bytes, "bytes of \"%s\"", text);
    CHECK(bytes < 0 || !memcmp(got, text, strlen(text)), "\"%s\"", text);
    struct cmsghdr *c = bytes < 0 ? NULL : CMSG_FIRSTHDR(&m);
    if (!c) return 0;
    CHECK_EQ(SCM_RIGHTS, c->cmsg_type, "what comes with \"%s\"", text);
    int n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    memcpy(fds, CMSG_DATA(c), n * sizeof(int));
    return n;
}
static void setup(void) {
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, stream)), MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, packet));
    MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, dgram)), MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, orphan));
    file = MUST(open(work("file"), O_RDWR | O_CREAT, 0600));
    MUST(write(file, "0123456789", 10)), MUST(lseek(file, 4, SEEK_SET));
    if (what) {
        if (!strcmp(what, "joined")) pass(stream[0], "w", NULL, 0);
        pass(stream[0], "x", &file, 1);
        if (!strcmp(what, "gone")) close(stream[0]);
        if (!strcmp(what, "nobody")) close(file);
        return;
    }
    event = MUST(eventfd(7, EFD_CLOEXEC)), MUST(pipe(ends)), MUST(write(ends[1], "in the pipe", 11));
    pass(stream[0], "with", (int[]){file, event}, 2), pass(stream[0], "one", &ends[0], 1);
    pass(stream[0], "two", &stream[1], 1), pass(stream[0], "after", NULL, 0);
    pass(packet[0], "first", NULL, 0), pass(packet[0], "second", (int[]){event, file, ends[1]}, 3);
    pass(dgram[1], "datagram", &file, 1);
    int only = MUST(open(work("file"), O_RDONLY));
    MUST(lseek(only, 8, SEEK_SET));
    pass(orphan[0], "testament", (int[]){only, file}, 2), pass(orphan[0], "end", NULL, 0), close(orphan[0]);
    if (!(child = MUST(fork()))) {
        MUST(prctl(PR_SET_PDEATHSIG, SIGKILL));
        // only it has that one open, and the pipe's end to write
        for (int fd = 3; fd < 64; fd++) {
            if (fd != only && fd != ends[1]) close(fd);
        }
        for (;;) pause();
    }
    close(only), close(ends[1]), ends[1] = -1;
}
static void spoil(void) {
    if (what) close(stream[1]);
    else take(packet[1], 64, "first", NULL);
}
static bool same(int a, int b) { return syscall(SYS_kcmp, getpid(), getpid(), KCMP_FILE, a, b) == 0; }
static void prove(void) {
    int fds[8];
    char c = 0;
    if (what) {
        if (!strcmp(what, "joined")) CHECK_EQ(0, take(stream[1], 1, "w", fds), "how many come before");
        CHECK_EQ(1, take(stream[1], 64, "x", fds), "how many come");
        CHECK_EQ(1, read(fds[0], &c, 1), "reading it"); CHECK_EQ('4', c, "where it is");
        return;
    }
    if (take(stream[1], 64, "with", fds) == 2) {
        CHECK(same(fds[0], file), "the file in the stream is the one that is open");
        CHECK(same(fds[1], event), "the eventfd in the stream is the one that is open");
        CHECK_EQ(1, read(fds[0], &c, 1), "reading it"); CHECK_EQ('4', c, "where it is");
    } else
        fail("two with \"with\", expected 2, got another number");
    CHECK_EQ(1, take(stream[1], 64, "one", fds), "how many come with \"one\"");
    CHECK(same(fds[0], ends[0]), "the end of the pipe");
    CHECK_EQ(1, take(stream[1], 64, "two", fds), "how many come with \"two\"");
    CHECK(same(fds[0], stream[1]), "the socket itself");
    CHECK_EQ(0, take(stream[1], 64, "after", fds), "how many come with the last bytes of the stream");
    CHECK_EQ(0, take(packet[1], 64, "first", fds), "how many come with \"first\"");
    if (take(packet[1], 64, "second", fds) == 3) {
        CHECK(same(fds[0], event), "the eventfd in the packet"); CHECK(same(fds[1], file), "the file in the packet");
        char text[16] = "";
        CHECK_EQ(5, write(fds[2], ", too", 5), "writing to the pipe that the child has");
        CHECK_EQ(16, read(ends[0], text, 16), "reading from it"); CHECK_MEM("in the pipe, too", text, 16, "what is in it");
    } else
        fail("three with \"second\", expected 3, got another number");
    CHECK_EQ(1, take(dgram[0], 64, "datagram", fds), "how many come with the datagram");
    CHECK(same(fds[0], file), "the file in the datagram");
    if (take(orphan[1], 64, "testament", fds) == 2) {
        CHECK_EQ(1, read(fds[0], &c, 1), "reading what only the child has"); CHECK_EQ('8', c, "where that is");
        CHECK(!same(fds[0], file) && same(fds[1], file), "the two files");
    } else
        fail("two with \"testament\", expected 2, got another number");
    CHECK_EQ(0, take(orphan[1], 64, "end", fds), "how many come with the last packet");
    CHECK_EQ(0, recv(orphan[1], &c, 1, MSG_DONTWAIT), "the end");
    CHECK_OK(kill(child, SIGKILL), "ending the child"); CHECK_OK(waitpid(child, NULL, 0), "waiting for it");
}
