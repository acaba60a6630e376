//! What the sockets of sessions need: small writes go out at once, a dead peer is noticed.
//!
//! sqlx keeps its sockets to itself and leaves Nagle's algorithm on: the end of a COPY then waits for the acknowledgement of its rows, which
//! the server's kernel puts off by 40 ms. So the sockets are found among this process's own.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrV4, SocketAddrV6, getpeername, sockopt};

/// An idle peer is probed after this, and given up after three unanswered probes five seconds apart.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;

/// A half-open connection must end by itself (faults 13 and 14).
pub(super) fn tune(socket: impl AsFd) -> io::Result<()> {
    let socket = socket.as_fd();
    sockopt::set_tcp_nodelay(socket, true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    #[cfg(target_os = "linux")]
    {
        sockopt::set_tcp_keepidle(socket, KEEPALIVE_IDLE)?;
        sockopt::set_tcp_keepintvl(socket, KEEPALIVE_INTERVAL)?;
        sockopt::set_tcp_keepcnt(socket, KEEPALIVE_PROBES)?;
    }
    Ok(())
}

/// Tunes every TCP socket of this process that leads to a port. What cannot be tuned still works.
pub(super) fn tune_those_to(port: u16) {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else { return };
    for number in entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<RawFd>().ok()) {
        // SAFETY: another thread may close it meanwhile, and the number may come to mean another file. It lives for two system calls: the first says
        // what it is, and options set on another socket, were there one in just that moment, harm nothing.
        #[expect(unsafe_code, reason = "sqlx gives no access to its socket")]
        let file = unsafe { BorrowedFd::borrow_raw(number) };
        if peer_port(file) == Some(port)
            && let Err(error) = tune(file)
        {
            tracing::debug!(%error, port, "a connection could not be tuned");
        }
    }
}

/// `None` for what is no TCP connection.
fn peer_port(file: BorrowedFd<'_>) -> Option<u16> {
    let peer = getpeername(file).ok()??;
    match peer.address_family() {
        AddressFamily::INET => SocketAddrV4::try_from(peer).ok().map(|address| address.port()),
        AddressFamily::INET6 => SocketAddrV6::try_from(peer).ok().map(|address| address.port()),
        _ => None,
    }
}
