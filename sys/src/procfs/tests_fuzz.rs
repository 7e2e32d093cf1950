//! No parser panics, whatever the bytes; and what the kernel would write reads back.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::sockdiag;

/// Every parser there is; the property is that none of them panics.
fn all(data: &[u8]) {
    for vma in maps::parse(data).unwrap_or_default() {
        let _ = (vma.kind(), vma.len(), vma.full_path());
    }
    let _ = smaps::parse(data);
    let _ = status::parse(data);
    let _ = status::parse_bitmap(data);
    let _ = stat::parse(data).map(|s| s.tty());
    let _ = fdinfo::parse(data);
    let _ = fd::Target::parse(data);
    let _ = limits::parse(data);
    let _ = net::parse_inet(net::InetTable::Tcp, data);
    let _ = net::parse_unix(data);
    let _ = net::parse_packet(data);
    let _ = net::parse_netlink(data);
    let _ = timers::parse(data);
    let _ = timens::parse(data);
    let _ = ns::parse(data);
    let _ = auxv::parse(data);
    let _ = cgroup::parse(data);
    let _ = mountinfo::parse(data);
    let _ = split_cmdline(data);
    let _ = sockdiag::parse_inet(data);
    let _ = sockdiag::parse_unix(data);
}

const REAL: [&[u8]; 14] = [
    fixture!("stat_odd"),
    fixture!("status_odd"),
    fixture!("status_zombie"),
    fixture!("fdinfo_epoll"),
    fixture!("fdinfo_inotify"),
    fixture!("fdinfo_locks"),
    fixture!("fdinfo_timerfd"),
    fixture!("limits"),
    fixture!("net_tcp6"),
    fixture!("net_unix"),
    fixture!("net_packet"),
    fixture!("net_netlink"),
    fixture!("timers"),
    fixture!("mountinfo"),
];

proptest! {
    #[test]
    fn arbitrary_bytes(data in vec(any::<u8>(), 0..600)) {
        all(&data);
    }

    #[test]
    fn bytes_of_the_formats(data in "[ \t\n:/,()0-9a-fA-Z\\\\.\\[\\]-]{0,300}") {
        all(data.as_bytes());
    }

    #[test]
    fn damaged_files(
        which in 0..REAL.len(),
        cut in any::<proptest::sample::Index>(),
        edits in vec((any::<proptest::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let mut data = REAL[which].to_vec();
        for (place, byte) in edits {
            let at = place.index(data.len());
            data[at] = byte;
        }
        data.truncate(cut.index(data.len()) + 1);
        all(&data);
    }

    #[test]
    fn damaged_mappings(at in 0usize..20_000, byte in any::<u8>(), drop in 0usize..40) {
        let mut data = fixture!("maps_odd").to_vec();
        let at = at % (data.len() - drop);
        data[at] = byte;
        data.drain(at..at + drop);
        all(&data);
    }

    #[test]
    fn a_mapping_reads_back(
        start in 0u64..1 << 40, pages in 1u64..1 << 20, offset in 0u64..1 << 40,
        major in 0u32..4096, minor in 0u32..1 << 20, inode in any::<u64>(),
        name in vec(any::<u8>(), 1..40), deleted in any::<bool>(),
    ) {
        // What mangle_path does; a name with a backslash is ambiguous by the kernel's making.
        let name: Vec<u8> =
            name.into_iter().map(|b| if b == b'\\' { b'/' } else { b }).collect();
        prop_assume!(!name.ends_with(b" (deleted)"));
        let (start, end) = (start * 4096, (start + pages) * 4096);
        let mut line = format!(
            "{start:08x}-{end:08x} r-xs {offset:08x} {major:02x}:{minor:02x} {inode} "
        ).into_bytes();
        line.resize(line.len().max(73), b' ');
        line.push(b'/');
        for byte in &name {
            if *byte == b'\n' { line.extend_from_slice(b"\\012") } else { line.push(*byte) }
        }
        if deleted { line.extend_from_slice(b" (deleted)") }
        line.push(b'\n');
        let vma = maps::parse(&line).unwrap().pop().unwrap();
        prop_assert_eq!((vma.start, vma.end, vma.offset), (start, end, offset));
        prop_assert_eq!((vma.dev, vma.inode), (Dev { major, minor }, inode));
        prop_assert_eq!(vma.path, [b"/".as_slice(), &name].concat());
        prop_assert_eq!(vma.deleted, deleted);
    }

    #[test]
    fn any_comm_ends_where_it_ends(comm in vec(1u8.., 0..16)) {
        let numbers = " 1".repeat(49);
        let mut text = b"7 (".to_vec();
        text.extend_from_slice(&comm);
        text.extend_from_slice(format!(") S{numbers}\n").as_bytes());
        let stat = stat::parse(&text).unwrap();
        prop_assert_eq!((stat.comm, stat.pid, stat.state), (comm, 7, State::Sleeping));
    }
}
