//! The stream's side of `init`: first record, slot, second record (I1), and a consumer's place at the log's present end.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{Line, Report, slot};
use crate::capture::begin::{Beginning, begin_stream, beginning, new_slot_name, record_slot_start};
use crate::capture::recover::EntryPoint;
use crate::config::SourceConfig;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::{Body, Genesis, History, Position, QueueOffset, RecordNumber, StreamId};
use crate::failpoint;
use crate::halt::HaltCode;
use crate::postgres::sql::{Side, connect};
use crate::queue::log::{Cursor, Entry, LogReader, LogRecord, Start};
use crate::queue::{CONSUMER_PREFIX, ConsumerProgress, Queue};

/// Makes stream and slot, or what of them is missing. True when something was made.
///
/// # Errors
/// Those of queue and source; a halt with `slot_missing` when a stream that was begun has lost its slot, with `history_changed` when an
/// earlier attempt was made against another server.
pub async fn ensure(queue: &Arc<dyn Queue>, config: &SourceConfig, report: Report<'_>) -> Result<bool> {
    let stream = config.name.as_str();
    let slot = match beginning(queue, stream).await? {
        Beginning::Begun(history) => {
            let mut source = connect(&config.connect, Side::Source, "millstream init").await?;
            if slot::exists(&mut source, &history.slot).await? {
                return Ok(false);
            }
            let message = format!("the source has no slot '{}', which stream '{stream}' was begun with", history.slot);
            return Err(Error::halt(HaltCode::SlotMissing, message));
        }
        Beginning::SlotPending(genesis) => {
            let now = slot::history(config, String::new()).await?;
            if now.system_identifier != genesis.history.system_identifier {
                let message = format!(
                    "an earlier `init` of stream '{stream}' was made against another server; `millstream teardown` first"
                );
                return Err(Error::halt(HaltCode::HistoryChanged, message));
            }
            let mut source = connect(&config.connect, Side::Source, "millstream init").await?;
            if slot::drop_slot(&mut source, &genesis.history.slot).await? {
                report(Line::Done(format!("dropped slot {}, which an interrupted init had left", genesis.history.slot)));
            }
            genesis.history.slot
        }
        Beginning::Nothing => {
            let slot = new_slot_name(stream);
            let history = slot::history(config, slot.clone()).await?;
            begin_stream(queue, stream, Genesis { source: stream.to_owned(), history }).await?;
            report(Line::Done(format!("began stream {stream} in the queue")));
            slot
        }
    };
    failpoint::hit("init.genesis_written")?;
    let start = slot::create(config, &slot, &mut |text| report(Line::Waiting(text))).await?;
    failpoint::hit("init.slot_created")?;
    record_slot_start(queue, stream, &slot, Position::Lsn(start)).await?;
    report(Line::Done(format!("created slot {slot} at {start}")));
    Ok(true)
}

/// A stream's identity: its own, and its source's.
///
/// # Errors
/// A halt with `not_initialized` when it has not been begun.
pub async fn identity(queue: &Arc<dyn Queue>, stream: &str) -> Result<(StreamId, History)> {
    let history = crate::capture::recover::identity(queue, stream).await?;
    let id = EntryPoint::find(queue, stream).await?.stream;
    let id = id.ok_or_else(|| Error::halt(HaltCode::NotInitialized, format!("stream '{stream}' has no record")))?;
    Ok((id, history))
}

/// Registers a consumer at the log's present end and gives its place. What lies behind the place is kept from then on.
///
/// # Errors
/// Those of the queue.
pub async fn register(queue: &Arc<dyn Queue>, stream: &str, consumer: &str) -> Result<Cursor> {
    // Held from the start of the search on, so that nothing is trimmed between finding the end and naming it.
    let entry = EntryPoint::find(queue, stream).await?;
    hold(queue, stream, consumer, &entry).await?;
    let cursor = find(queue, stream, entry.offset, None).await?.ok_or_else(|| {
        Error::halt(HaltCode::NotInitialized, format!("stream '{stream}' has no record to start from; run `millstream init`"))
    })?;
    put_cursor(queue, stream, consumer, &cursor).await?;
    Ok(cursor)
}

/// Holds everything from an entry point on for a consumer. It counts as having read what lies before it, and not as having read nothing in the stream's
/// whole life: that would make the queue look full.
///
/// # Errors
/// Those of the queue.
pub async fn hold(queue: &Arc<dyn Queue>, stream: &str, consumer: &str, from: &EntryPoint) -> Result<()> {
    let progress = ConsumerProgress {
        keep_from: from.offset,
        number: RecordNumber(0),
        position: None,
        bytes_so_far: from.bytes_before,
        changes_so_far: from.changes_before,
        at_us: now_us(),
    };
    put(queue, stream, consumer, &progress).await
}

/// Gives a consumer's registration up.
///
/// # Errors
/// Those of the queue.
pub async fn release(queue: &Arc<dyn Queue>, stream: &str, consumer: &str) -> Result<()> {
    queue.registry_put(stream, &format!("{CONSUMER_PREFIX}{consumer}"), None).await
}

/// Writes a consumer's registration at a place.
///
/// # Errors
/// Those of the queue.
pub async fn put_cursor(queue: &Arc<dyn Queue>, stream: &str, consumer: &str, cursor: &Cursor) -> Result<()> {
    put(
        queue,
        stream,
        consumer,
        &ConsumerProgress {
            keep_from: cursor.base_offset,
            number: cursor.number,
            position: cursor.position,
            bytes_so_far: cursor.bytes_so_far,
            changes_so_far: cursor.changes_so_far,
            at_us: now_us(),
        },
    )
    .await
}

async fn put(queue: &Arc<dyn Queue>, stream: &str, consumer: &str, progress: &ConsumerProgress) -> Result<()> {
    let value = serde_json::to_vec(progress)
        .map_err(|e| Error::new(ErrorKind::Unexpected, "a registration that is not JSON").with_source(e))?;
    queue.registry_put(stream, &format!("{CONSUMER_PREFIX}{consumer}"), Some(Bytes::from(value))).await
}

/// Reads on from an offset and gives the last whole place at or below `limit`, or the last there is now.
///
/// # Errors
/// Those of the queue.
pub async fn find(queue: &Arc<dyn Queue>, stream: &str, from: QueueOffset, limit: Option<Position>) -> Result<Option<Cursor>> {
    let end = queue.bounds(stream).await?.map(|b| b.end);
    let mut reader = LogReader::open(queue, stream, Start::Base(from)).await?;
    let mut found = Place::default();
    loop {
        let entries = reader.read(4 << 20, Duration::from_millis(300)).await.at(|| format!("stream '{stream}'"))?;
        let last = entries.iter().rev().find_map(|e| if let Entry::Record(r) = e { Some(r.offset) } else { None });
        if entries.is_empty() {
            return Ok(found.cursor);
        }
        for entry in entries {
            if !found.take(entry, limit)? {
                return Ok(found.cursor);
            }
        }
        // Under load the end moves on; the end as it was when we came is enough.
        if limit.is_none() && end.zip(last).is_some_and(|(end, last)| last.0 + 1 >= end.0) {
            return Ok(found.cursor);
        }
    }
}

#[derive(Default)]
struct Place {
    cursor: Option<Cursor>,
    position: Option<Position>,
}

impl Place {
    /// False when the limit is passed.
    fn take(&mut self, entry: Entry, limit: Option<Position>) -> Result<bool> {
        let Entry::Record(record) = entry else { return Ok(true) };
        let beyond = |position: Position| limit.is_some_and(|limit| position > limit);
        let mut changes = 0;
        match &record.record.body {
            Body::Fence(_) => return Ok(true),
            Body::Part(part) if beyond(part.header.position) => return Ok(false),
            Body::Part(part) if !part.last => return Ok(true),
            Body::Part(part) => (self.position, changes) = (Some(part.header.position), part.change_count),
            Body::Progress(progress) if beyond(progress.position) => return Ok(false),
            Body::Progress(progress) => self.position = Some(progress.position),
            Body::SlotStart(start) if beyond(start.position) => return Ok(false),
            Body::SlotStart(start) => self.position = Some(start.position),
            Body::Transactions(batch) => {
                for transaction in batch.iter() {
                    let transaction = transaction?;
                    let position = transaction.header.position;
                    if beyond(position) {
                        self.note(&record, changes);
                        return Ok(false);
                    }
                    self.position = Some(position);
                    changes += transaction.change_count;
                }
            }
            _ => {}
        }
        self.note(&record, changes);
        Ok(true)
    }

    fn note(&mut self, record: &LogRecord, changes: u64) {
        self.cursor = Some(record.cursor(self.position, changes));
    }
}

/// Now, as the log counts time.
#[must_use]
pub fn now_us() -> i64 {
    jiff::Timestamp::now().as_microsecond()
}
