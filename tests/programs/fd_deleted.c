#include "common.h"

static const char *about = "deleted files: 2 MiB with content, holes and a position, two opens of one of them, another file at its path; a renamed one";

#define BYTES (2UL << 20)
static int big, again, read_only, renamed;
static unsigned char want[BYTES];
static long blocks;

static void setup(void) {
    big = MUST(open(work("gone"), O_RDWR | O_CREAT | O_TRUNC, 0640));
    for (size_t i = 0; i < BYTES; i += 16 * PAGE) fill(want + i, PAGE, i + 1), MUST(pwrite(big, want + i, PAGE, (off_t)i));
    MUST(ftruncate(big, BYTES + 100)); // ends in a hole
    again = MUST(open(work("gone"), O_RDWR));
    MUST(lseek(big, 16 * PAGE + 5, SEEK_SET));
    MUST(lseek(again, 3, SEEK_SET));
    read_only = MUST(open(work("gone"), O_RDONLY | O_CLOEXEC));
    MUST(unlink(work("gone")));
    MUST(write_file("gone", "another file\n") ? 0 : -1);
    struct stat s;
    fstat(big, &s);
    blocks = s.st_blocks;
    renamed = MUST(open(work("old-name"), O_RDWR | O_CREAT | O_TRUNC, 0600));
    MUST(write(renamed, "renamed", 7));
    MUST(rename(work("old-name"), work("new-name")));
}
static void spoil(void) { MUST(pwrite(again, "!", 1, 100)); }
static void prove(void) {
    static unsigned char got[BYTES + 200];
    struct stat a, b;
    char text[64];
    CHECK_EQ(16 * PAGE + 5, lseek(big, 0, SEEK_CUR), "position");
    CHECK_EQ(3, lseek(again, 0, SEEK_CUR), "position of the second open");
    CHECK_EQ(BYTES + 100, pread(big, got, sizeof got, 0), "size read");
    CHECK_MEM(want, got, BYTES, "content");
    fstat(big, &a), fstat(again, &b);
    CHECK_EQ(0, a.st_nlink, "links");
    CHECK_EQ(0640, a.st_mode & 0777, "mode");
    CHECK_EQ(getuid(), a.st_uid, "owner");
    CHECK_EQ(a.st_ino, b.st_ino, "inode of both opens");
    fstat(read_only, &b);
    CHECK_EQ(a.st_ino, b.st_ino, "inode of the read-only open");
    CHECK_EQ(O_RDONLY, fcntl(read_only, F_GETFL) & O_ACCMODE, "its access mode");
    CHECK_RANGE(0, blocks * 2 + 64, a.st_blocks, "blocks of 512 bytes: holes still holes");
    CHECK_EQ(1, pwrite(again, "Z", 1, 50), "write by the second open");
    CHECK_EQ(1, pread(read_only, got, 1, 50), "read by the third");
    CHECK_EQ('Z', got[0], "what the one wrote, the other reads");
    slurp(work("gone"), text, sizeof text);
    CHECK_STR("another file\n", text, "the other file at its path");
    CHECK_EQ(7, lseek(renamed, 0, SEEK_CUR), "position of the renamed file");
    CHECK_EQ(2, write(renamed, "++", 2), "write to the renamed file");
    slurp(work("new-name"), text, sizeof text);
    CHECK_STR("renamed++", text, "the renamed file");
    CHECK_EQ(-1, access(work("old-name"), F_OK), "the old name");
}
