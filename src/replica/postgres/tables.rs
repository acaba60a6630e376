//! What the replica's catalog says of a table, set against the version that the log's changes were made under.

use std::sync::Arc;

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use super::errors::{SHORT_WAIT, within};
use crate::apply::compact::Shape;
use crate::apply::runs::RunRules;
use crate::error::{Error, Result};
use crate::event::{Column, Identity, TableName, TableSchema};
use crate::halt::HaltCode;
use crate::postgres::sql::{quote_ident, quote_table};

/// A column of the replica's table.
#[derive(Clone, Debug)]
pub struct CatalogColumn {
    /// Unquoted name.
    pub name: String,
    /// `schema.type`, as the log writes types.
    pub type_name: String,
    /// The type for a cast: quoted, without length, precision and scale, which assignment enforces.
    pub cast: String,
    /// Computed by the replica.
    pub generated: bool,
    /// GENERATED ALWAYS AS IDENTITY: inserted with OVERRIDING SYSTEM VALUE, never set.
    pub identity_always: bool,
    /// NOT NULL without a default.
    pub required: bool,
    /// Equal values have equal text, and `=` of `pg_catalog` says so.
    pub exact: bool,
}

/// A unique index or exclusion constraint of the replica's table.
#[derive(Clone, Debug)]
pub struct CatalogIndex {
    /// Unquoted name, also the constraint's.
    pub name: String,
    /// Its columns; empty for an index over expressions.
    pub columns: Vec<String>,
    /// The equality operator of each, qualified.
    pub operators: Vec<String>,
    /// False for a deferrable constraint.
    pub immediate: bool,
    /// Covers every row.
    pub whole: bool,
    /// An exclusion constraint.
    pub exclusion: bool,
}

/// The replica's table as its catalog has it.
#[derive(Clone, Debug)]
pub struct Catalog {
    /// Partitioned: TRUNCATE cannot say ONLY.
    pub partitioned: bool,
    /// COPY FROM is refused under row-level security.
    pub row_security: bool,
    /// Triggers fire under `session_replication_role = replica`.
    pub replica_triggers: bool,
    /// Foreign keys of this table delete or change its rows by themselves where they are enforced.
    pub cascades: bool,
    /// Foreign keys or triggers make the order of statements matter under the ordinary role.
    pub entangled: bool,
    /// Columns in order.
    pub columns: Vec<CatalogColumn>,
    /// Unique indexes and exclusion constraints.
    pub indexes: Vec<CatalogIndex>,
}

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

/// Reads the catalog.
///
/// # Errors
/// A halt with `schema_mismatch` when there is no such table.
pub async fn read(connection: &mut PgConnection, table: &TableName) -> Result<Catalog> {
    const RELATION: &str = "SELECT c.oid::bigint, c.relkind::text, pg_catalog.row_security_active(c.oid), \
        EXISTS (SELECT FROM pg_catalog.pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal AND t.tgenabled IN ('R', 'A')), \
        EXISTS (SELECT FROM pg_catalog.pg_constraint k WHERE k.conrelid = c.oid AND k.contype = 'f' \
                AND (k.confdeltype IN ('c', 'n', 'd') OR k.confupdtype IN ('c', 'n', 'd'))), \
        EXISTS (SELECT FROM pg_catalog.pg_constraint k WHERE (k.conrelid = c.oid OR k.confrelid = c.oid) AND k.contype = 'f') \
        OR EXISTS (SELECT FROM pg_catalog.pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal AND t.tgenabled <> 'D') \
        FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
        WHERE n.nspname = $1 AND c.relname = $2";
    let query = sqlx::query(RELATION).bind(&table.schema).bind(&table.name);
    let row = within(SHORT_WAIT, "reading the catalog", query.fetch_optional(&mut *connection)).await?;
    let Some(row) = row else {
        return Err(mismatch(format!("table {table} is not on the replica; create it there as the source has it")));
    };
    let (oid, kind): (i64, String) = (row.get(0), row.get(1));
    if kind != "r" && kind != "p" {
        return Err(mismatch(format!("{table} is not an ordinary table on the replica; put a table of that name in its place")));
    }
    let columns = read_columns(connection, oid).await?;
    let indexes = read_indexes(connection, oid).await?;
    Ok(Catalog {
        partitioned: kind == "p",
        row_security: row.get(2),
        replica_triggers: row.get(3),
        cascades: row.get(4),
        entangled: row.get(5),
        columns,
        indexes,
    })
}

async fn read_columns(connection: &mut PgConnection, oid: i64) -> Result<Vec<CatalogColumn>> {
    // Modifier -1 makes format_type give "bpchar" and "bit" quoted, the forms without a length.
    const COLUMNS: &str = "SELECT a.attname::text, n.nspname || '.' || t.typname, pg_catalog.format_type(a.atttypid, -1), \
        a.attgenerated::text, a.attidentity::text, \
        a.attnotnull AND NOT a.atthasdef AND a.attidentity = '' AND t.typdefault IS NULL, \
        n.nspname = 'pg_catalog' AND coalesce(l.collisdeterministic, true) AND t.typname IN ('bool', 'int2', 'int4', 'int8', 'oid', \
        'text', 'varchar', 'uuid', 'date', 'time', 'timestamp', 'timestamptz', 'bytea', 'pg_lsn') \
        FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid \
        JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace LEFT JOIN pg_catalog.pg_collation l ON l.oid = a.attcollation \
        WHERE a.attrelid = $1::oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum";
    let query = sqlx::query(COLUMNS).bind(oid);
    let rows = within(SHORT_WAIT, "reading the catalog", query.fetch_all(connection)).await?;
    let column = |row: &PgRow| CatalogColumn {
        name: row.get(0),
        type_name: row.get(1),
        cast: row.get(2),
        generated: !row.get::<String, _>(3).is_empty(),
        identity_always: row.get::<String, _>(4) == "a",
        required: row.get(5),
        exact: row.get(6),
    };
    Ok(rows.iter().map(column).collect())
}

async fn read_indexes(connection: &mut PgConnection, oid: i64) -> Result<Vec<CatalogIndex>> {
    const INDEXES: &str = "SELECT c.relname::text, i.indimmediate, i.indpred IS NULL, i.indisexclusion, \
        coalesce(k.columns, '{}'), coalesce(k.operators, '{}') \
        FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid, LATERAL ( \
            SELECT array_agg(a.attname::text ORDER BY s.n) AS columns, \
                   array_agg('OPERATOR(' || quote_ident(o.nspname) || '.' || o.oprname || ')' ORDER BY s.n) AS operators \
            FROM generate_series(0, i.indnkeyatts - 1) AS s(n) \
            LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[s.n] AND a.attnum > 0 \
            LEFT JOIN LATERAL (SELECT opn.nspname, op.oprname \
                FROM pg_catalog.pg_opclass oc JOIN pg_catalog.pg_amop m ON m.amopfamily = oc.opcfamily AND m.amopstrategy = 3 \
                     AND m.amoplefttype = oc.opcintype AND m.amoprighttype = oc.opcintype \
                JOIN pg_catalog.pg_operator op ON op.oid = m.amopopr JOIN pg_catalog.pg_namespace opn ON opn.oid = op.oprnamespace \
                WHERE oc.oid = i.indclass[s.n]) o ON true) k \
        WHERE i.indrelid = $1::oid AND (i.indisunique OR i.indisexclusion) AND i.indisready ORDER BY NOT i.indisprimary, c.relname";
    let query = sqlx::query(INDEXES).bind(oid);
    let rows = within(SHORT_WAIT, "reading the catalog", query.fetch_all(connection)).await?;
    let index = |row: &PgRow| {
        let columns: Vec<Option<String>> = row.get(4);
        let operators: Vec<Option<String>> = row.get(5);
        let plain: Option<Vec<String>> = columns.into_iter().collect();
        CatalogIndex {
            name: row.get(0),
            immediate: row.get(1),
            whole: row.get(2),
            exclusion: row.get(3),
            operators: operators.into_iter().map(|o| o.unwrap_or_else(equals)).collect(),
            columns: plain.unwrap_or_default(),
        }
    };
    Ok(rows.iter().map(index).collect())
}

fn equals() -> String {
    "OPERATOR(pg_catalog.=)".into()
}

fn mismatch(message: String) -> Error {
    Error::halt(HaltCode::SchemaMismatch, message)
}

impl Table {
    /// Sets a version of the log against the replica's table.
    ///
    /// # Errors
    /// A halt with `schema_mismatch` that says what to change on the replica.
    pub fn fit(schema: &Arc<TableSchema>, catalog: &Catalog) -> Result<Self> {
        let columns = schema.columns.iter().map(|column| fit_column(schema, column, catalog)).collect::<Result<Vec<_>>>()?;
        let known = |name: &str| schema.columns.iter().any(|column| column.name == name);
        let extra: Vec<_> = catalog.columns.iter().filter(|column| !column.generated && !known(&column.name)).collect();
        if let Some(column) = extra.iter().find(|column| column.required) {
            return Err(mismatch(format!(
                "column {} of table {} is not in the source's table, is NOT NULL on the replica and has no default; run \
                 ALTER TABLE {} ALTER COLUMN {} DROP NOT NULL there, or give it a default",
                column.name,
                schema.table,
                quote_table(&schema.table),
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
            name: quote_table(&schema.table),
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
}

/// Rows with different keys cannot collide in this index.
fn covers(index: &CatalogIndex, key: &[&str]) -> bool {
    key.iter().all(|name| index.columns.iter().any(|column| column == name))
}

fn operator(index: &CatalogIndex, name: &str) -> String {
    let at = index.columns.iter().position(|column| column == name);
    at.and_then(|at| index.operators.get(at).cloned()).unwrap_or_else(equals)
}

fn fit_column(schema: &TableSchema, column: &Column, catalog: &Catalog) -> Result<TableColumn> {
    let found = catalog.columns.iter().find(|candidate| candidate.name == column.name).ok_or_else(|| {
        mismatch(format!(
            "column {} of table {} is not on the replica; run ALTER TABLE {} ADD COLUMN {} there, with the source's type ({})",
            column.name,
            schema.table,
            quote_table(&schema.table),
            quote_ident(&column.name),
            column.type_name
        ))
    })?;
    if found.type_name != column.type_name {
        return Err(mismatch(format!(
            "column {} of table {} is {} on the replica and {} on the source; run ALTER TABLE {} ALTER COLUMN {} TYPE … on the replica",
            column.name,
            schema.table,
            found.type_name,
            column.type_name,
            quote_table(&schema.table),
            quote_ident(&column.name),
        )));
    }
    Ok(TableColumn {
        name: quote_ident(&column.name),
        cast: found.cast.clone(),
        written: !found.generated,
        identity_always: found.identity_always,
        exact: found.exact,
    })
}
