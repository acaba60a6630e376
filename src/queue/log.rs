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
//! Where a reader starts. A [`Cursor`] names a record and its base. The reader opens at the base's offset, takes the fence in
//! force from the first record there (a base is valid, so its writer was in force), hands on only schemas until the
//! cursor's record, checks that this is the same record, and goes on from it. Without a cursor a reader begins at the
//! first record kept, whose neighbourhood [`super::Queue::trim`] callers keep valid by trimming only below bases.
//!
//! Rejected: fencing by the queue itself (Kafka's transactional producer): the embedded queue and other brokers would need another
//! rule, and a fenced producer's last writes still have to be judged by readers.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Queue, QueueReader, StoredRecord};
use crate::error::{Context, Error, Result};
use crate::event::{Body, Epoch, Nonce, Position, QueueOffset, Record, RecordHeader, RecordNumber, StreamId};
use crate::halt::HaltCode;

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
    /// `bytes_before` of the record.
    pub bytes_before: u64,
    /// `changes_before` of the record.
    pub changes_before: u64,
}

/// What a reader hands on.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// The cursor of a consumer that has taken this record up to a position.
    #[must_use]
    pub fn cursor(&self, position: Option<Position>) -> Cursor {
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
            bytes_before: header.bytes_before,
            changes_before: header.changes_before,
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

/// The rules, without I/O: give it every stored record in order, get what is valid.
#[derive(Debug)]
pub struct FenceFilter {
    stream: Option<StreamId>,
    in_force: Option<(Epoch, Nonce)>,
    /// Number that the next valid record must have.
    expected: Option<RecordNumber>,
    /// First number of a transaction whose last part has not come.
    open_parts: Option<RecordNumber>,
    /// The base in force and where it lies; a new one is pending until a record names it.
    base: Option<(RecordNumber, QueueOffset)>,
    /// Offsets of records that may become a base: schemas in a row since the last other record.
    candidates: Vec<(RecordNumber, QueueOffset)>,
}

impl FenceFilter {
    /// For a reader that begins at a valid place.
    #[must_use]
    pub fn new() -> Self {
        Self { stream: None, in_force: None, expected: None, open_parts: None, base: None, candidates: Vec::new() }
    }

    /// The fence in force, once a record was seen.
    #[must_use]
    pub fn in_force(&self) -> Option<(Epoch, Nonce)> {
        self.in_force
    }

    /// Number that the next valid record must have.
    #[must_use]
    pub fn expected(&self) -> Option<RecordNumber> {
        self.expected
    }

    /// Judges one record.
    ///
    /// # Errors
    /// Corrupt, too new or malformed records; halts with `queue_gap` and `queue_lost`.
    pub fn judge(&mut self, stored: StoredRecord, out: &mut Vec<Entry>) -> Result<()> {
        let StoredRecord { offset, bytes } = stored;
        let stored_bytes = bytes.len();
        let record = Record::decode(bytes).at(|| format!("queue offset {offset}"))?;
        self.check_stream(&record.header, offset)?;
        if let Body::Fence(fence) = &record.body {
            if self.in_force.is_some_and(|(epoch, _)| fence.epoch <= epoch) {
                return Ok(());
            }
            self.in_force = Some((fence.epoch, fence.nonce));
            self.candidates.clear();
            if let Some(first) = self.open_parts.take() {
                self.expected = Some(first);
                out.push(Entry::PartsVoided);
            }
            let base_offset = self.base.map_or(offset, |(_, at)| at);
            out.push(Entry::Record(LogRecord { offset, base_offset, record, stored_bytes }));
            return Ok(());
        }
        let header = record.header;
        match self.in_force {
            None => self.in_force = Some((header.epoch, header.nonce)),
            Some(fence) if fence == (header.epoch, header.nonce) => {}
            Some((epoch, _)) if header.epoch > epoch => {
                let message = format!(
                    "record {} of epoch {} stands behind epoch {epoch} without a fence between",
                    header.number, header.epoch
                );
                return Err(Error::halt(HaltCode::QueueGap, message).context(format!("queue offset {offset}")));
            }
            Some(_) => return Ok(()),
        }
        self.check_number(&header, offset)?;
        self.note_part(&record);
        let base_offset = self.note_base(&record, offset)?;
        out.push(Entry::Record(LogRecord { offset, base_offset, record, stored_bytes }));
        Ok(())
    }

    fn check_stream(&mut self, header: &RecordHeader, offset: QueueOffset) -> Result<()> {
        let stream = *self.stream.get_or_insert(header.stream);
        if stream == header.stream {
            return Ok(());
        }
        Err(Error::halt(
            HaltCode::QueueLost,
            format!("queue offset {offset} belongs to another stream ({}, not {stream})", header.stream),
        ))
    }

    fn check_number(&mut self, header: &RecordHeader, offset: QueueOffset) -> Result<()> {
        if let Some(expected) = self.expected.filter(|e| *e != header.number) {
            let message = format!("record {} where {expected} should be", header.number);
            return Err(Error::halt(HaltCode::QueueGap, message).context(format!("queue offset {offset}")));
        }
        self.expected = Some(header.number.next());
        Ok(())
    }

    fn note_part(&mut self, record: &Record) {
        self.open_parts = match &record.body {
            Body::Part(part) if part.last => None,
            Body::Part(_) => self.open_parts.or(Some(record.header.number)),
            _ => None,
        };
    }

    /// A writer that makes a new base repeats every schema in force, in a row, and names the first of the row as the base from
    /// the first record behind it on. So a base is always among the schemas read since the last other record.
    fn note_base(&mut self, record: &Record, offset: QueueOffset) -> Result<QueueOffset> {
        let header = &record.header;
        if matches!(record.body, Body::Schema(_) | Body::Genesis(_) | Body::SlotStart(_) | Body::History(_))
            || self.candidates.is_empty()
        {
            self.candidates.push((header.number, offset));
        }
        let known = self.base.filter(|(number, _)| *number == header.base);
        let found = known.or_else(|| self.candidates.iter().copied().find(|(number, _)| *number == header.base));
        let base = match (found, self.base) {
            (Some(base), _) => base,
            // A reader that began in the middle: the first record's own base lies before it, unknown and not needed again.
            (None, None) => (header.base, offset),
            (None, Some(_)) => {
                let message = format!("record {} names base {}, which no schema before it has", header.number, header.base);
                return Err(Error::halt(HaltCode::QueueGap, message).context(format!("queue offset {offset}")));
            }
        };
        self.base = Some(base);
        if !matches!(record.body, Body::Schema(_) | Body::Genesis(_) | Body::SlotStart(_) | Body::History(_)) {
            self.candidates.clear();
        }
        Ok(base.1)
    }
}

impl Default for FenceFilter {
    fn default() -> Self {
        Self::new()
    }
}

/// Reads a stream's valid records.
pub struct LogReader {
    source: Box<dyn QueueReader>,
    filter: FenceFilter,
    resume: Option<Cursor>,
}

impl LogReader {
    /// Opens a stream.
    ///
    /// # Errors
    /// As [`Queue::reader`].
    pub async fn open(queue: &Arc<dyn Queue>, stream: &str, start: Start) -> Result<Self> {
        let (from, resume) = match start {
            Start::First => {
                let bounds = queue.bounds(stream).await?.ok_or_else(|| {
                    Error::halt(HaltCode::NotInitialized, format!("the queue has no stream '{stream}'; run `millstream init`"))
                })?;
                (bounds.start, None)
            }
            Start::Base(offset) => (offset, None),
            Start::After(cursor) => (cursor.base_offset, Some(cursor)),
        };
        let source = queue.reader(stream, from).await.at(|| format!("stream '{stream}'"))?;
        Ok(Self { source, filter: FenceFilter::new(), resume })
    }

    /// Some valid records, in order; empty when none came within `wait`. Cancel-safe.
    ///
    /// A resumed reader first hands on the schemas between base and cursor, then the cursor's own record (of which the
    /// consumer drops what its position covers; a part is not handed on again), then the rest.
    ///
    /// # Errors
    /// Those of the queue and of [`FenceFilter::judge`]; a halt with `queue_lost` when the cursor's record is not in its place.
    pub async fn read(&mut self, max_bytes: usize, wait: Duration) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for stored in self.source.read(max_bytes, wait).await? {
            self.filter.judge(stored, &mut entries)?;
        }
        if self.resume.is_some() {
            entries = self.skip_taken(entries)?;
        }
        Ok(entries)
    }

    fn skip_taken(&mut self, entries: Vec<Entry>) -> Result<Vec<Entry>> {
        let mut kept = Vec::new();
        for entry in entries {
            let (Some(cursor), Entry::Record(record)) = (&self.resume, &entry) else {
                if self.resume.is_none() {
                    kept.push(entry);
                }
                continue;
            };
            let header = &record.record.header;
            let mismatch = |what: &str| {
                let message = format!("the queue does not hold record {} at offset {}: {what}", cursor.number, cursor.offset);
                Error::halt(HaltCode::QueueLost, message)
            };
            if header.stream != cursor.stream {
                return Err(mismatch("another stream is there"));
            }
            if record.offset > cursor.offset {
                return Err(mismatch("it is not there"));
            }
            if record.offset < cursor.offset {
                if matches!(record.record.body, Body::Schema(_)) {
                    kept.push(entry);
                }
                continue;
            }
            if (header.number, header.epoch, header.nonce) != (cursor.number, cursor.epoch, cursor.nonce) {
                return Err(mismatch(&format!("record {} of epoch {} is there", header.number, header.epoch)));
            }
            self.resume = None;
            if !matches!(record.record.body, Body::Part(_)) {
                kept.push(entry);
            }
        }
        Ok(kept)
    }
}
