#include "common.h"
#include <arpa/inet.h>
#include <poll.h>
#include <sys/socket.h>

static const char *about = "a TCP connection that has ended, not closed yet by the server that accepted it, whose listener has the same address";
static const char *usage = "  --left unread|error   something of it the program has not seen yet: to be refused";
static const char *left = "";
static int listener, accepted;
static struct sockaddr_in at;
static int own_option(const char *name, const char *value) {
    if (strcmp(name, "--left") || !value) return 0;
    return left = value, 2;
}
static int (*option)(const char *, const char *) = own_option;

static int hung_up(void) {
    struct pollfd p = {accepted, POLLIN | POLLRDHUP, 0};
    return poll(&p, 1, 10000) == 1 ? p.revents & (POLLHUP | POLLERR) : 0;
}
static void setup(void) {
    listener = MUST(socket(AF_INET, SOCK_STREAM, 0));
    MUST(setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int)));
    at = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof at;
    MUST(bind(listener, (void *)&at, n));
    MUST(listen(listener, 5));
    MUST(getsockname(listener, (void *)&at, &n));
    int client = MUST(socket(AF_INET, SOCK_STREAM, 0));
    MUST(connect(client, (void *)&at, sizeof at));
    accepted = MUST(accept(listener, NULL, NULL));
    if (!strcmp(left, "unread")) MUST(send(client, "hello", 5, 0));
    if (!strcmp(left, "error")) MUST(setsockopt(client, SOL_SOCKET, SO_LINGER, &(struct linger){1, 0}, sizeof(struct linger)));
    else MUST(shutdown(accepted, SHUT_WR));
    close(client);
    while (!hung_up()) sched_yield(); // the other side's end is a packet that comes when it comes
}
static void spoil(void) {
    close(accepted);
    if (socket(AF_INET, SOCK_STREAM, 0) != accepted) fail("another descriptor");
}
static void prove(void) {
    char text[8];
    if (!strcmp(left, "error")) {
        errno = 0;
        CHECK_EQ(-1, read(accepted, text, sizeof text), "reading what was reset");
        CHECK_EQ(ECONNRESET, errno, "its error");
        return;
    }
    if (!strcmp(left, "unread")) CHECK_EQ(5, read(accepted, text, sizeof text), "what was not read");
    CHECK_EQ(0, read(accepted, text, sizeof text), "reading its end");
    errno = 0;
    CHECK_EQ(-1, send(accepted, "x", 1, MSG_NOSIGNAL), "writing to it");
    CHECK_EQ(EPIPE, errno, "its error");
    CHECK(hung_up() != 0, "it has hung up");
    socklen_t n = sizeof at;
    struct sockaddr_in peer;
    CHECK_EQ(-1, getpeername(accepted, (void *)&peer, &n), "it has no peer");
    int client = MUST(socket(AF_INET, SOCK_STREAM, 0));
    CHECK_EQ(0, connect(client, (void *)&at, sizeof at), "connecting to the listener");
    int again = accept(listener, NULL, NULL);
    CHECK(again >= 0, "accepting");
    close(again), close(client);
}
