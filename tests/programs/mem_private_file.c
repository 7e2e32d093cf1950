#include "common.h"

static const char *about = "private file mappings: changed pages keep their change, the others still are the file's; offset, protection, name";

#define PAGES 64
static unsigned char *map, *tail, want[PAGES * PAGE];
static char lines[2][512];
static bool changed(size_t i) { return i % 7 == 3; }

static void setup(void) {
    static unsigned char content[PAGES * PAGE];
    int fd = MUST(open(work("file"), O_RDWR | O_CREAT | O_TRUNC, 0600));
    fill(content, sizeof content, 3);
    MUST(write(fd, content, sizeof content));
    MUST(write(fd, "a last page that is not whole", 29));
    map = MUST(mmap(NULL, sizeof want, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
    tail = MUST(mmap(NULL, 2 * PAGE, PROT_READ, MAP_PRIVATE, fd, (PAGES - 1) * PAGE));
    close(fd);
    memcpy(want, content, sizeof want);
    for (size_t i = 0; i < PAGES; i++) {
        if (changed(i)) memset(map + i * PAGE + 100, (int)i, 50), memset(want + i * PAGE + 100, (int)i, 50);
    }
    MUST(mprotect(map + 10 * PAGE, PAGE, PROT_READ)); // a changed page becomes read-only: three areas
    mapping(map, NULL, lines[0], sizeof lines[0]);
    mapping(tail, NULL, lines[1], sizeof lines[1]);
}
static void spoil(void) { map[3 * PAGE + 110] ^= 1; }
static void prove(void) {
    char line[512], c;
    CHECK_MEM(want, map, sizeof want, "the whole mapping");
    CHECK_MEM(want + (PAGES - 1) * PAGE, tail, PAGE, "the mapping at an offset");
    CHECK_STR("a last page that is not whole", (char *)tail + PAGE, "the last page");
    mapping(map, NULL, line, sizeof line);
    CHECK_STR(lines[0], line, "maps line of the mapping");
    mapping(tail, NULL, line, sizeof line);
    CHECK_STR(lines[1], line, "maps line of the mapping at an offset");
    int fd = open(work("file"), O_RDWR);
    map[0] ^= 0xff; // stays private
    CHECK_EQ(1, pread(fd, &c, 1, 0), "read of the file");
    CHECK_EQ(want[0], (unsigned char)c, "the file after a private write");
    CHECK_EQ(1, pread(fd, &c, 1, 3 * PAGE + 110), "read of the file");
    CHECK((unsigned char)c != 3, "the file where the mapping was changed");
    c = (char)(want[PAGE] ^ 0x55); // a page never changed is the file's own
    CHECK_EQ(1, pwrite(fd, &c, 1, PAGE), "write to the file");
    CHECK_EQ((unsigned char)c, map[PAGE], "a change of the file, seen in an unchanged page");
}
