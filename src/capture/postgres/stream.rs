//! The replication stream of a slot: messages in, feedback out.
//!
//! Invariant (I1): the only flushed position that ever leaves is one that the queue holds durably, and it never goes back.
//!
//! Liveness. The walsender speaks at least every half `wal_sender_timeout` (15 s, set at connect), even while it decodes what is not
//! published. When nothing came for half of [`StreamOptions::silence`], the stream asks for a reply; after all of it the connection is
//! lost. The same clock repeats the last feedback, so the walsender does not time us out while the queue is full and nobody calls for more than keepalives. The kernel
//! notices a peer that is gone sooner (keepalives and `TCP_USER_TIMEOUT`).
//!
//! Source of the formats: PostgreSQL documentation, "Streaming Replication Protocol".

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Buf, Bytes};
use tokio::time::{Instant, timeout, timeout_at};

use super::decode::{postgres_time_us, unix_time_us};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::Lsn;
use crate::postgres::{CopyBoth, PgClient, quote_ident, quote_ident_list, quote_option};
use crate::queue::DurablePosition;

/// A peer that does not take 38 bytes of feedback within this is gone.
const FEEDBACK_WAIT: Duration = Duration::from_secs(10);
/// Time for an orderly end.
const CLOSE_WAIT: Duration = Duration::from_secs(5);

/// What to ask the slot for.
#[derive(Clone, Debug)]
pub struct StreamOptions {
    /// Publications; at least one.
    pub publications: Vec<String>,
    /// Send large transactions while they are in progress (protocol version 2).
    pub streaming: bool,
    /// Send logical messages.
    pub messages: bool,
    /// Silence after which the connection counts as lost. Below 30 s the walsender may not have had reason to speak.
    pub silence: Duration,
}

impl StreamOptions {
    /// Streaming, with messages, 45 s of silence.
    #[must_use]
    pub fn new(publications: Vec<String>) -> Self {
        Self { publications, streaming: true, messages: true, silence: Duration::from_secs(45) }
    }
}

/// What the walsender says. Times are microseconds since 1970-01-01 UTC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamMessage {
    /// `w`: one message of the output plugin.
    XLogData(XLogData),
    /// `k`
    Keepalive(Keepalive),
}

/// One message of the output plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XLogData {
    /// Where its cause stands in the WAL.
    pub wal_start: Lsn,
    /// The end of the WAL sent.
    pub wal_end: Lsn,
    /// The server's clock.
    pub server_time_us: i64,
    /// The message, shared with the read buffer.
    pub payload: Bytes,
}

/// The walsender is alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// The end of the WAL that it has looked at: when nothing is pending, everything before is seen.
    pub wal_end: Lsn,
    /// The server's clock.
    pub server_time_us: i64,
    /// It wants feedback now.
    pub reply_requested: bool,
}

/// A running stream.
#[derive(Debug)]
pub struct ReplicationStream {
    copy: CopyBoth,
    silence: Duration,
    last_heard: Instant,
    last_probe: Instant,
    flushed: Lsn,
}

impl ReplicationStream {
    /// Starts a slot's stream on a replication connection. The server begins at the slot's `confirmed_flush_lsn` or at `start`, whichever is later.
    ///
    /// # Errors
    /// The server's: [`ErrorKind::Held`] when somebody else reads the slot.
    pub async fn start(client: PgClient, slot: &str, start: Lsn, options: &StreamOptions) -> Result<Self> {
        let on = |wanted: bool| if wanted { "on" } else { "off" };
        let sql = format!(
            "START_REPLICATION SLOT {} LOGICAL {start} (proto_version {}, publication_names {}, messages {}, streaming {})",
            quote_ident(slot),
            quote_option(if options.streaming { "2" } else { "1" }),
            quote_ident_list(options.publications.iter().map(String::as_str)),
            quote_option(on(options.messages)),
            quote_option(on(options.streaming)),
        );
        let copy = client.copy_both(&sql).await.at(|| format!("slot '{slot}'"))?;
        let now = Instant::now();
        Ok(Self { copy, silence: options.silence, last_heard: now, last_probe: now, flushed: Lsn(0) })
    }

    /// The next message. Cancel-safe.
    ///
    /// # Errors
    /// The server's; [`ErrorKind::Connection`] when it goes away, falls silent or ends the stream.
    pub async fn next(&mut self) -> Result<StreamMessage> {
        loop {
            if let Some(message) = self.try_next()? {
                return Ok(message);
            }
            let give_up = self.last_heard + self.silence;
            let probe = self.last_heard.max(self.last_probe) + self.silence / 2;
            match timeout_at(probe.min(give_up), self.copy.fill()).await {
                Ok(read) => {
                    read?;
                    self.last_heard = Instant::now();
                }
                Err(_) if Instant::now() >= give_up => {
                    let message = format!("the replication stream was silent for {:?}", self.silence);
                    return Err(Error::new(ErrorKind::Connection, message));
                }
                Err(_) => self.put_feedback(true),
            }
        }
    }

    /// The next message if it has been read already, without I/O.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub fn try_next(&mut self) -> Result<Option<StreamMessage>> {
        self.copy.buffered()?.map(parse).transpose()
    }

    /// Reads what the socket holds right now, without waiting; false when that is nothing: the time to flush a batch.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub fn try_fill(&mut self) -> Result<bool> {
        let read = self.copy.try_fill()?;
        if read > 0 {
            self.last_heard = Instant::now();
        }
        Ok(read > 0)
    }

    /// Tells the server what is durable: it may forget everything before. With `reply` it answers with a keepalive at once. Cancel-safe: what was not sent
    /// goes with the next call or read.
    ///
    /// # Errors
    /// [`ErrorKind::Connection`], also when the server does not take it.
    pub async fn send_feedback(&mut self, flushed: DurablePosition, reply: bool) -> Result<()> {
        self.flushed = self.flushed.max(flushed.get().lsn()?);
        self.repeat_feedback(reply).await
    }

    /// Repeats the last feedback, so that the server knows that we live. For whoever does not read for a while: call it every few seconds.
    ///
    /// # Errors
    /// As [`Self::send_feedback`].
    pub async fn repeat_feedback(&mut self, reply: bool) -> Result<()> {
        self.put_feedback(reply);
        timeout(FEEDBACK_WAIT, self.copy.send())
            .await
            .map_err(|_| Error::new(ErrorKind::Connection, format!("the server took no feedback for {FEEDBACK_WAIT:?}")))?
    }

    /// Ends the stream in order and waits until the server has let go of the slot.
    ///
    /// # Errors
    /// [`ErrorKind::Connection`] when it does not.
    pub async fn close(self) -> Result<()> {
        self.copy.close(CLOSE_WAIT).await
    }

    /// Process id of the walsender.
    #[must_use]
    pub fn backend_pid(&self) -> i32 {
        self.copy.backend_pid()
    }

    /// `r`: write, flush and apply positions, our clock, whether to reply. A flush position of 0 confirms nothing.
    fn put_feedback(&mut self, reply: bool) {
        let now_us = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_micros()).unwrap_or(i64::MAX));
        let mut message = [0; 34];
        message[0] = b'r';
        for place in [1, 9, 17] {
            message[place..place + 8].copy_from_slice(&self.flushed.0.to_be_bytes());
        }
        message[25..33].copy_from_slice(&postgres_time_us(now_us).to_be_bytes());
        message[33] = u8::from(reply);
        self.copy.put(&message);
        self.last_probe = Instant::now();
    }
}

/// Reads one CopyData message of a walsender.
fn parse(mut data: Bytes) -> Result<StreamMessage> {
    let malformed = |what: &str| Error::new(ErrorKind::Malformed, format!("the walsender sent {what}"));
    match data.first() {
        Some(b'w') if data.len() >= 25 => {
            data.advance(1);
            let (wal_start, wal_end, time) = (data.get_u64(), data.get_u64(), data.get_i64());
            Ok(StreamMessage::XLogData(XLogData {
                wal_start: Lsn(wal_start),
                wal_end: Lsn(wal_end),
                server_time_us: unix_time_us(time),
                payload: data,
            }))
        }
        Some(b'k') if data.len() == 18 => {
            data.advance(1);
            Ok(StreamMessage::Keepalive(Keepalive {
                wal_end: Lsn(data.get_u64()),
                server_time_us: unix_time_us(data.get_i64()),
                reply_requested: data.get_u8() != 0,
            }))
        }
        Some(tag) => Err(malformed(&format!("a message '{}' of {} bytes", tag.escape_ascii(), data.len()))),
        None => Err(malformed("an empty message")),
    }
}
