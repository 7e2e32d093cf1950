#include "common.h"
#include <sys/ipc.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/wait.h>

static const char *about = "System V shared memory that is marked to go, of three processes: one segment all are attached to, one of them twice; one only the children, each to a part";
static const char *usage = "";

struct common {
    int told, answered;           // the number of a question, and of its answer, of the process `who`
    int who, what;                // 1, 2: a child; what it is asked
    pid_t grandchild;
    unsigned char value, content[2 * PAGE];
};
static struct common *all;
static unsigned char *part; // of the second segment, in the children
static pid_t child;

static int number(const void *at) {
    char text[PATH_MAX + 512];
    unsigned long inode = 0;
    if (!mapping(at, NULL, text, sizeof text) || sscanf(text, "%*s %*s %*s %*s %lu", &inode) != 1) fail("it is not mapped");
    return (int)inode;
}
// A child answers: it sets a byte of its part (what >= 0), or tells one (-1).
static void serve(int who) {
    MUST(prctl(PR_SET_PDEATHSIG, SIGKILL));
    for (int known = 0;; sleep_ms(1)) {
        int now = __atomic_load_n(&all->told, __ATOMIC_SEQ_CST);
        if (now == known || all->who != who) continue;
        known = now;
        if (all->what >= 0) part[9] = (unsigned char)all->what;
        else all->value = part[9];
        __atomic_store_n(&all->answered, now, __ATOMIC_SEQ_CST);
    }
}
static int ask(int who, int what) {
    all->who = who, all->what = what;
    int n = all->told + 1;
    __atomic_store_n(&all->told, n, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&all->answered, __ATOMIC_SEQ_CST) != n) sleep_ms(1);
    return all->value;
}
static void setup(void) {
    int first = MUST(shmget(IPC_PRIVATE, sizeof *all, 0600)), second = MUST(shmget(IPC_PRIVATE, 4 * PAGE, 0600));
    all = MUST(shmat(first, NULL, 0));
    fill(all->content, sizeof all->content, 91);
    int ready[2];
    char c;
    MUST(pipe(ready));
    if (!(child = MUST(fork()))) {
        unsigned char *whole = MUST(shmat(second, NULL, 0));
        fill(whole, 4 * PAGE, 92);
        if (!MUST(fork())) {
            all->grandchild = getpid();
            part = whole + PAGE;
            MUST(munmap(whole, PAGE)); // the first page is the other's
            MUST(write(ready[1], "g", 1));
            close(ready[0]), close(ready[1]);
            serve(2);
        }
        part = whole + PAGE;
        MUST(munmap(whole + 3 * PAGE, PAGE));
        MUST(shmat(first, NULL, SHM_RDONLY));
        MUST(write(ready[1], "c", 1));
        close(ready[0]), close(ready[1]);
        serve(1);
    }
    for (int i = 0; i < 2; i++) MUST(read(ready[0], &c, 1));
    close(ready[0]), close(ready[1]);
    MUST(shmctl(first, IPC_RMID, NULL)), MUST(shmctl(second, IPC_RMID, NULL));
    ask(1, 77);
}
static void spoil(void) { ask(2, 5); }
static void prove(void) {
    static unsigned char want[4 * PAGE];
    fill(want, sizeof want, 91);
    CHECK_MEM(want, all->content, sizeof all->content, "content of the first");
    CHECK_EQ(77, ask(1, -1), "what the child reads of the second");
    CHECK_EQ(77, ask(2, -1), "what the grandchild reads of it");
    ask(2, 13);
    CHECK_EQ(13, ask(1, -1), "what the grandchild has written, as the child reads it");
    struct shmid_ds s;
    int first = number(all);
    CHECK_OK(shmctl(first, IPC_STAT, &s), "looking at the first");
    CHECK_EQ(4, s.shm_nattch, "how often it is attached");
    CHECK_EQ(sizeof *all, s.shm_segsz, "its size");
    CHECK(s.shm_perm.mode & SHM_DEST, "it is marked to go");
    // nobody is left but this process
    CHECK_OK(kill(all->grandchild, SIGKILL), "ending the grandchild"), CHECK_OK(kill(child, SIGKILL), "ending the child");
    CHECK_EQ(child, waitpid(child, NULL, 0), "waiting for it");
    while (shmctl(first, IPC_STAT, &s) == 0 && s.shm_nattch > 1) sleep_ms(1);
    CHECK_EQ(1, s.shm_nattch, "how often it is attached then");
    CHECK_OK(shmdt(all), "detaching");
    CHECK_ERRNO(EINVAL, shmctl(first, IPC_STAT, &s), "what nobody is attached to any more");
}
