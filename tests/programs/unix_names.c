#include "common.h"
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>

static const char *about = "a connection to the program's own unix listener (by path, and abstract), and a datagram socket with a queue whose file was deleted";
static int number, listener[2], client[2], server[2], gone;

static socklen_t named(struct sockaddr_un *a, const char *name, bool abstract) {
    *a = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (!abstract) return strcpy(a->sun_path, name), (socklen_t)sizeof *a;
    snprintf(a->sun_path + 1, sizeof a->sun_path - 1, "dormouse-%s-%d", name, number);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(a->sun_path + 1));
}
static void setup(void) {
    struct sockaddr_un a;
    MUST(chdir(dir));
    number = (int)getpid();
    for (int i = 0; i < 2; i++) {
        socklen_t n = named(&a, "own.sock", i);
        listener[i] = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
        client[i] = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
        MUST(bind(listener[i], (void *)&a, n));
        MUST(listen(listener[i], 3));
        MUST(connect(client[i], (void *)&a, n));
        server[i] = MUST(accept(listener[i], NULL, NULL));
        MUST(write(client[i], "waiting", 7));
    }
    socklen_t n = named(&a, "gone.sock", false);
    gone = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
    int from = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
    MUST(bind(gone, (void *)&a, n));
    MUST(sendto(from, "queued", 6, 0, (void *)&a, n));
    MUST(unlink("gone.sock"));
    close(from);
}
static void spoil(void) { unlink("own.sock"); }
static void prove(void) {
    char got[16];
    struct sockaddr_un a;
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(7, read(server[i], got, sizeof got), "what waited in connection %d", i);
        CHECK_EQ(4, write(server[i], "back", 4), "answering in connection %d", i);
        CHECK_EQ(4, read(client[i], got, sizeof got), "the answer in connection %d", i);
        socklen_t n = named(&a, "own.sock", i);
        int c = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
        CHECK_EQ(0, connect(c, (void *)&a, n), "connecting to listener %d again", i);
        close(c);
    }
    CHECK_EQ(6, recv(gone, got, sizeof got, MSG_DONTWAIT), "the datagram at the deleted name");
    CHECK_EQ(-1, access("gone.sock", F_OK), "the deleted name");
}
