//! Loading chunks: several at a time, each from one source transaction into one replica transaction.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::BytesMut;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::progress::Meter;
use super::{PostgresCopy, connect_replica, state, wait};
use crate::capture::snapshot::{ChunkMoment, CopyFormat, KeyRange, TableReader, TableShape};
use crate::config::{ReplicaConfig, SourceConfig};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::{ApplyEpoch, TableName};
use crate::failpoint;
use crate::postgres::sql::{Side, classify, quote_table};
use crate::replica::postgres::ledger::hold_epoch;
use crate::task::ended_early;

/// Copy data that is collected before it is sent on.
const SEND_BYTES: usize = 128 << 10;

struct Job {
    shape: Arc<TableShape>,
    format: CopyFormat,
    chunk: i32,
    range: KeyRange,
}

/// What the loaders of one copy share.
struct Work {
    source: SourceConfig,
    replica: ReplicaConfig,
    epoch: ApplyEpoch,
    jobs: Mutex<VecDeque<Job>>,
    /// Chunks left of each table.
    left: Mutex<BTreeMap<TableName, usize>>,
    /// Tables whose definition is not the one that their copy began with.
    changed: Mutex<Vec<TableName>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Loads every chunk that is not loaded. Gives the tables whose copy has to start again.
pub(super) async fn load_all(
    copy: &PostgresCopy,
    epoch: ApplyEpoch,
    cancel: &CancellationToken,
    replica: &mut PgConnection,
) -> Result<Vec<TableName>> {
    let name = &copy.replica.name;
    let mut jobs = VecDeque::new();
    let mut left = BTreeMap::new();
    let mut reader = TableReader::connect(&copy.source.connect).await?;
    for table in state::tables(replica, name).await? {
        let chunks = state::chunks(replica, name, &table.table).await?;
        let pending: Vec<_> = chunks.into_iter().filter(|c| c.moment.is_none()).collect();
        if pending.is_empty() {
            continue;
        }
        let shape = reader.shape(&table.table).await?;
        if !table.began_as(&shape) {
            return Ok(vec![table.table]);
        }
        let format = format(replica, &shape, table.place()).await?;
        let shape = Arc::new(shape);
        left.insert(table.table, pending.len());
        jobs.extend(pending.into_iter().map(|c| Job { shape: Arc::clone(&shape), format, chunk: c.number, range: c.range }));
    }
    copy.meter.begin(state::progress(replica, name).await?);
    let workers = copy.source.copy_workers.clamp(1, jobs.len().max(1));
    let work = Arc::new(Work {
        source: copy.source.clone(),
        replica: copy.replica.clone(),
        epoch,
        jobs: Mutex::new(jobs),
        left: Mutex::new(left),
        changed: Mutex::default(),
    });
    // Dropping the set ends its tasks; their transactions roll back with their connections.
    let mut tasks = JoinSet::new();
    for _ in 0..workers {
        tasks.spawn(run_loader(Arc::clone(&work), copy.meter.clone()));
    }
    loop {
        tokio::select! {
            () = cancel.cancelled() => return Err(Error::new(ErrorKind::Cancelled, "asked to end")),
            done = tasks.join_next() => match done {
                None => break,
                Some(Ok(result)) => result?,
                Some(Err(ended)) => return Err(ended_early("a loader", &ended)),
            },
        }
    }
    let mut changed = std::mem::take(&mut *lock(&work.changed));
    changed.sort();
    changed.dedup();
    Ok(changed)
}

async fn run_loader(work: Arc<Work>, meter: Meter) -> Result<()> {
    let mut connections = None;
    let mut backend = 0;
    loop {
        let Some(job) = lock(&work.jobs).pop_front() else { return Ok(()) };
        let table = job.shape.schema.table.clone();
        if lock(&work.changed).contains(&table) {
            continue;
        }
        let (reader, replica) = match &mut connections {
            Some(pair) => pair,
            none => {
                let mut replica = connect_replica(&work.replica).await?;
                backend = wait::backend(&mut replica).await?;
                none.insert((TableReader::connect(&work.source.connect).await?, replica))
            }
        };
        let loading = load(&work, &meter, &job, reader, replica);
        let loaded =
            wait::watched(&work.replica.connect, backend, loading).await.at(|| format!("table {table}, chunk {}", job.chunk))?;
        if loaded {
            let mut left = lock(&work.left);
            let rest = left.entry(table).or_insert(1);
            *rest -= 1;
            meter.chunk_loaded(*rest == 0);
        } else {
            lock(&work.changed).push(table);
        }
    }
}

/// Loads one chunk; false when the table's definition has changed.
async fn load(work: &Work, meter: &Meter, job: &Job, reader: &mut TableReader, replica: &mut PgConnection) -> Result<bool> {
    let table = &job.shape.schema.table;
    let (moment, shape) = reader.begin(table).await?;
    if shape != *job.shape {
        reader.abandon().await?;
        return Ok(false);
    }
    let name = &work.replica.name;
    let mut transaction = replica.begin().await.map_err(fail)?;
    hold_epoch(&mut transaction, name, work.epoch).await?;
    let place = state::hold_place(&mut transaction, name, table).await?;
    let moved = relay(reader, &mut transaction, &shape, &place, &job.range, job.format, Some(meter)).await?;
    reader.finish(&moment).await?;
    state::chunk_loaded(&mut transaction, name, table, job.chunk, &moment, moved).await?;
    failpoint::hit("copy.chunk_loaded")?;
    transaction.commit().await.map_err(fail)?;
    failpoint::hit("copy.chunk_committed")?;
    Ok(true)
}

/// Reads one key again, as a chunk of its own: what the replica has under it goes, what the source has comes.
pub(super) async fn reread(
    name: &str,
    replica: &mut PgConnection,
    reader: &mut TableReader,
    epoch: ApplyEpoch,
    table: &TableName,
    key: &[String],
) -> Result<()> {
    let range = KeyRange { lower: Some(key.to_vec()), upper: Some(key.to_vec()) };
    let (moment, shape): (ChunkMoment, TableShape) = reader.begin(table).await?;
    let mut transaction = replica.begin().await.map_err(fail)?;
    hold_epoch(&mut transaction, name, epoch).await?;
    let place = state::hold_place(&mut transaction, name, table).await?;
    let delete = format!("DELETE FROM ONLY {} WHERE {}", quote_table(&place), range.condition(&shape.key));
    transaction.execute(AssertSqlSafe(delete)).await.map_err(fail)?;
    let (rows, _) = relay(reader, &mut transaction, &shape, &place, &range, CopyFormat::Text, None).await?;
    reader.finish(&moment).await?;
    state::key_loaded(&mut transaction, name, table, key, &moment, rows).await?;
    transaction.commit().await.map_err(fail)
}

/// How a table's rows can travel: in binary where every type is the same on both sides.
async fn format(replica: &mut PgConnection, shape: &TableShape, place: &TableName) -> Result<CopyFormat> {
    let sql = "SELECT attname::text, atttypid::int8 FROM pg_catalog.pg_attribute \
               WHERE attrelid = pg_catalog.to_regclass($1) AND attnum > 0 AND NOT attisdropped";
    let here = sqlx::query(sql).bind(quote_table(place)).fetch_all(replica).await.map_err(fail)?;
    let here: BTreeMap<String, i64> = here.iter().map(|row| (row.get(0), row.get(1))).collect();
    let there = |name: &str| here.get(name).and_then(|oid| u32::try_from(*oid).ok());
    Ok(CopyFormat::between(shape.schema.columns.iter().map(|column| (column.type_oid, there(&column.name)))))
}

/// Copies rows across. Holds no more than one piece of [`SEND_BYTES`] and one row; the slower end sets the pace.
async fn relay(
    reader: &mut TableReader,
    replica: &mut PgConnection,
    shape: &TableShape,
    place: &TableName,
    range: &KeyRange,
    format: CopyFormat,
    meter: Option<&Meter>,
) -> Result<(u64, u64)> {
    let sql = format!("COPY {} ({}) FROM STDIN{}", quote_table(place), shape.column_list(), format.option());
    let mut out = reader.rows(shape, range, format).await?;
    let mut into = replica.copy_in_raw(&sql).await.map_err(fail)?;
    let mut buffer = BytesMut::with_capacity(SEND_BYTES * 2);
    let (mut rows, mut bytes) = (0_u64, 0_u64);
    let mut said = (0_u64, 0_u64);
    while let Some(line) = out.next().await? {
        rows += 1;
        bytes += line.len() as u64;
        buffer.extend_from_slice(&line);
        if buffer.len() >= SEND_BYTES {
            if let Some(meter) = meter {
                meter.pass(buffer.len()).await;
                meter.moved(rows - said.0, bytes - said.1);
                said = (rows, bytes);
            }
            into.send(&buffer[..]).await.map_err(fail)?;
            buffer.clear();
        }
    }
    if !buffer.is_empty() {
        // Of a small chunk it is all there is: the limit is for those as well.
        if let Some(meter) = meter {
            meter.pass(buffer.len()).await;
        }
        into.send(&buffer[..]).await.map_err(fail)?;
    }
    let written = into.finish().await.map_err(fail)?;
    // Pieces were counted on the way; in the binary format one of them ends the data and is no row.
    rows = out.rows().unwrap_or(rows);
    if let Some(meter) = meter {
        meter.moved(rows.saturating_sub(said.0), bytes - said.1);
    }
    if written != rows {
        return Err(Error::new(ErrorKind::Unexpected, format!("the source gave {rows} rows and the replica took {written}")));
    }
    Ok((rows, bytes))
}

fn fail(error: sqlx::Error) -> Error {
    classify(error, Side::Replica)
}
