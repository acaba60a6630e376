//! What the replica's catalog says of a table.

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::definition::DEFINITION;
use super::errors::{SHORT_WAIT, within};
use super::ledger::IDENTITY;
use crate::error::{Error, Result};
use crate::event::TableName;
use crate::halt::HaltCode;

/// A column of the replica's table.
#[derive(Clone, Debug)]
pub struct CatalogColumn {
    /// Unquoted name.
    pub name: String,
    /// `schema.type`, as the log writes types.
    pub type_name: String,
    /// Length, precision and scale; -1 for none, and for a domain.
    pub modifier: i32,
    /// As declared: a domain under its own name.
    pub declared_type: String,
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
    /// Which table of which database it is, as the ledger keeps it.
    pub identity: String,
    /// `pg_class.oid`
    pub relation: i64,
    /// Another number with every change of it (`definition`).
    pub definition: i64,
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

/// Reads the catalog. `None` when there is no such table.
///
/// # Errors
/// A halt with `schema_mismatch` when it is not an ordinary one; the server's.
pub async fn read(connection: &mut PgConnection, table: &TableName) -> Result<Option<Catalog>> {
    const RELATION: &str = "SELECT c.oid::bigint, c.relkind::text, pg_catalog.row_security_active(c.oid), \
        EXISTS (SELECT FROM pg_catalog.pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal AND t.tgenabled IN ('R', 'A')), \
        EXISTS (SELECT FROM pg_catalog.pg_constraint k WHERE k.conrelid = c.oid AND k.contype = 'f' \
                AND (k.confdeltype IN ('c', 'n', 'd') OR k.confupdtype IN ('c', 'n', 'd'))), \
        EXISTS (SELECT FROM pg_catalog.pg_constraint k WHERE (k.conrelid = c.oid OR k.confrelid = c.oid) AND k.contype = 'f') \
        OR EXISTS (SELECT FROM pg_catalog.pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal AND t.tgenabled <> 'D'), \
        $identity || c.oid, $definition \
        FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
        WHERE n.nspname = $1 AND c.relname = $2";
    let sql = AssertSqlSafe(RELATION.replace("$identity", IDENTITY).replace("$definition", DEFINITION));
    let query = sqlx::query(sql).bind(&table.schema).bind(&table.name);
    // Its number first: what changes while the rest is read is seen behind the writes.
    let row = within(SHORT_WAIT, "reading the catalog", query.fetch_optional(&mut *connection)).await?;
    let Some(row) = row else { return Ok(None) };
    let (oid, kind): (i64, String) = (row.get(0), row.get(1));
    if kind != "r" && kind != "p" {
        return Err(mismatch(format!("{table} is not an ordinary table on the replica; put a table of that name in its place")));
    }
    let columns = read_columns(connection, oid).await?;
    let indexes = read_indexes(connection, oid).await?;
    Ok(Some(Catalog {
        identity: row.get(6),
        relation: oid,
        definition: row.get(7),
        partitioned: kind == "p",
        row_security: row.get(2),
        replica_triggers: row.get(3),
        cascades: row.get(4),
        entangled: row.get(5),
        columns,
        indexes,
    }))
}

async fn read_columns(connection: &mut PgConnection, oid: i64) -> Result<Vec<CatalogColumn>> {
    // Modifier -1 makes format_type give "bpchar" and "bit" quoted, the forms without a length.
    // The log names a domain's base type, as the source's stream does (PostgreSQL, logicalrep_write_typ).
    const COLUMNS: &str = "SELECT a.attname::text, (WITH RECURSIVE base AS (SELECT t.typtype, t.typbasetype, t.typname, t.typnamespace \
            UNION ALL SELECT d.typtype, d.typbasetype, d.typname, d.typnamespace FROM base \
                      JOIN pg_catalog.pg_type d ON d.oid = base.typbasetype WHERE base.typtype = 'd') \
            SELECT bn.nspname || '.' || base.typname FROM base JOIN pg_catalog.pg_namespace bn ON bn.oid = base.typnamespace \
            WHERE base.typtype <> 'd'), pg_catalog.format_type(a.atttypid, -1), \
        a.attgenerated::text, a.attidentity::text, \
        a.attnotnull AND NOT a.atthasdef AND a.attidentity = '' AND t.typdefault IS NULL, \
        n.nspname = 'pg_catalog' AND coalesce(l.collisdeterministic, true) AND t.typname IN ('bool', 'int2', 'int4', 'int8', 'oid', \
        'text', 'varchar', 'uuid', 'date', 'time', 'timestamp', 'timestamptz', 'bytea', 'pg_lsn'), \
        n.nspname || '.' || t.typname, a.atttypmod \
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
        declared_type: row.get(7),
        modifier: row.get(8),
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

/// Where an index names no operator.
pub(super) fn equals() -> String {
    "OPERATOR(pg_catalog.=)".into()
}

/// A halt for a table that is not there.
pub(crate) fn missing(table: &TableName) -> Error {
    mismatch(format!("table {table} is not on the replica; create it there as the source has it"))
}

/// A halt with `schema_mismatch`.
pub(super) fn mismatch(message: String) -> Error {
    Error::halt(HaltCode::SchemaMismatch, message)
}
