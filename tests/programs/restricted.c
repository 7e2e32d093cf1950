#include "common.h"
#include <linux/keyctl.h>
#include <linux/landlock.h>
#include <sys/prctl.h>

static const char *about = "a Landlock domain, which is refused; keyrings of thread, process and session, which are reported";
static const char *usage = "  --landlock       enter a Landlock domain\n"
                           "  --keys           have keys in all keyrings\n"
                           "  --session-key    have one in the session keyring only, which nobody else can see\n";

static bool landlock, keys, session_key;
static int own_option(const char *name, const char *value) {
    (void)value;
    if (!strcmp(name, "--landlock")) return landlock = true, 1;
    if (!strcmp(name, "--keys")) return keys = true, 1;
    if (!strcmp(name, "--session-key")) return session_key = true, 1;
    return 0;
}
static int (*option)(const char *, const char *) = own_option;

static void setup(void) {
    if (landlock) {
        struct landlock_ruleset_attr a = {.handled_access_fs = LANDLOCK_ACCESS_FS_MAKE_BLOCK};
        int fd = (int)syscall(SYS_landlock_create_ruleset, &a, sizeof a.handled_access_fs, 0);
        if (fd < 0 && (errno == ENOSYS || errno == EOPNOTSUPP)) skip("Landlock is not in this kernel");
        MUST(fd), MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
        MUST(syscall(SYS_landlock_restrict_self, fd, 0)), close(fd);
    }
    if (keys || session_key) {
        if (syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, "of-a-test") < 0 && errno == ENOSYS) skip("keys are not in this kernel");
        for (int ring = keys ? KEY_SPEC_THREAD_KEYRING : KEY_SPEC_SESSION_KEYRING; ring >= KEY_SPEC_SESSION_KEYRING; ring--)
            MUST(syscall(SYS_add_key, "user", "test", "secret", 6, ring));
    }
}
static void spoil(void) {}
static void prove(void) {
    if (landlock) {
        // still in it, and only once: one layer is taken of those that there are
        int taken = 0, fd = (int)syscall(SYS_landlock_create_ruleset, &(uint64_t){1}, 8, 0);
        while (!syscall(SYS_landlock_restrict_self, fd, 0)) taken++;
        CHECK_EQ(15, taken, "layers of Landlock that were free");
    }
    if (keys) CHECK_OK(syscall(SYS_keyctl, KEYCTL_SEARCH, KEY_SPEC_PROCESS_KEYRING, "user", "test", 0), "the key of the process");
}
