// A thread that is not like the others: to be refused by name, and unharmed.
#include "common.h"
#include <sched.h>
#include <sys/prctl.h>

static const char *about = "a second thread under seccomp, with descriptors of its own, that dispatches system calls, or stands where Dormouse does";
static const char *usage = "  --what seccomp|files|dispatch|block|leaves\n"
                           "  --no-dump        not dumpable, before the thread is as it is\n";
static const char *what = "seccomp";
static bool no_dump;
static int ask[2], answer[2];
static volatile char selector; // SYSCALL_DISPATCH_FILTER_ALLOW

static int own_option(const char *name, const char *value) {
    if (!strcmp(name, "--no-dump")) return no_dump = true, 1;
    if (strcmp(name, "--what") || !value) return 0;
    return what = value, 2;
}
static int (*option)(const char *, const char *) = own_option;

// Only the C library may call, as who runs foreign code has it: what anybody else calls in this thread is a SIGSYS, and the end.
static void block(void) {
    unsigned long from = 0, to = 0;
    char line[PATH_MAX + 100];
    FILE *maps = fopen("/proc/self/maps", "re");
    MUST(maps ? 0 : -1);
    while (!to && fgets(line, sizeof line, maps))
        if (strstr(line, " r-xp ") && strstr(line, "/libc.so")) MUST(sscanf(line, "%lx-%lx", &from, &to) == 2 ? 0 : -1);
    fclose(maps);
    MUST(to ? 0 : -1);
    selector = 1; // SYSCALL_DISPATCH_FILTER_BLOCK
    MUST(prctl(59, 1, from, to - from, &selector));
    // what else the C library is called for, and who comes before it in its place
    char name[16];
    stack_t now;
    MUST(prctl(PR_GET_NAME, name, 0, 0, 0)), MUST(syscall(SYS_gettid)), MUST(sigaltstack(NULL, &now));
    MUST(now.ss_flags == SS_DISABLE ? 0 : -1);
}
static void *odd(void *arg) {
    (void)arg;
    char c = 'r';
    if (!strcmp(what, "files")) MUST(unshare(CLONE_FS | CLONE_FILES));
    else if (!strcmp(what, "dispatch")) MUST(prctl(59 /* PR_SET_SYSCALL_USER_DISPATCH */, 1, 0, 0, &selector));
    else if (!strcmp(what, "block")) block();
    else if (strcmp(what, "leaves")) MUST(prctl(PR_SET_SECCOMP, 1 /* SECCOMP_MODE_STRICT */));
    while (write(answer[1], &c, 1) == 1 && read(ask[0], &c, 1) == 1) c ^= 1;
    syscall(SYS_exit, 0);
    return NULL;
}
static void setup(void) {
    char c;
    pthread_t t;
    pthread_attr_t attr;
    MUST0(pthread_attr_init(&attr));
    // as a thread in strict seccomp mode does on its way out of a checkpoint that was broken off: in its own code, with its frame in what is left of ours
    if (!strcmp(what, "leaves")) {
        enum { CODE = 4096, STACK = 256 << 10 };
        char *home = (char *)0x444f524d0000;
        MUST(mmap(home, CODE, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == home ? 0 : -1);
        MUST(mmap(home + CODE, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == home + CODE ? 0 : -1);
        MUST0(pthread_attr_setstack(&attr, home + CODE, STACK));
    }
    if (no_dump) MUST(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0));
    MUST(pipe(ask));
    MUST(pipe(answer));
    MUST0(pthread_create(&t, &attr, odd, NULL));
    MUST(read(answer[0], &c, 1));
}
static void spoil(void) { close(ask[1]); }
static void prove(void) {
    char c = 'b';
    signal(SIGPIPE, SIG_IGN);
    CHECK_EQ(1, write(ask[1], &c, 1), "asking the odd thread");
    CHECK_EQ(1, read(answer[0], &c, 1), "its answer");
    CHECK_EQ('c', c, "what it answers");
}
