//! The statements that make a table on a replica: now, and when the copy has caught up.
//!
//! What finds a row (the primary key, or the index of the replica identity) is there from the start. Until the replay has
//! passed the last chunk's snapshot the rows of different chunks come from different moments, so every other unique key and every foreign key may
//! be broken: they are built after that, together with the indexes that only cost time before.

use super::definition::{ColumnDefinition, SequenceDefinition, TableDefinition};
use crate::event::TableName;
use crate::postgres::sql::{quote_ident, quote_table};

/// What a deferred statement makes. The order is the order of building.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeferredKind {
    /// The primary key of a table that is loaded in many chunks: taken off by the copy itself, built when they are loaded.
    Key,
    /// A secondary index.
    Index,
    /// A unique key other than the one that finds rows.
    Unique,
    /// An exclusion constraint.
    Other,
    /// A foreign key.
    ForeignKey,
    /// A foreign key that was made without reading its table is checked.
    Validate,
}

impl DeferredKind {
    /// As the ledger writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Index => "index",
            Self::Unique => "unique",
            Self::Other => "other",
            Self::ForeignKey => "foreign_key",
            Self::Validate => "validate",
        }
    }

    /// The other way. What an older version wrote differently is built with the rest.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let all = [Self::Key, Self::Index, Self::Unique, Self::Other, Self::ForeignKey, Self::Validate];
        all.into_iter().find(|kind| kind.as_str() == text).unwrap_or(Self::Other)
    }
}

/// A statement for later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deferred {
    /// What it makes.
    pub kind: DeferredKind,
    /// On which table.
    pub table: TableName,
    /// The statement.
    pub statement: String,
}

/// CREATE SEQUENCE for the sequences behind a table's defaults. Those of identity columns come with the column.
#[must_use]
pub fn create_sequences(table: &TableDefinition) -> Vec<String> {
    let own = table.sequences.iter().filter(|s| s.dependency != 'i');
    own.map(|s| format!("CREATE SEQUENCE IF NOT EXISTS {} AS {}{}", quote_table(&s.name), s.type_text, s.options)).collect()
}

/// ALTER SEQUENCE … OWNED BY, once the table stands.
#[must_use]
pub fn own_sequences(table: &TableDefinition) -> Vec<String> {
    let owned = table.sequences.iter().filter(|s| s.dependency == 'a');
    owned
        .map(|s| {
            format!("ALTER SEQUENCE {} OWNED BY {}.{}", quote_table(&s.name), quote_table(&table.table), quote_ident(&s.column))
        })
        .collect()
}

/// CREATE TABLE with what must be there from the start.
#[must_use]
pub fn create_table(table: &TableDefinition) -> Vec<String> {
    let mut parts: Vec<String> = table.columns.iter().map(|c| column(table, c)).collect();
    let now = table.constraints.iter().filter(|k| k.kind == 'c' || (k.finds_rows && matches!(k.kind, 'p' | 'u')));
    parts.extend(
        now.filter(|k| !k.text.ends_with(" NOT VALID")).map(|k| format!("CONSTRAINT {} {}", quote_ident(&k.name), k.text)),
    );
    let partitioned = table.partition_key.as_ref().map(|key| format!(" PARTITION BY {key}")).unwrap_or_default();
    let body = parts.iter().map(|p| format!("\n    {p}")).collect::<Vec<_>>().join(",");
    let mut statements = vec![format!("CREATE TABLE {} ({body}\n){partitioned}", quote_table(&table.table))];
    statements.extend(table.indexes.iter().filter(|i| i.finds_rows).map(|i| i.text.clone()));
    statements
}

/// Ties a new table to its parents, once all stand.
#[must_use]
pub fn attach(table: &TableDefinition, known: impl Fn(&TableName) -> bool) -> Vec<String> {
    let name = quote_table(&table.table);
    let partition = table
        .partition_of
        .iter()
        .map(|(parent, bound)| format!("ALTER TABLE ONLY {} ATTACH PARTITION {name} {bound}", quote_table(parent)));
    let inherited = table.inherits.iter().filter(|p| known(p)).map(|p| format!("ALTER TABLE {name} INHERIT {}", quote_table(p)));
    partition.chain(inherited).collect()
}

/// What is built when the copy has caught up. Foreign keys to tables that the replica will not have are given in the second list.
#[must_use]
pub fn deferred(table: &TableDefinition, known: impl Fn(&TableName) -> bool) -> (Vec<Deferred>, Vec<String>) {
    let name = quote_table(&table.table);
    let later = |kind, statement| Deferred { kind, table: table.table.clone(), statement };
    let mut list = Vec::new();
    let mut left_out = Vec::new();
    for index in table.indexes.iter().filter(|i| !i.from_parent && !i.finds_rows) {
        let kind = if index.unique { DeferredKind::Unique } else { DeferredKind::Index };
        list.push(later(kind, index.text.clone()));
    }
    for key in table.constraints.iter().filter(|k| !k.from_parent && !k.finds_rows) {
        let kind = match key.kind {
            'p' | 'u' => DeferredKind::Unique,
            'x' => DeferredKind::Other,
            'f' => DeferredKind::ForeignKey,
            _ if key.text.ends_with(" NOT VALID") => DeferredKind::Other,
            _ => continue,
        };
        match &key.refers_to {
            Some(other) if !known(other) => {
                left_out.push(format!("foreign key {} of {}: the replica does not have {other}", key.name, table.table));
            }
            _ => list.push(later(kind, format!("ALTER TABLE {name} ADD CONSTRAINT {} {}", quote_ident(&key.name), key.text))),
        }
    }
    (list, left_out)
}

/// Takes off, and gives for later, what of an existing table may be broken while it is copied. Foreign keys are the first list, because
/// unique keys of other tables may stand behind them.
#[must_use]
pub fn take_off(existing: &TableDefinition) -> ([Vec<String>; 2], Vec<Deferred>) {
    let (later, _) = deferred(existing, |_| true);
    let name = quote_table(&existing.table);
    let mut drops = [Vec::new(), Vec::new()];
    let broken = |kind: char| matches!(kind, 'p' | 'u' | 'x' | 'f');
    for key in existing.constraints.iter().filter(|k| !k.from_parent && !k.finds_rows && broken(k.kind)) {
        drops[usize::from(key.kind != 'f')].push(format!("ALTER TABLE {name} DROP CONSTRAINT {}", quote_ident(&key.name)));
    }
    for index in existing.indexes.iter().filter(|i| !i.from_parent && !i.finds_rows && i.unique) {
        drops[1].push(format!("DROP INDEX {}.{}", quote_ident(&existing.table.schema), quote_ident(&index.name)));
    }
    // Plain indexes and checks stay as they are.
    let check = |d: &Deferred| d.kind == DeferredKind::Other && d.statement.ends_with(" NOT VALID");
    let kept = |d: &Deferred| d.kind != DeferredKind::Index && !check(d);
    (drops, later.into_iter().filter(kept).collect())
}

fn column(table: &TableDefinition, column: &ColumnDefinition) -> String {
    let mut text = format!("{} {}", quote_ident(&column.name), column.type_text);
    if let Some(collation) = &column.collation {
        text += &format!(" COLLATE {collation}");
    }
    match (&column.expression, column.generated, column.identity) {
        (Some(expression), Some(how), _) => {
            text += &format!(" GENERATED ALWAYS AS ({expression}) {}", if how == 'v' { "VIRTUAL" } else { "STORED" });
        }
        // From 17 on a partition has its parent's identity as soon as it is attached.
        (_, _, Some(how)) if table.partition_of.is_none() => {
            let when = if how == 'a' { "ALWAYS" } else { "BY DEFAULT" };
            let sequence = table.sequences.iter().find(|s| s.dependency == 'i' && s.column == column.name);
            text += &format!(" GENERATED {when} AS IDENTITY{}", sequence.map(identity_options).unwrap_or_default());
        }
        (Some(default), None, None) => text += &format!(" DEFAULT {default}"),
        _ => {}
    }
    if column.not_null {
        text += " NOT NULL";
    }
    text
}

fn identity_options(sequence: &SequenceDefinition) -> String {
    format!(" (SEQUENCE NAME {}{})", quote_table(&sequence.name), sequence.options)
}
