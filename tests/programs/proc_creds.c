#include "common.h"
#include <grp.h>
#include <linux/capability.h>
#include <sys/prctl.h>

static const char *about = "credentials: real, effective, saved and file ids, groups, five capability sets, securebits; as root with some of it changed";

struct look {
    uid_t r, e, s;
    gid_t rg, eg, sg;
    int ngroups;
    gid_t groups[64];
    char caps[5][32], uids[128], gids[128];
    int securebits, keepcaps;
};
static struct look before;

static void see(struct look *l) {
    static const char *const sets[] = {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"};
    memset(l, 0, sizeof *l);
    getresuid(&l->r, &l->e, &l->s);
    getresgid(&l->rg, &l->eg, &l->sg);
    l->ngroups = getgroups(64, l->groups);
    for (int i = 0; i < 5; i++) field("/proc/self/status", sets[i], l->caps[i], sizeof l->caps[i]);
    field("/proc/self/status", "Uid", l->uids, sizeof l->uids);
    field("/proc/self/status", "Gid", l->gids, sizeof l->gids);
    l->securebits = prctl(PR_GET_SECUREBITS);
    l->keepcaps = prctl(PR_GET_KEEPCAPS);
}
static void drop_effective(int cap) { // it can be inherited still
    struct __user_cap_header_struct h = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct d[2];
    MUST(syscall(SYS_capget, &h, d));
    d[cap / 32].effective &= ~(1u << cap % 32);
    d[cap / 32].inheritable |= d[cap / 32].permitted & 1u << cap % 32;
    d[0].inheritable |= d[0].permitted & 1u << CAP_CHOWN;
    MUST(syscall(SYS_capset, &h, d));
}
static void setup(void) {
    if (geteuid() == 0) {
        MUST(setgroups(3, (gid_t[]){1, 5, 77}));
        MUST(setresgid(0, 0, 88));
        MUST(setresuid(0, 0, 1234));
        drop_effective(CAP_SYS_CHROOT);
        MUST(prctl(PR_CAPBSET_DROP, CAP_SYS_CHROOT, 0, 0, 0));
        MUST(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_CHOWN, 0, 0));
        MUST(prctl(PR_SET_SECUREBITS, 1 << 4)); // KEEP_CAPS
    }
    see(&before);
}
static void spoil(void) {
    if (geteuid() == 0) MUST(setgroups(1, (gid_t[]){1}));
    else before.caps[2][15] = '7', before.uids[0] = '7'; // nothing an ordinary user could change
}
static void prove(void) {
    struct look now;
    see(&now);
    CHECK_EQ(before.r, now.r, "real user id");
    CHECK_EQ(before.e, now.e, "effective user id");
    CHECK_EQ(before.s, now.s, "saved user id");
    CHECK_EQ(before.rg, now.rg, "real group id");
    CHECK_EQ(before.eg, now.eg, "effective group id");
    CHECK_EQ(before.sg, now.sg, "saved group id");
    CHECK_EQ(before.ngroups, now.ngroups, "number of groups");
    for (int i = 0; i < before.ngroups; i++) CHECK_EQ(before.groups[i], now.groups[i], "group %d", i);
    CHECK_STR(before.uids, now.uids, "Uid in /proc");
    CHECK_STR(before.gids, now.gids, "Gid in /proc");
    static const char *const sets[] = {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"};
    for (int i = 0; i < 5; i++) CHECK_STR(before.caps[i], now.caps[i], "%s", sets[i]);
    CHECK_HEX(before.securebits, now.securebits, "securebits");
    CHECK_EQ(before.keepcaps, now.keepcaps, "keepcaps");
}
