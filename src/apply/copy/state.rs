//! The ledger's rows of a first copy: tables, chunks, what is deferred. Every change holds the apply epoch (I8).

use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use super::progress::CopyProgress;
use super::{key, shadow};
use crate::capture::snapshot::{ChunkMoment, KeyRange, TablePlan, TableShape};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::{ApplyEpoch, Lsn, TableName, TableSchema};
use crate::failpoint;
use crate::halt::HaltCode;
use crate::postgres::sql::{Side, classify, quote_table};
use crate::preflight::init;
use crate::replica::postgres::ledger::{self, CopyState, get, hold_epoch, identity_of, is_replaced};
use crate::replica::postgres::members::{of_another, replaced_while_copied};

/// A table that is not live.
#[derive(Clone, Debug)]
pub(super) struct CopyTable {
    pub(super) table: TableName,
    pub(super) state: CopyState,
    /// Another table has its name on the replica than the one that chunks were loaded into, or none; of a table that is copied again, what its rows
    /// are collected in is gone.
    pub(super) replaced: bool,
    /// What its rows are collected in, when it is copied again.
    pub(super) shadow: Option<TableName>,
    /// Version and key that the copy was begun with.
    began: Option<(TableSchema, Vec<String>)>,
    /// The source's timeline that the copy was begun on.
    timeline: Option<u32>,
    /// What it is now, when that is the same.
    pub(super) shape: Option<TableShape>,
}

impl CopyTable {
    /// The same table, whose copy has been sent back to its beginning.
    pub(super) fn pending(self) -> Self {
        Self { state: CopyState::Pending, replaced: false, began: None, timeline: None, shape: None, ..self }
    }

    /// What chunks are loaded into and the log is replayed over.
    pub(super) fn place(&self) -> &TableName {
        self.shadow.as_ref().unwrap_or(&self.table)
    }

    /// The columns that chunks are cut by, and that find a row.
    pub(super) fn key(&self) -> &[String] {
        self.began.as_ref().map_or(&[], |(_, key)| key)
    }

    /// The version that the copy was begun with.
    pub(super) fn version(&self) -> Option<&TableSchema> {
        self.began.as_ref().map(|(version, _)| version)
    }

    /// True when chunks have been read on another timeline than this.
    pub(super) fn began_elsewhere(&self, timeline: u32) -> bool {
        self.timeline.is_some_and(|began| began != timeline)
    }

    /// True when a shape is the one that the copy was begun with.
    pub(super) fn began_as(&self, shape: &TableShape) -> bool {
        self.began.as_ref().is_some_and(|(schema, key)| shape.fits(schema) && shape.key.iter().map(|k| &k.name).eq(key.iter()))
    }
}

/// A chunk as the ledger has it.
#[derive(Clone, Debug)]
pub(super) struct Chunk {
    pub(super) number: i32,
    pub(super) range: KeyRange,
    /// When it was read; `None` while it is not loaded.
    pub(super) moment: Option<ChunkMoment>,
}

fn fail(error: sqlx::Error) -> Error {
    classify(error, Side::Replica)
}

fn damaged(message: impl Into<String>) -> Error {
    Error::halt(HaltCode::LedgerDamaged, message)
}

/// Tables that are not live and do not leave, by name.
pub(super) async fn tables(replica: &mut PgConnection, name: &str) -> Result<Vec<CopyTable>> {
    let sql = format!(
        "SELECT table_schema, table_name, state, table_version, key_columns, timeline, CASE WHEN shadow IS NULL THEN {} \
           ELSE pg_catalog.to_regclass(pg_catalog.format('millstream.%I', shadow)) IS NULL END, shadow FROM millstream.copied_table \
         WHERE replica = $1 AND state NOT IN ('live', 'leaving') ORDER BY table_schema, table_name",
        is_replaced()
    );
    let rows = sqlx::query(AssertSqlSafe(sql)).bind(name).fetch_all(replica).await.map_err(fail)?;
    rows.iter()
        .map(|row| {
            let table = TableName::new(get::<String>(row, 0)?, get::<String>(row, 1)?);
            copy_table(row, table.clone()).at(|| format!("millstream.copied_table of replica '{name}', table {table}"))
        })
        .collect()
}

fn copy_table(row: &PgRow, table: TableName) -> Result<CopyTable> {
    let state = CopyState::parse(get(row, 2)?)?;
    let version = get::<Option<Json<TableSchema>>>(row, 3)?.map(|json| json.0);
    let key = get::<Option<Vec<String>>>(row, 4)?.unwrap_or_default();
    let timeline = get::<Option<i64>>(row, 5)?.and_then(|number| u32::try_from(number).ok());
    let (replaced, shadow) = (get(row, 6)?, get::<Option<String>>(row, 7)?.map(ledger::shadow));
    Ok(CopyTable { table, state, replaced, shadow, began: version.map(|v| (v, key)), timeline, shape: None })
}

/// A table's chunks in order.
pub(super) async fn chunks(replica: &mut PgConnection, name: &str, table: &TableName) -> Result<Vec<Chunk>> {
    let rows = sqlx::query(
        "SELECT chunk, lower, upper, snapshot, insert_lsn::text FROM millstream.copy_chunk \
         WHERE replica = $1 AND table_schema = $2 AND table_name = $3 ORDER BY chunk",
    )
    .bind(name)
    .bind(&table.schema)
    .bind(&table.name)
    .fetch_all(replica)
    .await
    .map_err(fail)?;
    rows.iter().map(chunk).collect::<Result<_>>().at(|| format!("millstream.copy_chunk of replica '{name}', table {table}"))
}

fn chunk(row: &PgRow) -> Result<Chunk> {
    let moment = match (get::<Option<String>>(row, 3)?, get::<Option<String>>(row, 4)?) {
        (Some(snapshot), Some(lsn)) => Some(ChunkMoment { snapshot: snapshot.parse()?, insert_lsn: lsn.parse()? }),
        (None, None) => None,
        _ => return Err(damaged("a chunk has a snapshot or an LSN alone")),
    };
    Ok(Chunk { number: get(row, 0)?, range: KeyRange { lower: get(row, 1)?, upper: get(row, 2)? }, moment })
}

/// True when deferred keys are being built: the replay has passed the last snapshot already.
pub(super) async fn finishing(replica: &mut PgConnection, name: &str) -> Result<bool> {
    sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM millstream.deferred_ddl WHERE replica = $1 AND done)")
        .bind(name)
        .fetch_one(replica)
        .await
        .map_err(fail)
}

/// Rows are copied by name, which somebody may have given to another table: false where that is none of the ledger's. What has the name keeps it to the
/// end of the transaction.
///
/// # Errors
/// A halt where nothing has the name, or another table of the ledger; the server's.
async fn hold_name(transaction: &mut PgConnection, name: &str, table: &TableName) -> Result<bool> {
    let lock = format!("LOCK TABLE ONLY {} IN ROW EXCLUSIVE MODE", quote_table(table));
    transaction.execute(AssertSqlSafe(lock)).await.map_err(fail)?;
    let sql = format!(
        "SELECT EXISTS (SELECT FROM millstream.copied_table WHERE replica_table = {here} AND (table_schema, table_name) <> ($1, $2)), \
         EXISTS (SELECT FROM millstream.copied_table WHERE replica = $3 AND (table_schema, table_name) = ($1, $2) AND {})",
        is_replaced(),
        here = identity_of("$1", "$2")
    );
    let query = sqlx::query_as::<_, (bool, bool)>(AssertSqlSafe(sql)).bind(&table.schema).bind(&table.name).bind(name);
    match query.fetch_one(transaction).await.map_err(fail)? {
        (true, _) => Err(of_another(table)),
        (false, replaced) => Ok(!replaced),
    }
}

/// Before rows of a table are copied, in the transaction that copies them: what they go into, which keeps its name to the transaction's end. Some are in
/// it already, and all belong into one.
///
/// # Errors
/// [`ErrorKind::Busy`] when another table has its name: its copy has to start again; as [`hold_name`].
pub(super) async fn hold_place(transaction: &mut PgConnection, name: &str, table: &TableName) -> Result<TableName> {
    let held = match shadow_of(transaction, name, table).await? {
        Some(shadow) => shadow::hold(transaction, &shadow).await?.then_some(shadow),
        None => hold_name(transaction, name, table).await?.then(|| table.clone()),
    };
    held.ok_or_else(|| replaced_while_copied(table))
}

/// What the rows of a table that is copied again are collected in.
async fn shadow_of(connection: &mut PgConnection, name: &str, table: &TableName) -> Result<Option<TableName>> {
    let query = sqlx::query_scalar::<_, Option<String>>(
        "SELECT shadow FROM millstream.copied_table WHERE replica = $1 AND table_schema = $2 AND table_name = $3",
    );
    let found = query.bind(name).bind(&table.schema).bind(&table.name).fetch_optional(connection).await.map_err(fail)?;
    Ok(found.flatten().map(ledger::shadow))
}

/// Stores a table's plan: from then on its copy has begun.
pub(super) async fn store_plan(
    replica: &mut PgConnection,
    name: &str,
    epoch: ApplyEpoch,
    plan: &TablePlan,
    timeline: u32,
) -> Result<()> {
    let table = &plan.shape.schema.table;
    let mut transaction = replica.begin().await.map_err(fail)?;
    hold_epoch(&mut transaction, name, epoch).await?;
    let shadow = shadow_of(&mut transaction, name, table).await?;
    match &shadow {
        Some(shadow) => shadow::make(&mut transaction, shadow, &plan.shape).await?,
        None => take_empty(&mut transaction, name, table).await?,
    }
    for (number, range) in plan.chunks.iter().enumerate() {
        sqlx::query(
            "INSERT INTO millstream.copy_chunk (replica, table_schema, table_name, chunk, lower, upper) VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(name)
        .bind(&table.schema)
        .bind(&table.name)
        .bind(i32::try_from(number).unwrap_or(i32::MAX))
        .bind(&range.lower)
        .bind(&range.upper)
        .execute(&mut *transaction)
        .await
        .map_err(fail)?;
    }
    let key: Vec<&str> = plan.shape.key.iter().map(|k| k.name.as_str()).collect();
    let sql = format!(
        "UPDATE millstream.copied_table SET state = 'copying', table_version = $4, key_columns = $5, estimated_rows = $6, \
         estimated_bytes = $7, timeline = $8, source_oid = $9, rows = 0, bytes = 0, began_at = clock_timestamp(), replica_table = {} \
         WHERE replica = $1 AND table_schema = $2 AND table_name = $3 AND state = 'pending'",
        identity_of("$2", "$3")
    );
    sqlx::query(AssertSqlSafe(sql))
        .bind(name)
        .bind(&table.schema)
        .bind(&table.name)
        .bind(Json(&plan.shape.schema))
        .bind(key)
        .bind(plan.estimated_rows.cast_signed())
        .bind(plan.estimated_bytes.cast_signed())
        .bind(i64::from(timeline))
        .bind(i64::from(plan.shape.schema.source_oid))
        .execute(&mut *transaction)
        .await
        .map_err(fail)?;
    if plan.chunks.len() > 1 && shadow.is_none() {
        key::take_off(&mut transaction, name, table).await?;
    }
    transaction.commit().await.map_err(fail)?;
    if shadow.is_some() {
        failpoint::hit("recopy.planned")?;
    }
    Ok(())
}

/// Before a table's first chunk.
///
/// # Errors
/// A halt when it holds rows; as [`hold_name`].
async fn take_empty(transaction: &mut PgConnection, name: &str, table: &TableName) -> Result<()> {
    let is_its_own = hold_name(transaction, name, table).await?;
    let holds = format!("SELECT EXISTS (SELECT 1 FROM ONLY {})", quote_table(table));
    if sqlx::query_scalar::<_, bool>(AssertSqlSafe(holds)).fetch_one(&mut *transaction).await.map_err(fail)? {
        let message =
            format!("the replica's table {table} was empty at init and holds rows now; empty it, its copy begins by itself then");
        return Err(Error::halt(HaltCode::ReplicaConflict, message));
    }
    if is_its_own { Ok(()) } else { take_over(transaction, name, table).await }
}

/// A table that somebody has put in the place of the one that `init` saw: its keys may be broken while it is copied as well, what was built on the other is
/// built on it, and what it has already is not built again.
async fn take_over(transaction: &mut PgConnection, name: &str, table: &TableName) -> Result<()> {
    tracing::info!(%table, "the replica's table is not the one that was there at init; rows are copied into this one");
    let (drops, later) = init::keys_to_take_off(transaction, table).await?;
    init::publication::execute(transaction, Side::Replica, &drops).await?;
    let statements: Vec<&str> = later.iter().map(|later| later.statement.as_str()).collect();
    let forget = "DELETE FROM millstream.deferred_ddl WHERE replica = $1 AND table_schema = $2 AND table_name = $3 AND (statement = ANY($4) \
         OR statement IN (SELECT pg_catalog.pg_get_indexdef(indexrelid) FROM pg_catalog.pg_index WHERE indrelid = pg_catalog.to_regclass($5)) \
         OR kind = 'key' AND EXISTS (SELECT FROM pg_catalog.pg_constraint WHERE contype = 'p' AND conrelid = pg_catalog.to_regclass($5)))";
    let query = sqlx::query(forget).bind(name).bind(&table.schema).bind(&table.name).bind(statements).bind(quote_table(table));
    query.execute(&mut *transaction).await.map_err(fail)?;
    let again =
        "UPDATE millstream.deferred_ddl SET done = false WHERE replica = $1 AND table_schema = $2 AND table_name = $3 AND done";
    let query = sqlx::query(again).bind(name).bind(&table.schema).bind(&table.name);
    query.execute(&mut *transaction).await.map_err(fail)?;
    init::put_off(transaction, name, &later).await.map_err(fail)
}

/// Forgets the chunks of a table whose copy cannot go on, and empties it. Only ever a table that this copy itself has filled: one that has been put in its
/// place stays as it is, and must be empty for its copy to begin. One that is copied again shows its old content as before.
pub(super) async fn restart(replica: &mut PgConnection, name: &str, epoch: ApplyEpoch, table: &TableName) -> Result<()> {
    let mut transaction = replica.begin().await.map_err(fail)?;
    hold_epoch(&mut transaction, name, epoch).await?;
    let back = sqlx::query(
        "UPDATE millstream.copied_table SET state = 'pending', table_version = NULL, key_columns = NULL, timeline = NULL, source_oid = NULL, live_after_lsn = NULL, rows = 0, bytes = 0 \
         WHERE replica = $1 AND table_schema = $2 AND table_name = $3 AND state IN ('copying', 'catching_up')",
    )
    .bind(name)
    .bind(&table.schema)
    .bind(&table.name)
    .execute(&mut *transaction)
    .await
    .map_err(fail)?;
    if back.rows_affected() == 1 {
        let shadow = shadow_of(&mut transaction, name, table).await?;
        let is_its_own = shadow.is_none() && hold_name(&mut transaction, name, table).await?;
        sqlx::query("DELETE FROM millstream.copy_chunk WHERE replica = $1 AND table_schema = $2 AND table_name = $3")
            .bind(name)
            .bind(&table.schema)
            .bind(&table.name)
            .execute(&mut *transaction)
            .await
            .map_err(fail)?;
        if let Some(shadow) = &shadow {
            shadow::drop_table(&mut transaction, shadow).await?;
        } else if is_its_own {
            empty(&mut transaction, name, table).await?;
        }
    }
    transaction.commit().await.map_err(fail)
}

async fn empty(transaction: &mut PgConnection, name: &str, table: &TableName) -> Result<()> {
    let quoted = quote_table(table);
    let referenced = "SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_constraint WHERE contype = 'f' AND confrelid = pg_catalog.to_regclass($1) AND conrelid <> confrelid)";
    // TRUNCATE refuses a table that a foreign key refers to.
    let referenced: bool = sqlx::query_scalar(referenced).bind(&quoted).fetch_one(&mut *transaction).await.map_err(fail)?;
    let empty = if referenced { format!("DELETE FROM ONLY {quoted}") } else { format!("TRUNCATE ONLY {quoted}") };
    transaction.execute(AssertSqlSafe(empty)).await.map_err(fail)?;
    if referenced { Ok(()) } else { take_keys_off(transaction, name, table).await }
}

/// Keys that were built already may be broken while the table is loaded again: they are put off once more. (Those that foreign keys of other
/// tables stand on cannot be dropped alone and stay.)
async fn take_keys_off(transaction: &mut PgConnection, name: &str, table: &TableName) -> Result<()> {
    let built = "kind <> 'index' AND statement NOT LIKE '% NOT VALID' AND done";
    let forget =
        format!("DELETE FROM millstream.deferred_ddl WHERE replica = $1 AND table_schema = $2 AND table_name = $3 AND {built}");
    let query = sqlx::query(AssertSqlSafe(forget)).bind(name).bind(&table.schema).bind(&table.name);
    if query.execute(&mut *transaction).await.map_err(fail)?.rows_affected() == 0 {
        return Ok(());
    }
    let (drops, later) = init::keys_to_take_off(transaction, table).await?;
    init::publication::execute(transaction, Side::Replica, &drops).await?;
    init::put_off(transaction, name, &later).await.map_err(fail)
}

/// Notes a chunk as loaded, in the transaction that holds its rows.
pub(super) async fn chunk_loaded(
    transaction: &mut PgConnection,
    name: &str,
    table: &TableName,
    chunk: i32,
    moment: &ChunkMoment,
    (rows, bytes): (u64, u64),
) -> Result<()> {
    let done = sqlx::query(
        "UPDATE millstream.copy_chunk SET state = 'loaded', snapshot = $5, insert_lsn = $6::pg_lsn, rows = $7, bytes = $8, loaded_at = clock_timestamp() \
         WHERE replica = $1 AND table_schema = $2 AND table_name = $3 AND chunk = $4 AND state = 'pending'",
    )
    .bind(name)
    .bind(&table.schema)
    .bind(&table.name)
    .bind(chunk)
    .bind(moment.snapshot.to_string())
    .bind(moment.insert_lsn.to_string())
    .bind(rows.cast_signed())
    .bind(bytes.cast_signed())
    .execute(transaction)
    .await
    .map_err(fail)?;
    if done.rows_affected() == 1 {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Fenced, format!("chunk {chunk} of {table} was loaded by another applier")))
}

/// Adds the chunk of a single key, loaded, in the transaction that holds its row. A table that was live after some place is live after a later one.
pub(super) async fn key_loaded(
    transaction: &mut PgConnection,
    name: &str,
    table: &TableName,
    key: &[String],
    moment: &ChunkMoment,
    rows: u64,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO millstream.copy_chunk (replica, table_schema, table_name, chunk, lower, upper, state, snapshot, insert_lsn, rows, bytes, loaded_at) \
         SELECT $1, $2, $3, coalesce(max(chunk), 0) + 1, $4, $4, 'loaded', $5, $6::pg_lsn, $7, 0, clock_timestamp() \
         FROM millstream.copy_chunk WHERE replica = $1 AND table_schema = $2 AND table_name = $3",
    )
    .bind(name)
    .bind(&table.schema)
    .bind(&table.name)
    .bind(key)
    .bind(moment.snapshot.to_string())
    .bind(moment.insert_lsn.to_string())
    .bind(rows.cast_signed())
    .execute(transaction)
    .await
    .map(drop)
    .map_err(fail)
}

/// All chunks are loaded: the tables catch up until past the last snapshot of them all.
pub(super) async fn all_loaded(replica: &mut PgConnection, name: &str, epoch: ApplyEpoch) -> Result<()> {
    let mut transaction = replica.begin().await.map_err(fail)?;
    hold_epoch(&mut transaction, name, epoch).await?;
    sqlx::query(
        "UPDATE millstream.copied_table t SET state = 'catching_up', live_after_lsn = (SELECT max(insert_lsn) FROM millstream.copy_chunk WHERE replica = $1), \
           copy_group = (SELECT max(copy_group) FROM millstream.copied_table WHERE replica = $1 AND state NOT IN ('live', 'leaving')), \
           rows = c.rows, bytes = c.bytes \
         FROM (SELECT table_schema, table_name, sum(rows)::int8 AS rows, sum(bytes)::int8 AS bytes FROM millstream.copy_chunk WHERE replica = $1 GROUP BY 1, 2) c \
         WHERE t.replica = $1 AND t.state NOT IN ('live', 'leaving') AND t.table_schema = c.table_schema AND t.table_name = c.table_name",
    )
    .bind(name)
    .execute(&mut *transaction)
    .await
    .map_err(fail)?;
    transaction.commit().await.map_err(fail)
}

/// What the ledger says of progress.
pub(super) async fn progress(replica: &mut PgConnection, name: &str) -> Result<CopyProgress> {
    let row = sqlx::query(
        "SELECT count(DISTINCT (c.table_schema, c.table_name))::int8, count(*)::int8, count(*) FILTER (WHERE c.state = 'loaded')::int8, \
           coalesce(sum(c.rows), 0)::int8, coalesce(sum(c.bytes), 0)::int8, \
           (SELECT coalesce(sum(estimated_rows), 0)::int8 FROM millstream.copied_table WHERE replica = $1 AND state NOT IN ('live', 'leaving')), \
           (SELECT count(*)::int8 FROM millstream.copied_table t WHERE replica = $1 AND state NOT IN ('live', 'leaving') AND NOT EXISTS (SELECT 1 FROM millstream.copy_chunk x \
              WHERE x.replica = $1 AND x.table_schema = t.table_schema AND x.table_name = t.table_name AND x.state = 'pending')) \
         FROM millstream.copy_chunk c WHERE c.replica = $1",
    )
    .bind(name)
    .fetch_one(replica)
    .await
    .map_err(fail)?;
    let number = |index| get::<i64>(&row, index).map(i64::cast_unsigned);
    Ok(CopyProgress {
        tables: number(0)?,
        chunks: number(1)?,
        chunks_loaded: number(2)?,
        rows: number(3)?,
        bytes: number(4)?,
        rows_estimated: number(5)?,
        tables_loaded: number(6)?,
        ..CopyProgress::default()
    })
}

/// The position from which on the tables may be live.
pub(super) fn highest(chunks: &[Chunk]) -> Lsn {
    chunks.iter().filter_map(|c| c.moment.as_ref()).map(|m| m.insert_lsn).max().unwrap_or_default()
}
