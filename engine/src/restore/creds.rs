//! Credentials and capabilities of a thread. They are the kernel's per thread: raw calls in each of them.
use super::pids::Rights;
use super::process::Soft;
use super::puppet::Puppet;
use super::Image;
use ::image::v1::rights::Rights as Wanted;
use sys::program::{Arg::Imm, Program};

const CAP_SETGID: u32 = 6;
const PR_CAP_AMBIENT: u64 = 47;
const PR_CAP_AMBIENT_RAISE: u64 = 2;
const PR_CAPBSET_DROP: u64 = 24;
const PR_SET_KEEPCAPS: u64 = 8;
/// SECBIT_KEEP_CAPS
const KEEP_CAPS: u32 = 1 << 4;
const PR_SET_SECUREBITS: u64 = 28;
const PR_SET_NO_NEW_PRIVS: u64 = 38;
/// _LINUX_CAPABILITY_VERSION_3
const CAP_VERSION: u32 = 0x2008_0522;

/// What has to change.
pub struct Creds {
    have: Rights,
    bounding: u64,
    may_choose_groups: bool,
}

impl Creds {
    /// From what the new process has to what the image says.
    pub fn new(p: &Puppet, image: &Image<'_>, notes: &mut Vec<String>) -> Creds {
        let have = Rights::own();
        let bounding = if p.own_users {
            all_caps()
        } else {
            sys::procfs::status::read(std::process::id() as i32).map_or(0, |s| s.cap_bounding)
        };
        let may_choose_groups = !p.own_users && have.has(CAP_SETGID);
        let creds = Creds { have, bounding, may_choose_groups };
        if !may_choose_groups {
            for groups in wanted(image).iter().map(|r| &r.groups).filter(|g| creds.lacks(g)) {
                let (have, want) = (sorted(&creds.have.groups), sorted(groups));
                let line = format!("its supplementary groups are the caller's ({have:?}) instead of {want:?}: an ordinary user cannot choose them");
                if !notes.contains(&line) {
                    notes.push(line);
                }
            }
        }
        creds
    }

    /// Whether these supplementary groups are others than ours.
    fn lacks(&self, groups: &[u32]) -> bool {
        sorted(&self.have.groups) != sorted(groups)
    }

    /// The calls for one thread.
    pub fn calls(&self, i: &Wanted, prog: &mut Program, soft: &mut Soft) {
        let [inheritable, permitted, effective, bounding, ambient] = i.caps;
        for cap in (0..64).filter(|c| self.bounding & !bounding & 1 << c != 0) {
            prog.may(libc::SYS_prctl, &[Imm(PR_CAPBSET_DROP), Imm(cap)]);
        }
        if self.may_choose_groups && self.lacks(&i.groups) {
            let list = prog.bytes(&i.groups.iter().flat_map(|g| g.to_le_bytes()).collect::<Vec<u8>>());
            prog.call(libc::SYS_setgroups, &[Imm(i.groups.len() as u64), list]);
            prog.named("its supplementary groups");
        }
        if i.gid != [self.have.gid; 4] {
            let [r, e, s, fs] = i.gid.map(|g| Imm(g as u64));
            prog.call(libc::SYS_setresgid, &[r, e, s]);
            prog.named("its group IDs");
            prog.may(libc::SYS_setfsgid, &[fs]);
        }
        if i.uid != [self.have.uid; 4] {
            let [r, e, s, fs] = i.uid.map(|u| Imm(u as u64));
            prog.call(libc::SYS_prctl, &[Imm(PR_SET_KEEPCAPS), Imm(1)]);
            prog.call(libc::SYS_setresuid, &[r, e, s]);
            prog.named("its user IDs");
            prog.may(libc::SYS_setfsuid, &[fs]);
            capset(prog, self.have.caps, self.have.caps, 0);
            prog.may(libc::SYS_prctl, &[Imm(PR_SET_SECUREBITS), Imm(i.securebits as u64)]);
        } else if i.securebits == KEEP_CAPS {
            // this one takes no right
            prog.may(libc::SYS_prctl, &[Imm(PR_SET_KEEPCAPS), Imm(1)]);
        } else if i.securebits != 0 {
            let c = prog.may(libc::SYS_prctl, &[Imm(PR_SET_SECUREBITS), Imm(i.securebits as u64)]);
            soft.add(c, "its secure bits are not as they were");
        }
        let c = capset(prog, permitted, effective, inheritable);
        soft.add(c, "its capabilities are not as they were");
        for cap in (0..64).filter(|c| ambient & 1 << c != 0) {
            prog.may(libc::SYS_prctl, &[Imm(PR_CAP_AMBIENT), Imm(PR_CAP_AMBIENT_RAISE), Imm(cap), Imm(0), Imm(0)]);
        }
        if i.no_new_privs {
            prog.call(libc::SYS_prctl, &[Imm(PR_SET_NO_NEW_PRIVS), Imm(1), Imm(0), Imm(0), Imm(0)]);
        }
    }
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

/// capset(2) of the calling thread.
fn capset(prog: &mut Program, permitted: u64, effective: u64, inheritable: u64) -> sys::program::CallId {
    let head = prog.bytes(&[CAP_VERSION.to_le_bytes(), [0; 4]].concat());
    let half = |shift: u32| [effective, permitted, inheritable].map(|c| (c >> shift) as u32);
    let data: Vec<u8> = half(0).into_iter().chain(half(32)).flat_map(u32::to_le_bytes).collect();
    let data = prog.bytes(&data);
    prog.may(libc::SYS_capset, &[head, data])
}

/// Every capability that this kernel has.
fn all_caps() -> u64 {
    let last = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").ok().and_then(|t| t.trim().parse::<u32>().ok());
    last.map_or(u64::MAX, |n| if n >= 63 { u64::MAX } else { (1 << (n + 1)) - 1 })
}
