// User namespaces of its own: who is in which, their maps, IDs as seen inside and outside, capabilities, and that these do inside what they say and nothing outside.
#include "common.h"
#include <grp.h>
#include <linux/capability.h>
#include <sys/fsuid.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

static const char *about = "user namespaces: maps, setgroups, who is in which, IDs and capabilities";
static const char *usage = "  --what root|same|none   this process in one: mapped to root, to itself, not at all (root)\n"
                           "  --what threads          the same, with two more threads\n"
                           "  --what tree             a child in one with a child of its own, and another child in another\n"
                           "  --what parent           this process in one with a child of its own, and an older child outside\n"
                           "  --what ranges           as root: two ranges of users and of groups, and users and groups of these\n"
                           "  --what strangers        as root: the same, and it is another user than the one who made it\n"
                           "  --what twice            one in another: refused\n"
                           "  --what shared           with a child that has its working directory and umask (CLONE_FS): refused\n"
                           "  --what late             a child with threads in one, this process not: refused\n";

#define GET_OWNER 0xb704
#define SOCKETS 100
enum { P, A, B, C, MANY };
static const char name[] = "PABC", *what = "root";

struct look {
    uid_t uid[3], fsuid, owner;
    gid_t gid[3], fsgid, groups[32];
    int many, securebits, dumpable;
    ino_t space;
    char uids[96], gids[96], caps[5][32], uid_map[256], gid_map[256], setgroups[16];
};
struct outside { // of a process, by this one
    uid_t owner;
    char uids[96], gids[96], caps[32], uid_map[256];
};
static struct look before[MANY];
static struct outside seen[MANY];
static pid_t pid[MANY];
static uid_t user; // outside
static int space[MANY]; // 0: the one around
static pthread_t thread[2];
static volatile int go;
static struct look of_thread[2];

static int own_option(const char *option, const char *value) {
    if (strcmp(option, "--what")) return 0;
    what = value;
    return 2;
}
static int (*option)(const char *, const char *) = own_option;
static bool is(const char *w) { return !strcmp(what, w); }
static bool ranged(void) { return user == 0 && (is("ranges") || is("strangers")); }
static void *waits(void *at);

static void put(const char *path, const char *format, ...) {
    char text[256];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    int fd = MUST(open(path, O_WRONLY | O_CLOEXEC));
    MUST(write(fd, text, n) == n ? 0 : -1);
    MUST(close(fd));
}
static uid_t owner(const char *path) {
    uid_t uid = -1;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || ioctl(fd, GET_OWNER, &uid)) uid = -2;
    close(fd);
    return uid;
}
static void see(struct look *l) {
    static const char *const sets[] = {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"};
    const char *status = "/proc/thread-self/status";
    memset(l, 0, sizeof *l);
    getresuid(&l->uid[0], &l->uid[1], &l->uid[2]);
    getresgid(&l->gid[0], &l->gid[1], &l->gid[2]);
    l->fsuid = syscall(SYS_setfsuid, -1);
    l->fsgid = syscall(SYS_setfsgid, -1);
    l->many = getgroups(32, l->groups);
    for (int i = 0; i < 5; i++) field(status, sets[i], l->caps[i], sizeof l->caps[i]);
    field(status, "Uid", l->uids, sizeof l->uids);
    field(status, "Gid", l->gids, sizeof l->gids);
    l->securebits = prctl(PR_GET_SECUREBITS);
    l->dumpable = prctl(PR_GET_DUMPABLE);
    slurp("/proc/self/uid_map", l->uid_map, sizeof l->uid_map);
    slurp("/proc/self/gid_map", l->gid_map, sizeof l->gid_map);
    slurp("/proc/self/setgroups", l->setgroups, sizeof l->setgroups);
    l->owner = owner("/proc/self/ns/user");
    struct stat s;
    l->space = stat("/proc/self/ns/user", &s) ? 0 : s.st_ino;
}
// What a process outside knows of one.
static void look_at(int i, struct outside *o) {
    char path[64];
    memset(o, 0, sizeof *o);
    snprintf(path, sizeof path, "/proc/%d/ns/user", pid[i]);
    o->owner = owner(path);
    snprintf(path, sizeof path, "/proc/%d/status", pid[i]);
    field(path, "Uid", o->uids, sizeof o->uids);
    field(path, "Gid", o->gids, sizeof o->gids);
    field(path, "CapEff", o->caps, sizeof o->caps);
    snprintf(path, sizeof path, "/proc/%d/uid_map", pid[i]);
    slurp(path, o->uid_map, sizeof o->uid_map);
}

// ---- one is made --------------------------------------------------------------------------------
static void enter(bool root) {
    uid_t uid = geteuid();
    gid_t gid = getegid();
    MUST(unshare(CLONE_NEWUSER));
    if (is("none")) return;
    put("/proc/self/setgroups", "deny");
    put("/proc/self/uid_map", "%d %d 1", root ? 0 : uid, uid);
    put("/proc/self/gid_map", "%d %d 1", root ? 0 : gid, gid);
}
static void caps(uint64_t without) {
    struct __user_cap_header_struct h = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct d[2];
    MUST(syscall(SYS_capget, &h, d));
    for (int i = 0; i < 2; i++) d[i].effective = d[i].permitted & ~(uint32_t)(without >> 32 * i);
    d[0].inheritable = 1 << CAP_CHOWN;
    MUST(syscall(SYS_capset, &h, d));
}
static void ranges(void) {
    int ready[2], done[2];
    MUST(pipe(ready));
    MUST(pipe(done));
    pid_t self = getpid(), writer = MUST(fork());
    char c = 0;
    if (!writer) { // from outside, with the right to
        char path[64];
        MUST(read(ready[0], &c, 1));
        snprintf(path, sizeof path, "/proc/%d/uid_map", self);
        put(path, "0 100000 1000\n5000 0 1");
        snprintf(path, sizeof path, "/proc/%d/gid_map", self);
        put(path, "0 200000 1000\n5000 0 1");
        MUST(write(done[1], &c, 1));
        _exit(0);
    }
    MUST(unshare(CLONE_NEWUSER));
    MUST(write(ready[1], &c, 1));
    MUST(read(done[0], &c, 1));
    MUST(waitpid(writer, NULL, 0));
    for (int i = 0; i < 2; i++) close(ready[i]), close(done[i]);
    MUST(setgroups(2, (gid_t[]){3, 77}));
    MUST(setresgid(1, 5000, 3));
    bool strange = is("strangers");
    MUST(prctl(PR_CAPBSET_DROP, CAP_SYS_TIME, 0, 0, 0));
    MUST(prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0));
    MUST(setresuid(strange ? 10 : 5000, strange ? 20 : 5000, strange ? 5000 : 20));
    caps(1ULL << CAP_SYS_CHROOT);
    MUST(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_CHOWN, 0, 0));
    setfsuid(40);
    MUST(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0));
}

// ---- relatives ----------------------------------------------------------------------------------
static int theirs(int i) { return SOCKETS + 2 * i + 1; }
static int ours(int i) { return SOCKETS + 2 * i; }
static void born(int i);
static void serve(int i) {
    char order;
    // it ends with who asks it
    for (int fd = SOCKETS; fd < SOCKETS + 2 * MANY; fd++)
        if (fd != theirs(i)) close(fd);
    while (read(theirs(i), &order, 1) == 1) {
        struct look l;
        see(&l);
        if (write(theirs(i), &l, sizeof l) != sizeof l) break;
    }
    _exit(0);
}
static void bear(int i) {
    pid_t child = MUST(fork());
    if (child) {
        pid[i] = child;
        if (getpid() == pid[P]) close(theirs(i));
        return;
    }
    born(i);
    serve(i);
}
static void born(int i) {
    pid_t self = getpid();
    if (is("tree") && i != B) enter(i == A);
    if (is("late")) {
        enter(true);
        MUST0(pthread_create(&thread[0], NULL, waits, &of_thread[0]));
    }
    if (is("tree") && i == A) bear(B), close(theirs(B));
    pid_t all[2] = {self, pid[B]};
    MUST(write(theirs(i), all, sizeof all));
}
static void ask(int i, struct look *l) {
    if (i == P) return see(l);
    char c = 'l';
    MUST(write(ours(i), &c, 1));
    size_t got = 0;
    while (got < sizeof *l) {
        ssize_t n = read(ours(i), (char *)l + got, sizeof *l - got);
        if (n <= 0) return fail("%c is gone", name[i]);
        got += n;
    }
}
static void meet(int i) {
    pid_t all[2];
    MUST(read(ours(i), all, sizeof all));
    if (i == A && is("tree")) pid[B] = all[1];
}
static void connect_all(void) {
    for (int i = A; i < MANY; i++) {
        int s[2];
        MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
        for (int k = 0; k < 2; k++) {
            MUST(dup2(s[k], SOCKETS + 2 * i + k));
            close(s[k]);
        }
    }
}

static void *waits(void *at) {
    while (!go) sleep_ms(2);
    see(at);
    return NULL;
}

static void setup(void) {
    pid[P] = getpid();
    user = geteuid();
    if (is("tree")) {
        connect_all();
        space[A] = space[B] = 1, space[C] = 2;
        bear(A);
        bear(C);
        for (int i = A; i <= C; i++) meet(i);
    } else if (is("parent")) {
        connect_all();
        space[P] = space[B] = 1;
        bear(A);
        meet(A);
        enter(true);
        bear(B);
        meet(B);
    } else if (is("late")) {
        connect_all();
        space[A] = 1;
        bear(A);
        meet(A);
    } else if (ranged()) {
        space[P] = 1;
        ranges();
    } else {
        space[P] = 1;
        enter(!is("same"));
        if (is("twice")) enter(true);
        if (is("shared") && !MUST(syscall(SYS_clone, CLONE_FS | SIGCHLD, 0, 0, 0, 0))) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            for (;;) pause();
        }
        if (is("threads"))
            for (int i = 0; i < 2; i++) MUST0(pthread_create(&thread[i], NULL, waits, &of_thread[i]));
    }
    for (int i = 0; i < MANY; i++)
        if (pid[i]) ask(i, &before[i]), look_at(i, &seen[i]);
}

static void spoil(void) {
    int one = space[P] ? P : A;
    if (is("none")) put("/proc/self/uid_map", "0 %d 1", user);
    else before[one].uid_map[strlen(before[one].uid_map) - 2] ^= 1, before[one].caps[2][9] ^= 1;
}

static void same(struct look *was, struct look *now, const char *who, bool own) {
    static const char *const sets[] = {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"};
    for (int k = 0; k < 3; k++) {
        CHECK_EQ(was->uid[k], now->uid[k], "%s: user ID %d inside", who, k);
        CHECK_EQ(was->gid[k], now->gid[k], "%s: group ID %d inside", who, k);
    }
    CHECK_EQ(was->fsuid, now->fsuid, "%s: file-system user ID inside", who);
    CHECK_EQ(was->fsgid, now->fsgid, "%s: file-system group ID inside", who);
    CHECK_EQ(was->many, now->many, "%s: how many supplementary groups", who);
    for (int k = 0; k < was->many && k < 32; k++) CHECK_EQ(was->groups[k], now->groups[k], "%s: group %d", who, k);
    for (int k = 0; k < 5; k++) CHECK_STR(was->caps[k], now->caps[k], "%s: %s", who, sets[k]);
    CHECK_STR(was->uids, now->uids, "%s: Uid in /proc", who);
    CHECK_STR(was->gids, now->gids, "%s: Gid in /proc", who);
    CHECK_HEX(was->securebits, now->securebits, "%s: secure bits", who);
    CHECK_EQ(was->dumpable, now->dumpable, "%s: dumpable", who);
    if (!own) return; // it is in another one around it
    CHECK_EQ(was->owner, now->owner, "%s: who made its user namespace", who);
    CHECK_STR(was->uid_map, now->uid_map, "%s: uid_map", who);
    CHECK_STR(was->gid_map, now->gid_map, "%s: gid_map", who);
    // an ordinary user's is restored into one that permits none
    if (!is("none") || !user) CHECK_STR(was->setgroups, now->setgroups, "%s: setgroups", who);
}
// What it may do, inside and outside.
static void does(void) {
    CHECK_ERRNO(EPERM, sethostname("x", 1), "the name of the machine, outside");
    CHECK_ERRNO(EPERM, setgroups(0, NULL), "setgroups");
    CHECK_OK(unshare(CLONE_NEWUTS), "what CAP_SYS_ADMIN inside is for");
    CHECK_OK(sethostname("inside", 6), "the name of the machine, inside");
    struct stat s;
    int fd = open(work("made"), O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    CHECK(fd >= 0 && !fstat(fd, &s), "a file that it makes");
    CHECK_EQ(before[P].uid[1], s.st_uid, "whose that is, as seen inside");
    CHECK_EQ(before[P].gid[1], s.st_gid, "whose group's that is, as seen inside");
    close(fd);
}
static void prove(void) {
    struct look now[MANY];
    pid[P] = getpid();
    for (int i = 0; i < MANY; i++) {
        if (!pid[i]) continue;
        struct outside o;
        char who[2] = {name[i], 0};
        ask(i, &now[i]);
        same(&before[i], &now[i], who, space[i]);
        for (int k = 0; k < i; k++)
            if (pid[k]) CHECK_EQ(space[i] == space[k], now[i].space == now[k].space, "whether %c and %c are in the same", name[i], name[k]);
        if (!space[i]) continue;
        look_at(i, &o);
        CHECK_EQ(seen[i].owner, o.owner, "%s: who made it, as this process sees it", who);
        CHECK_STR(seen[i].uids, o.uids, "%s: its users, as this process sees them", who);
        CHECK_STR(seen[i].gids, o.gids, "%s: its groups, as this process sees them", who);
        CHECK_STR(seen[i].caps, o.caps, "%s: its capabilities", who);
        CHECK_STR(seen[i].uid_map, o.uid_map, "%s: its map, as this process sees it", who);
    }
    if (is("threads")) {
        go = 1;
        for (int i = 0; i < 2; i++) {
            pthread_join(thread[i], NULL);
            same(&before[P], &of_thread[i], i ? "second thread" : "first thread", true);
        }
    }
    if (ranged()) {
        setfsuid(20);
        CHECK_OK(setgroups(1, (gid_t[]){5}), "setgroups");
        CHECK_OK(setresuid(7, 5000, 5000), "another user inside");
        CHECK_ERRNO(EPERM, chroot("/"), "a capability that it has given up");
    } else if (space[P] && !is("none")) {
        does();
    }
}
