//! The ledger: the rows in schema `millstream` of a replica that say how far it is (I3, I8).
//!
//! Made by `init` ([`migrate`], [`create`]); the apply epoch is raised by every applier that starts ([`raise_epoch`]); the
//! cursor moves with every replica transaction ([`step`], whose row lock is held to COMMIT) and only under the epoch in
//! force. Workers of a first copy hold the epoch by [`hold_epoch`] in each of their transactions.

use std::time::Duration;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{Column, PgConnection, Row};

use super::errors::{self, SHORT_WAIT, within};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::{ApplyEpoch, History, SchemaId, StreamId, TableName};
use crate::halt::HaltCode;
use crate::queue::log::Cursor;
pub use crate::replica::{ReplicaRow, Step};

/// The ledger's migrations, for `init` and for an upgraded daemon.
pub(crate) static MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");
const MIGRATION_WAIT: Duration = Duration::from_mins(2);

/// How far the first copy of a table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyState {
    /// Not begun.
    Pending,
    /// Chunks are being loaded.
    Copying,
    /// All chunks are loaded; the log is replayed past the last snapshot.
    CatchingUp,
    /// Complete: shows only prefixes of the source's commit order (I4).
    Live,
    /// Not replicated any more before it was complete: what the log still holds of it is dropped.
    Leaving,
    /// Under the replica's other row ([`added`]), which applies what the log holds of it. Never written.
    Apart,
}

/// SQL of what comes before a table's number in `copied_table.replica_table`: this database, and this ledger in it.
pub(crate) const IDENTITY: &str = "((SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()) \
    || '/' || 'millstream.copied_table'::pg_catalog.regclass::oid || '/')";

/// SQL of a table's `replica_table`, by SQL of its schema and name.
pub(crate) fn identity_of(schema: &str, name: &str) -> String {
    format!(
        "(SELECT {IDENTITY} || c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE n.nspname = {schema} AND c.relname = {name})"
    )
}

/// SQL of whether a row's table is not what has its name on this server: it was dropped or renamed there. False where the row does not know its table here.
pub(crate) fn is_replaced() -> String {
    format!(
        "coalesce(pg_catalog.starts_with(replica_table, {IDENTITY}) AND replica_table IS DISTINCT FROM {}, false)",
        identity_of("table_schema", "table_name")
    )
}

/// A table of a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// How far its copy is.
    pub state: CopyState,
    /// It goes once the replica has passed a place.
    pub leaves: bool,
    /// The source's number of it, once known.
    pub source_oid: Option<u32>,
    /// The replica's numbers of it (`IDENTITY` and `pg_class.oid`), once known.
    pub replica_table: Option<String>,
    /// The version that gave it its name, where a rename was followed.
    pub named_by: Option<SchemaId>,
    /// While it is copied again: where its rows are collected.
    pub shadow: Option<TableName>,
}

impl Member {
    /// Where its changes go instead of into the table itself, which shows its old content until the copy is complete.
    #[must_use]
    pub fn collected_in(&self) -> Option<&TableName> {
        self.shadow.as_ref().filter(|_| matches!(self.state, CopyState::Copying | CopyState::CatchingUp))
    }
}

/// The table that `copied_table.shadow` names.
pub(crate) fn shadow(name: String) -> TableName {
    TableName::new(SCHEMA, name)
}

/// Name of the row that tables added to a live replica are kept under while they are copied. No configured name has such a character.
#[must_use]
pub fn added(replica: &str) -> String {
    format!("{replica}{ADDED}")
}

/// The replica that a row, or a consumer, of this name belongs to.
#[must_use]
pub fn whole(name: &str) -> &str {
    name.strip_suffix(ADDED).unwrap_or(name)
}

const ADDED: &str = "#added";
/// The ledger's schema.
const SCHEMA: &str = "millstream";

impl CopyState {
    /// As the ledger writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Copying => "copying",
            Self::CatchingUp => "catching_up",
            Self::Live => "live",
            Self::Leaving => "leaving",
            Self::Apart => "apart",
        }
    }

    /// As the ledger has it.
    ///
    /// # Errors
    /// A halt with `ledger_damaged`.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        [Self::Pending, Self::Copying, Self::CatchingUp, Self::Live, Self::Leaving]
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| damaged(format!("column state holds '{text}', which is no state")))
    }
}

/// Makes or upgrades the ledger's tables.
///
/// # Errors
/// A halt with `ledger_damaged` when its migrations were changed by hand, [`ErrorKind::TooNew`] when a newer Millstream made it.
pub async fn migrate(connection: &mut PgConnection) -> Result<()> {
    let mut migrator = Migrator { migrations: MIGRATIONS.migrations.clone(), ..Migrator::DEFAULT };
    migrator.dangerous_set_table_name("millstream.schema_version");
    migrator.create_schema("millstream");
    let run = migrator.run_direct(None, connection, false);
    let done = tokio::time::timeout(MIGRATION_WAIT, run)
        .await
        .map_err(|_| Error::new(ErrorKind::Busy, "another session holds the lock on the ledger's migrations"))?;
    done.map_err(|error| match error {
        MigrateError::Execute(cause) | MigrateError::ExecuteMigration(cause, _) => {
            errors::classify(cause).context("making the ledger")
        }
        MigrateError::VersionMissing(version) => {
            Error::new(ErrorKind::TooNew, format!("the replica's ledger has version {version}, which a newer Millstream made"))
        }
        other => damaged(other.to_string()),
    })
}

/// One that this role may not look into is somebody else's: `init` and `check` say whose.
const EXISTS: &str = "SELECT EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
     WHERE n.nspname = 'millstream' AND c.relname = 'replica' AND pg_catalog.has_schema_privilege(n.oid, 'USAGE'))";

/// True when the ledger's tables are there.
///
/// # Errors
/// The server's.
pub async fn exists(connection: &mut PgConnection) -> Result<bool> {
    let query = sqlx::query_scalar(EXISTS);
    within(SHORT_WAIT, "looking for the ledger", query.fetch_one(connection)).await
}

/// What removes the ledger with everything in it. A database that is a source as well keeps its side of schema changes in the same schema, and a copy that
/// is given up leaves what it had put off there (`preflight/put_off.rs`).
///
/// # Errors
/// The server's.
pub async fn removal(connection: &mut PgConnection) -> Result<String> {
    let query = sqlx::query_scalar(
        "SELECT CASE WHEN pg_catalog.to_regclass('millstream.installed') IS NULL AND pg_catalog.to_regclass('millstream.put_off') IS NULL \
         THEN 'DROP SCHEMA millstream CASCADE' ELSE \
         (SELECT 'DROP TABLE ' || pg_catalog.string_agg(c.oid::regclass::text, ', ') || ' CASCADE' FROM pg_catalog.pg_class c \
          JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'millstream' AND c.relkind = 'r' \
          AND c.relname NOT IN ('installed', 'captured', 'known_table', 'schema_change', 'put_off')) END",
    );
    within(SHORT_WAIT, "looking for what to remove", query.fetch_one(connection)).await
}

/// The version that this Millstream makes.
fn version() -> i64 {
    MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0)
}

/// An older ledger is upgraded, a newer one is not read: columns mean what their version says.
async fn to_this_version(connection: &mut PgConnection) -> Result<()> {
    let found = found_version(connection).await?;
    if found < version() {
        tracing::info!(from = found, to = version(), "the replica's ledger is brought to this version");
        migrate(connection).await?;
    }
    Ok(())
}

/// For a command that only asks something of the daemon, whose own version may be older.
///
/// # Errors
/// [`ErrorKind::TooNew`] for the ledger of a newer Millstream, [`ErrorKind::Busy`] for that of an older one.
pub async fn is_of_this_version(connection: &mut PgConnection) -> Result<()> {
    if found_version(connection).await? == version() {
        return Ok(());
    }
    let message =
        "the replica's ledger is that of an older Millstream; a daemon of this version brings it up to date when it starts";
    Err(Error::new(ErrorKind::Busy, message))
}

/// The version that the ledger has: this one or an older one.
async fn found_version(connection: &mut PgConnection) -> Result<i64> {
    let query = sqlx::query_scalar::<_, Option<i64>>("SELECT max(version) FROM millstream.schema_version WHERE success");
    let found = within(SHORT_WAIT, "reading the ledger's version", query.fetch_one(connection)).await?.unwrap_or(0);
    if found <= version() {
        return Ok(found);
    }
    Err(Error::new(ErrorKind::TooNew, format!("the replica's ledger has version {found}, which a newer Millstream made")))
}

/// Makes the row of a replica. False when it is there, which changes nothing.
///
/// # Errors
/// The server's.
pub async fn create(
    connection: &mut PgConnection,
    name: &str,
    source: &str,
    stream: StreamId,
    history: &History,
    cursor: Option<&Cursor>,
) -> Result<bool> {
    let query = sqlx::query(
        "INSERT INTO millstream.replica (name, source, stream, history, cursor, position) VALUES ($1, $2, $3, $4, $5, $6) \
         ON CONFLICT (name) DO NOTHING",
    )
    .bind(name)
    .bind(source)
    .bind(stream.0.to_string())
    .bind(Json(history))
    .bind(cursor.map(Json))
    .bind(cursor.and_then(|c| c.position).map(|p| p.to_string()));
    Ok(within(SHORT_WAIT, "writing the ledger", query.execute(connection)).await?.rows_affected() == 1)
}

const COLUMNS: &str = "name, source, stream, history, cursor, apply_epoch, source_time_us, transactions, changes";

/// Reads the row of a replica.
///
/// # Errors
/// A halt with `not_initialized` when there is none, with `ledger_damaged` when it makes no sense.
pub async fn load(connection: &mut PgConnection, name: &str) -> Result<ReplicaRow> {
    if !exists(connection).await? {
        return Err(uninitialized(name));
    }
    let sql = sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM millstream.replica WHERE name = $1"));
    let row = within(SHORT_WAIT, "reading the ledger", sqlx::query(sql).bind(name).fetch_optional(connection)).await?;
    row.as_ref().map_or_else(|| Err(uninitialized(name)), |row| parse(row).at(|| format!("millstream.replica, row '{name}'")))
}

/// Claims the replica: raises the apply epoch and gives the row as it stands under it.
///
/// # Errors
/// As [`load`]; [`ErrorKind::TooNew`] for the ledger of a newer Millstream; those of [`migrate`] for that of an older one.
pub async fn raise_epoch(connection: &mut PgConnection, name: &str) -> Result<ReplicaRow> {
    if !exists(connection).await? {
        return Err(uninitialized(name));
    }
    to_this_version(connection).await?;
    let sql = sqlx::AssertSqlSafe(format!(
        "UPDATE millstream.replica SET apply_epoch = apply_epoch + 1 WHERE name = $1 RETURNING {COLUMNS}"
    ));
    let row = within(SHORT_WAIT, "claiming the ledger", sqlx::query(sql).bind(name).fetch_optional(connection)).await?;
    row.as_ref().map_or_else(|| Err(uninitialized(name)), |row| parse(row).at(|| format!("millstream.replica, row '{name}'")))
}

/// Takes tables for what has their names, where the ledger does not know which they are on this server: it is older, or was restored from a dump.
///
/// # Errors
/// The server's.
pub async fn recognise(connection: &mut PgConnection, name: &str, epoch: ApplyEpoch) -> Result<()> {
    let sql = format!(
        "UPDATE millstream.copied_table SET replica_table = {} WHERE replica = $1 \
         AND (replica_table IS NULL OR NOT pg_catalog.starts_with(replica_table, {IDENTITY})) \
         AND EXISTS (SELECT FROM millstream.replica WHERE name = $1 AND apply_epoch = $2)",
        identity_of("table_schema", "table_name")
    );
    let query = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(name).bind(epoch.0.cast_signed());
    within(SHORT_WAIT, "recognising tables", query.execute(connection)).await.map(drop)
}

/// Moves the cursor, in the transaction that the connection is in. The row's lock is held to COMMIT (I8).
///
/// # Errors
/// [`ErrorKind::Fenced`] when a newer applier took over.
pub async fn step(connection: &mut PgConnection, name: &str, epoch: ApplyEpoch, step: &Step, limit: Duration) -> Result<()> {
    let query = sqlx::query(
        "UPDATE millstream.replica SET cursor = $3, position = $4, source_time_us = coalesce($5, source_time_us), \
         transactions = transactions + $6, changes = changes + $7, writer_epoch = $8, history = coalesce($9, history), \
         applied_at = clock_timestamp() \
         WHERE name = $1 AND apply_epoch = $2",
    )
    .bind(name)
    .bind(epoch.0.cast_signed())
    .bind(Json(&step.cursor))
    .bind(step.cursor.position.map(|p| p.to_string()))
    .bind(step.source_time_us)
    .bind(step.transactions.cast_signed())
    .bind(step.changes.cast_signed())
    .bind(step.cursor.epoch.0.cast_signed())
    .bind(step.history.as_ref().map(Json));
    let done = within(limit, "moving the ledger's cursor", query.execute(connection)).await?;
    if done.rows_affected() == 1 { Ok(()) } else { Err(fenced(name, epoch)) }
}

/// Holds the apply epoch to the end of the transaction that the connection is in: no other applier can claim the replica
/// before it. For workers of a first copy, several at a time.
///
/// # Errors
/// [`ErrorKind::Fenced`] when a newer applier took over.
pub async fn hold_epoch(connection: &mut PgConnection, name: &str, epoch: ApplyEpoch) -> Result<()> {
    let query = sqlx::query("SELECT 1 FROM millstream.replica WHERE name = $1 AND apply_epoch = $2 FOR SHARE")
        .bind(name)
        .bind(epoch.0.cast_signed());
    let row = within(SHORT_WAIT, "checking the apply epoch", query.fetch_optional(connection)).await?;
    row.map(drop).ok_or_else(|| fenced(name, epoch))
}

/// Like [`hold_epoch`], alone: for the one applier, whose step comes later in the same transaction.
///
/// # Errors
/// [`ErrorKind::Fenced`] when a newer applier took over.
pub async fn hold_epoch_alone(connection: &mut PgConnection, name: &str, epoch: ApplyEpoch) -> Result<()> {
    let query = sqlx::query("SELECT 1 FROM millstream.replica WHERE name = $1 AND apply_epoch = $2 FOR UPDATE")
        .bind(name)
        .bind(epoch.0.cast_signed());
    let row = within(SHORT_WAIT, "checking the apply epoch", query.fetch_optional(connection)).await?;
    row.map(drop).ok_or_else(|| fenced(name, epoch))
}

/// Keeps every applier from committing, and from claiming the replica, to the end of the transaction that the connection is in. Gives the epoch in force.
///
/// # Errors
/// The server's; a halt with `not_initialized`.
pub async fn hold(connection: &mut PgConnection, name: &str) -> Result<ApplyEpoch> {
    let query = sqlx::query_scalar::<_, i64>("SELECT apply_epoch FROM millstream.replica WHERE name = $1 FOR UPDATE").bind(name);
    let epoch = within(SHORT_WAIT, "holding the ledger's row", query.fetch_optional(connection)).await?;
    epoch.map(|epoch| ApplyEpoch(epoch.cast_unsigned())).ok_or_else(|| uninitialized(name))
}

/// The tables of a replica, under both of its rows, and how far their first copy is.
///
/// # Errors
/// The server's; a halt with `ledger_damaged`.
pub async fn tables(connection: &mut PgConnection, name: &str) -> Result<Vec<(TableName, CopyState)>> {
    let query = sqlx::query(
        "SELECT table_schema, table_name, state FROM millstream.copied_table WHERE replica IN ($1, $2) ORDER BY table_schema, table_name",
    )
    .bind(whole(name))
    .bind(added(whole(name)));
    let rows = within(SHORT_WAIT, "reading the ledger's tables", query.fetch_all(connection)).await?;
    rows.iter()
        .map(|row| {
            let table = table_of(row)?;
            let state = get(row, 2).and_then(CopyState::parse).at(|| row_of(name, &table))?;
            Ok((table, state))
        })
        .collect()
}

/// Tables of other replicas in the same database, each with its replica's name.
///
/// # Errors
/// As [`tables`].
pub async fn tables_of_others(connection: &mut PgConnection, name: &str) -> Result<Vec<(TableName, String)>> {
    let query =
        sqlx::query("SELECT table_schema, table_name, replica FROM millstream.copied_table WHERE replica NOT IN ($1, $2)")
            .bind(whole(name))
            .bind(added(whole(name)));
    let rows = within(SHORT_WAIT, "reading the ledger's tables", query.fetch_all(connection)).await?;
    rows.iter()
        .map(|row| {
            let other: String = get(row, 2)?;
            Ok((table_of(row)?, whole(&other).to_owned()))
        })
        .collect()
}

/// The tables of one row of a replica; those under its other row are [`CopyState::Apart`].
///
/// # Errors
/// As [`tables`].
pub async fn members(connection: &mut PgConnection, name: &str) -> Result<Vec<(TableName, Member)>> {
    let query = sqlx::query(
        "SELECT table_schema, table_name, state, replica = $1, live_after_lsn IS NOT NULL, source_oid, replica_table, named_by, shadow \
         FROM millstream.copied_table WHERE replica IN ($2, $3) \
         ORDER BY table_schema, table_name",
    )
    .bind(name)
    .bind(whole(name))
    .bind(added(whole(name)));
    let rows = within(SHORT_WAIT, "reading the ledger's tables", query.fetch_all(connection)).await?;
    rows.iter()
        .map(|row| {
            let table = table_of(row)?;
            let member = member(row).at(|| row_of(name, &table))?;
            Ok((table, member))
        })
        .collect()
}

fn member(row: &PgRow) -> Result<Member> {
    let state = if get(row, 3)? { CopyState::parse(get(row, 2)?)? } else { CopyState::Apart };
    let number = |index| {
        let number = get::<Option<i64>>(row, index)?.map(u32::try_from).transpose();
        number.map_err(|_| damaged(format!("column {} holds a number out of its range", column(row, index))))
    };
    let (source_oid, named_by) = (number(5)?, number(7)?.map(SchemaId));
    let leaves = state == CopyState::Live && get(row, 4)?;
    let shadow = get::<Option<String>>(row, 8)?.map(shadow);
    Ok(Member { state, leaves, source_oid, replica_table: get(row, 6)?, named_by, shadow })
}

fn table_of(row: &PgRow) -> Result<TableName> {
    Ok(TableName::new(get::<String>(row, 0)?, get::<String>(row, 1)?))
}

/// Which row of `copied_table` makes no sense.
fn row_of(name: &str, table: &TableName) -> String {
    format!("millstream.copied_table of replica '{}', table {table}", whole(name))
}

fn parse(row: &PgRow) -> Result<ReplicaRow> {
    let stream: String = get(row, 2)?;
    Ok(ReplicaRow {
        name: get(row, 0)?,
        source: get(row, 1)?,
        stream: StreamId(stream.parse().map_err(|_| damaged("column stream holds no number"))?),
        history: get::<Json<History>>(row, 3)?.0,
        cursor: get::<Option<Json<Cursor>>>(row, 4)?.map(|json| json.0),
        apply_epoch: ApplyEpoch(get::<i64>(row, 5)?.cast_unsigned()),
        source_time_us: get(row, 6)?,
        transactions: get::<i64>(row, 7)?.cast_unsigned(),
        changes: get::<i64>(row, 8)?.cast_unsigned(),
    })
}

/// A column's value; the row's place is the caller's to add.
///
/// # Errors
/// A halt with `ledger_damaged` that names the column.
pub(crate) fn get<'r, T: sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>>(
    row: &'r PgRow,
    index: usize,
) -> Result<T> {
    row.try_get(index)
        .map_err(|error| damaged(format!("column {} does not hold what it should", column(row, index))).with_source(error))
}

fn column(row: &PgRow, index: usize) -> &str {
    row.columns().get(index).map_or("?", Column::name)
}

fn damaged(message: impl Into<String>) -> Error {
    Error::halt(HaltCode::LedgerDamaged, message)
}

fn uninitialized(name: &str) -> Error {
    Error::halt(HaltCode::NotInitialized, format!("the replica has no ledger row for '{name}'; run `millstream init`"))
}

fn fenced(name: &str, epoch: ApplyEpoch) -> Error {
    Error::new(ErrorKind::Fenced, format!("apply epoch {epoch} of replica '{name}' is over: a newer applier took it"))
}
