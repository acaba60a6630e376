//! Tables that are copied beside live ones, under a ledger row of their own until they have met the others: those that were added, and those that are
//! copied again.
//!
//! ```text
//!  NAME at C, tables pending ──set_apart──► NAME at C               NAME#added at C, pending ► … ► live at I ≤ M
//!   (or to be copied again)
//!                                                 … at M                        │
//!  NAME at M, every table live   ◄──take_in──── both at exactly M ◄─────────────┘
//! ```
//!
//! Both arrows are one replica transaction each. Between them every change of the log is applied by the row that has its table, in commit order, and
//! by no other: what each row has passed, it has applied or left to the other, which passes the same place in its turn.
//!
//! Foreign keys of the added tables hold only when both stand at one place: they are made NOT VALID with the second arrow, and validated
//! afterwards, while the replica is applied to.

use sqlx::{AssertSqlSafe, Executor, PgConnection};

use super::errors::{SHORT_WAIT, classify, within};
use super::ledger;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::{ApplyEpoch, TableName};
use crate::failpoint;
use crate::postgres::sql::{quote_ident, quote_table};

/// How the rows of a replica stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// There is a row of added tables.
    pub apart: bool,
    /// The replica's own row has complete tables, and none that is being copied.
    pub live: bool,
}

/// Reads that.
///
/// # Errors
/// The server's.
pub async fn rows(connection: &mut PgConnection, name: &str) -> Result<Rows> {
    let query = sqlx::query_as::<_, (bool, bool)>(
        "SELECT EXISTS (SELECT FROM millstream.replica WHERE name = $2), \
           EXISTS (SELECT FROM millstream.copied_table WHERE replica = $1 AND state = 'live') \
           AND NOT EXISTS (SELECT FROM millstream.copied_table WHERE replica = $1 AND state IN ('copying', 'catching_up'))",
    )
    .bind(name)
    .bind(ledger::added(name));
    let (apart, live) = within(SHORT_WAIT, "reading the ledger's rows", query.fetch_one(connection)).await?;
    Ok(Rows { apart, live })
}

/// Live tables of a row that somebody asked to be copied again. One that is not on the replica has nothing to show meanwhile, and waits until it is.
///
/// # Errors
/// The server's.
pub async fn asked_again(connection: &mut PgConnection, name: &str) -> Result<Vec<TableName>> {
    let query = sqlx::query_as::<_, (String, String)>(
        "SELECT table_schema, table_name FROM millstream.copied_table WHERE replica = $1 AND state = 'live' AND recopy_asked_at IS NOT NULL \
           AND live_after_lsn IS NULL AND pg_catalog.to_regclass(pg_catalog.format('%I.%I', table_schema, table_name)) IS NOT NULL ORDER BY 1, 2",
    )
    .bind(name);
    let rows = within(SHORT_WAIT, "looking for tables to copy again", query.fetch_all(connection)).await?;
    Ok(rows.into_iter().map(|(schema, name)| TableName::new(schema, name)).collect())
}

/// Puts tables whose copy has not begun, or is to begin again, under a row of their own, at the place of the replica's row.
///
/// # Errors
/// The server's; [`ErrorKind::Fenced`].
pub async fn set_apart(connection: &mut PgConnection, name: &str, epoch: ApplyEpoch, tables: &[TableName]) -> Result<()> {
    within(SHORT_WAIT, "BEGIN", connection.execute("BEGIN")).await?;
    let done = set_apart_within(connection, name, epoch, tables).await;
    let end = if done.is_ok() { "COMMIT" } else { "ROLLBACK" };
    within(SHORT_WAIT, end, connection.execute(end)).await?;
    done
}

async fn set_apart_within(connection: &mut PgConnection, name: &str, epoch: ApplyEpoch, tables: &[TableName]) -> Result<()> {
    ledger::hold_epoch_alone(connection, name, epoch).await?;
    let added = ledger::added(name);
    let (schemas, names): (Vec<&str>, Vec<&str>) = tables.iter().map(|t| (t.schema.as_str(), t.name.as_str())).unzip();
    let row = sqlx::query(
        "INSERT INTO millstream.replica (name, source, stream, history, cursor, position, source_time_us, writer_epoch) \
         SELECT $2, source, stream, history, cursor, position, source_time_us, writer_epoch FROM millstream.replica WHERE name = $1 \
         ON CONFLICT (name) DO NOTHING",
    )
    .bind(name)
    .bind(&added);
    within(SHORT_WAIT, "making the added tables' row", row.execute(&mut *connection)).await?;
    // A row that is there already never goes beyond the replica's own, so these tables' changes all lie before it still.
    let behind = sqlx::query_scalar::<_, Option<bool>>(
        "SELECT (a.cursor->>'bytes_so_far')::numeric <= (r.cursor->>'bytes_so_far')::numeric \
         FROM millstream.replica a, millstream.replica r WHERE a.name = $2 AND r.name = $1",
    )
    .bind(name)
    .bind(&added);
    if within(SHORT_WAIT, "comparing places", behind.fetch_one(&mut *connection)).await? != Some(true) {
        return Err(Error::new(ErrorKind::Busy, format!("'{added}' stands beyond '{name}'")));
    }
    let moved = sqlx::query(
        "UPDATE millstream.copied_table c SET replica = $2 FROM unnest($3::text[], $4::text[]) u(s, t) \
         WHERE c.replica = $1 AND c.state = 'pending' AND c.table_schema = u.s AND c.table_name = u.t",
    )
    .bind(name)
    .bind(&added)
    .bind(&schemas)
    .bind(&names);
    within(SHORT_WAIT, "setting tables apart", moved.execute(&mut *connection)).await?;
    let again = sqlx::query(
        "UPDATE millstream.copied_table c SET replica = $2, state = 'pending', recopy_asked_at = NULL, live_at = NULL, rows = 0, bytes = 0, \
           shadow = 'recopy_' || pg_catalog.to_regclass(pg_catalog.format('%I.%I', u.s, u.t))::oid \
         FROM unnest($3::text[], $4::text[]) u(s, t) WHERE c.replica = $1 AND c.state = 'live' AND c.recopy_asked_at IS NOT NULL \
           AND c.table_schema = u.s AND c.table_name = u.t AND pg_catalog.to_regclass(pg_catalog.format('%I.%I', u.s, u.t)) IS NOT NULL",
    )
    .bind(name)
    .bind(&added)
    .bind(&schemas)
    .bind(&names);
    within(SHORT_WAIT, "setting tables apart", again.execute(&mut *connection)).await?;
    // Parents of partitions are nobody's table, and come along.
    let later = sqlx::query(
        "UPDATE millstream.deferred_ddl d SET replica = $2, \
           ordinal = d.ordinal + (SELECT coalesce(max(ordinal), 0) FROM millstream.deferred_ddl WHERE replica = $2) \
         WHERE d.replica = $1 AND d.kind <> 'validate' AND NOT EXISTS (SELECT FROM millstream.copied_table t WHERE t.replica = $1 \
           AND t.table_schema = d.table_schema AND t.table_name = d.table_name)",
    )
    .bind(name)
    .bind(&added);
    within(SHORT_WAIT, "setting tables apart", later.execute(connection)).await.map(drop)
}

/// The other way. The caller rolls back after an error.
///
/// # Errors
/// [`ErrorKind::Busy`] when the rows do not stand at one place, or a table is not complete; the server's.
pub(super) async fn take_in(connection: &mut PgConnection, name: &str, added: &str, epoch: ApplyEpoch) -> Result<()> {
    within(SHORT_WAIT, "BEGIN", connection.execute("BEGIN")).await?;
    ledger::hold_epoch_alone(connection, name, epoch).await?;
    let meets = sqlx::query_scalar(
        "SELECT a.stream = r.stream AND a.cursor->'number' = r.cursor->'number' AND a.cursor->'position' = r.cursor->'position' \
           AND NOT EXISTS (SELECT FROM millstream.copied_table t WHERE t.replica = $2 AND t.state NOT IN ('live', 'leaving')) \
         FROM millstream.replica a, millstream.replica r WHERE a.name = $2 AND r.name = $1 FOR UPDATE OF a",
    )
    .bind(name)
    .bind(added);
    let meets: Option<Option<bool>> = within(SHORT_WAIT, "comparing places", meets.fetch_optional(&mut *connection)).await?;
    if meets.flatten() != Some(true) {
        return Err(Error::new(ErrorKind::Busy, format!("'{added}' does not stand where '{name}' does")));
    }
    foreign_keys(connection, name, added).await?;
    for sql in [
        "DELETE FROM millstream.copy_chunk WHERE replica = $2 AND $1 <> $2",
        "UPDATE millstream.copied_table SET replica = $1, live_at = CASE state WHEN 'live' THEN clock_timestamp() END WHERE replica = $2",
        "DELETE FROM millstream.deferred_ddl WHERE replica = $2 AND $1 <> $2",
        "DELETE FROM millstream.replica WHERE name = $2 AND $1 <> $2",
    ] {
        let query = sqlx::query(sql).bind(name).bind(added);
        within(SHORT_WAIT, "taking tables in", query.execute(&mut *connection)).await?;
    }
    failpoint::hit("added.taking_in")?;
    within(SHORT_WAIT, "COMMIT", connection.execute("COMMIT")).await?;
    failpoint::hit("added.taken_in")?;
    Ok(())
}

/// Names of a table's foreign keys that are not validated.
const NOT_VALID: &str = "SELECT conname::text FROM pg_catalog.pg_constraint WHERE conrelid = pg_catalog.to_regclass($1) AND contype = 'f' \
    AND NOT convalidated AND conparentid = 0";

/// Makes what was put off, without reading the tables where the server can: that comes later, and needs no pause.
async fn foreign_keys(connection: &mut PgConnection, name: &str, added: &str) -> Result<()> {
    let query = sqlx::query_as::<_, (String, String, String)>(
        "SELECT table_schema, table_name, statement FROM millstream.deferred_ddl WHERE replica = $1 AND NOT done ORDER BY ordinal",
    )
    .bind(added);
    for (schema, table, statement) in within(SHORT_WAIT, "reading what was put off", query.fetch_all(&mut *connection)).await? {
        let table = TableName::new(schema, table);
        let quoted = quote_table(&table);
        let partitioned =
            sqlx::query_scalar("SELECT relkind = 'p' FROM pg_catalog.pg_class WHERE oid = pg_catalog.to_regclass($1)");
        let partitioned: Option<bool> = partitioned.bind(&quoted).fetch_optional(&mut *connection).await.map_err(classify)?;
        let later = partitioned == Some(false) && !statement.ends_with(" NOT VALID");
        let before: Vec<String> =
            sqlx::query_scalar(NOT_VALID).bind(&quoted).fetch_all(&mut *connection).await.map_err(classify)?;
        let sql = if later { format!("{statement} NOT VALID") } else { statement };
        connection.execute(AssertSqlSafe(sql.as_str())).await.map_err(classify).at(|| format!("table {table}: {sql}"))?;
        if !later {
            continue;
        }
        let after: Vec<String> =
            sqlx::query_scalar(NOT_VALID).bind(&quoted).fetch_all(&mut *connection).await.map_err(classify)?;
        for key in after.iter().filter(|key| !before.contains(key)) {
            let validate = format!("ALTER TABLE {quoted} VALIDATE CONSTRAINT {}", quote_ident(key));
            let note = sqlx::query(
                "INSERT INTO millstream.deferred_ddl (replica, ordinal, table_schema, table_name, kind, statement) \
                 SELECT $1, coalesce(max(ordinal), 0) + 1, $2, $3, 'validate', $4 FROM millstream.deferred_ddl WHERE replica = $1",
            );
            let note = note.bind(name).bind(&table.schema).bind(&table.name).bind(validate);
            note.execute(&mut *connection).await.map_err(classify)?;
        }
    }
    Ok(())
}
