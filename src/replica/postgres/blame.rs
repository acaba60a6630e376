//! Says which change could not be applied: table, key, transaction, position. Never other values.

use std::fmt::Write as _;

use super::plan::{Tables, Work, table};
use crate::apply::merge::Mark;
use crate::apply::runs::{Ordered, RunKind};
use crate::error::Error;
use crate::event::{Cell, TransactionHeader};

/// Longest key value shown.
const SHOWN: usize = 100;

/// Adds the change to an error.
#[must_use]
pub fn at_change(error: Error, work: &Work<'_>, tables: &Tables) -> Error {
    let Work::Ordered(Ordered::Run(run)) = work else { return error };
    let what = match run.kind {
        RunKind::Insert => "insert",
        RunKind::Update { .. } => "update",
        RunKind::Delete => "delete",
    };
    let mut text = format!("change {}, {what}", run.first + 1);
    if let Ok(table) = table(tables, run.table)
        && table.rules.keyed
        && run.rows.len() == 1
    {
        let names: Vec<_> = table.shape.key.iter().map(|&index| table.schema.columns[index].name.as_str()).collect();
        let values: Vec<_> = run.rows.finders(0).iter().map(|cell| shown(*cell)).collect();
        let _infallible = write!(text, ", key ({})=({})", names.join(", "), values.join(", "));
    }
    error.context(text)
}

pub(super) fn shown(cell: Cell<'_>) -> String {
    match cell {
        Cell::Null => "NULL".into(),
        Cell::Unchanged => "unchanged".into(),
        Cell::Value(value) => {
            let text = String::from_utf8_lossy(value);
            let cut: String = text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
            if text.chars().count() > SHOWN { format!("{cut}…") } else { cut }
        }
    }
}

/// Adds the transaction to an error.
#[must_use]
pub fn at_transaction(error: Error, header: &TransactionHeader) -> Error {
    error.context(format!("source transaction {} at {}", header.xid, header.position))
}

/// Adds the transactions of a range.
#[must_use]
pub fn at_marks(error: Error, marks: &[Mark]) -> Error {
    match marks {
        [only] => at_transaction(error, &only.header),
        [first, .., last] => error.context(format!("source transactions {} to {}", first.header.position, last.header.position)),
        [] => error,
    }
}
