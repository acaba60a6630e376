//! What may happen, in any order.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::stream::{Stream, lsn, random};
use super::writer::{Did, Writer};
use crate::event::{Body, QueueOffset};
use crate::queue::log::resume::Resume;
use crate::queue::log::{Cursor, Entry, LogRecord};

#[derive(Clone, Debug)]
pub enum Step {
    /// Another writer comes up.
    Start,
    /// A writer, stale or not, does its next few things.
    Write(usize, u32),
    /// A writer is gone for good.
    End(usize),
    /// A consumer reads some records.
    Consume(usize, u32),
    /// A consumer begins again from its ledger.
    Restart(usize),
    /// A new consumer begins at the first record kept.
    Join,
    /// What no consumer needs goes.
    Trim,
}

impl Step {
    /// Some step, by number.
    pub fn at(mut seed: u64) -> Self {
        let (who, count) = (random(&mut seed) as usize, 1 + random(&mut seed) as u32 % 12);
        match random(&mut seed) % 40 {
            0..2 => Self::Start,
            2..24 => Self::Write(who, count),
            24 => Self::End(who),
            25..34 => Self::Consume(who, count),
            34..37 => Self::Restart(who),
            37..39 => Self::Trim,
            _ => Self::Join,
        }
    }
}

pub fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => Just(Step::Start),
        20 => (0..8_usize, 1..12_u32).prop_map(|(who, count)| Step::Write(who, count)),
        1 => (0..8_usize).prop_map(Step::End),
        9 => (0..8_usize, 1..12_u32).prop_map(|(who, count)| Step::Consume(who, count)),
        3 => (0..8_usize).prop_map(Step::Restart),
        2 => Just(Step::Trim),
        1 => Just(Step::Join),
    ];
    prop::collection::vec(step, 1..100)
}

/// How often it came to that.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub lost_races: u64,
    pub voided_records: u64,
    pub voided_parts: u64,
    pub bases: u64,
    pub trims: u64,
    pub resumes: u64,
    pub large: u64,
}

impl Seen {
    pub fn add(&mut self, other: &Self) {
        self.lost_races += other.lost_races;
        self.voided_records += other.voided_records;
        self.voided_parts += other.voided_parts;
        self.bases += other.bases;
        self.trims += other.trims;
        self.resumes += other.resumes;
        self.large += other.large;
    }
}

/// A consumer: its ledger is durable, the rest is gone at a restart.
struct Consumer {
    resume: Resume,
    /// Where it reads.
    next: QueueOffset,
    ledger: Option<Cursor>,
    /// Last transaction committed.
    position: u64,
    schemas: BTreeSet<u64>,
    /// Parts of a large transaction, written but not committed.
    open_parts: u32,
    /// It died while it took a record.
    killed: bool,
    from: QueueOffset,
    got: Vec<(u64, u64)>,
}

pub struct World {
    random: u64,
    stream: Stream,
    writers: Vec<Writer>,
    consumers: Vec<Consumer>,
    /// A base that a claim proved: the registry's hint, which only the claim's holder moved.
    hint: Option<QueueOffset>,
    pub seen: Seen,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let (stream, seen) = (Stream::default(), Seen::default());
        Self { random: seed, stream, writers: Vec::new(), consumers: Vec::new(), hint: None, seen }
    }

    /// Places that somebody proved valid by reading up to them.
    fn proven(&self) -> impl Iterator<Item = QueueOffset> + '_ {
        self.consumers.iter().filter_map(|c| c.ledger.as_ref()).map(|cursor| cursor.base_offset).chain(self.hint)
    }

    pub fn step(&mut self, step: &Step) {
        match *step {
            Step::Start => {
                let first = self.stream.first();
                let entry = self.proven().filter(|at| *at >= first).max().unwrap_or(first);
                self.writers.push(Writer::new(&self.stream, entry));
            }
            Step::Write(who, count) => {
                for _ in 0..count {
                    self.write(who);
                }
            }
            Step::End(who) if !self.writers.is_empty() => {
                let who = who % self.writers.len();
                drop(self.writers.remove(who));
            }
            Step::Consume(who, count) if !self.consumers.is_empty() => self.consume(who, count as usize),
            Step::Restart(who) if !self.consumers.is_empty() => {
                let who = who % self.consumers.len();
                self.consumers[who].restart(&self.stream);
                self.seen.resumes += 1;
            }
            Step::Join => self.consumers.push(Consumer::new(&self.stream)),
            Step::Trim => self.trim(),
            _ => {}
        }
    }

    fn write(&mut self, who: usize) {
        if self.writers.is_empty() {
            return;
        }
        let who = who % self.writers.len();
        match self.writers[who].step(&mut self.stream, &mut self.random) {
            Did::Claimed(base) => self.hint = self.hint.max(Some(base)),
            Did::LostRace => self.seen.lost_races += 1,
            Did::BaseRow => self.seen.bases += 1,
            Did::Large => self.seen.large += 1,
            Did::Nothing | Did::Appended => {}
        }
    }

    fn consume(&mut self, who: usize, count: usize) {
        let who = who % self.consumers.len();
        let consumer = &mut self.consumers[who];
        let stored: Vec<_> = self.stream.from(consumer.next).take(count).collect();
        for stored in stored {
            consumer.next = QueueOffset(stored.offset.0 + 1);
            let mut entries = Vec::new();
            consumer.resume.take(stored, &mut entries).expect("the stream is sound");
            for entry in entries {
                consumer.take(entry, &mut self.random, &mut self.seen);
                if consumer.killed {
                    consumer.restart(&self.stream);
                    return;
                }
            }
        }
    }

    /// Below what everybody has proven; writers that are reading now keep their place, as their entry is such a place or later.
    fn trim(&mut self) {
        let unstarted = self.consumers.iter().any(|c| c.ledger.is_none());
        let below = self.consumers.iter().filter_map(|c| c.ledger.as_ref()).map(|c| c.base_offset).min();
        let Some(below) = below.filter(|below| !unstarted && *below > self.stream.first()) else { return };
        self.stream.start = self.stream.records.partition_point(|r| r.offset < below);
        self.writers.retain(|writer| !writer.reads_before(below));
        self.seen.trims += 1;
    }

    /// Every consumer, and a new one, gets to the end and has what the oracle has.
    pub fn finish(&mut self) {
        self.seen.voided_records += self.stream.records.iter().filter(|r| !r.valid).count() as u64;
        self.consumers.push(Consumer::new(&self.stream));
        for who in 0..self.consumers.len() {
            self.consumers[who].restart(&self.stream);
            while self.consumers[who].next < self.stream.end() && self.stream.from(self.consumers[who].next).next().is_some() {
                self.consume(who, usize::MAX);
            }
            let consumer = &self.consumers[who];
            assert_eq!(consumer.got, self.stream.transactions(consumer.from));
        }
        let all = self.stream.transactions(QueueOffset(0));
        let positions: Vec<u64> = all.iter().map(|(position, _)| *position).collect();
        assert_eq!(positions, (1..=all.len() as u64).collect::<Vec<_>>(), "transactions of the source, each once");
    }
}

impl Consumer {
    fn new(stream: &Stream) -> Self {
        Self {
            resume: Resume::new(None),
            next: stream.first(),
            ledger: None,
            position: 0,
            schemas: BTreeSet::new(),
            open_parts: 0,
            killed: false,
            from: stream.first(),
            got: Vec::new(),
        }
    }

    fn restart(&mut self, stream: &Stream) {
        let json = serde_json::to_string(&self.ledger).unwrap();
        let ledger: Option<Cursor> = serde_json::from_str(&json).unwrap();
        self.next = ledger.as_ref().map_or(stream.first(), |cursor| cursor.base_offset);
        self.resume = Resume::new(ledger);
        self.schemas.clear();
        (self.open_parts, self.killed) = (0, false);
    }

    fn take(&mut self, entry: Entry, random_state: &mut u64, seen: &mut Seen) {
        let record = match entry {
            Entry::Record(record) => record,
            Entry::PartsVoided => {
                assert!(self.open_parts > 0, "no parts are open");
                self.open_parts = 0;
                seen.voided_parts += 1;
                return;
            }
        };
        match &record.record.body {
            Body::Schema(schema) => drop(self.schemas.insert(u64::from(schema.id.0))),
            Body::Transactions(batch) => {
                let transactions: Vec<_> = batch.iter().map(|t| t.unwrap().header).collect();
                // The ledger may take a part of a batch; the rest comes after a restart.
                let cut = 1 + random(random_state) as usize % (transactions.len() * 2);
                let position = self.position;
                for header in transactions.iter().filter(|h| lsn(h.position) > position).take(cut) {
                    self.commit(&record, lsn(header.position), header.xid.0);
                }
                self.killed = cut < transactions.len();
            }
            Body::Part(part) => {
                assert_eq!(part.index, self.open_parts);
                self.open_parts += 1;
                if part.last {
                    self.commit(&record, lsn(part.header.position), part.header.xid.0);
                    self.open_parts = 0;
                }
            }
            Body::Fence(_) => {}
            _ => self.ledger = Some(record.cursor(Some(position(self.position)), 0)),
        }
    }

    fn commit(&mut self, record: &LogRecord, at: u64, needs: u64) {
        assert!(needs == 0 || self.schemas.contains(&needs), "schema {needs} was not read before {at}");
        if at > self.position {
            self.position = at;
            self.got.push((at, needs));
        }
        self.ledger = Some(record.cursor(Some(position(self.position)), 0));
    }
}

fn position(lsn: u64) -> crate::event::Position {
    crate::event::Position::Lsn(crate::event::Lsn(lsn))
}
