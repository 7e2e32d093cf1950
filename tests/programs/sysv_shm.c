#include "common.h"
#include <sys/ipc.h>
#include <sys/shm.h>
#include <sys/wait.h>

static const char *about = "System V shared memory: a segment that stays, attached twice and for reading; one that is marked to go, with its content; one of which a part is protected";
static const char *usage = "  --what shared   a segment that is marked to go, and that another process is attached to: refused\n";

static int (*option)(const char *, const char *) = what_option;

static int stays;
static unsigned char *one, *two, *reads, *goes, *parts;

static unsigned char *segment(int *id, size_t size) {
    *id = MUST(shmget(IPC_PRIVATE, size, 0600));
    return MUST(shmat(*id, NULL, 0));
}
static void gone(int id) { MUST(shmctl(id, IPC_RMID, NULL)); }
// Another process, no child of this one, that is attached until the gate is open.
static void another(int id) {
    pid_t me = getpid(), between = MUST(fork());
    if (!between) {
        if (MUST(fork())) _exit(0);
        MUST(shmat(id, NULL, 0));
        MUST(write_file("attached", "") ? 0 : -1);
        while (access(work("gate"), F_OK) && !kill(me, 0)) sleep_ms(2);
        _exit(0);
    }
    MUST(waitpid(between, NULL, 0));
    while (access(work("attached"), F_OK)) sleep_ms(2);
}
static void setup(void) {
    int id;
    if (what) {
        goes = segment(&id, PAGE);
        another(id);
        gone(id);
        strcpy((char *)goes, "shared with another");
        return;
    }
    one = segment(&stays, 4 * PAGE + 10);
    two = MUST(shmat(stays, NULL, 0)), reads = MUST(shmat(stays, NULL, SHM_RDONLY));
    fill(one, 4 * PAGE, 70);
    goes = segment(&id, 3 * PAGE), gone(id);
    fill(goes, 3 * PAGE, 71), memset(goes, 0, PAGE);
    struct shmid_ds s;
    MUST(shmctl(id, IPC_STAT, &s)), s.shm_perm.mode = 0440, MUST(shmctl(id, IPC_SET, &s)); // nobody can attach it for writing any more
    parts = segment(&id, 6 * PAGE), gone(id);
    fill(parts, 6 * PAGE, 72);
    MUST(mprotect(parts + 2 * PAGE, PAGE, PROT_READ)), MUST(munmap(parts + 4 * PAGE, PAGE));
}
static void spoil(void) {
    if (goes) goes[PAGE + 5] ^= 1;
}
static void same(const unsigned char *at, size_t from, size_t bytes, uint64_t seed, const char *which) {
    static unsigned char want[6 * PAGE];
    fill(want, sizeof want, seed);
    CHECK_MEM(want + from, at + from, bytes, "content of %s", which);
}
static void prove(void) {
    char text[PATH_MAX + 512];
    if (what) {
        CHECK_STR("shared with another", (char *)goes, "what is shared");
        return;
    }
    struct shmid_ds s;
    CHECK_OK(shmctl(stays, IPC_STAT, &s), "the segment that stays");
    CHECK_EQ(4 * PAGE + 10, s.shm_segsz, "its size");
    CHECK_EQ(3, s.shm_nattch, "how often it is attached");
    same(one, 0, 4 * PAGE, 70, "the segment that stays");
    strcpy((char *)one + PAGE, "through one");
    CHECK_STR("through one", (char *)two + PAGE, "what one mapping writes, in the second");
    CHECK_STR("through one", (char *)reads + PAGE, "what one mapping writes, in the one for reading");
    CHECK(mapping(reads, NULL, text, sizeof text) && !strncmp(strchr(text, ' '), " r--s", 5), "the one for reading");
    CHECK_ERRNO(EACCES, mprotect(reads, PAGE, PROT_READ | PROT_WRITE), "making it writable");
    same(goes, PAGE, 2 * PAGE, 71, "the segment that is marked to go");
    CHECK_EQ(0, goes[0], "its first page");
    CHECK(mapping(goes, NULL, text, sizeof text) && strstr(text, "/SYSV00000000"), "it is System V shared memory");
    same(parts, 0, 4 * PAGE, 72, "the beginning of the third");
    same(parts, 5 * PAGE, PAGE, 72, "the end of the third");
    CHECK(mapping(parts + 2 * PAGE, NULL, text, sizeof text) && !strncmp(strchr(text, ' '), " r--s", 5), "its protected page");
    CHECK(!mapping(parts + 4 * PAGE, NULL, text, sizeof text), "its hole");
    unsigned long number = 0;
    CHECK(mapping(goes, NULL, text, sizeof text), "the segment that is marked to go");
    CHECK_EQ(1, sscanf(text, "%*s %*s %*s %*s %lu", &number), "its number");
    CHECK_OK(shmctl((int)number, IPC_STAT, &s), "looking at it");
    CHECK_EQ(0440 | SHM_DEST, s.shm_perm.mode & (0777 | SHM_DEST), "its permissions, and that it is marked to go");
    CHECK_OK(shmdt(goes), "detaching");
    CHECK(!mapping(goes, NULL, text, sizeof text), "what was detached");
    CHECK_OK(shmdt(two), "detaching the second");
    CHECK_OK(shmctl(stays, IPC_RMID, NULL), "removing");
}
