//! A table's version in the log, set against what the replica's catalog says of the table.

use std::sync::Arc;

use super::catalog::{Catalog, CatalogIndex, equals, mismatch};
use super::modifier::{keeps, spelled};
use crate::apply::compact::Shape;
use crate::apply::runs::RunRules;
use crate::error::Result;
use crate::event::{Column, Identity, TableName, TableSchema};
use crate::postgres::sql::{quote_ident, quote_table};

/// A column of the log's version, with what statements need of it.
#[derive(Clone, Debug)]
pub struct TableColumn {
    /// Quoted name.
    pub name: String,
    /// The type for a cast.
    pub cast: String,
    /// Its values are written; false for columns that the replica computes.
    pub written: bool,
    /// GENERATED ALWAYS AS IDENTITY.
    pub identity_always: bool,
    /// Compared by value; otherwise by text.
    pub exact: bool,
}

/// One version of a table, fitted to the replica.
#[derive(Clone, Debug)]
pub struct Table {
    /// The version.
    pub schema: Arc<TableSchema>,
    /// What the replica calls it.
    pub place: TableName,
    /// See [`Catalog`].
    pub relation: i64,
    /// See [`Catalog`].
    pub definition: i64,
    /// Quoted, qualified name.
    pub name: String,
    /// Its columns, in the order of the rows' cells.
    pub columns: Vec<TableColumn>,
    /// Columns that find a row: the key, or all of them.
    pub rules: RunRules,
    /// Equality operator of each key column.
    pub operators: Vec<String>,
    /// For compaction.
    pub shape: Shape,
    /// Constraints that `session_replication_role = replica` would switch off.
    pub deferrable: bool,
    /// More than the key is unique.
    pub second_unique: bool,
    /// Changes must go in order even under the replica role.
    pub ordered: bool,
    /// See [`Catalog`].
    pub cascades: bool,
    /// See [`Catalog`].
    pub entangled: bool,
    /// See [`Catalog`].
    pub row_security: bool,
    /// See [`Catalog`].
    pub partitioned: bool,
    /// Quoted names of the replica's own columns, which the log does not know.
    pub extra: Vec<String>,
    /// Names of unique indexes over the key.
    pub key_indexes: Vec<String>,
}

impl Table {
    /// Sets a version of the log against the replica's table.
    ///
    /// # Errors
    /// A halt with `schema_mismatch` that says what to change on the replica.
    pub fn fit(schema: &Arc<TableSchema>, place: &TableName, catalog: &Catalog) -> Result<Self> {
        let columns =
            schema.columns.iter().map(|column| fit_column(schema, place, column, catalog)).collect::<Result<Vec<_>>>()?;
        let known = |name: &str| schema.columns.iter().any(|column| column.name == name);
        let extra: Vec<_> = catalog.columns.iter().filter(|column| !column.generated && !known(&column.name)).collect();
        if let Some(column) = extra.iter().find(|column| column.required) {
            return Err(mismatch(format!(
                "column {} of table {} is not in the source's table, is NOT NULL on the replica and has no default; run \
                 ALTER TABLE {} ALTER COLUMN {} DROP NOT NULL there, or give it a default",
                column.name,
                schema.table,
                quote_table(place),
                quote_ident(&column.name)
            )));
        }
        let key = schema.key_columns();
        let names: Vec<&str> = key.iter().map(|&index| schema.columns[index].name.as_str()).collect();
        let is_key = |index: &&CatalogIndex| index.columns.len() == names.len() && covers(index, &names);
        let key_index = catalog.indexes.iter().find(|index| is_key(index) && index.whole && !index.exclusion);
        let operators = names.iter().map(|name| key_index.map_or_else(equals, |index| operator(index, name))).collect();
        let second_unique = catalog.indexes.iter().any(|index| index.exclusion || key.is_empty() || !covers(index, &names));
        // Rows may share a deferrable key for a moment (a swap), so it does not tell them apart. A table with such a primary key
        // has REPLICA IDENTITY FULL, since PostgreSQL takes no deferrable index for an identity; its rows are matched whole.
        let shared = schema.identity == Identity::Full && key_index.is_some_and(|index| !index.immediate);
        let keyed = !key.is_empty() && !shared;
        let finders = if keyed { key.clone() } else { (0..columns.len()).collect() };
        Ok(Self {
            name: quote_table(place),
            place: place.clone(),
            relation: catalog.relation,
            definition: catalog.definition,
            operators,
            shape: Shape { columns: columns.len(), key, extra: !extra.is_empty() },
            rules: RunRules { finders, keyed, single_updates: second_unique },
            deferrable: catalog.indexes.iter().any(|index| !index.immediate),
            ordered: !keyed || catalog.replica_triggers,
            second_unique,
            cascades: catalog.cascades,
            entangled: catalog.entangled,
            extra: extra.iter().map(|column| quote_ident(&column.name)).collect(),
            row_security: catalog.row_security,
            partitioned: catalog.partitioned,
            key_indexes: catalog.indexes.iter().filter(is_key).map(|index| index.name.clone()).collect(),
            columns,
            schema: Arc::clone(schema),
        })
    }

    /// The table without those that inherit from it: their rows are the source's other tables, or the replica's own.
    #[must_use]
    pub fn alone(&self) -> String {
        if self.partitioned { self.name.clone() } else { format!("ONLY {}", self.name) }
    }
}

/// Rows with different keys cannot collide in this index.
fn covers(index: &CatalogIndex, key: &[&str]) -> bool {
    key.iter().all(|name| index.columns.iter().any(|column| column == name))
}

fn operator(index: &CatalogIndex, name: &str) -> String {
    let at = index.columns.iter().position(|column| column == name);
    at.and_then(|at| index.operators.get(at).cloned()).unwrap_or_else(equals)
}

fn fit_column(schema: &TableSchema, place: &TableName, column: &Column, catalog: &Catalog) -> Result<TableColumn> {
    let (table, name) = (quote_table(place), quote_ident(&column.name));
    let wanted = spelled(&column.type_name, column.type_modifier);
    let found = catalog.columns.iter().find(|candidate| candidate.name == column.name).ok_or_else(|| {
        let (on, of) = (&column.name, &schema.table);
        let add = format!(
            "its DEFAULT included, which fills the rows that are there already: ALTER TABLE {table} ADD COLUMN {name} {wanted} … (where that \
             default is not a constant, as of serial and identity columns, copy the table again: `millstream check` says how)"
        );
        // A relation message tells no rename from a drop and an add.
        let only_here = catalog.columns.iter().filter(|there| schema.columns.iter().all(|ours| ours.name != there.name));
        let alike = only_here.filter(|there| there.type_name == column.type_name || there.declared_type == column.type_name);
        let candidates: Vec<String> = alike
            .map(|there| {
                let there = quote_ident(&there.name);
                format!("if {there} was renamed on the source: ALTER TABLE {table} RENAME COLUMN {there} TO {name}")
            })
            .collect();
        mismatch(if candidates.is_empty() {
            format!("column {on} of table {of} is not on the replica; run there what was run on the source, {add}")
        } else {
            let candidates = candidates.join("; ");
            format!("column {on} of table {of} is not on the replica; {candidates}; only if it is a new column: run there what was run on the source, {add}")
        })
    })?;
    let is = |type_name: &str| type_name == column.type_name;
    if (!is(&found.type_name) && !is(&found.declared_type)) || !keeps(&column.type_name, column.type_modifier, found.modifier) {
        return Err(mismatch(format!(
            "column {} of table {} is {} on the replica and {wanted} on the source; run there what was run on the source: \
             ALTER TABLE {table} ALTER COLUMN {name} TYPE {wanted} (where that had a USING that is not repeatable, copy the table again)",
            column.name,
            schema.table,
            spelled(&found.type_name, found.modifier),
        )));
    }
    Ok(TableColumn {
        name,
        cast: found.cast.clone(),
        written: !found.generated,
        identity_always: found.identity_always,
        exact: found.exact,
    })
}
