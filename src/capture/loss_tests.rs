//! Bugs that lost something, or nearly did: a queue that does not answer is not a queue that is empty.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use super::append::{BASE_EVERY_BYTES, LogWriter};
use super::begin::{Beginning, begin_stream, beginning};
use super::model::{MAX_RECORD, MemoryQueue, begun_in, genesis, header, table, take_over};
use super::recover::EntryPoint;
use super::takeover::claim;
use super::upkeep::{Upkeep, Written, consumers, slowest_of, trim_before};
use crate::error::ErrorKind;
use crate::event::{QueueOffset, RecordNumber};
use crate::halt::HaltCode;
use crate::preflight::init::stream::hold;
use crate::queue::ConsumerProgress;

async fn consume(queue: &MemoryQueue, keep_from: u64) {
    consume_to(queue, keep_from, RecordNumber(1)).await;
}

async fn consume_to(queue: &MemoryQueue, keep_from: u64, number: RecordNumber) {
    use crate::queue::Queue;
    let keep_from = QueueOffset(keep_from);
    let progress = ConsumerProgress { keep_from, number, position: None, bytes_so_far: 0, changes_so_far: 0, at_us: 0 };
    let value = Bytes::from(serde_json::to_vec(&progress).unwrap());
    queue.registry_put("s", "consumer/c", Some(value)).await.unwrap();
}

/// On Kafka a broker that did not know the registry's topic made the registry look empty: no consumers, so everything was deleted.
#[tokio::test]
async fn nothing_is_trimmed_by_a_registry_that_lost_its_entries() {
    let memory = MemoryQueue::default();
    let queue = begun_in(memory.clone()).await;
    let mut log = take_over(&queue).await;
    log.give_base();
    log.drain().await.unwrap();
    consume(&memory, 0).await;
    let upkeep = || Upkeep { queue: queue.clone(), stream: "s".into(), epoch: log.epoch() };
    let (written, slowest) = (watch::Sender::new(Written { base: log.durable_base(), waiting: false }), watch::Sender::new(None));
    let kept = upkeep().run(written.subscribe(), slowest.clone());
    assert!(tokio::time::timeout(Duration::from_millis(50), kept).await.is_err(), "upkeep goes on");
    assert_eq!(memory.0.lock().unwrap().start, 0, "the consumer keeps everything");

    let entries = std::mem::take(&mut memory.0.lock().unwrap().registry);
    let error = upkeep().run(written.subscribe(), slowest).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connection, "{error}");
    assert_eq!(memory.0.lock().unwrap().start, 0);
    let error = claim(&queue, "s", "test").await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Halt(HaltCode::QueueLost), "{error}");
    memory.0.lock().unwrap().registry = entries;
    take_over(&queue).await;
}

/// The upkeep that trims starts after the claim, and the claim's fence found no room: a queue that was full once stayed full.
#[tokio::test]
async fn a_claim_without_room_trims_what_nobody_needs() {
    let memory = MemoryQueue::default();
    let queue = begun_in(memory.clone()).await;
    let mut log = take_over(&queue).await;
    log.give_transaction(&header(1000), 1, b"a");
    log.drain().await.unwrap();
    log.give_base();
    log.drain().await.unwrap();
    // Not announced: the disk was full before the next round of upkeep.
    let base = log.durable_base().unwrap().offset.0;
    consume(&memory, 2).await;
    drop(log);
    for (keep_from, start) in [(2, 2), (base, base)] {
        consume(&memory, keep_from).await;
        memory.0.lock().unwrap().full = true;
        assert_eq!(claim(&queue, "s", "test").await.err().unwrap().kind(), ErrorKind::NoSpace);
        assert_eq!(memory.0.lock().unwrap().start as u64, start, "below the consumer's place");
    }
    memory.0.lock().unwrap().full = false;
    take_over(&queue).await;
}

/// Everything was consumed, and all of it lay in one segment behind the newest base: trimming gave nothing back, and the fence never found room.
#[tokio::test]
async fn a_claim_without_room_makes_it_once_every_consumer_is_through() {
    let memory = MemoryQueue::default();
    let queue = begun_in(memory.clone()).await;
    let mut log = take_over(&queue).await;
    log.give_transaction(&header(1000), 1, b"a");
    log.give_schema(table(1, "t"));
    log.drain().await.unwrap();
    let (last, end) = (log.last_reachable(), memory.0.lock().unwrap().records.len());
    drop(log);
    memory.0.lock().unwrap().full = true;
    consume_to(&memory, 1, RecordNumber(last.0 - 1)).await;
    assert_eq!(claim(&queue, "s", "test").await.err().unwrap().kind(), ErrorKind::NoSpace);
    assert_eq!(memory.0.lock().unwrap().records.len(), end, "nothing is taken of the reserve beside a slow consumer");

    consume_to(&memory, 1, last).await;
    let claim = claim(&queue, "s", "test").await.unwrap();
    assert_eq!(memory.0.lock().unwrap().apart, [end], "the fence begins what is kept");
    assert!(claim.makes_room);
    let mut log = LogWriter::new(claim, MAX_RECORD);
    log.give_base();
    log.drain().await.unwrap();
    log.room_is_made();
    let base = log.durable_base().unwrap();
    assert!(base.offset.0 as usize > end);
    let consumer = async {
        tokio::task::yield_now().await;
        assert_eq!(memory.0.lock().unwrap().start, 1, "not before the consumer has the base");
        consume_to(&memory, base.offset.0, log.last()).await;
    };
    let (trimmed, ()) = tokio::join!(trim_before(&queue, "s", base), consumer);
    trimmed.unwrap();
    assert_eq!(memory.0.lock().unwrap().start as u64, base.offset.0);
    log.give_transaction(&header(2000), 1, b"b");
    assert_eq!(log.drain().await.unwrap_err().kind(), ErrorKind::NoSpace, "the reserve is for what makes room alone");
}

/// `init` took one read without an answer for the end of the log, began a stream that was running, and fenced its daemon.
#[tokio::test]
async fn a_slow_queue_is_not_one_that_has_not_been_begun() {
    for slow_from in 0..6 {
        let memory = MemoryQueue::default();
        let queue = begun_in(memory.clone()).await;
        let mut log = take_over(&queue).await;
        log.give_transaction(&header(1000), 1, b"a");
        log.drain().await.unwrap();
        let records = memory.0.lock().unwrap().records.len();
        assert!(records > 5);
        memory.0.lock().unwrap().slow_from = Some(slow_from);
        for answer in [beginning(&queue, "s").await, begin_stream(&queue, "s", genesis()).await.map(|()| Beginning::Nothing)] {
            match answer {
                Ok(Beginning::Begun(_)) => {}
                Err(error) => assert!(matches!(error.kind(), ErrorKind::Connection | ErrorKind::Unexpected), "{error}"),
                other => panic!("{other:?} with a reader that stops at {slow_from}"),
            }
        }
        assert_eq!(memory.0.lock().unwrap().records.len(), records, "nothing was fenced");
    }
}

/// A registration that `init` had only begun counted as a consumer that had read nothing in the stream's whole life, and capture stood still.
#[tokio::test]
async fn a_registration_in_progress_is_as_far_behind_as_what_it_holds() {
    let queue = begun_in(MemoryQueue::default()).await;
    let mut log = take_over(&queue).await;
    log.give_transaction(&header(1000), 1, &[0; 100_000]);
    log.give_base();
    log.drain().await.unwrap();
    super::begin::announce(&queue, "s", log.epoch(), log.durable_base()).await.unwrap();
    let entry = EntryPoint::find(&queue, "s").await.unwrap();
    hold(&queue, "s", "c", &entry).await.unwrap();
    let held = consumers(&queue.registry("s").await.unwrap()).unwrap();
    assert_eq!(held["c"].keep_from, log.durable_base().unwrap().offset);
    let behind = log.bytes_total() - slowest_of(&held).unwrap().bytes_so_far;
    assert!((1..1000).contains(&behind), "{behind} bytes");
}

/// Every attempt repeated all schemas, also into a queue that was full.
#[tokio::test]
async fn a_writer_that_comes_and_goes_appends_nothing_but_fences() {
    let memory = MemoryQueue::default();
    let queue = begun_in(memory.clone()).await;
    let mut log = take_over(&queue).await;
    let schema = log.give_schema(table(1, "t"));
    log.give_transaction(&header(1000), 1, b"a");
    log.drain().await.unwrap();
    let (records, base) = (memory.0.lock().unwrap().records.len(), log.durable_base());
    for round in 1..5 {
        log = take_over(&queue).await;
        assert_eq!(memory.0.lock().unwrap().records.len(), records + round);
        assert_eq!(log.durable_base(), base, "its hint keeps naming the base");
    }
    let step = [0; 60_000];
    for position in 0..BASE_EVERY_BYTES / step.len() as u64 + 1 {
        log = take_over(&queue).await;
        log.give_transaction(&header(2000 + position), 1, &step);
        log.drain().await.unwrap();
    }
    assert!(log.durable_base().unwrap().number > base.unwrap().number, "the log since the base counts, whoever wrote it");
    queue.trim("s", log.durable_base().unwrap().offset).await.unwrap();
    assert_eq!(take_over(&queue).await.schema(1).unwrap().id, schema);
}

/// A large transaction waited for room until a consumer had what no consumer takes note of: the table versions given just before it.
#[tokio::test]
async fn a_tables_version_is_no_record_to_wait_for() {
    let queue = begun_in(MemoryQueue::default()).await;
    let mut log = take_over(&queue).await;
    log.give_transaction(&header(1000), 1, b"a");
    log.flush();
    let reachable = log.last();
    log.give_schema(table(1, "t"));
    assert_eq!((log.last(), log.last_reachable()), (reachable.next(), reachable));
    log.drain().await.unwrap();
    let mut log = take_over(&queue).await;
    assert_eq!((log.last(), log.last_reachable()), (reachable.next(), reachable), "to its successor as well");
    log.give_transaction(&header(2000), 1, b"b");
    log.flush();
    assert_eq!(log.last_reachable(), log.last());
}
