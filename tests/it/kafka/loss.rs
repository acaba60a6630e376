//! Records that went behind our back: noticed, never read over (FAULTS 19, 20).

use std::time::Duration;

use millstream::ErrorKind;
use millstream::capture::{Beginning, begin_stream, beginning};
use millstream::event::{
    Body, Epoch, Fence, Genesis, History, Nonce, Position, Progress, Record, RecordHeader, RecordKind, RecordNumber, StreamId,
};
use millstream::queue::Queue;
use millstream::queue::kafka::KafkaQueue;
use millstream::queue::log::{Entry, LogReader, Start};
use rdkafka::admin::AdminOptions;
use rdkafka::{Offset, TopicPartitionList};

use super::{SOON, append_all, assert_lost, durable, offset, read_some, read_until_error, record, stream_of};
use crate::support::kafka;
use crate::support::wait::{LONG, until};
use std::sync::Arc;

#[tokio::test(flavor = "multi_thread")]
async fn retention_that_passed_the_reader_is_loss() {
    let kafka = kafka::shared().await;
    let settings = kafka.settings("retention");
    let topic = format!("{}s", settings.topic_prefix);
    kafka.create_topic(&topic, 1, &[("segment.bytes", "1048576")]).await;
    let queue = KafkaQueue::open(settings).unwrap();
    queue.create("s").await.unwrap();
    let mut writer = queue.writer("s").await.unwrap();
    // Past several segments, without compression's help.
    let noise = (0..80).map(|n| {
        let mut bytes = record(n, 200_000).to_vec();
        rand::fill(&mut bytes[20..]);
        bytes.into()
    });
    append_all(&mut *writer, noise).await;
    let mut behind = queue.reader("s", offset(0)).await.unwrap();
    kafka.alter_topic(&topic, &[("retention.ms", "1"), ("segment.bytes", "1048576")]).await;
    until("retention", LONG, async || queue.bounds("s").await.unwrap().unwrap().start > offset(60)).await;
    assert_lost(&queue.reader("s", offset(5)).await.err().unwrap());
    // What it had fetched before comes, then the error; never the record behind the hole.
    let mut next = 0;
    let error = loop {
        match behind.read(1 << 20, Duration::from_millis(500)).await {
            Ok(records) => {
                for record in records {
                    assert_eq!(record.offset.0, next, "read over a hole");
                    next += 1;
                }
            }
            Err(error) => break error,
        }
    };
    assert_lost(&error);
}

#[tokio::test(flavor = "multi_thread")]
async fn records_deleted_under_a_reader_are_loss() {
    let kafka = kafka::shared().await;
    let settings = kafka.settings("deleted");
    let topic = format!("{}s", settings.topic_prefix);
    let queue = KafkaQueue::open(settings).unwrap();
    stream_of(&queue, "s", 3).await;
    let mut reader = queue.reader("s", offset(0)).await.unwrap();
    read_some(&mut *reader, 3).await;
    drop(reader);
    let mut place = TopicPartitionList::new();
    place.add_partition_offset(&topic, 0, Offset::End).unwrap();
    kafka.admin().delete_records(&place, &AdminOptions::new()).await.unwrap();
    assert_lost(&queue.reader("s", offset(1)).await.err().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_deleted_under_its_reader_is_loss() {
    let kafka = kafka::shared().await;
    let settings = kafka.settings("gone");
    let topic = format!("{}s", settings.topic_prefix);
    let queue = KafkaQueue::open(settings).unwrap();
    stream_of(&queue, "s", 5).await;
    let mut reader = queue.reader("s", offset(0)).await.unwrap();
    read_some(&mut *reader, 5).await;
    kafka.delete_topic(&topic).await;
    assert_lost(&read_until_error(&mut *reader).await);
    assert_eq!(queue.bounds("s").await.unwrap(), None, "nobody made it again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_made_anew_is_noticed_by_reader_and_writer() {
    let kafka = kafka::shared().await;
    let settings = kafka.settings("anew");
    let topic = format!("{}s", settings.topic_prefix);
    let queue = KafkaQueue::open(settings).unwrap();
    queue.create("s").await.unwrap();
    let mut writer = queue.writer("s").await.unwrap();
    let last = append_all(&mut *writer, (0..5).map(|n| record(n, 100))).await;
    let mut reader = queue.reader("s", offset(0)).await.unwrap();
    read_some(&mut *reader, 5).await;
    kafka.delete_topic(&topic).await;
    until("the deletion", LONG, async || queue.bounds("s").await.is_ok_and(|bounds| bounds.is_none())).await;
    kafka.create_topic(&topic, 1, &[]).await;
    until("the new topic", LONG, async || queue.bounds("s").await.is_ok_and(|bounds| bounds.is_some())).await;

    // The writer never reports a record of the new topic as following those of the old one.
    let failure = async {
        let mut seen = last.ticket;
        loop {
            if let Err(error) = writer.append(record(9, 100)).await {
                return error;
            }
            match writer.durable_past(seen).await {
                Ok(done) => {
                    assert!(done.offset > last.offset, "{done:?} behind {last:?}");
                    seen = done.ticket;
                }
                Err(error) => return error,
            }
        }
    };
    let error = tokio::time::timeout(LONG, failure).await.expect("the writer notices");
    assert!(matches!(error.kind(), ErrorKind::Connection | ErrorKind::Halt(_)), "{error}");
    assert_lost(&read_until_error(&mut *reader).await);
    assert_lost(&queue.reader("s", last.offset.next()).await.err().unwrap());
}

fn header(kind: RecordKind, stream: u64, number: u64, epoch: u64, nonce: u64) -> RecordHeader {
    RecordHeader {
        kind,
        stream: StreamId(stream),
        number: RecordNumber(number),
        epoch: Epoch(epoch),
        nonce: Nonce(nonce),
        base: RecordNumber(u64::from(number > 0)),
        bytes_before: 0,
        changes_before: 0,
        written_at_us: 0,
    }
}

fn fence(stream: u64, epoch: u64, nonce: u64) -> bytes::Bytes {
    let body = Body::Fence(Fence { epoch: Epoch(epoch), nonce: Nonce(nonce), holder: "test".into(), version: "0".into() });
    Record { header: header(RecordKind::Fence, stream, 0, epoch, nonce), body }.encode()
}

fn progress(stream: u64, number: u64, epoch: u64, nonce: u64) -> bytes::Bytes {
    let position = Position::Lsn(millstream::event::Lsn(number));
    let body = Body::Progress(Progress { position, source_time_us: 0, heartbeat: false });
    Record { header: header(RecordKind::Progress, stream, number, epoch, nonce), body }.encode()
}

async fn valid_numbers(queue: &Arc<KafkaQueue>, count: usize) -> Vec<u64> {
    let queue: Arc<dyn Queue> = Arc::clone(queue) as _;
    let mut log = LogReader::open(&queue, "s", Start::First).await.unwrap();
    let mut numbers = Vec::new();
    while numbers.len() < count {
        for entry in log.read(1 << 20, SOON).await.unwrap() {
            if let Entry::Record(record) = entry {
                numbers.push(record.record.header.number.0);
            }
        }
    }
    numbers
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_paused_writer_still_appends_is_void_behind_the_next_ones_fence() {
    let kafka = kafka::shared().await;
    let settings = kafka.settings("zombie");
    let queue = KafkaQueue::open(settings.clone()).unwrap();
    queue.create("s").await.unwrap();
    let mut old = queue.writer("s").await.unwrap();
    append_all(&mut *old, [fence(1, 1, 11), progress(1, 1, 1, 11), progress(1, 2, 1, 11)]).await;
    // Another process takes over; the old one does not know and goes on. Kafka takes both.
    let other = KafkaQueue::open(settings).unwrap();
    let mut new = other.writer("s").await.unwrap();
    append_all(&mut *new, [fence(1, 2, 22)]).await;
    let zombie = old.append(progress(1, 3, 1, 11)).await.unwrap();
    durable(&mut *old, zombie).await;
    let third = new.append(progress(1, 3, 2, 22)).await.unwrap();
    durable(&mut *new, third).await;
    let zombie = old.append(progress(1, 4, 1, 11)).await.unwrap();
    durable(&mut *old, zombie).await;
    let fourth = new.append(progress(1, 4, 2, 22)).await.unwrap();
    durable(&mut *new, fourth).await;
    // Fences carry number 0.
    assert_eq!(valid_numbers(&queue, 6).await, [0, 1, 2, 0, 3, 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_does_not_fit_a_topic_made_anew_that_has_grown_past_it() {
    let kafka = kafka::shared().await;
    let queue = kafka.queue("grown");
    queue.create("s").await.unwrap();
    let mut writer = queue.writer("s").await.unwrap();
    append_all(&mut *writer, [fence(1, 1, 11), progress(1, 1, 1, 11), progress(1, 2, 1, 11)]).await;
    let dynamic: Arc<dyn Queue> = Arc::clone(&queue) as _;
    let mut log = LogReader::open(&dynamic, "s", Start::First).await.unwrap();
    let mut cursor = None;
    while cursor.is_none() {
        for entry in log.read(1 << 20, SOON).await.unwrap() {
            if let Entry::Record(record) = entry {
                cursor = (record.record.header.number.0 == 2).then(|| record.cursor(None, 0));
            }
        }
    }
    drop((writer, log));
    queue.destroy("s").await.unwrap();
    queue.create("s").await.unwrap();
    let mut writer = queue.writer("s").await.unwrap();
    append_all(&mut *writer, [fence(2, 1, 11)].into_iter().chain((1..20).map(|n| progress(2, n, 1, 11)))).await;
    let opened = LogReader::open(&dynamic, "s", Start::After(cursor.unwrap())).await;
    let error = match opened {
        Ok(mut log) => loop {
            if let Err(error) = log.read(1 << 20, SOON).await {
                break error;
            }
        },
        Err(error) => error,
    };
    assert_lost(&error);
}

/// Both drew an identity for the empty stream, and the second one's fence made it unreadable.
#[tokio::test(flavor = "multi_thread")]
async fn two_first_inits_at_once_leave_a_stream_that_can_be_read() {
    let kafka = kafka::shared().await;
    let settings = kafka.settings("both");
    let queues: [Arc<dyn Queue>; 2] = [KafkaQueue::open(settings.clone()).unwrap(), KafkaQueue::open(settings).unwrap()];
    for round in 0..4 {
        let stream = format!("s{round}");
        let genesis = |slot: &str| Genesis {
            source: stream.clone(),
            history: History { system_identifier: 7, timeline: 1, lineage: vec![], database: "shop".into(), slot: slot.into() },
        };
        queues[0].create(&stream).await.unwrap();
        let both = tokio::join!(begin_stream(&queues[0], &stream, genesis("a")), begin_stream(&queues[1], &stream, genesis("b")));
        if beginning(&queues[0], &stream).await.unwrap() == Beginning::Nothing {
            begin_stream(&queues[0], &stream, genesis("a")).await.unwrap();
        }
        let found = beginning(&queues[1], &stream).await.unwrap();
        assert!(matches!(found, Beginning::SlotPending(_)), "{found:?} after {both:?}");
    }
}
