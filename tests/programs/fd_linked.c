#include "common.h"

static const char *about = "a file that was deleted under its name and has another; a working directory that was deleted";

static int file;

static void setup(void) {
    file = MUST(open(work("first"), O_RDWR | O_CREAT, 0600));
    MUST(write(file, "has two names", 13));
    MUST(mkdir(work("elsewhere"), 0700)), MUST(link(work("first"), work("elsewhere/second")));
    MUST(unlink(work("first")));
    MUST(write_file("first", "another file") ? 0 : -1);
    MUST(lseek(file, 4, SEEK_SET));
    MUST(mkdir(work("cwd"), 0700)), MUST(chdir(work("cwd"))), MUST(rmdir(work("cwd")));
}
static void spoil(void) { MUST(lseek(file, 5, SEEK_SET)); }
static void prove(void) {
    struct stat a, b;
    char text[PATH_MAX] = "";
    CHECK_EQ(9, read(file, text, sizeof text), "reading on");
    CHECK_MEM("two names", text, 9, "what is there");
    CHECK_OK(stat(work("elsewhere/second"), &a), "its other name");
    fstat(file, &b);
    CHECK_EQ(a.st_ino, b.st_ino, "it is what has the other name");
    CHECK_EQ(3, write(file, "...", 3), "writing");
    CHECK_EQ(16, slurp(work("elsewhere/second"), text, sizeof text), "its length by the other name");
    CHECK_STR("has two names...", text, "its content by the other name");
    CHECK_ERRNO(ENOENT, (long)syscall(SYS_getcwd, text, sizeof text), "the working directory's name");
    CHECK_ERRNO(ENOENT, open("new", O_RDWR | O_CREAT, 0600), "making a file in it");
    CHECK_OK(stat(".", &a), "the working directory");
    CHECK_EQ(0, a.st_nlink, "its links");
    text[readlink("/proc/self/cwd", text, sizeof text - 1)] = 0;
    CHECK(strstr(text, " (deleted)"), "it was deleted");
}
