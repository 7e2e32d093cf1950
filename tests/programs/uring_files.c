#include "common.h"
#include "uring.h"
#include <sys/socket.h>

static const char *about = "registered files of two rings, one of one thread: sockets of pairs at their places, one at two, between empty ones, and a table of empty places only";
static const char *usage = "  --what pipe|closed    what is refused: the file at place 3 is a pipe, or a socket that has no descriptor\n";

static int (*option)(const char *, const char *) = what_option;

#define PLACES 100
static struct ring one, own, empty;
static int pair[3][2]; // the first end of each is registered, of the last the second, too
static char got[16];

static void registers(struct ring *r, const int *fds, unsigned n) { MUST(syscall(SYS_io_uring_register, r->fd, IORING_REGISTER_FILES, fds, n)); }
static int update(struct ring *r, unsigned place, int fd) {
    struct io_uring_files_update u = {.offset = place, .fds = (uint64_t)(uintptr_t)&fd};
    return (int)syscall(SYS_io_uring_register, r->fd, IORING_REGISTER_FILES_UPDATE, &u, 1);
}
// Reads by the place of a registered file.
static int reads(struct ring *r, int place, uint64_t data) {
    memset(got, 0, sizeof got);
    struct io_uring_sqe *e = entry(r, IORING_OP_RECV, place, got, sizeof got, data);
    e->flags = IOSQE_FIXED_FILE, e->off = 0;
    CHECK_EQ(1, enter(r, 1), "a request of place %d (errno %d)", place, errno);
    return result_of(r, data);
}
static void arrives(struct ring *r, int place, int from, uint64_t data) {
    char sent[16];
    int n = snprintf(sent, sizeof sent, "by %llu", (unsigned long long)data);
    CHECK_EQ(n, write(from, sent, (size_t)n), "writing for place %d", place);
    CHECK_EQ(n, reads(r, place, data), "bytes at place %d", place);
    CHECK_MEM(sent, got, (size_t)n, "what came at place %d", place);
}

static void setup(void) {
    for (int i = 0; i < 3; i++) MUST(socketpair(AF_UNIX, i == 1 ? SOCK_DGRAM : SOCK_STREAM, 0, pair[i]));
    if (!make(&one, 8, 0, 0) || !make(&empty, 4, 0, 0)) skip("no io_uring: %s", strerror(errno));
    int fds[PLACES], none[PLACES];
    for (int i = 0; i < PLACES; i++) none[i] = fds[i] = -1;
    fds[3] = pair[0][0], fds[5] = pair[1][0], fds[7] = pair[0][0], fds[PLACES - 1] = pair[2][0];
    int ends[2];
    if (what && !strcmp(what, "pipe")) MUST(pipe(ends)), fds[3] = ends[0];
    registers(&one, fds, PLACES);
    if (what) {
        if (!strcmp(what, "closed")) close(pair[0][0]), close(pair[0][1]);
        return;
    }
    registers(&empty, none, PLACES);
    if (make(&own, 4, IORING_SETUP_SINGLE_ISSUER, 0)) registers(&own, (int[]){pair[2][1], -1, pair[2][0]}, 3);
    for (uint64_t i = 0; i < 10; i++) nothing(&one, i);
    arrives(&one, 3, pair[0][1], 20);
}
static void spoil(void) { MUST(update(&one, 5, -1)); }
static void prove(void) {
    if (what) {
        CHECK_EQ(1, update(&one, 5, -1), "place 5 is emptied");
        return;
    }
    for (int round = 0; round < 3; round++) {
        uint64_t n = 1000 * (uint64_t)(round + 1);
        arrives(&one, 3, pair[0][1], n + 1), arrives(&one, 7, pair[0][1], n + 2);
        arrives(&one, 5, pair[1][1], n + 3);
        arrives(&one, PLACES - 1, pair[2][1], n + 4);
        if (own.fd > 0) arrives(&own, 0, pair[2][0], n + 5), arrives(&own, 2, pair[2][1], n + 6);
    }
    for (int i = 0; i < PLACES; i++)
        if (i != 3 && i != 5 && i != 7 && i != PLACES - 1) CHECK_EQ(-EBADF, reads(&one, i, 1), "the empty place %d", i);
    CHECK_EQ(-EBADF, reads(&one, PLACES, 1), "a place that there is not");
    CHECK_EQ(1, update(&empty, PLACES - 1, pair[0][0]), "putting a file at the last of the empty places");
    arrives(&empty, PLACES - 1, pair[0][1], 30);
    CHECK_ERRNO(EINVAL, update(&empty, PLACES, pair[0][0]), "there are no more places");
    // by its place a socket is open when its descriptor is closed
    close(pair[1][0]);
    arrives(&one, 5, pair[1][1], 40);
}
