//! From changes to work: which tables fold per key, which go in order.

use std::collections::HashMap;
use std::sync::Arc;

use super::tables::Table;
use crate::apply::compact::{Compactor, Irregular, Net};
use crate::apply::runs::{Ordered, RunBuilder, check_old, check_row};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Change, SchemaId};

/// Tables by version.
pub type Tables = HashMap<SchemaId, Arc<Table>, foldhash::fast::RandomState>;

/// How changes become statements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Tables fold per key where they can.
    Net,
    /// Everything in the source's order, across tables: foreign keys or triggers see it.
    Ordered,
    /// The same, row by row: to find the culprit.
    OneByOne,
}

/// Something to do, in order.
pub enum Work<'a> {
    /// A table's net effect.
    Net(Arc<Table>, Net<'a>),
    /// Changes in order.
    Ordered(Ordered<'a>),
}

/// Finds a table that was fitted before.
pub fn table(tables: &Tables, id: SchemaId) -> Result<&Arc<Table>> {
    tables.get(&id).ok_or_else(|| Error::new(ErrorKind::Unexpected, format!("table version {} was not prepared", id.0)))
}

/// Plans changes; `first` is the index of the first for messages.
///
/// # Errors
/// [`ErrorKind::Malformed`] rows, tables without what their changes need.
pub fn plan<'a>(changes: &'a [Change], tables: &'a Tables, style: Style) -> Result<Vec<Work<'a>>> {
    let mut work = Vec::new();
    if matches!(style, Style::Ordered | Style::OneByOne) {
        in_order(changes, 0..changes.len(), tables, style == Style::OneByOne, &mut work)?;
        return Ok(work);
    }
    let mut folder = Folder { changes, tables, slots: Vec::new(), by_version: HashMap::default(), last: None };
    for (index, change) in changes.iter().enumerate() {
        match change {
            Change::Insert { table, .. } | Change::Update { table, .. } | Change::Delete { table, .. } => {
                let slot = folder.slot(*table, &mut work)?;
                folder.fold(slot, index)?;
            }
            Change::Truncate { .. } => {
                folder.flush(&mut work)?;
                in_order(changes, index..index + 1, tables, false, &mut work)?;
            }
            Change::Message { .. } | Change::Schema { .. } => {}
        }
    }
    folder.flush(&mut work)?;
    Ok(work)
}

fn in_order<'a>(
    changes: &'a [Change],
    indexes: impl Iterator<Item = usize>,
    tables: &'a Tables,
    one_by_one: bool,
    work: &mut Vec<Work<'a>>,
) -> Result<()> {
    let mut builder = RunBuilder::new(one_by_one, |id| table(tables, id).map(|table| (&*table.schema, &table.rules)));
    for index in indexes {
        builder.push(index, &changes[index])?;
    }
    work.extend(builder.finish().into_iter().map(Work::Ordered));
    Ok(())
}

/// One table's changes since the last barrier.
struct Slot<'a> {
    table: Arc<Table>,
    indexes: Vec<usize>,
    /// `None` for a table whose changes go in order.
    net: Option<Compactor<'a>>,
}

struct Folder<'a> {
    changes: &'a [Change],
    tables: &'a Tables,
    slots: Vec<Slot<'a>>,
    by_version: HashMap<SchemaId, usize, foldhash::fast::RandomState>,
    last: Option<(SchemaId, usize)>,
}

impl<'a> Folder<'a> {
    /// The slot of a table's version. Another version of the same table is a barrier.
    fn slot(&mut self, id: SchemaId, work: &mut Vec<Work<'a>>) -> Result<usize> {
        if let Some((last, slot)) = self.last
            && last == id
        {
            return Ok(slot);
        }
        let slot = if let Some(&slot) = self.by_version.get(&id) {
            slot
        } else {
            let table = Arc::clone(table(self.tables, id)?);
            if self.slots.iter().any(|slot| slot.table.schema.table == table.schema.table) {
                self.flush(work)?;
            }
            let net = (!table.ordered).then(|| Compactor::new(table.shape.clone()));
            self.slots.push(Slot { table, indexes: Vec::new(), net });
            self.by_version.insert(id, self.slots.len() - 1);
            self.slots.len() - 1
        };
        self.last = Some((id, slot));
        Ok(slot)
    }

    fn fold(&mut self, slot: usize, index: usize) -> Result<()> {
        let Slot { table, indexes, net } = &mut self.slots[slot];
        indexes.push(index);
        let Some(compactor) = net else { return Ok(()) };
        let folded = match &self.changes[index] {
            Change::Insert { new, .. } => {
                check_row(&table.schema, new)?;
                compactor.insert(new)
            }
            Change::Update { old, new, .. } => {
                check_row(&table.schema, new)?;
                if let Some(old) = old {
                    check_old(&table.schema, &table.rules, old)?;
                }
                compactor.update(old.as_ref(), new)
            }
            Change::Delete { old, .. } => {
                check_old(&table.schema, &table.rules, old)?;
                compactor.delete(old)
            }
            Change::Truncate { .. } | Change::Message { .. } | Change::Schema { .. } => Ok(()),
        };
        if folded == Err(Irregular) {
            *net = None;
        }
        Ok(())
    }

    fn flush(&mut self, work: &mut Vec<Work<'a>>) -> Result<()> {
        self.by_version.clear();
        self.last = None;
        for slot in std::mem::take(&mut self.slots) {
            match slot.net {
                Some(compactor) => work.push(Work::Net(slot.table, compactor.finish())),
                None => in_order(self.changes, slot.indexes.into_iter(), self.tables, false, work)?,
            }
        }
        Ok(())
    }
}
