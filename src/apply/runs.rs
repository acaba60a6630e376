//! Changes in the order in which they were made, neighbours of one kind taken together where that changes nothing.
//!
//! For tables whose changes do not fold per key ([`super::compact`]): no key, triggers that fire, foreign keys that are enforced,
//! keys that change while the row is not wholly known. A run of inserts, or of deletes or updates that find different rows
//! by an unchanged key, is one statement; everything else is a run of one.

use std::collections::HashSet;

use super::rows::{RowSet, set_columns};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Cell, Change, Identity, OldImage, Row, SchemaId, TableSchema};
use crate::halt::HaltCode;

/// What ordering must know of a table.
#[derive(Clone, Debug)]
pub struct RunRules {
    /// Which cells find a row; every one for a table without a key.
    pub finders: Vec<usize>,
    /// The finding cells are a key.
    pub keyed: bool,
    /// Updates go one by one: a second unique key may be handed from row to row.
    pub single_updates: bool,
}

/// What a run does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunKind {
    /// Whole rows come.
    Insert,
    /// Rows change.
    Update {
        /// The columns set.
        set: Vec<usize>,
        /// The key is among what changes: a run of one.
        rekey: bool,
    },
    /// Rows go.
    Delete,
}

/// Neighbouring changes of one kind.
#[derive(Debug)]
pub struct Run<'a> {
    /// Their table.
    pub table: SchemaId,
    /// What they do.
    pub kind: RunKind,
    /// The rows, in order.
    pub rows: RowSet<'a>,
    /// Index of the first change.
    pub first: usize,
}

/// One thing to do.
#[derive(Debug)]
pub enum Ordered<'a> {
    /// Rows of one table.
    Run(Run<'a>),
    /// TRUNCATE.
    Truncate {
        /// The tables.
        tables: &'a [SchemaId],
        /// RESTART IDENTITY.
        restart_identity: bool,
        /// Index of the change.
        index: usize,
    },
}

/// Collects changes into runs.
pub struct RunBuilder<'a, F> {
    rules: F,
    one_by_one: bool,
    done: Vec<Ordered<'a>>,
    open: Option<Run<'a>>,
    /// Rows that the open run finds.
    found: HashSet<Vec<Cell<'a>>, foldhash::fast::RandomState>,
}

impl<'a, F> RunBuilder<'a, F>
where
    F: FnMut(SchemaId) -> Result<(&'a TableSchema, &'a RunRules)>,
{
    /// With the rules of tables; `one_by_one` makes every run a run of one.
    pub fn new(one_by_one: bool, rules: F) -> Self {
        Self { rules, one_by_one, done: Vec::new(), open: None, found: HashSet::default() }
    }

    /// The next change, and its index for messages.
    ///
    /// # Errors
    /// Those of the rules; [`ErrorKind::Malformed`] for a row that does not fit its table.
    pub fn push(&mut self, index: usize, change: &'a Change) -> Result<()> {
        match change {
            Change::Insert { table, new } => {
                let (schema, rules) = (self.rules)(*table)?;
                check_row(schema, new)?;
                let one = one_row(schema, rules, None, Some(new));
                if one.row(0)[..one.columns()].contains(&Cell::Unchanged) {
                    return Err(incomplete(schema));
                }
                self.add(*table, RunKind::Insert, one, index, true);
            }
            Change::Delete { table, old } => {
                let (schema, rules) = (self.rules)(*table)?;
                check_old(schema, rules, old)?;
                self.add(*table, RunKind::Delete, one_row(schema, rules, Some(old), None), index, rules.keyed);
            }
            Change::Update { table, old, new } => {
                let (schema, rules) = (self.rules)(*table)?;
                check_row(schema, new)?;
                if let Some(old) = old {
                    check_old(schema, rules, old)?;
                } else if !rules.keyed {
                    return Err(keyless(schema));
                }
                let one = one_row(schema, rules, old.as_ref(), Some(new));
                let rekey = rules.keyed && changes_key(&one, &rules.finders);
                let key: &[usize] = if rules.keyed && !rekey { &rules.finders } else { &[] };
                let set = set_columns(&one.row(0)[..one.columns()], key).collect();
                let together = rules.keyed && !rekey && !rules.single_updates;
                self.add(*table, RunKind::Update { set, rekey }, one, index, together);
            }
            Change::Truncate { tables, restart_identity, .. } => {
                self.close();
                self.done.push(Ordered::Truncate { tables, restart_identity: *restart_identity, index });
            }
            Change::Message { .. } | Change::Schema { .. } => {}
        }
        Ok(())
    }

    /// Everything, in order.
    #[must_use]
    pub fn finish(mut self) -> Vec<Ordered<'a>> {
        self.close();
        self.done
    }

    fn add(&mut self, table: SchemaId, kind: RunKind, one: RowSet<'a>, index: usize, together: bool) {
        let together = together && !self.one_by_one;
        let joins = together && self.open.as_ref().is_some_and(|open| open.table == table && open.kind == kind);
        if !joins {
            self.close();
        }
        let finders = (together && kind != RunKind::Insert).then(|| one.finders(0).to_vec());
        if finders.is_some_and(|finders| !self.found.insert(finders)) {
            self.close();
            self.found.insert(one.finders(0).to_vec());
        }
        match &mut self.open {
            Some(open) => open.rows.append(&one),
            None => self.open = Some(Run { table, kind, rows: one, first: index }),
        }
        if !together {
            self.close();
        }
    }

    fn close(&mut self) {
        self.done.extend(self.open.take().map(Ordered::Run));
        self.found.clear();
    }
}

fn one_row<'a>(schema: &TableSchema, rules: &RunRules, old: Option<&'a OldImage>, new: Option<&'a Row>) -> RowSet<'a> {
    let mut one = RowSet::new(schema.columns.len(), rules.finders.len());
    one.push(new);
    match (old, new) {
        (Some(old), _) => one.set_finders(0, old.row(), &rules.finders),
        (None, Some(new)) => one.set_finders(0, new, &rules.finders),
        (None, None) => {}
    }
    if let (Some(OldImage::Full(whole)), Some(_)) = (old, new) {
        one.complete(0, whole);
    }
    one
}

/// True when the key changes. A key cell may be unchanged (a long value kept out of line).
fn changes_key(one: &RowSet<'_>, key: &[usize]) -> bool {
    let row = one.row(0);
    let (new, old) = row.split_at(one.columns());
    key.iter().zip(old).any(|(&column, old)| new[column] != Cell::Unchanged && new[column] != *old)
}

/// A row must have the cells that its table's version says.
///
/// # Errors
/// [`ErrorKind::Malformed`].
pub fn check_row(schema: &TableSchema, row: &Row) -> Result<()> {
    if row.len() == schema.columns.len() {
        return Ok(());
    }
    let message = format!("a row of {} cells for table {} of {} columns", row.len(), schema.table, schema.columns.len());
    Err(Error::new(ErrorKind::Malformed, message))
}

/// An old image must find the row.
///
/// # Errors
/// [`ErrorKind::Malformed`], or a halt when the table has no key and the image is not whole.
pub fn check_old(schema: &TableSchema, rules: &RunRules, old: &OldImage) -> Result<()> {
    check_row(schema, old.row())?;
    if rules.keyed || matches!(old, OldImage::Full(_)) { Ok(()) } else { Err(keyless(schema)) }
}

fn keyless(schema: &TableSchema) -> Error {
    let identity = match schema.identity {
        Identity::Full => "a whole old image was expected and did not come",
        _ => "run ALTER TABLE … REPLICA IDENTITY FULL on the source, or give it a primary key",
    };
    Error::halt(
        HaltCode::SourceMisconfigured,
        format!("table {} has no key that finds a row to update or delete: {identity}", schema.table),
    )
}

fn incomplete(schema: &TableSchema) -> Error {
    Error::halt(
        HaltCode::SourceMisconfigured,
        format!(
            "a row came to table {} with values that the source did not send (a row filter makes inserts of updates); \
             run ALTER TABLE … REPLICA IDENTITY FULL on the source and copy the table again",
            schema.table
        ),
    )
}
