//! What neither /proc nor a question to the program tells without changing it, found out in a snapshot child: it has the
//! program's credentials, and what is done to it is done to nobody else.
//!
//! - **Landlock.** A domain cannot be read, but it can be deepened, up to a number of layers: a child that takes fewer than we do
//!   is in a domain that we are not in. (We may enter a process only from its own domain or one around it, so as many layers
//!   means the same domain.) Restored, the program would be free of it, so it is refused.
//! - **Memory protection keys.** keys.rs.
//! - **The session keyring.** To ask for it makes one where there is none.
use super::observe::Observer;
use super::snapshot::Child;
use super::Step;
use crate::{Error, Kind};
use sys::channel::Listener;
use sys::program::{Arg, Arg::Imm, CallId, Out, Program};

/// linux/landlock.h: more layers than any kernel allows (landlock(7): 16).
const LAYERS: usize = 65;
const LANDLOCK_ACCESS_FS_EXECUTE: u64 = 1;

/// keyctl(2), linux/keyctl.h.
const GET_KEYRING_ID: u64 = 0;
const DESCRIBE: u64 = 6;
const READ: u64 = 11;
const SESSION: i32 = -3;
/// Bytes of a description, and of a list of keys (4 each).
const ROOM: usize = 256;

impl Observer<'_> {
    /// Asks the snapshot child.
    pub(super) fn unseen(&mut self, child: &mut Child) -> Step<()> {
        self.protection_keys(child)?;
        let layers = match layers_free(child) {
            Err(sys::Error::Filtered { calls, .. }) => return self.unseen_filtered("Landlock", &calls),
            layers => layers?,
        };
        let Some(layers) = layers else { return self.session_keyring(child) };
        let own = if layers < LAYERS { sys::own::landlock_layers_free(LAYERS).unwrap_or(layers) } else { layers };
        if layers < own {
            return Err(Error::new(
                Kind::Refused,
                self.survey.attempted.clone(),
                format!("PID {}", self.survey.pid),
                "a Landlock domain restricts it, which cannot be put back: a restored program would be free of it",
                "start it without Landlock, or run ctl in the same domain",
            )
            .into());
        }
        self.session_keyring(child)
    }

    /// Where no snapshot child is needed: one to ask, while the target stays frozen.
    pub(super) fn unseen_by_a_child_of_its_own(&mut self, l: &Listener, subreaper: bool, adopted: bool) -> Step<()> {
        let before = self.noted.len();
        let child = match self.ask_for_a_child(subreaper, adopted)? {
            Some(judge) => self.child(l, judge)?,
            None => None,
        };
        match child {
            Some(mut child) => {
                self.hidden(Some(&mut child))?;
                self.unseen(&mut child)
            }
            None => {
                self.hidden(None)?;
                self.noted.truncate(before);
                self.unseen_unknown()
            }
        }
    }

    /// No child is to be had.
    pub(super) fn unseen_unknown(&mut self) -> Step<()> {
        let what = "Landlock, session keyring: no child could be made to find out whether it has any; none is kept";
        self.reported.push(what.into());
        self.keys_by_itself()
    }

    /// Its filters keep the child from finding out.
    pub(super) fn unseen_filtered(&mut self, what: &str, calls: &str) -> Step<()> {
        let line = format!("{what}: its seccomp filters do not let through what would find out whether it has any ({calls}); it is not kept");
        self.reported.push(line);
        Ok(())
    }

    fn protection_keys(&mut self, child: &mut Child) -> Step<()> {
        if super::keys::there_are() {
            self.keys = match super::keys::ask(&mut child.channel, true) {
                Err(sys::Error::Filtered { calls, .. }) => {
                    return self.unseen_filtered("memory protection keys", &calls)
                }
                keys => keys?,
            };
        }
        Ok(())
    }

    fn session_keyring(&mut self, child: &mut Child) -> Step<()> {
        let mut p = Program::new();
        let id = p.may(libc::SYS_keyctl, &[Imm(GET_KEYRING_ID), SESSION.into(), Imm(0)]);
        let name = describe(&mut p, id.arg());
        let keys = p.out(ROOM);
        let n = p.may(libc::SYS_keyctl, &[Imm(READ), id.arg(), keys.arg(), Imm(ROOM as u64)]);
        let r = match child.channel.run(&p) {
            Err(sys::Error::Filtered { calls, .. }) => return self.unseen_filtered("session keyring", &calls),
            r => r?,
        };
        let (id, bytes) = (r.raw(id), r.raw(n));
        // none (or no keys in this kernel), or the one that we have too
        if id < 0 || sys::own::session_keyring() == Some(id as i32) {
            return Ok(());
        }
        let listed = keys.len().min(bytes.max(0) as usize) / 4;
        let mut p = Program::new();
        let known: Vec<_> = (0..listed).map(|i| describe(&mut p, (r.u32(keys, i * 4) as i32).into())).collect();
        let d = child.channel.run(&p)?;
        // a login's own holds its user's keyring, which the restoring command's does as well
        let user = |o: &Out| name_of(d.bytes(*o)).starts_with("_uid");
        let all_listed = bytes >= 0 && bytes as usize <= ROOM;
        if !(all_listed && known.iter().all(user)) {
            let name = name_of(r.bytes(name));
            self.reported.push(format!(
                "session keyring {name}: its keys are not kept; a restored program has that of the restoring command"
            ));
        }
        Ok(())
    }
}

/// How many layers of Landlock the child's credentials have room for; None: the kernel has no Landlock.
fn layers_free(child: &mut Child) -> sys::Result<Option<usize>> {
    let mut p = Program::new();
    p.may(libc::SYS_prctl, &[libc::PR_SET_NO_NEW_PRIVS.into(), Imm(1), Imm(0), Imm(0), Imm(0)]);
    let attr = p.bytes(&LANDLOCK_ACCESS_FS_EXECUTE.to_le_bytes());
    let ruleset = p.may(libc::SYS_landlock_create_ruleset, &[attr, Imm(8), Imm(0)]);
    let layers: Vec<CallId> =
        (0..LAYERS).map(|_| p.may(libc::SYS_landlock_restrict_self, &[ruleset.arg(), Imm(0)])).collect();
    let r = child.channel.run(&p)?;
    Ok((r.raw(ruleset) >= 0).then(|| layers.iter().take_while(|c| r.raw(**c) == 0).count()))
}

/// Room for a key's description.
fn describe(p: &mut Program, key: Arg) -> Out {
    let o = p.out(ROOM);
    p.may(libc::SYS_keyctl, &[Imm(DESCRIBE), key, o.arg(), Imm(ROOM as u64)]);
    o
}

/// The name in "keyring;uid;gid;permissions;name".
fn name_of(description: &[u8]) -> String {
    let text = description.split(|b| *b == 0).next().unwrap_or_default();
    text.splitn(5, |b| *b == b';').nth(4).unwrap_or_default().escape_ascii().to_string()
}
