#include "common.h"

static const char *about = "pipes within the process: unread and half-read content, size, O_NONBLOCK, a full one, an empty one, one without writer";

static int plain[2], big[2], full[2], empty[2], ended[2];
static unsigned char sent[200000];
static size_t full_bytes;

static void setup(void) {
    fill(sent, sizeof sent, 9);
    MUST(pipe2(plain, O_CLOEXEC));
    MUST(write(plain[1], "hello, pipe", 11));
    MUST(read(plain[0], (char[5]){0}, 5)); // left: ", pipe"
    MUST(pipe2(big, 0));
    if (fcntl(big[1], F_SETPIPE_SZ, 1 << 18) < 0) MUST(fcntl(big[1], F_SETPIPE_SZ, 1 << 16)); // pipe-user-pages-soft
    size_t n = fcntl(big[1], F_GETPIPE_SZ) > 200000 ? 200000 : 50000;
    MUST(write(big[1], sent, n));
    MUST(read(big[0], (char[1234]){0}, 1234));
    MUST(pipe2(full, O_NONBLOCK));
    MUST(fcntl(full[1], F_SETPIPE_SZ, 8192));
    ssize_t w;
    while ((w = write(full[1], sent + full_bytes, 4096)) > 0) full_bytes += (size_t)w;
    MUST(pipe2(empty, 0));
    MUST(fcntl(empty[0], F_SETFL, O_NONBLOCK)); // only this end
    MUST(pipe2(ended, 0));
    MUST(write(ended[1], "last", 4));
    close(ended[1]);
}
static void spoil(void) { MUST(read(plain[0], (char[1]){0}, 1)); }
static int big_size(void) { return fcntl(big[0], F_GETPIPE_SZ); }
static void prove(void) {
    static unsigned char got[200000];
    struct stat a, b;
    fstat(plain[0], &a), fstat(plain[1], &b);
    CHECK_EQ(a.st_ino, b.st_ino, "inode of both ends");
    CHECK_EQ(FD_CLOEXEC, fcntl(plain[0], F_GETFD), "close-on-exec");
    CHECK_EQ(0, fcntl(big[0], F_GETFD), "no close-on-exec");
    CHECK_EQ(O_RDONLY, fcntl(plain[0], F_GETFL) & O_ACCMODE, "access mode of the reading end");
    CHECK_EQ(O_WRONLY, fcntl(plain[1], F_GETFL) & O_ACCMODE, "access mode of the writing end");
    CHECK_EQ(0, fcntl(plain[0], F_GETFL) & O_NONBLOCK, "flags of the plain pipe");
    CHECK_EQ(65536, fcntl(plain[0], F_GETPIPE_SZ), "size of the plain pipe");
    memset(got, 0, 16);
    CHECK_EQ(6, read(plain[0], got, 100), "bytes left in the plain pipe");
    CHECK_STR(", pipe", (char *)got, "content of the plain pipe");
    CHECK(big_size() == 1 << 18 || big_size() == 1 << 16, "size of the big pipe");
    size_t n = (big_size() > 200000 ? 200000 : 50000) - 1234, have = 0;
    ssize_t r;
    while (have < n && (r = read(big[0], got + have, n - have)) > 0) have += (size_t)r;
    CHECK_EQ(n, have, "bytes left in the big pipe");
    CHECK_MEM(sent + 1234, got, n, "content of the big pipe");
    fcntl(big[0], F_SETFL, O_NONBLOCK);
    CHECK_ERRNO(EAGAIN, read(big[0], got, 1), "the big pipe, drained");
    CHECK_EQ(8192, fcntl(full[0], F_GETPIPE_SZ), "size of the full pipe");
    CHECK_ERRNO(EAGAIN, write(full[1], "x", 1), "write to the full pipe");
    for (have = 0; (r = read(full[0], got + have, 4096)) > 0;) have += (size_t)r;
    CHECK_EQ(full_bytes, have, "bytes in the full pipe");
    CHECK_MEM(sent, got, have, "content of the full pipe");
    CHECK_ERRNO(EAGAIN, read(empty[0], got, 1), "the empty pipe");
    CHECK_EQ(0, fcntl(empty[1], F_GETFL) & O_NONBLOCK, "flags of the other end of the empty pipe");
    CHECK_EQ(1, write(empty[1], "x", 1), "write to the empty pipe");
    CHECK_EQ(1, read(empty[0], got, 1), "read from it");
    CHECK_EQ(4, read(ended[0], got, 100), "bytes of the pipe without writer");
    CHECK_EQ(0, read(ended[0], got, 100), "its end of file");
}
