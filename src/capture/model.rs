//! Tests of the writer over a queue in memory that fences nobody: stale writers go on appending, as on Kafka.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::append::{BASE_EVERY_BYTES, LogWriter};
use super::begin::{Beginning, announce, begin_stream, beginning, record_slot_start};
use super::recover::survey;
use super::takeover::claim;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{
    Body, Genesis, History, Identity, Lsn, Position, QueueOffset, SchemaId, TableName, TableSchema, TransactionHeader, Xid,
};
use crate::halt::HaltCode;
use crate::queue::log::{Entry, LogReader, Start};
use crate::queue::{Bounds, Durable, Queue, QueueReader, QueueWriter, StoredRecord, Ticket};

pub(super) const MAX_RECORD: usize = 1 << 20;

#[derive(Default)]
pub(super) struct Memory {
    pub(super) records: Vec<Bytes>,
    pub(super) start: usize,
    pub(super) registry: BTreeMap<String, Bytes>,
    created: bool,
    /// Readers give nothing from here on, as if they were slow.
    pub(super) slow_from: Option<usize>,
    /// Nothing is taken but what makes room.
    pub(super) full: bool,
    /// Where what made room began.
    pub(super) apart: Vec<usize>,
}

#[derive(Clone, Default)]
pub(super) struct MemoryQueue(pub(super) Arc<Mutex<Memory>>);

struct MemoryWriter(MemoryQueue, Vec<u64>, bool);
struct MemoryReader(MemoryQueue, usize);

#[async_trait]
impl Queue for MemoryQueue {
    async fn create(&self, _: &str) -> Result<()> {
        self.0.lock().unwrap().created = true;
        Ok(())
    }
    async fn bounds(&self, _: &str) -> Result<Option<Bounds>> {
        let memory = self.0.lock().unwrap();
        let (start, end) = (QueueOffset(memory.start as u64), QueueOffset(memory.records.len() as u64));
        Ok(memory.created.then_some(Bounds { start, end, stored_bytes: None }))
    }
    async fn writer(&self, _: &str) -> Result<Box<dyn QueueWriter>> {
        Ok(Box::new(MemoryWriter(self.clone(), Vec::new(), false)))
    }
    async fn reader(&self, _: &str, from: QueueOffset) -> Result<Box<dyn QueueReader>> {
        assert!(from.0 as usize >= self.0.lock().unwrap().start);
        Ok(Box::new(MemoryReader(self.clone(), from.0 as usize)))
    }
    async fn trim(&self, _: &str, below: QueueOffset) -> Result<()> {
        let mut memory = self.0.lock().unwrap();
        memory.start = memory.start.max(below.0 as usize);
        Ok(())
    }
    async fn registry_put(&self, _: &str, key: &str, value: Option<Bytes>) -> Result<()> {
        let registry = &mut self.0.lock().unwrap().registry;
        match value {
            Some(value) => registry.insert(key.to_owned(), value),
            None => registry.remove(key),
        };
        Ok(())
    }
    async fn registry(&self, _: &str) -> Result<BTreeMap<String, Bytes>> {
        Ok(self.0.lock().unwrap().registry.clone())
    }
    async fn destroy(&self, _: &str) -> Result<()> {
        *self.0.lock().unwrap() = Memory::default();
        Ok(())
    }
    fn max_record_bytes(&self) -> usize {
        MAX_RECORD
    }
}

#[async_trait]
impl QueueWriter for MemoryWriter {
    async fn append(&mut self, record: Bytes) -> Result<Ticket> {
        assert!(record.len() <= MAX_RECORD, "{} bytes", record.len());
        let mut memory = self.0.0.lock().unwrap();
        if memory.full && !self.2 {
            return Err(Error::new(ErrorKind::NoSpace, "full"));
        }
        self.1.push(memory.records.len() as u64);
        memory.records.push(record);
        Ok(Ticket(self.1.len() as u64))
    }
    async fn durable_past(&mut self, seen: Ticket) -> Result<Durable> {
        match self.1.last() {
            Some(offset) if self.1.len() as u64 > seen.0 => {
                Ok(Durable { ticket: Ticket(self.1.len() as u64), offset: QueueOffset(*offset) })
            }
            _ => std::future::pending().await,
        }
    }
    fn make_room(&mut self, on: bool) {
        self.2 = on;
        let mut memory = self.0.0.lock().unwrap();
        let end = memory.records.len();
        memory.apart.extend(on.then_some(end));
    }
}

#[async_trait]
impl QueueReader for MemoryReader {
    async fn read(&mut self, _: usize, _: Duration) -> Result<Vec<StoredRecord>> {
        let memory = self.0.0.lock().unwrap();
        let end = memory.slow_from.unwrap_or(usize::MAX).min(memory.records.len()).min(self.1 + 7);
        let records =
            (self.1.min(end)..end).map(|i| StoredRecord { offset: QueueOffset(i as u64), bytes: memory.records[i].clone() });
        let records = records.collect();
        self.1 = end;
        Ok(records)
    }
}

pub(super) fn genesis() -> Genesis {
    let history = History {
        system_identifier: 7,
        timeline: 1,
        lineage: Vec::new(),
        database: "shop".into(),
        slot: "millstream_s_1".into(),
    };
    Genesis { source: "s".into(), history }
}

async fn begun() -> Arc<dyn Queue> {
    begun_in(MemoryQueue::default()).await
}

pub(super) async fn begun_in(queue: MemoryQueue) -> Arc<dyn Queue> {
    let queue: Arc<dyn Queue> = Arc::new(queue);
    begin_stream(&queue, "s", genesis()).await.unwrap();
    record_slot_start(&queue, "s", "millstream_s_1", Position::Lsn(Lsn(100))).await.unwrap();
    queue
}

pub(super) async fn take_over(queue: &Arc<dyn Queue>) -> LogWriter {
    let mut log = LogWriter::new(claim(queue, "s", "test").await.unwrap(), MAX_RECORD);
    log.ensure_base();
    log.drain().await.unwrap();
    announce(queue, "s", log.epoch(), log.durable_base()).await.unwrap();
    log
}

pub(super) fn header(position: u64) -> TransactionHeader {
    TransactionHeader {
        xid: Xid(position),
        position: Position::Lsn(Lsn(position)),
        commit_lsn: Lsn(position - 1),
        commit_time_us: 5,
        origin: None,
    }
}

pub(super) fn table(oid: u32, name: &str) -> TableSchema {
    TableSchema {
        id: SchemaId(0),
        table: TableName::new("public", name),
        source_oid: oid,
        identity: Identity::Default,
        columns: Vec::new(),
    }
}

/// Positions of the transactions that a reader from the first record kept sees complete.
async fn positions(queue: &Arc<dyn Queue>) -> Vec<u64> {
    let mut reader = LogReader::open(queue, "s", Start::First).await.unwrap();
    let mut found = Vec::new();
    loop {
        let entries = reader.read(1 << 20, Duration::ZERO).await.unwrap();
        if entries.is_empty() {
            return found;
        }
        for entry in entries {
            let Entry::Record(record) = entry else { continue };
            match record.record.body {
                Body::Transactions(batch) => found.extend(batch.iter().map(|t| t.unwrap().header.xid.0)),
                Body::Part(part) if part.last => found.push(part.header.xid.0),
                _ => {}
            }
        }
    }
}

#[tokio::test]
async fn a_stream_begins_with_the_slots_name_and_then_its_start() {
    let queue: Arc<dyn Queue> = Arc::new(MemoryQueue::default());
    assert_eq!(beginning(&queue, "s").await.unwrap(), Beginning::Nothing);
    begin_stream(&queue, "s", genesis()).await.unwrap();
    assert_eq!(beginning(&queue, "s").await.unwrap(), Beginning::SlotPending(genesis()));
    // Killed here: the next init finds the name, and nobody can go on with another slot or from the beginning.
    let other = record_slot_start(&queue, "s", "another", Position::Lsn(Lsn(1))).await.unwrap_err();
    assert_eq!(other.kind(), ErrorKind::Halt(HaltCode::SlotUnknown));
    assert_eq!(begin_stream(&queue, "s", genesis()).await.unwrap_err().kind(), ErrorKind::Unexpected);
    record_slot_start(&queue, "s", "millstream_s_1", Position::Lsn(Lsn(100))).await.unwrap();
    assert_eq!(beginning(&queue, "s").await.unwrap(), Beginning::Begun(genesis().history));
    assert!(record_slot_start(&queue, "s", "millstream_s_1", Position::Lsn(Lsn(100))).await.is_err());
    assert_eq!(take_over(&queue).await.given(), Some(Position::Lsn(Lsn(100))));
    assert_eq!(beginning(&queue, "s").await.unwrap(), Beginning::Begun(genesis().history));
}

#[tokio::test]
async fn a_new_writer_knows_from_the_newest_base_alone_what_the_old_one_knew() {
    let queue = begun().await;
    let mut log = take_over(&queue).await;
    let first = log.give_schema(table(1, "t"));
    let second = log.give_schema(table(2, "u"));
    let renewed = log.give_schema(table(1, "renamed"));
    assert!(first < second && second < renewed);
    let changes = vec![0_u8; 60_000];
    let mut bases = std::collections::BTreeSet::new();
    let rounds = 3 * BASE_EVERY_BYTES / 60_000;
    for i in 0..rounds {
        log.give_transaction(&header(1000 + i), 3, &changes);
        if i % 5 == 0 {
            log.drain().await.unwrap();
        }
        bases.insert(log.durable_base().unwrap().offset);
    }
    log.drain().await.unwrap();
    assert!((3..=5).contains(&bases.len()), "{bases:?}");
    assert_eq!(positions(&queue).await, (1000..1000 + rounds).collect::<Vec<_>>());
    announce(&queue, "s", log.epoch(), log.durable_base()).await.unwrap();
    queue.trim("s", log.durable_base().unwrap().offset).await.unwrap();
    let kept = positions(&queue).await;
    assert!(!kept.is_empty() && kept.len() < rounds as usize / 2);
    let next = take_over(&queue).await;
    assert_eq!((next.given(), next.changes_total()), (log.given(), log.changes_total()));
    assert_eq!(next.schema(1).unwrap().id, renewed);
    assert_eq!(next.schema(2).unwrap().id, second);
    assert_eq!(survey(&queue, "s", |_| false).await.unwrap().history.unwrap(), genesis().history);
    assert_eq!(queue.registry("s").await.unwrap().len(), 1, "hints of earlier writers are gone");
}

#[tokio::test]
async fn whatever_stale_writers_append_readers_see_one_history() {
    for seed in 0..40 {
        let mut random = StdRng::seed_from_u64(seed);
        let queue = begun().await;
        let mut stale: Vec<LogWriter> = Vec::new();
        let mut live = take_over(&queue).await;
        let mut expected = Vec::new();
        let mut position = 1000;
        for _ in 0..120 {
            position += 10;
            match random.random_range(0..10) {
                0 => {
                    // Dies in the middle of a large transaction, or at any other moment, and may come back as a zombie.
                    if random.random() {
                        live.begin_parts(header(position), 5, 3000);
                        live.give_part(Bytes::from(vec![1; 1000])).unwrap();
                        live.drain().await.unwrap();
                    }
                    let next = take_over(&queue).await;
                    stale.push(std::mem::replace(&mut live, next));
                    assert_eq!(live.given(), Some(expected.last().map_or(Position::Lsn(Lsn(100)), |p| Position::Lsn(Lsn(*p)))));
                }
                1 | 2 => {
                    live.begin_parts(header(position), 5, 3000);
                    for _ in 0..3 {
                        live.give_part(Bytes::from(vec![1; 1000])).unwrap();
                    }
                    expected.push(position);
                }
                3 if !stale.is_empty() => {
                    let zombie = random.random_range(0..stale.len());
                    stale[zombie].give_transaction(&header(position), 1, b"stale");
                    stale[zombie].drain().await.unwrap();
                }
                4 => drop(live.give_schema(table(random.random_range(1..5), "t"))),
                5 => live.give_base(),
                _ => {
                    live.give_transaction(&header(position), 1, b"good");
                    expected.push(position);
                }
            }
            live.drain().await.unwrap();
        }
        assert_eq!(positions(&queue).await, expected, "seed {seed}");
    }
}

#[tokio::test]
async fn a_position_is_durable_only_when_all_before_it_is() {
    let queue = begun().await;
    let mut log = take_over(&queue).await;
    log.give_transaction(&header(1000), 1, b"a");
    assert_eq!(log.durable().unwrap().get(), Position::Lsn(Lsn(100)), "given is not durable");
    log.begin_parts(header(2000), 2, 20);
    log.give_part(Bytes::from_static(b"0123456789")).unwrap();
    while log.is_busy() {
        log.advance().await.unwrap();
    }
    assert_eq!(log.durable().unwrap().get(), Position::Lsn(Lsn(1000)), "a part is no position");
    assert!(log.give_part(Bytes::from_static(b"0123456789")).unwrap());
    log.drain().await.unwrap();
    assert_eq!(log.durable().unwrap().get(), Position::Lsn(Lsn(2000)));
    assert!(log.give_part(Bytes::from_static(b"more")).is_err());
}
