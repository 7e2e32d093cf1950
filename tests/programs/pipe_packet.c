#include "common.h"

static const char *about = "pipes in packet mode (O_DIRECT): packets keep their borders; and a pipe that mixes both";

static int packets[2], mixed[2];

static void setup(void) {
    char big[3000];
    memset(big, 'b', sizeof big);
    MUST(pipe2(packets, O_DIRECT | O_NONBLOCK));
    MUST(write(packets[1], "one", 3));
    MUST(write(packets[1], big, sizeof big));
    MUST(write(packets[1], "three", 5));
    MUST(pipe2(mixed, O_NONBLOCK));
    MUST(write(mixed[1], "str", 3));
    MUST(write(mixed[1], "eam", 3)); // merges with the former
    MUST(fcntl(mixed[1], F_SETFL, O_DIRECT | O_NONBLOCK));
    MUST(write(mixed[1], "packet", 6));
}
static void spoil(void) { MUST(write(packets[1], "four", 4)); }
static void prove(void) {
    char t[4096];
    CHECK_EQ(O_DIRECT | O_NONBLOCK, fcntl(packets[1], F_GETFL) & (O_DIRECT | O_NONBLOCK), "flags of the writing end");
    CHECK_EQ(3, read(packets[0], t, sizeof t), "first packet");
    CHECK_EQ(2, read(packets[0], t, 2), "part of the second: the rest is thrown away");
    CHECK_EQ(5, read(packets[0], t, sizeof t), "third packet");
    CHECK_MEM("three", t, 5, "third packet");
    CHECK_ERRNO(EAGAIN, read(packets[0], t, 1), "another packet");
    CHECK_EQ(4, write(packets[1], "last", 4), "a packet sent now");
    CHECK_EQ(2, write(packets[1], "!!", 2), "another one");
    CHECK_EQ(4, read(packets[0], t, sizeof t), "reads as a packet");
    CHECK_EQ(O_DIRECT, fcntl(mixed[1], F_GETFL) & O_DIRECT, "flags of the mixed pipe");
    CHECK_EQ(6, read(mixed[0], t, 6), "stream part of the mixed pipe");
    CHECK_MEM("stream", t, 6, "stream part of the mixed pipe");
    CHECK_EQ(6, read(mixed[0], t, sizeof t), "packet of the mixed pipe");
    CHECK_MEM("packet", t, 6, "packet of the mixed pipe");
}
