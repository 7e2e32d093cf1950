//! The readers on living processes: this one, and children made for the purpose.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};

use super::pagemap::{match_entries, Categories, Entry, Pagemap, Query, Region, PAGE_SIZE};
use super::*;

fn me() -> Pid {
    std::process::id() as Pid
}

/// A child that is killed and reaped whatever the test does.
struct Guard(Child);

impl Guard {
    fn new(program: &str, args: &[&str]) -> Guard {
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
        Guard(command.spawn().unwrap())
    }

    fn pid(&self) -> Pid {
        self.0.id() as Pid
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn every_file_of_every_process_parses() {
    let mut read_some = 0;
    for pid in pids().unwrap() {
        let gone_or_fine = |what: &str, error: Option<ReadError>| {
            if let Some(error @ ReadError::Parse { .. }) = error {
                panic!("{what}: {error}");
            }
        };
        gone_or_fine("maps", maps::read(pid).err());
        gone_or_fine("status", status::read(pid).err());
        gone_or_fine("stat", stat::read(pid).err());
        gone_or_fine("limits", limits::read(pid).err());
        gone_or_fine("auxv", auxv::read(pid).err());
        gone_or_fine("timers", timers::read(pid).err());
        gone_or_fine("mountinfo", mountinfo::read(pid).err());
        gone_or_fine("ns", ns::read(pid).err());
        gone_or_fine("cgroup", cgroup::read(pid).err());
        gone_or_fine("children", children(pid).err());
        for fd in fd::list(pid).unwrap_or_default() {
            gone_or_fine("fdinfo", fdinfo::read(pid, fd.fd).err());
        }
        read_some += 1;
    }
    assert!(read_some > 1);
    for table in [net::InetTable::Tcp, net::InetTable::Tcp6, net::InetTable::Udp6] {
        net::read_inet(me(), table).unwrap();
    }
    net::read_unix(me()).unwrap();
    net::read_packet(me()).unwrap();
    net::read_netlink(me()).unwrap();
}

#[test]
fn this_process_is_as_it_knows_itself() {
    let status = status::read(me()).unwrap();
    assert_eq!((status.pid, status.tgid), (me(), me()));
    assert_eq!(status.uid.effective, nix::unistd::geteuid().as_raw());
    let stat = stat::read(me()).unwrap();
    assert_eq!(stat.ppid, nix::unistd::getppid().as_raw());
    assert_eq!(start_time(me()).unwrap(), stat.starttime);
    assert_eq!(cwd(me()).unwrap().path, std::env::current_dir().unwrap());
    assert_eq!(exe(me()).unwrap().path, std::env::current_exe().unwrap());
    assert_eq!(root(me()).unwrap().path, Path::new("/"));
    assert_eq!(cmdline(me()).unwrap().len(), std::env::args_os().count());
    assert_eq!(boot_id().unwrap().len(), 36);
    assert!(ns::read(me()).unwrap().differences(&ns::read(me()).unwrap()).is_empty());
    assert!(pid_exists(me()) && !pid_exists(0) && !pid_exists(i32::MAX));
    let here = maps::read(me()).unwrap();
    let code = this_process_is_as_it_knows_itself as *const () as u64;
    let vma = here.iter().find(|v| v.contains(code)).unwrap();
    assert!(vma.perms.exec);
    let link = maps::map_files_link(me(), vma.start, vma.end).unwrap();
    assert_eq!(link, vma.path);
    let smaps = smaps::read(me()).unwrap();
    assert!(smaps.iter().all(|m| m.flags.iter().next().is_some()));
}

#[test]
fn threads_and_children_are_found() {
    let child = Guard::new("sleep", &["30"]);
    assert!(children(me()).unwrap().contains(&child.pid()));
    assert!(process::children_by_parent(me()).unwrap().contains(&child.pid()));
    assert_eq!(comm(child.pid()).unwrap(), b"sleep");
    std::thread::spawn(|| {
        let tid = nix::unistd::gettid().as_raw();
        assert!(tasks(me()).unwrap().contains(&tid));
        assert_eq!(status::read_task(me(), tid).unwrap().pid, tid);
        assert_eq!(status::read(tid).unwrap().tgid, me());
        assert_eq!(stat::read_task(me(), tid).unwrap().pid, tid);
    })
    .join()
    .unwrap();
}

#[test]
fn errors_say_what_and_where() {
    let error = status::read(i32::MAX).unwrap_err();
    assert!(error.is_gone() && !error.is_denied());
    assert_eq!(error.to_string(), "cannot read /proc/2147483647/status: No such file or directory (os error 2)");
    let error = fd::read(me(), 999_999).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("cannot readlink /proc/{}/fd/999999: No such file or directory (os error 2)", me())
    );
}

#[test]
fn descriptors_are_listed_with_their_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a\nb (deleted)");
    let mut file = File::create(&path).unwrap();
    file.write_all(b"hello").unwrap();
    let (reader, _writer) = nix::unistd::pipe().unwrap();
    let number = file.as_raw_fd();
    let all = fd::list(me()).unwrap();
    assert!(all.windows(2).all(|pair| pair[0].fd < pair[1].fd));
    assert!(fd::numbers(me()).unwrap().contains(&number));
    let entry = all.iter().find(|e| e.fd == number).unwrap();
    let stat = entry.stat.unwrap();
    assert_eq!((stat.file_type(), stat.nlink, stat.size), (libc::S_IFREG, 1, 5));
    assert!(entry.target.ends_with(b"/a\nb (deleted)"));
    assert_eq!(fdinfo::read(me(), number).unwrap().pos, 5);
    std::fs::remove_file(&path).unwrap();
    let entry = fd::read(me(), number).unwrap();
    assert_eq!(entry.stat.unwrap().nlink, 0);
    assert!(entry.target.ends_with(b"/a\nb (deleted) (deleted)"));
    let pipe = fd::read(me(), reader.as_raw_fd()).unwrap();
    assert_eq!(pipe.kind(), fd::Target::Pipe(pipe.stat.unwrap().ino));
}

/// Private memory of this process, unmapped at the end.
struct Mapping(*mut libc::c_void, usize);

impl Mapping {
    fn new(length: u64) -> Mapping {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let length = length as usize;
        // SAFETY: a new mapping at a place of the kernel's choice touches no existing memory.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), length, prot, flags, -1, 0) };
        assert_ne!(start, libc::MAP_FAILED);
        // SAFETY: advice about a range that is ours; huge pages would fill more than was touched.
        unsafe { libc::madvise(start, length, libc::MADV_NOHUGEPAGE) };
        Mapping(start, length)
    }

    fn start(&self) -> u64 {
        self.0 as u64
    }

    fn range(&self) -> std::ops::Range<u64> {
        self.start()..self.start() + self.1 as u64
    }

    fn write(&self, page: u64) {
        assert!(page * PAGE_SIZE < self.1 as u64);
        // SAFETY: inside our writable mapping, as just checked; nobody else refers to it.
        unsafe { self.0.cast::<u8>().add((page * PAGE_SIZE) as usize).write_volatile(1) };
    }

    fn read(&self, page: u64) {
        assert!(page * PAGE_SIZE < self.1 as u64);
        // SAFETY: inside our readable mapping, as just checked.
        unsafe { self.0.cast::<u8>().add((page * PAGE_SIZE) as usize).read_volatile() };
    }

    fn advise(&self, page: u64, advice: libc::c_int) -> bool {
        assert!(page * PAGE_SIZE < self.1 as u64);
        // SAFETY: one page of our own mapping, to which no reference exists.
        let result = unsafe {
            let at = self.0.cast::<u8>().add((page * PAGE_SIZE) as usize);
            libc::madvise(at.cast(), PAGE_SIZE as usize, advice)
        };
        result == 0
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the whole mapping that `new` made, and nothing refers to it any more.
        unsafe { libc::munmap(self.0, self.1) };
    }
}

fn pages_of(regions: &[Region], start: u64) -> Vec<u64> {
    let pages = |r: &Region| (r.start - start) / PAGE_SIZE..(r.end - start) / PAGE_SIZE;
    regions.iter().flat_map(pages).collect()
}

#[test]
fn pagemap_finds_what_was_written() {
    let memory = Mapping::new(600 << 20); // three chunks of entries
    let last = (600 << 20) / PAGE_SIZE - 1;
    for page in [0, 1, 5, 70_000, last] {
        memory.write(page);
    }
    memory.read(9); // the zero page
    let map = Pagemap::open(me()).unwrap();
    let by_entries = map.regions_by_entries(memory.range(), &Query::POPULATED).unwrap();
    assert_eq!(pages_of(&by_entries, memory.start()), [0, 1, 5, 9, 70_000, last]);
    let regions = map.regions(memory.range(), &Query::PRIVATE).unwrap();
    assert_eq!(pages_of(&regions, memory.start()), [0, 1, 5, 70_000, last]);
    assert_eq!(regions.len(), 4);
    let entries = map.entries(memory.start()..memory.start() + 2 * PAGE_SIZE + 1).unwrap();
    assert_eq!(entries.len(), 3);
    assert!(entries[0].present() && entries[0].exclusive() && !entries[0].file_or_shared());
    assert_eq!(entries[2], Entry::default());
}

#[test]
fn pagemap_scan_tells_categories_and_survives_many_regions() {
    let memory = Mapping::new(80 << 20);
    let count = (80 << 20) / PAGE_SIZE;
    for page in (0..count).step_by(2) {
        memory.write(page); // more regions than one ioctl returns
    }
    let map = Pagemap::open(me()).unwrap();
    let query = Query { tell: Categories::PRESENT.or(Categories::FILE), ..Query::PRIVATE };
    match map.scan(memory.range(), &query) {
        Ok(regions) => {
            assert_eq!(regions.len() as u64, count / 2);
            assert!(regions.iter().all(|r| r.categories == Categories::PRESENT && r.len() == 4096));
            assert_eq!(map.regions_by_entries(memory.range(), &query).unwrap(), regions);
        }
        Err(e) => assert_eq!(e.errno(), Some(libc::ENOTTY)),
    }
}

#[test]
fn pagemap_drops_guard_regions() {
    const MADV_GUARD_INSTALL: libc::c_int = 102;
    let memory = Mapping::new(16 * PAGE_SIZE);
    memory.write(2);
    if !memory.advise(4, MADV_GUARD_INSTALL) {
        return; // before 6.13
    }
    let map = Pagemap::open(me()).unwrap();
    let private = map.regions(memory.range(), &Query::PRIVATE).unwrap();
    let guards = map.regions(memory.range(), &Query::GUARDS).unwrap();
    if map.entries(memory.range()).unwrap()[4].guard() {
        assert_eq!(pages_of(&private, memory.start()), [2]);
        assert_eq!(pages_of(&guards, memory.start()), [4]);
    }
}

#[test]
fn pagemap_of_odd_ranges() {
    let map = Pagemap::open(me()).unwrap();
    assert_eq!(map.regions(0..0, &Query::PRIVATE).unwrap(), []);
    assert_eq!(map.regions(0..4096, &Query::PRIVATE).unwrap(), []);
    let gate = 0xffff_ffff_ff60_0000;
    assert_eq!(map.regions(gate..gate + 4096, &Query::POPULATED).unwrap(), []);
    assert_eq!(map.entries(gate..gate + 4096).unwrap(), []);
    let memory = Mapping::new(4 * PAGE_SIZE);
    memory.write(1);
    match map.scan(0..u64::MAX, &Query::PRIVATE) {
        Ok(all) => {
            let at = memory.start() + PAGE_SIZE;
            assert!(all.iter().any(|r| (r.start..r.end).contains(&at)));
            assert!(all.windows(2).all(|pair| pair[0].end <= pair[1].start));
        }
        Err(e) => assert_eq!(e.errno(), Some(libc::ENOTTY)),
    }
    let unaligned = memory.start() + PAGE_SIZE + 7..memory.start() + PAGE_SIZE + 9;
    let regions = map.regions(unaligned, &Query::PRIVATE).unwrap();
    assert_eq!(pages_of(&regions, memory.start()), [1]);
}

#[test]
fn pagemap_of_another_process() {
    let mut child = Guard::new("cat", &[]);
    child.0.stdin.as_mut().unwrap().write_all(b"ready\n").unwrap();
    let mut line = String::new();
    BufReader::new(child.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let map = Pagemap::open(child.pid()).unwrap();
    let mut found = 0;
    for vma in maps::read(child.pid()).unwrap() {
        let scanned = map.regions(vma.range(), &Query::POPULATED).unwrap();
        let entries = map.regions_by_entries(vma.range(), &Query::POPULATED).unwrap();
        assert_eq!(scanned, entries, "{vma:?}");
        found += scanned.len();
    }
    assert!(found > 10);
}

#[test]
fn pagemap_entries_become_regions() {
    let present = Entry(1 << 63);
    let file = Entry(1 << 63 | 1 << 61);
    let swapped = Entry(1 << 62);
    let guard = Entry(1 << 62 | 1 << 58);
    let entries = [present, present, file, swapped, Entry(0), guard, present];
    let mut found = Vec::new();
    let query = Query { tell: Categories::SWAPPED, ..Query::PRIVATE };
    match_entries(0x1000, &entries, &query, &mut found);
    let told = |start, end, categories| Region { start, end, categories };
    assert_eq!(
        found,
        [
            told(0x1000, 0x3000, Categories::NONE),
            told(0x4000, 0x5000, Categories::SWAPPED),
            told(0x7000, 0x8000, Categories::NONE),
        ]
    );
    assert_eq!((Entry(1 << 63 | 77).pfn(), Entry(1 << 62 | 77).pfn()), (77, 0));
    assert!(Entry(1 << 55).soft_dirty() && Entry(1 << 57).uffd_wp());
}
