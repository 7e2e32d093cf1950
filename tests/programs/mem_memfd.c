#include "common.h"
#include <setjmp.h>

static const char *about = "memfds: unmapped and mapped, of one identity, with seals, without descriptor, sparse; deleted files mapped shared, with and without descriptor";
static const char *usage = "  --what secret   only one, secret: refused\n";

static int (*option)(const char *, const char *) = what_option;

#define GIB (1UL << 30)
static int plain, reader, sealed, future, sparse, mapped_gone;
static unsigned char *writable, *read_only, *sealed_map, *future_map, *code_w, *code_x, *tail, *gone, *closed_gone, *far_map;
static long blocks;

static int new(const char *name, unsigned flags, size_t size) {
    int fd = MUST(memfd_create(name, flags));
    MUST(ftruncate(fd, (off_t)size));
    return fd;
}
static unsigned char *map(int fd, int prot, size_t size, off_t at) { return MUST(mmap(NULL, size, prot, MAP_SHARED, fd, at)); }
static int deleted(const char *name) {
    int fd = MUST(open(work(name), O_RDWR | O_CREAT, 0640));
    MUST(ftruncate(fd, 3 * PAGE)), MUST(unlink(work(name)));
    return fd;
}
static void setup(void) {
    if (what && !strcmp(what, "secret")) {
        plain = (int)syscall(SYS_memfd_secret, 0);
        if (plain < 0) skip("no memfd_secret");
        MUST(ftruncate(plain, PAGE));
        writable = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, plain, 0);
        if (writable == MAP_FAILED) skip("no secret memory for us");
        strcpy((char *)writable, "secret");
        return;
    }
    plain = new("plain one", 0, 5 * PAGE + 100);
    writable = map(plain, PROT_READ | PROT_WRITE, 6 * PAGE, 0), read_only = map(plain, PROT_READ, 2 * PAGE, PAGE);
    for (int i = 0; i < 5; i++) fill(writable + i * PAGE, PAGE, 40 + i);
    MUST(lseek(plain, 77, SEEK_SET));
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", plain);
    reader = MUST(open(path, O_RDONLY | O_CLOEXEC));

    sealed = new("sealed", MFD_CLOEXEC | MFD_ALLOW_SEALING, PAGE);
    MUST(write(sealed, "for ever", 8));
    MUST(fcntl(sealed, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE));
    sealed_map = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, sealed, 0); // kernel 6.7
    future = new("future", MFD_ALLOW_SEALING, 2 * PAGE);
    future_map = map(future, PROT_READ | PROT_WRITE, 2 * PAGE, 0);
    strcpy((char *)future_map, "written by what is mapped");
    MUST(fcntl(future, F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK));

    int fd = new("code", 0, 4 * PAGE); // as libffi does: two mappings, and no descriptor
    code_w = map(fd, PROT_READ | PROT_WRITE, 4 * PAGE, 0), code_x = map(fd, PROT_READ | PROT_EXEC, 2 * PAGE, PAGE);
    memcpy(code_w + PAGE, "\xb8\x2a\x00\x00\x00\xc3", 6); // mov $42, %eax; ret
    fill(code_w + 3 * PAGE, PAGE, 50);
    close(fd);
    fd = new("tail", 0, 3 * PAGE); // mapped beyond its end
    tail = map(fd, PROT_READ | PROT_WRITE, 8 * PAGE, 0);
    strcpy((char *)tail + 2 * PAGE, "the last page");
    close(fd);

    sparse = new("sparse", 0, 4 * GIB);
    MUST(pwrite(sparse, "far", 3, (off_t)(3 * GIB + 5)));
    far_map = map(sparse, PROT_READ, PAGE, (off_t)(3 * GIB));
    struct stat s;
    fstat(sparse, &s);
    blocks = s.st_blocks;

    mapped_gone = deleted("gone");
    gone = map(mapped_gone, PROT_READ | PROT_WRITE, 3 * PAGE, 0);
    fill(gone, 2 * PAGE, 60);
    fd = deleted("closed");
    closed_gone = map(fd, PROT_READ | PROT_WRITE, 3 * PAGE, 0);
    close(fd);
    fill(closed_gone + PAGE, PAGE, 61);
}
static void spoil(void) { code_w[3 * PAGE + 9] ^= 1; }

static sigjmp_buf out;
static void on_bus(int n) { siglongjmp(out, n); }
static bool there(volatile unsigned char *at) {
    struct sigaction a = {.sa_handler = on_bus}, old;
    sigaction(SIGBUS, &a, &old);
    bool is = !sigsetjmp(out, 1) && (*at, true);
    sigaction(SIGBUS, &old, NULL);
    return is;
}
static void same(const unsigned char *at, size_t bytes, uint64_t seed, const char *which) {
    static unsigned char want[2 * PAGE];
    fill(want, bytes, seed);
    CHECK_MEM(want, at, bytes, "content of %s", which);
}
static void prove(void) {
    struct stat a, b;
    char text[PATH_MAX + 512], path[64];
    if (what) {
        CHECK_OK(fstat(plain, &a), "the memfd");
        if (writable) CHECK_STR("secret", (char *)writable, "what is secret");
        return;
    }
    for (int i = 0; i < 5; i++) same(writable + i * PAGE, PAGE, 40 + i, "the plain one");
    fstat(plain, &a), fstat(reader, &b);
    CHECK_EQ(5 * PAGE + 100, a.st_size, "its size");
    CHECK_EQ(a.st_ino, b.st_ino, "inode of its second open file");
    CHECK_EQ(77, lseek(plain, 0, SEEK_CUR), "its position");
    CHECK_EQ(0, fcntl(plain, F_GETFD), "close-on-exec");
    CHECK_EQ(FD_CLOEXEC, fcntl(reader, F_GETFD), "close-on-exec of the second");
    CHECK_EQ(O_RDONLY, fcntl(reader, F_GETFL) & O_ACCMODE, "access mode of the second");
    CHECK_EQ(F_SEAL_SEAL, fcntl(plain, F_GET_SEALS), "its seals");
    snprintf(path, sizeof path, "/proc/self/fd/%d", plain);
    text[MUST(readlink(path, text, sizeof text - 1))] = 0;
    CHECK_STR("/memfd:plain one (deleted)", text, "its name");
    strcpy((char *)writable + PAGE + 10, "shared");
    CHECK_STR("shared", (char *)read_only + 10, "what one mapping writes, in the other");
    CHECK_EQ(6, pread(reader, text, 6, PAGE + 10), "reading it");
    CHECK_MEM("shared", text, 6, "what one mapping writes, in the file");

    CHECK_EQ(F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE, fcntl(sealed, F_GET_SEALS), "seals");
    CHECK_ERRNO(EPERM, write(sealed, "x", 1), "writing to the sealed one");
    CHECK_ERRNO(EPERM, ftruncate(sealed, 2 * PAGE), "growing the sealed one");
    CHECK_EQ(8, pread(sealed, text, 8, 0), "reading the sealed one");
    CHECK_MEM("for ever", text, 8, "content of the sealed one");
    if (sealed_map != MAP_FAILED) CHECK_MEM("for ever", sealed_map, 8, "the sealed one, mapped");
    CHECK_EQ(F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK, fcntl(future, F_GET_SEALS), "seals of the second");
    CHECK_STR("written by what is mapped", (char *)future_map, "content of the second");
    future_map[PAGE] = 'f';
    CHECK_EQ(1, pread(future, text, 1, PAGE), "reading the second");
    CHECK_EQ('f', text[0], "what the old mapping still writes");
    CHECK_ERRNO(EPERM, write(future, "x", 1), "writing to the second");

    CHECK_EQ(42, ((int (*)(void))code_x)(), "code in a memfd without descriptor");
    code_w[PAGE + 1] = 43;
    CHECK_EQ(43, ((int (*)(void))code_x)(), "code that is written by the other mapping");
    same(code_w + 3 * PAGE, PAGE, 50, "its end");
    CHECK_STR("the last page", (char *)tail + 2 * PAGE, "the last page before the end");
    CHECK(!there(tail + 3 * PAGE), "nothing behind the end of the file");
    CHECK(there(tail + 3 * PAGE - 1), "the last byte");

    fstat(sparse, &a);
    CHECK_EQ(4 * GIB, a.st_size, "size of the sparse one");
    CHECK_RANGE(0, blocks + 64, a.st_blocks, "blocks of the sparse one");
    CHECK_EQ(3, pread(sparse, text, 3, (off_t)(3 * GIB + 5)), "reading it");
    CHECK_MEM("far", text, 3, "its content");
    CHECK_MEM("far", far_map + 5, 3, "its content, mapped");

    same(gone, 2 * PAGE, 60, "the deleted file");
    gone[2 * PAGE] = 'g';
    CHECK_EQ(1, pread(mapped_gone, text, 1, 2 * PAGE), "reading the deleted file");
    CHECK_EQ('g', text[0], "what its mapping writes");
    fstat(mapped_gone, &a);
    CHECK_EQ(0, a.st_nlink, "its links");
    CHECK_EQ(3 * PAGE, a.st_size, "its size");
    same(closed_gone + PAGE, PAGE, 61, "the deleted file without descriptor");
    closed_gone[2 * PAGE] = 'c';
    CHECK_EQ(0, closed_gone[0], "its hole");
    CHECK(mapping(gone, NULL, text, sizeof text) && strchr(text, ' ')[4] == 's', "its mapping is shared");
}
