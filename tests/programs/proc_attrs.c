#include "common.h"

static const char *about = "umask, working directory, oom_score_adj, coredump_filter, process name";

static char cwd[PATH_MAX], oom[32], filter[32];
static mode_t mask_now(void) {
    mode_t m = umask(0);
    umask(m);
    return m;
}
static void set(const char *path, const char *text) {
    int fd = MUST(open(path, O_WRONLY | O_CLOEXEC));
    MUST(write(fd, text, strlen(text)));
    close(fd);
}
static void setup(void) {
    MUST(mkdir(work("here"), 0755));
    MUST(chdir(work("here")));
    int fd = MUST(open("inside", O_WRONLY | O_CREAT, 0600));
    MUST(write(fd, "found\n", 6));
    close(fd);
    slurp("/proc/self/oom_score_adj", oom, sizeof oom);
    if (atoi(oom) < 321) set("/proc/self/oom_score_adj", "321"); // upwards needs no right
    set("/proc/self/coredump_filter", "0x7b");
    set("/proc/self/comm", "name ) ( of it");
    slurp("/proc/self/oom_score_adj", oom, sizeof oom);
    slurp("/proc/self/coredump_filter", filter, sizeof filter);
    getcwd(cwd, sizeof cwd);
    umask(0137);
}
static void spoil(void) { umask(022); }
static void prove(void) {
    char now[PATH_MAX] = "";
    CHECK_EQ(0137, mask_now(), "umask");
    CHECK_OK(getcwd(now, sizeof now), "getcwd");
    CHECK_STR(cwd, now, "working directory");
    memset(now, 0, sizeof now);
    CHECK_OK(readlink("/proc/self/cwd", now, sizeof now - 1), "/proc/self/cwd");
    CHECK_STR(cwd, now, "/proc/self/cwd");
    slurp("inside", now, sizeof now);
    CHECK_STR("found\n", now, "a relative path");
    slurp("/proc/self/oom_score_adj", now, sizeof now);
    CHECK_STR(oom, now, "oom_score_adj");
    slurp("/proc/self/coredump_filter", now, sizeof now);
    CHECK_STR(filter, now, "coredump_filter");
    slurp("/proc/self/comm", now, sizeof now);
    CHECK_STR("name ) ( of it\n", now, "process name");
}
