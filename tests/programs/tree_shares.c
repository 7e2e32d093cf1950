// A tree whose processes share what clone(2) lets them, and are no threads:
//
//     P --- A --- B      C has what P has until it has borne D, and X what E and F have until it has borne them
//      \--- C --- D
//       \-- X --- E, F
#include "common.h"
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

static const char *about = "processes that share working directory and umask, descriptors, or either with others";
static const char *usage = "  --what fs|files|both|mixed   what is shared (both)\n"
                           "  --what apart                 X leads a session and ends: what E and F share (CLONE_FS) is refused";

enum { P, A, B, C, D, X, E, F, MANY };
enum { FS, FILES, KINDS };
#define SOCKETS 100 // their descriptors, 2 each
#define FIRST_FREE 50
#define LOOK 160 // descriptors that are looked at
#define LOCKED 40
static const int flag[KINDS] = {CLONE_FS, CLONE_FILES}, parent[MANY] = {-1, P, A, P, C, P, X, X};
static const char name[] = "PABCDXEF", *what = "both";
static bool apart;
// With what each is born, and what it leaves when it has borne others.
static int born[MANY], leaves[MANY];
// With whom each shares: those with the same number.
static int group[MANY][KINDS], groups;

struct order { char op; int a; char path[PATH_MAX]; };
struct answer { long value; char text[PATH_MAX]; };
struct table { unsigned char bits[LOOK]; }; // of each descriptor: 1 it is open, 2 close-on-exec

static int own_option(const char *option, const char *value) {
    if (strcmp(option, "--what")) return 0;
    what = value;
    return 2;
}
static int (*option)(const char *, const char *) = own_option;

static int mine(int i) { return SOCKETS + 2 * i; }
static int theirs(int i) { return SOCKETS + 2 * i + 1; }

static void leave(int i, int flags) {
    for (int k = 0; k < KINDS; k++)
        if (flags & flag[k]) group[i][k] = groups++;
}
static void plan(void) {
    int both = CLONE_FS | CLONE_FILES, all = !strcmp(what, "fs") ? CLONE_FS : !strcmp(what, "files") ? CLONE_FILES : both;
    bool mixed = !strcmp(what, "mixed");
    apart = !strcmp(what, "apart");
    if (apart) all = CLONE_FS;
    MUST(mixed || apart || !strcmp(what, "both") || all != both ? 0 : -1);
    for (int i = A; i < MANY; i++) born[i] = i == X ? 0 : all;
    leaves[C] = leaves[X] = all;
    if (mixed) born[A] = CLONE_FS, born[B] = born[C] = born[F] = CLONE_FILES, leaves[C] = CLONE_FILES, leaves[X] = CLONE_FS;
    leave(P, both);
    for (int i = A; i < MANY; i++) {
        leave(i, both);
        for (int k = 0; k < KINDS; k++)
            if (born[i] & flag[k]) group[i][k] = group[parent[i]][k];
        if (i == D || i == F) leave(parent[i], leaves[parent[i]]);
    }
}

static struct table table(void) {
    struct table t;
    for (int fd = 0; fd < LOOK; fd++) {
        int flags = fcntl(fd, F_GETFD);
        t.bits[fd] = flags < 0 ? 0 : flags & FD_CLOEXEC ? 3 : 1;
    }
    return t;
}

static struct answer obey(const struct order *o) {
    struct answer a = {0};
    struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    errno = 0;
    switch (o->op) {
    case 'c': a.value = chdir(o->path); break;
    case 'w': a.value = getcwd(a.text, sizeof a.text) ? 0 : -1; break;
    case 'u': a.value = (long)umask((mode_t)o->a); break;
    case 'm': a.value = (long)umask(0), umask((mode_t)a.value); break; // nobody else does anything
    case 'o': a.value = open(o->path, O_RDONLY | (o->a ? O_CLOEXEC : 0)); break;
    case 'x': a.value = close(o->a); break;
    case 'd': a.value = dup2(FIRST_FREE, o->a); break;
    case 'e': a.value = fcntl(o->a, F_SETFD, FD_CLOEXEC); break;
    case 't': { struct table t = table(); memcpy(a.text, &t, sizeof t); } break;
    case 'l': a.value = unshare(o->a); break;
    case 'L': a.value = fcntl(LOCKED, F_SETLK, &l); break;
    case 'G': a.value = fcntl(LOCKED, F_GETLK, &l) ? -1 : l.l_type; break;
    }
    if (a.value == -1) snprintf(a.text, sizeof a.text, "%s", strerror(errno));
    return a;
}

static void __attribute__((noreturn)) serves(int i);
static void bear(int i) {
    for (int c = i + 1; c < MANY; c++) {
        if (parent[c] != i) continue;
        pid_t pid = (pid_t)MUST(syscall(SYS_clone, (long)born[c] | SIGCHLD, 0L, 0L, 0L, 0L));
        if (!pid) serves(c);
        struct answer a;
        MUST(recv(mine(c), &a, sizeof a, MSG_WAITALL) == sizeof a ? 0 : -1); // it has its own children, too
    }
    if (leaves[i]) MUST(unshare(leaves[i]));
}
static void serves(int i) {
    struct answer a = {0};
    bool left = apart && (i == E || i == F);
    if (!left) prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (int k = A; left && k < MANY; k++) close(mine(k)); // when P ends, so do they
    if (apart && i == X) MUST(setsid());
    bear(i);
    if (apart && i == X) _exit(send(theirs(i), &a, sizeof a, MSG_NOSIGNAL) != sizeof a);
    for (;;) {
        struct order o;
        if (send(theirs(i), &a, sizeof a, MSG_NOSIGNAL) != sizeof a) _exit(9);
        ssize_t n;
        while ((n = recv(theirs(i), &o, sizeof o, MSG_WAITALL)) < 0 && errno == EINTR) {}
        if (n != sizeof o) _exit(8);
        a = obey(&o);
    }
}

static struct answer ask(int i, char op, int arg, const char *path) {
    struct order o = {.op = op, .a = arg};
    struct answer a = {.value = -2};
    if (path) snprintf(o.path, sizeof o.path, "%s", path);
    if (i == P) return obey(&o);
    CHECK_EQ(sizeof o, send(mine(i), &o, sizeof o, MSG_NOSIGNAL), "asking %c for %c", name[i], op);
    CHECK_EQ(sizeof a, recv(mine(i), &a, sizeof a, MSG_WAITALL), "%c's answer to %c", name[i], op);
    return a;
}

// What each has to have: of each group as it was made or changed last.
static char place[3 * MANY][PATH_MAX];
static int mask[3 * MANY];
static struct table open_in[3 * MANY];

static char *folder(const char *of, int i) {
    static char path[PATH_MAX + 64];
    snprintf(path, sizeof path, "%s/%s%c", dir, of, name[i]);
    return path;
}
static void at(int i) {
    struct answer a = ask(i, 'w', 0, NULL);
    CHECK_STR(place[group[i][FS]], a.text, "working directory of %c", name[i]);
    CHECK_EQ(mask[group[i][FS]], ask(i, 'm', 0, NULL).value, "umask of %c", name[i]);
}
static void has(int i) {
    struct table t, *want = &open_in[group[i][FILES]];
    struct answer a = ask(i, 't', 0, NULL);
    memcpy(&t, a.text, sizeof t);
    for (int fd = 0; fd < LOOK; fd++) CHECK_EQ(want->bits[fd], t.bits[fd], "descriptor %d of %c", fd, name[i]);
}
static int next(int i) { return apart && i + 1 == X ? X + 1 : i + 1; }
static void all(void) {
    for (int i = P; i < MANY; i = next(i)) at(i), has(i);
}

static void setup(void) {
    plan();
    for (int fd = 3; fd < LOOK; fd++) close(fd);
    int file = (int)MUST(open(work("file"), O_RDWR | O_CREAT | O_CLOEXEC, 0666));
    for (int fd = file + 1; fd < FIRST_FREE; fd++) MUST(fcntl(file, F_DUPFD, fd)); // so that a hole would be seen
    for (int i = A; i < MANY; i++) {
        int ends[2];
        MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, ends));
        MUST(dup2(ends[0], mine(i))), MUST(dup2(ends[1], theirs(i)));
        close(ends[0]), close(ends[1]);
    }
    MUST(dup2(file, FIRST_FREE));
    MUST(open(work("locked"), O_RDWR | O_CREAT | O_CLOEXEC, 0666)); // the lowest one that is free
    MUST(dup2(FIRST_FREE + 1, LOCKED)), close(FIRST_FREE + 1);
    for (int i = 0; i < MANY; i++) MUST(mkdir(folder("was", i), 0777)), MUST(mkdir(folder("is", i), 0777));
    bear(P);
    if (apart) MUST(waitpid(-1, NULL, 0));
    // each group as one of it likes
    for (int i = P; i < MANY; i = next(i)) {
        snprintf(place[group[i][FS]], PATH_MAX, "%s", folder("was", i));
        MUST(ask(i, 'c', 0, place[group[i][FS]]).value);
        MUST(ask(i, 'u', mask[group[i][FS]] = 010 + i, NULL).value);
    }
    for (int i = P; i < MANY; i = next(i)) {
        int n = 60 + i;
        MUST(ask(i, 'd', n, NULL).value);
        if (i % 2) MUST(ask(i, 'e', n, NULL).value);
    }
    for (int i = P; i < MANY; i = next(i)) {
        struct answer a = ask(i, 't', 0, NULL);
        memcpy(&open_in[group[i][FILES]], a.text, sizeof(struct table));
    }
    MUST(ask(A, 'L', 0, NULL).value);
    all();
    MUST(failures_count ? -1 : 0);
}
static void spoil(void) { ask(F, 'l', born[F], NULL); }

static void prove(void) {
    all();
    for (int i = P; i < MANY; i = next(i)) {
        int held = group[i][FILES] == group[A][FILES] ? F_UNLCK : F_WRLCK;
        CHECK_EQ(held, ask(i, 'G', 0, NULL).value, "the lock of A as %c sees it", name[i]);
    }
    for (int i = P; i < MANY; i = next(i)) {
        snprintf(place[group[i][FS]], PATH_MAX, "%s", folder("is", i));
        CHECK_EQ(0, ask(i, 'c', 0, place[group[i][FS]]).value, "chdir of %c", name[i]);
        CHECK_EQ(mask[group[i][FS]], ask(i, 'u', 020 + i, NULL).value, "umask of %c before", name[i]);
        mask[group[i][FS]] = 020 + i;
        struct table *t = &open_in[group[i][FILES]];
        int lowest = 0;
        while (t->bits[lowest]) lowest++;
        CHECK_EQ(lowest, ask(i, 'o', i % 2, work("file")).value, "what open gives %c", name[i]);
        t->bits[lowest] = i % 2 ? 3 : 1;
        CHECK_EQ(0, ask(i, 'x', 10 + i, NULL).value, "close of %c", name[i]);
        t->bits[10 + i] = 0;
        all();
    }
}
