//! COPY: out of the source, into the replica, and both ways at once for replication.

use std::time::Duration;

use bytes::{BufMut, Bytes};
use postgres_protocol::message::frontend;
use tokio::time::timeout;

use super::auth::put;
use super::client::PgClient;
use super::frame::Frame;
use super::query::{STATEMENT_WAIT, rows_touched};
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint::deadline;

/// Bytes of copy data that are collected before they are sent.
const SEND_BYTES: usize = 256 << 10;
/// A server that takes or gives no copy data for this long is gone. Generous: the first row of a sorted chunk may take a while.
const COPY_SILENCE: Duration = Duration::from_secs(600);

/// Rows on their way out. Dropping it abandons the statement.
#[derive(Debug)]
pub struct CopyOut<'a> {
    client: &'a mut PgClient,
    rows: Option<u64>,
}

/// Rows on their way in. Dropping it before [`CopyIn::finish`] fails the statement.
#[derive(Debug)]
pub struct CopyIn<'a> {
    client: &'a mut PgClient,
}

impl PgClient {
    /// Runs `COPY … TO STDOUT`.
    ///
    /// # Errors
    /// The server's; [`ErrorKind::Connection`].
    pub async fn copy_out(&mut self, sql: &str) -> Result<CopyOut<'_>> {
        let begun = self.begin_copy(sql, b'H').await;
        begun.map(|_| CopyOut { client: self, rows: None })
    }

    /// Runs `COPY … FROM STDIN`.
    ///
    /// # Errors
    /// As [`Self::copy_out`].
    pub async fn copy_in(&mut self, sql: &str) -> Result<CopyIn<'_>> {
        self.begin_copy(sql, b'G').await?;
        self.copying_in = true;
        Ok(CopyIn { client: self })
    }

    /// Runs `START_REPLICATION`; from then on the connection belongs to the stream.
    ///
    /// # Errors
    /// As [`Self::copy_out`].
    pub async fn copy_both(mut self, sql: &str) -> Result<CopyBoth> {
        self.begin_copy(sql, b'W').await?;
        Ok(CopyBoth { client: self })
    }

    async fn begin_copy(&mut self, sql: &str, expected: u8) -> Result<Frame> {
        self.settle().await?;
        put(&mut self.connection, |out| frontend::query(sql, out))?;
        self.unanswered += 1;
        self.connection.send().await?;
        let frame = match timeout(deadline(STATEMENT_WAIT), self.connection.receive()).await {
            Ok(Ok(frame)) => frame,
            Ok(Err(error)) => return Err(self.after_error(error).await),
            Err(_) => return Err(Error::new(ErrorKind::Connection, "COPY did not begin in time")),
        };
        if frame.tag == expected { Ok(frame) } else { Err(frame.unexpected("COPY began")) }
    }
}

impl CopyOut<'_> {
    /// The next piece (text and CSV: a line; binary: a tuple, with header and trailer in pieces of their own); `None` at the end. Cancel-safe.
    ///
    /// # Errors
    /// The server's; [`ErrorKind::Connection`].
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        while self.rows.is_none() || self.client.unanswered > 0 {
            let received = timeout(deadline(COPY_SILENCE), self.client.connection.receive()).await.map_err(|_| silent())?;
            let frame = match received {
                Ok(frame) => frame,
                Err(error) => return Err(self.client.after_error(error).await),
            };
            match frame.tag {
                b'd' => return Ok(Some(frame.payload)),
                // CopyDone
                b'c' => {}
                b'C' => self.rows = Some(rows_touched(&frame.payload)?),
                b'Z' => self.client.ready(&frame)?,
                _ => return Err(frame.unexpected("COPY sent rows")),
            }
        }
        Ok(None)
    }

    /// Number of rows, once [`Self::next`] has given `None`.
    #[must_use]
    pub fn rows(&self) -> Option<u64> {
        self.rows
    }
}

impl CopyIn<'_> {
    /// Adds data, cut anywhere; sends when enough has come together. Waits while the server does not take more.
    ///
    /// # Errors
    /// [`ErrorKind::Connection`]; a refused row is said by [`Self::finish`] at the latest.
    pub async fn write(&mut self, data: &[u8]) -> Result<()> {
        // A frame's length is 32 bits and counts itself; the server takes no more than 1 GiB.
        for piece in data.chunks(SEND_BYTES * 16) {
            put_copy_data(self.client.connection.output(), piece);
            if self.client.connection.output().len() >= SEND_BYTES {
                timeout(deadline(COPY_SILENCE), self.client.connection.send()).await.map_err(|_| silent())??;
            }
        }
        Ok(())
    }

    /// Ends the data and gives the number of rows taken.
    ///
    /// # Errors
    /// The server's; [`ErrorKind::Connection`].
    pub async fn finish(self) -> Result<u64> {
        let client = self.client;
        client.copying_in = false;
        frontend::copy_done(client.connection.output());
        let mut rows = 0;
        loop {
            let received = timeout(deadline(COPY_SILENCE), client.connection.receive()).await.map_err(|_| silent())?;
            let frame = match received {
                Ok(frame) => frame,
                Err(error) => return Err(client.after_error(error).await),
            };
            match frame.tag {
                b'C' => rows = rows_touched(&frame.payload)?,
                b'Z' => {
                    client.ready(&frame)?;
                    return Ok(rows);
                }
                _ => return Err(frame.unexpected("COPY took rows")),
            }
        }
    }

    /// Gives up: the server takes back what it has of this statement.
    ///
    /// # Errors
    /// [`ErrorKind::Connection`].
    pub async fn abort(self) -> Result<()> {
        self.client.settle().await
    }
}

/// Copy data both ways: a replication stream's transport.
#[derive(Debug)]
pub struct CopyBoth {
    client: PgClient,
}

impl CopyBoth {
    /// Copy data that has been read already, without I/O.
    ///
    /// # Errors
    /// The server's; [`ErrorKind::Connection`] when it ended the stream.
    pub fn buffered(&mut self) -> Result<Option<Bytes>> {
        match self.client.connection.buffered()? {
            None => Ok(None),
            Some(Frame { tag: b'd', payload }) => Ok(Some(payload)),
            // CopyDone, then CommandComplete: a walsender ends so when the server shuts down.
            Some(Frame { tag: b'c' | b'C' | b'Z', .. }) => {
                Err(Error::new(ErrorKind::Connection, "the server ended the replication stream"))
            }
            Some(frame) => Err(frame.unexpected("the replication stream ran")),
        }
    }

    /// Waits for more bytes and sends what is to be sent; gives the number of bytes read. Cancel-safe.
    ///
    /// # Errors
    /// [`ErrorKind::Connection`].
    pub async fn fill(&mut self) -> Result<usize> {
        self.client.connection.fill().await
    }

    /// Reads what the socket holds right now; 0 when that is nothing.
    ///
    /// # Errors
    /// [`ErrorKind::Connection`].
    pub fn try_fill(&mut self) -> Result<usize> {
        self.client.connection.try_fill()
    }

    /// Puts copy data in line; [`Self::send`] or the next read sends it.
    pub fn put(&mut self, data: &[u8]) {
        put_copy_data(self.client.connection.output(), data);
    }

    /// Bytes in line.
    pub fn unsent_bytes(&mut self) -> usize {
        self.client.connection.output().len()
    }

    /// Sends what is in line. Cancel-safe.
    ///
    /// # Errors
    /// [`ErrorKind::Connection`].
    pub async fn send(&mut self) -> Result<()> {
        self.client.connection.send().await
    }

    /// Ends the stream and waits until the server has let go of it (and of its slot), within a time.
    ///
    /// # Errors
    /// [`ErrorKind::Connection`] when it does not.
    pub async fn close(mut self, wait: Duration) -> Result<()> {
        frontend::copy_done(self.client.connection.output());
        let ended = timeout(wait, async {
            while self.client.unanswered > 0 {
                match self.client.connection.receive().await? {
                    frame if frame.tag == b'Z' => self.client.ready(&frame)?,
                    Frame { tag: b'd' | b'c' | b'C', .. } => {}
                    frame => return Err(frame.unexpected("the replication stream ended")),
                }
            }
            Ok(())
        });
        ended.await.map_err(|_| Error::new(ErrorKind::Connection, "the server did not end the replication stream in time"))?
    }

    /// True on a Unix socket.
    #[must_use]
    pub fn is_unix(&self) -> bool {
        self.client.connection.socket().is_unix()
    }

    /// Process id of the walsender.
    #[must_use]
    pub fn backend_pid(&self) -> i32 {
        self.client.backend_pid()
    }
}

/// A `CopyData` message.
fn put_copy_data(out: &mut bytes::BytesMut, data: &[u8]) {
    out.reserve(data.len() + 5);
    out.put_u8(b'd');
    // Callers cut data far below 4 GiB.
    out.put_u32(data.len() as u32 + 4);
    out.put_slice(data);
}

fn silent() -> Error {
    Error::new(ErrorKind::Connection, format!("no copy data moved for {:?}", deadline(COPY_SILENCE)))
}
