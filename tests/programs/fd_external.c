#include "common.h"
#include <arpa/inet.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>

static const char *about = "external ends at 40 and 41 (TCP connections), 42 (unix socket), given up at a restore: 40 and 42 have ended, 41 is a file";
static const char *usage = "  --unix PATH      a listening socket of somebody else\n"
                           "  --inetd          a TCP connection at 0 instead, which is the restoring command's standard input then\n";

static bool inetd;
static const char *listener;
static int set, pair[2];
static int own_option(const char *name, const char *value) {
    if (!strcmp(name, "--inetd")) return inetd = true, 1;
    return !strcmp(name, "--unix") && value ? listener = value, 2 : 0;
}
static int (*option)(const char *, const char *) = own_option;

static void at(int fd, int want) { MUST(dup2(fd, want)), close(fd); }
static void watch(int fd) { MUST(epoll_ctl(set, EPOLL_CTL_ADD, fd, &(struct epoll_event){.events = EPOLLIN, .data.fd = fd})); }
static int connection(void) { // with itself
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof a;
    int tcp = MUST(socket(AF_INET, SOCK_STREAM, 0));
    MUST(bind(tcp, (struct sockaddr *)&a, n)), MUST(getsockname(tcp, (struct sockaddr *)&a, &n)), MUST(connect(tcp, (struct sockaddr *)&a, n));
    return tcp;
}
static void setup(void) {
    if (inetd) {
        at(connection(), 0);
        return;
    }
    at(connection(), 40), at(connection(), 41);
    struct sockaddr_un u = {.sun_family = AF_UNIX};
    if (listener) {
        snprintf(u.sun_path, sizeof u.sun_path, "%s", listener);
        int s = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
        MUST(connect(s, (struct sockaddr *)&u, sizeof u)), at(s, 42);
        MUST(fcntl(42, F_SETFL, O_NONBLOCK)), MUST(fcntl(42, F_SETFD, FD_CLOEXEC));
    }
    set = MUST(epoll_create1(0)), MUST(pipe(pair));
    watch(40), watch(41), watch(pair[0]);
}
static void spoil(void) { dup2(pair[0], 40); }
static void prove(void) {
    char text[16] = "";
    struct epoll_event e[3] = {0};
    struct stat s;
    if (inetd) {
        CHECK_OK(fstat(0, &s), "descriptor 0");
        CHECK(!S_ISSOCK(s.st_mode), "descriptor 0 no longer a socket");
        return;
    }
    for (int fd = 40; fd <= 42; fd += 2) {
        const char *which = fd == 40 ? "the TCP connection" : "the unix socket";
        CHECK_EQ(0, recv(fd, text, sizeof text, 0), which);
        CHECK_ERRNO(EPIPE, send(fd, "x", 1, MSG_NOSIGNAL), which);
        CHECK_EQ(fd == 42 ? O_NONBLOCK : 0, fcntl(fd, F_GETFL) & O_NONBLOCK, which);
        CHECK_EQ(fd == 42 ? FD_CLOEXEC : 0, fcntl(fd, F_GETFD), which);
    }
    struct sockaddr_storage a;
    socklen_t n = sizeof a;
    CHECK_OK(getsockname(40, (struct sockaddr *)&a, &n), "the TCP connection's address");
    CHECK_EQ(AF_INET, a.ss_family, "the TCP connection's family");
    CHECK_EQ(7, read(41, text, sizeof text - 1), "reading from what took the second connection's place");
    CHECK_STR("instead", text, "what took the second connection's place");
    CHECK_EQ(1, epoll_wait(set, e, 3, 1000), "an event of what has ended");
    CHECK_EQ(40, e[0].data.fd, "whose event it is");
    CHECK_EQ(EPOLLIN | EPOLLHUP, e[0].events, "what it says");
    CHECK_EQ(1, write(pair[1], "x", 1), "writing to the pipe");
    CHECK_EQ(2, epoll_wait(set, e, 3, 1000), "an event more of what is still watched");
    CHECK_EQ(40 + pair[0], e[0].data.fd + e[1].data.fd, "whose events they are");
}
