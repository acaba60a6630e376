//! Claiming a stream (I8): append a fence, wait until it is durable, read up to it, and only then know where the stream stands.
//!
//! Invariant: when [`claim`] returns, the fence it appended is in force at its place, and everything valid before it has been
//! read. Nobody else's record behind it is valid, until somebody else's fence.
//!
//! ```text
//!  find the entry point (registry hint → base, or first record kept)
//!    │
//!  say so in the registry: epoch, and that entry point
//!    │
//!    ▼   ┌── lost: another fence of this epoch, or a higher one, stood before ours ──┐
//!  append Fence(highest epoch known + 1, random nonce), wait durable                 │
//!    │                                                                               │
//!    ▼                                                                               │
//!  read up to it ── is it in force? ── no ───────────────────────────────────────────┘
//!    │ yes
//!    ▼
//!  last record, position, totals, schemas, history are known
//! ```
//!
//! Why a hint can be believed. A base that a stale writer appended behind a newer fence is void, and whoever began to read there would believe
//! it. A writer announces a base after it is durable and after it has looked for newer claims (`put_hint`). If a fence stands before that base, its
//! claim was in the registry before the fence was in the log, so before the base was durable: the look finds it, and the stale writer stops.
//!
//! A queue without room for the fence would never have any again if only the stream's owner trimmed: consumers read on, and nobody acts on it. So
//! a claim that finds no room trims for the next one. Trimming goes no further than the newest base and gives back whole segments: on a disk that is smaller, or that
//! others have filled, that is nothing. Once every consumer has everything, the fence stands apart and takes of the queue's reserve, a new base behind it
//! does as well (`connect.rs`), and as soon as the consumers have that one everything before it goes.
//!
//! Rejected: reading the whole stream to its end before the fence. The end moves while another writer lives, and Kafka cannot say
//! exactly where it is; a fence that turns out to be void costs 300 bytes and says what to do next.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::begin::put_hint;
use super::recover::{EntryPoint, READ_BYTES, Recovered, WriterHint};
use super::upkeep::make_room;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::{Body, Epoch, Fence, Nonce, QueueOffset, Record, RecordHeader, RecordKind, RecordNumber, StreamId};
use crate::queue::log::FenceFilter;
use crate::queue::{Queue, QueueReader, QueueWriter, Ticket};

/// Lost races after which the claim gives up and the supervisor's pause comes in.
const MAX_RACES: usize = 8;
/// How long a record that was acknowledged may take to be read back.
const READ_BACK: Duration = Duration::from_secs(30);

/// A stream claimed for writing.
pub struct Claim {
    /// The queue's writer.
    pub(super) writer: Box<dyn QueueWriter>,
    /// The fence's ticket: durable.
    pub(super) ticket: Ticket,
    /// The stream's identity.
    pub stream: StreamId,
    /// The epoch claimed.
    pub epoch: Epoch,
    /// Which of several claims of that epoch.
    pub nonce: Nonce,
    /// Where the stream stands.
    pub recovered: Recovered,
    /// The fence took of the queue's reserve: a base comes next, so that what is before it can be trimmed.
    pub(super) makes_room: bool,
}

/// Claims a stream that exists. An empty one is claimed under a new identity, or under that of somebody who does so at the same time and comes first; only
/// `init` goes on with that.
///
/// # Errors
/// As [`EntryPoint::find`]; [`ErrorKind::Held`] when the queue knows of another writer or too many races were lost; those of the queue.
/// [`ErrorKind::NoSpace`] means that there may be room for the next attempt: what nobody needs any more is gone.
pub async fn claim(queue: &Arc<dyn Queue>, stream: &str, holder: &str) -> Result<Claim> {
    let claimed = fence_off(queue, stream, holder, false).await;
    if claimed.as_ref().is_err_and(|error| error.kind() == ErrorKind::NoSpace) {
        match make_room(queue, stream).await {
            Ok(true) => return fence_off(queue, stream, holder, true).await,
            Ok(false) => {}
            Err(error) => tracing::warn!(stream, %error, "the queue is full and could not be trimmed"),
        }
    }
    claimed
}

async fn fence_off(queue: &Arc<dyn Queue>, stream: &str, holder: &str, makes_room: bool) -> Result<Claim> {
    let entry = EntryPoint::find(queue, stream).await?;
    let mut identity = entry.stream.unwrap_or_else(|| StreamId(rand::random_range(1..u64::MAX)));
    let mut writer = queue.writer(stream).await?;
    writer.make_room(makes_room);
    let mut reader = queue.reader(stream, entry.offset).await?;
    let mut filter = FenceFilter::new();
    let mut recovered = Recovered::default();
    let mut epoch = entry.epoch.next();
    for _ in 0..MAX_RACES {
        let nonce = Nonce(rand::random_range(1..u64::MAX));
        // Said before the fence is in the log: a writer whose records it voids finds this when it announces a base that lies behind it.
        put_hint(queue, stream, WriterHint { epoch, base_offset: entry.offset }).await?;
        let ticket = writer.append(fence(identity, epoch, nonce, holder).encode()).await?;
        let offset = durable_offset(&mut *writer, ticket).await?;
        read_to(&mut *reader, offset, &mut filter, &mut recovered).await.at(|| format!("stream '{stream}'"))?;
        match filter.in_force() {
            Some(found) if found == (epoch, nonce) => {
                return Ok(Claim { writer, ticket, stream: identity, epoch, nonce, recovered, makes_room });
            }
            Some((highest, _)) => (epoch, identity) = (highest.next(), filter.stream().unwrap_or(identity)),
            None => {}
        }
    }
    Err(Error::new(ErrorKind::Held, format!("stream '{stream}': {MAX_RACES} other writers claimed it at the same time")))
}

fn fence(stream: StreamId, epoch: Epoch, nonce: Nonce, holder: &str) -> Record {
    let header = RecordHeader {
        kind: RecordKind::Fence,
        stream,
        number: RecordNumber(0),
        epoch,
        nonce,
        base: RecordNumber(0),
        bytes_before: 0,
        changes_before: 0,
        written_at_us: super::append::now_us(),
    };
    let version = env!("CARGO_PKG_VERSION").to_owned();
    Record { header, body: Body::Fence(Fence { epoch, nonce, holder: holder.to_owned(), version }) }
}

/// Waits until exactly this ticket, the last that was appended, is durable.
pub(super) async fn durable_offset(writer: &mut dyn QueueWriter, ticket: Ticket) -> Result<QueueOffset> {
    let mut seen = Ticket(ticket.0 - 1);
    loop {
        let durable = writer.durable_past(seen).await?;
        if durable.ticket >= ticket {
            return Ok(durable.offset);
        }
        seen = durable.ticket;
    }
}

async fn read_to(
    reader: &mut dyn QueueReader,
    last: QueueOffset,
    filter: &mut FenceFilter,
    recovered: &mut Recovered,
) -> Result<()> {
    let deadline = Instant::now() + READ_BACK;
    let mut entries = Vec::new();
    loop {
        let stored = reader.read(READ_BYTES, Duration::from_secs(1)).await?;
        if stored.is_empty() && Instant::now() > deadline {
            let message = format!("the queue does not give back the fence that it acknowledged at offset {last}");
            return Err(Error::new(ErrorKind::Connection, message));
        }
        let mut reached = false;
        for record in stored {
            reached |= record.offset >= last;
            filter.judge(record, &mut entries)?;
            for entry in entries.drain(..) {
                recovered.take(entry)?;
            }
        }
        if reached {
            return Ok(());
        }
    }
}
