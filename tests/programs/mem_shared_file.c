#include "common.h"

static const char *about = "shared file mappings: content, and still one with the file in both directions, also a read-only one, and one with guards";

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

#define PAGES 32
static unsigned char *map, *view, *guarded, want[PAGES * PAGE];
static char lines[2][512];
static bool guards;
static int probe[2];

static void setup(void) {
    int fd = MUST(open(work("file"), O_RDWR | O_CREAT | O_TRUNC, 0600));
    fill(want, sizeof want, 4);
    MUST(write(fd, want, sizeof want));
    map = MUST(mmap(NULL, sizeof want, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    close(fd);
    fd = MUST(open(work("file"), O_RDONLY));
    view = MUST(mmap(NULL, 4 * PAGE, PROT_READ, MAP_SHARED, fd, 8 * PAGE));
    close(fd);
    fd = MUST(open(work("file"), O_RDWR));
    guarded = MUST(mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 20 * PAGE));
    close(fd);
    MUST(pipe(probe));
    guards = madvise(guarded + PAGE, 2 * PAGE, MADV_GUARD_INSTALL) == 0; // kernel 6.15
    for (size_t i = 0; i < PAGES; i += 3) memset(map + i * PAGE, 'm', 9), memset(want + i * PAGE, 'm', 9);
    mapping(map, NULL, lines[0], sizeof lines[0]);
    mapping(view, NULL, lines[1], sizeof lines[1]);
}
static void spoil(void) { map[4 * PAGE] ^= 1; }
static void prove(void) {
    static unsigned char file[PAGES * PAGE];
    char line[512];
    CHECK_MEM(want, map, sizeof want, "the mapping");
    CHECK_MEM(want + 8 * PAGE, view, 4 * PAGE, "the read-only view");
    for (size_t i = 0; guards && i < 4; i++)
        CHECK_EQ(i == 0 || i == 3 ? 1 : -1, write(probe[1], guarded + i * PAGE, 1), "bytes that can be read of page %zu by the guards", i);
    CHECK_MEM(want + 23 * PAGE, guarded + 3 * PAGE, PAGE, "the page behind the guards");
    mapping(map, NULL, line, sizeof line);
    CHECK_STR(lines[0], line, "maps line");
    mapping(view, NULL, line, sizeof line);
    CHECK_STR(lines[1], line, "maps line of the view");
    int fd = open(work("file"), O_RDWR);
    CHECK_EQ(sizeof file, pread(fd, file, sizeof file, 0), "read of the file");
    CHECK_MEM(want, file, sizeof file, "the file");
    map[9 * PAGE] = 'x';
    CHECK_EQ('x', view[PAGE], "a write to the mapping, in the view");
    CHECK_EQ(1, pread(fd, file, 1, 9 * PAGE), "read of the file");
    CHECK_EQ('x', file[0], "a write to the mapping, in the file");
    CHECK_EQ(1, pwrite(fd, "y", 1, 9 * PAGE), "write to the file");
    CHECK_EQ('y', map[9 * PAGE], "a write to the file, in the mapping");
    CHECK_ERRNO(EACCES, mprotect(view, PAGE, PROT_READ | PROT_WRITE), "making the read-only view writable");
}
