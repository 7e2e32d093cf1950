//! CLOCK_MONOTONIC and CLOCK_BOOTTIME of the program. After a reboot or on another machine ours may be behind what it has seen: then it
//! gets a time namespace (time_namespaces(7)), in which they go on from where they were. Where ours are not behind it has ours.
use super::pids::Rights;
use super::{Fault, Step};
use crate::Pids;
use ::image::v1::meta::Meta;
use sys::channel::Channel;
use sys::clock::{self, Clocks, ForChildren};
use sys::procfs::timens::Offsets;
use sys::program::{Arg::Imm, Program};

const CAP_SYS_ADMIN: u32 = 21;
const CAP_SYS_TIME: u32 = 25;

/// How far the program's clocks are ahead of ours; None if neither is.
pub fn ahead(meta: &Meta) -> Step<Option<Offsets>> {
    let now = Clocks::now().map_err(|e| Fault::Io("reading the clocks".into(), e))?;
    Ok(between(meta, now))
}

fn between(meta: &Meta, now: Clocks) -> Option<Offsets> {
    let more = |then: u64, now: u64| i64::try_from(then.saturating_sub(now)).unwrap_or(i64::MAX);
    let monotonic = more(meta.monotonic_ns, now.monotonic);
    // an image of old does not tell: then as far as the other, so that it does not fall behind that
    let boottime = if meta.boottime_ns == 0 { monotonic } else { more(meta.boottime_ns, now.boottime) };
    // in whole ticks: so start times read inside differ by as many from those that are read outside
    let boottime = i64::try_from((boottime as u64).next_multiple_of(clock::TICK as u64)).unwrap_or(boottime);
    (monotonic > 0 || boottime > 0).then_some(Offsets { monotonic, boottime })
}

/// Makes a time namespace for the children of a process of the restore.
pub fn for_children_of(channel: &mut Channel, here: i32, by: Offsets) -> Step<std::io::Result<()>> {
    let mut p = Program::new();
    let made = p.may(libc::SYS_unshare, &[Imm(libc::CLONE_NEWTIME as u64)]);
    let made = channel.run_all(&p)?.get(made);
    Ok(made.and_then(|_| clock::set_ahead(here, by)))
}

/// One for the children that we have while the value lives; else why not.
pub fn for_ours(by: Option<Offsets>) -> (Option<ForChildren>, Option<std::io::Error>) {
    match by.map(ForChildren::new) {
        Some(Ok(made)) => (Some(made), None),
        Some(Err(e)) => (None, Some(e)),
        None => (None, None),
    }
}

/// What a restore would say of the clocks, as far as rights tell.
pub fn foresee(meta: &Meta, pids: Pids, rights: &Rights) -> Option<String> {
    let by = ahead(meta).ok()??;
    let may = rights.has(CAP_SYS_ADMIN) && rights.has(CAP_SYS_TIME);
    let refusal = match std::path::Path::new("/proc/self/ns/time").exists() {
        false => Some(std::io::Error::from_raw_os_error(libc::EINVAL)),
        true if may || pids == Pids::Private && !rights.may_make_namespaces() => None,
        true => Some(std::io::Error::from_raw_os_error(libc::EPERM)),
    };
    Some(note(by, pids, refusal.as_ref()))
}

/// What is said of it: `refused`, why there is no namespace.
pub fn note(by: Offsets, pids: Pids, refused: Option<&std::io::Error>) -> String {
    let (clock, ns) = match by {
        Offsets { monotonic: 0, boottime } => ("CLOCK_BOOTTIME", boottime),
        Offsets { monotonic, .. } => ("CLOCK_MONOTONIC", monotonic),
    };
    let s = ns as f64 / 1e9;
    let Some(e) = refused else {
        return format!("runs in a time namespace, in which its clocks go on: this machine's {clock} is {s:.3} s behind what it has seen");
    };
    let remedy = match pids {
        Pids::Private => "`ctl doctor` says what forbids it",
        _ => "use --pids private",
    };
    format!(
        "{clock} is {s:.3} s behind what the program has seen, so times that it has noted lie that much further away, and no time namespace can \
         be made for it ({e}); {remedy}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_behind_is_set_ahead() {
        let meta = |m, b| Meta { monotonic_ns: m, boottime_ns: b, ..Default::default() };
        let now = Clocks { monotonic: 100, boottime: 150 };
        assert_eq!(between(&meta(100, 150), now), None);
        assert_eq!(between(&meta(50, 0), now), None);
        assert_eq!(between(&meta(130, 150), now), Some(Offsets { monotonic: 30, boottime: 0 }));
        assert_eq!(between(&meta(90, 250), now), Some(Offsets { monotonic: 0, boottime: clock::TICK }));
        assert_eq!(between(&meta(130, 0), now), Some(Offsets { monotonic: 30, boottime: clock::TICK }));
    }

    #[test]
    fn the_note_names_the_clock_and_the_remedy() {
        let refused = std::io::Error::from_raw_os_error(libc::EPERM);
        let by = Offsets { monotonic: 2_500_000_000, boottime: 1 };
        let said = note(by, Pids::Fresh, Some(&refused));
        assert!(
            said.starts_with("CLOCK_MONOTONIC is 2.500 s behind") && said.ends_with("use --pids private"),
            "{said}"
        );
        assert!(note(Offsets { monotonic: 0, ..by }, Pids::Keep, None).contains("CLOCK_BOOTTIME"));
    }
}
