#include "common.h"
#include <pthread.h>
#include <sys/socket.h>

static const char *about = "descriptors that come and go all the time: a file, a TCP socket, a socket pair; a checkpoint in between";

static volatile int stop;
static volatile long rounds, errors;
static int kept;

static void *churn(void *arg) {
    for (; !stop; rounds++) {
        int pair[2], file = open("/dev/null", O_RDWR), sock = socket(AF_INET, SOCK_STREAM, 0);
        if (file < 0 || sock < 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) {
            errors++;
            break;
        }
        if (write(pair[0], "x", 1) != 1 || read(pair[1], &(char){0}, 1) != 1 || write(file, "x", 1) != 1) errors++;
        close(file), close(sock), close(pair[0]), close(pair[1]);
    }
    return arg;
}
static pthread_t thread;
static void setup(void) {
    kept = MUST(open("/dev/zero", O_RDONLY));
    if (pthread_create(&thread, NULL, churn, NULL)) exit(3);
    while (rounds < 100) sleep_ms(1);
}
static void spoil(void) { errors++; }
static void prove(void) {
    char c = 1;
    long before = rounds;
    for (int i = 0; i < 1000 && rounds < before + 100; i++) sleep_ms(5);
    CHECK(rounds >= before + 100, "rounds go on");
    stop = 1;
    pthread_join(thread, NULL);
    CHECK_EQ(0, errors, "failures in the rounds");
    CHECK_EQ(1, read(kept, &c, 1), "reading the one that stays");
    CHECK_EQ(0, c, "what was read");
}
