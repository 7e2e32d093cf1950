#include "common.h"
#include <sys/prctl.h>

static const char *about = "dumpable: 0 for root or with --zero (an ordinary user can't attach to such a process), else 1";
static const char *usage = "  --zero    make it 0 also as an ordinary user";

static int value, zero;
static int own_option(const char *name, const char *v) { return (void)v, !strcmp(name, "--zero") ? zero = 1 : 0; }
static int (*option)(const char *, const char *) = own_option;

static void setup(void) {
    if (zero || geteuid() == 0) MUST(prctl(PR_SET_DUMPABLE, 0));
    value = prctl(PR_GET_DUMPABLE);
}
static void spoil(void) { prctl(PR_SET_DUMPABLE, !value); }
static void prove(void) { CHECK_EQ(value, prctl(PR_GET_DUMPABLE), "dumpable"); }
