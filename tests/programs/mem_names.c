#include "common.h"
#include <sys/prctl.h>
#ifndef PR_SET_VMA
#define PR_SET_VMA 0x53564d41
#define PR_SET_VMA_ANON_NAME 0
#endif

static const char *about = "names of anonymous areas (PR_SET_VMA_ANON_NAME), private and shared, and that neighbours with other names stay apart";

static unsigned char *areas, *shared;
static char before[5][512];
static void name(void *p, size_t pages, const char *text) {
    if (prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, p, pages * PAGE, text)) skip("PR_SET_VMA_ANON_NAME: %s", strerror(errno));
}
static void look(char out[5][512]) {
    for (int i = 0; i < 4; i++) mapping(areas + (size_t)i * 4 * PAGE, NULL, out[i], 512);
    mapping(shared, NULL, out[4], 512);
    char *inode = strchr(strchr(out[4], '-'), ':'); // of shared memory: may be another afterwards
    if (inode) memmove(inode, strchr(inode, '['), strlen(strchr(inode, '[')) + 1);
}
static void setup(void) {
    unsigned char *room = MUST(mmap(NULL, 18 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    areas = room + PAGE;
    MUST(mprotect(areas, 16 * PAGE, PROT_READ | PROT_WRITE));
    fill(areas, 16 * PAGE, 1);
    name(areas, 4, "first");
    name(areas + 4 * PAGE, 4, "second, with blanks");
    name(areas + 8 * PAGE, 4, "0123456789012345678901234567890123456789012345678901234567890123456789012345678"); // 79, the most
    shared = MUST(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    name(shared, 1, "together");
    look(before);
}
static void spoil(void) { name(areas, 4, "fisrt"); }
static void prove(void) {
    char after[5][512];
    look(after);
    for (int i = 0; i < 5; i++) CHECK_STR(before[i], after[i], "maps line of area %d", i);
    CHECK(strstr(after[0], "[anon:first]"), "name of the first area");
    CHECK(strstr(after[4], "[anon_shmem:together]"), "name of the shared area");
}
