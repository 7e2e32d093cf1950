#include "common.h"
#include <sys/socket.h>

static const char *about = "socketpairs, stream, datagram and seqpacket: queues in both directions, half shut, one end closed (of packets, too), buffer sizes, SO_PASSCRED and credentials, a full one";

static int stream[2], dgram[2], packet[2], half[2], orphan[2], left[2], closing[2], silent[2], creds[2], full[2];
static size_t full_bytes;
static unsigned char data[100000];
static int buffers[2];

static int get(int fd, int name) {
    int v = -1;
    socklen_t n = sizeof v;
    return getsockopt(fd, SOL_SOCKET, name, &v, &n) ? -1 : v;
}
static void setup(void) {
    fill(data, sizeof data, 8);
    MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, stream));
    MUST(setsockopt(stream[0], SOL_SOCKET, SO_SNDBUF, &(int){80000}, sizeof(int)));
    MUST(setsockopt(stream[1], SOL_SOCKET, SO_RCVBUF, &(int){70000}, sizeof(int)));
    MUST(setsockopt(stream[1], SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){9, 0}, sizeof(struct timeval)));
    buffers[0] = get(stream[0], SO_SNDBUF), buffers[1] = get(stream[1], SO_RCVBUF);
    MUST(send(stream[0], data, 20000, 0)), MUST(send(stream[0], data + 20000, 30000, 0));
    MUST(recv(stream[1], (char[777]){0}, 777, 0));
    MUST(send(stream[1], "the other way", 13, 0));
    MUST(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, dgram));
    MUST(send(dgram[0], "one", 3, 0)), MUST(send(dgram[0], "", 0, 0)), MUST(send(dgram[0], data, 9000, 0));
    MUST(send(dgram[1], "reply", 5, 0));
    MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, packet));
    MUST(send(packet[0], "alpha", 5, 0)), MUST(send(packet[0], "be", 2, 0)), MUST(send(packet[1], "gamma", 5, 0));
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, half));
    MUST(send(half[0], "before", 6, 0));
    MUST(shutdown(half[0], SHUT_WR));
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, orphan));
    MUST(send(orphan[0], "testament", 9, 0));
    close(orphan[0]);
    MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, left));
    MUST(send(left[0], "first", 5, 0)), MUST(send(left[0], "", 0, 0)), MUST(send(left[0], "last", 4, 0));
    close(left[0]);
    MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, closing));
    MUST(send(closing[0], "before", 6, 0));
    MUST(shutdown(closing[0], SHUT_WR));
    MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, silent));
    close(silent[0]);
    MUST(shutdown(silent[1], SHUT_RDWR));
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, creds));
    MUST(setsockopt(creds[1], SOL_SOCKET, SO_PASSCRED, &(int){1}, sizeof(int)));
    MUST(send(creds[0], "signed", 6, 0));
    MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, full));
    ssize_t n;
    while ((n = send(full[0], data, 4000, 0)) > 0) full_bytes += (size_t)n;
}
static void spoil(void) { recv(packet[1], (char[8]){0}, 8, 0); }
static void expect(int fd, const void *want, size_t length, const char *what) { // exactly one message
    static unsigned char got[sizeof data];
    CHECK_EQ(length, recv(fd, got, sizeof got, MSG_DONTWAIT), "length of %s", what);
    CHECK_MEM(want, got, length, "%s", what);
}
static void empty(int fd, const char *what) { CHECK_ERRNO(EAGAIN, recv(fd, (char[1]){0}, 1, MSG_DONTWAIT), "one more of %s", what); }
static void prove(void) {
    static unsigned char got[sizeof data];
    size_t have = 0;
    ssize_t n;
    CHECK_EQ(buffers[0], get(stream[0], SO_SNDBUF), "SO_SNDBUF");
    CHECK_EQ(buffers[1], get(stream[1], SO_RCVBUF), "SO_RCVBUF");
    struct timeval t = {0};
    socklen_t l = sizeof t;
    getsockopt(stream[1], SOL_SOCKET, SO_RCVTIMEO, &t, &l);
    CHECK_EQ(9, t.tv_sec, "SO_RCVTIMEO");
    CHECK_EQ(FD_CLOEXEC, fcntl(stream[0], F_GETFD), "close-on-exec");
    CHECK_EQ(O_NONBLOCK, fcntl(dgram[1], F_GETFL) & O_NONBLOCK, "O_NONBLOCK");
    CHECK_EQ(0, fcntl(packet[1], F_GETFL) & O_NONBLOCK, "no O_NONBLOCK");
    while (have < 49223 && (n = recv(stream[1], got + have, sizeof got - have, MSG_DONTWAIT)) > 0) have += (size_t)n;
    CHECK_EQ(49223, have, "bytes of the stream");
    CHECK_MEM(data + 777, got, 49223, "the stream");
    empty(stream[1], "the stream");
    expect(stream[0], "the other way", 13, "the other direction of the stream");
    expect(dgram[1], "one", 3, "the first datagram"), expect(dgram[1], "", 0, "the empty datagram"), expect(dgram[1], data, 9000, "the big datagram");
    empty(dgram[1], "the datagrams");
    expect(dgram[0], "reply", 5, "the datagram in the other direction");
    expect(packet[1], "alpha", 5, "the first packet"), expect(packet[1], "be", 2, "the second packet");
    empty(packet[1], "the packets");
    expect(packet[0], "gamma", 5, "the packet in the other direction");
    expect(half[1], "before", 6, "what was sent before the shutdown");
    CHECK_EQ(0, recv(half[1], got, 1, MSG_DONTWAIT), "end of the half that was shut");
    CHECK_ERRNO(EPIPE, send(half[0], "x", 1, MSG_NOSIGNAL), "sending into the half that was shut");
    CHECK_EQ(4, send(half[1], "open", 4, 0), "sending by the other half");
    expect(half[0], "open", 4, "what came by the other half");
    expect(orphan[1], "testament", 9, "what the closed end had sent");
    CHECK_EQ(0, recv(orphan[1], got, 1, MSG_DONTWAIT), "its end");
    CHECK_ERRNO(EPIPE, send(orphan[1], "x", 1, MSG_NOSIGNAL), "sending to the closed end");
    expect(left[1], "first", 5, "the first packet of the closed end"), expect(left[1], "", 0, "its empty packet"), expect(left[1], "last", 4, "its last packet");
    for (int i = 0; i < 2; i++) CHECK_EQ(0, recv(left[1], got, 1, MSG_DONTWAIT), "the end of the packets");
    CHECK_ERRNO(EPIPE, send(left[1], "x", 1, MSG_NOSIGNAL), "a packet to the closed end");
    expect(closing[1], "before", 6, "the packet sent before the shutdown");
    CHECK_EQ(0, recv(closing[1], got, 1, MSG_DONTWAIT), "the end of the packets of the half that was shut");
    CHECK_EQ(4, send(closing[1], "open", 4, 0), "a packet by the other half");
    expect(closing[0], "open", 4, "the packet that came by the other half");
    CHECK_EQ(0, recv(silent[1], got, 1, 0), "reading datagrams after a shutdown");
    CHECK_ERRNO(EPIPE, send(silent[1], "x", 1, MSG_NOSIGNAL), "a datagram after a shutdown");
    struct ucred u = {0};
    union { char space[CMSG_SPACE(sizeof u)]; struct cmsghdr align; } control;
    struct msghdr m = {.msg_iov = &(struct iovec){got, 100}, .msg_iovlen = 1, .msg_control = control.space, .msg_controllen = sizeof control.space};
    CHECK_EQ(6, recvmsg(creds[1], &m, MSG_DONTWAIT), "receiving with credentials");
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    if (c && c->cmsg_type == SCM_CREDENTIALS) memcpy(&u, CMSG_DATA(c), sizeof u);
    CHECK_EQ(getpid(), u.pid, "SCM_CREDENTIALS pid");
    CHECK_EQ(getuid(), u.uid, "SCM_CREDENTIALS uid");
    l = sizeof u, memset(&u, 0, sizeof u);
    getsockopt(creds[0], SOL_SOCKET, SO_PEERCRED, &u, &l);
    CHECK_EQ(getpid(), u.pid, "SO_PEERCRED pid");
    CHECK_ERRNO(EAGAIN, send(full[0], data, 4000, 0), "sending into the full one");
    for (have = 0; (n = recv(full[1], got, sizeof got, 0)) > 0;) have += (size_t)n;
    CHECK_EQ(full_bytes, have, "bytes of the full one");
    CHECK_EQ(4, send(stream[0], "more", 4, 0), "sending on");
    expect(stream[1], "more", 4, "what was sent on");
}
