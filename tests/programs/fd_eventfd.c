#include "common.h"
#include <sys/eventfd.h>

static const char *about = "eventfds: count, semaphore mode, full one, flags, a dup";

static int plain, semaphore, full, zero, copy;

static void add(int fd, uint64_t n) { MUST(write(fd, &n, 8)); }
static void setup(void) {
    plain = MUST(eventfd(40, EFD_CLOEXEC | EFD_NONBLOCK));
    add(plain, 2);
    semaphore = MUST(eventfd(3, EFD_SEMAPHORE | EFD_NONBLOCK));
    full = MUST(eventfd(0, EFD_NONBLOCK));
    add(full, UINT64_MAX - 1);
    zero = MUST(eventfd(0, 0));
    copy = MUST(dup(plain));
}
static void spoil(void) { add(plain, 1); }
static void prove(void) {
    uint64_t n = 0, one = 1;
    CHECK_EQ(O_RDWR | O_NONBLOCK, fcntl(plain, F_GETFL) & (O_ACCMODE | O_NONBLOCK), "flags of the plain one");
    CHECK_EQ(O_RDWR, fcntl(zero, F_GETFL) & (O_ACCMODE | O_NONBLOCK), "flags of the empty one");
    CHECK_EQ(FD_CLOEXEC, fcntl(plain, F_GETFD), "close-on-exec");
    CHECK_EQ(0, fcntl(copy, F_GETFD), "close-on-exec of the dup");
    CHECK_EQ(8, read(copy, &n, 8), "read by the dup");
    CHECK_EQ(42, n, "count");
    CHECK_ERRNO(EAGAIN, read(plain, &n, 8), "read once more");
    for (int i = 0; i < 3; i++) {
        n = 0;
        CHECK_EQ(8, read(semaphore, &n, 8), "read %d of the semaphore", i);
        CHECK_EQ(1, n, "what it gave");
    }
    CHECK_ERRNO(EAGAIN, read(semaphore, &n, 8), "read 4 of the semaphore");
    CHECK_ERRNO(EAGAIN, write(full, &one, 8), "write to the full one");
    CHECK_EQ(8, read(full, &n, 8), "read of the full one");
    CHECK_HEX(UINT64_MAX - 1, n, "its count");
    fcntl(zero, F_SETFL, O_NONBLOCK);
    CHECK_ERRNO(EAGAIN, read(zero, &n, 8), "read of the empty one");
}
