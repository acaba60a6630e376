//! Where the log waits: one narrow trait pair, two queues (`embedded`, `kafka`), and one set of reading rules above both ([`log`]).
//!
//! A queue keeps opaque records of one ordered stream per source. What it promises:
//!
//! - **Order**: records are read back in the order in which they were appended; an offset grows with every record, not
//!   necessarily by one.
//! - **Durability** (I1): a ticket reported by [`QueueWriter::durable_past`] survives the death of the process and of the host
//!   (on Kafka: `acks=all` of the in-sync replicas). Tickets become durable in order.
//! - **Nothing is dropped**: only [`Queue::trim`] deletes, and the last record always stays.
//! - **No fencing of its own is relied on**: a stale writer's append may succeed; the fence rule in [`log`] voids it (I8).
//!
//! A writer whose storage failed (fsync, fatal producer error) is dead: every call returns the error again, nothing is retried
//! underneath, and the state is read anew by a new writer.
//!
//! The registry is a small durable map beside each stream: consumers' registrations and progress, writers' hints. Only it
//! decides what may be trimmed.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::event::{Position, QueueOffset, RecordNumber};

pub mod embedded;
pub mod kafka;
pub mod log;

/// Counts a writer's accepted records: 1 for the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// The queue's word that everything up to a ticket is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Durable {
    /// Up to and including this one.
    pub ticket: Ticket,
    /// Where that record lies.
    pub offset: QueueOffset,
}

/// A position that the queue holds durably: the only thing that feedback to the source takes (I1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DurablePosition(Position);

impl DurablePosition {
    /// Of a record whose ticket `durable` covers, or that was read back from the queue.
    pub(crate) fn proven(position: Position) -> Self {
        Self(position)
    }

    /// The position.
    #[must_use]
    pub fn get(self) -> Position {
        self.0
    }
}

/// One record as the queue gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRecord {
    /// Where it lies.
    pub offset: QueueOffset,
    /// The record, as appended.
    pub bytes: Bytes,
}

/// What of a stream the queue holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Offset of the first record kept, or of the end when there is none.
    pub start: QueueOffset,
    /// Offset that the next record will have at least.
    pub end: QueueOffset,
    /// Bytes on disk, where the queue can tell.
    pub stored_bytes: Option<u64>,
}

impl Bounds {
    /// True when no record was ever appended, or none can be read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }
}

/// A queue: any number of streams, named after their sources.
#[async_trait]
pub trait Queue: Send + Sync + 'static {
    /// Makes the stream's storage if it is not there; changes nothing when it is.
    async fn create(&self, stream: &str) -> Result<()>;

    /// What is there; `None` for a stream that was never created.
    async fn bounds(&self, stream: &str) -> Result<Option<Bounds>>;

    /// Opens the stream for appending.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Held`] when this queue can tell that another process is writing.
    async fn writer(&self, stream: &str) -> Result<Box<dyn QueueWriter>>;

    /// Reads from the first record at or after an offset.
    ///
    /// # Errors
    /// A halt with `queue_lost` when `from` lies before the first record kept or beyond the end.
    async fn reader(&self, stream: &str, from: QueueOffset) -> Result<Box<dyn QueueReader>>;

    /// Takes away everything before an offset: the stream begins there afterwards, even if bytes go later. The last durable record
    /// always stays. Callers give only valid bases ([`log`]), so that whoever begins at the start finds a valid record.
    async fn trim(&self, stream: &str, below: QueueOffset) -> Result<()>;

    /// Writes (or with `None` deletes) an entry of the stream's registry, durably.
    async fn registry_put(&self, stream: &str, key: &str, value: Option<Bytes>) -> Result<()>;

    /// The whole registry, as of some moment after the call began.
    async fn registry(&self, stream: &str) -> Result<BTreeMap<String, Bytes>>;

    /// Tells the queue's own tools how far a consumer is: the last record it holds durably. A courtesy; nothing is decided by it,
    /// and it need not arrive.
    async fn publish_progress(&self, stream: &str, consumer: &str, taken: QueueOffset) -> Result<()> {
        let (_, _, _) = (stream, consumer, taken);
        Ok(())
    }

    /// Removes the stream with everything it holds, registry included. For `teardown`.
    async fn destroy(&self, stream: &str) -> Result<()>;

    /// Largest record that it takes, in bytes.
    fn max_record_bytes(&self) -> usize;
}

/// How a writer's storage is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Trimming gives back about so many bytes at a time, so bases are not further apart.
    pub step_bytes: u64,
    /// Bytes that may still be appended.
    pub free_bytes: u64,
}

impl Room {
    /// Of a queue that does not know, or need not care.
    pub const ENOUGH: Self = Self { step_bytes: u64::MAX, free_bytes: u64::MAX };

    /// True when what nobody needs any more should go at once.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.free_bytes < self.step_bytes.saturating_mul(2) && *self != Self::ENOUGH
    }
}

/// Appends to one stream.
#[async_trait]
pub trait QueueWriter: Send {
    /// Accepts a record. Waits while too many bytes are in flight; cancelling the wait accepts nothing.
    async fn append(&mut self, record: Bytes) -> Result<Ticket>;

    /// Waits until a ticket after `seen` is durable and gives the last that is. Cancel-safe.
    async fn durable_past(&mut self, seen: Ticket) -> Result<Durable>;

    /// How its storage is now.
    fn room(&self) -> Room {
        Room::ENOUGH
    }

    /// Begins or ends what makes room: while it is on, records may take of what the queue otherwise leaves of a full disk, and the first of them stands
    /// so that trimming can give back everything before it. A queue on storage of somebody else's has no use for it.
    fn make_room(&mut self, on: bool) {
        let _ = on;
    }
}

/// Reads one stream.
#[async_trait]
pub trait QueueReader: Send {
    /// Some records: at least one, and no more than about `max_bytes`, unless the first alone is larger. Empty when none came
    /// within `wait`. Cancel-safe.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Corrupt`] on damage, a halt with `queue_lost` when the place was deleted underneath.
    async fn read(&mut self, max_bytes: usize, wait: Duration) -> Result<Vec<StoredRecord>>;
}

/// What a consumer has told the queue (I2): a registry entry under `consumer/NAME`, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsumerProgress {
    /// Everything before this offset may go, as far as this consumer is concerned: the base of its cursor.
    pub keep_from: QueueOffset,
    /// Last record that it holds durably.
    pub number: RecordNumber,
    /// Where that was in the source.
    pub position: Option<Position>,
    /// Bytes of the stream up to there: the writer measures the slowest consumer's distance with it.
    pub bytes_so_far: u64,
    /// Changes of the stream up to there.
    pub changes_so_far: u64,
    /// When it said so, microseconds since 1970-01-01 UTC.
    pub at_us: i64,
}

/// Registry key prefix of consumers.
pub const CONSUMER_PREFIX: &str = "consumer/";
/// Registry key prefix of writers' hints: under `writer/EPOCH`, where the epoch's first base lies.
pub const WRITER_PREFIX: &str = "writer/";
