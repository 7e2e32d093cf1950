#include "common.h"
#include <sys/ipc.h>
#include <sys/shm.h>
#include <sys/wait.h>

#ifndef WITH_CHILD // tree_hugeshm has one
#define WITH_CHILD false
static const char *about = "System V shared memory of huge pages: a segment that stays, attached twice and for reading; one that is marked to go, attached in part and protected in part";
static const char *usage = "  --unreserved     the one that is marked to go is not reserved (SHM_NORESERVE), and its third page cannot be had\n"
                           "  --unseen         its third page is there, and in nobody's page tables: refused\n";
#endif
static bool unreserved, unseen;
static int own_option(const char *name, const char *value) {
    (void)value;
    if (!strcmp(name, "--unreserved")) return unreserved = true, 1;
    if (!strcmp(name, "--unseen")) return unseen = true, 1;
    return 0;
}
static int (*option)(const char *, const char *) = own_option;

#define HUGE (2UL << 20)
#define MAPS 6
#define KEY 0x646d7401 // by which the harness finds one that a killed case has left
#define HUGE_2MB (21 << 26) // SHM_HUGE_2MB
static int stays, to_child[2];
static unsigned char *one, *two, *reads, *goes, *again;
static char before[MAPS][256];
static pid_t child;

static unsigned char *segment(key_t key, int *id, size_t pages, int flags) {
    *id = shmget(key, pages * HUGE, 0600 | IPC_CREAT | IPC_EXCL | SHM_HUGETLB | HUGE_2MB | flags);
    if (*id < 0) skip("no huge pages: %s", strerror(errno));
    return MUST(shmat(*id, NULL, 0));
}
static void gone(int id) { MUST(shmctl(id, IPC_RMID, NULL)); }
static void has(const unsigned char *at, uint64_t seed, const char *which) {
    static unsigned char want[HUGE];
    if (seed) fill(want, HUGE, seed);
    else memset(want, 0, HUGE);
    CHECK_MEM(want, at, HUGE, "a page of %s", which);
}
static void flags(char to[MAPS][256]) {
    unsigned char *all[MAPS] = {one, two, reads, goes, goes + 2 * HUGE, again + HUGE};
    for (int i = 0; i < MAPS; i++) mapping(all[i], "VmFlags", to[i], 256);
}
static void setup(void) {
    int id, flag = unreserved ? SHM_NORESERVE : 0;
    one = segment(KEY, &stays, 1, 0), two = MUST(shmat(stays, NULL, 0)), reads = MUST(shmat(stays, NULL, SHM_RDONLY));
    fill(one, HUGE, 80);
    goes = segment(IPC_PRIVATE, &id, 3, flag), again = MUST(shmat(id, NULL, 0));
    fill(goes, HUGE, 81), fill(again + HUGE, HUGE, 82); // each in the page tables of one mapping only
    MUST(mprotect(goes + 2 * HUGE, HUGE, PROT_READ));   // which is never touched
    MUST(munmap(again, HUGE));
    if (unseen) {
        unsigned char *third = MUST(shmat(id, NULL, 0));
        third[2 * HUGE] = 1;
        MUST(shmdt(third));
    }
    gone(id);
    flags(before);
    if (!WITH_CHILD) return;
    MUST(pipe(to_child));
    if (!(child = MUST(fork()))) {
        char byte;
        MUST(close(to_child[1]));
        if (read(to_child[0], &byte, 1) != 1) _exit(0); // its parent was killed
        has(goes, 81, "what its parent has, too");
        goes[99] ^= 0xff, one[99] ^= 0xff;
        _exit(failures_count);
    }
}
static void spoil(void) { goes[5] ^= 1; }
static void prove(void) {
    static char now[MAPS][256];
    flags(now);
    for (int i = 0; i < MAPS; i++) CHECK_STR(before[i], now[i], "flags of memory %d", i);
    has(one, 80, "what stays"), has(two, 80, "it attached again"), has(reads, 80, "it for reading");
    has(goes, 81, "what goes");
has(goes + HUGE, 82, "what goes"), has(again + HUGE, 82, "what goes, attached again");
    if (!unreserved && !unseen) has(goes + 2 * HUGE, 0, "what goes, never touched");
    two[7] ^= 0xff;
    CHECK_EQ(two[7], one[7], "what is written is seen in the same segment");
    CHECK_EQ(two[7], reads[7], "and where it is for reading");
    two[7] ^= 0xff;
    struct shmid_ds s;
    CHECK_OK(shmctl(stays, IPC_STAT, &s), "what stays is there");
    CHECK_EQ(WITH_CHILD ? 6 : 3, s.shm_nattch, "how often it is attached");
    CHECK_ERRNO(EACCES, mprotect(reads, HUGE, PROT_READ | PROT_WRITE), "making it writable");
    if (WITH_CHILD) {
        MUST(write(to_child[1], "x", 1));
        int status = -1;
        CHECK_EQ(child, waitpid(child, &status, 0), "waiting for the child");
        CHECK_EQ(0, status, "status of the child");
        goes[99] ^= 0xff, one[99] ^= 0xff;
        has(goes, 81, "what goes, written by the child"), has(one, 80, "what stays, written by the child");
    }
    gone(stays);
}
