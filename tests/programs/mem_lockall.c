#include "common.h"
#include <sys/resource.h>

static const char *about = "mlockall(MCL_FUTURE), with --on-fault MCL_ONFAULT too: what is mapped later is locked, what was mapped before is not";
static const char *usage = "  --on-fault       with MCL_ONFAULT\n"
                           "  --tight          with a limit of locked memory that leaves no room\n";

static bool on_fault, tight;
static unsigned char *before, *after;
static char flags[2][128];

static int own_option(const char *name, const char *value) {
    (void)value;
    if (!strcmp(name, "--on-fault")) return on_fault = true, 1;
    return !strcmp(name, "--tight") ? tight = true, 1 : 0;
}
static int (*option)(const char *, const char *) = own_option;

static void *area(void) { // with borders, so that it stays an area of its own
    unsigned char *p = MUST(mmap(NULL, 6 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    MUST(mprotect(p + PAGE, 4 * PAGE, PROT_READ | PROT_WRITE));
    return p + PAGE;
}
static void setup(void) {
    before = area();
    before[0] = 1;
    int more = on_fault ? MCL_ONFAULT : 0;
    if (mlockall(MCL_FUTURE | more)) skip("mlockall: %s", strerror(errno));
    after = area();
    mapping(before, "VmFlags", flags[0], sizeof flags[0]);
    mapping(after, "VmFlags", flags[1], sizeof flags[1]);
    if (tight) MUST(setrlimit(RLIMIT_MEMLOCK, &(struct rlimit){1 << 20, 1 << 20}));
}
static void spoil(void) { munlockall(); }
static void prove(void) {
    char now[256];
    unsigned char in[4], *later = area();
    CHECK_STR(flags[0], (mapping(before, "VmFlags", now, sizeof now), now), "flags of what was mapped before");
    CHECK_STR(flags[1], (mapping(after, "VmFlags", now, sizeof now), now), "flags of what was mapped after");
    CHECK_STR(flags[1], (mapping(later, "VmFlags", now, sizeof now), now), "flags of what is mapped now");
    CHECK(strstr(flags[1], " lo") && !strstr(flags[0], " lo"), "what is locked, expected the later one only, got %.60s and %.60s", flags[0], flags[1]);
    mincore(later, 4 * PAGE, in);
    for (int i = 0; i < 4; i++) CHECK_EQ(!on_fault, in[i] & 1, "residence of page %d of what is mapped now", i);
}
