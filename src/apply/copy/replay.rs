//! The log over loaded chunks: what a chunk's snapshot sees is dropped, what it does not see is applied.
//!
//! | change | of its chunks' snapshots… | becomes |
//! |---|---|---|
//! | insert, delete, update in place | seen / not seen | nothing / itself |
//! | key change | seen by both / by neither | nothing / itself |
//! | | only by the old key's | an insert of the new row; cells that it lacks: the key is read again |
//! | | only by the new key's | a delete of the old row |
//! | TRUNCATE | seen by all / by none | nothing / itself |
//! | | seen by some | the table's copy starts again |
//! | not seen by all, another definition than the copy's | | the table's copy starts again |
//!
//! Most transactions are seen by every chunk of a table or by none, and nobody asks for their keys' chunks then.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

use super::keys::{Bounds, Key, Oracle, key_of};
use super::state::{Chunk, CopyTable, highest};
use super::{PostgresCopy, Todo, finish};
use crate::apply::CatchUp;
use crate::apply::first_copy::Schemas;
use crate::capture::snapshot::{Snapshot, TableShape};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{ApplyEpoch, Cell, Change, Lsn, OldImage, Position, Row, SchemaId, TableName, TransactionHeader, Xid};

/// A table with more keys to read again at once is cheaper to copy again.
const MAX_REREADS: usize = 5_000;

/// A table between its chunks and live.
struct Replayed {
    shape: TableShape,
    bounds: Bounds,
    /// Of each chunk, in key order.
    snapshots: Vec<Snapshot>,
    /// Keys that were read again: theirs overrules their chunk's.
    single: HashMap<Key, Snapshot>,
}

/// What a transaction is to a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    All,
    None,
    Some,
}

impl Replayed {
    fn new(table: &CopyTable, chunks: Vec<Chunk>) -> Result<Self> {
        let incomplete = || Error::new(ErrorKind::Unexpected, format!("the plan of {} is not complete", table.table));
        let shape = table.shape.clone().ok_or_else(incomplete)?;
        let (mut lower, mut snapshots, mut single) = (Vec::new(), Vec::new(), HashMap::new());
        for chunk in chunks {
            let moment = chunk.moment.ok_or_else(incomplete)?;
            match (chunk.range.is_single_key(), chunk.range.lower) {
                // Later ones overrule earlier ones.
                (true, Some(key)) => drop(single.insert(key, moment.snapshot)),
                (_, bound) => {
                    lower.extend(bound);
                    snapshots.push(moment.snapshot);
                }
            }
        }
        if snapshots.len() != lower.len() + 1 {
            return Err(incomplete());
        }
        let bounds = Bounds::new(&shape.key, lower)?;
        Ok(Self { shape, bounds, snapshots, single })
    }

    fn seen(&self, xid: Xid) -> Seen {
        let (mut some, mut all) = (false, true);
        for snapshot in self.snapshots.iter().chain(self.single.values()) {
            if snapshot.sees(xid) {
                some = true
            } else {
                all = false
            }
            if some && !all {
                return Seen::Some;
            }
        }
        if all { Seen::All } else { Seen::None }
    }

    /// Whether the snapshot that answers for a key sees a transaction.
    fn key_sees(&self, key: &Key, chunk: usize, xid: Xid) -> bool {
        let snapshot = self.single.get(key).or_else(|| self.snapshots.get(chunk));
        snapshot.is_some_and(|s| s.sees(xid))
    }
}

/// Stands between the log and the tables of a first copy.
pub(super) struct Replay {
    tables: Vec<Replayed>,
    by_name: HashMap<TableName, usize>,
    /// Which of them a table version is of, and whether rows under it fit what was copied.
    versions: HashMap<SchemaId, Option<(usize, bool)>>,
    target: Lsn,
    oracle: Oracle,
    todo: Arc<Mutex<Vec<Todo>>>,
    finish: finish::Finish,
    /// Keys to be read again, and the transactions that have to be visible then: of the unit of the log at hand.
    rereads: Vec<(usize, Key, Xid)>,
}

/// Keys of one call whose chunks are known.
type Chunks = HashMap<(usize, Key), usize>;

impl Replay {
    pub(super) fn new(copy: &PostgresCopy, epoch: ApplyEpoch, loaded: Vec<(Vec<Chunk>, CopyTable)>) -> Result<Self> {
        let target = loaded.iter().map(|(chunks, _)| highest(chunks)).max().unwrap_or_default();
        let mut tables = Vec::new();
        let mut by_name = HashMap::new();
        for (chunks, table) in loaded {
            by_name.insert(table.table.clone(), tables.len());
            tables.push(Replayed::new(&table, chunks)?);
        }
        Ok(Self {
            tables,
            by_name,
            versions: HashMap::new(),
            target,
            oracle: Oracle::new(copy.source.clone()),
            todo: Arc::clone(&copy.todo),
            finish: finish::Finish::new(copy, epoch),
            rereads: Vec::new(),
        })
    }

    /// From this position on the tables may be live.
    pub(super) fn target(&self) -> Lsn {
        self.target
    }

    /// The table of a version, when it is one of ours; `true` when rows under it fit.
    fn version(&mut self, id: SchemaId, schemas: &Schemas) -> Result<Option<(usize, bool)>> {
        if let Some(known) = self.versions.get(&id) {
            return Ok(*known);
        }
        let schema = schemas.get(&id).ok_or_else(|| {
            Error::new(ErrorKind::Malformed, format!("a change of table version {}, which no record before it has", id.0))
        })?;
        let found = self.by_name.get(&schema.table).map(|i| (*i, self.tables[*i].shape.fits(schema)));
        self.versions.insert(id, found);
        Ok(found)
    }

    fn again(&self, todo: Vec<Todo>, why: &str) -> Error {
        self.todo.lock().unwrap_or_else(PoisonError::into_inner).extend(todo);
        Error::new(ErrorKind::Busy, format!("first copy: {why}"))
    }

    fn restart(&self, table: usize, why: &str) -> Error {
        let table = self.tables[table].shape.schema.table.clone();
        let text = format!("the copy of {table} starts again: {why}");
        self.again(vec![Todo::Restart { table, why: why.to_owned() }], &text)
    }

    /// Notes keys to be read again; a transaction that moves too many of them makes its table's copy start again.
    fn read_again(&mut self, mut keys: Vec<(usize, Key)>, xid: Xid) -> Result<()> {
        keys.sort_unstable();
        keys.dedup();
        self.rereads.extend(keys.into_iter().map(|(table, key)| (table, key, xid)));
        let mut of_this = self.rereads.iter().filter(|(_, _, after)| *after == xid);
        match of_this.nth(MAX_REREADS).map(|(table, ..)| *table) {
            None => Ok(()),
            Some(table) => {
                Err(self.restart(table, "a transaction moved many of its rows, with values that the log does not hold"))
            }
        }
    }

    /// Asks the source for the chunks that cannot be told here.
    async fn chunks(&mut self, needed: Vec<(usize, Key)>) -> Result<Chunks> {
        let mut chunks = Chunks::new();
        let mut asked: HashMap<usize, Vec<Key>> = HashMap::new();
        for (table, key) in needed {
            match self.tables[table].bounds.find(&key)? {
                Some(chunk) => drop(chunks.insert((table, key), chunk)),
                None => asked.entry(table).or_default().push(key),
            }
        }
        for (table, mut keys) in asked {
            keys.sort_unstable();
            keys.dedup();
            let replayed = &self.tables[table];
            if let Bounds::Asked(bounds, question) = &replayed.bounds {
                let found = self.oracle.ask(&replayed.shape.schema.table, bounds, question, &keys).await?;
                chunks.extend(keys.into_iter().zip(found).map(|(key, chunk)| ((table, key), chunk)));
            }
        }
        Ok(chunks)
    }

    /// Keys of changes whose tables' chunks do not agree on the transaction.
    fn needed(&mut self, schemas: &Schemas, xid: Xid, changes: &[Change]) -> Result<Option<Vec<(usize, Key)>>> {
        let mut needed = Vec::new();
        let mut ours = false;
        for change in changes {
            let (id, old, new) = match change {
                Change::Insert { table, new } => (*table, None, Some(new)),
                Change::Update { table, old, new } => (*table, old.as_ref(), Some(new)),
                Change::Delete { table, old } => (*table, Some(old), None),
                Change::Truncate { tables, .. } => {
                    for id in tables {
                        ours |= self.version(*id, schemas)?.is_some();
                    }
                    continue;
                }
                Change::Message { .. } | Change::Schema { .. } => continue,
            };
            let Some((table, fits)) = self.version(id, schemas)? else { continue };
            ours = true;
            let seen = self.tables[table].seen(xid);
            if seen != Seen::All && !fits {
                return Err(self.restart(table, "its definition at the source has changed"));
            }
            if seen == Seen::Some {
                let shape = &self.tables[table].shape;
                let old = old.map(OldImage::row);
                needed.extend(old.map(|row| key_of(shape, row, None)).transpose()?.map(|key| (table, key)));
                needed.extend(new.map(|row| key_of(shape, row, old)).transpose()?.map(|key| (table, key)));
            }
        }
        Ok(ours.then_some(needed))
    }
}

#[async_trait]
impl CatchUp for Replay {
    async fn admit(&mut self, transaction: &TransactionHeader, schemas: &Schemas, changes: Vec<Change>) -> Result<Vec<Change>> {
        let xid = transaction.xid;
        let Some(needed) = self.needed(schemas, xid, &changes)? else { return Ok(changes) };
        let chunks = self.chunks(needed).await?;
        let mut judge = Judge { replay: self, schemas, chunks, xid, rereads: Vec::new() };
        let mut kept = Vec::with_capacity(changes.len());
        for change in changes {
            kept.extend(judge.change(change)?);
        }
        let rereads = std::mem::take(&mut judge.rereads);
        self.read_again(rereads, xid)?;
        Ok(kept)
    }

    fn interruption(&mut self) -> Option<Error> {
        if self.rereads.is_empty() {
            return None;
        }
        let rereads = std::mem::take(&mut self.rereads);
        let text = format!("{} moved rows with values that the log does not hold are read again", rereads.len());
        let todo = rereads.into_iter().map(|(table, key, after)| Todo::Reread {
            table: self.tables[table].shape.schema.table.clone(),
            key,
            after,
        });
        Some(self.again(todo.collect(), &text))
    }

    async fn committed(&mut self, position: Position) -> Result<bool> {
        if position.lsn()? < self.target {
            return Ok(false);
        }
        self.finish.run().await?;
        Ok(true)
    }
}

/// Judges the changes of one call.
struct Judge<'a> {
    replay: &'a mut Replay,
    schemas: &'a Schemas,
    chunks: Chunks,
    xid: Xid,
    /// Keys to be read again.
    rereads: Vec<(usize, Key)>,
}

impl Judge<'_> {
    fn change(&mut self, change: Change) -> Result<Option<Change>> {
        match change {
            Change::Insert { table, new } => {
                let dropped = self.row_seen(table, &new, None)?;
                Ok((!dropped).then_some(Change::Insert { table, new }))
            }
            Change::Delete { table, old } => {
                let dropped = self.row_seen(table, old.row(), None)?;
                Ok((!dropped).then_some(Change::Delete { table, old }))
            }
            Change::Update { table, old, new } => self.update(table, old, new),
            Change::Truncate { tables, cascade, restart_identity } => {
                let tables = self.truncated(tables)?;
                Ok((!tables.is_empty()).then_some(Change::Truncate { tables, cascade, restart_identity }))
            }
            other @ (Change::Message { .. } | Change::Schema { .. }) => Ok(Some(other)),
        }
    }

    /// Whether the snapshot that answers for a row sees the transaction. Never of another table than ours.
    fn row_seen(&mut self, id: SchemaId, row: &Row, old: Option<&Row>) -> Result<bool> {
        let Some((index, _)) = self.replay.version(id, self.schemas)? else { return Ok(false) };
        let table = &self.replay.tables[index];
        match table.seen(self.xid) {
            Seen::All => Ok(true),
            Seen::None => Ok(false),
            Seen::Some => {
                let key = (index, key_of(&table.shape, row, old)?);
                let chunk = self.chunks.get(&key).copied().ok_or_else(|| {
                    Error::new(ErrorKind::Unexpected, format!("a key of {} without a chunk", table.shape.schema.table))
                })?;
                Ok(table.key_sees(&key.1, chunk, self.xid))
            }
        }
    }

    fn update(&mut self, table: SchemaId, old: Option<OldImage>, new: Row) -> Result<Option<Change>> {
        let before = old.as_ref().map(OldImage::row);
        let new_seen = self.row_seen(table, &new, before)?;
        let old_seen = match before {
            Some(row) => self.row_seen(table, row, None)?,
            None => new_seen,
        };
        match (old_seen, new_seen, old) {
            (true, true, _) => Ok(None),
            (false, false, old) => Ok(Some(Change::Update { table, old, new })),
            (false, true, Some(old)) => Ok(Some(Change::Delete { table, old })),
            (true, false, Some(OldImage::Full(old))) => Ok(Some(Change::Insert { table, new: filled(&new, &old) })),
            (true, false, old) => {
                if new.iter().any(|cell| cell == Cell::Unchanged) {
                    if let Some((index, _)) = self.replay.version(table, self.schemas)? {
                        let key = key_of(&self.replay.tables[index].shape, &new, old.as_ref().map(OldImage::row))?;
                        self.rereads.push((index, key));
                    }
                    return Ok(None);
                }
                Ok(Some(Change::Insert { table, new }))
            }
            (false, true, None) => {
                Err(Error::new(ErrorKind::Malformed, "an update that changes its key without saying the old one"))
            }
        }
    }

    /// The tables that do not see a TRUNCATE.
    fn truncated(&mut self, tables: Vec<SchemaId>) -> Result<Vec<SchemaId>> {
        let mut kept = Vec::new();
        for id in tables {
            match self.replay.version(id, self.schemas)? {
                None => kept.push(id),
                Some((index, _)) => match self.replay.tables[index].seen(self.xid) {
                    Seen::All => {}
                    Seen::None => kept.push(id),
                    Seen::Some => return Err(self.replay.restart(index, "it was truncated while its chunks were being read")),
                },
            }
        }
        Ok(kept)
    }
}

/// A row with its unchanged cells taken from the old one.
fn filled(new: &Row, old: &Row) -> Row {
    new.iter().zip(old.iter()).map(|(cell, before)| if cell == Cell::Unchanged { before } else { cell }).collect()
}
