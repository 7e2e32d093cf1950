#include "common.h"
#include <arpa/inet.h>
#include <linux/io_uring.h>
#include <linux/netlink.h>
#include <linux/perf_event.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

static const char *about = "six things that are refused at once: an established TCP connection (with itself), io_uring with a registered file, perf, netlink, userfaultfd, memory that it watches; all unharmed by the refusal";

static int tcp, ring, watch, netlink, faults;
static char *watched;

static void setup(void) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof a;
    tcp = MUST(socket(AF_INET, SOCK_STREAM, 0)); // connected to itself: one descriptor, one established connection
    MUST(bind(tcp, (struct sockaddr *)&a, n)), MUST(getsockname(tcp, (struct sockaddr *)&a, &n));
    MUST(connect(tcp, (struct sockaddr *)&a, n));
    struct io_uring_params p = {0};
    ring = (int)syscall(SYS_io_uring_setup, 4, &p);
    if (ring >= 0) {
        int null = MUST(open("/dev/null", O_RDONLY | O_CLOEXEC));
        MUST(syscall(SYS_io_uring_register, ring, IORING_REGISTER_FILES, &null, 1));
        close(null);
    }
    if (ring < 0) ring = MUST(socket(AF_ALG, SOCK_SEQPACKET, 0)); // no io_uring here: a crypto socket is the second
    struct perf_event_attr count = {.type = PERF_TYPE_SOFTWARE, .size = sizeof count, .config = PERF_COUNT_SW_DUMMY, .exclude_kernel = 1, .exclude_hv = 1};
    watch = (int)MUST(syscall(SYS_perf_event_open, &count, 0, -1, -1, 0));
    netlink = MUST(socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE));
    MUST(bind(netlink, (struct sockaddr *)&(struct sockaddr_nl){.nl_family = AF_NETLINK}, sizeof(struct sockaddr_nl)));
    faults = (int)MUST(syscall(SYS_userfaultfd, UFFD_USER_MODE_ONLY | O_NONBLOCK));
    MUST(ioctl(faults, UFFDIO_API, &(struct uffdio_api){.api = UFFD_API}));
    watched = MUST(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    MUST(ioctl(faults, UFFDIO_REGISTER, &(struct uffdio_register){.range = {(uintptr_t)watched, PAGE}, .mode = UFFDIO_REGISTER_MODE_MISSING}));
    // For the test's eyes: which descriptor is which.
    char text[256];
    snprintf(text, sizeof text, "tcp %d\nio_uring %d\nperf %d\nnetlink %d\nuserfaultfd %d\nwatched %p\n", tcp, ring, watch, netlink, faults, (void *)watched);
    MUST(write_file("objects", text) ? 0 : -1);
}
static void spoil(void) { shutdown(tcp, SHUT_RDWR); }
static void prove(void) {
    char t[8] = "", events[512];
    struct stat s;
    CHECK_EQ(4, send(tcp, "ping", 4, MSG_NOSIGNAL), "sending by the connection");
    CHECK_EQ(4, recv(tcp, t, 4, MSG_WAITALL), "receiving by the connection");
    CHECK_MEM("ping", t, 4, "what was received");
    CHECK_OK(fstat(ring, &s), "the ring");
    CHECK_EQ(8, read(watch, events, sizeof events), "the count of perf");
    struct sockaddr_nl a = {0};
    socklen_t n = sizeof a;
    CHECK_OK(getsockname(netlink, (struct sockaddr *)&a, &n), "netlink");
    CHECK(a.nl_pid != 0, "netlink port");
    CHECK_ERRNO(EAGAIN, read(faults, events, sizeof events), "an event of userfaultfd");
    CHECK_OK(ioctl(faults, UFFDIO_UNREGISTER, &(struct uffdio_range){(uintptr_t)watched, PAGE}), "the memory that userfaultfd watches");
    *watched = 1;
}
