//! Finding pages: by PAGEMAP_SCAN, and those written since, by userfaultfd.
use super::child::failed;
use super::{no_effect, ok, Failed, Probe};
use crate::procfs::pagemap::{Categories, Pagemap, Query};
use std::io::Error;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::null_mut;
use std::sync::atomic::{fence, Ordering};

/// One anonymous page of our own, unmapped again when it goes.
struct Page(*mut u8);

impl Page {
    fn new() -> Result<Page, Failed> {
        // SAFETY: a new mapping at an address that the kernel chooses.
        let p = unsafe {
            let (rw, private) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            libc::mmap(null_mut(), PAGE, rw, private, -1, 0)
        };
        if p == libc::MAP_FAILED {
            return failed("mmap");
        }
        Ok(Page(p.cast()))
    }

    fn touch(&self) {
        // SAFETY: the page is mapped writable and ours; volatile, because nobody reads it.
        unsafe { self.0.write_volatile(1) };
        fence(Ordering::SeqCst);
    }

    fn at(&self) -> u64 {
        self.0 as u64
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, to which no reference is left.
        unsafe { libc::munmap(self.0.cast(), PAGE) };
    }
}

const PAGE: usize = 4096;

/// Whether PAGEMAP_SCAN finds `page` in `category`.
fn scan(page: &Page, category: Categories) -> Result<bool, Failed> {
    let step = "ioctl(PAGEMAP_SCAN)";
    let query = Query { all: category, ..Query::default() };
    let read = |e: crate::procfs::ReadError| {
        let errno = e.errno().unwrap_or(libc::EIO);
        Failed { step, error: Some(Error::from_raw_os_error(errno)) }
    };
    let pagemap = Pagemap::open(std::process::id() as i32).map_err(read)?;
    let found = pagemap.scan(page.at()..page.at() + PAGE as u64, &query).map_err(read)?;
    Ok(found.len() == 1)
}

/// PAGEMAP_SCAN finds a page that was written, and only after it was.
pub fn pagemap_scan() -> Probe {
    let page = Page::new()?;
    if scan(&page, Categories::PRESENT)? {
        return no_effect("ioctl(PAGEMAP_SCAN)");
    }
    page.touch();
    if scan(&page, Categories::PRESENT)? {
        Ok(())
    } else {
        no_effect("ioctl(PAGEMAP_SCAN)")
    }
}

/// Memory can be droppable (MAP_DROPPABLE).
pub fn droppable() -> Probe {
    const MAP_DROPPABLE: i32 = 8;
    let flags = libc::MAP_ANONYMOUS | MAP_DROPPABLE;
    // SAFETY: a new mapping at an address that the kernel chooses.
    let p = unsafe { libc::mmap(null_mut(), PAGE, libc::PROT_NONE, flags, -1, 0) };
    if p == libc::MAP_FAILED {
        return failed("mmap(MAP_DROPPABLE)");
    }
    drop(Page(p.cast()));
    Ok(())
}

/// Memory can be sealed (mseal(2)).
pub fn mseal() -> Probe {
    // SAFETY: it seals no byte, which changes nothing.
    ok("mseal", unsafe { libc::syscall(libc::SYS_mseal, 0, 0, 0) }).map(drop)
}

/// Dirty tracking by userfaultfd in its asynchronous write-protect mode: a page reads as written after it was, not before.
pub fn dirty_tracking() -> Probe {
    const UFFD_USER_MODE_ONLY: i32 = 1;
    const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
    const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
    const UFFDIO_WRITEPROTECT: libc::c_ulong = 0xc018_aa06;
    const FEATURES: u64 = 1 /* PAGEFAULT_FLAG_WP */ | 1 << 13 /* WP_UNPOPULATED */ | 1 << 15 /* WP_ASYNC */;
    const MODE_WP: u64 = 2;
    const WRITEPROTECT_MODE_WP: u64 = 1;
    // SAFETY: no argument points anywhere; the descriptor is nobody else's yet.
    let uffd = unsafe {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | UFFD_USER_MODE_ONLY;
        let fd = ok("userfaultfd", libc::syscall(libc::SYS_userfaultfd, flags))?;
        OwnedFd::from_raw_fd(fd as i32)
    };
    let page = Page::new()?;
    page.touch();
    let call = |step, request, arg: &mut [u64]| {
        // SAFETY: `arg` is as long as the request number says (24, 32, 24 bytes), and the range is a page of our own.
        ok(step, unsafe { libc::ioctl(uffd.as_raw_fd(), request, arg.as_mut_ptr()) as _ })
    };
    call("ioctl(UFFDIO_API, WP_ASYNC)", UFFDIO_API, &mut [0xaa, FEATURES, 0])?;
    call("ioctl(UFFDIO_REGISTER)", UFFDIO_REGISTER, &mut [page.at(), PAGE as u64, MODE_WP, 0])?;
    call("ioctl(UFFDIO_WRITEPROTECT)", UFFDIO_WRITEPROTECT, &mut [page.at(), PAGE as u64, WRITEPROTECT_MODE_WP])?;
    if scan(&page, Categories::WRITTEN)? {
        return no_effect("userfaultfd write protection");
    }
    page.touch();
    if scan(&page, Categories::WRITTEN)? {
        Ok(())
    } else {
        no_effect("userfaultfd write protection")
    }
}
