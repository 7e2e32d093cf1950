#include "common.h"
#include <sys/fanotify.h>

static const char *about = "fanotify: groups that tell file handles and names, marks of a directory, a file, a symbolic link, a deleted file, what they ignore; as root also plain groups, marks of a mount and a file system";

static const char *usage = "  --what hidden    only one mark, of a directory that its owner cannot reach any more\n"
                           "  --what unread    only one mark, with an event that was not read\n"
                           "  --what perm      as root only: a mark that lets others wait for an answer\n";
static const char *what = "";
static int (*option)(const char *, const char *) = what_option;

#ifndef FAN_MARK_EVICTABLE
#define FAN_MARK_EVICTABLE 0x200
#endif
#ifndef FAN_MARK_IGNORE
#define FAN_MARK_IGNORE 0x400
#endif

#define GROUPS 4
enum { FID, NAMES, PLAIN, WIDE }; // the last two take root
static int group[GROUPS] = {-1, -1, -1, -1}, gone = -1, held = -1, groups;
static char before[GROUPS][8192], shm[64];

static void members(int fd, char *out) { // the group and its marks by fdinfo
    char path[64], *line;
    static char text[8192];
    char *rest = text;
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
    slurp(path, text, sizeof text);
    for (out[0] = 0; (line = strsep(&rest, "\n"));) {
        if (strncmp(line, "fanotify ", 9)) continue;
        struct stat s;
        char *inode = strstr(line, "ino:"), *flags = strstr(line, "mflags:");
        // the one without a name is another inode in a restored one
        if (inode && flags && gone >= 0 && !fstat(gone, &s) && strtoul(inode + 4, NULL, 16) == s.st_ino) {
            char *handle = strstr(flags, " fhandle");
            if (handle) *handle = 0;
            memmove(inode, flags, strlen(flags) + 1);
        }
        strcat(strcat(out, line), "\n");
    }
}
static void touch(const char *name) { close(MUST(open(work(name), O_CREAT | O_WRONLY, 0600))); }
static void mark(int fd, unsigned flags, uint64_t mask, const char *path) { MUST(fanotify_mark(fd, FAN_MARK_ADD | flags, mask, AT_FDCWD, path)); }

static void setup(void) {
    bool root = geteuid() == 0;
    if (*what) {
        MUST(mkdir(work("hidden"), 0700)), MUST(mkdir(work("hidden/watched"), 0700));
        touch("hidden/file");
        unsigned flags = !strcmp(what, "perm") ? FAN_CLASS_CONTENT : FAN_REPORT_DFID_NAME;
        group[NAMES] = MUST(fanotify_init(flags | FAN_NONBLOCK, O_RDONLY));
        if (!strcmp(what, "perm")) mark(group[NAMES], 0, FAN_OPEN_PERM, work("hidden/file"));
        else mark(group[NAMES], 0, FAN_CREATE, work("hidden/watched"));
        if (!strcmp(what, "unread")) touch("hidden/watched/early");
        if (!strcmp(what, "hidden")) MUST(chmod(work("hidden"), 0));
        return;
    }
    MUST(mkdir(work("watched"), 0700)), MUST(mkdir(work("watched/deep"), 0700));
    touch("watched/file"), touch("file"), touch("other");
    MUST(symlink("file", work("link")));
    held = MUST(open(work("watched/file"), O_RDWR)); // what is open in it is opened again at a restore, and nobody may see that
    gone = MUST(open(work("gone"), O_RDWR | O_CREAT, 0600));
    int fid = fanotify_init(FAN_REPORT_FID | FAN_NONBLOCK | FAN_CLOEXEC, O_RDONLY);
    if (fid < 0 && (errno == EPERM || errno == ENOSYS || errno == EINVAL)) skip("fanotify: %s", strerror(errno));
    group[FID] = MUST(fid);
    group[NAMES] = MUST(fanotify_init(FAN_REPORT_DFID_NAME | FAN_NONBLOCK, O_RDONLY));
    groups = 2;
    mark(group[FID], 0, FAN_OPEN | FAN_MODIFY, work("file"));
    mark(group[FID], 0, FAN_ATTRIB, work("other"));
    mark(group[FID], FAN_MARK_DONT_FOLLOW, FAN_DELETE_SELF, work("link"));
    mark(group[FID], 0, FAN_MODIFY, work("gone"));
    MUST(unlink(work("gone")));
    mark(group[NAMES], FAN_MARK_ONLYDIR, FAN_OPEN | FAN_CLOSE | FAN_CREATE | FAN_DELETE | FAN_EVENT_ON_CHILD, work("watched")); // directories are opened by who looks for names
    // all that is done to the file in it but writing goes unseen
    mark(group[NAMES], FAN_MARK_IGNORED_MASK | FAN_MARK_IGNORED_SURV_MODIFY, FAN_OPEN | FAN_CLOSE, work("watched/file"));
    mark(group[NAMES], FAN_MARK_EVICTABLE, FAN_OPEN, work("other"));
    mark(group[NAMES], FAN_MARK_IGNORE | FAN_MARK_IGNORED_SURV_MODIFY, FAN_OPEN, work("other"));
    // how something was ignored once
    mark(group[NAMES], 0, FAN_ATTRIB, work("watched/deep"));
    mark(group[NAMES], FAN_MARK_IGNORE | FAN_MARK_IGNORED_SURV_MODIFY, FAN_OPEN | FAN_ONDIR, work("watched/deep"));
    MUST(fanotify_mark(group[NAMES], FAN_MARK_REMOVE | FAN_MARK_IGNORE | FAN_MARK_IGNORED_SURV_MODIFY, FAN_OPEN | FAN_ONDIR, AT_FDCWD, work("watched/deep")));
    if (root) {
        group[PLAIN] = MUST(fanotify_init(FAN_CLASS_CONTENT | FAN_UNLIMITED_QUEUE | FAN_UNLIMITED_MARKS | FAN_NONBLOCK, O_RDWR | O_CLOEXEC));
        group[WIDE] = MUST(fanotify_init(FAN_CLASS_NOTIF | FAN_REPORT_FID | FAN_NONBLOCK, O_RDONLY));
        groups = 4;
        snprintf(shm, sizeof shm, "/dev/shm/dormouse-fanotify-%d", getpid());
        close(MUST(open(shm, O_CREAT | O_WRONLY, 0600)));
        mark(group[PLAIN], 0, FAN_CLOSE_WRITE, work("other"));
        mark(group[PLAIN], FAN_MARK_MOUNT, FAN_CLOSE_WRITE, "/dev/shm");
        mark(group[PLAIN], FAN_MARK_IGNORED_MASK | FAN_MARK_IGNORED_SURV_MODIFY, FAN_OPEN, shm);
        mark(group[WIDE], FAN_MARK_FILESYSTEM, FAN_DELETE, "/dev/shm");
    }
    for (int i = 0; i < groups; i++) members(group[i], before[i]);
}
static void spoil(void) { MUST(fanotify_mark(group[FID], FAN_MARK_REMOVE, FAN_ATTRIB, AT_FDCWD, work("other"))); }

static void events(int fd, uint64_t mask, const char *name, const char *of) { // this is what waits, and nothing else
    char b[8192] __attribute__((aligned(8)));
    ssize_t n = read(fd, b, sizeof b);
    uint64_t all = 0;
    if (n < 0) return fail("%s, expected an event, got %s", of, strerror(errno));
    for (struct fanotify_event_metadata *e = (void *)b; FAN_EVENT_OK(e, n); e = FAN_EVENT_NEXT(e, n)) {
        all |= e->mask;
        CHECK_EQ(getpid(), e->pid, "whose event it is, of %s", of);
        if (e->fd >= 0) {
            char link[64], path[512] = "";
            snprintf(link, sizeof link, "/proc/self/fd/%d", e->fd);
            CHECK(readlink(link, path, sizeof path - 1) > 0, "the file in the event of %s", of);
            CHECK_STR(name, path, "the file in the event of %s", of);
            CHECK_EQ(FD_CLOEXEC, fcntl(e->fd, F_GETFD), "close-on-exec of what an event brings");
            CHECK_EQ(O_RDWR, fcntl(e->fd, F_GETFL) & O_ACCMODE, "how an event opens its file");
            close(e->fd);
        } else if (*name && *name != '/') {
            struct fanotify_event_info_fid *i = (void *)(e + 1);
            struct file_handle *h = (void *)i->handle;
            CHECK_EQ(FAN_EVENT_INFO_TYPE_DFID_NAME, i->hdr.info_type, "what the event of %s tells", of);
            CHECK_STR(name, (char *)h->f_handle + h->handle_bytes, "name in the event of %s", of);
        }
    }
    CHECK_HEX(mask, all, "events of %s", of);
}
static void prove(void) {
    char now[8192];
    struct stat s;
    if (*what) {
        bool here = stat(work("restored"), &s) != 0;
        MUST(chmod(work("hidden"), 0700));
        if (!strcmp(what, "unread") && here) events(group[NAMES], FAN_CREATE, "early", "the event that was not read");
        if (!strcmp(what, "hidden") || !strcmp(what, "unread")) {
            touch("hidden/watched/late");
            events(group[NAMES], FAN_CREATE, "late", "a new file");
        }
        CHECK_ERRNO(EAGAIN, read(group[NAMES], now, sizeof now), "an event that nobody made");
        return;
    }
    static const char *names[GROUPS] = {"file handles", "names", "plain events", "a mount"};
    for (int i = 0; i < groups; i++) {
        members(group[i], now);
        CHECK_STR(before[i], now, "the group of %s by fdinfo", names[i]);
        CHECK_EQ(i == FID ? FD_CLOEXEC : 0, fcntl(group[i], F_GETFD), "close-on-exec of the group of %s", names[i]);
        CHECK_EQ(O_NONBLOCK, fcntl(group[i], F_GETFL) & O_NONBLOCK, "non-blocking, the group of %s", names[i]);
        // others may do something in /dev/shm
        if (i < PLAIN) CHECK_ERRNO(EAGAIN, read(group[i], now, sizeof now), "an event that nobody made, of %s", names[i]);
    }
    touch("file");
    events(group[FID], FAN_OPEN, "", "the file");
    MUST(chmod(work("other"), 0640));
    events(group[FID], FAN_ATTRIB, "", "the other file");
    MUST(write(gone, "x", 1));
    events(group[FID], FAN_MODIFY, "", "the file that has no name");
    MUST(unlink(work("link")));
    events(group[FID], FAN_DELETE_SELF, "", "the link");
    touch("watched/new");
    events(group[NAMES], FAN_CREATE | FAN_OPEN | FAN_CLOSE_WRITE, "new", "a new file");
    MUST(unlink(work("watched/new")));
    events(group[NAMES], FAN_DELETE, "new", "a deleted file");
    touch("watched/file");
    MUST(write(held, "x", 1));
    touch("other");
    CHECK_ERRNO(EAGAIN, read(group[NAMES], now, sizeof now), "an event that is ignored");
    if (groups <= PLAIN) return;
    char path[512], own[512];
    bool seen[3] = {false, false, false};
    snprintf(own, sizeof own, "%s", work("other"));
    close(MUST(open(shm, O_WRONLY)));
    MUST(unlink(shm));
    for (int i = PLAIN; i <= WIDE; i++) { // of others' events there may be any
        char b[8192] __attribute__((aligned(8)));
        for (ssize_t n; (n = read(group[i], b, sizeof b)) > 0;)
            for (struct fanotify_event_metadata *e = (void *)b; FAN_EVENT_OK(e, n); e = FAN_EVENT_NEXT(e, n)) {
                bool mine = e->pid == getpid();
                if (i == WIDE) seen[2] |= mine && e->mask == FAN_DELETE;
                if (e->fd < 0) continue;
                char link[64];
                snprintf(link, sizeof link, "/proc/self/fd/%d", e->fd);
                ssize_t len = readlink(link, path, sizeof path - 1);
                path[len > 0 ? len : 0] = 0;
                if (mine && !strncmp(path, shm, strlen(shm))) seen[0] = e->mask == FAN_CLOSE_WRITE;
                if (mine && !strcmp(path, own)) seen[1] = (fcntl(e->fd, F_GETFL) & O_ACCMODE) == O_RDWR;
                close(e->fd);
            }
    }
    CHECK(seen[0], "an event of the mount");
    CHECK(seen[1], "an event of the other file, with the file");
    CHECK(seen[2], "an event of the file system");
}
