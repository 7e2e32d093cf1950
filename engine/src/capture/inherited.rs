//! What a process hands to its children (fork(2)): it is read of the snapshot child, when the program runs again; where there is none, of the frozen program.
use super::Step;
use image::v1::process::Process;
use serde_bytes::ByteBuf;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use sys::procfs;

/// Reads it. `from`: the PID of whichever it is.
pub(super) fn read(p: &mut Process, from: i32) -> Step<()> {
    p.root = path_bytes(procfs::root(from)?.path);
    p.exe = path_bytes(procfs::exe(from)?.path);
    p.rlimits = procfs::limits::read(from)?.iter().map(|l| (l.soft, l.hard)).collect();
    p.oom_score_adj = number(from, "oom_score_adj", 10) as i32;
    p.coredump_filter = number(from, "coredump_filter", 16) as u32;
    p.auxv = procfs::bytes(from, "auxv")?.into();
    Ok(())
}

/// The working directory, which the program may have left and removed by then, is read in the freeze.
pub(super) fn cwd(p: &mut Process, pid: i32) -> Step<()> {
    let cwd = procfs::cwd(pid)?;
    (p.cwd, p.cwd_deleted) = (path_bytes(cwd.path), cwd.deleted);
    Ok(())
}

fn path_bytes(p: PathBuf) -> ByteBuf {
    ByteBuf::from(p.into_os_string().into_vec())
}

/// 0 where the kernel has no such file.
fn number(pid: i32, name: &str, radix: u32) -> i64 {
    let text = procfs::bytes(pid, name).unwrap_or_default();
    i64::from_str_radix(String::from_utf8_lossy(&text).trim(), radix).unwrap_or(0)
}
