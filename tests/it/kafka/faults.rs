//! Brokers that die, stop answering, lose leadership (FAULTS 20, 23).

use std::time::Duration;

use bytes::Bytes;
use millstream::ErrorKind;
use millstream::queue::kafka::KafkaQueue;
use millstream::queue::{Queue, Ticket};

use super::{append_all, durable, offset, read_some, record};
use crate::support::kafka::Kafka;
use crate::support::wait::LONG;

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_dies_or_pauses_under_a_writer_blocks_it_and_loses_and_doubles_nothing() {
    let kafka = Kafka::builder().start().await;
    let queue = kafka.queue("killed");
    queue.create("s").await.unwrap();
    let mut writer = queue.writer("s").await.unwrap();
    let mut reader = queue.reader("s", offset(0)).await.unwrap();
    append_all(&mut *writer, (0..20).map(|n| record(n, 5000))).await;

    kafka.node(1).kill();
    let mut last = Ticket(0);
    for n in 20..120 {
        last = writer.append(record(n, 5000)).await.unwrap();
    }
    let waits = tokio::time::timeout(Duration::from_secs(1), writer.durable_past(Ticket(20))).await;
    assert!(waits.is_err(), "nothing is durable while the broker is down: {waits:?}");
    kafka.node(1).start();
    assert_eq!(durable(&mut *writer, last).await.ticket, Ticket(120));

    kafka.node(1).pause();
    for n in 120..200 {
        last = writer.append(record(n, 5000)).await.unwrap();
    }
    let waits = tokio::time::timeout(Duration::from_secs(1), writer.durable_past(Ticket(120))).await;
    assert!(waits.is_err(), "{waits:?}");
    kafka.node(1).resume();
    durable(&mut *writer, last).await;

    let read = read_some(&mut *reader, 200).await;
    assert_eq!(read.len(), 200);
    for (n, stored) in read.iter().enumerate() {
        assert_eq!(stored.bytes, record(n, 5000), "at offset {}", stored.offset);
    }

    // Full of what cannot be sent: the next append waits for room, and says so when it has waited too long.
    let mut impatient = kafka.settings("impatient");
    impatient.stall_after = Duration::from_secs(3);
    impatient.answer_within = Duration::from_secs(4);
    let second = KafkaQueue::open(impatient).unwrap();
    second.create("s").await.unwrap();
    append_all(&mut *second.writer("s").await.unwrap(), [record(0, 10)]).await;
    let mut writer = second.writer("s").await.unwrap();
    let mut reader = second.reader("s", offset(1)).await.unwrap();
    kafka.node(1).pause();
    let failed = async {
        loop {
            if let Err(error) = writer.append(Bytes::from(vec![1; 900_000])).await {
                return error;
            }
        }
    };
    let error = tokio::time::timeout(LONG, failed).await.expect("an error in time");
    assert_eq!(error.kind(), ErrorKind::Connection, "{error}");
    let again = writer.append(record(0, 1)).await.unwrap_err();
    assert_eq!(again.to_string(), error.to_string(), "dead stays dead");
    let error = super::read_until_error(&mut *reader).await;
    assert_eq!(error.kind(), ErrorKind::Connection, "{error}");
    assert_eq!(second.bounds("s").await.unwrap_err().kind(), ErrorKind::Connection);
    assert_eq!(second.registry_put("s", "k", None).await.unwrap_err().kind(), ErrorKind::Connection);
    kafka.node(1).resume();
    append_all(&mut *second.writer("s").await.unwrap(), [record(1, 10)]).await;
}
