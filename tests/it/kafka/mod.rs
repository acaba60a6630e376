//! The Kafka queue against real brokers: what the conformance suite cannot ask of every queue.
//!
//! Tests that leave the broker as it is share one; those that stop, pause or reconfigure it start their own.

mod append;
mod check;
mod cluster;
mod faults;
mod login;
mod loss;
mod pair;
mod registry;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millstream::event::QueueOffset;
use millstream::queue::kafka::KafkaQueue;
use millstream::queue::{Durable, Queue, QueueReader, QueueWriter, StoredRecord, Ticket};
use millstream::{Error, ErrorKind};

use crate::support::wait::LONG;

/// Waits this long for what should come.
const SOON: Duration = Duration::from_secs(20);

fn record(number: usize, bytes: usize) -> Bytes {
    let mut text = format!("record {number} ").into_bytes();
    text.resize(text.len().max(bytes), b'.');
    Bytes::from(text)
}

async fn append_all(writer: &mut dyn QueueWriter, records: impl IntoIterator<Item = Bytes>) -> Durable {
    let mut last = Ticket(0);
    for record in records {
        last = writer.append(record).await.expect("accepted");
    }
    durable(writer, last).await
}

/// Waits until a ticket is durable.
async fn durable(writer: &mut dyn QueueWriter, ticket: Ticket) -> Durable {
    let all = async {
        let mut done = writer.durable_past(Ticket(ticket.0 - 1)).await.expect("durable");
        while done.ticket < ticket {
            done = writer.durable_past(done.ticket).await.expect("durable");
        }
        done
    };
    tokio::time::timeout(LONG, all).await.expect("durable in time")
}

async fn read_some(reader: &mut dyn QueueReader, count: usize) -> Vec<StoredRecord> {
    let mut records = Vec::new();
    let end = tokio::time::Instant::now() + LONG;
    while records.len() < count {
        assert!(tokio::time::Instant::now() < end, "only {} of {count} records came", records.len());
        records.extend(reader.read(1 << 20, SOON).await.expect("records"));
    }
    records
}

/// Reads until it fails.
async fn read_until_error(reader: &mut dyn QueueReader) -> Error {
    let failure = async {
        loop {
            if let Err(error) = reader.read(1 << 20, Duration::from_millis(200)).await {
                return error;
            }
        }
    };
    tokio::time::timeout(LONG, failure).await.expect("an error in time")
}

/// A stream with that many records of a kilobyte; their offsets are 0 and up.
async fn stream_of(queue: &Arc<KafkaQueue>, stream: &str, records: usize) -> Durable {
    queue.create(stream).await.expect("created");
    let mut writer = queue.writer(stream).await.expect("a writer");
    append_all(&mut *writer, (0..records).map(|n| record(n, 1000))).await
}

fn assert_lost(error: &Error) {
    assert_eq!(error.kind(), ErrorKind::Halt(millstream::halt::HaltCode::QueueLost), "{error}");
}

fn offset(n: u64) -> QueueOffset {
    QueueOffset(n)
}
