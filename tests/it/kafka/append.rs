//! Topics, order, limits, bounds, trimming.

use std::time::Duration;

use bytes::Bytes;
use millstream::ErrorKind;
use millstream::halt::HaltCode;
use millstream::queue::{Queue, Ticket};

use super::{SOON, append_all, offset, read_some, record, stream_of};
use crate::support::kafka;

#[tokio::test(flavor = "multi_thread")]
async fn records_come_back_in_order_with_the_offsets_that_the_writer_was_told() {
    let queue = kafka::shared().await.queue("order");
    queue.create("s").await.unwrap();
    queue.create("s").await.unwrap();
    let mut writer = queue.writer("s").await.unwrap();
    let sent: Vec<_> = (0..500).map(|n| record(n, n * 7)).collect();
    let done = append_all(&mut *writer, sent.clone()).await;
    let bounds = queue.bounds("s").await.unwrap().unwrap();
    assert_eq!((bounds.start, done.offset.next()), (offset(0), bounds.end));

    let mut reader = queue.reader("s", offset(0)).await.unwrap();
    let read = read_some(&mut *reader, sent.len()).await;
    assert_eq!(read.iter().map(|r| r.bytes.clone()).collect::<Vec<_>>(), sent);
    assert_eq!(read.last().unwrap().offset, done.offset);
    assert!(reader.read(1 << 20, Duration::from_millis(50)).await.unwrap().is_empty());
    // A reader that is there already gets what comes.
    append_all(&mut *writer, [record(500, 10)]).await;
    assert_eq!(read_some(&mut *reader, 1).await[0].bytes, record(500, 10));
    queue.destroy("s").await.unwrap();
    assert_eq!(queue.bounds("s").await.unwrap(), None);
    queue.destroy("s").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_is_bounded_in_bytes_and_an_abandoned_one_loses_nothing() {
    let queue = kafka::shared().await.queue("bounded");
    let last = stream_of(&queue, "s", 400).await;
    let mut reader = queue.reader("s", offset(0)).await.unwrap();
    let mut next = 0;
    while next <= last.offset.0 {
        // Given up at every instant that a poll may reach.
        let Ok(read) = tokio::time::timeout(Duration::from_micros(next % 7 * 50), reader.read(4096, SOON)).await else {
            let rest = reader.read(4096, SOON).await.unwrap();
            check(&rest, &mut next);
            continue;
        };
        check(&read.unwrap(), &mut next);
    }

    fn check(read: &[millstream::queue::StoredRecord], next: &mut u64) {
        assert!(read.iter().map(|r| r.bytes.len()).sum::<usize>() <= 4096);
        for r in read {
            assert_eq!(r.offset.0, *next);
            *next += 1;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_over_the_limit_is_refused_before_kafka_sees_it() {
    let kafka = kafka::shared().await;
    let queue = kafka.queue("limit");
    queue.create("s").await.unwrap();
    let mut writer = queue.writer("s").await.unwrap();
    let limit = queue.max_record_bytes();
    let refused = writer.append(Bytes::from(vec![7; limit + 1])).await.unwrap_err();
    assert!(refused.message().contains(&limit.to_string()), "{refused}");
    // The largest is taken as it is, though it cannot be compressed.
    let mut noise = vec![0_u8; limit];
    rand::fill(&mut noise[..]);
    let done = append_all(&mut *writer, [Bytes::from(noise.clone())]).await;
    assert_eq!((done.ticket, done.offset), (Ticket(1), offset(0)), "the refused one took no place");
    let mut reader = queue.reader("s", offset(0)).await.unwrap();
    assert_eq!(read_some(&mut *reader, 1).await[0].bytes, noise);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_takes_less_lowers_the_limit() {
    let kafka = kafka::shared().await;
    let settings = kafka.settings("small");
    let topic = format!("{}s", settings.topic_prefix);
    kafka.create_topic(&topic, 1, &[("max.message.bytes", "100000"), ("retention.ms", "-1")]).await;
    let queue = millstream::queue::kafka::KafkaQueue::open(settings).unwrap();
    queue.create("s").await.unwrap();
    let mut writer = queue.writer("s").await.unwrap();
    assert!(queue.max_record_bytes() < 100_000);
    let mut noise = vec![0_u8; queue.max_record_bytes()];
    rand::fill(&mut noise[..]);
    append_all(&mut *writer, [Bytes::from(noise)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_that_would_lose_order_or_records_are_refused() {
    let kafka = kafka::shared().await;
    let settings = kafka.settings("wrong");
    kafka.create_topic(&format!("{}two", settings.topic_prefix), 2, &[]).await;
    kafka.create_topic(&format!("{}compacted", settings.topic_prefix), 1, &[("cleanup.policy", "compact")]).await;
    let queue = millstream::queue::kafka::KafkaQueue::open(settings).unwrap();
    for (stream, names) in [("two", "2 partitions"), ("compacted", "cleanup.policy=compact")] {
        let error = queue.create(stream).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.message().contains(names), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_made_by_asking_for_it() {
    let queue = kafka::shared().await.queue("absent");
    assert_eq!(queue.bounds("s").await.unwrap(), None);
    assert!(queue.registry("s").await.unwrap().is_empty());
    let error = queue.writer("s").await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Halt(HaltCode::NotInitialized));
    assert!(queue.reader("s", offset(0)).await.is_err());
    assert!(queue.registry_put("s", "k", Some(Bytes::from_static(b"v"))).await.is_err());
    assert_eq!(queue.bounds("s").await.unwrap(), None, "the broker makes topics on demand, and nobody demanded it");
}

#[tokio::test(flavor = "multi_thread")]
async fn trim_deletes_before_an_offset_and_never_the_last_record() {
    let queue = kafka::shared().await.queue("trim");
    let last = stream_of(&queue, "s", 10).await;
    queue.trim("s", offset(4)).await.unwrap();
    assert_eq!(queue.bounds("s").await.unwrap().unwrap().start, offset(4));
    queue.trim("s", offset(2)).await.unwrap();
    let error = queue.reader("s", offset(3)).await.err().unwrap();
    super::assert_lost(&error);
    queue.trim("s", offset(1000)).await.unwrap();
    let bounds = queue.bounds("s").await.unwrap().unwrap();
    assert_eq!((bounds.start, bounds.end), (last.offset, last.offset.next()));
    let mut reader = queue.reader("s", bounds.start).await.unwrap();
    assert_eq!(read_some(&mut *reader, 1).await[0].bytes, record(9, 1000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_may_begin_at_the_end_and_not_beyond() {
    let queue = kafka::shared().await.queue("end");
    stream_of(&queue, "s", 3).await;
    assert!(queue.reader("s", offset(3)).await.unwrap().read(1000, Duration::from_millis(10)).await.unwrap().is_empty());
    super::assert_lost(&queue.reader("s", offset(4)).await.err().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn giving_up_an_append_appends_nothing() {
    let queue = kafka::shared().await.queue("cancel");
    queue.create("s").await.unwrap();
    let mut writer = queue.writer("s").await.unwrap();
    let mut accepted = Vec::new();
    for n in 0..300 {
        // Room for about eight: some of these wait, and some of those are given up.
        let attempt = writer.append(record(n, 900_000));
        if let Ok(ticket) = tokio::time::timeout(Duration::from_micros(200), attempt).await {
            accepted.push((ticket.unwrap(), n));
        }
    }
    let last = accepted.last().unwrap().0;
    assert_eq!(last.0 as usize, accepted.len());
    super::durable(&mut *writer, last).await;
    let mut reader = queue.reader("s", offset(0)).await.unwrap();
    let read = read_some(&mut *reader, accepted.len()).await;
    for (stored, (_, n)) in read.iter().zip(&accepted) {
        assert_eq!(stored.bytes, record(*n, 900_000));
    }
}
