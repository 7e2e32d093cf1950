#include "common.h"
#include <grp.h>
#include <linux/capability.h>
#include <pthread.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>

static const char *about = "threads with credentials of their own: as root users, groups, capabilities, secure bits; no_new_privs and keepcaps as anyone";

enum { SERVES, DROPPED, LOWERED, PLAIN, THREADS };
static const char *const names[] = {"serves", "dropped", "lowered", "plain"};
static const char *const lines[] = {"Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs"};
enum { LINES = sizeof lines / sizeof *lines };
struct look {
    char line[LINES][256];
    int securebits;
};
static struct look before[THREADS + 1];
static int ask[THREADS][2], answer[THREADS][2], files;
static bool root;

static void see(struct look *l) {
    memset(l, 0, sizeof *l);
    for (unsigned i = 0; i < LINES; i++) field("/proc/thread-self/status", lines[i], l->line[i], sizeof l->line[i]);
    l->securebits = prctl(PR_GET_SECUREBITS);
}
static void drop(int cap) {
    struct __user_cap_header_struct h = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct d[2];
    MUST(syscall(SYS_capget, &h, d));
    d[cap / 32].effective &= ~(1u << cap % 32);
    d[cap / 32].permitted &= ~(1u << cap % 32);
    d[0].inheritable |= d[0].permitted & 1u << CAP_CHOWN;
    MUST(syscall(SYS_capset, &h, d));
}
static void become(long n) { // raw: the C library would do it in all threads
    if (n == SERVES && root) { // as a file server does
        MUST(syscall(SYS_setgroups, 2, (gid_t[]){7, 4321}));
        syscall(SYS_setfsgid, 4322);
        syscall(SYS_setfsuid, 4323);
    } else if (n == DROPPED && root) {
        MUST(prctl(PR_SET_PDEATHSIG, SIGUSR2));
        MUST(syscall(SYS_setresgid, 501, 502, 503));
        MUST(syscall(SYS_setresuid, 601, 602, 603));
        MUST(prctl(PR_SET_PDEATHSIG, SIGUSR1));
        MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    } else if (n == LOWERED && root) {
        MUST(prctl(PR_CAPBSET_DROP, CAP_SYS_CHROOT, 0, 0, 0));
        drop(CAP_SYS_CHROOT);
        MUST(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_CHOWN, 0, 0));
    }
    if (n == SERVES) MUST(prctl(PR_SET_KEEPCAPS, 1)); // a secure bit that anyone may set
    if (n == LOWERED) MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
}
static void *thread(void *arg) {
    long n = (long)arg;
    char c;
    become(n);
    see(&before[n]);
    while (write(answer[n][1], "r", 1) == 1 && read(ask[n][0], &c, 1) == 1) {
        struct look now;
        see(&now);
        for (unsigned i = 0; i < LINES; i++) CHECK_STR(before[n].line[i], now.line[i], "%s of thread %s", lines[i], names[n]);
        CHECK_HEX(before[n].securebits, now.securebits, "securebits of thread %s", names[n]);
        int signal = 0;
        CHECK_OK(prctl(PR_GET_PDEATHSIG, &signal), "signal at the parent's end");
        CHECK_EQ(n == DROPPED && root ? SIGUSR1 : 0, signal, "signal at the parent's end of thread %s", names[n]);
        if (n == SERVES && root) { // whose files it makes
            struct stat s = {0};
            int fd = openat(files, "served", O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
            CHECK(fd >= 0, "a file of the served user's");
            if (fd >= 0) CHECK_OK(fstat(fd, &s), "a file of the served user's");
            CHECK_EQ(4323, s.st_uid, "owner of the file");
            CHECK_EQ(4322, s.st_gid, "group of the file");
        }
    }
    return NULL;
}
static void setup(void) {
    char c, path[PATH_MAX + 16];
    root = geteuid() == 0;
    // a directory in which the served user may make files
    snprintf(path, sizeof path, "%s/files", dir);
    MUST(mkdir(path, 0700));
    MUST(chmod(path, 0777));
    MUST(files = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    for (long n = 0; n < THREADS; n++) {
        pthread_t t;
        MUST(pipe(ask[n])), MUST(pipe(answer[n]));
        MUST0(pthread_create(&t, NULL, thread, (void *)n));
        MUST(read(answer[n][0], &c, 1));
    }
    // what a change of credentials takes away
    MUST(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0));
    see(&before[THREADS]);
}
static void spoil(void) { MUST(prctl(PR_SET_KEEPCAPS, 1)); }
static void prove(void) {
    char c;
    struct look now;
    see(&now);
    for (unsigned i = 0; i < LINES; i++) CHECK_STR(before[THREADS].line[i], now.line[i], "%s of the first thread", lines[i]);
    CHECK_HEX(before[THREADS].securebits, now.securebits, "securebits of the first thread");
    for (int n = 0; n < THREADS; n++) {
        CHECK_EQ(1, write(ask[n][1], "p", 1), "asking thread %s", names[n]);
        CHECK_EQ(1, read(answer[n][0], &c, 1), "the answer of thread %s", names[n]);
    }
}
