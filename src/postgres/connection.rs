//! A socket with its two buffers: frames in, bytes out.
//!
//! Invariant: whatever was read is in `input` and whatever is to be sent is in `output`, so dropping any future of this
//! module loses nothing and the next call goes on. While one side waits, the other is served too: a server that waits
//! for us to read still gets what it must read from us.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, BytesMut};
use tokio::io::AsyncWrite;
use tokio_util::io::poll_read_buf;

use super::error::ServerError;
use super::frame::{Frame, MAX_FRAME_BYTES, MAX_STARTUP_FRAME_BYTES, Payload};
use super::socket::Socket;
use super::sqlstate::Side;
use crate::error::{Error, ErrorKind, Result};

/// Room made for each read.
const READ_BYTES: usize = 256 << 10;
/// Less free room than this is renewed before a read.
const READ_ROOM_BYTES: usize = 64 << 10;

/// An empty buffer larger than this is given back.
const KEEP_BYTES: usize = 4 << 20;

/// A connection, in any state.
#[derive(Debug)]
pub struct Connection {
    socket: Socket,
    input: BytesMut,
    output: BytesMut,
    /// TLS holds bytes that it has taken until it is flushed.
    unflushed: bool,
    max_frame_bytes: usize,
    side: Side,
    parameters: BTreeMap<String, String>,
}

impl Connection {
    /// Before authentication.
    #[must_use]
    pub fn new(socket: Socket, side: Side) -> Self {
        Self {
            socket,
            input: BytesMut::new(),
            output: BytesMut::new(),
            unflushed: false,
            max_frame_bytes: MAX_STARTUP_FRAME_BYTES,
            side,
            parameters: BTreeMap::new(),
        }
    }

    /// Allows messages of full length.
    pub fn authenticated(&mut self) {
        self.max_frame_bytes = MAX_FRAME_BYTES;
    }

    /// The transport.
    #[must_use]
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Which side of the pair it is to.
    #[must_use]
    pub fn side(&self) -> Side {
        self.side
    }

    /// A parameter that the server reported.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    /// What is to be sent; [`Self::send`] or the next read sends it.
    pub fn output(&mut self) -> &mut BytesMut {
        &mut self.output
    }

    /// The next message that has already been read, without I/O. Notices and parameters are taken care of; an `ErrorResponse` is the error.
    ///
    /// # Errors
    /// The server's, or [`ErrorKind::Malformed`].
    pub fn buffered(&mut self) -> Result<Option<Frame>> {
        while let Some(frame) = Frame::split(&mut self.input, self.max_frame_bytes)? {
            match frame.tag {
                b'E' => return Err(ServerError::parse(&frame.payload)?.into_error(self.side)),
                b'N' => self.note(&frame)?,
                b'S' => {
                    let mut payload = Payload::new(&frame.payload);
                    let name = payload.text()?.to_owned();
                    self.parameters.insert(name, payload.text()?.to_owned());
                }
                // NotificationResponse: we never LISTEN.
                b'A' => {}
                _ => return Ok(Some(frame)),
            }
        }
        Ok(None)
    }

    /// The next message. Cancel-safe.
    ///
    /// # Errors
    /// As [`Self::buffered`]; [`ErrorKind::Connection`] when the server goes away.
    pub async fn receive(&mut self) -> Result<Frame> {
        loop {
            if let Some(frame) = self.buffered()? {
                return Ok(frame);
            }
            self.fill().await?;
        }
    }

    /// Waits for more bytes, and sends what is to be sent meanwhile. Gives the number of bytes read. Cancel-safe.
    ///
    /// # Errors
    /// [`ErrorKind::Connection`], also at the end of the stream.
    pub async fn fill(&mut self) -> Result<usize> {
        poll_fn(|cx| self.poll_fill(cx)).await
    }

    /// Reads what the socket holds right now, without waiting; 0 when that is nothing.
    ///
    /// # Errors
    /// As [`Self::fill`].
    pub fn try_fill(&mut self) -> Result<usize> {
        match self.poll_fill(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(read) => read,
            Poll::Pending => Ok(0),
        }
    }

    /// Sends everything that is to be sent. Cancel-safe: what is left stays in the buffer.
    ///
    /// # Errors
    /// [`ErrorKind::Connection`].
    pub async fn send(&mut self) -> Result<()> {
        poll_fn(|cx| self.poll_send(cx)).await.map_err(lost)
    }

    /// Sends what the socket takes right now.
    ///
    /// # Errors
    /// [`ErrorKind::Connection`].
    pub fn try_send(&mut self) -> Result<()> {
        match self.poll_send(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(sent) => sent.map_err(lost),
            Poll::Pending => Ok(()),
        }
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize>> {
        if let Poll::Ready(Err(error)) = self.poll_send(cx) {
            // The server may have said why before it closed; that is worth more than "broken pipe". A socket that takes nothing any more
            // gives what came and then its end, if not at this very moment: nothing is sent again, and it is read to there.
            self.output.clear();
            return match self.poll_input(cx) {
                Poll::Ready(Ok(n)) if n > 0 => Poll::Ready(Ok(n)),
                Poll::Ready(_) => Poll::Ready(Err(lost(error))),
                Poll::Pending => Poll::Pending,
            };
        }
        Poll::Ready(match ready!(self.poll_input(cx)) {
            Ok(0) => Err(Error::new(ErrorKind::Connection, "the server closed the connection")),
            Ok(read) => Ok(read),
            Err(error) => Err(lost(error)),
        })
    }

    fn poll_input(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.input.is_empty() && self.input.capacity() > KEEP_BYTES {
            // One huge row must not hold its memory for ever (I6).
            self.input = BytesMut::new();
        }
        if self.input.capacity() - self.input.len() < READ_ROOM_BYTES {
            self.input.reserve(READ_BYTES);
        }
        poll_read_buf(Pin::new(&mut self.socket), cx, &mut self.input)
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.output.is_empty() {
            let sent = ready!(Pin::new(&mut self.socket).poll_write(cx, &self.output))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.output.advance(sent);
            self.unflushed = true;
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.socket).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    fn note(&self, frame: &Frame) -> Result<()> {
        let notice = ServerError::parse(&frame.payload)?;
        // Not its text: a trigger's notice may hold a row's values.
        tracing::debug!(
            side = self.side.as_str(),
            severity = notice.severity,
            sqlstate = notice.sqlstate,
            "notice of the server"
        );
        Ok(())
    }
}

impl Drop for Connection {
    /// Says goodbye if the socket takes it at once, so that the server does not log a lost client.
    fn drop(&mut self) {
        if self.output.is_empty() && self.max_frame_bytes == MAX_FRAME_BYTES {
            postgres_protocol::message::frontend::terminate(&mut self.output);
            self.try_send().unwrap_or_default();
        }
    }
}

/// A failed socket is a lost connection, whatever errno says.
fn lost(error: io::Error) -> Error {
    Error::new(ErrorKind::Connection, "the connection to the server is lost").with_source(error)
}
