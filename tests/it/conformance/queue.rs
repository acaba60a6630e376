//! What every queue must do. A new queue adds one module with `queue_conforms!(NAME, GROUND)`.
//!
//! A *ground* is a queue's storage, and how to open it: each [`Ground::open`] is a handle such as another process would have.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use millstream::event::QueueOffset;
use millstream::halt::HaltCode;
use millstream::queue::{Bounds, Durable, Queue, QueueReader, QueueWriter, StoredRecord, Ticket};
use millstream::{Error, ErrorKind};

/// Where a queue's suite runs.
#[async_trait]
pub trait Ground: Send + Sync {
    /// Another handle on the same storage.
    async fn open(&self) -> Arc<dyn Queue>;
}

/// Instantiates the suite. `$ground` is an expression that makes a [`Ground`]; it may use `.await`.
macro_rules! queue_conforms {
    ($ground:expr; $($case:path => $name:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let ground = $ground;
                let stream = format!("{}-{:016x}", stringify!($name), rand::random::<u64>());
                tokio::time::timeout($crate::support::wait::LONG * 2, $case(&ground, &stream)).await.expect("the case hangs");
            }
        )*
    };
    ($ground:expr) => {
        $crate::conformance::queue::queue_conforms! { $ground;
            $crate::conformance::queue::a_stream_is_made_once => a_stream_is_made_once,
            $crate::conformance::queue::records_come_back_in_order => records_come_back_in_order,
            $crate::conformance::queue::tickets_become_durable_in_order => tickets_become_durable_in_order,
            $crate::conformance::queue::a_cancelled_append_accepts_nothing => a_cancelled_append_accepts_nothing,
            $crate::conformance::queue::a_cancelled_read_loses_nothing => a_cancelled_read_loses_nothing,
            $crate::conformance::queue::large_records_fit_and_larger_ones_are_refused => large_records_fit_and_larger_ones_are_refused,
            $crate::conformance::queue::reads_are_bounded_in_bytes => reads_are_bounded_in_bytes,
            $crate::conformance::queue::readers_stand_at_different_places => readers_stand_at_different_places,
            $crate::conformance::queue::a_reader_at_the_end_waits_and_is_woken => a_reader_at_the_end_waits_and_is_woken,
            $crate::conformance::queue::places_outside_are_lost => places_outside_are_lost,
            $crate::conformance::queue::trim_keeps_what_it_must => trim_keeps_what_it_must,
            $crate::conformance::queue::the_registry_is_a_durable_map => the_registry_is_a_durable_map,
            $crate::conformance::queue::a_destroyed_stream_is_gone => a_destroyed_stream_is_gone,
            $crate::conformance::queue::a_later_writer_goes_on_at_the_end => a_later_writer_goes_on_at_the_end,
            $crate::conformance::queue_log::a_stale_writers_records_are_void => a_stale_writers_records_are_void,
            $crate::conformance::queue_log::a_fence_of_another_identity_is_void => a_fence_of_another_identity_is_void,
            $crate::conformance::queue_log::a_stream_of_nothing_but_a_foreign_fence_is_lost => a_stream_of_nothing_but_a_foreign_fence_is_lost,
            $crate::conformance::queue_log::a_cursor_resumes_at_its_record => a_cursor_resumes_at_its_record,
            $crate::conformance::queue_log::a_cursor_that_does_not_match_is_lost => a_cursor_that_does_not_match_is_lost,
            $crate::conformance::queue_log::a_consumer_that_reconnects_after_every_step_takes_everything_once => a_consumer_that_reconnects_after_every_step_takes_everything_once,
            $crate::conformance::queue_log::a_gap_in_the_numbers_halts => a_gap_in_the_numbers_halts,
        }
    };
}
pub(crate) use queue_conforms;

/// Longer than any read has to wait for what is there.
pub const SOON: Duration = Duration::from_secs(20);

/// Makes the stream and opens it for appending.
pub async fn new_stream(ground: &impl Ground, stream: &str) -> (Arc<dyn Queue>, Box<dyn QueueWriter>) {
    let queue = ground.open().await;
    queue.create(stream).await.unwrap();
    let writer = queue.writer(stream).await.unwrap();
    (queue, writer)
}

/// Appends and waits until all of it is durable.
pub async fn append_all(writer: &mut Box<dyn QueueWriter>, records: impl IntoIterator<Item = Bytes>) -> Durable {
    let mut last = Ticket(0);
    for record in records {
        last = writer.append(record).await.unwrap();
    }
    durable(writer, last).await
}

async fn durable(writer: &mut Box<dyn QueueWriter>, ticket: Ticket) -> Durable {
    let durable = writer.durable_past(Ticket(ticket.0 - 1)).await.unwrap();
    assert!(durable.ticket >= ticket);
    durable
}

async fn bounds(queue: &Arc<dyn Queue>, stream: &str) -> Bounds {
    queue.bounds(stream).await.unwrap().expect("the stream is there")
}

async fn from_start(queue: &Arc<dyn Queue>, stream: &str) -> Box<dyn QueueReader> {
    queue.reader(stream, bounds(queue, stream).await.start).await.unwrap()
}

async fn read_count(reader: &mut Box<dyn QueueReader>, count: usize) -> Vec<StoredRecord> {
    let mut records = Vec::new();
    let end = Instant::now() + SOON;
    while records.len() < count {
        assert!(Instant::now() < end, "{} of {count} records came", records.len());
        records.extend(reader.read(1 << 20, Duration::from_secs(1)).await.unwrap());
    }
    assert_eq!(records.len(), count, "too many");
    records
}

fn numbered(range: std::ops::Range<u32>) -> Vec<Bytes> {
    range.map(|n| Bytes::from(format!("record {n} {}", "x".repeat(n as usize * 7 % 900)))).collect()
}

fn contents(records: &[StoredRecord]) -> Vec<Bytes> {
    records.iter().map(|r| r.bytes.clone()).collect()
}

/// Fails unless it is a halt with `queue_lost`.
pub fn assert_lost<T>(result: Result<T, Error>) {
    match result {
        Err(error) if error.kind() == ErrorKind::Halt(HaltCode::QueueLost) => {}
        Err(error) => panic!("{error:?}"),
        Ok(_) => panic!("it was read"),
    }
}

pub async fn a_stream_is_made_once(ground: &impl Ground, stream: &str) {
    let queue = ground.open().await;
    assert_eq!(queue.bounds(stream).await.unwrap(), None);
    assert!(queue.registry(stream).await.unwrap().is_empty());
    assert!(queue.writer(stream).await.is_err(), "a stream that was never made has no writer");
    queue.create(stream).await.unwrap();
    assert!(bounds(&queue, stream).await.is_empty());
    let mut writer = queue.writer(stream).await.unwrap();
    append_all(&mut writer, numbered(0..3)).await;
    queue.create(stream).await.unwrap();
    ground.open().await.create(stream).await.unwrap();
    assert!(!bounds(&queue, stream).await.is_empty());
    assert_eq!(contents(&read_count(&mut from_start(&queue, stream).await, 3).await), numbered(0..3));
}

pub async fn records_come_back_in_order(ground: &impl Ground, stream: &str) {
    let (queue, mut writer) = new_stream(ground, stream).await;
    append_all(&mut writer, numbered(0..2000)).await;
    let records = read_count(&mut from_start(&queue, stream).await, 2000).await;
    assert_eq!(contents(&records), numbered(0..2000));
    assert!(records.windows(2).all(|pair| pair[0].offset < pair[1].offset));
    let end = bounds(&queue, stream).await.end;
    assert!(end > records[1999].offset);
    let elsewhere = ground.open().await;
    assert_eq!(contents(&read_count(&mut from_start(&elsewhere, stream).await, 2000).await), numbered(0..2000));
}

pub async fn tickets_become_durable_in_order(ground: &impl Ground, stream: &str) {
    let (queue, mut writer) = new_stream(ground, stream).await;
    for (index, record) in numbered(0..500).into_iter().enumerate() {
        assert_eq!(writer.append(record).await.unwrap(), Ticket(index as u64 + 1));
    }
    let mut seen = Durable { ticket: Ticket(0), offset: QueueOffset(0) };
    while seen.ticket < Ticket(500) {
        let durable = writer.durable_past(seen.ticket).await.unwrap();
        assert!(durable.ticket > seen.ticket && durable.offset >= seen.offset && durable.ticket <= Ticket(500));
        // What is reported is there, at its offset.
        let mut reader = queue.reader(stream, durable.offset).await.unwrap();
        let found = reader.read(1, SOON).await.unwrap();
        assert_eq!(found[0].offset, durable.offset);
        assert_eq!(found[0].bytes, numbered(0..500)[durable.ticket.0 as usize - 1]);
        seen = durable;
    }
    let cancelled = tokio::time::timeout(Duration::from_millis(20), writer.durable_past(Ticket(500))).await;
    assert!(cancelled.is_err(), "nothing more is durable");
    append_all(&mut writer, numbered(500..501)).await;
}

pub async fn a_cancelled_append_accepts_nothing(ground: &impl Ground, stream: &str) {
    let (queue, mut writer) = new_stream(ground, stream).await;
    let size = queue.max_record_bytes() / 4;
    let (mut accepted, mut refused, mut last) = (Vec::new(), 0, Ticket(0));
    for n in 0..400_u32 {
        let mut record = n.to_le_bytes().to_vec();
        record.resize(size, n as u8);
        match tokio::time::timeout(Duration::ZERO, writer.append(Bytes::from(record))).await {
            Ok(ticket) => {
                let ticket = ticket.unwrap();
                assert_eq!(ticket.0, last.0 + 1, "a cancelled append took a ticket");
                last = ticket;
                accepted.push(n);
            }
            Err(_) => refused += 1,
        }
    }
    if last > Ticket(0) {
        durable(&mut writer, last).await;
    }
    let records = read_count(&mut from_start(&queue, stream).await, accepted.len()).await;
    let found: Vec<u32> = records.iter().map(|r| u32::from_le_bytes(r.bytes[..4].try_into().unwrap())).collect();
    assert_eq!(found, accepted, "{refused} were cancelled");
}

pub async fn a_cancelled_read_loses_nothing(ground: &impl Ground, stream: &str) {
    let (queue, mut writer) = new_stream(ground, stream).await;
    let mut reader = from_start(&queue, stream).await;
    let all = numbered(0..600);
    let (mut found, mut next, mut round) = (Vec::new(), 0, 0_u64);
    let end = Instant::now() + SOON;
    while found.len() < all.len() {
        assert!(Instant::now() < end, "{} records came", found.len());
        for record in all.iter().skip(next).take(7) {
            writer.append(record.clone()).await.unwrap();
            next += 1;
        }
        round += 1;
        let patience = Duration::from_micros(round * 37 % 2000);
        if let Ok(records) = tokio::time::timeout(patience, reader.read(3000, SOON)).await {
            found.extend(contents(&records.unwrap()));
        }
    }
    assert_eq!(found, all);
}

pub async fn large_records_fit_and_larger_ones_are_refused(ground: &impl Ground, stream: &str) {
    let (queue, mut writer) = new_stream(ground, stream).await;
    let max = queue.max_record_bytes();
    let large = |seed: u8, size: usize| Bytes::from((0..size).map(|i| (i % 251) as u8 ^ seed).collect::<Vec<_>>());
    let records: Vec<Bytes> = [max, 1, max - 1, max / 2, max].iter().enumerate().map(|(i, n)| large(i as u8, *n)).collect();
    append_all(&mut writer, records.clone()).await;
    assert!(writer.append(large(9, max + 1)).await.is_err());
    append_all(&mut writer, [Bytes::from_static(b"the writer lives on")]).await;
    let mut reader = from_start(&queue, stream).await;
    let mut found = Vec::new();
    while found.len() < 6 {
        // The first record of an answer may be larger than what was asked for.
        found.extend(contents(&reader.read(1000, SOON).await.unwrap()));
    }
    assert_eq!(found[..5], records);
}

pub async fn reads_are_bounded_in_bytes(ground: &impl Ground, stream: &str) {
    let (queue, mut writer) = new_stream(ground, stream).await;
    append_all(&mut writer, (0..100).map(|_| Bytes::from(vec![7; 1000]))).await;
    let mut reader = from_start(&queue, stream).await;
    let mut count = 0;
    while count < 100 {
        let records = reader.read(10_000, SOON).await.unwrap();
        let bytes: usize = records.iter().map(|r| r.bytes.len()).sum();
        assert!((1..=12_000).contains(&bytes), "{bytes} bytes at once");
        count += records.len();
    }
}

pub async fn readers_stand_at_different_places(ground: &impl Ground, stream: &str) {
    let (queue, mut writer) = new_stream(ground, stream).await;
    append_all(&mut writer, numbered(0..300)).await;
    let all = read_count(&mut from_start(&queue, stream).await, 300).await;
    let mut readers = Vec::new();
    for start in [0, 1, 150, 298, 299] {
        readers.push((start, queue.reader(stream, all[start].offset).await.unwrap()));
    }
    append_all(&mut writer, numbered(300..350)).await;
    for (start, reader) in &mut readers {
        let found = read_count(reader, 350 - *start).await;
        assert_eq!(contents(&found), numbered(*start as u32..350));
    }
}

pub async fn a_reader_at_the_end_waits_and_is_woken(ground: &impl Ground, stream: &str) {
    let (queue, mut writer) = new_stream(ground, stream).await;
    let end = bounds(&queue, stream).await.end;
    let mut reader = queue.reader(stream, end).await.unwrap();
    let began = Instant::now();
    assert!(reader.read(1000, Duration::from_millis(50)).await.unwrap().is_empty());
    assert!(began.elapsed() >= Duration::from_millis(45), "it did not wait");
    append_all(&mut writer, numbered(0..1)).await;
    assert_eq!(contents(&read_count(&mut reader, 1).await), numbered(0..1));
    let end = bounds(&queue, stream).await.end;
    let mut late = queue.reader(stream, end).await.unwrap();
    let waiting = tokio::spawn(async move { late.read(1000, SOON).await });
    append_all(&mut writer, numbered(1..2)).await;
    assert_eq!(contents(&waiting.await.unwrap().unwrap()), numbered(1..2));
}

pub async fn places_outside_are_lost(ground: &impl Ground, stream: &str) {
    let (queue, mut writer) = new_stream(ground, stream).await;
    assert_lost(queue.reader(stream, QueueOffset(bounds(&queue, stream).await.end.0 + 1)).await);
    append_all(&mut writer, numbered(0..10)).await;
    let end = bounds(&queue, stream).await.end;
    assert_lost(queue.reader(stream, QueueOffset(end.0 + 1)).await);
    assert_lost(queue.reader(stream, QueueOffset(end.0 + 1_000_000)).await);
    assert!(queue.reader(stream, end).await.is_ok());
    drop(writer);
    let elsewhere = ground.open().await;
    assert_lost(elsewhere.reader(stream, QueueOffset(end.0 + 1)).await);
    assert!(elsewhere.reader(stream, end).await.is_ok());
}

pub async fn trim_keeps_what_it_must(ground: &impl Ground, stream: &str) {
    let (queue, mut writer) = new_stream(ground, stream).await;
    append_all(&mut writer, numbered(0..500)).await;
    // In many batches, so that a queue of segments has several.
    for start in (500..1000).step_by(20) {
        append_all(&mut writer, numbered(start..start + 20)).await;
    }
    let all = read_count(&mut from_start(&queue, stream).await, 1000).await;
    let before = bounds(&queue, stream).await;
    queue.trim(stream, all[700].offset).await.unwrap();
    let after = bounds(&queue, stream).await;
    assert!(after.start == all[700].offset && after.end == before.end, "{before:?} {after:?}");
    if let (Some(before), Some(after)) = (before.stored_bytes, after.stored_bytes) {
        assert!(after < before);
    }
    assert_lost(queue.reader(stream, before.start).await);
    assert_lost(queue.reader(stream, all[699].offset).await);
    let mut reader = queue.reader(stream, all[700].offset).await.unwrap();
    assert_eq!(contents(&read_count(&mut reader, 300).await), numbered(700..1000));
    // A trim further back does nothing; one beyond the end leaves the last record.
    queue.trim(stream, before.start).await.unwrap();
    queue.trim(stream, QueueOffset(before.end.0 + 1000)).await.unwrap();
    let last = bounds(&queue, stream).await;
    assert!(last.start <= all[999].offset && !last.is_empty());
    let mut reader = queue.reader(stream, all[999].offset).await.unwrap();
    assert_eq!(contents(&read_count(&mut reader, 1).await), numbered(999..1000));
    append_all(&mut writer, numbered(1000..1001)).await;
    assert_eq!(contents(&read_count(&mut reader, 1).await), numbered(1000..1001));
}

pub async fn the_registry_is_a_durable_map(ground: &impl Ground, stream: &str) {
    let (queue, writer) = new_stream(ground, stream).await;
    let value = |text: &str| Some(Bytes::copy_from_slice(text.as_bytes()));
    queue.registry_put(stream, "consumer/a", value(r#"{"keep_from":1}"#)).await.unwrap();
    queue.registry_put(stream, "consumer/b", value("b")).await.unwrap();
    queue.registry_put(stream, "writer/7", Some(Bytes::from_static(&[0, 255, 10]))).await.unwrap();
    let elsewhere = ground.open().await;
    elsewhere.registry_put(stream, "consumer/a", value("a2")).await.unwrap();
    elsewhere.registry_put(stream, "consumer/b", None).await.unwrap();
    elsewhere.registry_put(stream, "consumer/never", None).await.unwrap();
    let expected = BTreeMap::from([
        ("consumer/a".to_owned(), Bytes::from_static(b"a2")),
        ("writer/7".to_owned(), Bytes::from_static(&[0, 255, 10])),
    ]);
    assert_eq!(queue.registry(stream).await.unwrap(), expected);
    drop(writer);
    assert_eq!(ground.open().await.registry(stream).await.unwrap(), expected);
    // Many writers of different entries lose none.
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..8 {
        let (queue, stream) = (ground.open().await, stream.to_owned());
        tasks
            .spawn(async move { queue.registry_put(&stream, &format!("consumer/{n}"), Some(Bytes::from(format!("{n}")))).await });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap().unwrap();
    }
    assert_eq!(queue.registry(stream).await.unwrap().len(), 10);
}

pub async fn a_destroyed_stream_is_gone(ground: &impl Ground, stream: &str) {
    let (queue, mut writer) = new_stream(ground, stream).await;
    append_all(&mut writer, numbered(0..10)).await;
    queue.registry_put(stream, "consumer/a", Some(Bytes::from_static(b"a"))).await.unwrap();
    drop(writer);
    queue.destroy(stream).await.unwrap();
    queue.destroy(stream).await.unwrap();
    assert_eq!(queue.bounds(stream).await.unwrap(), None);
    assert!(queue.registry(stream).await.unwrap().is_empty());
    queue.create(stream).await.unwrap();
    assert!(bounds(&queue, stream).await.is_empty());
    assert!(queue.registry(stream).await.unwrap().is_empty());
    let mut writer = queue.writer(stream).await.unwrap();
    append_all(&mut writer, numbered(10..12)).await;
    assert_eq!(contents(&read_count(&mut from_start(&queue, stream).await, 2).await), numbered(10..12));
}

pub async fn a_later_writer_goes_on_at_the_end(ground: &impl Ground, stream: &str) {
    let (queue, mut writer) = new_stream(ground, stream).await;
    let mut last = append_all(&mut writer, numbered(0..50)).await;
    for round in 1..4_u32 {
        drop(writer);
        let queue = ground.open().await;
        assert!(bounds(&queue, stream).await.end > last.offset);
        writer = queue.writer(stream).await.unwrap();
        assert!(bounds(&queue, stream).await.end > last.offset);
        let ticket = writer.append(numbered(round * 50..round * 50 + 1)[0].clone()).await.unwrap();
        assert_eq!(ticket, Ticket(1), "each writer counts for itself");
        let durable = append_all(&mut writer, numbered(round * 50 + 1..round * 50 + 50)).await;
        assert!(durable.offset > last.offset);
        last = durable;
    }
    assert_eq!(contents(&read_count(&mut from_start(&queue, stream).await, 200).await), numbered(0..200));
}
