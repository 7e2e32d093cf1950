#include "common.h"
#include <sys/prctl.h>
#include <sys/wait.h>

#ifndef WITH_CHILD // tree_pkeys has one
#define WITH_CHILD false
static const char *about = "memory protection keys: on memory of several kinds, on none, freed ones, that of memory which may only be executed; what each of three threads may do with them";
#endif

#define BYTES (4 * PAGE)
enum { PLAIN, SHARED, MAPPED, READ_ONLY, GIVEN_BACK, FREED, KINDS };
static const char *const names[KINDS] = {"private", "shared", "of a file", "read-only", "of a key taken off", "of a freed key"};
static unsigned char *areas[KINDS], *code, *was_given, want[BYTES];
static int keys[KINDS], hole, idle, probe[2], to_child[2], from_child[2], wake[3][2], kernels;
static unsigned allowed[3]; // PKRU of three threads
static volatile unsigned found[3];
static volatile pid_t tids[3];
static pthread_t threads[3];
static pid_t child;

static unsigned rdpkru(void) {
    unsigned eax, edx;
    __asm__ volatile("rdpkru" : "=a"(eax), "=d"(edx) : "c"(0));
    return eax;
}
static void wrpkru(unsigned value) { __asm__ volatile("wrpkru" ::"a"(value), "c"(0), "d"(0) : "memory"); }
static bool allocated(int key) { // told without a change: where nothing can be mapped, EINVAL comes before ENOMEM
    return syscall(SYS_pkey_mprotect, 1UL << 56, PAGE, PROT_READ, key) == -1 && errno == ENOMEM;
}
static int key_of(void *address) {
    char text[32];
    return mapping(address, "ProtectionKey", text, sizeof text) ? atoi(text) : -1;
}
static bool may_read(void *address) { return write(probe[1], address, 1) == 1; } // EFAULT instead of a signal
static bool may_write(void *address) {
    while (write(probe[1], "x", 1) != 1) continue;
    return read(probe[0], address, 1) == 1;
}
static unsigned denied(int key, unsigned bits) { return bits << (2 * key); } // 1: access, 2: writing
static void *waits(void *arg) {
    size_t i = (size_t)arg;
    char byte;
    wrpkru(allowed[i]);
    tids[i] = tid_now();
    long n;
    do n = syscall(SYS_read, wake[i][0], &byte, 1); // asleep in the kernel with its PKRU
    while (n == -1 && errno == EINTR);
    found[i] = rdpkru();
    return NULL;
}
static void check_keys(const char *who, int more, int less) {
    for (int key = 1; key < 16; key++) {
        bool should = key == idle || key == more;
        for (int i = 0; i < KINDS; i++) should |= keys[i] == key && i != FREED;
        if ((key == hole && key != more) || key == less) should = false;
        CHECK_EQ(should, allocated(key), "%s: key %d is allocated", who, key);
    }
    for (int i = 0; i < KINDS; i++) CHECK_EQ(i == GIVEN_BACK ? 0 : keys[i], key_of(areas[i]), "%s: key of memory %s", who, names[i]);
    CHECK_EQ(kernels, key_of(code), "%s: key of what may only be executed", who);
    CHECK_EQ(kernels, key_of(was_given), "%s: key of what had that before", who);
}
static void __attribute__((noreturn)) lives(void) { // the child: has one key more, and one less
    int more = MUST(pkey_alloc(0, PKEY_DISABLE_WRITE));
    MUST(pkey_free(idle));
    unsigned pkru = rdpkru();
    MUST(close(to_child[1]));
    MUST(write(from_child[1], "r", 1));
    char byte;
    long n;
    while ((n = read(to_child[0], &byte, 1)) != 1)
        if (n == 0) _exit(0); // its parent was killed
    CHECK_HEX(pkru, rdpkru(), "the child's PKRU");
    check_keys("child", more, idle);
    if (failures_count) MUST(write(from_child[1], failures, failures_len));
    _exit(failures_count);
}
static void ask_child(void) {
    MUST(write(to_child[1], "x", 1));
    int status = -1;
    CHECK_EQ(child, waitpid(child, &status, 0), "waiting for the child");
    char said[2048] = "";
    if (status) MUST(read(from_child[0], said, sizeof said - 1));
    CHECK_STR("", said, "what the child says");
    CHECK_EQ(0, status, "status of the child");
}
static void setup(void) {
    int first = pkey_alloc(0, 0);
    if (first < 0) skip("no protection keys here: %s", strerror(errno));
    MUST(pkey_free(first));
    MUST(pipe(probe)), MUST(pipe(to_child)), MUST(pipe(from_child));
    char *path = work("mapped");
    int fd = MUST(open(path, O_RDWR | O_CREAT, 0600));
    MUST(ftruncate(fd, BYTES));
    idle = MUST(pkey_alloc(0, 0));
    for (int i = 0; i < KINDS; i++) {
        int flags = i == SHARED ? MAP_SHARED | MAP_ANONYMOUS : i == MAPPED ? MAP_PRIVATE : MAP_PRIVATE | MAP_ANONYMOUS;
        areas[i] = MUST(mmap(NULL, BYTES + PAGE, PROT_READ | PROT_WRITE, flags, i == MAPPED ? fd : -1, 0));
        MUST(mprotect(areas[i] + BYTES, PAGE, PROT_NONE)); // a border: no merging
        fill(areas[i], BYTES, (uint64_t)i);
        keys[i] = MUST(pkey_alloc(0, 0));
        MUST(pkey_mprotect(areas[i], BYTES, i == READ_ONLY ? PROT_READ : PROT_READ | PROT_WRITE, keys[i]));
        if (i == SHARED) {
            hole = MUST(pkey_alloc(0, 0));
            // a key that the kernel takes for its own, while memory has it that had it before
            int given = MUST(pkey_alloc(0, 0));
            was_given = MUST(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
            MUST(pkey_mprotect(was_given, PAGE, PROT_READ | PROT_WRITE, given)), MUST(pkey_free(given));
            // mov eax, 42; ret: the kernel takes the next key for it
            code = MUST(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
            memcpy(code, "\xb8\x2a\0\0\0\xc3", 6);
            MUST(mprotect(code, PAGE, PROT_EXEC));
            kernels = key_of(code);
            if (kernels != given) fail("the kernel has taken key %d, not %d (in setup, not a proof)", kernels, given);
        }
    }
    close(fd);
    MUST(pkey_mprotect(areas[GIVEN_BACK], BYTES, PROT_READ | PROT_WRITE, 0));
    MUST(pkey_free(hole)), MUST(pkey_free(keys[FREED]));
    if (WITH_CHILD) {
        char byte;
        MUST(prctl(PR_SET_CHILD_SUBREAPER, 1)); // no snapshot child is made then, which could be asked
        child = MUST(fork());
        if (child == 0) lives();
        MUST(read(from_child[0], &byte, 1));
    }
    unsigned base = rdpkru();
    allowed[0] = base | denied(keys[PLAIN], 1) | denied(keys[SHARED], 2);
    allowed[1] = base | denied(keys[SHARED], 3) | denied(keys[READ_ONLY], 1);
    allowed[2] = 0;
    for (size_t i = 1; i < 3; i++) {
        MUST(pipe(wake[i]));
        MUST0(pthread_create(&threads[i], NULL, waits, (void *)i));
        until_in_call(&tids[i], SYS_read);
    }
    wrpkru(allowed[0]);
}
static void spoil(void) { MUST(pkey_mprotect(areas[FREED], BYTES, PROT_READ | PROT_WRITE, 0)); }
static void prove(void) {
    CHECK_HEX(allowed[0], rdpkru(), "PKRU of the first thread");
    check_keys("first", 0, 0);
    CHECK_EQ(false, may_read(areas[PLAIN]), "reading what is denied");
    CHECK_EQ(true, may_read(areas[SHARED]), "reading what may not be written");
    CHECK_EQ(false, may_write(areas[SHARED]), "writing what may not be written");
    CHECK_EQ(42, ((int (*)(void))(uintptr_t)code)(), "what may only be executed");
    CHECK_EQ(false, may_read(code), "reading what may only be executed");
    for (size_t i = 1; i < 3; i++) {
        MUST(write(wake[i][1], "x", 1));
        MUST0(pthread_join(threads[i], NULL));
        CHECK_HEX(allowed[i], found[i], "PKRU of thread %zu", i);
    }
    wrpkru(0);
    for (int i = 0; i < KINDS; i++) {
        fill(want, BYTES, (uint64_t)i);
        CHECK_MEM(want, areas[i], BYTES, "content of memory %s", names[i]);
        CHECK_EQ(i != READ_ONLY, may_write(areas[i]), "writing to memory %s", names[i]);
    }
    if (WITH_CHILD) ask_child();
    // the next ones are those that are free, in their order
    CHECK_EQ(hole, pkey_alloc(0, 0), "the next key");
    CHECK_EQ(keys[FREED], pkey_alloc(0, 0), "the next but one");
    void *more = MUST(mmap(NULL, PAGE, PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    CHECK_EQ(kernels, key_of(more), "key of more that may only be executed");
}
