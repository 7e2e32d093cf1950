#include "common.h"
#include <grp.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>

static const char *about = "threads with credentials of their own: as root users, groups, capabilities, secure bits; no_new_privs and keepcaps as anyone";

enum { SERVES, DROPPED, LOWERED, PLAIN, INHERITS, BEHALF, AMBIENT, THREADS };
static const char *const names[] = {"serves", "dropped", "lowered", "plain", "inherits", "behalf", "ambient"};
static const char *const lines[] = {"Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs"};
enum { LINES = sizeof lines / sizeof *lines };
struct look {
    char line[LINES][256];
    int securebits;
};
static struct look before[THREADS + 1];
static int ask[THREADS][2], answer[THREADS][2], files;
static bool root, filtered, setpcap; // setpcap: may drop from the bounding set, and choose secure bits

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
static void inherit(int cap) {
    struct __user_cap_header_struct h = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct d[2];
    MUST(syscall(SYS_capget, &h, d));
    d[cap / 32].inheritable |= 1u << cap % 32;
    for (int i = 0; i < 2; i++) d[i].effective = d[i].permitted; // a change of users has cleared them
    MUST(syscall(SYS_capset, &h, d));
}
static void users(uid_t r, uid_t e, uid_t s) { // with all capabilities
    MUST(prctl(PR_SET_KEEPCAPS, 1));
    MUST(syscall(SYS_setresuid, r, e, s));
    MUST(prctl(PR_SET_KEEPCAPS, 0));
    inherit(CAP_CHOWN);
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
        if (setpcap) MUST(prctl(PR_CAPBSET_DROP, CAP_SYS_CHROOT, 0, 0, 0));
        drop(CAP_SYS_CHROOT);
        MUST(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_CHOWN, 0, 0));
    } else if (n == INHERITS && root) { // what is not in its bounding set any more
        inherit(CAP_SYS_CHROOT);
        if (setpcap) MUST(prctl(PR_CAPBSET_DROP, CAP_SYS_CHROOT, 0, 0, 0));
        MUST(syscall(SYS_setresuid, 1000, 1000, 1000));
    } else if (n == BEHALF && root) { // four of each, none root's
        MUST(syscall(SYS_setresgid, 501, 502, 503));
        syscall(SYS_setfsgid, 504);
        users(601, 602, 603);
        syscall(SYS_setfsuid, 604);
    } else if (n == AMBIENT && root) { // and can raise no more
        users(611, 611, 611);
        MUST(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_CHOWN, 0, 0));
        if (setpcap) MUST(prctl(PR_SET_SECUREBITS, 3 << 6)); // NO_CAP_AMBIENT_RAISE, for good
    }
    if (n == SERVES) { // secure bits that anyone may set
        MUST(prctl(PR_SET_KEEPCAPS, 1));
        prctl(PR_SET_SECUREBITS, prctl(PR_GET_SECUREBITS) | 1 << 8); // EXEC_RESTRICT_FILE, since 6.14
    }
    if (n == LOWERED) MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
}
static void same(const struct look *was, const char *name) {
    struct look now;
    see(&now);
    for (unsigned i = 0; i < LINES; i++) CHECK_STR(was->line[i], now.line[i], "%s of thread %s", lines[i], name);
    CHECK_HEX(was->securebits, now.securebits, "securebits of thread %s", name);
}
static void *thread(void *arg) {
    long n = (long)arg;
    char c;
    become(n);
    see(&before[n]);
    if (n == BEHALF && root) CHECK_STR("601\t602\t603\t604", before[n].line[0], "users that it has chosen");
    while (write(answer[n][1], "r", 1) == 1 && read(ask[n][0], &c, 1) == 1) {
        if (c == 's') {
            MUST(prctl(PR_SET_KEEPCAPS, 1));
            continue;
        }
        same(&before[n], names[n]);
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
static int own_option(const char *name, const char *value) { (void)value; return !strcmp(name, "--filtered") ? filtered = true, 1 : 0; }
static int (*option)(const char *, const char *) = own_option;
static const char *usage = "  --filtered  as root: with a filter, and no_new_privs in the first thread\n";
static void setup(void) {
    char c, path[PATH_MAX + 16];
    root = geteuid() == 0;
    setpcap = prctl(PR_CAPBSET_READ, CAP_SETPCAP) == 1;
    // a directory in which the served user may make files
    snprintf(path, sizeof path, "%s/files", dir);
    MUST(mkdir(path, 0700));
    MUST(chmod(path, 0777));
    MUST(files = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    struct sock_filter all[] = {BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    if (filtered) MUST(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &(struct sock_fprog){1, all}));
    for (long n = 0; n < THREADS; n++) {
        pthread_t t;
        MUST(pipe(ask[n])), MUST(pipe(answer[n]));
        MUST0(pthread_create(&t, NULL, thread, (void *)n));
        MUST(read(answer[n][0], &c, 1));
    }
    if (filtered) MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    // what a change of credentials takes away
    MUST(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0));
    see(&before[THREADS]);
}
static void tell(int n, const char *what) {
    char c;
    CHECK_EQ(1, write(ask[n][1], what, 1), "asking thread %s", names[n]);
    CHECK_EQ(1, read(answer[n][0], &c, 1), "the answer of thread %s", names[n]);
}
static void spoil(void) { tell(PLAIN, "s"); } // in one thread only
static void prove(void) {
    same(&before[THREADS], "first");
    for (int n = 0; n < THREADS; n++) tell(n, "p");
}
