//! sock_diag on sockets of this process.

use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram, UnixListener, UnixStream};

use super::*;

fn inode(socket: &impl AsRawFd) -> u32 {
    let me = std::process::id() as i32;
    let entry = crate::procfs::fd::read(me, socket.as_raw_fd()).unwrap();
    u32::try_from(entry.stat.unwrap().ino).unwrap()
}

fn diag() -> SockDiag {
    SockDiag::open().unwrap()
}

fn find(diag: &mut SockDiag, family: Family, protocol: Protocol, inode: u32) -> Option<InetSock> {
    diag.inet(family, protocol, u32::MAX).unwrap().into_iter().find(|s| s.inode == inode)
}

#[test]
fn tcp_is_found_in_every_state() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let mut diag = diag();
    let mut tcp4 = |inode| find(&mut diag, Family::V4, Protocol::Tcp, inode).unwrap();
    let listening = tcp4(inode(&listener));
    assert_eq!((listening.state, listening.rqueue, listening.wqueue), (10, 1, 128));
    assert_eq!(listening.local, listener.local_addr().unwrap());
    let (mut server, _) = listener.accept().unwrap();
    std::io::Write::write_all(&mut server, b"12345").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let connected = tcp4(inode(&client));
    assert_eq!(connected.remote, listener.local_addr().unwrap());
    assert_eq!(connected.local, client.local_addr().unwrap());
    assert_eq!((connected.rqueue, connected.shutdown), (5, Some(2)));
    assert_eq!(connected.uid, nix::unistd::geteuid().as_raw());
    assert!(connected.tcp_info.unwrap().len() > 100);
    assert!(connected.congestion.is_some() && connected.memory.unwrap().rcvbuf > 0);
    assert_ne!(tcp4(inode(&server)).cookie, connected.cookie);
}

#[test]
fn tcp_that_is_bound_and_no_more() {
    let kind = SockType::Stream;
    let bound = socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, None).unwrap();
    let mut diag = diag();
    assert_eq!(find(&mut diag, Family::V4, Protocol::Tcp, inode(&bound)), None);
    let any_port = libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes([127, 0, 0, 1]) },
        sin_zero: [0; 8],
    };
    let length = size_of_val(&any_port) as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes of a live local of exactly that size.
    let result = unsafe { libc::bind(bound.as_raw_fd(), (&raw const any_port).cast(), length) };
    assert_eq!(result, 0);
    // None before 6.8
    if let Some(sock) = find(&mut diag, Family::V4, Protocol::Tcp, inode(&bound)) {
        assert_eq!((sock.state, sock.local.port() > 0), (7, true));
    }
}

#[test]
fn ipv6_and_udp() {
    let mut diag = diag();
    if let Ok(listener) = TcpListener::bind("[::1]:0") {
        let sock = find(&mut diag, Family::V6, Protocol::Tcp, inode(&listener)).unwrap();
        assert_eq!(sock.local, listener.local_addr().unwrap());
        assert_eq!(sock.v6only, Some(true)); // the kernel sets it with a bind to one address
        let both = TcpListener::bind("[::]:0").unwrap();
        let sock = find(&mut diag, Family::V6, Protocol::Tcp, inode(&both)).unwrap();
        assert_eq!(sock.v6only, Some(false));
    }
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let sock = find(&mut diag, Family::V4, Protocol::Udp, inode(&udp)).unwrap();
    assert_eq!((sock.local, sock.state), (udp.local_addr().unwrap(), 7));
}

#[test]
fn a_pair_knows_its_peer() {
    let (left, right) = UnixStream::pair().unwrap();
    std::io::Write::write_all(&mut &left, b"abc").unwrap();
    let mut diag = diag();
    let sock = diag.unix_by_inode(inode(&right)).unwrap().unwrap();
    assert_eq!((sock.peer, sock.kind, sock.state), (Some(inode(&left)), 1, 1));
    assert_eq!((sock.rqueue, sock.name), (3, None));
    drop(left);
    // a child that another test has forked meanwhile may hold it for a moment, too
    let began = std::time::Instant::now();
    let alone = loop {
        let now = diag.unix_by_inode(inode(&right)).unwrap().unwrap();
        if now.peer == Some(0) || began.elapsed().as_secs() > 10 {
            break now;
        }
        std::thread::yield_now();
    };
    assert_eq!((alone.peer, alone.shutdown), (Some(0), 3));
    let both = diag.unix().unwrap();
    assert!(both.iter().any(|s| s.inode == sock.inode && s.cookie == sock.cookie));
}

#[test]
fn names_and_pending_connections() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("so\ncket");
    let listener = UnixListener::bind(&path).unwrap();
    let first = UnixStream::connect(&path).unwrap();
    let second = UnixStream::connect(&path).unwrap();
    let mut diag = diag();
    let sock = diag.unix_by_inode(inode(&listener)).unwrap().unwrap();
    assert_eq!((sock.state, sock.rqueue), (10, 2));
    assert_eq!(sock.pending, [inode(&first), inode(&second)]);
    assert_eq!(sock.name.as_deref(), Some(path.as_os_str().as_bytes()));
    let meta = std::fs::metadata(&path).unwrap();
    let dev = Dev::from_stat(std::os::unix::fs::MetadataExt::dev(&meta));
    assert_eq!(sock.vfs, Some((std::os::unix::fs::MetadataExt::ino(&meta) as u32, dev)));
    let name = format!("dormouse\0{}\0", std::process::id());
    let bound = UnixDatagram::bind_addr(&UnixAddr::from_abstract_name(&name).unwrap()).unwrap();
    let sock = diag.unix_by_inode(inode(&bound)).unwrap().unwrap();
    assert_eq!(sock.name.unwrap(), [b"\0", name.as_bytes()].concat());
    assert_eq!((sock.kind, sock.state, sock.vfs), (2, 7, None));
}

#[test]
fn another_network_namespace() {
    let mut child = std::process::Command::new("unshare")
        .args(["--net", "--map-root-user", "sh", "-c", "echo; read x"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut byte = [0];
    let ready = std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut byte);
    let here = UdpSocket::bind("127.0.0.1:0").unwrap();
    let there = SockDiag::open_in_netns_of(child.id() as i32);
    child.kill().unwrap();
    child.wait().unwrap();
    if ready.is_err() {
        return; // no right to make a namespace
    }
    match there {
        Ok(mut there) => {
            assert_eq!(find(&mut there, Family::V4, Protocol::Udp, inode(&here)), None);
            assert!(find(&mut diag(), Family::V4, Protocol::Udp, inode(&here)).is_some());
        }
        Err(e) => assert_eq!(e.errno(), Some(libc::EPERM), "{e}"),
    }
}

#[test]
fn what_is_not_there_is_none() {
    let mut diag = diag();
    assert_eq!(diag.unix_by_inode(u32::MAX).unwrap(), None);
    assert_eq!(diag.unix_by_inode(0).unwrap(), None);
    // The socket works on after a refusal.
    assert!(diag.inet(Family::V4, Protocol::Udp, u32::MAX).is_ok());
}

#[test]
fn answers_cut_short_are_malformed() {
    let take = |data: &[u8]| {
        let mut answer = Answer { found: Vec::<UnixSock>::new(), whole: true, done: false };
        answer.take(data, 1, true, "a test", parse_unix).map(|()| answer)
    };
    let good = message(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16], 0, 1);
    assert_eq!(take(&good).unwrap().found.len(), 1);
    for length in 1..good.len() {
        let error = take(&good[..length]).err().unwrap();
        assert_eq!(error.to_string(), "sock_diag answer for a test is malformed");
    }
    let mut tiny = good.clone();
    tiny[0] = 4; // a length below the header's: must not be walked over for ever
    assert!(take(&tiny).is_err());
    let mut refused = message(&(-libc::EPERM).to_ne_bytes(), 0, 1);
    refused[4] = NLMSG_ERROR as u8;
    let error = take(&refused).err().unwrap();
    assert_eq!(error.errno(), Some(libc::EPERM));
    assert!(error.to_string().starts_with("sock_diag query for a test refused: "));
    let mut torn = message(&0u32.to_ne_bytes(), NLM_F_DUMP_INTR, 1);
    torn[4] = NLMSG_DONE as u8;
    let answer = take(&torn).unwrap();
    assert!(answer.done && !answer.whole);
}

mod fuzz {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn arbitrary_answers(data in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut answer = Answer { found: Vec::new(), whole: true, done: false };
            let _ = answer.take(&data, 0, true, "a test", parse_inet);
            let framed = message(&data, 0, 7);
            let _ = answer.take(&framed, 7, false, "a test", parse_inet);
            let mut fixed = vec![2u8; 72];
            fixed.extend_from_slice(&data);
            prop_assert!(parse_inet(&fixed).is_some());
            prop_assert!(parse_unix(&fixed).is_some());
        }
    }
}
