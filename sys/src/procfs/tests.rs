//! The parsers against files of a real kernel, odd ones among them, and against arbitrary bytes.

use super::maps::{Vma, VmaKind};
use super::smaps::VmFlag;
use super::timers::Notify;
use super::*;

fn odd(path: &[u8]) -> Vma {
    let all = maps::parse(fixture!("maps_odd")).unwrap();
    all.into_iter().find(|v| v.path == path).unwrap_or_else(|| panic!("{}", path.escape_ascii()))
}

fn line(text: &str) -> Vma {
    maps::parse(text.as_bytes()).unwrap().pop().unwrap()
}

#[test]
fn maps_names_keep_every_byte() {
    assert!(!odd(b"/tmp/odd dir/two words").deleted);
    assert!(!odd(b"/tmp/odd dir/line\nbreak").deleted);
    let gone = odd(b"/tmp/odd dir/gone (deleted)");
    assert!(gone.deleted);
    assert_eq!(gone.full_path(), b"/tmp/odd dir/gone (deleted) (deleted)");
    // A living file of that name cannot be told apart here: the path to try first is the full one.
    let alive = odd(b"/tmp/odd dir/alive");
    assert!(alive.deleted);
    assert_eq!(alive.full_path(), b"/tmp/odd dir/alive (deleted)");
    assert!(odd(b"/tmp/odd dir/not\xffutf8\x01").deleted);
    // The kernel writes a backslash as it is: \012 in a name reads as a newline.
    odd(b"/tmp/odd dir/back\nslash");
    let space = line("1000-2000 r--p 00000000 fe:00 7    /a\\040b\n");
    assert_eq!(space.path, b"/a\\040b");
}

#[test]
fn maps_fields() {
    let zero = odd(b"/dev/zero");
    assert!(zero.perms.shared && zero.perms.write && !zero.perms.exec);
    assert_eq!(zero.dev, Dev { major: 0, minor: 1 });
    assert_eq!(zero.perms.prot(), libc::PROT_READ | libc::PROT_WRITE);
    let v = line("7f0000001000-7f0000003000 --xp 0001f000 103:0a 18446744073709551615 /x\n");
    assert_eq!((v.start, v.end, v.len()), (0x7f00_0000_1000, 0x7f00_0000_3000, 0x2000));
    assert_eq!((v.offset, v.inode), (0x1f000, u64::MAX));
    assert_eq!(v.dev, Dev { major: 0x103, minor: 10 });
    assert!(v.contains(0x7f00_0000_2fff) && !v.contains(0x7f00_0000_3000));
}

#[test]
fn maps_kinds_of_a_real_process() {
    let all = maps::parse(fixture!("maps_odd")).unwrap();
    let has = |kind: VmaKind<'_>| all.iter().any(|v| v.kind() == kind);
    for kind in [
        VmaKind::Anonymous,
        VmaKind::Heap,
        VmaKind::Stack,
        VmaKind::Vdso,
        VmaKind::Vvar,
        VmaKind::VvarVclock,
        VmaKind::Vsyscall,
        VmaKind::SharedAnon,
        VmaKind::SysvShm { key: 0x1234_abcd },
        VmaKind::Memfd(b"a b (deleted)"),
        VmaKind::AioRing,
        VmaKind::AnonInode(b"io_uring"),
        VmaKind::Socket,
        VmaKind::File,
    ] {
        assert!(has(kind), "{kind:?}");
    }
}

#[test]
fn maps_kinds_that_this_kernel_lacks() {
    let named = line("1000-2000 rw-p 00000000 00:00 0    [anon:my arena: 1]\n");
    assert_eq!(named.kind(), VmaKind::AnonNamed(b"my arena: 1"));
    let shared = line("1000-2000 rw-s 00000000 00:01 9    [anon_shmem:x]\n");
    assert_eq!(shared.kind(), VmaKind::AnonShmemNamed(b"x"));
    assert!(shared.has_file() && !named.has_file());
    let huge = line("200000-400000 rw-p 00000000 00:0f 9   /anon_hugepage (deleted)\n");
    assert_eq!(huge.kind(), VmaKind::AnonHugepage);
    let special = line("1000-2000 r-xp 00000000 00:00 0    [uprobes]\n");
    assert_eq!(special.kind(), VmaKind::Special(b"uprobes"));
    // Files that merely are named so.
    for name in ["/memfd:x", "/dev/zero", "/SYSV00000000", "/SYSV0000000g (deleted)", "/[heap]"] {
        let v = line(&format!("1000-2000 rw-p 00000000 fe:00 9    {name}\n"));
        assert_eq!(v.kind(), VmaKind::File, "{name}");
    }
}

#[test]
fn maps_of_a_thousand() {
    let all = maps::parse(fixture!("maps_many")).unwrap();
    assert_eq!(all.len(), 1132);
    assert!(all.windows(2).all(|pair| pair[0].end <= pair[1].start));
    assert_eq!(maps::parse(b"").unwrap(), []);
}

#[test]
fn maps_errors_name_line_and_cause() {
    let error = maps::parse(b"1000-2000 rw-p 0 0:0 0\n1000-2000 rwzp 0 0:0 0\n").unwrap_err();
    assert_eq!((error.file, error.line), ("maps", 2));
    assert_eq!(error.to_string(), "/proc maps, line 2: expected rwxp: \"1000-2000 rwzp 0 0:0 0\"");
    for bad in ["2000-1000 rw-p 0 0:0 0", "10000000000000000-2 r--p 0 0:0 0", "\n\n", "1-2", "-"] {
        assert!(maps::parse(bad.as_bytes()).is_err(), "{bad}");
    }
}

#[test]
fn smaps_has_the_same_mappings_with_flags() {
    let all = smaps::parse(fixture!("smaps_odd")).unwrap();
    let of = |flag| all.iter().filter(|m| m.flags.has(flag)).count();
    assert_eq!(of(VmFlag::DONTFORK), 1);
    assert_eq!(of(VmFlag::WIPEONFORK), 1);
    assert_eq!(of(VmFlag::SEALED), 1);
    assert_eq!(of(VmFlag::GROWSDOWN), 2);
    assert_eq!(of(VmFlag::PFNMAP), 2);
    let locked = all.iter().find(|m| m.flags.has(VmFlag::LOCKED)).unwrap();
    assert_eq!((locked.locked_kb, locked.rss_kb, locked.anonymous_kb), (4, 4, 4));
    assert_eq!(locked.kernel_page_kb, 4);
    assert!(all.iter().any(|m| m.vma.path == b"/tmp/odd dir/line\nbreak"));
    let exact: Vec<_> = maps::parse(fixture!("maps_odd")).unwrap();
    assert!(all.iter().filter(|m| exact.contains(&m.vma)).count() > 30);
}

#[test]
fn smaps_keeps_flags_it_does_not_know() {
    let text = b"1000-2000 rw-p 00000000 00:00 0\nNewField:  what ever\nProtectionKey:  3\n\
        VmFlags: rd zz ?? abc\n";
    let map = smaps::parse(text).unwrap().pop().unwrap();
    assert!(map.flags.has(VmFlag(*b"zz")) && map.flags.has(VmFlag(*b"??")));
    assert_eq!(map.flags.iter().count(), 3);
    assert_eq!(map.protection_key, Some(3));
    let error = smaps::parse(b"Rss: 4 kB\n").unwrap_err();
    assert_eq!(error.what, "a field before any mapping: \"Rss: 4 kB\"");
}

#[test]
fn status_of_an_odd_process() {
    let s = status::parse(fixture!("status_odd")).unwrap();
    assert_eq!(s.name, b"a) R 1\n\\b ");
    assert_eq!((s.state, s.pid, s.tgid, s.ppid), (State::Running, 15235, 15235, 15232));
    assert_eq!((s.umask, s.threads, s.tracer_pid), (Some(0o27), 1, 0));
    assert_eq!(s.groups, []);
    assert_eq!((s.ns_pid, s.ns_sid), (vec![15235], vec![3108]));
    assert_eq!(s.sig_shared_pending, 1 << 9);
    assert_eq!(s.sig_blocked, 1 << 9 | 1 << 33 | 1 << 63);
    assert_eq!(s.sig_ignored & 1, 1);
    assert_eq!(s.sig_queue, Some((2, 96365)));
    assert_eq!((s.cap_effective, s.cap_ambient), (0x1ff_feff_ffff, 0));
    assert_eq!((s.seccomp, s.seccomp_filters, s.kthread), (Some(0), Some(0), Some(false)));
    assert_eq!(s.cpus_allowed, [3, 0, 0, 0]);
    assert_eq!((s.mems_allowed.len(), s.mems_allowed[0]), (128, 1));
    assert_eq!((s.thp_enabled, s.untag_mask), (Some(true), Some(u64::MAX)));
    assert_eq!(s.speculation_store_bypass, b"vulnerable");
    assert_eq!(s.speculation_indirect_branch, b"always enabled");
    let vm = s.vm.unwrap();
    assert_eq!((vm.rss, vm.lck, vm.pte), (15976, 4, 80));
}

#[test]
fn status_of_others() {
    let zombie = status::parse(fixture!("status_zombie")).unwrap();
    assert!(zombie.state.is_ended() && zombie.vm.is_none());
    let kernel = status::parse(fixture!("status_kthread")).unwrap();
    assert_eq!((kernel.kthread, kernel.ppid, kernel.vm), (Some(true), 0, None));
    let text = b"Name:\t\tx \nState:\tt (tracing stop)\nTgid:\t5\nPid:\t6\nPPid:\t1\n";
    let error = status::parse(text).unwrap_err();
    assert_eq!(error.to_string(), "/proc status, line 0: no field TracerPid");
    let error = status::parse(b"Name:\tx\nState:\tR\nTgid:\tfive\n").unwrap_err();
    assert_eq!((error.line, error.what.as_str()), (3, "unexpected value of Tgid: \"\\tfive\""));
}

#[test]
fn status_lists() {
    let base = String::from_utf8(fixture!("status_odd").to_vec()).unwrap();
    let text = base
        .replace("Groups:\t ", "Groups:\t4 24 4294967295 ")
        .replace("NSpid:\t15235", "NSpid:\t15235\t42\t1")
        .replace("Cpus_allowed:\t3", "Cpus_allowed:\tf,00000000,80000001")
        .replace("Threads:", "x86_Thread_features:\tshstk wrss \nThreads:");
    let s = status::parse(text.as_bytes()).unwrap();
    assert_eq!(s.groups, [4, 24, u32::MAX]);
    assert_eq!(s.ns_pid, [15235, 42, 1]);
    assert_eq!(s.cpus_allowed, [1, 0, 0, 0x80, 0, 0, 0, 0, 0xf, 0, 0, 0]);
    assert_eq!(s.x86_features, [b"shstk".to_vec(), b"wrss".to_vec()]);
}

#[test]
fn stat_of_an_odd_comm() {
    let s = stat::parse(fixture!("stat_odd")).unwrap();
    assert_eq!(s.comm, b"a) R 1\n\\b ");
    assert_eq!((s.pid, s.ppid, s.pgrp, s.session), (15235, 15232, 15232, 3108));
    assert_eq!((s.num_threads, s.starttime, s.vsize, s.rss), (1, 171_072, 19_779_584, 3988));
    assert_eq!((s.start_code, s.end_code), (94_771_268_960_256, 94_771_268_960_597));
    assert_eq!((s.start_stack, s.exit_signal), (140_724_123_453_328, 17));
    assert_eq!((s.start_data, s.end_data), (94_771_268_971_952, 94_771_268_972_568));
    assert_eq!(s.start_brk, 94_772_035_649_536);
    assert_eq!((s.arg_start, s.arg_end), (140_724_123_461_876, 140_724_123_461_925));
    assert_eq!((s.env_start, s.env_end), (140_724_123_461_925, 140_724_123_463_631));
    assert_eq!((s.nice, s.priority, s.rt_priority, s.policy, s.tty()), (0, 20, 0, 0, None));
}

#[test]
fn stat_of_others() {
    let zombie = stat::parse(fixture!("stat_zombie")).unwrap();
    assert_eq!((zombie.state, zombie.exit_code), (State::Zombie, 3 << 8));
    let kernel = stat::parse(fixture!("stat_kthread")).unwrap();
    assert!(kernel.is_kernel_thread());
    assert_eq!(kernel.comm, b"kthreadd");
    // A terminal, and fields of a kernel to come.
    let text = String::from_utf8(fixture!("stat_zombie").to_vec()).unwrap();
    let text = text.replace(" 3108 0 -1", " 3108 34816 77").replace(" 768", " 768 1 2 3");
    let s = stat::parse(text.as_bytes()).unwrap();
    assert_eq!((s.tty(), s.tpgid), (Some(Dev { major: 136, minor: 0 }), 77));
    let error = stat::parse(b"1 (x) S 2 x").unwrap_err();
    assert_eq!(error.what, "field 5 (pgrp) is no number: \"x\"");
    assert!(stat::parse(b"1 )x( S").is_err());
}

#[test]
fn limits_in_the_kernels_order() {
    let l = limits::parse(fixture!("limits")).unwrap();
    let at = |resource: libc::__rlimit_resource_t| l[resource as usize];
    let nofile = at(libc::RLIMIT_NOFILE);
    assert_eq!((nofile.soft, nofile.hard), (1000, 4000));
    let core = at(libc::RLIMIT_CORE);
    assert_eq!((core.soft, core.hard), (0, u64::MAX));
    assert_eq!(at(libc::RLIMIT_CPU).soft, u64::MAX);
    assert_eq!(at(libc::RLIMIT_STACK).soft, 8 << 20);
    assert_eq!(at(libc::RLIMIT_MSGQUEUE).soft, 819_200);
    let text = String::from_utf8(fixture!("limits").to_vec()).unwrap();
    let more = format!("{text}Max new thing             5                    6          bytes\n");
    assert_eq!(limits::parse(more.as_bytes()).unwrap(), l);
    let fewer = text.replace("Max open files ", "Max open filez ");
    let error = limits::parse(fewer.as_bytes()).unwrap_err();
    assert_eq!(error.what, "no field Max open files");
}

#[test]
fn net_tables() {
    let tcp = net::parse_inet(net::InetTable::Tcp, fixture!("net_tcp")).unwrap();
    assert_eq!(tcp.len(), 3);
    assert_eq!(tcp[0].local, "127.0.0.1:8080".parse().unwrap());
    assert_eq!((tcp[0].state, tcp[0].rx_queue, tcp[0].inode), (10, 1, 38827));
    assert_eq!(tcp[1].remote, "127.0.0.1:8080".parse().unwrap());
    assert_eq!((tcp[2].state, tcp[2].rx_queue, tcp[2].inode), (1, 5, 0));
    let tcp6 = net::parse_inet(net::InetTable::Tcp6, fixture!("net_tcp6")).unwrap();
    assert_eq!(tcp6[0].local, "[::1]:8081".parse().unwrap());
    let udp = net::parse_inet(net::InetTable::Udp, fixture!("net_udp")).unwrap();
    assert_eq!((udp[0].local, udp[0].state), ("0.0.0.0:5353".parse().unwrap(), 7));
    let udp6 = net::parse_inet(net::InetTable::Udp6, fixture!("net_udp6")).unwrap();
    assert_eq!(udp6[0].local, "[::]:5354".parse().unwrap());
    let raw = net::parse_inet(net::InetTable::Raw, fixture!("net_raw")).unwrap();
    assert_eq!((raw[0].local.port(), raw[0].inode), (1, 38832));
    let packet = net::parse_packet(fixture!("net_packet")).unwrap();
    assert_eq!((packet[0].kind, packet[0].protocol, packet[0].inode), (2, 0x800, 38833));
    let netlink = net::parse_netlink(fixture!("net_netlink")).unwrap();
    let ours = netlink.iter().find(|row| row.port == 4242).unwrap();
    assert_eq!((ours.protocol, ours.groups, ours.inode), (0, 5, 38834));
}

#[test]
fn net_unix_names() {
    let rows = net::parse_unix(fixture!("net_unix")).unwrap();
    let of = |inode| rows.iter().find(|row| row.inode == inode).unwrap();
    assert_eq!(rows.len(), 4);
    assert_eq!(of(38836).path.as_deref(), Some(b"/tmp/odd dir/s p a c e".as_slice()));
    assert_eq!(of(38837).path.as_deref(), Some(b"/tmp/odd dir/new\nline".as_slice()));
    assert_eq!(of(38835).path.as_deref(), Some(b"@abstract@nul name".as_slice()));
    assert_eq!((of(38838).path.as_deref(), of(38838).kind), (None, 5));
    assert!(of(38837).listening() && !of(38836).listening());
}

#[test]
fn posix_timers() {
    let t = timers::parse(fixture!("timers")).unwrap();
    assert_eq!(t.len(), 3);
    let by_id = |id| t.iter().find(|timer| timer.id == id).unwrap();
    let thread = by_id(2);
    assert!(thread.to_thread);
    assert_eq!((thread.signal, thread.target, thread.clock_id), (34, 15235, -6));
    assert_eq!((by_id(1).notify, by_id(1).value), (Notify::None, 7));
    assert_eq!((by_id(0).value, by_id(0).clock_id), (0x7fff_86e4_52a8, 0));
    assert!(timers::parse(b"signal: 1/0\n").is_err());
    assert!(timers::parse(b"").unwrap().is_empty());
}

#[test]
fn mounts() {
    let mounts = mountinfo::parse(fixture!("mountinfo")).unwrap();
    assert_eq!((mounts[0].mount_point.as_slice(), mounts[0].fs_type.as_slice()), (&b"/"[..], &b"ext4"[..]));
    assert_eq!(mounts[0].dev, Dev { major: 254, minor: 0 });
    let odd: Vec<_> = mounts.iter().filter(|m| m.mount_point == b"/tmp/odd dir/mnt\t#\\").collect();
    assert_eq!(odd[0].source, b"");
    assert_eq!((odd[0].super_options.as_slice(), odd[0].read_only()), (&b"ro,size=64k"[..], true));
    assert_eq!((odd[1].source.as_slice(), odd[1].read_only()), (&b"a b#c"[..], false));
    assert_eq!(odd[1].parent, odd[0].id);
    let text = b"36 35 98:0 /m1 /m2 rw shared:1 master:2 - fuse.x src rw\n";
    let mount = mountinfo::parse(text).unwrap().pop().unwrap();
    assert_eq!(mount.propagation, [b"shared:1".to_vec(), b"master:2".to_vec()]);
}

#[test]
fn auxiliary_vector() {
    let auxv = auxv::parse(fixture!("auxv")).unwrap();
    assert_eq!(auxv.get(libc::AT_PAGESZ), Some(4096));
    assert!(auxv.get(libc::AT_SYSINFO_EHDR).is_some() && auxv.get(9999).is_none());
    assert_eq!(auxv::parse(b"").unwrap(), auxv::Auxv::default());
    let error = auxv::parse(&[1; 12]).unwrap_err();
    assert_eq!(error.what, "12 bytes are not whole pairs of 64-bit words");
}

#[test]
fn link_targets() {
    use fd::Target;
    let path = |path, deleted| Target::Path { path, deleted };
    assert_eq!(Target::parse(b"pipe:[7]"), Target::Pipe(7));
    assert_eq!(Target::parse(b"socket:[8]"), Target::Socket(8));
    assert_eq!(Target::parse(b"anon_inode:[eventfd]"), Target::AnonInode(b"eventfd"));
    assert_eq!(Target::parse(b"anon_inode:inotify"), Target::AnonInode(b"inotify"));
    assert_eq!(Target::parse(b"net:[9]"), Target::Namespace(b"net", 9));
    assert_eq!(Target::parse(b"/memfd:a b (deleted)"), Target::Memfd(b"a b"));
    assert_eq!(Target::parse(b"/memfd:a b"), path(b"/memfd:a b", false));
    assert_eq!(Target::parse(b"/x/pipe:[7] (deleted)"), path(b"/x/pipe:[7]", true));
    assert_eq!(Target::parse(b"(unreachable)"), Target::Other(b"(unreachable)"));
    assert_eq!(ns::parse(b"mnt:[4026531841]").unwrap(), 4_026_531_841);
    assert!(ns::parse(b"mnt:4026531841").is_err());
    assert_eq!(split_cmdline(b"a\0\0b c\0"), [b"a".to_vec(), b"".to_vec(), b"b c".to_vec()]);
    assert_eq!(split_cmdline(b"set title"), [b"set title".to_vec()]);
}

#[test]
fn offsets_of_time_namespaces() {
    let o = timens::parse(b"monotonic           0         0\nboottime           -2 999999999\n").unwrap();
    assert_eq!(o, timens::Offsets { monotonic: 0, boottime: -1_000_000_001 });
    assert_eq!(timens::parse(o.to_string().as_bytes()).unwrap(), o);
    assert_eq!(timens::parse(b"other 1 2\n").unwrap(), timens::Offsets::default());
    for bad in ["monotonic", "monotonic 1", "boottime x 1", "boottime 9223372036854775807 1"] {
        assert!(timens::parse(bad.as_bytes()).is_err(), "{bad}");
    }
    timens::read(std::process::id() as i32).unwrap();
}
