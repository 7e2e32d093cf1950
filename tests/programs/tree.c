// A tree of processes: `--what` says which. Each but the first serves the one above it over a pair of pipes: it answers questions about itself, does what it is
// told, and ends when its pipe does. What they say before the gate is held against what they say after it.
#include "common.h"
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

static const char *about = "parents, sessions, groups, the dead, the stopped, what relatives share: as it was";
static const char *usage = "  --what family|sessions|groups|orphans|reaper|zombies|stopped|files|locks|memory|threads|busy";
static const char *what = "family";

#define KIDS 64
enum { ASK = 'a', BEAR = 'b', SETSID = 's', GROUP = 'g', END = 'e', WAIT = 'w', LOCK = 'l', POKE = 'p', READ = 'r', EPOLL = 'o', THREADS = 't', REAPER = 'R', ORPHAN = 'O' };

// What a process says of itself.
struct facts {
    int pid, ppid, sid, pgid, threads, result;
    uint64_t hash;
    long long value;
};

struct order {
    int what, number;
    long long value;
};

// A process as the one above it knows it. Grandchildren are spoken to directly: everyone inherits all pipes that were made before.
struct kid {
    int in, out; // ends of the first process
    pid_t pid;
    struct facts then;
};
static struct kid kids[KIDS];
static int nkids;
static int pipes[KIDS][4]; // order read, order write, answer read, answer write

static char *own;        // private memory, different in each
static volatile long long *shared; // one for all
#define OWN (256 * 1024)
static int common_file, common_pipe[2], common_pair[2], common_event;
static volatile bool stop_threads;

static int count_threads(void) {
    char text[32];
    return atoi(field("/proc/self/status", "Threads", text, sizeof text));
}

static void *sleeper(void *unused) {
    (void)unused;
    for (;;) {
        struct timespec t = {1000, 0};
        nanosleep(&t, NULL);
    }
    return NULL;
}

static void serve(int me);

// A child of this process that serves on the pipes of kid `n`.
static pid_t bear(int n) {
    pid_t pid = fork();
    if (pid == 0) serve(n);
    return pid;
}

static void __attribute__((noreturn)) serve(int me) {
    // its own ends stay: of all others' pipes the ends that would keep those from ending go
    for (int i = 0; i < KIDS; i++) {
        if (!pipes[i][0]) continue;
        close(pipes[i][1]), close(pipes[i][2]);
    }
    memset(own, 0, OWN);
    fill(own, OWN, 1000 + (uint64_t)me);
    int epoll = -1;
    for (;;) {
        struct order o;
        ssize_t n = read(pipes[me][0], &o, sizeof o);
        if (n != sizeof o) _exit(0);
        struct facts f = {0};
        switch (o.what) {
        case BEAR: f.result = bear(o.number); break;
        case ORPHAN: { // born by a helper that ends
            pid_t helper = fork();
            if (helper == 0) {
                if (o.value) setsid();
                bear(o.number);
                _exit(0);
            }
            int status;
            waitpid(helper, &status, 0);
            f.result = helper;
            break;
        }
        case SETSID: f.result = setsid(); break;
        case GROUP: f.result = setpgid(0, (pid_t)o.value); break;
        case REAPER: f.result = prctl(PR_SET_CHILD_SUBREAPER, 1); break;
        case END:
            if (o.value > 0) raise((int)o.value);
            _exit(o.number);
        case WAIT: {
            int status = 0;
            f.result = waitpid((pid_t)o.value, &status, 0);
            f.value = status;
            break;
        }
        case LOCK: {
            struct flock l = {.l_type = F_WRLCK, .l_start = o.value, .l_len = 1};
            f.result = fcntl(common_file, F_SETLK, &l);
            break;
        }
        case POKE: *shared = o.value; break;
        case READ: {
            char b[64] = "";
            f.result = (int)read(o.number, b, (size_t)o.value);
            memcpy(&f.value, b, sizeof f.value);
            break;
        }
        case EPOLL: {
            if (epoll < 0) {
                struct epoll_event e = {.events = EPOLLIN, .data.u64 = 77};
                epoll = epoll_create1(0);
                f.result = epoll_ctl(epoll, EPOLL_CTL_ADD, common_event, &e);
            } else {
                struct epoll_event e = {0};
                f.result = epoll_wait(epoll, &e, 1, (int)o.value);
                f.value = (long long)e.data.u64;
            }
            break;
        }
        case THREADS:
            for (int i = 0; i < o.number; i++) {
                pthread_t t;
                f.result |= pthread_create(&t, NULL, sleeper, NULL);
            }
            break;
        }
        f.pid = (int)syscall(SYS_getpid), f.ppid = (int)syscall(SYS_getppid);
        f.sid = getsid(0), f.pgid = getpgid(0);
        f.threads = count_threads();
        f.hash = hash(own, OWN);
        if (o.what != READ && o.what != WAIT && o.what != EPOLL) f.value = *shared;
        if (write(pipes[me][3], &f, sizeof f) != sizeof f) _exit(1);
    }
}

static struct facts tell(int n, struct order o) {
    struct facts f = {0};
    MUST(write(kids[n].out, &o, sizeof o));
    ssize_t got = 0;
    struct pollfd p = {kids[n].in, POLLIN, 0};
    int come;
    while ((come = poll(&p, 1, 20000)) == -1 && errno == EINTR) __atomic_fetch_add(&eintr_seen, 1, __ATOMIC_SEQ_CST);
    if (come != 1) {
        fail("process %d answers, expected it within 20 s, got nothing", n);
        finish();
    }
    while ((got = read(kids[n].in, &f, sizeof f)) == -1 && errno == EINTR) __atomic_fetch_add(&eintr_seen, 1, __ATOMIC_SEQ_CST);
    if (got != sizeof f) {
        fail("process %d answers, expected %zu bytes, got %zd", n, sizeof f, got);
        finish();
    }
    return f;
}
#define TELL(n, ...) tell(n, (struct order){__VA_ARGS__})

// Kid n, below kid `parent` (-1: below the first process).
static void kid(int n, int parent) {
    kids[n].in = pipes[n][2], kids[n].out = pipes[n][1];
    kids[n].pid = parent < 0 ? MUST(bear(n)) : TELL(parent, BEAR, n, 0).result;
    nkids = n + 1 > nkids ? n + 1 : nkids;
}

// One whose parent has ended: the helper's own parent is kid `from`.
static void orphan(int n, int from, bool session) {
    kids[n].in = pipes[n][2], kids[n].out = pipes[n][1];
    int helper = TELL(from, ORPHAN, n, session).result;
    // until it has another parent
    struct facts f;
    do f = TELL(n, ASK, 0, 0);
    while (f.ppid == helper);
    kids[n].pid = f.pid;
    nkids = n + 1 > nkids ? n + 1 : nkids;
}

static bool is(const char *w) { return !strcmp(what, w); }

static bool answers(int n) { return kids[n].pid && !(is("zombies") && n > 0 && n != 7) && !(is("stopped") && n == 1); }

// Tells a process to end, and waits until it has.
static void dies(int n, struct order how) {
    MUST(write(kids[n].out, &how, sizeof how));
    char path[64], state[64] = "";
    snprintf(path, sizeof path, "/proc/%d/status", kids[n].pid);
    while (field(path, "State", state, sizeof state)[0] != 'Z') sched_yield();
}

static void setup_zombies(void) {
    kid(0, -1);
    kid(1, 0), kid(2, 0), kid(3, 0);
    dies(1, (struct order){END, 7, 0}), dies(2, (struct order){END, 0, SIGTERM}), dies(3, (struct order){END, 0, 0});
    // one that leads a group in which another lives
    kid(6, 0), kid(7, 0);
    CHECK_EQ(0, TELL(6, GROUP, 0, 0).result, "a group");
    CHECK_EQ(0, TELL(7, GROUP, 0, kids[6].pid).result, "in it");
    dies(6, (struct order){END, 5, 0});
    // groups in which nobody lives: led by a dead one, by one that has been waited for, and by one that leads a session; those led come first
    for (int i = 8; i < 13; i++) kid(i, 0);
    const int leaders[] = {8, 10};
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(0, TELL(leaders[i], GROUP, 0, 0).result, "a group");
        CHECK_EQ(0, TELL(leaders[i] + 1, GROUP, 0, kids[leaders[i]].pid).result, "in it");
    }
    CHECK_EQ(kids[12].pid, TELL(12, SETSID, 0, 0).result, "a session");
    for (int i = 9; i < 13; i++) dies(i, (struct order){END, i, 0});
    dies(8, (struct order){END, 8, 0});
    CHECK_EQ(kids[10].pid, TELL(0, WAIT, 0, kids[10].pid).result, "waiting for it");
    // and one of its own
    pid_t pid = MUST(fork());
    if (pid == 0) _exit(99);
    siginfo_t info;
    MUST(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT));
    kids[5].pid = pid;
}

static void setup_files(void) {
    common_file = MUST(open(work("common"), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
    MUST(write(common_file, "0123456789abcdefghij", 20));
    MUST(lseek(common_file, 4, SEEK_SET));
    MUST(pipe2(common_pipe, 0));
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, common_pair));
    common_event = MUST(eventfd(0, EFD_NONBLOCK));
    kid(0, -1), kid(1, 0), kid(2, -1);
    MUST(write(common_pipe[1], "pipe 12345678", 13));
    MUST(write(common_pair[0], "pair 12345678", 13));
    MUST(flock(common_file, LOCK_EX));
    CHECK_EQ(0, TELL(1, EPOLL, 0, 0).result, "the set");
    CHECK_EQ(8, TELL(0, READ, common_file, 8).result, "a read");
}

static int option_(const char *name, const char *value) {
    if (strcmp(name, "--what") || !value) return 0;
    what = value;
    return 2;
}
static int (*option)(const char *, const char *) = option_;

static void *churn(void *unused) {
    (void)unused;
    while (!stop_threads) {
        pid_t pid = fork();
        if (pid == 0) {
            execl("/bin/true", "true", (char *)NULL);
            _exit(0);
        }
        int status = 0;
        pid_t got;
        while ((got = waitpid(pid, &status, 0)) == -1 && errno == EINTR) __atomic_fetch_add(&eintr_seen, 1, __ATOMIC_SEQ_CST);
        if (pid > 0) {
            CHECK_EQ(pid, got, "waiting for it");
            CHECK_EQ(0, status, "the status of true");
        }
    }
    return NULL;
}
static pthread_t churner;

static void setup(void) {
    own = MUST(mmap(NULL, OWN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    fill(own, OWN, 999);
    shared = MUST(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    *shared = 4711;
    signal(SIGPIPE, SIG_IGN);
    int need = is("threads") ? 20 : is("zombies") ? 13 : 8;
    for (int i = 0; i < need; i++) {
        MUST(pipe2(pipes[i], 0));
        MUST(pipe2(pipes[i] + 2, 0));
    }
    if (is("family") || is("memory")) {
        kid(0, -1), kid(1, -1), kid(2, 0), kid(3, 0), kid(4, 2);
    } else if (is("sessions")) {
        kid(0, -1), kid(1, 0); // older than the session of 0
        CHECK(TELL(0, SETSID, 0, 0).result > 0, "a session");
        kid(2, 0); // in it
        kid(3, 2);
        CHECK(TELL(3, SETSID, 0, 0).result > 0, "a session in a session");
        kid(4, 1);
    } else if (is("groups")) {
        kid(0, -1), kid(1, -1), kid(2, -1), kid(3, 0);
        CHECK_EQ(0, TELL(0, GROUP, 0, 0).result, "a group of its own");
        CHECK_EQ(0, TELL(1, GROUP, 0, kids[0].pid).result, "another's group");
        CHECK_EQ(0, TELL(2, GROUP, 0, 0).result, "a group");
        CHECK_EQ(0, TELL(3, GROUP, 0, kids[2].pid).result, "a group whose leader ends");
        struct order end = {END, 0, 0};
        MUST(write(kids[2].out, &end, sizeof end));
        MUST(waitpid(kids[2].pid, NULL, 0));
        kids[2].pid = 0;
    } else if (is("orphans")) {
        kid(0, -1);
        orphan(1, 0, false);
        orphan(2, 0, true); // in a session whose leader is gone
        kid(3, 2);
        orphan(4, 0, false); // in one of its own
        TELL(4, SETSID, 0, 0);
    } else if (is("reaper")) {
        kid(0, -1);
        CHECK_EQ(0, TELL(0, REAPER, 0, 0).result, "a reaper");
        kid(1, 0);
        orphan(2, 1, false);
        orphan(3, 1, true);
        orphan(4, 1, true); // another session whose leader is gone
        kid(5, 3), kid(6, 4);
    } else if (is("zombies")) {
        setup_zombies();
    } else if (is("stopped")) {
        kid(0, -1), kid(1, 0);
        MUST(kill(kids[1].pid, SIGSTOP));
        char path[64], state[64] = "";
        snprintf(path, sizeof path, "/proc/%d/status", kids[1].pid);
        while (field(path, "State", state, sizeof state)[0] != 'T') sched_yield();
    } else if (is("files")) {
        setup_files();
    } else if (is("locks")) {
        common_file = MUST(open(work("common"), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
        kid(0, -1), kid(1, -1);
        CHECK_EQ(0, TELL(0, LOCK, 0, 3).result, "a lock");
        CHECK_EQ(0, TELL(1, LOCK, 0, 5).result, "a lock");
    } else if (is("threads")) {
        for (int i = 0; i < 20; i++) kid(i, i < 4 ? -1 : i - 4);
        for (int i = 0; i < 20; i++) CHECK_EQ(0, TELL(i, THREADS, 4, 0).result, "threads");
    } else if (is("busy")) {
        kid(0, -1);
        MUST0(pthread_create(&churner, NULL, churn, NULL));
    } else {
        fail("no such tree: %s", what);
        finish();
    }
    for (int i = 0; i < nkids; i++)
        if (answers(i)) kids[i].then = TELL(i, ASK, 0, 0);
    if (is("memory")) TELL(3, POKE, 0, 12);
}

static void spoil(void) {
    if (is("zombies")) waitpid(kids[5].pid, NULL, 0);
    else if (is("stopped")) kill(kids[1].pid, SIGCONT);
    else if (is("files")) MUST(lseek(common_file, 1, SEEK_CUR));
    else if (is("locks")) TELL(0, READ, common_file, 1), kids[0].then.pid++;
    else if (is("memory")) *shared = 1;
    else if (is("busy")) kids[0].then.pid++;
    else kids[nkids - 1].then.ppid++, kids[nkids - 1].then.hash++;
}

static void same(int n) {
    struct facts now = TELL(n, ASK, 0, 0), *then = &kids[n].then;
    CHECK_EQ(then->pid, now.pid, "PID of process %d", n);
    // an orphan's is its session's supervisor or the init of its namespace
    if (!(is("orphans") && (n == 1 || n == 2 || n == 4))) CHECK_EQ(then->ppid, now.ppid, "parent of process %d", n);
    bool outside = then->sid != (int)getpid() && !getenv("DORMOUSE_TEST_SID_MAY_CHANGE");
    for (int i = 0; i < nkids; i++) outside = outside && then->sid != kids[i].pid;
    if (!outside || (is("orphans") && n > 1)) CHECK_EQ(then->sid, now.sid, "session of process %d", n);
    CHECK_EQ(then->pgid, now.pgid, "group of process %d", n);
    CHECK_EQ(then->threads, now.threads, "threads of process %d", n);
    CHECK_HEX(then->hash, now.hash, "memory of process %d", n);
}

static void prove_zombies(void) {
    const int led[][2] = {{8, 8}, {9, 8}, {11, 10}, {1, 0}};
    for (int i = 0; i < 4; i++) {
        pid_t group = led[i][1] ? kids[led[i][1]].pid : getpgid(kids[0].pid);
        CHECK_EQ(group, getpgid(kids[led[i][0]].pid), "the group of the dead %d", led[i][0]);
    }
    const int expected[] = {7 << 8, SIGTERM, 0};
    for (int i = 0; i < 3; i++) {
        struct facts f = TELL(0, WAIT, 0, kids[i + 1].pid);
        CHECK_EQ(kids[i + 1].pid, f.result, "the dead child %d", i);
        CHECK_EQ(expected[i], f.value & ~0x80, "its status");
    }
    struct facts f = TELL(0, WAIT, 0, kids[6].pid);
    CHECK_EQ(kids[6].pid, f.result, "the dead leader of a group");
    CHECK_EQ(5 << 8, f.value, "its status");
    CHECK_EQ(kids[12].pid, getsid(kids[12].pid), "the session of a dead one");
    CHECK_EQ(getsid(kids[0].pid), getsid(kids[11].pid), "the session of the others");
    f = TELL(0, WAIT, 0, -kids[10].pid);
    CHECK_EQ(kids[11].pid, f.result, "whom a group that nobody leads leaves behind");
    CHECK_EQ(11 << 8, f.value, "its status");
    long long both = 0;
    for (int i = 0; i < 2; i++) f = TELL(0, WAIT, 0, -kids[8].pid), both += f.result;
    CHECK_EQ((long long)kids[8].pid + kids[9].pid, both, "a dead leader and its group");
    int status = 0;
    CHECK_EQ(kids[5].pid, waitpid(kids[5].pid, &status, WNOHANG), "the first process's own dead child");
    CHECK_EQ(99 << 8, status, "its status");
}

static void prove_files(void) {
    CHECK_EQ(12, lseek(common_file, 0, SEEK_CUR), "the offset that all share");
    struct facts f = TELL(1, READ, common_file, 4);
    CHECK_EQ(4, f.result, "a grandchild's read");
    CHECK_MEM("cdef", &f.value, 4, "what it read");
    CHECK_EQ(16, lseek(common_file, 0, SEEK_CUR), "the offset after that");
    f = TELL(2, READ, common_pipe[0], 8);
    CHECK_MEM("pipe 123", &f.value, 8, "the pipe's content");
    f = TELL(0, READ, common_pipe[0], 5);
    CHECK_MEM("45678", &f.value, 5, "the rest of it");
    f = TELL(1, READ, common_pair[1], 8);
    CHECK_MEM("pair 123", &f.value, 8, "the pair's content");
    CHECK_EQ(0, TELL(1, EPOLL, 0, 0).result, "nothing has happened");
    uint64_t one = 1;
    CHECK_OK(write(common_event, &one, 8), "an event");
    f = TELL(1, EPOLL, 0, 1000);
    CHECK_EQ(1, f.result, "the grandchild's set sees it");
    CHECK_EQ(77, f.value, "its data");
    int again = MUST(open(work("common"), O_RDWR | O_CLOEXEC));
    CHECK_ERRNO(EWOULDBLOCK, flock(again, LOCK_EX | LOCK_NB), "the lock that all hold");
    CHECK_OK(flock(common_file, LOCK_UN), "letting it go");
    CHECK_OK(flock(again, LOCK_EX | LOCK_NB), "taking it");
}

static void prove_locks(void) {
    int f = MUST(open(work("common"), O_RDWR | O_CLOEXEC));
    for (int i = 0; i < 8; i++) {
        struct flock l = {.l_type = F_WRLCK, .l_start = i, .l_len = 1};
        CHECK_OK(fcntl(f, F_GETLK, &l), "asking");
        CHECK_EQ(i == 3 ? kids[0].pid : i == 5 ? kids[1].pid : 0, l.l_type == F_UNLCK ? 0 : l.l_pid, "who locks byte %d", i);
    }
}

static void prove(void) {
    if (is("busy")) {
        stop_threads = true;
        MUST0(pthread_join(churner, NULL));
    }
    for (int i = 0; i < nkids; i++)
        if (answers(i)) same(i);
    CHECK_HEX(({ static char p[OWN]; fill(p, OWN, 999); hash(p, OWN); }), hash(own, OWN), "own memory");
    if (is("memory")) {
        CHECK_EQ(12, *shared, "shared memory, as a grandchild has left it");
        TELL(4, POKE, 0, 99);
        CHECK_EQ(99, *shared, "what another one writes");
        CHECK_EQ(99, TELL(1, ASK, 0, 0).value, "what a third one sees");
    }
    if (is("zombies")) prove_zombies();
    if (is("files")) prove_files();
    if (is("locks")) prove_locks();
    if (is("stopped")) {
        char path[64], state[64] = "";
        snprintf(path, sizeof path, "/proc/%d/status", kids[1].pid);
        CHECK_EQ('T', field(path, "State", state, sizeof state)[0], "its state");
        CHECK_OK(kill(kids[1].pid, SIGCONT), "letting it go on");
        struct facts f = TELL(1, ASK, 0, 0);
        CHECK_EQ(kids[1].pid, f.pid, "its PID");
        CHECK_EQ(kids[0].pid, f.ppid, "its parent");
    }
}
