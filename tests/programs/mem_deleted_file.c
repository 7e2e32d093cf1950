#include "common.h"

static const char *about = "private mapping of a deleted file: content changed and unchanged, another file now at its path";

#define PAGES 16
static unsigned char *map, want[PAGES * PAGE];

static void setup(void) {
    int fd = MUST(open(work("gone"), O_RDWR | O_CREAT | O_TRUNC, 0600));
    fill(want, sizeof want, 21);
    MUST(write(fd, want, sizeof want));
    map = MUST(mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
    close(fd);
    MUST(unlink(work("gone")));
    MUST(write_file("gone", "another file at the same path, not ours\n") ? 0 : -1);
    memset(map + 7 * PAGE, 'p', 100), memset(want + 7 * PAGE, 'p', 100);
}
static void spoil(void) { map[3 * PAGE + 3] ^= 1; }
static void prove(void) {
    char text[64];
    CHECK_MEM(want, map, sizeof want, "the mapping");
    map[4 * PAGE + 9] = 'q';
    CHECK_EQ('q', map[4 * PAGE + 9], "a write");
    slurp(work("gone"), text, sizeof text);
    CHECK_STR("another file at the same path, not ours\n", text, "the other file");
}
