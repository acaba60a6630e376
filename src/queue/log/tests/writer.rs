//! A writer as capture is one, cut into steps, so that another's steps come between any two.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Bytes, BytesMut};

use super::stream::{Stream, lsn, random};
use crate::event::{
    Body, Epoch, Fence, History, Identity, Lsn, Nonce, Part, Position, Progress, QueueOffset, RecordHeader, RecordKind,
    RecordNumber, SchemaId, StreamId, TableName, TableSchema, TransactionBatch, TransactionHeader, Xid, write_transaction,
};
use crate::queue::StoredRecord;
use crate::queue::log::{Entry, FenceFilter};

/// Where it is.
enum Phase {
    /// Knows the highest epoch; is about to claim the next.
    Claiming,
    /// Its fence lies there; reads up to it.
    Reading(QueueOffset),
    /// Claimed; may be a zombie by now and not know it.
    Working,
}

pub struct Writer {
    phase: Phase,
    /// Where it begins to read; known to be valid.
    entry: QueueOffset,
    header: RecordHeader,
    /// Records that come before anything else: a base row, or the rest of a large transaction.
    pending: VecDeque<Body>,
    /// To be named by the next record that is not of the row.
    next_base: Option<RecordNumber>,
    /// Newest version of each table.
    schemas: BTreeMap<u32, u32>,
    last_schema: u32,
    /// Last transaction that the log has, as this one sees it.
    last: u64,
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Did {
    Nothing,
    /// Its fence is in force at its place; what it had read to there proves this base.
    Claimed(QueueOffset),
    LostRace,
    Appended,
    BaseRow,
    Large,
}

impl Writer {
    /// One that has read what there is now.
    pub fn new(stream: &Stream, entry: QueueOffset) -> Self {
        let mut epoch = Epoch(0);
        for stored in stream.from(entry) {
            epoch = epoch.max(crate::event::record::decode_frame(stored.bytes).unwrap().0.epoch);
        }
        let header = RecordHeader {
            kind: RecordKind::Fence,
            stream: StreamId(5),
            number: RecordNumber(1),
            epoch,
            nonce: Nonce(0),
            base: RecordNumber(1),
            bytes_before: 0,
            changes_before: 0,
            written_at_us: 0,
        };
        let (pending, schemas) = (VecDeque::new(), BTreeMap::new());
        Self { phase: Phase::Claiming, entry, header, pending, next_base: None, schemas, last_schema: 0, last: 0 }
    }

    /// True when it has yet to read records that lie before an offset.
    pub fn reads_before(&self, offset: QueueOffset) -> bool {
        !matches!(self.phase, Phase::Working) && self.entry < offset
    }

    pub fn step(&mut self, stream: &mut Stream, state: &mut u64) -> Did {
        match self.phase {
            Phase::Claiming => {
                let (epoch, nonce) = (self.header.epoch.next(), Nonce(random(state)));
                (self.header.epoch, self.header.nonce) = (epoch, nonce);
                let fence = Fence { epoch, nonce, holder: String::new(), version: String::new() };
                let header = RecordHeader { number: RecordNumber(0), base: RecordNumber(0), ..self.header };
                self.phase = Phase::Reading(stream.append(state, header, Body::Fence(fence)));
                Did::Nothing
            }
            Phase::Reading(fence) => self.read_to(stream, fence),
            Phase::Working => self.work(stream, state),
        }
    }

    fn read_to(&mut self, stream: &Stream, fence: QueueOffset) -> Did {
        let mut filter = FenceFilter::new();
        let mut entries = Vec::new();
        let until = |stored: &StoredRecord| stored.offset <= fence;
        stream.from(self.entry).take_while(until).for_each(|stored| filter.judge(stored, &mut entries).unwrap());
        if filter.in_force() != Some((self.header.epoch, self.header.nonce)) {
            self.header.epoch = filter.in_force().unwrap().0;
            self.phase = Phase::Claiming;
            return Did::LostRace;
        }
        self.recover(&entries);
        self.header.number = filter.expected().unwrap_or(RecordNumber(1));
        self.header.base = filter.base().map_or(RecordNumber(1), |(number, _)| number);
        self.phase = Phase::Working;
        self.make_row();
        Did::Claimed(filter.base().map_or(fence, |(_, offset)| offset))
    }

    fn recover(&mut self, entries: &[Entry]) {
        for entry in entries {
            let Entry::Record(record) = entry else { continue };
            match &record.record.body {
                Body::Schema(schema) => {
                    self.schemas.insert(schema.source_oid, schema.id.0);
                    self.last_schema = self.last_schema.max(schema.id.0);
                }
                Body::Transactions(batch) => self.last = lsn(batch.iter().last().unwrap().unwrap().header.position),
                Body::Part(part) if part.last => self.last = lsn(part.header.position),
                Body::Progress(progress) => self.last = lsn(progress.position),
                _ => {}
            }
        }
    }

    fn make_row(&mut self) {
        self.next_base = Some(self.header.number);
        self.pending.push_back(Body::History(History {
            system_identifier: 1,
            timeline: 1,
            lineage: Vec::new(),
            database: String::new(),
            slot: String::new(),
        }));
        self.pending.extend(self.schemas.iter().map(|(table, id)| schema(*table, *id)));
        self.pending.push_back(Body::Progress(Progress { position: at(self.last), source_time_us: 0, heartbeat: false }));
    }

    fn work(&mut self, stream: &mut Stream, state: &mut u64) -> Did {
        if let Some(body) = self.pending.pop_front() {
            return self.put(stream, state, body);
        }
        match random(state) % 12 {
            0 => {
                self.make_row();
                Did::BaseRow
            }
            1 | 2 => {
                self.last_schema += 1;
                let table = random(state) as u32 % 3;
                self.schemas.insert(table, self.last_schema);
                self.put(stream, state, schema(table, self.last_schema))
            }
            3 | 4 => {
                self.last += 1;
                let count = 1 + random(state) as u32 % 4;
                let header = self.transaction(state, self.last);
                self.pending.extend((0..count).map(|index| {
                    let (header, last) = (header.clone(), index + 1 == count);
                    Body::Part(Part { header, index, last, change_count: 0, total_bytes: 0, bytes: Bytes::new() })
                }));
                Did::Large
            }
            5 => {
                self.put(stream, state, Body::Progress(Progress { position: at(self.last), source_time_us: 0, heartbeat: true }))
            }
            _ => {
                let mut bytes = BytesMut::new();
                for _ in 0..=random(state) % 3 {
                    self.last += 1;
                    write_transaction(&self.transaction(state, self.last), 0, &[], &mut bytes);
                }
                self.put(stream, state, Body::Transactions(TransactionBatch { bytes: bytes.freeze() }))
            }
        }
    }

    /// A transaction that needs the schema named by its xid; 0 for none.
    fn transaction(&self, state: &mut u64, position: u64) -> TransactionHeader {
        let pick = random(state) as usize % (self.schemas.len() + 1);
        let needs = self.schemas.values().nth(pick).copied().unwrap_or(0);
        TransactionHeader {
            xid: Xid(u64::from(needs)),
            position: at(position),
            commit_lsn: Lsn(0),
            commit_time_us: 0,
            origin: None,
        }
    }

    fn put(&mut self, stream: &mut Stream, state: &mut u64, body: Body) -> Did {
        if !matches!(body, Body::History(_) | Body::Schema(_)) {
            self.header.base = self.next_base.take().unwrap_or(self.header.base);
        }
        self.header.kind = body.kind();
        stream.append(state, self.header, body);
        self.header.number = self.header.number.next();
        Did::Appended
    }
}

fn at(position: u64) -> Position {
    Position::Lsn(Lsn(position))
}

fn schema(table: u32, id: u32) -> Body {
    Body::Schema(TableSchema {
        id: SchemaId(id),
        table: TableName::new("s", "t"),
        source_oid: table,
        identity: Identity::Full,
        columns: Vec::new(),
    })
}
