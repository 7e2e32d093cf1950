#include "common.h"

static const char *about = "files of /proc and /sys, with positions: of the machine, of the process itself; a file opened with O_DIRECT";
static const char *usage = "  --what other|thread   only one, about another process or a thread: refused\n";

static int (*option)(const char *, const char *) = what_option;

static int stat_file, comm, mem, version, writable, sys_file, direct;
static char version_text[256], sys_text[64];
static volatile uint64_t word = 0x1234567890abcdef;

static void setup(void) {
    if (what) {
        char path[64];
        if (!strcmp(what, "other")) snprintf(path, sizeof path, "/proc/%d/stat", getppid());
        else snprintf(path, sizeof path, "/proc/self/task/%d/stat", getpid());
        stat_file = MUST(open(path, O_RDONLY));
        return;
    }
    stat_file = MUST(open("/proc/self/stat", O_RDONLY | O_CLOEXEC));
    comm = MUST(open("/proc/self/comm", O_RDONLY));
    MUST(pthread_setname_np(pthread_self(), "of-a-file") ? -1 : 0);
    char text[4];
    MUST(read(comm, text, 3));
    mem = MUST(open("/proc/self/mem", O_RDWR));
    MUST(lseek(mem, (off_t)(uintptr_t)&word, SEEK_SET));
    writable = MUST(open("/proc/self/comm", O_WRONLY));
    version = MUST(open("/proc/version", O_RDONLY));
    MUST(pread(version, version_text, sizeof version_text - 1, 0));
    MUST(lseek(version, 6, SEEK_SET));
    sys_file = MUST(open("/sys/kernel/mm/transparent_hugepage/enabled", O_RDONLY));
    MUST(pread(sys_file, sys_text, sizeof sys_text - 1, 0));
    direct = open(work("direct"), O_RDWR | O_CREAT | O_DIRECT, 0600); // not every file system has it
    if (direct >= 0) MUST(lseek(direct, 4096, SEEK_SET));
}
static void spoil(void) { MUST(lseek(version, 7, SEEK_SET)); }
static void prove(void) {
    char text[1024] = "";
    if (what) {
        CHECK_RANGE(1, INT_MAX, read(stat_file, text, sizeof text), "reading it");
        return;
    }
    CHECK_RANGE(1, INT_MAX, read(stat_file, text, sizeof text - 1), "reading /proc/self/stat");
    CHECK_EQ(getpid(), atoi(text), "whose it is");
    CHECK_EQ(FD_CLOEXEC, fcntl(stat_file, F_GETFD), "close-on-exec");
    CHECK_EQ(7, read(comm, text, sizeof text), "reading on in /proc/self/comm");
    CHECK_MEM("a-file\n", text, 7, "what is there");
    CHECK_EQ((off_t)(uintptr_t)&word, lseek(mem, 0, SEEK_CUR), "position in /proc/self/mem");
    uint64_t got = 0;
    CHECK_EQ(8, read(mem, &got, 8), "reading its own memory");
    CHECK_HEX(word, got, "what is there");
    CHECK_EQ(5, write(writable, "other", 5), "writing to /proc/self/comm");
    CHECK_EQ(0, pthread_getname_np(pthread_self(), text, sizeof text), "the name");
    CHECK_STR("other", text, "the name that was written");
    CHECK_EQ(6, lseek(version, 0, SEEK_CUR), "position in /proc/version");
    memset(text, 0, sizeof text);
    CHECK_RANGE(1, INT_MAX, read(version, text, sizeof text - 1), "reading /proc/version");
    CHECK_STR(version_text + 6, text, "what is there");
    memset(text, 0, sizeof text);
    CHECK_RANGE(1, INT_MAX, read(sys_file, text, sizeof text - 1), "reading a file of /sys");
    CHECK_STR(sys_text, text, "what is there");
    if (direct < 0) return;
    static char block[4096] __attribute__((aligned(4096)));
    CHECK_HEX(O_RDWR | O_DIRECT, fcntl(direct, F_GETFL) & (O_ACCMODE | O_DIRECT), "flags of the direct one");
    CHECK_EQ(4096, write(direct, block, 4096), "writing directly");
    CHECK_EQ(8192, lseek(direct, 0, SEEK_CUR), "its position");
}
