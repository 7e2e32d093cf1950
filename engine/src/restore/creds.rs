//! Credentials and capabilities of a thread. They are the kernel's per thread: raw calls in each of them.
use super::pids::Rights;
use super::process::Soft;
use super::puppet::Puppet;
use super::Image;
use ::image::v1::rights::Rights as Wanted;
use ::image::v1::users::{Range, Users};
use sys::program::{Arg, Arg::Imm, Program};

const CAP_SETGID: u32 = 6;
const CAP_SETPCAP: u32 = 8;
const PR_CAP_AMBIENT: u64 = 47;
const PR_CAP_AMBIENT_RAISE: u64 = 2;
const PR_CAP_AMBIENT_CLEAR_ALL: u64 = 4;
const PR_CAPBSET_DROP: u64 = 24;
const PR_SET_KEEPCAPS: u64 = 8;
/// SECBIT_KEEP_CAPS
const KEEP_CAPS: u32 = 1 << 4;
const PR_SET_SECUREBITS: u64 = 28;
const PR_SET_NO_NEW_PRIVS: u64 = 38;
/// FUTEX_CMP_REQUEUE_PRIVATE
const COMPARE: u64 = 4 | 128;
/// _LINUX_CAPABILITY_VERSION_3
const CAP_VERSION: u32 = 0x2008_0522;

/// What has to change.
pub struct Creds {
    /// Real, effective, saved, file-system user and group, and supplementary groups that the new process has.
    uid: [u32; 4],
    gid: [u32; 4],
    have: Vec<u32>,
    /// The user namespace that it is in by then: IDs are set as they are inside.
    users: Option<Users>,
    /// Capabilities that the new process has.
    held: Held,
    bounding: u64,
    may_choose_groups: bool,
    may_choose_securebits: bool,
}

#[derive(Clone, Copy)]
struct Held {
    permitted: u64,
    effective: u64,
}

impl Creds {
    /// From what the new process has to what the image says. One that has a user namespace of its own is in it by now, with all capabilities.
    pub fn new(p: &Puppet, image: &Image<'_>, notes: &mut Vec<String>) -> Creds {
        let Some(users) = &image.users else { return Creds::around(p, image, notes) };
        let [r, _, s, _] = image.process.uid;
        let all = all_caps();
        Creds {
            uid: [r, users.owner, s, users.owner],
            gid: image.process.gid,
            have: image.process.groups.clone(),
            users: Some(users.clone()),
            held: Held { permitted: all, effective: all },
            bounding: all,
            may_choose_groups: false,
            may_choose_securebits: true,
        }
    }

    /// The calls that come before a user namespace of its own is entered: all IDs as they are outside, but the one that made it makes it, or may enter it.
    pub fn before_users(p: &Puppet, image: &Image<'_>, users: &Users, prog: &mut Program, notes: &mut Vec<String>) {
        let creds = Creds::around(p, image, notes);
        let process = Wanted::of(&image.process);
        let [r, _, s, _] = process.uid;
        let i = Wanted { uid: [r, users.owner, s, users.owner], ..process };
        creds.groups(&i, prog);
        if i.uid != creds.uid {
            creds.users(&i, prog);
        }
    }

    /// From what a new process has by its birth.
    fn around(p: &Puppet, image: &Image<'_>, notes: &mut Vec<String>) -> Creds {
        let have = Rights::own();
        let (all, own) = (all_caps(), Held { permitted: have.permitted, effective: have.caps });
        let (held, bounding) = match p.own_users {
            true => (Held { permitted: all, effective: all }, all),
            false => (own, have.bounding),
        };
        let may_choose_groups = !p.own_users && have.has(CAP_SETGID);
        let may_choose_securebits = held.effective >> CAP_SETPCAP & 1 != 0;
        let (uid, gid, have) = ([have.uid; 4], [have.gid; 4], have.groups);
        let creds = Creds { uid, gid, have, users: None, held, bounding, may_choose_groups, may_choose_securebits };
        if !may_choose_groups {
            for groups in wanted(image).iter().map(|r| &r.groups).filter(|g| creds.lacks(g)) {
                let (have, want) = (sorted(&creds.have), sorted(groups));
                let line = format!("its supplementary groups are the caller's ({have:?}) instead of {want:?}: to choose them takes CAP_SETGID");
                if !notes.contains(&line) {
                    notes.push(line);
                }
            }
        }
        creds
    }

    /// Whether these supplementary groups are others than ours.
    fn lacks(&self, groups: &[u32]) -> bool {
        sorted(&self.have) != sorted(groups)
    }

    /// The calls for one thread. Capabilities come last, as everything else takes some, and each change of users some away.
    pub fn calls(&self, i: &Wanted, prog: &mut Program, soft: &mut Soft) {
        let [inheritable, permitted, effective, bounding, ambient] = i.caps;
        self.groups(i, prog);
        // what is not in the bounding set any more cannot become inheritable
        capset(prog, self.held.permitted, self.held.effective, inheritable);
        prog.named("its inheritable capabilities");
        for cap in (0..64).filter(|c| self.bounding & !bounding & 1 << c != 0) {
            let c = prog.may(libc::SYS_prctl, &[Imm(PR_CAPBSET_DROP), Imm(cap)]);
            soft.add(c, "its bounding set of capabilities is larger than it was");
        }
        if i.uid != self.uid {
            self.users(i, prog);
        }
        prog.may(libc::SYS_prctl, &[Imm(PR_CAP_AMBIENT), Imm(PR_CAP_AMBIENT_CLEAR_ALL), Imm(0), Imm(0), Imm(0)]);
        for cap in (0..64).filter(|c| ambient & 1 << c != 0) {
            let raise = [Imm(PR_CAP_AMBIENT), Imm(PR_CAP_AMBIENT_RAISE), Imm(cap), Imm(0), Imm(0)];
            let c = prog.may(libc::SYS_prctl, &raise);
            soft.add(c, "its ambient capabilities are not as they were");
        }
        self.secure(i.securebits, prog, soft);
        capset(prog, permitted, effective, inheritable);
        prog.named("its capabilities");
        if i.no_new_privs {
            prog.call(libc::SYS_prctl, &[Imm(PR_SET_NO_NEW_PRIVS), Imm(1), Imm(0), Imm(0), Imm(0)]);
        }
    }

    fn groups(&self, i: &Wanted, prog: &mut Program) {
        if self.may_choose_groups && self.lacks(&i.groups) {
            let list = prog.bytes(&i.groups.iter().flat_map(|g| g.to_le_bytes()).collect::<Vec<u8>>());
            prog.call(libc::SYS_setgroups, &[Imm(i.groups.len() as u64), list]);
            prog.named("its supplementary groups");
        }
        if i.gid != self.gid {
            let (ids, fs) = self.named(i.gid, self.gid, |u| &u.gid_map);
            prog.call(libc::SYS_setresgid, &ids);
            prog.named("its group IDs");
            if let Some(fs) = fs {
                file_system(prog, libc::SYS_setfsgid, fs, "its file-system group ID");
            }
        }
    }

    fn users(&self, i: &Wanted, prog: &mut Program) {
        let (ids, fs) = self.named(i.uid, self.uid, |u| &u.uid_map);
        prog.call(libc::SYS_prctl, &[Imm(PR_SET_KEEPCAPS), Imm(1)]);
        prog.call(libc::SYS_setresuid, &ids);
        prog.named("its user IDs");
        // that made none effective, where the user is not root
        capset(prog, self.held.permitted, self.held.effective, i.caps[0]);
        if let Some(fs) = fs {
            file_system(prog, libc::SYS_setfsuid, fs, "its file-system user ID");
        }
    }

    /// Real, effective and saved ID in the words of its user namespace, and that of the file system, if it has to be set. Those that it has already need no word there.
    fn named(&self, want: [u32; 4], have: [u32; 4], map: impl Fn(&Users) -> &Vec<Range>) -> ([Arg; 3], Option<u32>) {
        let Some(users) = &self.users else {
            return ([want[0], want[1], want[2]].map(|id| Imm(u64::from(id))), Some(want[3]));
        };
        let inside = |id: u32| Users::inside(map(users), id).unwrap_or(u32::MAX);
        let id = |i: usize| Imm(u64::from(if want[i] == have[i] { u32::MAX } else { inside(want[i]) }));
        // with the effective one that of the file system becomes the same
        ([id(0), id(1), id(2)], (want[3] != want[1]).then(|| inside(want[3])))
    }

    /// Secure bits: the first takes no right, and is left set by a change of users.
    fn secure(&self, bits: u32, prog: &mut Program, soft: &mut Soft) {
        const LOST: &str = "its secure bits are not as they were";
        let c = prog.may(libc::SYS_prctl, &[Imm(PR_SET_KEEPCAPS), Imm((bits & KEEP_CAPS != 0) as u64)]);
        soft.add(c, LOST);
        if bits & !KEEP_CAPS != 0 || self.may_choose_securebits {
            let c = prog.may(libc::SYS_prctl, &[Imm(PR_SET_SECUREBITS), Imm(bits as u64)]);
            soft.add(c, LOST);
        }
    }
}

/// setfsuid(2) or setfsgid(2), which do not say whether they did it: they are asked after it by a number that is nobody's, and the answer is compared
/// by a call that fails with EAGAIN where it is another.
fn file_system(prog: &mut Program, call: i64, id: u32, name: &str) {
    prog.may(call, &[Imm(id as u64)]);
    let got = prog.bytes(&[0; 4]);
    prog.may(call, &[Imm(u32::MAX as u64)]);
    prog.store(got, 0);
    let other = prog.bytes(&[0; 4]);
    prog.call(libc::SYS_futex, &[got, Imm(COMPARE), Imm(0), Imm(0), other, Imm(id as u64)]);
    prog.named(name);
}

/// The credentials of its threads, those of the process first.
pub fn wanted(image: &Image<'_>) -> Vec<Wanted> {
    std::iter::once(Wanted::of(&image.process)).chain(image.rights.values().cloned()).collect()
}

fn sorted(groups: &[u32]) -> Vec<u32> {
    let mut all = groups.to_vec();
    all.sort_unstable();
    all
}

/// capset(2) of the calling thread. One that failed would leave it what is ours.
pub(crate) fn capset(prog: &mut Program, permitted: u64, effective: u64, inheritable: u64) {
    let head = prog.bytes(&[CAP_VERSION.to_le_bytes(), [0; 4]].concat());
    let half = |shift: u32| [effective, permitted, inheritable].map(|c| (c >> shift) as u32);
    let data: Vec<u8> = half(0).into_iter().chain(half(32)).flat_map(u32::to_le_bytes).collect();
    let data = prog.bytes(&data);
    prog.call(libc::SYS_capset, &[head, data]);
}

/// Every capability that this kernel has.
pub fn all_caps() -> u64 {
    static ALL: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    *ALL.get_or_init(|| {
        let last = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").ok();
        let last = last.and_then(|t| t.trim().parse::<u32>().ok());
        last.map_or(u64::MAX, |n| if n >= 63 { u64::MAX } else { (1 << (n + 1)) - 1 })
    })
}
