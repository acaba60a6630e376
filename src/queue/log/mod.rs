//! Reading a stream by its rules: what a fence overrules is void, numbers are contiguous, schemas come first (I5, I8).
//!
//! Invariant: two readers that start at valid places of one stream agree on which records are valid, whoever wrote when;
//! the decision depends only on the order in the queue.
//!
//! The fence rule. A writer starts by reading the highest epoch, appends a fence (that + 1, a random nonce), waits until it is
//! durable, reads the queue up to it, and only then knows the last record number and position. A fence is *in force* from
//! its place on when its epoch is higher than that of the fence in force before; a fence of the same or a lower epoch is
//! void (of several with one epoch the first in the queue wins). A record is valid when its epoch and nonce are those of
//! the fence in force; every other one is void. The parts of a transaction whose last part did not come before a fence are
//! void too, and their numbers are used again. Numbers are judged after voiding.
//!
//! Worked timeline, two captures of one stream on Kafka:
//!
//! ```text
//! offset  record                     in force   verdict
//! 40      5/a  #17                   5/a        valid
//! 41      5/a  #18 part 0            5/a        valid so far
//! 42      fence 6/b                  6/b        #18 part 0 is void, 18 is the next number
//! 43      5/a  #19 part 1 (zombie)   6/b        void
//! 44      fence 6/c (raced with b)   6/b        void: c must start again, with epoch 7
//! 45      6/b  #18                   6/b        valid
//! ```
//!
//! Bases. A writer that makes a new base appends a *row*: History and every schema in force, side by side, and then a record that is neither a part
//! nor one of the row (capture: a Progress), whose header is the first to name the row's first record as base. The row itself still
//! names the old base. A fence ends a row that is not named yet. So the base in force is always that of the last valid record, and
//! voided parts never take one back.
//!
//! Where a reader starts. A [`Cursor`] names a record and its base. The reader opens at the base's offset, takes the fence in
//! force from the first record there (a base is valid, so its writer was in force), hands on only schemas until the
//! cursor's record, checks that this is the same record, and goes on from it. Without a cursor a reader begins at the
//! first record kept: [`super::Queue::trim`] is given only valid bases, and a queue that keeps more below one does not show it.
//! A reader that begins at a record which a fence had voided would believe it: it finds out at the next record of the fence in force
//! and halts.
//!
//! Rejected: fencing by the queue itself (Kafka's transactional producer): the embedded queue and other brokers would need another
//! rule, and a fenced producer's last writes still have to be judged by readers.

use serde::{Deserialize, Serialize};

use crate::event::{Epoch, Nonce, Position, QueueOffset, Record, RecordNumber, StreamId};

mod filter;
mod reader;
mod resume;
#[cfg(test)]
mod tests;

pub use filter::FenceFilter;
pub use reader::LogReader;

/// A place in a stream that a consumer holds durably. The ledger keeps it as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// The stream.
    pub stream: StreamId,
    /// Last record taken. It may be a batch of which only the transactions up to `position` were taken.
    pub number: RecordNumber,
    /// Where it lies.
    pub offset: QueueOffset,
    /// The fence in force there.
    pub epoch: Epoch,
    /// The fence in force there.
    pub nonce: Nonce,
    /// Its base.
    pub base: RecordNumber,
    /// Where the base lies.
    pub base_offset: QueueOffset,
    /// Position of the last transaction or progress taken; `None` before the first.
    pub position: Option<Position>,
    /// Bytes of the stream up to here; of a batch taken in part, without it.
    pub bytes_so_far: u64,
    /// Changes of the stream up to here.
    pub changes_so_far: u64,
}

/// What a reader hands on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "nearly every entry is a record; a box each would cost more than the rare void")]
pub enum Entry {
    /// A valid record.
    Record(LogRecord),
    /// The parts handed on since the last other record are void; whoever holds their transaction open rolls it back.
    PartsVoided,
}

/// A valid record and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRecord {
    /// Where it lies.
    pub offset: QueueOffset,
    /// Where its base lies.
    pub base_offset: QueueOffset,
    /// The record. Fences that came into force are handed on as well.
    pub record: Record,
    /// Its size in bytes as stored.
    pub stored_bytes: usize,
}

impl LogRecord {
    /// The cursor of a consumer that has taken the whole record, with as many changes in it.
    #[must_use]
    pub fn cursor(&self, position: Option<Position>, changes: u64) -> Cursor {
        let header = &self.record.header;
        Cursor {
            stream: header.stream,
            number: header.number,
            offset: self.offset,
            epoch: header.epoch,
            nonce: header.nonce,
            base: header.base,
            base_offset: self.base_offset,
            position,
            bytes_so_far: header.bytes_before + self.stored_bytes as u64,
            changes_so_far: header.changes_before + changes,
        }
    }
}

/// Where to begin.
#[derive(Clone, Debug)]
pub enum Start {
    /// At the first record kept.
    First,
    /// At an offset that a registry entry or another reader gave as a base.
    Base(QueueOffset),
    /// Behind what a ledger has.
    After(Cursor),
}
