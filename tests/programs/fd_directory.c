#include "common.h"
#include <dirent.h>

static const char *about = "directories: a listing half-way resumes, each name once; openat and fchdir; O_PATH descriptors of a file, a directory and a symbolic link";

#define N 500
static int half, fresh, path_file, path_dir, path_link;
static char seen[N];

static int take(long limit) { // entries of `half`, in small bites; marks them
    struct entry {
        uint64_t ino;
        int64_t off;
        unsigned short len;
        unsigned char type;
        char name[];
    };
    char buffer[512];
    long n, taken = 0;
    while (taken < limit && (n = syscall(SYS_getdents64, half, buffer, sizeof buffer)) > 0)
        for (long i = 0; i < n; taken++) {
            struct entry *e = (void *)(buffer + i);
            int number;
            if (sscanf(e->name, "entry-%d", &number) == 1 && number >= 0 && number < N) seen[number]++;
            i += e->len;
        }
    return (int)taken;
}
static void setup(void) {
    char name[64];
    MUST(mkdir(work("many"), 0755));
    for (int i = 0; i < N; i++) {
        snprintf(name, sizeof name, "many/entry-%d", i);
        close(MUST(open(work(name), O_WRONLY | O_CREAT, 0600)));
    }
    MUST(symlink("entry-1", work("link")));
    half = MUST(open(work("many"), O_RDONLY | O_DIRECTORY));
    take(N / 2);
    fresh = MUST(open(work("many"), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    path_file = MUST(open(work("many/entry-7"), O_PATH));
    path_dir = MUST(open(work("many"), O_PATH | O_DIRECTORY | O_CLOEXEC));
    path_link = MUST(open(work("link"), O_PATH | O_NOFOLLOW));
}
static void spoil(void) { take(20), memset(seen, 0, sizeof seen); }
static void prove(void) {
    struct stat s;
    char text[PATH_MAX] = "", link[64];
    take(LONG_MAX);
    for (int i = 0; i < N; i++) CHECK_EQ(1, seen[i], "times entry-%d was listed", i);
    CHECK_EQ(0, lseek(fresh, 0, SEEK_CUR), "position of the directory not yet read");
    int fd = openat(fresh, "entry-9", O_RDONLY);
    CHECK(fd >= 0, "openat by the directory");
    fd = openat(path_dir, "entry-9", O_RDONLY);
    CHECK(fd >= 0, "openat by the O_PATH directory");
    CHECK_OK(fchdir(path_dir), "fchdir");
    CHECK_OK(getcwd(text, sizeof text), "getcwd");
    CHECK_STR(work("many"), text, "working directory by it");
    CHECK_EQ(O_PATH, fcntl(path_file, F_GETFL) & (O_PATH | O_ACCMODE), "flags of the O_PATH file");
    CHECK_ERRNO(EBADF, read(path_file, text, 1), "read of the O_PATH file");
    CHECK_EQ(FD_CLOEXEC, fcntl(path_dir, F_GETFD), "close-on-exec of the O_PATH directory");
    CHECK_OK(fstat(path_link, &s), "fstat of the symbolic link");
    CHECK(S_ISLNK(s.st_mode), "the symbolic link still is one");
    snprintf(link, sizeof link, "/proc/self/fd/%d", path_file);
    memset(text, 0, sizeof text);
    CHECK_OK(readlink(link, text, sizeof text - 1), "name of the O_PATH file");
    CHECK_STR(work("many/entry-7"), text, "name of the O_PATH file");
    lseek(half, 0, SEEK_SET), memset(seen, 0, sizeof seen);
    CHECK_EQ(N + 2, take(LONG_MAX), "entries after a rewind");
}
