#include "common.h"
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>

static const char *about = "listening unix sockets: by path, relative path, abstract name, stream and seqpacket; a bound datagram socket; one whose path is deleted; one autobound";

enum { PATH, RELATIVE, ABSTRACT, SEQPACKET, DGRAM, DELETED, AUTO, KINDS };
static const int types[] = {SOCK_STREAM, SOCK_STREAM, SOCK_STREAM, SOCK_SEQPACKET, SOCK_DGRAM, SOCK_STREAM, SOCK_STREAM};
static const char *const names[] = {"path", "relative path", "abstract name", "seqpacket", "datagram", "deleted path", "autobind"};
static int fds[KINDS], flags[KINDS];
static struct sockaddr_un bound[KINDS];
static socklen_t lengths[KINDS];
static mode_t mode_before;

static void name(int k, struct sockaddr_un *a, socklen_t *n) {
    *a = (struct sockaddr_un){.sun_family = AF_UNIX};
    const char *file = k == RELATIVE ? "r.sock" : k == PATH ? "p.sock" : k == SEQPACKET ? "s.sock" : k == DGRAM ? "d.sock" : "gone.sock";
    const char *path = k == RELATIVE ? file : work(file);
    if (k == ABSTRACT) { // with a zero byte inside
        int l = snprintf(a->sun_path + 1, 100, "dormouse-test-%d.%lx", (int)getpid(), (unsigned long)mono_ns());
        a->sun_path[l + 1] = 0, a->sun_path[l + 2] = 'z';
        *n = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + (size_t)l + 3);
        return;
    }
    if (k == AUTO) {
        *n = sizeof(sa_family_t);
        return;
    }
    if (strlen(path) >= sizeof a->sun_path) must_failed("DIR too deep for a unix socket", __FILE__, __LINE__, ENAMETOOLONG);
    strcpy(a->sun_path, path);
    *n = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path) + 1);
}
static void setup(void) {
    struct stat s;
    MUST(chdir(dir));
    for (int k = 0; k < KINDS; k++) {
        struct sockaddr_un a;
        socklen_t n;
        fds[k] = MUST(socket(AF_UNIX, types[k] | (k == ABSTRACT ? SOCK_CLOEXEC : SOCK_NONBLOCK), 0));
        name(k, &a, &n);
        if (k == PATH) MUST(setsockopt(fds[k], SOL_SOCKET, SO_PASSCRED, &(int){1}, sizeof(int)));
        MUST(bind(fds[k], (struct sockaddr *)&a, n));
        if (k != DGRAM) MUST(listen(fds[k], k == SEQPACKET ? 2 : 10 + k));
        lengths[k] = sizeof bound[k];
        MUST(getsockname(fds[k], (struct sockaddr *)&bound[k], &lengths[k]));
        flags[k] = fcntl(fds[k], F_GETFL);
    }
    MUST(chmod(work("p.sock"), 0620));
    MUST(stat(work("p.sock"), &s));
    mode_before = s.st_mode;
    MUST(unlink(work("gone.sock")));
}
static void spoil(void) { MUST(unlink(work("r.sock"))); }
static int wait_accept(int fd) {
    int s;
    for (int i = 0; (s = accept(fd, NULL, NULL)) < 0 && i < 100; i++) sleep_ms(2);
    return s;
}
static void prove(void) {
    struct stat s;
    for (int k = 0; k < KINDS; k++) {
        struct sockaddr_un a;
        socklen_t n = sizeof a;
        memset(&a, 0, sizeof a);
        CHECK_OK(getsockname(fds[k], (struct sockaddr *)&a, &n), "getsockname, %s", names[k]);
        CHECK_EQ(lengths[k], n, "length of the name, %s", names[k]);
        CHECK_MEM(&bound[k], &a, lengths[k] < sizeof a ? lengths[k] : sizeof a, "name, %s", names[k]);
        CHECK_EQ(flags[k], fcntl(fds[k], F_GETFL), "flags, %s", names[k]);
        CHECK_EQ(k == ABSTRACT ? FD_CLOEXEC : 0, fcntl(fds[k], F_GETFD), "close-on-exec, %s", names[k]);
        int listens = -1;
        n = sizeof listens;
        getsockopt(fds[k], SOL_SOCKET, SO_ACCEPTCONN, &listens, &n);
        CHECK_EQ(k != DGRAM, listens, "listens, %s", names[k]);
        int c = socket(AF_UNIX, types[k], 0);
        if (k == DELETED) {
            CHECK_ERRNO(ENOENT, connect(c, (struct sockaddr *)&bound[k], lengths[k]), "connecting to the deleted path");
            continue;
        }
        struct sockaddr_un to = bound[k];
        if (k == RELATIVE) strcpy(to.sun_path, work("r.sock"));
        n = k == RELATIVE ? (socklen_t)sizeof to : lengths[k];
        if (!CHECK_OK(connect(c, (struct sockaddr *)&to, n), "connecting, %s", names[k])) continue;
        char text[16] = "";
        CHECK_EQ(5, send(c, "hello", 5, 0), "sending, %s", names[k]);
        int peer = k == DGRAM ? fds[k] : wait_accept(fds[k]);
        CHECK_EQ(5, recv(peer, text, sizeof text, 0), "receiving, %s", names[k]);
        CHECK_STR("hello", text, "received, %s", names[k]);
        struct ucred u = {0};
        n = sizeof u;
        if (k != DGRAM) getsockopt(c, SOL_SOCKET, SO_PEERCRED, &u, &n); // of the listener
        if (k != DGRAM) CHECK_EQ(getpid(), u.pid, "SO_PEERCRED pid of the listener, %s", names[k]);
        if (k != DGRAM) CHECK_EQ(geteuid(), u.uid, "SO_PEERCRED uid of the listener, %s", names[k]);
        close(c);
        if (k != DGRAM) close(peer);
    }
    int passcred = 0, c[8];
    socklen_t n = sizeof passcred;
    getsockopt(fds[PATH], SOL_SOCKET, SO_PASSCRED, &passcred, &n);
    CHECK_EQ(1, passcred, "SO_PASSCRED");
    CHECK_OK(stat(work("p.sock"), &s), "the socket's file");
    CHECK_EQ(mode_before, s.st_mode, "its mode");
    int accepted = 0; // a backlog of 2 takes 3
    for (int i = 0; i < 8; i++) {
        c[i] = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0);
        accepted += connect(c[i], (struct sockaddr *)&bound[SEQPACKET], lengths[SEQPACKET]) == 0;
    }
    CHECK_EQ(3, accepted, "connections that a backlog of 2 takes");
}
