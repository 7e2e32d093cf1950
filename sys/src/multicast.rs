//! Multicast groups that a socket has joined. No call lists them; one tells whether a given group was joined (MCAST_MSFILTER,
//! include/uapi/linux/in.h), so the groups of all interfaces (/proc/net/igmp, /proc/net/igmp6) are gone through.
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;

const MCAST_JOIN_GROUP: i32 = 42;
const MCAST_MSFILTER: i32 = 48;
const MCAST_EXCLUDE: u32 = 0;
/// `struct group_req`: interface, then (at 8) a sockaddr_storage.
const GROUP_REQ: usize = 136;
/// `struct group_filter`: a group_req, mode, number of sources, then a sockaddr_storage for each of them.
const GROUP_FILTER: usize = GROUP_REQ + 8;
const SOURCE: usize = 128;

/// A group on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// Interface index.
    pub interface: u32,
    /// The group.
    pub group: IpAddr,
    /// `struct group_filter`, if it hears only some sources, or all but some.
    pub filter: Option<Vec<u8>>,
}

impl Membership {
    /// The socket options that join it again: level, name, value.
    pub fn options(&self) -> Vec<(i32, i32, Vec<u8>)> {
        let mut join = vec![0; GROUP_REQ];
        request(&mut join, self.interface, self.group);
        let filter = self.filter.iter().map(|f| (MCAST_MSFILTER, f.clone()));
        let all = std::iter::once((MCAST_JOIN_GROUP, join)).chain(filter);
        all.map(|(name, value)| (level(self.group), name, value)).collect()
    }
}

/// Whether a socket option is one of [`Membership::options`].
pub fn is_join(level: i32, name: i32) -> bool {
    matches!(level, libc::IPPROTO_IP | libc::IPPROTO_IPV6) && matches!(name, MCAST_JOIN_GROUP | MCAST_MSFILTER)
}

/// All that a socket of this domain has joined.
pub fn memberships(fd: &impl AsFd, domain: i32) -> io::Result<Vec<Membership>> {
    let mut groups = v4(&std::fs::read_to_string("/proc/net/igmp").unwrap_or_default());
    if domain == libc::AF_INET6 {
        groups.extend(v6(&std::fs::read_to_string("/proc/net/igmp6").unwrap_or_default()));
    }
    let mut found = Vec::new();
    for (interface, group) in groups {
        match filter(fd, interface, group) {
            Ok(filter) => found.push(Membership { interface, group, filter }),
            // it has not joined this one
            Err(e) if matches!(e.raw_os_error(), Some(libc::EADDRNOTAVAIL | libc::EINVAL | libc::ENODEV)) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(found)
}

/// The sources that a socket hears in a group; None: all.
fn filter(fd: &impl AsFd, interface: u32, group: IpAddr) -> io::Result<Option<Vec<u8>>> {
    let ask = |sources: u32| {
        let mut b = vec![0; GROUP_FILTER + sources as usize * SOURCE];
        request(&mut b, interface, group);
        b[GROUP_REQ + 4..GROUP_FILTER].copy_from_slice(&sources.to_ne_bytes());
        crate::sockopt::get_into(fd, level(group), MCAST_MSFILTER, &mut b)?;
        Ok::<_, io::Error>(b)
    };
    let word = |b: &[u8], at: usize| u32::from_ne_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
    // how many there are is told whatever there is room for
    let sources = word(&ask(0)?, GROUP_REQ + 4);
    let told = ask(sources)?;
    Ok((word(&told, GROUP_REQ) != MCAST_EXCLUDE || sources != 0).then_some(told))
}

fn level(group: IpAddr) -> i32 {
    if group.is_ipv4() {
        libc::IPPROTO_IP
    } else {
        libc::IPPROTO_IPV6
    }
}

/// The beginning of both structs.
fn request(b: &mut [u8], interface: u32, group: IpAddr) {
    b[..4].copy_from_slice(&interface.to_ne_bytes());
    match group {
        IpAddr::V4(a) => {
            b[8..10].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
            b[12..16].copy_from_slice(&a.octets());
        }
        IpAddr::V6(a) => {
            b[8..10].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
            b[16..32].copy_from_slice(&a.octets());
        }
    }
}

/// /proc/net/igmp: a line for each interface ("1 lo : ..."), then an indented one for each of its groups, in network order.
fn v4(text: &str) -> Vec<(u32, IpAddr)> {
    let (mut interface, mut found) = (0, Vec::new());
    for line in text.lines().skip(1) {
        let first = line.split_whitespace().next().unwrap_or_default();
        if !line.starts_with(char::is_whitespace) {
            interface = first.parse().unwrap_or(0);
        } else if let Ok(group) = u32::from_str_radix(first, 16) {
            found.push((interface, Ipv4Addr::from(group.to_ne_bytes()).into()));
        }
    }
    found
}

/// /proc/net/igmp6: interface index, name, group.
fn v6(text: &str) -> Vec<(u32, IpAddr)> {
    let line = |l: &str| {
        let mut words = l.split_whitespace();
        let interface = words.next()?.parse().ok()?;
        let group = u128::from_str_radix(words.nth(1)?, 16).ok()?;
        Some((interface, Ipv6Addr::from(group).into()))
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_lists_are_understood() {
        let text = "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n1\tlo        :     1      V3\n\t\t\t\t010000E0     1 0:00000000\t\t0\n";
        assert_eq!(v4(text), [(1, "224.0.0.1".parse().unwrap())]);
        let text = "1    lo              ff020000000000000000000000000001     1 0000000C 0\n";
        assert_eq!(v6(text), [(1, "ff02::1".parse().unwrap())]);
    }

    #[test]
    fn a_joined_group_is_found_and_no_other() {
        let s = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(memberships(&s, libc::AF_INET).unwrap(), []);
        let group = Ipv4Addr::new(239, 7, 7, 7);
        s.join_multicast_v4(&group, &Ipv4Addr::LOCALHOST).unwrap();
        let found = memberships(&s, libc::AF_INET).unwrap();
        assert_eq!(found, [Membership { interface: 1, group: group.into(), filter: None }]);
    }
}
