//! Random appends, kills, power failures, failing syncs, full disks, trims and readers against a list of what was acknowledged.

use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;

use super::disk::{Disk, Fault};
use super::{FOREIGN, ID, folder, new_disk, open, read_from};
use crate::queue::embedded::append::Appender;
use crate::queue::embedded::read::Place;
use crate::queue::embedded::{Known, trim};

#[derive(Clone, Debug)]
enum Step {
    /// Appends a batch of records of these sizes.
    Append(Vec<usize>),
    /// The writer has nothing to do.
    Seal,
    /// What comes next makes room.
    Apart,
    /// The process dies; what it wrote stays with the kernel.
    Kill,
    /// The host dies.
    Crash,
    /// Something goes wrong soon.
    Arm(Fault, u32),
    /// The consumer in the writer's process reads some.
    Read(usize),
    /// A reader of another process reads some.
    ReadElsewhere(usize),
    /// Everything below this share of the whole may go.
    Trim(f64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let sizes = prop::collection::vec(prop_oneof![4 => 0..40_usize, 2 => 40..300_usize, 1 => 300..2000_usize], 1..5);
    let fault = prop_oneof![Just(Fault::Power), Just(Fault::Kill), Just(Fault::Sync), Just(Fault::Full), Just(Fault::Short)];
    let step = prop_oneof![
        10 => sizes.prop_map(Step::Append),
        3 => Just(Step::Seal),
        1 => Just(Step::Apart),
        2 => Just(Step::Kill),
        2 => Just(Step::Crash),
        4 => (fault, 0..12_u32).prop_map(|(fault, after)| Step::Arm(fault, after)),
        3 => (1..3000_usize).prop_map(Step::Read),
        3 => (1..3000_usize).prop_map(Step::ReadElsewhere),
        1 => (0.0..1.1_f64).prop_map(Step::Trim),
    ];
    prop::collection::vec(step, 1..60)
}

/// The queue, and what must be in it.
struct World {
    disk: Arc<Disk>,
    writer: Option<Appender>,
    /// Every record that was acknowledged, by offset.
    acknowledged: Vec<Vec<u8>>,
    /// Records of the batch that failed: there whole or not at all.
    doubtful: Vec<Vec<u8>>,
    /// A sync failed and no writer has recovered since: only the writer's word counts.
    suspect: bool,
    start: u64,
    /// The consumer in the process: its next offset.
    consumer: u64,
    /// A reader of another process and what it was given.
    elsewhere: Option<Place>,
    elsewhere_next: u64,
    made: u32,
}

impl World {
    fn new(seed: u64) -> Self {
        let disk = new_disk(seed);
        Self {
            disk,
            writer: None,
            acknowledged: Vec::new(),
            doubtful: Vec::new(),
            suspect: false,
            start: 0,
            consumer: 0,
            elsewhere: None,
            elsewhere_next: 0,
            made: 0,
        }
    }

    fn end(&self) -> u64 {
        self.acknowledged.len() as u64
    }

    fn known(&self) -> Known {
        Known { durable: self.end(), live: self.writer.is_some(), trust_files: self.writer.is_none() && !self.suspect }
    }

    /// A writer, opened if there is none; `None` when a fault came in between.
    fn open(&mut self) -> Option<&mut Appender> {
        if self.writer.is_none() {
            match open(&self.disk) {
                Ok(writer) => {
                    self.recovered(writer.end());
                    self.writer = Some(writer);
                }
                Err(error) => {
                    assert_ne!(error.kind(), crate::ErrorKind::Corrupt, "no byte was damaged: {error}");
                    self.fault();
                    return None;
                }
            }
        }
        self.writer.as_mut()
    }

    /// The batch in doubt is there whole or not at all, and what is there is durable.
    fn recovered(&mut self, end: u64) {
        let kept = end.checked_sub(self.end()).expect("acknowledged records are gone") as usize;
        assert!(kept == 0 || kept == self.doubtful.len(), "{kept} of a batch of {}", self.doubtful.len());
        let doubtful = std::mem::take(&mut self.doubtful);
        self.acknowledged.extend(doubtful.into_iter().take(kept));
        self.suspect = false;
    }

    fn fault(&mut self) {
        self.writer = None;
        self.suspect |= self.disk.sync_failed();
        if self.disk.is_dead() {
            self.crash();
        }
    }

    fn crash(&mut self) {
        self.writer = None;
        self.suspect = false;
        self.disk.crash();
        // A trim that was killed may be taken back; nothing was removed then.
        self.start = trim::start(&*folder(&self.disk)).unwrap();
        // Its process is gone with the host; another one opens where it was.
        self.elsewhere = None;
    }

    fn append(&mut self, sizes: &[usize]) {
        let mut made = self.made;
        let records: Vec<Vec<u8>> = sizes.iter().map(|size| record(&mut made, *size)).collect();
        self.made = made;
        let Some(writer) = self.open() else { return };
        let bytes: Vec<Bytes> = records.iter().map(|r| Bytes::copy_from_slice(r)).collect();
        if writer.write_batch(bytes.iter()).is_ok() {
            self.acknowledged.extend(records);
            assert_eq!(self.writer.as_ref().map(Appender::end), Some(self.end()));
        } else {
            self.doubtful = records;
            self.fault();
        }
    }

    fn read(&mut self, max_bytes: usize) {
        let known = self.known();
        let mut place = Place::find(folder(&self.disk), ID, self.consumer.max(self.start), known).unwrap();
        let Some(records) = self.outcome(place.read(known, max_bytes)) else { return };
        if records.is_empty() {
            assert!(known.durable <= self.consumer.max(self.start), "durable records were not read");
        }
        self.consumer = self.check(self.consumer.max(self.start), &records, !known.trust_files);
    }

    fn read_elsewhere(&mut self, max_bytes: usize) {
        if self.suspect {
            return;
        }
        if self.elsewhere.is_none() || self.elsewhere_next < self.start {
            self.elsewhere_next = self.elsewhere_next.max(self.start);
            self.elsewhere = Some(Place::find(folder(&self.disk), ID, self.elsewhere_next, FOREIGN).unwrap());
        }
        let read = self.elsewhere.as_mut().unwrap().read(FOREIGN, max_bytes);
        let Some(records) = self.outcome(read) else { return };
        self.elsewhere_next = self.check(self.elsewhere_next, &records, false);
    }

    fn outcome<T>(&mut self, read: crate::Result<T>) -> Option<T> {
        match read {
            Ok(records) => Some(records),
            Err(error) => {
                assert_ne!(error.kind(), crate::ErrorKind::Corrupt, "no byte was damaged: {error}");
                self.fault();
                None
            }
        }
    }

    /// What a reader was given stays true: records in doubt that it was given are acknowledged by that.
    fn check(&mut self, from: u64, records: &[crate::queue::StoredRecord], strict: bool) -> u64 {
        for (offset, record) in (from..).zip(records) {
            assert_eq!(record.offset.0, offset);
            if offset >= self.end() {
                assert!(!strict, "a record that was not durable was read");
                let doubtful = std::mem::take(&mut self.doubtful);
                self.acknowledged.extend(doubtful);
            }
            assert_eq!(record.bytes, self.acknowledged[offset as usize]);
        }
        from + records.len() as u64
    }

    fn trim(&mut self, share: f64) {
        let below = (self.acknowledged.len() as f64 * share) as u64;
        let known = self.known();
        let trimmed = trim::trim(&*folder(&self.disk), ID, below, known);
        if self.outcome(trimmed).is_none() {
            // Whether the start moved is not known.
            self.start = trim::start(&*folder(&self.disk)).unwrap();
        } else {
            let now = trim::start(&*folder(&self.disk)).unwrap();
            assert!(
                now >= self.start && (now == self.start || now <= below) && now <= self.end().saturating_sub(1).max(self.start)
            );
            self.start = now;
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Append(sizes) => self.append(sizes),
            Step::Seal => {
                if let Some(writer) = self.open()
                    && writer.seal().is_err()
                {
                    self.fault();
                }
            }
            Step::Apart => {
                if let Some(writer) = self.open() {
                    writer.make_room(true);
                }
            }
            Step::Kill => self.writer = None,
            Step::Crash => self.crash(),
            Step::Arm(fault, after) => self.disk.arm(*fault, *after),
            Step::Read(max_bytes) => self.read(*max_bytes),
            Step::ReadElsewhere(max_bytes) => self.read_elsewhere(*max_bytes),
            Step::Trim(share) => self.trim(*share),
        }
    }

    /// After one more crash everything acknowledged is there.
    fn finish(&mut self) {
        self.crash();
        let writer = open(&self.disk).unwrap();
        self.recovered(writer.end());
        let all = read_from(&self.disk, self.start, FOREIGN).unwrap();
        let expected: Vec<(u64, Vec<u8>)> = (0..).zip(self.acknowledged.iter().cloned()).skip(self.start as usize).collect();
        assert_eq!(all, expected);
        assert!(self.acknowledged.is_empty() || !all.is_empty(), "the last record was trimmed");
    }
}

fn record(made: &mut u32, size: usize) -> Vec<u8> {
    *made += 1;
    let mut bytes = made.to_le_bytes().to_vec();
    bytes.extend((0..size).map(|i| (i as u32 ^ *made) as u8));
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn what_was_acknowledged_survives(seed: u64, steps in steps()) {
        let mut world = World::new(seed);
        for step in &steps {
            world.step(step);
        }
        world.finish();
    }
}
