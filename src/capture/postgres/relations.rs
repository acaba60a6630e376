//! Tables as the stream describes them: pgoutput's Relation and Type messages become [`TableSchema`] versions in the log.
//!
//! Invariant: a change is encoded under the version whose Relation message came before it in the same order (I5). A Relation that
//! says the same as the version in force makes no new one, so reconnecting adds nothing to the log.

use std::collections::HashMap;

use bytes::Bytes;

use super::catalog::{Catalog, CatalogTable};
use super::decode::{ColumnDefinition, PgOutput, Relation, decode};
use super::schema_change::SchemaChangeColumns;
use crate::capture::append::LogWriter;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Column, Identity, SchemaId, TableName, TableSchema};

/// Schema of our own tables on the source; their rows are for us and not for replicas.
pub const OUR_SCHEMA: &str = "millstream";

/// How the changes of a table are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Under this version, with this many cells.
    Table(SchemaId, usize),
    /// Not at all: the table is ours.
    Ours,
    /// What the source says of its schema: an insert is a change of its own kind, everything else nothing.
    SchemaChange(SchemaChangeColumns),
}

/// The tables known on this connection. Cloned before a pass over messages that will be read twice.
#[derive(Clone, Debug, Default)]
pub struct Relations {
    types: HashMap<u32, String>,
    targets: HashMap<u32, Target>,
    /// Relation messages of which no change has been encoded yet, and whether they came in a streamed block.
    pending: HashMap<u32, (Bytes, bool)>,
}

impl Relations {
    /// A Type message.
    pub fn note_type(&mut self, oid: u32, namespace: &str, name: &str) {
        self.types.insert(oid, format!("{namespace}.{name}"));
    }

    /// A Relation message. It is looked at when the first change needs it: one whose changes are in the log already, because the
    /// source sends them again, must not bring an older version back into force.
    pub fn note_relation(&mut self, oid: u32, message: &[u8], in_block: bool) {
        self.targets.remove(&oid);
        self.pending.insert(oid, (Bytes::copy_from_slice(message), in_block));
    }

    /// How a table's changes are encoded; `None` when [`Self::resolve`] must find out.
    #[must_use]
    pub fn target(&self, oid: u32) -> Option<Target> {
        self.targets.get(&oid).copied()
    }

    /// Finds the version in force, or appends a new one to the log.
    ///
    /// # Errors
    /// Those of the catalog; [`ErrorKind::Malformed`] for a table or type that was not described.
    pub async fn resolve(&mut self, oid: u32, catalog: &mut Catalog, log: &mut LogWriter) -> Result<Target> {
        let (message, in_block) = self.pending.remove(&oid).ok_or_else(|| undescribed(oid))?;
        let PgOutput::Relation(relation) = decode(&message, in_block)? else { return Err(undescribed(oid)) };
        let target = if relation.namespace == OUR_SCHEMA {
            SchemaChangeColumns::of(&relation).map_or(Target::Ours, Target::SchemaChange)
        } else {
            let id = self.version(&relation, catalog, log).await?;
            Target::Table(id, relation.columns.count_columns())
        };
        self.targets.insert(oid, target);
        Ok(target)
    }

    /// Takes a target that an earlier pass over the same messages resolved.
    pub fn repeat(&mut self, oid: u32, target: Target) {
        self.pending.remove(&oid);
        self.targets.insert(oid, target);
    }

    async fn version(&self, relation: &Relation<'_>, catalog: &mut Catalog, log: &mut LogWriter) -> Result<SchemaId> {
        let mut schema = self.schema(relation, catalog)?;
        if let Some(table) = catalog.table(relation.oid).await? {
            mark_primary_key(&mut schema, &table);
        }
        match log.schema(relation.oid) {
            Some(known) if known.same_shape(&schema) => Ok(known.id),
            known => {
                let before = known.map(|schema| schema.id.0);
                let columns = schema.columns.len();
                tracing::info!(table = %schema.table, before, columns, "new version of a table");
                Ok(log.give_schema(schema))
            }
        }
    }

    fn schema(&self, relation: &Relation<'_>, catalog: &Catalog) -> Result<TableSchema> {
        let column = |column: ColumnDefinition<'_>| {
            let own = self.types.get(&column.type_oid).map(String::as_str);
            let type_name = own.or_else(|| catalog.built_in_type(column.type_oid)).ok_or_else(|| {
                let message = format!(
                    "pgoutput: column {} of {}.{} has type {}, which no Type message described",
                    column.name, relation.namespace, relation.name, column.type_oid
                );
                Error::new(ErrorKind::Malformed, message)
            })?;
            Ok(Column {
                name: column.name.to_owned(),
                type_name: type_name.to_owned(),
                type_oid: column.type_oid,
                type_modifier: column.type_modifier,
                identity: column.key || relation.identity == Identity::Full,
                primary_key: false,
            })
        };
        Ok(TableSchema {
            id: SchemaId(0),
            table: TableName::new(relation.namespace, relation.name),
            source_oid: relation.oid,
            identity: relation.identity,
            columns: relation.columns.map(column).collect::<Result<_>>()?,
        })
    }
}

fn undescribed(oid: u32) -> Error {
    Error::new(ErrorKind::Malformed, format!("pgoutput: a change of table {oid}, which no Relation message described"))
}

/// Takes the primary key over when the catalog's table has the same name and every published column with the same type, and all
/// of the key is published.
fn mark_primary_key(schema: &mut TableSchema, table: &CatalogTable) {
    let in_catalog = |name: &str| table.columns.iter().find(|c| c.name == name);
    let agrees = schema.table == table.table
        && schema.columns.iter().all(|c| in_catalog(&c.name).is_some_and(|found| found.type_oid == c.type_oid));
    let key_published =
        table.columns.iter().filter(|c| c.primary_key).all(|key| schema.columns.iter().any(|c| c.name == key.name));
    if agrees && key_published {
        for column in &mut schema.columns {
            column.primary_key = in_catalog(&column.name).is_some_and(|found| found.primary_key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::catalog::CatalogColumn;
    use super::*;

    fn schema(names: &[&str]) -> TableSchema {
        let column = |name: &&str| Column {
            name: (*name).to_owned(),
            type_name: "pg_catalog.int4".into(),
            type_oid: 23,
            type_modifier: -1,
            identity: true,
            primary_key: false,
        };
        let columns = names.iter().map(column).collect();
        TableSchema { id: SchemaId(1), table: TableName::new("public", "t"), source_oid: 7, identity: Identity::Full, columns }
    }

    fn table(columns: &[(&str, u32, bool)]) -> CatalogTable {
        let column = |(name, type_oid, primary_key): &(&str, u32, bool)| CatalogColumn {
            name: (*name).to_owned(),
            type_oid: *type_oid,
            primary_key: *primary_key,
        };
        CatalogTable { table: TableName::new("public", "t"), columns: columns.iter().map(column).collect() }
    }

    fn marked(names: &[&str], columns: &[(&str, u32, bool)]) -> Vec<bool> {
        let mut schema = schema(names);
        mark_primary_key(&mut schema, &table(columns));
        schema.columns.iter().map(|c| c.primary_key).collect()
    }

    #[test]
    fn the_catalogs_key_counts_only_where_it_agrees_with_the_stream() {
        assert_eq!(marked(&["a", "b"], &[("a", 23, true), ("b", 23, false)]), [true, false]);
        assert_eq!(marked(&["a", "b"], &[("a", 23, true), ("b", 23, false), ("generated", 25, false)]), [true, false]);
        assert_eq!(marked(&["a", "b"], &[("a", 20, true), ("b", 23, false)]), [false, false], "another type by now");
        assert_eq!(marked(&["a", "b"], &[("a", 23, true), ("c", 23, false)]), [false, false], "renamed by now");
        assert_eq!(marked(&["b"], &[("a", 23, true), ("b", 23, false)]), [false], "a part of the key is not published");
    }
}
