#include "common.h"
#include <arpa/inet.h>
#include <net/if.h>
#include <sys/socket.h>

static const char *about = "UDP sockets in multicast groups, v4 and v6, on the loopback interface: they are still in them, and hear the same sources";
static const char *usage = "  --sources        the v4 one hears only 127.0.0.1 and 127.0.0.2, the v6 one all but ::2";
static int fd4, fd6;
static bool sources;

static int own_option(const char *name, const char *value) {
    (void)value;
    return !strcmp(name, "--sources") ? sources = true, 1 : 0;
}
static int (*option)(const char *, const char *) = own_option;

static struct group_req on_loopback(const void *address, size_t len) {
    struct group_req g = {.gr_interface = if_nametoindex("lo")};
    memcpy(&g.gr_group, address, len);
    return g;
}
static struct sockaddr_in v4(int fd) {
    struct sockaddr_in a;
    socklen_t n = sizeof a;
    MUST(getsockname(fd, (void *)&a, &n));
    return a.sin_addr.s_addr = inet_addr("239.7.7.7"), a;
}
static struct sockaddr_in6 v6(int fd) {
    struct sockaddr_in6 a;
    socklen_t n = sizeof a;
    MUST(getsockname(fd, (void *)&a, &n));
    inet_pton(AF_INET6, "ff01::7:7", &a.sin6_addr);
    return a.sin6_scope_id = if_nametoindex("lo"), a;
}
static struct group_source_req other_source(const struct sockaddr_in6 *group) {
    struct group_source_req r = {.gsr_interface = if_nametoindex("lo")};
    struct sockaddr_in6 from = {.sin6_family = AF_INET6};
    inet_pton(AF_INET6, "::2", &from.sin6_addr);
    memcpy(&r.gsr_group, group, sizeof *group);
    memcpy(&r.gsr_source, &from, sizeof from);
    return r;
}
// From another address of the loopback interface: heard, or not.
static void from_source(int last, bool heard) {
    char got[8] = "";
    struct sockaddr_in a = v4(fd4), from = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK - 1 + last)};
    int s = MUST(socket(AF_INET, SOCK_DGRAM, 0));
    MUST(bind(s, (void *)&from, sizeof from));
    MUST(setsockopt(s, IPPROTO_IP, IP_MULTICAST_IF, &(struct ip_mreqn){.imr_ifindex = (int)if_nametoindex("lo")}, sizeof(struct ip_mreqn)));
    CHECK_EQ(1, sendto(s, "s", 1, 0, (void *)&a, sizeof a), "sending from 127.0.0.%d", last);
    // on the loopback interface it is there when sendto returns
    CHECK_EQ(heard ? 1 : -1, recv(fd4, got, sizeof got, MSG_DONTWAIT), "receiving from 127.0.0.%d", last);
    close(s);
}
static void setup(void) {
    struct timeval second = {2, 0};
    fd4 = MUST(socket(AF_INET, SOCK_DGRAM, 0));
    fd6 = MUST(socket(AF_INET6, SOCK_DGRAM, 0));
    MUST(bind(fd4, (void *)&(struct sockaddr_in){.sin_family = AF_INET}, sizeof(struct sockaddr_in)));
    MUST(bind(fd6, (void *)&(struct sockaddr_in6){.sin6_family = AF_INET6}, sizeof(struct sockaddr_in6)));
    struct sockaddr_in a = v4(fd4);
    struct sockaddr_in6 b = v6(fd6);
    struct group_req g = on_loopback(&a, sizeof a), h = on_loopback(&b, sizeof b);
    for (int i = 1; sources && i <= 2; i++) {
        struct ip_mreq_source only = {a.sin_addr, {htonl(INADDR_LOOPBACK)}, {htonl(INADDR_LOOPBACK - 1 + i)}};
        MUST(setsockopt(fd4, IPPROTO_IP, IP_ADD_SOURCE_MEMBERSHIP, &only, sizeof only));
    }
    if (!sources) MUST(setsockopt(fd4, IPPROTO_IP, MCAST_JOIN_GROUP, &g, sizeof g));
    MUST(setsockopt(fd6, IPPROTO_IPV6, MCAST_JOIN_GROUP, &h, sizeof h));
    if (sources) {
        struct group_source_req not = other_source(&b);
        MUST(setsockopt(fd6, IPPROTO_IPV6, MCAST_BLOCK_SOURCE, &not, sizeof not));
    }
    MUST(setsockopt(fd4, IPPROTO_IP, IP_MULTICAST_ALL, &(int){0}, sizeof(int))); // only its own groups, not other programs'
    MUST(setsockopt(fd4, SOL_SOCKET, SO_RCVTIMEO, &second, sizeof second));
    MUST(setsockopt(fd6, SOL_SOCKET, SO_RCVTIMEO, &second, sizeof second));
}
static void spoil(void) {
    struct sockaddr_in a = v4(fd4);
    struct group_req g = on_loopback(&a, sizeof a);
    MUST(setsockopt(fd4, IPPROTO_IP, MCAST_LEAVE_GROUP, &g, sizeof g));
    if (sources) MUST(setsockopt(fd4, IPPROTO_IP, MCAST_JOIN_GROUP, &g, sizeof g)); // but then it hears all
}
static void prove(void) {
    char got[8] = "";
    struct sockaddr_in a = v4(fd4);
    struct sockaddr_in6 b = v6(fd6);
    int from = MUST(socket(AF_INET, SOCK_DGRAM, 0));
    MUST(bind(from, (void *)&(struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)}, sizeof(struct sockaddr_in)));
    MUST(setsockopt(from, IPPROTO_IP, IP_MULTICAST_IF, &(struct ip_mreqn){.imr_ifindex = (int)if_nametoindex("lo")}, sizeof(struct ip_mreqn)));
    CHECK_EQ(4, sendto(from, "four", 4, 0, (void *)&a, sizeof a), "sending to the v4 group");
    CHECK_EQ(4, recv(fd4, got, sizeof got, 0), "receiving from it");
    CHECK_MEM("four", got, 4, "what came from it");
    for (int last = 2; last <= 3; last++) from_source(last, !sources || last == 2);
    struct group_source_req not = other_source(&b);
    if (sources) CHECK_OK(setsockopt(fd6, IPPROTO_IPV6, MCAST_UNBLOCK_SOURCE, &not, sizeof not), "hearing the v6 source again that was not heard");
    // the loopback interface has no route for v6 groups: a group can be left by who is in it
    struct group_req h = on_loopback(&b, sizeof b);
    CHECK_EQ(0, setsockopt(fd6, IPPROTO_IPV6, MCAST_LEAVE_GROUP, &h, sizeof h), "leaving the v6 group");
    CHECK_EQ(-1, setsockopt(fd6, IPPROTO_IPV6, MCAST_LEAVE_GROUP, &h, sizeof h), "leaving it again");
}
