//! PIDs and namespaces: how a restored program gets its old numbers.
use super::{from_probe, namespaces, read, Line, Me, Status};
use sys::probe;

pub fn lines(me: &Me) -> Vec<Line> {
    let mut lines = Vec::new();
    let keep = me.probe(probe::set_tid_here);
    let kept = keep.is_ok();
    lines.push(from_probe(
        "pids-keep",
        keep,
        ("a PID can be chosen", "a restored program gets its old PIDs here, where they are free"),
        Status::Limited,
        (
            "a restored program cannot have its old PIDs here: it gets a private PID namespace",
            "run ctl as root, or: setcap cap_checkpoint_restore+eip CTL",
        ),
    ));
    // Without CAP_SYS_ADMIN, a user namespace is what gives the right.
    let with_user = !me.has("CAP_SYS_ADMIN");
    let private = namespaces(me, with_user);
    let essential = |l: Line| if kept { l } else { l.essential() };
    let status = if kept { Status::Limited } else { Status::Missing };
    let user_namespaces = match &private.made {
        Err(e) if with_user => Err(e.to_string()),
        Ok(()) if with_user => Ok(()),
        _ => namespaces(me, true).made.map_err(|e| e.to_string()),
    };
    lines.push(match &user_namespaces {
        Ok(()) => {
            let means = if with_user {
                "they give this user the right to a private PID namespace"
            } else {
                "ordinary users get private PID namespaces too"
            };
            Line::ok("user-namespaces", "made one", means)
        }
        Err(e) if with_user => {
            let means = if kept {
                "no private PID namespace: restores must keep their PIDs"
            } else {
                "this user can restore nothing"
            };
            essential(Line::short_of("user-namespaces", status, e, means, namespace_remedy()))
        }
        Err(e) => {
            let means = "ordinary users cannot restore; root can";
            Line::short_of("user-namespaces", Status::Limited, e, means, namespace_remedy())
        }
    });
    if let Err(e) = &private.made {
        if !with_user {
            let remedy = "allow unshare and clone of namespaces: a seccomp filter forbids it, or use a kernel with CONFIG_PID_NS=y";
            let means = "no private PID namespace: restores must keep their PIDs";
            lines.push(essential(Line::short_of("pids-private", status, e.to_string(), means, remedy)));
        }
        return lines;
    }
    lines.push(essential(match private.set_tid {
        Some(Ok(())) => {
            let means =
                "a restored program gets a private PID namespace with its old PIDs where it cannot have them here";
            Line::ok("pids-private", "made a namespace and chose a PID in it", means)
        }
        other => {
            let found = other.and_then(Result::err).map_or("the probe was killed".into(), |e| e.to_string());
            let means = "a private PID namespace cannot have the old PIDs in it";
            let remedy = "allow clone3: a seccomp filter or security module forbids it";
            Line::short_of("pids-private", status, found, means, remedy)
        }
    }));
    lines.push(essential(match private.proc {
        Some(Ok(())) => Line::ok("proc-mount", "mounted a /proc", "a private PID namespace has its own /proc"),
        other => {
            let found = other.and_then(Result::err).map_or("the probe was killed".into(), |e| e.to_string());
            let means = "parts of /proc here are covered by other mounts (containers do this), so a private PID namespace cannot have its own /proc";
            let remedy = "run the container with an unmasked /proc (docker run --security-opt systempaths=unconfined)";
            Line::short_of("proc-mount", status, found, means, remedy)
        }
    }));
    lines.push(from_probe(
        "pid-translation",
        me.probe(probe::pid_from_pidns),
        ("ioctl(NS_GET_PID_FROM_PIDNS)", "PIDs in private namespaces are translated by the kernel"),
        Status::Limited,
        ("PIDs in private namespaces are looked up in /proc, one by one", "none needed; Linux 6.11 has it"),
    ));
    lines.push(from_probe(
        "time-namespaces",
        me.probe(if with_user { || probe::time_namespace(true) } else { || probe::time_namespace(false) }),
        ("made one", "CLOCK_MONOTONIC and CLOCK_BOOTTIME go on from their old values after a reboot"),
        Status::Limited,
        (
            "CLOCK_MONOTONIC and CLOCK_BOOTTIME may go back after a reboot",
            "use a kernel built with CONFIG_TIME_NS=y; allow user namespaces",
        ),
    ));
    lines
}

/// Which of the many switches forbids user namespaces.
fn namespace_remedy() -> String {
    let on = |path: &str| read(path).trim().to_owned();
    if on("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1" {
        "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or run ctl as root".into()
    } else if on("/proc/sys/kernel/unprivileged_userns_clone") == "0" {
        "sysctl kernel.unprivileged_userns_clone=1, or run ctl as root".into()
    } else if on("/proc/sys/user/max_user_namespaces") == "0" {
        "sysctl user.max_user_namespaces=10000, or run ctl as root".into()
    } else {
        "allow user namespaces: a seccomp filter or security module forbids them (containers do this); or run ctl as root".into()
    }
}
