//! How tables that hold rows are emptied: one TRUNCATE of them all, since PostgreSQL refuses to truncate a table that another one refers to alone, with or without
//! rows in it. Never CASCADE: that would reach tables that are named nowhere.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{PgConnection, Row as _};

use crate::event::TableName;
use crate::postgres::sql::{quote_ident, quote_table};

/// What empties some tables.
pub struct Emptying {
    /// Statements, in order, without semicolons.
    pub steps: Vec<String>,
    /// Tables without rows that are named as well, because they refer to those with rows.
    pub along: Vec<TableName>,
    /// Tables that are not ours to empty and refer to them: their foreign keys must go first.
    pub strangers: Vec<TableName>,
}

/// A foreign key.
struct Reference {
    name: String,
    from: TableName,
    to: TableName,
    /// What a TRUNCATE of the referring table would reach: itself, or its leaves.
    reaches: BTreeSet<TableName>,
}

/// Plans it. `ours` are the tables that may be named.
///
/// # Errors
/// The server's.
pub async fn plan(replica: &mut PgConnection, tables: &[TableName], ours: &BTreeSet<TableName>) -> sqlx::Result<Emptying> {
    let references = references(replica).await?;
    let mut named: Vec<TableName> = tables.to_vec();
    let mut strangers = BTreeMap::new();
    let mut next = 0;
    while let Some(to) = named.get(next).cloned() {
        next += 1;
        for key in references.iter().filter(|key| key.to == to) {
            if named.contains(&key.from) {
                continue;
            }
            if key.reaches.iter().all(|table| ours.contains(table)) {
                named.push(key.from.clone());
            } else {
                let drop = format!("ALTER TABLE {} DROP CONSTRAINT {}", quote_table(&key.from), quote_ident(&key.name));
                strangers.insert((key.from.clone(), key.name.clone()), drop);
            }
        }
    }
    let along = named.split_off(tables.len());
    let list = tables.iter().chain(&along).map(quote_table).collect::<Vec<_>>().join(", ");
    let who: BTreeSet<TableName> = strangers.keys().map(|(table, _)| table.clone()).collect();
    let steps = strangers.into_values().chain([format!("TRUNCATE {list}")]).collect();
    Ok(Emptying { steps, along, strangers: who.into_iter().collect() })
}

/// Foreign keys between different tables.
async fn references(replica: &mut PgConnection) -> sqlx::Result<Vec<Reference>> {
    let rows = sqlx::query(
        "SELECT f.conname::text, fn.nspname::text, fc.relname::text, tn.nspname::text, tc.relname::text, \
                ARRAY(SELECT ln.nspname::text FROM pg_catalog.pg_partition_tree(f.conrelid) p JOIN pg_catalog.pg_class l ON l.oid = p.relid \
                      JOIN pg_catalog.pg_namespace ln ON ln.oid = l.relnamespace WHERE p.isleaf ORDER BY l.oid), \
                ARRAY(SELECT l.relname::text FROM pg_catalog.pg_partition_tree(f.conrelid) p JOIN pg_catalog.pg_class l ON l.oid = p.relid \
                      WHERE p.isleaf ORDER BY l.oid) \
         FROM pg_catalog.pg_constraint f \
         JOIN pg_catalog.pg_class fc ON fc.oid = f.conrelid JOIN pg_catalog.pg_namespace fn ON fn.oid = fc.relnamespace \
         JOIN pg_catalog.pg_class tc ON tc.oid = f.confrelid JOIN pg_catalog.pg_namespace tn ON tn.oid = tc.relnamespace \
         WHERE f.contype = 'f' AND f.conrelid <> f.confrelid ORDER BY 2, 3, 1",
    )
    .fetch_all(replica)
    .await?;
    let reference = |row: &sqlx::postgres::PgRow| {
        let from = TableName::new(row.get::<String, _>(1), row.get::<String, _>(2));
        let (schemas, names): (Vec<String>, Vec<String>) = (row.get(5), row.get(6));
        let mut reaches: BTreeSet<TableName> = schemas.into_iter().zip(names).map(|(s, n)| TableName::new(s, n)).collect();
        if reaches.is_empty() {
            reaches.insert(from.clone());
        }
        let to = TableName::new(row.get::<String, _>(3), row.get::<String, _>(4));
        Reference { name: row.get(0), from, to, reaches }
    };
    Ok(rows.iter().map(reference).collect())
}
