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
use crate::replica::postgres::ledger::whole;
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
    /// By the replica's number: tables whose rows take such rows with them, where foreign keys are enforced.
    parents: HashMap<i64, Parent>,
}

/// A table that foreign keys refer to which delete or change rows in quarantine by themselves.
#[derive(Debug)]
struct Parent {
    /// Of the first transaction that such rows are of.
    position: String,
    updates: Follow,
}

/// Which updates of a parent change its children.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Follow {
    None,
    OfKey,
    Any,
}

/// The tables that those of what is kept refer to by such foreign keys, over any number of them. How updates are followed: as [`Follow`], by number.
const PARENTS: &str = "WITH RECURSIVE up (relation, ordinal, position, follow) AS (\
      SELECT pg_catalog.to_regclass(pg_catalog.format('%I.%I', c.table_schema, c.table_name))::oid, q.ordinal, q.position, -1 \
      FROM millstream.quarantine q JOIN millstream.quarantined_table t USING (replica, ordinal) \
      JOIN millstream.copied_table c ON c.replica = q.replica AND c.source_oid = t.source_oid \
      WHERE q.replica = $1 AND q.state = 'kept' AND t.ended IS NULL \
    UNION SELECT k.confrelid, up.ordinal, up.position, CASE WHEN k.confupdtype NOT IN ('c', 'n', 'd') THEN 0 WHEN i.indisprimary THEN 1 ELSE 2 END \
      FROM up JOIN pg_catalog.pg_constraint k ON k.conrelid = up.relation AND k.contype = 'f' \
        AND (k.confdeltype IN ('c', 'n', 'd') OR k.confupdtype IN ('c', 'n', 'd')) \
      LEFT JOIN pg_catalog.pg_index i ON i.indexrelid = k.conindid) \
    SELECT relation::bigint, (pg_catalog.array_agg(position ORDER BY ordinal))[1], pg_catalog.max(follow) FROM up WHERE follow >= 0 GROUP BY relation";

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
    /// The replica would change such a row by itself.
    cascades: bool,
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
             WHERE q.replica = $1 AND q.state = 'kept' AND t.ended IS NULL ORDER BY q.ordinal",
        );
        for row in within(SHORT_WAIT, "reading what is in quarantine", query.bind(name).fetch_all(&mut *connection)).await? {
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
        if !touched.is_empty() {
            let query = sqlx::query_as::<_, (i64, String, i32)>(PARENTS).bind(name);
            let rows = within(SHORT_WAIT, "reading who takes rows with them", query.fetch_all(connection)).await?;
            let follow = |number| {
                if number == 0 {
                    Follow::None
                } else if number == 1 {
                    Follow::OfKey
                } else {
                    Follow::Any
                }
            };
            let parent = |(relation, position, number)| (relation, Parent { position, updates: follow(number) });
            touched.parents = rows.into_iter().map(parent).collect();
        }
        Ok(touched)
    }

    /// Nothing is in quarantine.
    pub(in crate::replica::postgres) fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    /// None of some changes is of a row in quarantine. Their tables must be fitted. `enforced`: the replica's foreign keys are.
    ///
    /// # Errors
    /// A halt with `quarantined_key` that names the first that is.
    pub(in crate::replica::postgres) fn check(&self, changes: &[Change], tables: &Tables, enforced: bool) -> Result<()> {
        match self.first(changes, tables, enforced)? {
            Some(touch) => Err(touch.halt(&changes[touch.index])),
            None => Ok(()),
        }
    }

    fn first<'t>(&self, changes: &[Change], tables: &'t Tables, enforced: bool) -> Result<Option<Touch<'t>>> {
        // Of most versions nothing is here.
        let mut known: HashMap<SchemaId, (&'t Table, Option<&TouchedTable>, Option<&Parent>)> = HashMap::new();
        for (index, change) in changes.iter().enumerate() {
            for &id in tables_of(change) {
                let (table, touched, parent) = if let Some(found) = known.get(&id) {
                    *found
                } else {
                    let table = &**table(tables, id)?;
                    let parent = self.parents.get(&table.relation).filter(|_| enforced);
                    let found = (table, self.tables.get(&table.schema.source_oid), parent);
                    known.insert(id, found);
                    found
                };
                if let Some((key, position)) = touched.and_then(|touched| touched.by(change, table)) {
                    return Ok(Some(Touch { index, table, key, position, cascades: false }));
                }
                if let Some(parent) = parent.filter(|parent| parent.takes_others(change, table)) {
                    let position = parent.position.clone();
                    return Ok(Some(Touch { index, table, key: None, position, cascades: true }));
                }
            }
        }
        Ok(None)
    }
}

impl Parent {
    /// The replica may change rows of other tables with it.
    fn takes_others(&self, change: &Change, table: &Table) -> bool {
        match (change, self.updates) {
            (Change::Delete { .. } | Change::Truncate { .. }, _) | (Change::Update { .. }, Follow::Any) => true,
            (Change::Update { .. }, Follow::OfKey) => !matches!(rows_of(change, table), Rows::Keys(keys) if keys.len() == 1),
            _ => false,
        }
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
        } else if self.cascades {
            format!(
                "the source transaction at {position} is in quarantine, and may have changed rows that the replica's foreign keys (ON DELETE, ON UPDATE) \
                 delete or change with this one"
            )
        } else {
            format!("the source transaction at {position} is in quarantine, and may have changed the same rows of this table")
        };
        Error::new(ErrorKind::Halt(HaltCode::QuarantinedKey), whose)
            .context(format!("table {}", self.table.schema.table))
            .context(place)
    }
}

/// The positions of the transactions that are kept and change a table, by the source's number of it.
///
/// # Errors
/// The server's.
pub(in crate::replica::postgres) async fn kept_of(connection: &mut PgConnection, name: &str, number: u32) -> Result<Vec<String>> {
    let query = sqlx::query_scalar(
        "SELECT q.position FROM millstream.quarantine q JOIN millstream.quarantined_table t USING (replica, ordinal) \
         WHERE q.replica = $1 AND q.state = 'kept' AND t.source_oid = $2 AND t.ended IS NULL ORDER BY q.ordinal",
    );
    let query = query.bind(whole(name)).bind(i64::from(number));
    within(SHORT_WAIT, "looking for what is in quarantine", query.fetch_all(connection)).await
}

#[cfg(test)]
#[path = "keys_tests.rs"]
mod tests;
