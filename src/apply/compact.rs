//! Net compaction: many changes of one table, in commit order, become at most one delete, update or insert per key.
//!
//! Invariant: on a table that stands as the source's did before the changes, the net effect (deletes, then updates, then
//! inserts) leaves exactly what replaying the changes one by one would. Where that cannot be known here, the table is
//! [`Irregular`] and its changes go one after the other instead.
//!
//! Per key, `existed` says whether the first change found the row already there, `now` what is known of it:
//!
//! ```text
//!                insert          update              delete
//! (no entry)     Whole           Patch, existed      Gone, existed
//! Gone           Whole           irregular           irregular
//! Patch          irregular       Patch overlaid      Gone
//! Whole          irregular       Whole overlaid      Gone
//!
//! at the end:    existed and (Gone or Whole) ► delete     Patch ► update     Whole ► insert
//! ```
//!
//! A changed key is a delete of the old and an insert of the new one, which needs every cell: unchanged ones come from an
//! earlier change of the batch or from a full old image, or else the table is irregular.
//!
//! Cells are borrowed from the records that they came in; a row costs no allocation of its own.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher};

use foldhash::fast::RandomState;

use super::rows::{RowSet, set_columns};
use crate::event::{Cell, OldImage, Row};

/// What compaction must know of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Cells of a row.
    pub columns: usize,
    /// Which of them find a row.
    pub key: Vec<usize>,
    /// The replica keeps more of a row than the log knows, so a changed key must not be a delete and an insert.
    pub extra: bool,
}

/// The changes do not fold per key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Irregular;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Now {
    Gone,
    Patch,
    Whole,
}

#[derive(Debug)]
struct Entry {
    /// Next entry of the same hash, `NONE` for the last.
    next: u32,
    existed: bool,
    now: Now,
}

const NONE: u32 = u32::MAX;

/// Hashes are hashes already.
#[derive(Debug, Default)]
struct Through(u64);

impl Hasher for Through {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {}

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// Folds the changes of one table.
#[derive(Debug)]
pub struct Compactor<'a> {
    shape: Shape,
    rows: RowSet<'a>,
    /// One for each row.
    entries: Vec<Entry>,
    heads: HashMap<u64, u32, BuildHasherDefault<Through>>,
    hasher: RandomState,
}

impl<'a> Compactor<'a> {
    /// For a table with a key.
    #[must_use]
    pub fn new(shape: Shape) -> Self {
        let rows = RowSet::new(shape.columns, shape.key.len());
        Self { shape, rows, entries: Vec::new(), heads: HashMap::default(), hasher: RandomState::default() }
    }

    /// A row came.
    ///
    /// # Errors
    /// [`Irregular`]; the compactor is of no more use.
    pub fn insert(&mut self, new: &'a Row) -> Result<(), Irregular> {
        let slot = self.rows.push(Some(new));
        self.rows.find_by_new(slot, &self.shape.key);
        self.place_whole(slot)
    }

    /// A row changed.
    ///
    /// # Errors
    /// [`Irregular`]; the compactor is of no more use.
    pub fn update(&mut self, old: Option<&'a OldImage>, new: &'a Row) -> Result<(), Irregular> {
        let slot = self.rows.push(Some(new));
        let Some(old) = old else {
            self.rows.find_by_new(slot, &self.shape.key);
            return self.patch(slot);
        };
        self.rows.set_finders(slot, old.row(), &self.shape.key);
        if let OldImage::Full(whole) = old {
            self.rows.complete(slot, whole);
        }
        if self.keeps_key(slot) { self.patch(slot) } else { self.rekey(slot) }
    }

    /// A row went.
    ///
    /// # Errors
    /// [`Irregular`]; the compactor is of no more use.
    pub fn delete(&mut self, old: &'a OldImage) -> Result<(), Irregular> {
        let slot = self.rows.push(None);
        self.rows.set_finders(slot, old.row(), &self.shape.key);
        match self.find(slot)? {
            (hash, None) => self.register(slot, hash, true, Now::Gone),
            (_, Some(entry)) => {
                self.rows.pop();
                self.leave(entry)?;
            }
        }
        Ok(())
    }

    /// True when no new key cell differs from the one that finds the row. A key cell may be unchanged (a long value kept out of
    /// line); it is filled in.
    fn keeps_key(&mut self, slot: u32) -> bool {
        let at = self.rows.columns();
        let row = self.rows.row_mut(slot);
        let mut same = true;
        for (nth, &column) in self.shape.key.iter().enumerate() {
            if row[column] == Cell::Unchanged {
                row[column] = row[at + nth];
            }
            same &= row[column] == row[at + nth];
        }
        same
    }

    fn patch(&mut self, slot: u32) -> Result<(), Irregular> {
        match self.find(slot)? {
            (hash, None) => self.register(slot, hash, true, Now::Patch),
            (_, Some(entry)) => {
                if self.entries[entry as usize].now == Now::Gone {
                    return Err(Irregular);
                }
                self.rows.overlay(entry, slot);
                self.rows.pop();
            }
        }
        Ok(())
    }

    fn rekey(&mut self, slot: u32) -> Result<(), Irregular> {
        match self.find(slot)? {
            (hash, None) => {
                if self.shape.extra || self.rows.incomplete(slot) {
                    return Err(Irregular);
                }
                // The slot stands for the old key; the new row gets one of its own.
                self.register(slot, hash, true, Now::Gone);
                self.rows.push_again(slot);
            }
            (_, Some(entry)) => {
                if self.shape.extra && self.entries[entry as usize].existed {
                    return Err(Irregular);
                }
                self.rows.fill(slot, entry);
                self.leave(entry)?;
            }
        }
        let new = self.rows.len() as u32 - 1;
        self.rows.find_by_new(new, &self.shape.key);
        self.place_whole(new)
    }

    fn leave(&mut self, entry: u32) -> Result<(), Irregular> {
        let entry = &mut self.entries[entry as usize];
        if entry.now == Now::Gone {
            return Err(Irregular);
        }
        entry.now = Now::Gone;
        Ok(())
    }

    fn place_whole(&mut self, slot: u32) -> Result<(), Irregular> {
        if self.rows.incomplete(slot) {
            return Err(Irregular);
        }
        match self.find(slot)? {
            (hash, None) => self.register(slot, hash, false, Now::Whole),
            (_, Some(entry)) => {
                if self.entries[entry as usize].now != Now::Gone {
                    return Err(Irregular);
                }
                self.rows.overlay(entry, slot);
                self.rows.pop();
                self.entries[entry as usize].now = Now::Whole;
            }
        }
        Ok(())
    }

    /// The entry with the same finding cells as the last row, and their hash.
    fn find(&self, slot: u32) -> Result<(u64, Option<u32>), Irregular> {
        let key = self.rows.finders(slot);
        let mut hasher = self.hasher.build_hasher();
        for cell in key {
            let Cell::Value(value) = cell else { return Err(Irregular) };
            hasher.write(value);
            hasher.write_u8(0xFF);
        }
        let hash = hasher.finish();
        let mut at = self.heads.get(&hash).copied().unwrap_or(NONE);
        while at != NONE {
            if self.rows.finders(at) == key {
                return Ok((hash, Some(at)));
            }
            at = self.entries[at as usize].next;
        }
        Ok((hash, None))
    }

    fn register(&mut self, slot: u32, hash: u64, existed: bool, now: Now) {
        debug_assert_eq!(slot as usize, self.entries.len());
        let next = self.heads.insert(hash, slot).unwrap_or(NONE);
        self.entries.push(Entry { next, existed, now });
    }

    /// The net effect.
    #[must_use]
    pub fn finish(self) -> Net<'a> {
        let Self { shape, rows, entries, .. } = self;
        let mut net = Net { rows, deletes: Vec::new(), updates: Vec::new(), inserts: Vec::new() };
        for (index, entry) in entries.iter().enumerate() {
            let index = index as u32;
            if entry.existed && entry.now != Now::Patch {
                net.deletes.push(index);
            }
            match entry.now {
                Now::Gone => {}
                Now::Whole => net.inserts.push(index),
                Now::Patch => net.add_update(index, &shape.key),
            }
        }
        net
    }
}

/// Updates that set the same columns.
#[derive(Debug)]
pub struct UpdateGroup {
    /// The columns set: those of the row that are known, without its key.
    pub set: Vec<usize>,
    /// The rows.
    pub rows: Vec<u32>,
}

/// The net effect of a table's changes: to be carried out in the order of the fields.
#[derive(Debug)]
pub struct Net<'a> {
    /// All rows; those of no effect too.
    pub rows: RowSet<'a>,
    /// Rows to delete, by their finding cells.
    pub deletes: Vec<u32>,
    /// Rows to update.
    pub updates: Vec<UpdateGroup>,
    /// Rows to insert, whole.
    pub inserts: Vec<u32>,
}

impl Net<'_> {
    fn add_update(&mut self, index: u32, key: &[usize]) {
        let row = &self.rows.row(index)[..self.rows.columns()];
        let fits = |group: &UpdateGroup| set_columns(row, key).eq(group.set.iter().copied());
        // The last group first: neighbours mostly set the same columns.
        if let Some(group) = self.updates.iter_mut().rev().find(|group| fits(group)) {
            group.rows.push(index);
        } else {
            self.updates.push(UpdateGroup { set: set_columns(row, key).collect(), rows: vec![index] });
        }
    }
}

#[cfg(test)]
#[path = "compact_tests.rs"]
mod tests;
