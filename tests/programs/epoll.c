#include "common.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>

static const char *about = "epoll sets: level, edge, one-shot (fired and not), exclusive, data values, on pipe, eventfd, timerfd, socket and epoll; targets closed but alive by a dup; a thread waiting";

static int ep, alone, outer, quiet, quiet_event, edge_pipe[2], level_pipe[2], shot, fired, timer, pair[2], shadow[2], shadow_alive, reused[2], later_pipe[2];
static char before[4096];
static volatile int waiting_started;
static pthread_t waiter;
static struct epoll_event waited;
static int waited_result;

static void add(int set, int fd, uint32_t events, uint64_t data) {
    MUST(epoll_ctl(set, EPOLL_CTL_ADD, fd, &(struct epoll_event){.events = events, .data.u64 = data}));
}
static int compare(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }
static void members(char *out) { // of the set, sorted: descriptor, events, data
    static char text[8192];
    char path[64], *line, *rest = text, *lines[64];
    size_t n = 0;
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", ep);
    slurp(path, text, sizeof text);
    while ((line = strsep(&rest, "\n")))
        if (!strncmp(line, "tfd:", 4) && n < 64) {
            char *pos = strstr(line, " pos:");
            if (pos) *pos = 0;
            lines[n++] = line;
        }
    qsort(lines, n, sizeof lines[0], compare);
    for (size_t i = out[0] = 0; i < n; i++) strcat(strcat(out, lines[i]), "\n");
}
static void *wait_in_it(void *arg) {
    waiting_started = 1;
    waited_result = (int)syscall(SYS_epoll_wait, quiet, &waited, 1, -1);
    return arg;
}
static void setup(void) {
    uint64_t one = 1;
    ep = MUST(epoll_create1(EPOLL_CLOEXEC));
    MUST(pipe(level_pipe)), MUST(pipe(edge_pipe)), MUST(pipe(later_pipe)), MUST(pipe(shadow));
    add(ep, level_pipe[0], EPOLLIN, 0x1111);
    add(ep, level_pipe[1], EPOLLOUT | EPOLLET, 0x1112); // one edge of it at once, not yet reported
    add(ep, edge_pipe[0], EPOLLIN | EPOLLET, 0x2222222222222222);
    shot = MUST(eventfd(0, EFD_NONBLOCK));
    add(ep, shot, EPOLLIN | EPOLLONESHOT, 0x3333);
    fired = MUST(eventfd(0, EFD_NONBLOCK));
    timer = MUST(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK));
    add(ep, timer, EPOLLIN, 0x5555);
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    add(ep, pair[0], EPOLLIN | EPOLLRDHUP | EPOLLPRI, UINT64_MAX);
    // Registered, then closed, alive by a dup: still reports. Its number is then taken by another, registered too.
    add(ep, shadow[0], EPOLLIN, 0x7777);
    shadow_alive = MUST(fcntl(shadow[0], F_DUPFD, 200));
    close(shadow[0]);
    MUST(pipe(reused)); // takes the free number
    if (reused[0] != shadow[0]) must_failed("the closed number is taken again", __FILE__, __LINE__, EBADF);
    add(ep, reused[0], EPOLLIN, 0x8888);
    alone = MUST(eventfd(0, EFD_NONBLOCK)); // of those that wait one is woken; fdinfo shows the bit
    add(ep, alone, EPOLLIN | EPOLLEXCLUSIVE, 0xcccc);
    outer = MUST(epoll_create1(0));
    add(outer, later_pipe[0], EPOLLIN, 0x9999);
    add(ep, outer, EPOLLIN, 0xaaaa);
    // The fired one-shot and its silence.
    add(ep, fired, EPOLLIN | EPOLLONESHOT, 0x4444);
    MUST(write(fired, &one, 8));
    struct epoll_event e[16];
    int n = MUST(epoll_wait(ep, e, 16, 0)), seen = 0;
    for (int i = 0; i < n; i++) seen += e[i].data.u64 == 0x4444;
    if (!seen) must_failed("the one-shot fires", __FILE__, __LINE__, ENOMSG);
    // Now what is to be reported afterwards.
    MUST(write(level_pipe[1], "l", 1));
    MUST(write(edge_pipe[1], "e", 1));
    MUST(write(shot, &one, 8));
    MUST(write(pair[1], "s", 1));
    MUST(write(shadow[1], "d", 1));
    MUST(write(reused[1], "r", 1));
    MUST(write(later_pipe[1], "n", 1));
    quiet = MUST(epoll_create1(0));
    quiet_event = MUST(eventfd(0, 0));
    add(quiet, quiet_event, EPOLLIN, 0xbbbb);
    MUST0(pthread_create(&waiter, NULL, wait_in_it, NULL));
    while (!waiting_started) sleep_ms(1);
    sleep_ms(20);
    members(before);
}
static void spoil(void) { MUST(epoll_ctl(ep, EPOLL_CTL_DEL, pair[0], NULL)); }
static uint32_t events_of(uint64_t data, int *times) { // of the whole set, now
    struct epoll_event e[32];
    uint32_t events = 0;
    int n = epoll_wait(ep, e, 32, 0);
    for (int i = *times = 0; i < n; i++)
        if (e[i].data.u64 == data) events |= e[i].events, ++*times;
    return events;
}
static void prove(void) {
    static const struct { uint64_t data; uint32_t events; const char *what; bool maybe; } want[] = {
        {0x1111, EPOLLIN, "the level-triggered pipe", false},
        {0x1112, EPOLLOUT, "the edge reported before", true}, // may be reported again after a restore
        {0x2222222222222222, EPOLLIN, "the edge not yet reported", false},
        {0x3333, EPOLLIN, "the one-shot", false},
        {UINT64_MAX, EPOLLIN, "the socket", false},
        {0x7777, EPOLLIN, "the closed pipe that lives by its dup", false},
        {0x8888, EPOLLIN, "the pipe that took its number", false},
        {0xaaaa, EPOLLIN, "the epoll in the epoll", false}};
    char now[4096];
    struct epoll_event e[32];
    int times;
    members(now);
    CHECK_STR(before, now, "members by fdinfo");
    CHECK_EQ(FD_CLOEXEC, fcntl(ep, F_GETFD), "close-on-exec");
    int n = epoll_wait(ep, e, 32, 0), known = 0;
    for (size_t w = 0; w < COUNT(want); w++) {
        int found = 0;
        for (int i = 0; i < n; i++)
            if (e[i].data.u64 == want[w].data) {
                found++;
                CHECK_HEX(want[w].events, e[i].events, "events of %s", want[w].what);
            }
        known += found;
        if (!want[w].maybe || found) CHECK_EQ(1, found, "reports of %s", want[w].what);
    }
    CHECK_EQ(known, n, "events altogether");
    CHECK_HEX(EPOLLIN, events_of(0x1111, &times), "the level, reported again");
    events_of(0x2222222222222222, &times);
    CHECK_EQ(0, times, "reports of the edge once more");
    MUST(write(edge_pipe[1], "f", 1));
    CHECK_HEX(EPOLLIN, events_of(0x2222222222222222, &times), "a new edge");
    events_of(0x3333, &times);
    CHECK_EQ(0, times, "reports of the one-shot once more");
    CHECK_OK(epoll_ctl(ep, EPOLL_CTL_MOD, fired, &(struct epoll_event){.events = EPOLLIN | EPOLLONESHOT, .data.u64 = 0x4445}), "re-arming the fired one-shot");
    CHECK_HEX(EPOLLIN, events_of(0x4445, &times), "the fired one-shot, re-armed");
    CHECK_OK(timerfd_settime(timer, 0, &(struct itimerspec){{0, 0}, {0, 1}}, NULL), "timer");
    sleep_ms(2);
    CHECK_HEX(EPOLLIN, events_of(0x5555, &times), "the timer");
    close(pair[1]);
    // who looks at it through /proc/PID/fdinfo holds it for an instant
    unsigned events = 0;
    for (int i = 0; i < 1000 && !(events & EPOLLHUP); i++, sleep_ms(1)) events = events_of(UINT64_MAX, &times);
    CHECK_HEX(EPOLLIN | EPOLLRDHUP | EPOLLHUP, events, "the socket, its peer closed");
    CHECK_EQ(8, write(alone, &(uint64_t){1}, 8), "the exclusive one");
    CHECK_HEX(EPOLLIN, events_of(0xcccc, &times), "events of the exclusive one");
    close(shadow_alive);
    events_of(0x7777, &times);
    CHECK_EQ(0, times, "reports of the pipe whose last descriptor is closed");
    uint64_t one = 1;
    CHECK_EQ(8, write(quiet_event, &one, 8), "waking the waiting thread");
    struct timespec limit;
    clock_gettime(CLOCK_REALTIME, &limit), limit.tv_sec += 5;
    CHECK_EQ(0, pthread_timedjoin_np(waiter, NULL, &limit), "the waiting thread comes back");
    CHECK_EQ(1, waited_result, "what its epoll_wait gave");
    CHECK_HEX(0xbbbb, waited.data.u64, "its data");
}
