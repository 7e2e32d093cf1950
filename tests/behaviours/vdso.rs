//! A program from under another kernel: its image has a vDSO with other entries at other addresses, and the kernel's mappings in
//! another order and of other sizes (src/bin/reimage.rs makes it so). Its clocks stay right.
use anyhow::{bail, ensure, Result};
use dormouse_tests::target::Start;
use dormouse_tests::{proc, Bed, Case, Target};
use std::fs;

pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    all.extend(Case::each("vdso/of-another-kernel", |bed| go(bed, &[true])));
    all.extend(Case::each("vdso/of-another-kernel-five-cycles", |bed| go(bed, &[true, false, false, false, false])));
    all.extend(Case::each("vdso/of-one-kernel-after-another", |bed| go(bed, &[true, false, true, true, false])));
    all.extend(Case::each("vdso/of-another-kernel-sabotage", sabotage));
    all
}

/// One cycle each; `true`: to another kernel.
fn go(bed: &mut Bed, cycles: &[bool]) -> Result<()> {
    let mut target = Start::program("mem_vdso").ready(bed)?;
    through(bed, &mut target, cycles)?;
    target.prove(bed).map(|_| ())
}

fn sabotage(bed: &mut Bed) -> Result<()> {
    let mut target = Start::program("mem_vdso").args(["--sabotage"]).ready(bed)?;
    through(bed, &mut target, &[true])?;
    target.fail(bed)
}

fn through(bed: &mut Bed, target: &mut Target, cycles: &[bool]) -> Result<()> {
    let mut kernels = 0;
    for other in cycles {
        if *other {
            let before = vdso(target.pid)?;
            move_to_another_kernel(bed, target)?;
            kernels += 1;
            target.restore(bed)?;
            ensure!(vdso(target.pid)? != before, "this kernel's vDSO took the place of one with other entries");
        } else {
            target.kill(bed)?;
            target.restore(bed)?;
        }
        let old = olds(target.pid);
        ensure!(
            old == kernels,
            "it came from under {kernels} other kernels, and should have as many old vDSOs, it has {old}"
        );
    }
    Ok(())
}

/// Leaves a checkpoint of it as another kernel would have made it, and nothing else.
fn move_to_another_kernel(bed: &mut Bed, target: &mut Target) -> Result<()> {
    // Not everyone may enter the folder that the tool was built in.
    let tool = bed.dir.join("reimage");
    fs::copy(env!("CARGO_BIN_EXE_reimage"), &tool)?;
    for _ in 0..100 {
        target.checkpoint(bed)?;
        let mut c = bed.command(&tool);
        c.arg(bed.state()).arg(&target.session).arg(bed.stage.program("old_vdso.so"));
        let ran = bed.run(&mut c)?;
        if ran.code() == 0 {
            bed.ctl(&["verify", &target.session])?.expect(0)?;
            bed.ctl(&["kill", &target.session])?.expect(0)?;
            return target.gone(bed);
        }
        // 75: a thread was just inside the vDSO
        ran.expect(75)?;
    }
    bail!("a thread was always inside the vDSO")
}

/// Where the kernel has its vDSO.
fn vdso(pid: i32) -> Result<u64> {
    let all: Vec<u64> = proc::maps(pid).iter().filter(|m| m.name == "[vdso]").map(|m| m.start).collect();
    ensure!(all.len() == 1, "it should have one vDSO of the kernel's, it has {}", all.len());
    Ok(all[0])
}

/// How many old vDSOs it has: code of no file.
fn olds(pid: i32) -> usize {
    proc::maps(pid).iter().filter(|m| m.perms == "r-xp" && m.name.is_empty()).count()
}
