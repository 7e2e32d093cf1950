#include "common.h"
#include <linux/aio_abi.h>

static const char *about = "two contexts of asynchronous I/O (io_setup), a small and a large one, used before, idle: they take requests again under their old names";
static const char *usage = "  --unread         a completion that nobody has read, which is refused\n";

static bool unread;
static aio_context_t small, large;
static int file;
static int own_option(const char *name, const char *value) { (void)value; return !strcmp(name, "--unread") ? unread = true, 1 : 0; }
static int (*option)(const char *, const char *) = own_option;

static void submit(aio_context_t c, char *into, uint64_t data) {
    struct iocb cb = {.aio_data = data, .aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = (uint32_t)file, .aio_buf = (uintptr_t)into, .aio_nbytes = 7}, *list = &cb;
    CHECK_EQ(1, syscall(SYS_io_submit, c, 1, &list), "requests taken (errno %d)", errno);
}
static void finished(aio_context_t c, uint64_t data) {
    struct io_event e = {0};
    CHECK_EQ(1, syscall(SYS_io_getevents, c, 1, 1, &e, &(struct timespec){2, 0}), "completions (errno %d)", errno);
    CHECK_EQ(data, e.data, "data of the completion");
    CHECK_EQ(7, e.res, "result of the completion");
}
static void setup(void) {
    static char buffer[8];
    file = MUST(open(work("data"), O_RDWR | O_CREAT, 0600));
    MUST(write(file, "content", 7));
    MUST(syscall(SYS_io_setup, 3, &small)), MUST(syscall(SYS_io_setup, 1000, &large));
    for (int i = 0; i < 5; i++) submit(small, buffer, 1), finished(small, 1);
    if (unread) submit(small, buffer, 4);
}
static void spoil(void) { syscall(SYS_io_destroy, large); }
static void prove(void) {
    char a[8] = "", b[8] = "";
    if (unread) finished(small, 4);
    submit(small, a, 2), submit(large, b, 3);
    finished(small, 2), finished(large, 3);
    CHECK_STR("content", a, "what was read by the small context");
    CHECK_STR("content", b, "what was read by the large context");
    for (uint64_t i = 0; i < 300; i++) submit(small, a, i), finished(small, i); // round the ring
}
