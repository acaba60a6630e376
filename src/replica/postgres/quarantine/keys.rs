//! Which rows a change is about, and whether an earlier change of one is in quarantine.

use std::collections::HashMap;

use sqlx::{PgConnection, Row as _};

use super::keep::tables_of;
use crate::apply::rows::pick;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Cell, Change, Row, SchemaId};
use crate::halt::HaltCode;
use crate::replica::postgres::blame::shown;
use crate::replica::postgres::errors::{SHORT_WAIT, within};
use crate::replica::postgres::plan::{Tables, table};
use crate::replica::postgres::tables::Table;

/// The text of each key column.
pub(super) type Key = Vec<Vec<u8>>;

/// The rows that a change is about.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Rows {
    /// These.
    Keys(Vec<Key>),
    /// It cannot be told by text: why.
    All(&'static str),
}

/// Of an insert, update or delete. A key cell that is unchanged is what the old image has.
pub(super) fn rows_of(change: &Change, table: &Table) -> Rows {
    if !table.rules.keyed {
        return Rows::All("it has no key");
    }
    if !table.shape.key.iter().all(|&index| table.columns[index].exact) {
        return Rows::All("equal keys may be written otherwise");
    }
    let (old, new) = match change {
        Change::Insert { new, .. } => (None, Some(new)),
        Change::Update { old, new, .. } => (old.as_ref().map(|old| old.row()), Some(new)),
        Change::Delete { old, .. } => (Some(old.row()), None),
        Change::Truncate { .. } => return Rows::All("it was truncated"),
        Change::Message { .. } | Change::Schema { .. } => return Rows::Keys(Vec::new()),
    };
    let old = old.map(|row| cells(row, table));
    let new = new.map(|row| cells(row, table)).map(|mut cells| {
        for (nth, cell) in cells.iter_mut().enumerate().filter(|(_, cell)| **cell == Cell::Unchanged) {
            *cell = old.as_ref().map_or(Cell::Unchanged, |old| old[nth]);
        }
        cells
    });
    let mut keys = Vec::new();
    for cells in [old, new].into_iter().flatten() {
        let Some(key) = key(&cells) else { return Rows::All("a key came without its value") };
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    Rows::Keys(keys)
}

fn cells<'a>(row: &'a Row, table: &Table) -> Vec<Cell<'a>> {
    let mut cells = vec![Cell::Null; table.shape.key.len()];
    pick(row, &table.shape.key, |nth, cell| cells[nth] = cell);
    cells
}

fn key(cells: &[Cell<'_>]) -> Option<Key> {
    cells.iter().map(|cell| if let Cell::Value(value) = cell { Some(value.to_vec()) } else { None }).collect()
}

/// The columns that find a row, with their types: keys of other columns are not compared.
pub(super) fn key_columns(table: &Table) -> Vec<String> {
    let columns = table.shape.key.iter().map(|&index| &table.schema.columns[index]);
    columns.map(|column| format!("{} {}", column.name, column.type_name)).collect()
}

/// The rows that are in quarantine, in memory.
#[derive(Debug, Default)]
pub(in crate::replica::postgres) struct Touched {
    /// By the source's number.
    tables: HashMap<u32, TouchedTable>,
}

#[derive(Debug, Default)]
struct TouchedTable {
    /// Every row, by the transaction at this position.
    whole: Option<String>,
    /// By the key's columns: keys, each with the position of the first transaction that has it.
    keys: HashMap<Vec<String>, HashMap<Key, String>>,
}

/// A change of a row that is in quarantine.
struct Touch<'t> {
    index: usize,
    table: &'t Table,
    key: Option<Key>,
    position: String,
}

impl Touched {
    /// Those of a replica.
    ///
    /// # Errors
    /// The server's.
    pub(in crate::replica::postgres) async fn load(connection: &mut PgConnection, name: &str) -> Result<Self> {
        let mut touched = Self::default();
        let query = sqlx::query(
            "SELECT t.source_oid, q.position, t.whole IS NOT NULL, t.key_columns, k.key FROM millstream.quarantine q \
             JOIN millstream.quarantined_table t USING (replica, ordinal) LEFT JOIN millstream.quarantined_key k USING (replica, ordinal, source_oid) \
             WHERE q.replica = $1 AND q.state = 'kept' AND t.cured_at IS NULL ORDER BY q.ordinal",
        );
        for row in within(SHORT_WAIT, "reading what is in quarantine", query.bind(name).fetch_all(connection)).await? {
            let number = u32::try_from(row.get::<i64, _>(0)).unwrap_or_default();
            let table = touched.tables.entry(number).or_default();
            let position: String = row.get(1);
            match row.get::<Option<Key>, _>(4) {
                Some(key) if !row.get::<bool, _>(2) => {
                    table.keys.entry(row.get(3)).or_default().entry(key).or_insert(position);
                }
                _ => {
                    table.whole.get_or_insert(position);
                }
            }
        }
        Ok(touched)
    }

    /// Nothing is in quarantine.
    pub(in crate::replica::postgres) fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    /// None of some changes is of a row in quarantine. Their tables must be fitted.
    ///
    /// # Errors
    /// A halt with `quarantined_key` that names the first that is.
    pub(in crate::replica::postgres) fn check(&self, changes: &[Change], tables: &Tables) -> Result<()> {
        match self.first(changes, tables)? {
            Some(touch) => Err(touch.halt(&changes[touch.index])),
            None => Ok(()),
        }
    }

    fn first<'t>(&self, changes: &[Change], tables: &'t Tables) -> Result<Option<Touch<'t>>> {
        // Of most versions nothing is here.
        let mut known: HashMap<SchemaId, Option<(&'t Table, &TouchedTable)>> = HashMap::new();
        for (index, change) in changes.iter().enumerate() {
            for &id in tables_of(change) {
                let found = if let Some(found) = known.get(&id) {
                    *found
                } else {
                    let table = &**table(tables, id)?;
                    let found = self.tables.get(&table.schema.source_oid).map(|touched| (table, touched));
                    known.insert(id, found);
                    found
                };
                let Some((table, touched)) = found else { continue };
                if let Some((key, position)) = touched.by(change, table) {
                    return Ok(Some(Touch { index, table, key, position }));
                }
            }
        }
        Ok(None)
    }
}

impl TouchedTable {
    /// The position of a transaction in quarantine whose row a change is about, and the row.
    fn by(&self, change: &Change, table: &Table) -> Option<(Option<Key>, String)> {
        let any = || self.whole.clone().or_else(|| self.keys.values().flat_map(HashMap::values).next().cloned());
        if let Some(position) = &self.whole {
            return Some((None, position.clone()));
        }
        let keys = match rows_of(change, table) {
            Rows::All(_) => return any().map(|position| (None, position)),
            Rows::Keys(keys) => keys,
        };
        let columns = key_columns(table);
        // Keys of other columns cannot be compared.
        if self.keys.keys().any(|of| *of != columns) {
            return any().map(|position| (None, position));
        }
        let held = self.keys.get(&columns)?;
        keys.into_iter().find_map(|key| held.get(&key).map(|position| (Some(key.clone()), position.clone())))
    }
}

impl Touch<'_> {
    fn halt(&self, change: &Change) -> Error {
        let position = &self.position;
        let what = match change {
            Change::Insert { .. } => "insert",
            Change::Update { .. } => "update",
            Change::Delete { .. } => "delete",
            _ => "truncate",
        };
        let mut place = format!("change {}, {what}", self.index + 1);
        let whose = if let Some(key) = &self.key {
            let columns: Vec<_> =
                self.table.shape.key.iter().map(|&index| self.table.schema.columns[index].name.as_str()).collect();
            let values: Vec<_> = key.iter().map(|value| shown(Cell::Value(value))).collect();
            place = format!("{place}, key ({})=({})", columns.join(", "), values.join(", "));
            format!("the source transaction at {position}, which changes this row as well, is in quarantine")
        } else {
            format!("the source transaction at {position} is in quarantine, and may have changed the same rows of this table")
        };
        Error::new(ErrorKind::Halt(HaltCode::QuarantinedKey), whose)
            .context(format!("table {}", self.table.schema.table))
            .context(place)
    }
}

#[cfg(test)]
#[path = "keys_tests.rs"]
mod tests;
