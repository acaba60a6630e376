//! What a source says of its schema changes ([`crate::event::Change::Schema`]), and what a replica is to do about them. Pure.
//!
//! Columns are told apart by `pg_attribute.attnum`, which outlives a rename: a rename is never taken for a drop and an add. The
//! source says one row for each of its statements, but a difference of any size is worked off: drops, then renames (through a name
//! of our own where two columns swap theirs), then changes, then additions.

use serde::Deserialize;

use crate::error::{Error, ErrorKind, Result};
use crate::event::TableName;

/// A schema change as the log has it.
#[derive(Clone, Debug, Deserialize)]
pub struct SchemaChange {
    /// What it is about.
    pub kind: Kind,
    /// The statement's command tag.
    pub tag: String,
    before: Option<serde_json::Value>,
    after: Option<serde_json::Value>,
    /// Why it is a barrier.
    pub note: Option<String>,
}

/// Kinds of schema changes (`migrations/source_postgres`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// `before` and `after` differ; without `before` a table that is new and empty.
    Table,
    /// A table that came with rows which the log does not have.
    Filled,
    /// The table is gone.
    Dropped,
    /// Rows changed that the log does not have.
    Rewritten,
    /// The labels of an enum.
    Enum,
    /// The trigger could not say what happened.
    Unknown,
}

/// A table as its source's catalog has it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Facts {
    /// `pg_class.oid` on the source.
    #[serde(default)]
    pub oid: Option<u32>,
    /// Schema.
    pub schema: String,
    /// Name.
    pub name: String,
    /// In order.
    pub columns: Vec<ColumnFacts>,
    /// Primary key.
    #[serde(default)]
    pub key: Option<KeyFacts>,
    /// Publications of Millstream's that it is in.
    #[serde(default)]
    pub published: Vec<String>,
    /// Of a partition: what it is a partition of.
    #[serde(default)]
    pub parent: Option<ParentFacts>,
}

/// A column.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ColumnFacts {
    /// `attnum`
    pub num: i32,
    /// Name.
    pub name: String,
    /// As `format_type` prints it.
    pub declared: String,
    /// Quoted, when it is not the type's own.
    #[serde(default)]
    pub collation: Option<String>,
    /// The enum that it is of, or that its elements are of.
    #[serde(default, rename = "enum")]
    pub labels: Option<EnumFacts>,
    /// NOT NULL.
    pub not_null: bool,
    /// `a`, `d` or empty.
    #[serde(default)]
    pub identity: String,
    /// `s`, `v` or empty.
    #[serde(default)]
    pub generated: String,
    /// Default, or the expression of a generated column.
    #[serde(default)]
    pub default: Option<String>,
    /// What rows older than the column show, as an array of one.
    #[serde(default)]
    pub missing: Option<String>,
}

/// A primary key.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct KeyFacts {
    /// Its constraint's name.
    pub name: String,
    /// Its columns.
    pub columns: Vec<String>,
    /// DEFERRABLE.
    #[serde(default)]
    pub deferrable: bool,
}

/// A partition's place.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ParentFacts {
    /// Its parent's `pg_class.oid`: at the source.
    #[serde(default)]
    pub oid: Option<u32>,
    /// Its parent's schema.
    pub schema: String,
    /// Its parent's name.
    pub name: String,
    /// FOR VALUES …
    pub bound: String,
    /// What the parent is partitioned by, as `pg_get_partkeydef` prints it.
    #[serde(default)]
    pub partition_by: Option<String>,
    /// The parent is a partition itself.
    #[serde(default)]
    pub leaf: bool,
}

impl ParentFacts {
    /// The parent's name.
    #[must_use]
    pub fn table(&self) -> TableName {
        TableName::new(&self.schema, &self.name)
    }
}

/// An enum's labels in order.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct EnumFacts {
    /// Schema.
    pub schema: String,
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: Vec<String>,
}

/// One thing to do to a table, under the names that it has once everything before is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// ALTER TABLE … SET SCHEMA, then RENAME TO.
    Rename(TableName),
    /// DROP COLUMN.
    DropColumn(String),
    /// RENAME COLUMN.
    RenameColumn(String, String),
    /// ALTER COLUMN … TYPE, to the type and collation of this column.
    Retype(ColumnFacts),
    /// ALTER COLUMN … DROP EXPRESSION.
    DropExpression(String),
    /// ALTER COLUMN … SET or DROP DEFAULT.
    Default(String, Option<String>),
    /// ALTER COLUMN … SET or DROP NOT NULL.
    NotNull(String, bool),
    /// ALTER COLUMN … ADD GENERATED … AS IDENTITY, or DROP IDENTITY.
    Identity(String, String),
    /// ADD COLUMN.
    AddColumn(ColumnFacts),
    /// DROP CONSTRAINT of a primary key.
    DropKey(String),
    /// ADD PRIMARY KEY.
    AddKey(KeyFacts),
    /// The partitioned table above it has another name.
    RenameParent(TableName, TableName),
    /// DETACH PARTITION from this parent.
    Detach(ParentFacts),
    /// ATTACH PARTITION to this parent.
    Attach(ParentFacts),
}

impl SchemaChange {
    /// Reads the log's JSON.
    ///
    /// # Errors
    /// [`ErrorKind::TooNew`] for a kind that this version does not know, [`ErrorKind::Malformed`] for what is no schema change.
    pub fn parse(content: &[u8]) -> Result<Self> {
        let value: serde_json::Value = serde_json::from_slice(content).map_err(malformed)?;
        let kind = value.get("kind").cloned().unwrap_or_default();
        if kind.is_string() && serde_json::from_value::<Kind>(kind.clone()).is_err() {
            return Err(Error::new(ErrorKind::TooNew, format!("a schema change of kind {kind}")));
        }
        serde_json::from_value(value).map_err(malformed)
    }

    /// The table before.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`].
    pub fn before(&self) -> Result<Option<Facts>> {
        self.before.clone().map(serde_json::from_value).transpose().map_err(malformed)
    }

    /// The table after.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`].
    pub fn after(&self) -> Result<Option<Facts>> {
        self.after.clone().map(serde_json::from_value).transpose().map_err(malformed)
    }

    /// The enum.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`].
    pub fn labels(&self) -> Result<EnumFacts> {
        serde_json::from_value(self.after.clone().unwrap_or_default()).map_err(malformed)
    }
}

fn malformed(error: serde_json::Error) -> Error {
    // Not the error's text: it may quote what it read.
    Error::new(ErrorKind::Malformed, format!("a schema change that is not as the log writes it, at byte {}", error.column()))
}

impl Facts {
    /// Its name.
    #[must_use]
    pub fn table(&self) -> TableName {
        TableName::new(&self.schema, &self.name)
    }

    fn number(&self, name: &str) -> Option<i32> {
        self.columns.iter().find(|column| column.name == name).map(|column| column.num)
    }

    fn key_numbers(&self) -> Option<(Vec<Option<i32>>, bool)> {
        self.key.as_ref().map(|key| (key.columns.iter().map(|name| self.number(name)).collect(), key.deferrable))
    }
}

/// What makes `after` of `before`.
#[must_use]
pub fn diff(before: &Facts, after: &Facts) -> Vec<Action> {
    let mut actions = Vec::new();
    let place = |facts: &Facts| facts.parent.as_ref().map(|parent| (parent.oid, parent.bound.clone()));
    let moved = place(before) != place(after);
    if let (false, Some(old), Some(new)) = (moved, &before.parent, &after.parent)
        && old.table() != new.table()
    {
        actions.push(Action::RenameParent(old.table(), new.table()));
    }
    actions.extend(before.parent.clone().filter(|_| moved).map(Action::Detach));
    if before.table() != after.table() {
        actions.push(Action::Rename(after.table()));
    }
    let key_differs = before.key_numbers() != after.key_numbers();
    if let Some(key) = before.key.as_ref().filter(|_| key_differs) {
        actions.push(Action::DropKey(key.name.clone()));
    }
    let kept = |num: i32| after.columns.iter().find(|column| column.num == num);
    for old in before.columns.iter().filter(|old| kept(old.num).is_none()) {
        actions.push(Action::DropColumn(old.name.clone()));
    }
    let pairs: Vec<_> = before.columns.iter().filter_map(|old| kept(old.num).map(|new| (old, new))).collect();
    rename_columns(&pairs, &mut actions);
    for (old, new) in &pairs {
        change_column(old, new, &mut actions);
    }
    for new in after.columns.iter().filter(|new| before.columns.iter().all(|old| old.num != new.num)) {
        actions.push(Action::AddColumn(new.clone()));
    }
    if let Some(key) = after.key.as_ref().filter(|_| key_differs) {
        actions.push(Action::AddKey(key.clone()));
    }
    actions.extend(after.parent.clone().filter(|_| moved).map(Action::Attach));
    actions
}

fn rename_columns(pairs: &[(&ColumnFacts, &ColumnFacts)], actions: &mut Vec<Action>) {
    let mut moving: Vec<(String, &str)> =
        pairs.iter().filter(|(old, new)| old.name != new.name).map(|(old, new)| (old.name.clone(), new.name.as_str())).collect();
    while !moving.is_empty() {
        let free = moving.iter().position(|(_, to)| moving.iter().all(|(from, _)| from != to));
        if let Some(index) = free {
            let (from, to) = moving.swap_remove(index);
            actions.push(Action::RenameColumn(from, to.to_owned()));
        } else {
            // Only circles are left: the first one steps aside.
            let aside = format!("millstream_aside_{}", actions.len());
            let from = std::mem::replace(&mut moving[0].0, aside.clone());
            actions.push(Action::RenameColumn(from, aside));
        }
    }
}

fn change_column(old: &ColumnFacts, new: &ColumnFacts, actions: &mut Vec<Action>) {
    let name = || new.name.clone();
    let plain = new.generated.is_empty();
    if !old.generated.is_empty() && plain {
        actions.push(Action::DropExpression(name()));
    }
    let retyped = (&old.declared, &old.collation) != (&new.declared, &new.collation);
    if retyped {
        actions.push(Action::Retype(new.clone()));
    }
    if !old.identity.is_empty() && new.identity.is_empty() {
        actions.push(Action::Identity(name(), String::new()));
    }
    let had = old.default.as_ref().filter(|_| old.generated.is_empty());
    if plain && had != new.default.as_ref() {
        actions.push(Action::Default(name(), new.default.clone()));
    }
    // An identity column must be NOT NULL before it is one, and as long as it is.
    if old.not_null != new.not_null {
        actions.push(Action::NotNull(name(), new.not_null));
    }
    if old.identity != new.identity && !new.identity.is_empty() {
        actions.push(Action::Identity(name(), new.identity.clone()));
    }
}

/// How an enum's labels come to be those of the source. `None` when the replica has labels that the source has not, and it is not clear
/// which of them is now called what.
#[must_use]
pub fn label_changes(there: &[String], wanted: &[String]) -> Option<Vec<LabelChange>> {
    let mut changes = Vec::new();
    let extra: Vec<usize> = (0..there.len()).filter(|&index| !wanted.contains(&there[index])).collect();
    match extra[..] {
        [] => {}
        [index] if there.len() == wanted.len() && !there.contains(&wanted[index]) => {
            return Some(vec![LabelChange::Rename(there[index].clone(), wanted[index].clone())]);
        }
        _ => return None,
    }
    for (index, label) in wanted.iter().enumerate().filter(|(_, label)| !there.contains(label)) {
        let after = index.checked_sub(1).map(|before| wanted[before].clone());
        changes.push(LabelChange::Add { label: label.clone(), after, before: there.first().cloned() });
    }
    Some(changes)
}

/// One thing to do to an enum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LabelChange {
    /// RENAME VALUE.
    Rename(String, String),
    /// ADD VALUE.
    Add {
        /// The label.
        label: String,
        /// The label that it comes after; `None` for the first.
        after: Option<String>,
        /// The label that the first comes before.
        before: Option<String>,
    },
}

#[cfg(test)]
#[path = "ddl_tests.rs"]
mod tests;
