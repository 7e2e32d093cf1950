#include "common.h"
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/resource.h>

static const char *about = "inotify: watches of a directory, a file, a symbolic link, a deleted file, with their numbers and masks; far numbers; two instances";

static const char *usage = "  --hidden   only one watch, of a directory that its owner cannot reach any more\n"
                           "  --unread   only one watch, with an event that was not read\n";
static bool hidden, unread;
static int own_option(const char *name, const char *value) {
    (void)value;
    if (!strcmp(name, "--hidden")) return hidden = true, 1;
    return !strcmp(name, "--unread") ? unread = true, 1 : 0;
}
static int (*option)(const char *, const char *) = own_option;

static int watch, other, gone, wd_dir, wd_file, wd_link, wd_gone, wd_deep, wd_far;
static char before[2][8192];

static void members(int fd, char *out) { // its watches by fdinfo
    char path[64], *line;
    static char text[8192];
    char *rest = text;
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
    slurp(path, text, sizeof text);
    for (out[0] = 0; (line = strsep(&rest, "\n"));) {
        char *inode = strstr(line, " ino:"), *mask = strstr(line, " mask:"), *ignored = strstr(line, " ignored_mask");
        if (strncmp(line, "inotify ", 8) || !inode || !mask || !ignored) continue;
        bool deleted = strncmp(line + 8, "wd:", 3) == 0 && (int)strtol(line + 11, NULL, 16) == wd_gone && fd == watch;
        *ignored = 0;
        if (deleted) memmove(inode, mask, strlen(mask) + 1); // it is another inode in a restored one
        strcat(strcat(out, line), "\n");
    }
}
static void touch(const char *name) { close(MUST(open(work(name), O_CREAT | O_WRONLY, 0600))); }
static void setup(void) {
    if (hidden || unread) {
        MUST(mkdir(work("hidden"), 0700)), MUST(mkdir(work("hidden/watched"), 0700));
        watch = MUST(inotify_init1(IN_NONBLOCK));
        wd_dir = MUST(inotify_add_watch(watch, work("hidden/watched"), IN_CREATE));
        if (unread) touch("hidden/watched/early");
        else MUST(chmod(work("hidden"), 0));
        return;
    }
    MUST(mkdir(work("watched"), 0700)), MUST(mkdir(work("watched/deep"), 0700));
    close(MUST(open(work("file"), O_RDWR | O_CREAT, 0600)));
    MUST(symlink("file", work("link")));
    gone = MUST(open(work("gone"), O_RDWR | O_CREAT, 0600));
    watch = MUST(inotify_init1(IN_NONBLOCK | IN_CLOEXEC)), other = MUST(inotify_init1(IN_NONBLOCK));
    MUST(dup2(other, 77));
    for (int i = 0; i < 3; i++) { // numbers that were used and are free again
        int wd = MUST(inotify_add_watch(watch, dir, IN_CREATE));
        MUST(inotify_rm_watch(watch, wd));
    }
    wd_dir = MUST(inotify_add_watch(watch, work("watched"), IN_CREATE | IN_DELETE | IN_MOVED_TO | IN_ONLYDIR | IN_EXCL_UNLINK));
    wd_file = MUST(inotify_add_watch(watch, work("link"), IN_MODIFY | IN_ATTRIB)); // through the link
    wd_link = MUST(inotify_add_watch(watch, work("link"), IN_DELETE_SELF | IN_DONT_FOLLOW));
    wd_gone = MUST(inotify_add_watch(watch, work("gone"), IN_MODIFY));
    MUST(unlink(work("gone")));
    wd_deep = MUST(inotify_add_watch(watch, work("watched/deep"), IN_CREATE | IN_ONESHOT));
    for (wd_far = 0; wd_far < 5000;) { // a far number, made by the kernel one by one
        if (wd_far) MUST(inotify_rm_watch(other, wd_far));
        wd_far = MUST(inotify_add_watch(other, work("watched"), IN_CREATE));
    }
    char junk[8192];
    for (int fd = 0; fd < 2;) fd += read(fd ? other : watch, junk, sizeof junk) <= 0; // IN_IGNORED of what was taken off
    members(watch, before[0]), members(other, before[1]);
}
static void spoil(void) { MUST(inotify_rm_watch(watch, wd_link)); }

static void next(int fd, int wd, uint32_t mask, const char *name, const char *what) { // the next event is this one
    static struct { char data[4096] __attribute__((aligned(8))); ssize_t len, at; int fd; } q = {.fd = -1};
    if (q.at >= q.len || q.fd != fd) q.fd = fd, q.at = 0, q.len = read(fd, q.data, sizeof q.data);
    if (q.len < (ssize_t)sizeof(struct inotify_event)) {
        fail("%s, expected an event, got %s", what, q.len < 0 ? strerror(errno) : "none");
        return;
    }
    struct inotify_event *e = (struct inotify_event *)(q.data + q.at);
    q.at += (ssize_t)(sizeof *e + e->len);
    CHECK_EQ(wd, e->wd, "watch of %s", what);
    CHECK_HEX(mask, e->mask, "event of %s", what);
    CHECK_STR(name, e->len ? e->name : "", "name in the event of %s", what);
}
static void prove(void) {
    char now[8192];
    int fd;
    if (hidden || unread) {
        struct stat s;
        bool here = stat(work("restored"), &s) != 0;
        MUST(chmod(work("hidden"), 0700));
        if (unread && here) next(watch, wd_dir, IN_CREATE, "early", "the event that was not read");
        touch("hidden/watched/late");
        next(watch, wd_dir, IN_CREATE, "late", "a new event");
        return;
    }
    members(watch, now);
    CHECK_STR(before[0], now, "watches by fdinfo");
    members(other, now);
    CHECK_STR(before[1], now, "watches of the second instance");
    CHECK_EQ(FD_CLOEXEC, fcntl(watch, F_GETFD), "close-on-exec");
    CHECK_EQ(O_NONBLOCK, fcntl(watch, F_GETFL) & O_NONBLOCK, "non-blocking");
    CHECK_ERRNO(EAGAIN, read(watch, now, sizeof now), "an event that nobody made");
    CHECK_ERRNO(EAGAIN, read(other, now, sizeof now), "an event that nobody made, in the second instance");
    close(fd = MUST(open(work("watched/new"), O_CREAT | O_WRONLY, 0600)));
    next(watch, wd_dir, IN_CREATE, "new", "a new file");
    next(77, wd_far, IN_CREATE, "new", "a new file, by a dup of the second instance");
    MUST(unlink(work("watched/new")));
    next(watch, wd_dir, IN_DELETE, "new", "a deleted file");
    MUST(chmod(work("file"), 0640));
    next(watch, wd_file, IN_ATTRIB, "", "the file behind the link");
    MUST(write(gone, "x", 1));
    next(watch, wd_gone, IN_MODIFY, "", "the file that has no name");
    MUST(unlink(work("link")));
    next(watch, wd_link, IN_DELETE_SELF, "", "the link");
    next(watch, wd_link, IN_IGNORED, "", "the link's watch, which is over");
    close(MUST(open(work("watched/deep/a"), O_CREAT | O_WRONLY, 0600)));
    next(watch, wd_deep, IN_CREATE, "a", "one event of a one-shot watch");
    next(watch, wd_deep, IN_IGNORED, "", "its end");
    CHECK_ERRNO(EAGAIN, read(watch, now, sizeof now), "one event too many");
    CHECK_RANGE(wd_deep + 1, INT_MAX, inotify_add_watch(watch, dir, IN_CREATE), "the number of a new watch");
}
