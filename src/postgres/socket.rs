//! The transport: TCP, TLS over TCP, or a Unix socket, and how it is opened.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time::{Instant, timeout};
use tokio_rustls::client::TlsStream;

use super::tuning;
use crate::error::{Error, ErrorKind, Result};

/// Unacknowledged bytes end a connection after this (`TCP_USER_TIMEOUT`); without it, after about 15 minutes.
const USER_TIMEOUT_MS: u32 = 20_000;

/// A connected transport.
#[derive(Debug)]
pub enum Socket {
    /// Plain TCP.
    Tcp(TcpStream),
    /// TLS over TCP.
    Tls(Box<TlsStream<TcpStream>>),
    /// A Unix socket.
    Unix(UnixStream),
}

impl Socket {
    /// Connects to the first address of a host that answers; every address gets its share of the time.
    ///
    /// # Errors
    /// [`ErrorKind::Connection`].
    pub async fn tcp(host: &str, port: u16, deadline: Instant) -> Result<TcpStream> {
        let looked_up = timeout(deadline.saturating_duration_since(Instant::now()), lookup_host((host, port))).await;
        let addresses: Vec<_> = looked_up
            .map_err(|_| Error::new(ErrorKind::Connection, format!("looking up '{host}' took too long")))?
            .map_err(|e| Error::new(ErrorKind::Connection, format!("'{host}' cannot be looked up")).with_source(e))?
            .collect();
        let mut last = Error::new(ErrorKind::Connection, format!("'{host}' has no address"));
        for (index, address) in addresses.iter().enumerate() {
            let left = deadline.saturating_duration_since(Instant::now());
            let share = left / u32::try_from(addresses.len() - index).unwrap_or(u32::MAX);
            match timeout(share, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    tune(&stream).map_err(|e| {
                        Error::new(ErrorKind::Connection, format!("{address} takes no keepalives")).with_source(e)
                    })?;
                    return Ok(stream);
                }
                Ok(Err(e)) => last = Error::new(ErrorKind::Connection, format!("cannot connect to {address}")).with_source(e),
                Err(_) => last = Error::new(ErrorKind::Connection, format!("{address} did not answer within {share:.1?}")),
            }
        }
        Err(last)
    }

    /// Connects to the socket in a folder.
    ///
    /// # Errors
    /// [`ErrorKind::Connection`].
    pub async fn unix(folder: &Path, port: u16, deadline: Instant) -> Result<Self> {
        let path = folder.join(format!(".s.PGSQL.{port}"));
        let failed = |what| Error::new(ErrorKind::Connection, format!("{what} {}", path.display()));
        match timeout(deadline.saturating_duration_since(Instant::now()), UnixStream::connect(&path)).await {
            Ok(Ok(stream)) => Ok(Self::Unix(stream)),
            Ok(Err(e)) => Err(failed("cannot connect to").with_source(e)),
            Err(_) => Err(failed("no answer from")),
        }
    }

    /// True when a password in clear text stays on this machine or is encrypted.
    #[must_use]
    pub fn is_private(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.peer_addr().is_ok_and(|address| address.ip().is_loopback()),
            Self::Tls(_) | Self::Unix(_) => true,
        }
    }

    /// True for a Unix socket.
    #[must_use]
    pub fn is_unix(&self) -> bool {
        matches!(self, Self::Unix(_))
    }
}

fn tune(stream: &TcpStream) -> io::Result<()> {
    tuning::tune(stream)?;
    #[cfg(target_os = "linux")]
    sockopt::set_tcp_user_timeout(stream, USER_TIMEOUT_MS)?;
    Ok(())
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
