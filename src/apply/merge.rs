//! Whole source transactions, in commit order, collected into one replica transaction (I4).
//!
//! A batch ends at a commit boundary: when it is full, when its first transaction has waited long enough, before a table's next
//! version, around a huge transaction, and at once when the log has nothing more right now. The replica decides the pace: while it works on one batch, the log fills the next.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::OwnedSemaphorePermit;

use super::read::Unit;
use crate::event::{Change, History, TransactionHeader};
use crate::queue::log::Cursor;
use crate::replica::Step;

/// The end of one source transaction in a batch.
#[derive(Clone, Debug)]
pub struct Mark {
    /// The transaction.
    pub header: TransactionHeader,
    /// Index behind its last change.
    pub end: usize,
    /// The record that it came in, as if none of its transactions were taken.
    pub place: Arc<Cursor>,
    /// Bytes of the stream up to here.
    pub bytes_so_far: u64,
    /// Changes of the stream up to here.
    pub changes_so_far: u64,
}

impl Mark {
    /// The cursor of a replica that has this transaction and everything before it.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        Cursor {
            position: Some(self.header.position),
            bytes_so_far: self.bytes_so_far,
            changes_so_far: self.changes_so_far,
            ..Cursor::clone(&self.place)
        }
    }
}

/// Whole transactions, to be applied in one replica transaction.
#[derive(Debug, Default)]
pub struct Batch {
    /// Every change, in commit order.
    pub changes: Vec<Change>,
    /// Where each transaction ends.
    pub marks: Vec<Mark>,
    /// The place behind it all; past the last transaction when idle progress followed it.
    pub cursor: Option<Cursor>,
    /// The source's clock there.
    pub source_time_us: Option<i64>,
    /// The source's identity, when it went on.
    pub history: Option<History>,
    /// Bytes of log.
    pub bytes: usize,
    /// When its first transaction came.
    began: Option<Instant>,
    /// Share of the read-ahead's budget, given back when the batch is dropped.
    permits: Vec<OwnedSemaphorePermit>,
}

impl Batch {
    /// True when there is nothing to write but perhaps the cursor.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.marks.is_empty()
    }

    /// True when there is nothing at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cursor.is_none()
    }

    /// How long its first transaction has waited for others by now.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.began.map_or(Duration::ZERO, |began| began.elapsed())
    }

    /// The changes of the transactions from one index to another.
    #[must_use]
    pub fn changes_of(&self, from: usize, to: usize) -> std::ops::Range<usize> {
        let start = from.checked_sub(1).map_or(0, |before| self.marks[before].end);
        let end = to.checked_sub(1).map_or(0, |last| self.marks[last].end);
        start..end
    }

    /// The ledger's step for the transactions from one index to another; the last ones take the batch's own end along.
    #[must_use]
    pub fn step(&self, from: usize, to: usize) -> Option<Step> {
        let last = to.checked_sub(1).and_then(|index| self.marks.get(index));
        let whole = to == self.marks.len();
        let cursor = if whole { self.cursor.clone() } else { last.map(Mark::cursor) }?;
        let source_time_us = if whole { self.source_time_us } else { last.map(|mark| mark.header.commit_time_us) };
        let history = if whole { self.history.clone() } else { None };
        let changes = self.changes_of(from, to).len() as u64;
        Some(Step { cursor, source_time_us, transactions: (to - from) as u64, changes, history })
    }

    /// True when one of these transactions changes the schema.
    #[must_use]
    pub fn changes_schema(&self, from: usize, to: usize) -> bool {
        self.changes[self.changes_of(from, to)].iter().any(|change| matches!(change, Change::Schema { .. }))
    }

    /// Ranges of transactions that may share a replica transaction, the first one last: one that changes the schema stands alone.
    #[must_use]
    pub fn ranges(&self) -> Vec<(usize, usize)> {
        let mut ranges = Vec::new();
        let mut from = 0;
        for index in 0..self.marks.len() {
            if self.changes_schema(index, index + 1) {
                ranges.extend((from < index).then_some((from, index)));
                ranges.push((index, index + 1));
                from = index + 1;
            }
        }
        ranges.extend((from < self.marks.len()).then_some((from, self.marks.len())));
        ranges.reverse();
        ranges
    }

    /// Builds a batch by hand, for tests of replicas.
    #[must_use]
    pub fn of(changes: Vec<Change>, marks: Vec<Mark>) -> Self {
        let cursor = marks.last().map(Mark::cursor);
        let source_time_us = marks.last().map(|mark| mark.header.commit_time_us);
        Self { changes, marks, cursor, source_time_us, ..Self::default() }
    }
}

/// Collects units into batches.
#[derive(Debug)]
pub struct Merger {
    max_bytes: usize,
    max_changes: u64,
    open: Batch,
}

impl Merger {
    /// With the configured limits.
    #[must_use]
    pub fn new(max_bytes: usize, max_changes: u64) -> Self {
        Self { max_bytes, max_changes, open: Batch::default() }
    }

    /// What is collected so far.
    #[must_use]
    pub fn open(&self) -> &Batch {
        &self.open
    }

    /// True when nothing more should be added.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.open.bytes >= self.max_bytes || self.open.changes.len() as u64 >= self.max_changes
    }

    /// True for a batch so large that more is to be expected.
    #[must_use]
    pub fn is_deep(&self, batch: &Batch) -> bool {
        batch.bytes >= self.max_bytes / 4 || batch.changes.len() as u64 >= self.max_changes / 4
    }

    /// Adds a unit that can be merged.
    ///
    /// # Errors
    /// Gives back one that cannot: a table's version, a piece of a huge transaction, voided parts.
    pub fn add(&mut self, unit: Unit) -> Result<(), Box<Unit>> {
        match unit {
            Unit::Transactions(mut more) => {
                let offset = self.open.changes.len();
                let Some(last) = more.marks.last() else { return Ok(()) };
                self.open.began.get_or_insert_with(Instant::now);
                self.open.cursor = Some(last.cursor());
                self.open.source_time_us = Some(last.header.commit_time_us);
                self.open.bytes += more.bytes;
                if offset == 0 {
                    self.open.changes = more.changes;
                } else {
                    more.marks.iter_mut().for_each(|mark| mark.end += offset);
                    self.open.changes.append(&mut more.changes);
                }
                self.open.marks.append(&mut more.marks);
                self.open.permits.extend(more.permit);
            }
            Unit::Progress { place, source_time_us } => {
                self.open.cursor = Some(place);
                self.open.source_time_us = Some(source_time_us);
            }
            Unit::Pass { place, history } => {
                self.open.cursor = Some(place);
                self.open.history = history.or(self.open.history.take());
            }
            other => return Err(Box::new(other)),
        }
        Ok(())
    }

    /// Ends the batch.
    #[must_use]
    pub fn take(&mut self) -> Batch {
        std::mem::take(&mut self.open)
    }
}
