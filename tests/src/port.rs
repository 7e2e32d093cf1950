//! A TCP port for one case.
use std::net::TcpListener;

/// A port for this case alone, below those that the kernel gives to connections (ip_local_port_range): while the server is
/// away between checkpoint and restore, nobody else may get it. Each case is a process, so its PID tells them apart.
pub fn own_port() -> anyhow::Result<u16> {
    let first = 20_000 + std::process::id() % 12_000;
    for port in (first..32_000).chain(20_000..first) {
        if TcpListener::bind(("127.0.0.1", port as u16)).is_ok() {
            return Ok(port as u16);
        }
    }
    anyhow::bail!("no port between 20000 and 32000 is free")
}
