//! Without ptrace: a recorder that is denied ptrace, process_vm_readv and writev, pidfd_getfd and kcmp makes checkpoints of programs that have the agent.
use crate::server::Server;
use anyhow::{ensure, Context, Result};
use dormouse_tests::bed::SOON;
use dormouse_tests::run::{self, Ran};
use dormouse_tests::target::{Door, Start};
use dormouse_tests::{sys, unharmed, Bed, Case};
use std::net::TcpStream;

pub fn cases() -> Vec<Case> {
    let mut all = Case::each("agent/server-without-ptrace", server);
    for program in ["thr_sync", "cpu_regs", "epoll", "fd_dup"] {
        all.extend(Case::each(&format!("agent/{program}-without-ptrace"), move |bed| threads(bed, program)));
    }
    all.into_iter().map(|c| c.limit(120)).collect()
}

/// Runs ctl under the filter.
fn denied(bed: &mut Bed, args: &[&str]) -> Result<Ran> {
    let mut c = bed.ctl_command(args);
    sys::deny(&mut c, &sys::TRACING);
    bed.run(&mut c)
}

/// The filter does bite: the other door is shut.
fn bites(bed: &mut Bed, name: &str) -> Result<()> {
    let ran = denied(bed, &["checkpoint", name, "--door", "attach"])?;
    ran.refused(3, &["Operation not permitted"]).map(drop)
}

/// A checkpoint without ptrace.
fn checkpoint(bed: &mut Bed, name: &str, options: &[&str]) -> Result<()> {
    let args = [&["checkpoint", name, "--door", "agent"], options].concat();
    denied(bed, &args)?.expect(0)?;
    let said = bed.ctl_json(&["inspect", name])?;
    ensure!(said["summary"]["door"] == "agent", "the door should be the agent's: {}", said["summary"]["door"]);
    Ok(())
}

/// The Python server runs on, is killed, restored, and goes through the agent again.
fn server(bed: &mut Bed) -> Result<()> {
    let mut web = Server::new()?;
    let mut command = bed.launcher_command(&["--name", "web", "--detach", "--json", "--door", "agent", "--"]);
    command.args(web.argv(bed));
    let mut pid = bed.run(&mut command)?.expect(0)?.json()?["pid"].as_i64().context("no pid")? as i32;
    run::until("the server listening", SOON * 2, || Ok(TcpStream::connect(("127.0.0.1", web.port)).is_ok()))?;
    bites(bed, "web")?;
    let mut n = 0;
    for _ in 0..2 {
        bed.who.assert_is("the server", pid)?;
        n += 1;
        web.ask(&format!("/{n}"), n)?;
        checkpoint(bed, "web", &[])?;
        unharmed::entirely(pid)?;
        n += 1;
        web.ask(&format!("/{n}"), n)?;
        checkpoint(bed, "web", &["--kill"])?;
        web.refuses()?;
        pid = bed.ctl_json(&["restore", "web", "--detach"])?["pid"].as_i64().context("no pid")? as i32;
    }
    web.ask("/last", n + 1)?;
    bed.ctl(&["kill", "web"])?.expect(0)?;
    web.refuses()
}

/// A program with many threads, or with open files of which only descriptors tell.
fn threads(bed: &mut Bed, program: &str) -> Result<()> {
    let mut target = Start::program(program).door(Door::Launched).agent().ready(bed)?;
    let name = target.session.clone();
    bites(bed, &name)?;
    checkpoint(bed, &name, &[])?;
    unharmed::entirely(target.pid)?;
    // that ptrace is denied does not matter where it is not wanted
    let ran = denied(bed, &["checkpoint", &name, "--json"])?.expect(0)?;
    ensure!(ran.json()?["door"] == "agent", "the door should be the agent's: {}", ran.said());
    checkpoint(bed, &name, &["--kill"])?;
    target.gone(bed)?;
    target.restore(bed)?;
    checkpoint(bed, &name, &[])?;
    target.prove(bed).map(drop)
}
