//! What the log says of a table: one [`TableSchema`] per version of each table, travelling before the first change that needs it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Names one version of one table within a stream. Given out by the stream's writer, never used twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SchemaId(pub u32);

/// A table's name as the source has it: unquoted, case kept.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TableName {
    /// Schema (PostgreSQL) or database (MySQL).
    pub schema: String,
    /// Table.
    pub name: String,
}

impl TableName {
    /// From its two parts.
    pub fn new(schema: impl Into<String>, name: impl Into<String>) -> Self {
        Self { schema: schema.into(), name: name.into() }
    }
}

impl fmt::Display for TableName {
    /// For people: `schema.name`, unquoted. Never for SQL.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

/// What a table's old images hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Identity {
    /// The primary key.
    Default,
    /// Nothing: updates and deletes do not come.
    Nothing,
    /// The whole row.
    Full,
    /// The columns of a unique index.
    Index,
}

/// One column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Unquoted name.
    pub name: String,
    /// Type, qualified: `pg_catalog.int4`, `public.mood`. Arrays as PostgreSQL names them (`pg_catalog._int4`).
    pub type_name: String,
    /// The source's own number of the type (PostgreSQL: `pg_type.oid`).
    pub type_oid: u32,
    /// Length, precision and scale as the source encodes them (PostgreSQL: `atttypmod`, -1 for none).
    pub type_modifier: i32,
    /// Part of the replica identity: present in every old image. With [`Identity::Full`] true for every column.
    pub identity: bool,
    /// Part of the primary key, when the source's catalog was read and agreed with the stream.
    pub primary_key: bool,
}

/// One version of one table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableSchema {
    /// The version's name within the stream.
    pub id: SchemaId,
    /// The table.
    pub table: TableName,
    /// The source's own number of the table (PostgreSQL: `pg_class.oid`).
    pub source_oid: u32,
    /// What old images hold.
    pub identity: Identity,
    /// Columns in the order of the rows' cells.
    pub columns: Vec<Column>,
}

impl TableSchema {
    /// True when rows of both versions mean the same: everything but the version's name is equal.
    #[must_use]
    pub fn same_shape(&self, other: &Self) -> bool {
        self.table == other.table
            && self.source_oid == other.source_oid
            && self.identity == other.identity
            && self.columns == other.columns
    }

    /// Indexes of the columns that find a row: the primary key where old images are whole and it is known, otherwise the
    /// replica identity. Empty for a table without a key, whose rows are matched whole.
    #[must_use]
    pub fn key_columns(&self) -> Vec<usize> {
        let primary = |c: &Column| c.primary_key;
        let identity = |c: &Column| c.identity;
        let pick = |f: &dyn Fn(&Column) -> bool| (0..self.columns.len()).filter(|&i| f(&self.columns[i])).collect::<Vec<_>>();
        match self.identity {
            Identity::Full => pick(&primary),
            Identity::Nothing => Vec::new(),
            Identity::Default | Identity::Index => pick(&identity),
        }
    }
}
