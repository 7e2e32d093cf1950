//! tmux with two shells in panes: its screen, their variables and jobs, the foreground of a terminal, through checkpoints and restores.
use anyhow::{ensure, Context, Result};
use dormouse_tests::bed::LIMIT;
use dormouse_tests::{proc, run, store, Bed, Case};
use std::fs;
use std::path::{Path, PathBuf};

pub fn cases() -> Vec<Case> {
    Case::by_both_doors("tmux/panes", panes).into_iter().map(|c| c.limit(120)).collect()
}

/// A server, whose socket and files are in a folder.
struct Tmux {
    dir: PathBuf,
    /// How often something was typed.
    typed: u32,
}

impl Tmux {
    /// What a command of it says; it starts no server.
    fn tell(&self, bed: &mut Bed, args: &[&str]) -> Result<String> {
        Ok(bed.run(bed.command("tmux").arg("-NS").arg(self.dir.join("s")).args(args))?.expect(0)?.out)
    }

    /// Types a line into a pane's shell, and waits until that has done it.
    fn does(&mut self, bed: &mut Bed, pane: &str, line: &str) -> Result<()> {
        self.typed += 1;
        let done = format!("done{}", self.typed);
        let line = format!("{line}; tmux -NS {} wait-for -S {done}", self.dir.join("s").display());
        self.tell(bed, &["send-keys", "-t", pane, &line, "Enter"])?;
        self.tell(bed, &["wait-for", &done]).map(drop)
    }

    /// What a pane shows when its shell waits for a line.
    fn shown(&self, bed: &mut Bed, pane: &str) -> Result<String> {
        let mut shown = String::new();
        run::until("a prompt", LIMIT, || {
            shown = self.tell(bed, &["capture-pane", "-p", "-t", pane])?;
            Ok(shown.trim_end().ends_with(['$', '#']))
        })?;
        Ok(shown)
    }

    /// What a pane's shell has written into a file.
    fn wrote(&self, name: &str) -> Result<String> {
        fs::read_to_string(self.dir.join(name)).context(name.to_owned())
    }

    /// A file that is to come.
    fn comes(&self, name: &str) -> Result<()> {
        run::until(name, LIMIT, || Ok(self.dir.join(name).exists()))
    }
}

/// A loop in the foreground of the second pane, which Ctrl-C ends.
fn in_the_foreground(bed: &mut Bed, t: &mut Tmux, dir: &Path) -> Result<()> {
    let loops = format!(
        "cd {}; rm -f caught armed; (trap 'echo caught > caught; exit' INT; > armed; while :; do sleep 0.1; done)",
        dir.display()
    );
    t.tell(bed, &["send-keys", "-t", "one.1", &loops, "Enter"])?;
    t.comes("armed")
}

fn panes(bed: &mut Bed, agent: bool) -> Result<()> {
    let door = if agent { "agent" } else { "attach" };
    let dir = bed.folder()?;
    let mut t = Tmux { dir: dir.clone(), typed: 0 };
    let mut c = bed.launcher_command(&["--name", "mux", "--detach", "--json", "--door", door, "--", "tmux", "-D"]);
    c.args(["-f", "/dev/null", "-S"]).arg(dir.join("s"));
    let mut pid = bed.run(&mut c)?.expect(0)?.json()?["pid"].as_i64().context("no pid")? as i32;
    let shell = "exec bash --norc --noprofile";
    let new = ["new-session", "-d", "-s", "one", "-x", "100", "-y", "30", shell];
    run::until("the server", LIMIT, || Ok(t.tell(bed, &new).is_ok()))?;
    t.tell(bed, &["split-window", "-t", "one", shell])?;
    t.does(bed, "one.0", &format!("cd {}; x=41; sleep 1000 & jobs -l > jobs0", dir.display()))?;
    for n in 1..=2 {
        in_the_foreground(bed, &mut t, &dir)?;
        let shown = t.shown(bed, "one.0")?;
        bed.ctl(&["checkpoint", "mux"])?.expect(0)?;
        bed.ctl(&["checkpoint", "mux", "--kill"])?.expect(0)?;
        store::made_by(bed, "mux", door)?;
        ensure!(!proc::alive(pid), "it lives on");
        pid = bed.ctl_json(&["restore", "mux", "--detach"])?["pid"].as_i64().context("no pid")? as i32;
        bed.who.assert_is("the restored tmux", pid)?;
        ensure!(shown == t.tell(bed, &["capture-pane", "-p", "-t", "one.0"])?, "another screen than {shown}");
        // Ctrl-C goes to the foreground of its own pane, and to nobody else
        t.tell(bed, &["send-keys", "-t", "one.1", "C-c"])?;
        t.comes("caught")?;
        t.does(bed, "one.0", &format!("jobs -l > jobs{n}; tty > tty; x=$((x+1)); echo $x > x"))?;
        ensure!(t.wrote("x")? == format!("{}\n", 41 + n), "its variable is {}", t.wrote("x")?);
        ensure!(t.wrote("jobs0")? == t.wrote(&format!("jobs{n}"))?, "its jobs are {}", t.wrote(&format!("jobs{n}"))?);
        // another number if somebody has it now
        ensure!(t.wrote("tty")?.starts_with("/dev/pts/"), "its terminal is {}", t.wrote("tty")?);
    }
    // a job of before is its child still
    t.does(bed, "one.0", "kill %1; wait %1; echo $? > ended")?;
    ensure!(t.wrote("ended")? == "143\n", "its job ended with {}", t.wrote("ended")?);
    t.tell(bed, &["resize-pane", "-t", "one.0", "-y", "7"])?;
    t.does(bed, "one.0", "stty size > size")?;
    ensure!(t.wrote("size")? == "7 100\n", "its size is {}", t.wrote("size")?);
    bed.ctl(&["kill", "mux"])?.expect(0)?;
    run::until("its end", LIMIT, || Ok(!proc::alive(pid)))
}
