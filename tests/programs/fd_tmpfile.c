#include "common.h"

static const char *about = "O_TMPFILE: content, position, no name; and can still be given one (the kernel does not tell of O_EXCL)";

static int open_one, exclusive;
static uint64_t want[512];

static void setup(void) {
    open_one = open(dir, O_TMPFILE | O_RDWR, 0604);
    if (open_one < 0) skip("O_TMPFILE in %s: %s", dir, strerror(errno));
    fill(want, sizeof want, 71);
    MUST(write(open_one, want, sizeof want));
    MUST(lseek(open_one, 1000, SEEK_SET));
    exclusive = MUST(open(dir, O_TMPFILE | O_RDWR | O_EXCL | O_CLOEXEC, 0600));
    MUST(write(exclusive, "never a name", 12));
}
static void spoil(void) { ftruncate(open_one, 4000) ? (void)0 : (void)0; }
static int link_it(int fd, const char *name) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return linkat(AT_FDCWD, path, AT_FDCWD, work(name), AT_SYMLINK_FOLLOW);
}
static void prove(void) {
    uint64_t got[513];
    char text[64];
    struct stat s;
    fstat(open_one, &s);
    CHECK_EQ(0, s.st_nlink, "links");
    CHECK_EQ(0604 & ~0022, s.st_mode & 0777 & ~0022, "mode");
    CHECK_EQ(1000, lseek(open_one, 0, SEEK_CUR), "position");
    CHECK_EQ(sizeof want, pread(open_one, got, sizeof got, 0), "bytes");
    CHECK_MEM(want, got, sizeof want, "content");
    CHECK_EQ(12, lseek(exclusive, 0, SEEK_CUR), "position of the exclusive one");
    CHECK_EQ(12, pread(exclusive, text, sizeof text, 0), "bytes of the exclusive one");
    CHECK_MEM("never a name", text, 12, "content of the exclusive one");
    if (CHECK_OK(link_it(open_one, "named"), "giving it a name")) {
        stat(work("named"), &s);
        CHECK_EQ(sizeof want, s.st_size, "size of the named file");
    }
}
