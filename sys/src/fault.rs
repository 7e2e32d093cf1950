//! Faults on demand, for tests: `DORMOUSE_FAULT=SITE:N:ACTION` acts at the N-th pass (from 1) of a site.
//!
//! Sites: `ptrace` (each ptrace call of the tracer), `wire` (each frame sent to the blob), and the engine's phases by
//! name. Actions: `kill-self`, `kill-target`, `kill-parent` (SIGKILL), `stop-self` (SIGSTOP, until somebody
//! continues it), `fail` (the site reports EIO).
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering::Relaxed};
use std::sync::OnceLock;

struct Plan {
    site: String,
    at: u64,
    action: String,
}

static PASSES: AtomicU64 = AtomicU64::new(0);
static TARGET: AtomicI32 = AtomicI32::new(0);

fn plan() -> Option<&'static Plan> {
    static PLAN: OnceLock<Option<Plan>> = OnceLock::new();
    PLAN.get_or_init(|| {
        let v = std::env::var("DORMOUSE_FAULT").ok()?;
        let mut it = v.splitn(3, ':');
        Some(Plan { site: it.next()?.into(), at: it.next()?.parse().ok()?, action: it.next()?.into() })
    })
    .as_ref()
}

/// Tells whom `kill-target` kills.
pub fn target(pid: i32) {
    TARGET.store(pid, Relaxed);
}

/// Passes a site. An error is what the site must report as its own failure.
pub fn point(site: &str) -> std::io::Result<()> {
    let Some(p) = plan() else { return Ok(()) };
    if p.site != site || PASSES.fetch_add(1, Relaxed) + 1 != p.at {
        return Ok(());
    }
    let signal = |pid: i32, signal| {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal);
    };
    let kill = |pid| signal(pid, nix::sys::signal::SIGKILL);
    match p.action.as_str() {
        "kill-self" => kill(std::process::id() as i32),
        "stop-self" => signal(std::process::id() as i32, nix::sys::signal::SIGSTOP),
        // of several tracers one may have killed it already, and the parent is a stranger now
        "kill-parent" => {
            let exe = |of: String| std::fs::read_link(format!("/proc/{of}/exe")).ok();
            let parent = nix::unistd::getppid().as_raw();
            if exe(parent.to_string()).is_some_and(|p| Some(p) == exe("self".into())) {
                kill(parent);
            }
        }
        "kill-target" => match TARGET.load(Relaxed) {
            0 => {}
            pid => kill(pid),
        },
        _ => return Err(std::io::Error::from_raw_os_error(libc::EIO)),
    }
    Ok(())
}

/// How often the planned site was passed, for tests that count sites.
pub fn passes() -> u64 {
    PASSES.load(Relaxed)
}
