//! What a writer must know of a stream before it goes on with it, learned by reading valid records.
//!
//! Reading from any base is enough: a base row begins with the [`History`] in force, holds every schema in force, and ends
//! with a [`crate::event::Progress`] that says again where the stream stands.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::{
    Body, Epoch, Genesis, History, Part, Position, QueueOffset, Record, RecordKind, RecordNumber, StreamId, TableSchema,
    TransactionBatch,
};
use crate::halt::HaltCode;
use crate::queue::log::{Entry, FenceFilter, LogRecord};
use crate::queue::{Bounds, Queue, WRITER_PREFIX};

/// How much is read from the queue at once.
pub(super) const READ_BYTES: usize = 4 << 20;
/// How long a record that is there may take to come.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// Registry entry `writer/EPOCH`, as JSON: where the writer's newest durable base lies. Only a place to start reading; it
/// decides nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriterHint {
    /// The writer's epoch.
    pub epoch: Epoch,
    /// Its newest durable base.
    pub base_offset: QueueOffset,
}

impl WriterHint {
    /// The hint of the highest epoch.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`] for an entry that is not a hint.
    pub fn newest(registry: &BTreeMap<String, Bytes>) -> Result<Option<Self>> {
        let mut newest: Option<Self> = None;
        for (key, value) in registry.iter().filter(|(key, _)| key.starts_with(WRITER_PREFIX)) {
            let hint: Self = serde_json::from_slice(value).map_err(|e| {
                Error::new(ErrorKind::Malformed, format!("registry entry '{key}' is not a writer's hint")).with_source(e)
            })?;
            newest = newest.filter(|n| n.epoch >= hint.epoch).or(Some(hint));
        }
        Ok(newest)
    }

    /// The key it is kept under.
    #[must_use]
    pub fn key(epoch: Epoch) -> String {
        format!("{WRITER_PREFIX}{epoch}")
    }
}

/// Where reading a stream begins, before anything is known of it.
#[derive(Clone, Copy, Debug)]
pub struct EntryPoint {
    /// A base, or the first record kept.
    pub offset: QueueOffset,
    /// Where the stream ended when it was looked at.
    pub end: QueueOffset,
    /// Bytes of all valid records before it.
    pub bytes_before: u64,
    /// Changes in them.
    pub changes_before: u64,
    /// The stream's identity; `None` while it has no record.
    pub stream: Option<StreamId>,
    /// Highest epoch that the registry was found to know of.
    pub epoch: Epoch,
}

impl EntryPoint {
    /// Finds it by the newest hint, or takes the first record kept.
    ///
    /// # Errors
    /// A halt with `not_initialized` when the queue has no such stream, with `queue_lost` when it has only one of log and registry; those of the
    /// queue.
    pub async fn find(queue: &Arc<dyn Queue>, stream: &str) -> Result<Self> {
        let mut bounds = queue.bounds(stream).await?;
        let hint = WriterHint::newest(&queue.registry(stream).await?)?;
        // A registry that names a base, and no log for it to lie in: the topic was deleted, or made anew, and may hold the fence of whoever came first.
        let past = hint.filter(|hint| hint.base_offset > QueueOffset(0));
        let lost = |bounds: Option<Bounds>| past.filter(|hint| bounds.is_none_or(|bounds| lacks(bounds, hint.base_offset)));
        if lost(bounds).is_some() {
            // A writer at work may have gone on between the two looks. A base is durable before it is announced.
            bounds = queue.bounds(stream).await?;
        }
        if let Some(hint) = lost(bounds) {
            let message =
                format!("a writer of epoch {} wrote stream '{stream}', and the queue no longer has any of it", hint.epoch);
            return Err(Error::halt(HaltCode::QueueLost, message));
        }
        let bounds = bounds.ok_or_else(|| not_initialized(stream))?;
        // Every writer says in the registry that it comes before it appends anything. Consumers may be missing like that, and would be trimmed away (I6).
        if hint.is_none() && !bounds.is_empty() {
            let message = format!("stream '{stream}' has records, and its registry no longer has any writer of them");
            return Err(Error::halt(HaltCode::QueueLost, message));
        }
        let offset = hint.map_or(bounds.start, |hint| hint.base_offset.max(bounds.start));
        Self::at(queue, stream, bounds, offset, hint.map_or(Epoch(0), |hint| hint.epoch)).await
    }

    /// The first record kept, which is a base.
    ///
    /// # Errors
    /// As [`Self::find`].
    pub async fn first(queue: &Arc<dyn Queue>, stream: &str) -> Result<Self> {
        let bounds = queue.bounds(stream).await?.ok_or_else(|| not_initialized(stream))?;
        Self::at(queue, stream, bounds, bounds.start, Epoch(0)).await
    }

    async fn at(queue: &Arc<dyn Queue>, stream: &str, bounds: Bounds, offset: QueueOffset, epoch: Epoch) -> Result<Self> {
        let mut this = Self { offset, end: bounds.end, bytes_before: 0, changes_before: 0, stream: None, epoch };
        if bounds.is_empty() {
            return Ok(this);
        }
        let mut reader = queue.reader(stream, offset).await?;
        let first = reader.read(1, ANSWER_WAIT).await?.into_iter().next();
        let first = first.ok_or_else(|| not_given(stream, offset))?;
        let header = Record::decode(first.bytes).at(|| format!("stream '{stream}', queue offset {}", first.offset))?.header;
        this.stream = Some(header.stream);
        // A fence is first only where nothing was ever trimmed, and counts nothing.
        if header.kind != RecordKind::Fence {
            (this.bytes_before, this.changes_before) = (header.bytes_before, header.changes_before);
        }
        Ok(this)
    }
}

/// True when a base that was durable cannot be in what is there. A claim names the place of its own fence before it is there, in a log that was emptied.
fn lacks(bounds: Bounds, base: QueueOffset) -> bool {
    (bounds.end <= base && bounds.start < base) || (bounds.is_empty() && bounds.start > base)
}

/// What the queue says it has, it must give.
fn not_given(stream: &str, offset: QueueOffset) -> Error {
    Error::new(ErrorKind::Connection, format!("stream '{stream}': the queue gives no record at offset {offset}"))
}

pub(super) fn not_initialized(stream: &str) -> Error {
    Error::halt(HaltCode::NotInitialized, format!("stream '{stream}' has not been begun; run `millstream init`"))
}

/// A base row that was read whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BaseRow {
    /// Number of its first record.
    pub number: RecordNumber,
    /// Where that lies.
    pub offset: QueueOffset,
    /// Bytes of all valid records before it.
    pub bytes_before: u64,
    /// Bytes of the row, but for the record that named it.
    pub bytes: u64,
}

/// What the log says of itself up to some record.
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    /// Number of the last valid record; 0 before the first.
    pub last: RecordNumber,
    /// Bytes of all valid records.
    pub bytes_total: u64,
    /// Changes in all valid records.
    pub changes_total: u64,
    /// The base in force and where it lies.
    pub base: Option<(RecordNumber, QueueOffset)>,
    /// The row of that base, when it was among what was read.
    pub row: Option<BaseRow>,
    /// The last record that a consumer can say it has: a table's version, or a part that is not the last, moves no cursor.
    pub last_reachable: RecordNumber,
    /// Every table's newest version, by the table's source oid.
    pub schemas: BTreeMap<u32, TableSchema>,
    /// The source's identity, from the newest [`History`] or the [`Genesis`].
    pub history: Option<History>,
    /// The first record, when it was among those read.
    pub genesis: Option<Genesis>,
    /// The second record has been read, or what was read lies behind it.
    pub started: bool,
    /// Everything up to here is in the log.
    pub position: Option<Position>,
    /// The source's clock there, microseconds since 1970-01-01 UTC.
    pub source_time_us: i64,
    /// A row that no record has named yet: its first record's number and `bytes_before`.
    opened: Option<(RecordNumber, u64)>,
    /// Number and totals before the first part of a transaction whose last part has not come.
    before_parts: Option<(RecordNumber, u64, u64)>,
}

impl Recovered {
    /// Takes the next entry.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`] for a batch that cannot be read.
    pub fn take(&mut self, entry: Entry) -> Result<()> {
        match entry {
            Entry::PartsVoided => {
                if let Some((last, bytes, changes)) = self.before_parts.take() {
                    (self.last, self.bytes_total, self.changes_total) = (last, bytes, changes);
                }
                Ok(())
            }
            Entry::Record(record) if matches!(record.record.body, Body::Fence(_)) => Ok(()),
            Entry::Record(record) => {
                let offset = record.offset;
                self.take_record(record).at(|| format!("queue offset {offset}"))
            }
        }
    }

    fn take_record(&mut self, record: LogRecord) -> Result<()> {
        let header = record.record.header;
        let before = (RecordNumber(header.number.0.saturating_sub(1)), header.bytes_before, header.changes_before);
        let mut changes = 0;
        if matches!(record.record.body, Body::Genesis(_) | Body::History(_)) {
            self.opened = Some((header.number, header.bytes_before));
        }
        if let Some((number, bytes_before)) = self.opened.filter(|(number, _)| *number == header.base) {
            let bytes = header.bytes_before.saturating_sub(bytes_before);
            self.row = Some(BaseRow { number, offset: record.base_offset, bytes_before, bytes });
            self.opened = None;
        }
        let moves_cursors = match &record.record.body {
            Body::Part(part) => part.last,
            body => !matches!(body, Body::Schema(_)),
        };
        if moves_cursors {
            self.last_reachable = header.number;
        }
        match record.record.body {
            Body::Fence(_) => {}
            Body::Genesis(genesis) => {
                self.history = Some(genesis.history.clone());
                self.genesis = Some(genesis);
            }
            Body::SlotStart(start) => {
                self.started = true;
                self.position = Some(start.position);
            }
            Body::History(history) => {
                self.started = true;
                self.history = Some(history);
            }
            Body::Schema(schema) => drop(self.schemas.insert(schema.source_oid, schema)),
            Body::Transactions(batch) => changes = self.take_batch(&batch)?,
            Body::Part(part) => {
                changes = self.take_part(&part, before);
            }
            Body::Progress(progress) => {
                self.position = Some(progress.position);
                self.source_time_us = progress.source_time_us;
            }
            Body::Message(message) => self.position = Some(Position::Lsn(message.lsn)),
        }
        self.last = header.number;
        self.bytes_total = header.bytes_before + record.stored_bytes as u64;
        self.changes_total = header.changes_before + changes;
        self.base = Some((header.base, record.base_offset));
        Ok(())
    }

    fn take_batch(&mut self, batch: &TransactionBatch) -> Result<u64> {
        let mut changes = 0;
        for transaction in batch.iter() {
            let transaction = transaction?;
            changes += transaction.change_count;
            self.position = Some(transaction.header.position);
            self.source_time_us = transaction.header.commit_time_us;
        }
        Ok(changes)
    }

    /// A large transaction counts, in changes and in position, where it is complete.
    fn take_part(&mut self, part: &Part, before: (RecordNumber, u64, u64)) -> u64 {
        if !part.last {
            self.before_parts.get_or_insert(before);
            return 0;
        }
        self.before_parts = None;
        self.position = Some(part.header.position);
        self.source_time_us = part.header.commit_time_us;
        part.change_count
    }

    /// The name that the next new table version gets: no version that is out of force had a higher one than its successor.
    #[must_use]
    pub fn next_schema(&self) -> u32 {
        self.schemas.values().map(|schema| schema.id.0 + 1).max().unwrap_or(1)
    }
}

/// Who a stream is for, read without claiming it.
///
/// # Errors
/// A halt with `not_initialized` when the stream is not there, empty, or has no slot yet; those of the queue.
pub async fn identity(queue: &Arc<dyn Queue>, stream: &str) -> Result<History> {
    let recovered = survey(queue, stream, |r| r.started && r.history.is_some()).await?;
    match recovered.history {
        Some(history) if recovered.started => Ok(history),
        _ => Err(not_initialized(stream)),
    }
}

/// Reads from the entry point until `enough` is known or everything that was there at the beginning has been read. A queue that is slow is never taken
/// for one that has ended: `init` would begin a stream that others are writing.
///
/// # Errors
/// As [`EntryPoint::find`] and of reading; [`ErrorKind::Connection`] when the records up to the end do not come.
pub async fn survey(queue: &Arc<dyn Queue>, stream: &str, enough: impl Fn(&Recovered) -> bool) -> Result<Recovered> {
    let entry = EntryPoint::find(queue, stream).await?;
    let mut recovered = Recovered::default();
    if entry.stream.is_none() {
        return Ok(recovered);
    }
    let mut reader = queue.reader(stream, entry.offset).await?;
    let mut filter = FenceFilter::new();
    let mut entries = Vec::new();
    let mut next = entry.offset;
    while next < entry.end {
        let stored = reader.read(64 << 10, ANSWER_WAIT).await?;
        if stored.is_empty() {
            return Err(not_given(stream, next));
        }
        for record in stored {
            next = record.offset.next();
            filter.judge(record, &mut entries)?;
            for entry in entries.drain(..) {
                recovered.take(entry)?;
            }
            if enough(&recovered) {
                return Ok(recovered);
            }
        }
    }
    Ok(recovered)
}
