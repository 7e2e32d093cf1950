#include "common.h"

static const char *about = "session and process group (unless DORMOUSE_TEST_SID_MAY_CHANGE is set), by call and by /proc";
static const char *usage = "  --setsid       become a session leader first (needs not to be a group leader)\n"
                           "  --setpgid      become a process group leader first";

static pid_t sid, pgid, said_sid, said_pgid;
static bool want_sid, want_pgid, led;
static int own_option(const char *name, const char *v) {
    (void)v;
    if (!strcmp(name, "--setsid")) return want_sid = true, 1;
    if (!strcmp(name, "--setpgid")) return want_pgid = true, 1;
    return 0;
}
static int (*option)(const char *, const char *) = own_option;

static void from_proc(pid_t *group, pid_t *session) {
    char text[2048];
    *group = *session = -1;
    if (slurp("/proc/self/stat", text, sizeof text) > 0) sscanf(strrchr(text, ')'), ") %*c %*d %d %d", group, session);
}
static void setup(void) {
    if (want_sid) MUST(setsid());
    if (want_pgid) MUST(setpgid(0, 0));
    sid = getsid(0), pgid = getpgrp(), led = sid == getpid();
    from_proc(&said_pgid, &said_sid);
}
static void spoil(void) { // another group, or if we lead one, another memory of it
    if (pgid == getpid() || setpgid(0, 0)) pgid++, sid++;
}
static void prove(void) {
    pid_t g, s;
    from_proc(&g, &s);
    if (sabotage || !(getenv("DORMOUSE_TEST_SID_MAY_CHANGE") || getenv("DORMOUSE_TEST_FRESH_PIDS"))) {
        CHECK_EQ(sid, getsid(0), "session");
        CHECK_EQ(pgid, getpgrp(), "process group");
        CHECK_EQ(said_sid, s, "session by /proc");
        CHECK_EQ(said_pgid, g, "process group by /proc");
    }
    if (want_sid || led) CHECK_EQ(getpid(), getsid(0), "being a session leader");
}
