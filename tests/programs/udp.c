#include "common.h"
#include <arpa/inet.h>
#include <sys/socket.h>

static const char *about = "UDP sockets, v4 and v6: bound, connected, neither; options; afterwards they receive and send";

static int bound, connected, v6, v6_connected, fresh, port_bound, port_connected, port_v6;
static const struct {
    int level, name, value;
    const char *text;
} options[] = {
    {SOL_SOCKET, SO_BROADCAST, 1, "SO_BROADCAST"},      {SOL_SOCKET, SO_REUSEADDR, 1, "SO_REUSEADDR"}, {SOL_SOCKET, SO_RCVBUF, 40000, "SO_RCVBUF"},
    {SOL_SOCKET, SO_TIMESTAMP, 1, "SO_TIMESTAMP"},      {IPPROTO_IP, IP_TTL, 33, "IP_TTL"},            {IPPROTO_IP, IP_PKTINFO, 1, "IP_PKTINFO"},
    {IPPROTO_IP, IP_RECVTTL, 1, "IP_RECVTTL"},          {IPPROTO_IP, IP_MULTICAST_TTL, 3, "IP_MULTICAST_TTL"}, {IPPROTO_IP, IP_MULTICAST_LOOP, 0, "IP_MULTICAST_LOOP"},
    {IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO, "IP_MTU_DISCOVER"}, {IPPROTO_IP, IP_RECVERR, 1, "IP_RECVERR"},
};
static const struct {
    int name, value;
    const char *text;
} options6[] = {{IPV6_V6ONLY, 1, "IPV6_V6ONLY"}, {IPV6_RECVPKTINFO, 1, "IPV6_RECVPKTINFO"}, {IPV6_UNICAST_HOPS, 21, "IPV6_UNICAST_HOPS"}, {IPV6_MULTICAST_HOPS, 6, "IPV6_MULTICAST_HOPS"}, {IPV6_TCLASS, 0x20, "IPV6_TCLASS"}};
static int values[COUNT(options)], values6[COUNT(options6)];

static int get(int fd, int level, int name) {
    int v = -1;
    socklen_t n = sizeof v;
    return getsockopt(fd, level, name, &v, &n) ? -1 : v;
}
static struct sockaddr_in to4(int p) { return (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)p), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)}; }
static struct sockaddr_in6 to6(int p) { return (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)p), .sin6_addr = IN6ADDR_LOOPBACK_INIT}; }
static int port_of(int fd, bool peer) {
    struct sockaddr_in6 a = {0};
    socklen_t n = sizeof a;
    if ((peer ? getpeername : getsockname)(fd, (struct sockaddr *)&a, &n)) return -1;
    return ntohs(a.sin6_port); // at the same place in both families
}
static void setup(void) {
    bound = MUST(socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0));
    for (size_t i = 0; i < COUNT(options); i++) MUST(setsockopt(bound, options[i].level, options[i].name, &options[i].value, sizeof(int)));
    struct sockaddr_in a = to4(0);
    MUST(bind(bound, (struct sockaddr *)&a, sizeof a));
    port_bound = port_of(bound, false);
    connected = MUST(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    a = to4(port_bound);
    MUST(connect(connected, (struct sockaddr *)&a, sizeof a)); // takes a port of its own
    port_connected = port_of(connected, false);
    v6 = MUST(socket(AF_INET6, SOCK_DGRAM | SOCK_NONBLOCK, 0));
    for (size_t i = 0; i < COUNT(options6); i++) MUST(setsockopt(v6, IPPROTO_IPV6, options6[i].name, &options6[i].value, sizeof(int)));
    struct sockaddr_in6 b = to6(0);
    MUST(bind(v6, (struct sockaddr *)&b, sizeof b));
    port_v6 = port_of(v6, false);
    v6_connected = MUST(socket(AF_INET6, SOCK_DGRAM, 0));
    b = to6(port_v6);
    MUST(connect(v6_connected, (struct sockaddr *)&b, sizeof b));
    fresh = MUST(socket(AF_INET, SOCK_DGRAM, 0));
    for (size_t i = 0; i < COUNT(options); i++) values[i] = get(bound, options[i].level, options[i].name);
    for (size_t i = 0; i < COUNT(options6); i++) values6[i] = get(v6, IPPROTO_IPV6, options6[i].name);
}
static void spoil(void) { MUST(setsockopt(bound, IPPROTO_IP, IP_TTL, &(int){34}, sizeof(int))); }
static void exchange(int from, int to, int from_port, const char *what) {
    struct sockaddr_in6 a = {0};
    socklen_t n = sizeof a;
    char text[16] = "";
    CHECK_EQ(5, send(from, "there", 5, 0), "sending, %s", what);
    sleep_ms(5);
    CHECK_EQ(5, recvfrom(to, text, sizeof text, MSG_DONTWAIT, (struct sockaddr *)&a, &n), "receiving, %s", what);
    CHECK_STR("there", text, "received, %s", what);
    CHECK_EQ(from_port, ntohs(a.sin6_port), "sender's port, %s", what);
    CHECK_EQ(4, sendto(to, "back", 4, 0, (struct sockaddr *)&a, n), "answering, %s", what);
    sleep_ms(5);
    CHECK_EQ(4, recv(from, text, sizeof text, MSG_DONTWAIT), "receiving the answer, %s", what);
}
static void prove(void) {
    char c;
    for (size_t i = 0; i < COUNT(options); i++) CHECK_EQ(values[i], get(bound, options[i].level, options[i].name), "%s", options[i].text);
    for (size_t i = 0; i < COUNT(options6); i++) CHECK_EQ(values6[i], get(v6, IPPROTO_IPV6, options6[i].name), "%s", options6[i].text);
    CHECK_EQ(port_bound, port_of(bound, false), "port of the bound one");
    CHECK_EQ(-1, port_of(bound, true), "peer of the bound one");
    CHECK_EQ(port_connected, port_of(connected, false), "port of the connected one");
    CHECK_EQ(port_bound, port_of(connected, true), "peer of the connected one");
    CHECK_EQ(port_v6, port_of(v6, false), "port of the v6 one");
    CHECK_EQ(port_v6, port_of(v6_connected, true), "peer of the connected v6 one");
    CHECK_EQ(0, port_of(fresh, false), "port of the one not bound");
    CHECK_EQ(O_NONBLOCK, fcntl(bound, F_GETFL) & O_NONBLOCK, "O_NONBLOCK");
    CHECK_EQ(FD_CLOEXEC, fcntl(connected, F_GETFD), "close-on-exec");
    CHECK_ERRNO(EAGAIN, recv(bound, &c, 1, MSG_DONTWAIT), "nothing received yet");
    exchange(connected, bound, port_connected, "v4");
    exchange(v6_connected, v6, port_of(v6_connected, false), "v6");
}
