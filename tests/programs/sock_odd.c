// A socket with what cannot be kept: to be refused by name, and unharmed.
#include "common.h"
#include <linux/filter.h>
#include <sys/socket.h>
#include <sys/un.h>

static const char *about = "a UDP socket with a filter, or a named unix socket with a descriptor in flight";
static const char *usage = "  --what filter|in-flight";
static const char *what = "filter";
static int fd, null;

static int (*option)(const char *, const char *) = what_option;

static void setup(void) {
    if (!strcmp(what, "filter")) {
        struct sock_filter drop[] = {{BPF_RET | BPF_K, 0, 0, 0}, {BPF_RET | BPF_K, 0, 0, 0}};
        fd = MUST(socket(AF_INET, SOCK_DGRAM, 0));
        MUST(setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &(struct sock_fprog){COUNT(drop), drop}, sizeof(struct sock_fprog)));
        return;
    }
    struct sockaddr_un a = {.sun_family = AF_UNIX, .sun_path = "in-flight.sock"};
    MUST(chdir(dir));
    fd = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
    MUST(bind(fd, (void *)&a, sizeof a));
    int from = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
    null = MUST(open("/dev/null", O_RDONLY));
    union { struct cmsghdr h; char room[CMSG_SPACE(sizeof null)]; } c = {.h = {CMSG_LEN(sizeof null), SOL_SOCKET, SCM_RIGHTS}};
    memcpy(CMSG_DATA(&c.h), &null, sizeof null);
    struct iovec v = {"x", 1};
    MUST(sendmsg(from, &(struct msghdr){&a, sizeof a, &v, 1, &c, sizeof c, 0}, 0));
    close(from);
}
static void spoil(void) { close(fd); }
static void prove(void) {
    if (!strcmp(what, "filter")) {
        socklen_t n = 0;
        CHECK_EQ(0, getsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, NULL, &n), "asking for the filter");
        CHECK_EQ(2, n, "its length");
        return;
    }
    char x, room[CMSG_SPACE(sizeof null)];
    struct iovec v = {&x, 1};
    struct msghdr m = {NULL, 0, &v, 1, room, sizeof room, 0};
    CHECK_EQ(1, recvmsg(fd, &m, MSG_DONTWAIT), "the message");
    CHECK(CMSG_FIRSTHDR(&m) != NULL, "the descriptor in it, expected one, got none");
}
