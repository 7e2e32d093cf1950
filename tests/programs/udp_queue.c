#include "common.h"
#include <arpa/inet.h>
#include <sys/socket.h>

static const char *about = "datagrams queued in UDP sockets within the process: content, borders, order, sender";

static int a, b;
static unsigned char big[5000];
static struct sockaddr_in of_a, of_b;

static void setup(void) {
    socklen_t n = sizeof of_a;
    a = MUST(socket(AF_INET, SOCK_DGRAM, 0)), b = MUST(socket(AF_INET, SOCK_DGRAM, 0));
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    MUST(bind(a, (struct sockaddr *)&any, sizeof any)), MUST(bind(b, (struct sockaddr *)&any, sizeof any));
    MUST(getsockname(a, (struct sockaddr *)&of_a, &n)), MUST(getsockname(b, (struct sockaddr *)&of_b, &n));
    fill(big, sizeof big, 3);
    MUST(sendto(a, "first", 5, 0, (struct sockaddr *)&of_b, n));
    MUST(sendto(a, big, sizeof big, 0, (struct sockaddr *)&of_b, n));
    MUST(sendto(a, "", 0, 0, (struct sockaddr *)&of_b, n)); // an empty one
    MUST(sendto(a, "last", 4, 0, (struct sockaddr *)&of_b, n));
    sleep_ms(10);
}
static void spoil(void) { recv(b, (char[8]){0}, 8, 0); }
static void expect(const void *data, size_t length, const char *what) {
    static unsigned char got[8192];
    struct sockaddr_in from = {0};
    socklen_t n = sizeof from;
    CHECK_EQ(length, recvfrom(b, got, sizeof got, MSG_DONTWAIT, (struct sockaddr *)&from, &n), "length of %s", what);
    CHECK_MEM(data, got, length, "%s", what);
    CHECK_EQ(ntohs(of_a.sin_port), ntohs(from.sin_port), "sender of %s", what);
}
static void prove(void) {
    expect("first", 5, "the first"), expect(big, sizeof big, "the big one"), expect("", 0, "the empty one"), expect("last", 4, "the last");
    CHECK_ERRNO(EAGAIN, recv(b, (char[1]){0}, 1, MSG_DONTWAIT), "one more");
}
