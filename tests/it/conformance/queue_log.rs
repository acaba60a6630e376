//! The reading rules over a real queue: part of the queue's suite (`queue.rs`).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millstream::ErrorKind;
use millstream::capture::recover::{EntryPoint, WriterHint, identity};
use millstream::capture::takeover::claim;
use millstream::event::{Body, Position, QueueOffset, RecordNumber};
use millstream::halt::HaltCode;
use millstream::queue::log::{Cursor, Entry, LogReader, LogRecord, Start};
use millstream::queue::{Queue, QueueWriter};

use super::queue::{Ground, SOON, append_all, assert_lost, new_stream};
use super::records::{Scribe, position};
use crate::support::wait::LONG;

/// A new stream as capture begins one: fence, two records, a schema, a progress: numbers 1 to 4.
async fn begun(ground: &impl Ground, stream: &str) -> (Arc<dyn Queue>, Box<dyn QueueWriter>, Scribe) {
    let (queue, mut writer) = new_stream(ground, stream).await;
    let mut scribe = Scribe::new(77);
    let records = [scribe.fence(1, 11), scribe.schema(1), scribe.schema(2), scribe.progress(10), scribe.progress(20)];
    append_all(&mut writer, records).await;
    (queue, writer, scribe)
}

/// Opens the stream at a place and reads until nothing more comes.
async fn read_all(queue: &Arc<dyn Queue>, stream: &str, start: Start) -> Result<Vec<Entry>, millstream::Error> {
    let mut reader = LogReader::open(queue, stream, start).await?;
    let end = queue.bounds(stream).await?.unwrap().end;
    let mut entries: Vec<Entry> = Vec::new();
    loop {
        let wait = if entries.is_empty() { SOON } else { Duration::from_millis(300) };
        let more = reader.read(1 << 20, wait).await?;
        let last = more.iter().rev().find_map(|e| record(e).map(|r| r.offset));
        if more.is_empty() || last.is_some_and(|offset| offset.0 + 1 >= end.0) {
            entries.extend(more);
            return Ok(entries);
        }
        entries.extend(more);
    }
}

fn record(entry: &Entry) -> Option<&LogRecord> {
    match entry {
        Entry::Record(record) => Some(record),
        Entry::PartsVoided => None,
    }
}

fn numbers(entries: &[Entry]) -> Vec<u64> {
    entries.iter().filter_map(record).map(|r| r.record.header.number.0).collect()
}

fn cursor_of(entries: &[Entry], number: u64, lsn: u64) -> Cursor {
    let found = entries.iter().filter_map(record).find(|r| r.record.header.number == RecordNumber(number));
    found.unwrap().cursor(Some(position(lsn)), 0)
}

/// A queue that fences its writers itself refuses the second one; then the first has to go.
async fn another_writer(queue: &Arc<dyn Queue>, stream: &str, first: Box<dyn QueueWriter>) -> Box<dyn QueueWriter> {
    match queue.writer(stream).await {
        Err(error) if error.kind() == ErrorKind::Held => {
            drop(first);
            queue.writer(stream).await.unwrap()
        }
        other => other.unwrap(),
    }
}

pub async fn a_stale_writers_records_are_void(ground: &impl Ground, stream: &str) {
    let (queue, mut writer, mut scribe) = begun(ground, stream).await;
    append_all(&mut writer, [scribe.part(30, 0, false)]).await;
    let mut zombie = scribe.clone();
    scribe.header.number = RecordNumber(5);
    let mut newer = another_writer(&queue, stream, writer).await;
    let records: Vec<Bytes> =
        vec![scribe.fence(2, 22), zombie.part(30, 1, true), scribe.schema(1), zombie.progress(40), zombie.fence(2, 99)];
    append_all(&mut newer, records).await;
    append_all(&mut newer, [zombie.progress(50), scribe.progress(30)]).await;
    let entries = read_all(&queue, stream, Start::First).await.unwrap();
    assert_eq!(numbers(&entries), [0, 1, 2, 3, 4, 5, 0, 5, 6]);
    assert_eq!(entries.iter().position(|e| *e == Entry::PartsVoided), Some(6));
}

/// Who saw the hint of a stream's first writer before its fence drew an identity of his own, and a higher epoch.
pub async fn a_fence_of_another_identity_is_void(ground: &impl Ground, stream: &str) {
    let (queue, mut writer, mut scribe) = begun(ground, stream).await;
    let mut other = Scribe::new(scribe.header.stream.0 + 1);
    append_all(&mut writer, [other.fence(7, 77), scribe.progress(30)]).await;
    let entries = read_all(&queue, stream, Start::First).await.unwrap();
    assert_eq!(numbers(&entries), [0, 1, 2, 3, 4, 5]);
    append_all(&mut writer, [other.progress(40)]).await;
    let error = read_all(&queue, stream, Start::First).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Halt(HaltCode::QueueLost), "{error}");
}

/// Somebody deletes the stream's records and not its registry, and somebody else's `init` begins there and goes no further than its fence. Capture asked
/// for the base that its registry names, got nothing, and asked again for ever.
pub async fn a_stream_of_nothing_but_a_foreign_fence_is_lost(ground: &impl Ground, stream: &str) {
    let (queue, writer, scribe) = begun(ground, stream).await;
    let cursors: Vec<Cursor> = {
        let entries = read_all(&queue, stream, Start::First).await.unwrap();
        [(1, 0), (3, 10), (4, 20)].into_iter().map(|(number, lsn)| cursor_of(&entries, number, lsn)).collect()
    };
    let hint = WriterHint { epoch: scribe.header.epoch, base_offset: cursors[0].base_offset };
    let mut live = LogReader::open(&queue, stream, Start::After(cursors[2].clone())).await.unwrap();
    assert!(!live.read(1 << 20, SOON).await.unwrap().is_empty());
    drop(writer);
    queue.destroy(stream).await.unwrap();
    queue.create(stream).await.unwrap();
    let mut writer = queue.writer(stream).await.unwrap();
    append_all(&mut writer, [Scribe::new(78).fence(1, 11)]).await;
    drop(writer);
    let key = WriterHint::key(hint.epoch);
    queue.registry_put(stream, &key, Some(serde_json::to_vec(&hint).unwrap().into())).await.unwrap();
    for queue in [queue.clone(), ground.open().await] {
        for cursor in &cursors {
            assert_lost(read_all(&queue, stream, Start::After(cursor.clone())).await);
        }
        assert_lost(EntryPoint::find(&queue, stream).await);
        assert_lost(identity(&queue, stream).await);
        assert_lost(claim(&queue, stream, "test").await.map(drop));
    }
    let end = tokio::time::timeout(LONG, async {
        loop {
            if let Err(error) = live.read(1 << 20, Duration::from_millis(300)).await {
                return error;
            }
        }
    });
    assert_lost::<()>(Err(end.await.expect("who was reading notices as well")));
}

pub async fn a_cursor_resumes_at_its_record(ground: &impl Ground, stream: &str) {
    let (queue, mut writer, mut scribe) = begun(ground, stream).await;
    append_all(&mut writer, [scribe.transactions(&[30, 40, 50]), scribe.progress(60)]).await;
    let entries = read_all(&queue, stream, Start::First).await.unwrap();
    assert_eq!(numbers(&entries), [0, 1, 2, 3, 4, 5, 6]);
    let cursor = cursor_of(&entries, 5, 40);
    drop(writer);
    let queue = ground.open().await;
    let resumed = read_all(&queue, stream, Start::After(cursor.clone())).await.unwrap();
    assert_eq!(numbers(&resumed), [1, 2, 5, 6], "schemas, the record that was taken in part, the rest");
    let json = serde_json::to_string(&cursor).unwrap();
    assert_eq!(serde_json::from_str::<Cursor>(&json).unwrap(), cursor, "the ledger keeps it as JSON");
    let at_end = read_all(&queue, stream, Start::After(cursor_of(&entries, 6, 60))).await.unwrap();
    assert_eq!(numbers(&at_end), [1, 2, 6]);
}

pub async fn a_cursor_that_does_not_match_is_lost(ground: &impl Ground, stream: &str) {
    let (queue, mut writer, mut scribe) = begun(ground, stream).await;
    append_all(&mut writer, [scribe.progress(30), scribe.progress(40)]).await;
    let entries = read_all(&queue, stream, Start::First).await.unwrap();
    let cursor = cursor_of(&entries, 4, 20);
    let wrong = [
        Cursor { number: RecordNumber(3), ..cursor.clone() },
        Cursor { nonce: millstream::event::Nonce(12), ..cursor.clone() },
        Cursor { stream: millstream::event::StreamId(78), ..cursor.clone() },
        Cursor { offset: entries.iter().filter_map(record).next().unwrap().offset, ..cursor.clone() },
        Cursor {
            offset: QueueOffset(cursor.offset.0 + 1_000),
            base_offset: QueueOffset(cursor.offset.0 + 1_000),
            ..cursor.clone()
        },
    ];
    for cursor in wrong {
        assert_lost(read_all(&queue, stream, Start::After(cursor)).await);
    }
    read_all(&queue, stream, Start::After(cursor.clone())).await.unwrap();
    // The stream was made anew, with more records than the cursor is far.
    drop(writer);
    queue.destroy(stream).await.unwrap();
    let mut other = Scribe::new(78);
    queue.create(stream).await.unwrap();
    let mut writer = queue.writer(stream).await.unwrap();
    let mut records = vec![other.fence(1, 11)];
    records.extend((0..10).map(|n| other.progress(n)));
    append_all(&mut writer, records).await;
    assert_lost(read_all(&queue, stream, Start::After(cursor)).await);
}

pub async fn a_gap_in_the_numbers_halts(ground: &impl Ground, stream: &str) {
    let (queue, mut writer, mut scribe) = begun(ground, stream).await;
    scribe.header.number = RecordNumber(6);
    append_all(&mut writer, [scribe.progress(30)]).await;
    let error = read_all(&queue, stream, Start::First).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Halt(HaltCode::QueueGap), "{error:?}");
}

/// What a replica does: it commits a step and its cursor together, loses its connection, and reads again from the cursor.
pub async fn a_consumer_that_reconnects_after_every_step_takes_everything_once(ground: &impl Ground, stream: &str) {
    let (queue, mut writer, mut scribe) = begun(ground, stream).await;
    let records = [
        scribe.transactions(&[30, 40, 50]),
        scribe.part(60, 0, false),
        scribe.part(60, 1, true),
        scribe.progress(70),
        scribe.part(80, 0, false),
    ];
    append_all(&mut writer, records).await;
    // Another writer takes over inside the last transaction and begins it anew; what the first one still appends is void.
    let mut zombie = scribe.clone();
    scribe.header.number = RecordNumber(9);
    let mut newer = another_writer(&queue, stream, writer).await;
    let records = vec![
        scribe.fence(2, 22),
        zombie.part(80, 1, true),
        scribe.transactions(&[80, 90]),
        zombie.transactions(&[81]),
        scribe.schema(3),
        scribe.progress(100),
        scribe.transactions(&[110]),
    ];
    append_all(&mut newer, records).await;
    drop(newer);

    let mut cursor: Option<Cursor> = None;
    let mut taken = Vec::new();
    while let Some(next) = step(&ground.open().await, stream, cursor.clone()).await {
        taken.push(next.position.unwrap());
        assert!(taken.len() < 20, "the same again and again: {taken:?}");
        cursor = Some(next);
    }
    assert_eq!(taken, [10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110].map(position));
}

/// Connects, takes the first whole thing behind a cursor (a transaction, or a progress) and gives the cursor behind it.
async fn step(queue: &Arc<dyn Queue>, stream: &str, cursor: Option<Cursor>) -> Option<Cursor> {
    let known = cursor.as_ref().and_then(|c| c.position);
    let mut reader = LogReader::open(queue, stream, cursor.map_or(Start::First, Start::After)).await.unwrap();
    let mut first = true;
    loop {
        // Even at the end there is something: the cursor's own record.
        let entries = reader.read(1 << 20, if first { SOON } else { Duration::from_millis(300) }).await.unwrap();
        if entries.is_empty() {
            return None;
        }
        first = false;
        for record in entries.iter().filter_map(record) {
            let ends: Vec<Position> = match &record.record.body {
                Body::Transactions(batch) => batch.iter().map(|t| t.unwrap().header.position).collect(),
                Body::Part(part) if part.last => vec![part.header.position],
                Body::Progress(progress) => vec![progress.position],
                _ => Vec::new(),
            };
            if let Some(new) = ends.into_iter().find(|end| known < Some(*end)) {
                return Some(record.cursor(Some(new), 0));
            }
        }
    }
}
