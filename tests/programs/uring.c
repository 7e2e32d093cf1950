#include "common.h"
#include "uring.h"
#include <dirent.h>
#include <sys/eventfd.h>

static const char *about = "three rings of io_uring, one without indices, one large with a thread that waits in it, used before, idle: completions that wait to be read, a registered buffer, prepared entries, more requests";
static const char *usage = "  --what eventfd|poll|timeout|submitted|buffers|worker|registered   one ring, which is refused\n";

static int (*option)(const char *, const char *) = what_option;

static struct ring one, two, large;
static pthread_t waiter;
static volatile pid_t waiter_tid;
static volatile int waited = -1;
static int file[2]; // a pipe
static char *fixed;

// Until a thread of the kernel's works for a ring of this process, or waits to.
static void worked_for(void) {
    for (bool found = false; !found; sleep_ms(2)) {
        DIR *tasks = opendir("/proc/self/task");
        for (struct dirent *d; tasks && (d = readdir(tasks));) {
            char path[300], text[256] = "";
            snprintf(path, sizeof path, "/proc/self/task/%s/stat", d->d_name);
            FILE *f = fopen(path, "re");
            if (f && fgets(text, sizeof text, f)) found |= strstr(text, "(iou-wrk-") && strstr(text, ") S ");
            if (f) fclose(f);
        }
        if (tasks) closedir(tasks);
    }
}
static void refused(void) {
    if (!make(&one, 4, 0, 0)) skip("no such ring");
    nothing(&one, 1);
    static struct __kernel_timespec hour = {.tv_sec = 3600};
    if (!strcmp(what, "eventfd")) {
        int fd = MUST(eventfd(0, 0));
        MUST(syscall(SYS_io_uring_register, one.fd, IORING_REGISTER_EVENTFD, &fd, 1));
    }
    if (!strcmp(what, "poll")) entry(&one, IORING_OP_READ, file[0], fixed, 4, 2), MUST(enter(&one, 0));
    if (!strcmp(what, "timeout")) entry(&one, IORING_OP_TIMEOUT, -1, &hour, 1, 2), MUST(enter(&one, 0));
    if (!strcmp(what, "submitted")) {
        entry(&one, IORING_OP_NOP, -1, NULL, 0, 2);
        *word(&one, one.p.sq_off.tail) = one.tail;
    }
    if (!strcmp(what, "buffers")) {
        entry(&one, IORING_OP_PROVIDE_BUFFERS, 1, fixed, 64, 2)->off = 0;
        one.sqes[one.p.sq_entries - 1 - (1 & (one.p.sq_entries - 1))].buf_group = 777;
        MUST(enter(&one, 1));
        finished(&one, 2, 0);
    }
    if (!strcmp(what, "registered")) {
        struct io_uring_rsrc_update u = {.offset = -1U, .data = (uint64_t)one.fd};
        MUST(syscall(SYS_io_uring_register, one.fd, IORING_REGISTER_RING_FDS, &u, 1));
    }
    if (!strcmp(what, "worker")) {
        MUST(mkfifo(work("fifo"), 0600));
        struct io_uring_sqe *e = entry(&one, IORING_OP_OPENAT, AT_FDCWD, (void *)work("fifo"), 0, 2);
        e->off = 0, e->flags = IOSQE_ASYNC, e->open_flags = O_RDONLY | O_CLOEXEC;
        MUST(enter(&one, 0));
        worked_for();
    }
}

static void *waits(void *arg) {
    waiter_tid = (int)tid_now();
    long r = syscall(SYS_io_uring_enter, large.fd, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0);
    return waited = r < 0 ? errno : 0, arg;
}
static void setup(void) {
    MUST(pipe(file));
    fixed = MUST(mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (what) {
        refused();
        return;
    }
    if (!make(&one, 8, IORING_SETUP_CQSIZE, 64)) skip("no io_uring: %s", strerror(errno));
    if (!make(&two, 16, IORING_SETUP_NO_SQARRAY, 0)) MUST(make(&two, 16, 0, 0) ? 0 : -1);
    MUST(syscall(SYS_io_uring_register, one.fd, IORING_REGISTER_BUFFERS, &(struct iovec){fixed, PAGE}, 1));
    MUST(fcntl(one.fd, F_DUPFD_CLOEXEC, 90));
    for (uint64_t i = 0; i < 1003; i++) nothing(&one, i);
    for (uint64_t i = 0; i < 21; i++) nothing(&two, i);
    MUST(write(file[1], "content", 7));
    entry(&one, IORING_OP_READ_FIXED, file[0], fixed, 3, 5001)->buf_index = 0;
    entry(&one, IORING_OP_NOP, -1, NULL, 0, 5002);
    MUST(enter(&one, 2)); // nobody reads these
    entry(&one, IORING_OP_NOP, -1, NULL, 0, 5003); // prepared, not submitted
    entry(&two, IORING_OP_NOP, -1, NULL, 0, 6000)->flags = IOSQE_ASYNC; // by a thread of the kernel's, which stays
    MUST(enter(&two, 1));
    finished(&two, 6000, 0);
    worked_for();
    entry(&two, IORING_OP_NOP, -1, NULL, 0, 6001);
    MUST(enter(&two, 1));
    if (!make(&large, 512, 0, 0)) must_failed("io_uring_setup", __FILE__, __LINE__, errno);
    nothing(&large, 1);
    MUST0(pthread_create(&waiter, NULL, waits, NULL));
    until_in_call(&waiter_tid, SYS_io_uring_enter);
}
static void spoil(void) {
    if (what) close(one.fd);
    else ((struct io_uring_cqe *)(one.rings + one.p.cq_off.cqes))[*word(&one, one.p.cq_off.head) & 63].user_data = 9;
}
static void prove(void) {
    if (what) {
        struct stat s;
        CHECK_OK(fstat(one.fd, &s), "the ring");
        if (!strcmp(what, "worker")) {
            CHECK_OK(open(work("fifo"), O_WRONLY | O_CLOEXEC), "the other end of what a request opens");
            CHECK_EQ(0, enter(&one, 1), "waiting for the request");
            CHECK(result_of(&one, 2) >= 0, "the request's descriptor");
        }
        return;
    }
    CHECK_EQ(-1, waited, "a thread waits for a completion");
    entry(&large, IORING_OP_NOP, -1, NULL, 0, 2);
    CHECK_EQ(1, enter(&large, 0), "a request for it");
    MUST0(pthread_join(waiter, NULL));
    CHECK_EQ(0, waited, "errno of its wait");
    finished(&large, 2, 0);
    finished(&one, 5001, 3), finished(&one, 5002, 0);
    CHECK_MEM("con", fixed, 3, "what was read before");
    CHECK_EQ(1, enter(&one, 1), "submitting what was prepared (errno %d)", errno);
    finished(&one, 5003, 0);
    entry(&one, IORING_OP_READ_FIXED, file[0], fixed + 8, 4, 5004)->buf_index = 0;
    CHECK_EQ(1, enter(&one, 1), "reading into the registered buffer");
    finished(&one, 5004, 4);
    CHECK_MEM("tent", fixed + 8, 4, "what was read now");
    finished(&two, 6001, 0);
    entry(&two, IORING_OP_NOP, -1, NULL, 0, 6002)->flags = IOSQE_ASYNC;
    CHECK_EQ(1, enter(&two, 1), "a request for a thread of the kernel's");
    finished(&two, 6002, 0);
    for (uint64_t i = 0; i < 300; i++) nothing(&one, i), nothing(&two, i); // round the rings
    for (uint64_t i = 0; i < 8; i++) entry(&one, IORING_OP_NOP, -1, NULL, 0, i); // full
    CHECK_EQ(8, enter(&one, 8), "a full queue");
    for (uint64_t i = 0; i < 8; i++) finished(&one, i, 0);
    CHECK_EQ(one.tail, *word(&one, one.p.sq_off.head), "the kernel's head");
    CHECK_EQ(0, *word(&one, one.p.sq_off.dropped), "entries that made no sense");
    // in flight across nothing: the ring polls, too
    entry(&two, IORING_OP_READ, file[0], fixed, 4, 7);
    CHECK_EQ(1, enter(&two, 0), "a read that waits");
    MUST(write(file[1], "late", 4));
    CHECK_EQ(0, enter(&two, 1), "waiting for it");
    finished(&two, 7, 4);
}
