//! Which changes `millstream log tail` shows.

use crate::event::{Cell, Change, Row, TableSchema};
use crate::preflight::tables::TablePatterns;

/// The filters of one command line; all must let a change through.
#[derive(Debug)]
pub struct Filter {
    /// Tables; every one when `None`.
    pub patterns: Option<TablePatterns>,
    /// Keys; every row when empty.
    pub key: Vec<KeyTest>,
}

/// One column's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyTest {
    column: Option<String>,
    value: String,
}

impl KeyTest {
    /// `VALUE` or `COLUMN=VALUE`.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some(("", _)) => Err("a column's name stands before '='".to_owned()),
            Some((column, value)) => Ok(Self { column: Some(column.to_owned()), value: value.to_owned() }),
            None => Ok(Self { column: None, value: text.to_owned() }),
        }
    }

    /// A value without a column is the first column's of the key.
    fn matches(&self, schema: &TableSchema, row: &Row) -> bool {
        let index = match &self.column {
            Some(name) => schema.columns.iter().position(|column| column.name == *name),
            None => schema.key_columns().first().copied(),
        };
        let cell = index.and_then(|index| row.iter().nth(index));
        matches!(cell, Some(Cell::Value(value)) if value == self.value.as_bytes())
    }
}

impl Filter {
    /// Messages and schema changes belong to no table's rows and have no key.
    pub fn wants_messages(&self) -> bool {
        self.patterns.is_none() && self.key.is_empty()
    }

    /// True for a change to be shown. A TRUNCATE touches every key.
    pub fn wants(&self, schema: &TableSchema, change: &Change) -> bool {
        if self.patterns.as_ref().is_some_and(|patterns| !patterns.matches(&schema.table)) {
            return false;
        }
        let all = |row: &Row| self.key.iter().all(|test| test.matches(schema, row));
        match change {
            Change::Insert { new, .. } => all(new),
            Change::Update { old, new, .. } => all(new) || old.as_ref().is_some_and(|old| all(old.row())),
            Change::Delete { old, .. } => all(old.row()),
            Change::Truncate { .. } | Change::Message { .. } | Change::Schema { .. } => true,
        }
    }
}
