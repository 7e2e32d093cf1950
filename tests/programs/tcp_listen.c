#include "common.h"
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

static const char *about = "listening TCP sockets, v4, v6 only and both: port, options, backlog; afterwards a connection is accepted and carries data";

struct option_value {
    int level, name, value;
    const char *text;
};
static const struct option_value common_options[] = {
    {SOL_SOCKET, SO_REUSEADDR, 1, "SO_REUSEADDR"},     {SOL_SOCKET, SO_REUSEPORT, 1, "SO_REUSEPORT"}, {SOL_SOCKET, SO_KEEPALIVE, 1, "SO_KEEPALIVE"},
    {SOL_SOCKET, SO_RCVBUF, 50000, "SO_RCVBUF"},       {SOL_SOCKET, SO_SNDBUF, 60000, "SO_SNDBUF"},   {SOL_SOCKET, SO_RCVLOWAT, 3, "SO_RCVLOWAT"},
    {SOL_SOCKET, SO_PRIORITY, 4, "SO_PRIORITY"},       {IPPROTO_TCP, TCP_KEEPIDLE, 111, "TCP_KEEPIDLE"}, {IPPROTO_TCP, TCP_KEEPINTVL, 22, "TCP_KEEPINTVL"},
    {IPPROTO_TCP, TCP_KEEPCNT, 7, "TCP_KEEPCNT"},      {IPPROTO_TCP, TCP_NODELAY, 1, "TCP_NODELAY"},  {IPPROTO_TCP, TCP_USER_TIMEOUT, 54321, "TCP_USER_TIMEOUT"},
    {IPPROTO_TCP, TCP_SYNCNT, 4, "TCP_SYNCNT"},        {IPPROTO_TCP, TCP_LINGER2, 33, "TCP_LINGER2"}, {IPPROTO_TCP, TCP_DEFER_ACCEPT, 5, "TCP_DEFER_ACCEPT"},
};
static const int backlogs[] = {17, 128, 1, 5};
enum { V4, V6, BOTH, PLAIN, KINDS };
static int fds[KINDS], twin, port[KINDS], values[KINDS][COUNT(common_options)], flags[KINDS];
static struct linger linger_before;
static struct timeval timeout_before;

static int get(int fd, int level, int name) {
    int v = -1;
    socklen_t n = sizeof v;
    return getsockopt(fd, level, name, &v, &n) ? -1 : v;
}
static void put(int fd, int level, int name, int v) { MUST(setsockopt(fd, level, name, &v, sizeof v)); }
static socklen_t loopback(int kind, int p, struct sockaddr_storage *out) {
    memset(out, 0, sizeof *out);
    if (kind == V4 || kind == PLAIN) {
        *(struct sockaddr_in *)out = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)p), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        return sizeof(struct sockaddr_in);
    }
    *(struct sockaddr_in6 *)out = (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)p)};
    if (kind == V6) ((struct sockaddr_in6 *)out)->sin6_addr = in6addr_loopback;
    return sizeof(struct sockaddr_in6);
}
static int port_of(int fd) {
    struct sockaddr_storage a;
    socklen_t n = sizeof a;
    MUST(getsockname(fd, (struct sockaddr *)&a, &n));
    return ntohs(a.ss_family == AF_INET ? ((struct sockaddr_in *)&a)->sin_port : ((struct sockaddr_in6 *)&a)->sin6_port);
}
static int backlog_of(int fd) { // TCP_INFO of a listening socket
    struct tcp_info i;
    socklen_t n = sizeof i;
    return getsockopt(fd, IPPROTO_TCP, TCP_INFO, &i, &n) ? -1 : (int)i.tcpi_sacked;
}
static void setup(void) {
    struct sockaddr_storage a;
    for (int k = 0; k < KINDS; k++) {
        fds[k] = MUST(socket(k == V4 || k == PLAIN ? AF_INET : AF_INET6, SOCK_STREAM | (k == V4 ? SOCK_NONBLOCK | SOCK_CLOEXEC : 0), 0));
        if (k == V6 || k == BOTH) put(fds[k], IPPROTO_IPV6, IPV6_V6ONLY, k == V6);
        for (size_t i = 0; i < COUNT(common_options); i++)
            if (k != PLAIN && (k == V4 || common_options[i].name != TCP_DEFER_ACCEPT || common_options[i].level != IPPROTO_TCP))
                put(fds[k], common_options[i].level, common_options[i].name, common_options[i].value);
        socklen_t n = loopback(k, 0, &a);
        MUST(bind(fds[k], (struct sockaddr *)&a, n));
        if (k == V4) {
            MUST(setsockopt(fds[k], SOL_SOCKET, SO_LINGER, &(struct linger){1, 9}, sizeof(struct linger)));
            MUST(setsockopt(fds[k], SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){12, 500000}, sizeof(struct timeval)));
            put(fds[k], IPPROTO_IP, IP_TOS, 0x10), put(fds[k], IPPROTO_IP, IP_TTL, 44);
            MUST(setsockopt(fds[k], IPPROTO_TCP, TCP_CONGESTION, "reno", 4));
        }
        MUST(listen(fds[k], backlogs[k]));
        port[k] = port_of(fds[k]);
        for (size_t i = 0; i < COUNT(common_options); i++) values[k][i] = get(fds[k], common_options[i].level, common_options[i].name);
        flags[k] = fcntl(fds[k], F_GETFL);
    }
    socklen_t n = sizeof linger_before;
    getsockopt(fds[V4], SOL_SOCKET, SO_LINGER, &linger_before, &n);
    n = sizeof timeout_before;
    getsockopt(fds[V4], SOL_SOCKET, SO_RCVTIMEO, &timeout_before, &n);
    twin = MUST(socket(AF_INET6, SOCK_STREAM, 0)); // a second one on the same port
    put(twin, SOL_SOCKET, SO_REUSEPORT, 1), put(twin, IPPROTO_IPV6, IPV6_V6ONLY, 1);
    n = loopback(V6, port[V6], &a);
    MUST(bind(twin, (struct sockaddr *)&a, n));
    MUST(listen(twin, 3));
}
static void spoil(void) { listen(fds[BOTH], 2); }
static void talk(int kind, int to) { // connects as `to` to the socket of `kind`
    struct sockaddr_storage a;
    char text[8] = "";
    int c = socket(to == V4 ? AF_INET : AF_INET6, SOCK_STREAM, 0);
    socklen_t n = loopback(to, port[kind], &a);
    if (!CHECK_OK(connect(c, (struct sockaddr *)&a, n), "connecting to socket %d", kind)) return;
    CHECK_EQ(4, send(c, "ping", 4, 0), "sending");
    int s = -1;
    for (int i = 0; s < 0 && i < 500; i++) { // some are non-blocking, and one of two gets it on a shared port
        struct timeval soon = {0, 10000};
        setsockopt(fds[kind], SOL_SOCKET, SO_RCVTIMEO, &soon, sizeof soon), setsockopt(twin, SOL_SOCKET, SO_RCVTIMEO, &soon, sizeof soon);
        s = accept(fds[kind], NULL, NULL);
        if (s < 0 && kind == V6) s = accept(twin, NULL, NULL);
        if (s < 0) sleep_ms(5);
    }
    CHECK(s >= 0, "accepting on socket %d", kind);
    CHECK_EQ(4, recv(s, text, sizeof text, 0), "receiving on socket %d", kind);
    CHECK_STR("ping", text, "received on socket %d", kind);
    close(s), close(c);
}
static void prove(void) {
    for (int k = 0; k < KINDS; k++) {
        CHECK_EQ(port[k], port_of(fds[k]), "port of socket %d", k);
        CHECK_EQ(1, get(fds[k], SOL_SOCKET, SO_ACCEPTCONN), "socket %d listens", k);
        CHECK_EQ(backlogs[k], backlog_of(fds[k]), "backlog of socket %d", k);
        CHECK_EQ(flags[k], fcntl(fds[k], F_GETFL), "flags of socket %d", k);
        for (size_t i = 0; i < COUNT(common_options); i++)
            CHECK_EQ(values[k][i], get(fds[k], common_options[i].level, common_options[i].name), "%s of socket %d", common_options[i].text, k);
    }
    CHECK_EQ(FD_CLOEXEC, fcntl(fds[V4], F_GETFD), "close-on-exec");
    CHECK_EQ(1, get(fds[V6], IPPROTO_IPV6, IPV6_V6ONLY), "IPV6_V6ONLY");
    CHECK_EQ(0, get(fds[BOTH], IPPROTO_IPV6, IPV6_V6ONLY), "IPV6_V6ONLY of the one for both");
    CHECK_EQ(0x10, get(fds[V4], IPPROTO_IP, IP_TOS), "IP_TOS");
    CHECK_EQ(44, get(fds[V4], IPPROTO_IP, IP_TTL), "IP_TTL");
    struct linger l;
    struct timeval t;
    char name[32] = "";
    socklen_t n = sizeof l;
    getsockopt(fds[V4], SOL_SOCKET, SO_LINGER, &l, &n);
    CHECK_MEM(&linger_before, &l, sizeof l, "SO_LINGER");
    n = sizeof t;
    getsockopt(fds[V4], SOL_SOCKET, SO_RCVTIMEO, &t, &n);
    CHECK_MEM(&timeout_before, &t, sizeof t, "SO_RCVTIMEO");
    n = sizeof name;
    getsockopt(fds[V4], IPPROTO_TCP, TCP_CONGESTION, name, &n);
    CHECK_STR("reno", name, "TCP_CONGESTION");
    CHECK_EQ(port[V6], port_of(twin), "port of the second socket on the same port");
    CHECK_EQ(3, backlog_of(twin), "its backlog");
    talk(V4, V4), talk(V6, V6), talk(BOTH, V4), talk(BOTH, V6), talk(PLAIN, V4);
}
