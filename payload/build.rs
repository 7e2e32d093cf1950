//! Builds the blob from `wire` and `parasite` with the same rustc, always optimised, and links it flat.
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let root = PathBuf::from(env("CARGO_MANIFEST_DIR")).join("..");
    let out = PathBuf::from(env("OUT_DIR"));
    for f in ["wire/src", "parasite/src", "agent/src", "payload/blob.ld", "payload/build.rs"] {
        println!("cargo::rerun-if-changed={}", root.join(f).display());
    }
    let rustc = env("RUSTC");
    let sysroot = run(Command::new(&rustc).args(["--print", "sysroot"]));
    let lld = Path::new(sysroot.trim()).join("lib/rustlib/x86_64-unknown-linux-gnu/bin/rust-lld");
    let common = [
        "--edition=2021",
        "--target=x86_64-unknown-linux-gnu",
        "-Copt-level=s",
        "-Cpanic=abort",
        "-Ccodegen-units=1",
        "-Crelocation-model=pie",
        "-Cforce-unwind-tables=no",
        "-Coverflow-checks=off",
        "-Cdebug-assertions=off",
        "-Cdebuginfo=0",
        "-Cno-redzone=yes",
        "-Cforce-frame-pointers=no",
        "-Clink-dead-code=no",
    ];
    let lib = |name: &str, src: &str, externs: &[&str]| {
        let mut c = Command::new(&rustc);
        c.args(common).args(["--crate-type=rlib", "--crate-name", name]).arg(root.join(src));
        c.arg("-o").arg(out.join(format!("lib{name}.rlib"))).arg("-L").arg(&out);
        for e in externs {
            c.arg("--extern").arg(format!("{e}={}", out.join(format!("lib{e}.rlib")).display()));
        }
        run(&mut c);
    };
    lib("wire", "wire/src/lib.rs", &[]);
    lib("parasite", "parasite/src/lib.rs", &["wire"]);

    let elf = out.join("blob.elf");
    let mut c = Command::new(&rustc);
    c.args(common).args(["--crate-type=bin", "--crate-name=blob", "-Clto=fat", "-Crelro-level=off"]);
    c.arg(format!("-Clinker={}", lld.display())).arg("-Clinker-flavor=ld.lld");
    c.arg(format!("-Clink-arg=-T{}", root.join("payload/blob.ld").display()));
    c.args(["-Clink-arg=-pie", "-Clink-arg=--no-dynamic-linker", "-Clink-arg=--no-undefined", "-Clink-arg=-znow"]);
    for e in ["wire", "parasite"] {
        c.arg("--extern").arg(format!("{e}={}", out.join(format!("lib{e}.rlib")).display()));
    }
    let asm = out.join("blob.s");
    c.arg("-L").arg(&out).arg(root.join("parasite/src/blob.rs"));
    c.arg(format!("--emit=link={},asm={}", elf.display(), asm.display()));
    run(&mut c);
    let text = std::fs::read_to_string(asm).expect("rustc wrote the blob's assembly");
    std::fs::write(out.join("keeps.rs"), keeps_vectors(&text, "parasite5serve6thread17h").to_string())
        .expect("write keeps.rs");
    std::fs::write(out.join("blob.bin"), flat(&std::fs::read(&elf).expect("the linker wrote the blob")))
        .expect("write blob.bin");
    agent(&rustc, &lld, &root, &out.join("agent"));
}

/// The preloaded library, from `agent`, `parasite` and `wire`: no C library, nothing exported, nothing needed.
fn agent(rustc: &str, lld: &Path, root: &Path, out: &Path) {
    std::fs::create_dir_all(out).expect("make the agent's folder");
    let common = [
        "--edition=2021",
        "--target=x86_64-unknown-linux-gnu",
        "-Copt-level=s",
        "-Cpanic=abort",
        "-Ccodegen-units=1",
        "-Crelocation-model=pic",
        // a cancelled thread is unwound through what is interposed
        "-Cforce-unwind-tables=yes",
        "-Coverflow-checks=off",
        "-Cdebug-assertions=off",
        "-Cdebuginfo=0",
        "-Clink-dead-code=no",
    ];
    let build = |name: &str, src: &str, externs: &[&str], more: &[String]| {
        let mut c = Command::new(rustc);
        c.args(common).args(["--crate-name", name]).arg(root.join(src)).args(more).arg("-L").arg(out);
        for e in externs {
            c.arg("--extern").arg(format!("{e}={}", out.join(format!("lib{e}.rlib")).display()));
        }
        run(&mut c);
    };
    let lib = |name: &str| {
        let to = out.join(format!("lib{name}.rlib"));
        ["--crate-type=rlib".to_string(), "-o".into(), to.display().to_string()]
    };
    build("wire", "wire/src/lib.rs", &[], &lib("wire"));
    build("parasite", "parasite/src/lib.rs", &["wire"], &lib("parasite"));
    build("agent", "agent/src/lib.rs", &["wire", "parasite"], &lib("agent"));
    let mut link = vec!["--crate-type=cdylib".to_string(), "-Clto=fat".into(), "-Cstrip=symbols".into()];
    link.extend([format!("-Clinker={}", lld.display()), "-Clinker-flavor=ld.lld".into()]);
    for a in [
        "--no-undefined",
        "-znodelete",
        "-znow",
        "-zrelro",
        "--gc-sections",
        "--eh-frame-hdr",
        "--soname=dormouse-agent.so",
        "--hash-style=both",
    ] {
        link.push(format!("-Clink-arg={a}"));
    }
    link.extend(["-o".into(), out.join("agent.so").display().to_string()]);
    build("dormouse_agent", "agent/src/so.rs", &["wire", "parasite", "agent"], &link);
}

/// Cuts the `.text` output section out of the ELF file (the linker script asserts that there is nothing else).
fn flat(elf: &[u8]) -> Vec<u8> {
    let u = |at: usize, n: usize| elf[at..at + n].iter().rev().fold(0usize, |v, b| v << 8 | *b as usize);
    let (shoff, shentsize, shnum, shstrndx) = (u(0x28, 8), u(0x3a, 2), u(0x3c, 2), u(0x3e, 2));
    let strtab = u(shoff + shstrndx * shentsize + 0x18, 8);
    for i in 0..shnum {
        let s = shoff + i * shentsize;
        let name = strtab + u(s, 4);
        if elf[name..].starts_with(b".text\0") {
            assert_eq!(u(s + 0x10, 8), 0, "the text starts at address 0");
            return elf[u(s + 0x18, 8)..][..u(s + 0x20, 8)].to_vec();
        }
    }
    panic!("the linked blob has no .text section");
}

/// Whether the code that the named function can reach leaves all extended state alone: no vector or x87 instruction in it, and no
/// call whose target is not known. Whatever is not understood counts against it.
fn keeps_vectors(asm: &str, entry: &str) -> bool {
    let body = |name: &str| {
        let label = |l: &str| l.strip_suffix(':').is_some_and(|l| l.starts_with("_ZN") && l.contains(name));
        let lines: Vec<&str> = asm.lines().skip_while(|l| !label(l)).skip(1).collect();
        let end = lines.iter().position(|l| l.starts_with(".Lfunc_end"));
        end.map(|n| lines[..n].to_vec())
    };
    let (mut todo, mut seen) = (vec![entry.to_string()], Vec::new());
    while let Some(name) = todo.pop() {
        if seen.contains(&name) {
            continue;
        }
        let Some(lines) = body(&name) else { return false };
        seen.push(name);
        for line in lines.iter().map(|l| l.trim()).filter(|l| !l.starts_with(['.', '#'])) {
            let (what, on) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            let vector = what.starts_with(['f', 'v']) || what.starts_with("xsave") || what.starts_with("xrstor");
            if vector || what == "emms" || what == "ldmxcsr" || on.contains("mm") || on.contains("%st") {
                return false;
            }
            if (what.starts_with("call") || what.starts_with('j'))
                && !on.starts_with(".L")
                && !on.starts_with(|c: char| c.is_ascii_digit())
            {
                if !on.starts_with("_ZN") {
                    return false;
                }
                todo.push(on.trim_end_matches("@PLT").to_string());
            }
        }
    }
    true
}

fn env(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name} for build scripts"))
}

fn run(c: &mut Command) -> String {
    let o = c.output().unwrap_or_else(|e| panic!("cannot run {:?}: {e}", c.get_program()));
    assert!(o.status.success(), "building the blob failed: {}", String::from_utf8_lossy(&o.stderr));
    String::from_utf8(o.stdout).expect("UTF-8")
}
