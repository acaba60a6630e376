//! What a capture tells of itself, through a watch channel.

use serde::Serialize;

use super::retention::Retention;
use crate::event::{Epoch, Position, RecordNumber};
use crate::halt::HaltCode;

/// What a capture is doing. Set by the worker; nothing of it is durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CaptureState {
    /// Connecting, or pausing after a failure that is retried.
    #[default]
    Waiting,
    /// Somebody else reads the slot or writes the queue.
    Held,
    /// The slot is held; the stream is being claimed.
    TakingOver,
    /// Reading the source.
    Streaming,
    /// The queue is full: not reading, until its slowest consumer has moved (I6).
    QueueFull,
    /// Stopped by a rule.
    Halted,
    /// Not reading because somebody asked for it: the slot is free, and the source keeps what is not confirmed.
    Paused,
    /// Ended as asked.
    Stopped,
}

/// A capture's state.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CaptureStatus {
    /// The source's name.
    pub source: String,
    /// What it is doing.
    pub state: CaptureState,
    /// Since when, microseconds since 1970-01-01 UTC.
    pub since_us: i64,
    /// The writer's epoch.
    pub epoch: Option<Epoch>,
    /// The slot.
    pub slot: Option<String>,
    /// Who has the slot, while it is held elsewhere.
    pub held_by: Option<String>,
    /// How far the source's walsender has come.
    pub received: Option<Position>,
    /// The source's clock there, microseconds since 1970-01-01 UTC.
    pub received_time_us: Option<i64>,
    /// Up to here transactions have been given to the queue.
    pub appended: Option<Position>,
    /// Up to here the queue holds them durably.
    pub durable: Option<Position>,
    /// Up to here the source was told so.
    pub confirmed: Option<Position>,
    /// The source's clock at the last transaction or progress given, microseconds since 1970-01-01 UTC.
    pub source_time_us: Option<i64>,
    /// Number of the last record given.
    pub number: Option<RecordNumber>,
    /// Bytes of all records of the stream: a consumer's `bytes_so_far` taken off it is its backlog.
    pub bytes_total: u64,
    /// Changes of all records of the stream.
    pub changes_total: u64,
    /// The consumer that is furthest behind, while the queue waits for it or not.
    pub slowest: Option<String>,
    /// Bytes of log from that consumer to the end.
    pub queued_bytes: u64,
    /// Most that this may be.
    pub queue_max_bytes: u64,
    /// What the slot retains at the source.
    pub retention: Retention,
    /// Why heartbeats do not travel; `None` while they do.
    pub heartbeat_error: Option<String>,
    /// Transactions captured by this process.
    pub transactions: u64,
    /// Changes captured by this process.
    pub changes: u64,
    /// Bytes of log written by this process.
    pub bytes: u64,
    /// Transactions in progress: bytes in memory.
    pub buffered_bytes: u64,
    /// Transactions in progress: bytes on disk.
    pub spilled_bytes: u64,
    /// Why it is halted.
    pub halt: Option<HaltCode>,
    /// Last failure in words; kept until work goes on.
    pub error: Option<String>,
}
