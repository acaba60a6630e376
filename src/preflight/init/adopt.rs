//! `init --adopt`: a replica that holds a commit-order prefix of the source already, which the log can continue.
//!
//! Two ways to know the place:
//! - *writers stand still*: no transaction is in progress, and none gets an id while both sides are counted. The replica was
//!   loaded in that quiet, by any means; its place is the source's present one.
//! - *a physical backup recovered to an LSN* (`--at`): the same cluster by its system identifier, which left the source's
//!   timeline exactly there. A transaction is in it if and only if its commit record ends at or before that LSN.
//!
//! Rejected: an LSN read beside a dump. A dump's snapshot follows visibility, not LSN order: transactions below the LSN can be missing.

use std::sync::Arc;
use std::time::Duration;

use sqlx::{AssertSqlSafe, PgConnection};

use super::{Line, Report, stream};
use crate::capture::postgres::slot::{identify, lineage};
use crate::capture::recover::EntryPoint;
use crate::capture::snapshot::{Snapshot, at_record_end};
use crate::config::{ReplicaConfig, SourceConfig};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{History, Lsn, Position, TableName, Xid};
use crate::postgres::sql::{Side, classify, connect, quote_table};
use crate::postgres::{Mode, PgClient};
use crate::queue::Queue;
use crate::queue::log::Cursor;

/// How often a quiet moment is looked for: autovacuum takes ids as well.
const ATTEMPTS: u32 = 5;

/// What the replica holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Adopt {
    /// Everything up to here; `None`: everything, because writers stand still.
    pub at: Option<Position>,
}

/// What came of it: the place, or why not.
pub(super) type Verdict = Result<std::result::Result<Cursor, Vec<String>>>;

/// Finds the place from which the log continues a replica, and registers its consumer there.
pub(super) async fn place(
    queue: &Arc<dyn Queue>,
    source: &SourceConfig,
    replica: &ReplicaConfig,
    history: &History,
    tables: &[TableName],
    adopt: Adopt,
    report: Report<'_>,
) -> Verdict {
    let mut from = connect(&source.connect, Side::Source, "millstream init").await?;
    let mut to = connect(&replica.connect, Side::Replica, "millstream init").await?;
    let still = compare(&mut from, &mut to, tables).await?;
    match (adopt.at, still) {
        (None, None) => Ok(Err(vec![
            "writers do not stand still (transactions were in progress, or began while rows were counted): stop them, and the daemon, \
             whose heartbeats count too, and load the replica in that quiet; or recover a physical backup and say --at"
                .to_owned(),
        ])),
        (None, Some((_, differences))) if !differences.is_empty() => Ok(Err(differences)),
        (None, Some((lsn, _))) => {
            report(Line::Note(format!("rows of {} tables are counted alike while writers stand still", tables.len())));
            // Not the log's present end: a writer that came back after the count may be in it already.
            at(queue, source, replica, Position::Lsn(lsn)).await
        }
        (Some(position), still) => {
            if let Some(refusal) = check_physical(replica, history, position).await? {
                return Ok(Err(vec![refusal]));
            }
            say_counts(tables.len(), position, still.map(|(_, differences)| differences), report);
            at(queue, source, replica, position).await
        }
    }
}

/// What counting both sides says of a backup. Never a reason to refuse: the source may have gone on since.
fn say_counts(tables: usize, position: Position, differences: Option<Vec<String>>, report: Report<'_>) {
    let text = match differences {
        None => format!("rows of {tables} tables are not comparable: writers do not stand still"),
        Some(differences) if differences.is_empty() => format!("rows of {tables} tables are counted alike"),
        Some(differences) => format!(
            "rows of {} of {tables} tables differ in number, as they do where the source has gone on since {position}: {}",
            differences.len(),
            differences.join("; ")
        ),
    };
    report(Line::Note(text));
}

/// Counts both sides in a moment without writers. `None` when there is no such moment; otherwise its place and what differs.
async fn compare(from: &mut PgConnection, to: &mut PgConnection, tables: &[TableName]) -> Result<Option<(Lsn, Vec<String>)>> {
    for _ in 0..ATTEMPTS {
        let (mine, before, lsn) = moment(from).await?;
        if before.in_progress.is_empty() {
            let mut differences = Vec::new();
            for table in tables {
                let (there, here) = (count(from, Side::Source, table).await?, count(to, Side::Replica, table).await?);
                if there != here {
                    differences.push(format!("{table}: {there} rows at the source, {here} on the replica"));
                }
            }
            let (next, after, _) = moment(from).await?;
            if next == mine.next() && after.in_progress.is_empty() {
                wait_flushed(from, lsn).await?;
                return Ok(Some((lsn, differences)));
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(None)
}

/// Takes an id, then a snapshot, so that every transaction that had one before shows in it: a snapshot alone ends at the last transaction that *ended*,
/// and hides the newest ones in progress.
async fn moment(source: &mut PgConnection) -> Result<(Xid, Snapshot, Lsn)> {
    let fail = |e| classify(e, Side::Source);
    let sql = "SELECT pg_catalog.pg_current_xact_id()::text";
    let mine: String = sqlx::query_scalar(sql).fetch_one(&mut *source).await.map_err(fail)?;
    let mine = mine.parse().map(Xid).map_err(|_| Error::new(ErrorKind::Malformed, "a transaction id that is no number"))?;
    let sql = "SELECT pg_catalog.pg_current_snapshot()::text, pg_catalog.pg_current_wal_insert_lsn()::text";
    let row: (String, String) = sqlx::query_as(sql).fetch_one(source).await.map_err(fail)?;
    Ok((mine, row.0.parse()?, at_record_end(row.1.parse()?)))
}

/// Seen before it is durable (`synchronous_commit = off`) is not yet the source's for good.
async fn wait_flushed(source: &mut PgConnection, lsn: Lsn) -> Result<()> {
    loop {
        let flushed: String = sqlx::query_scalar("SELECT pg_catalog.pg_current_wal_flush_lsn()::text")
            .fetch_one(&mut *source)
            .await
            .map_err(|e| classify(e, Side::Source))?;
        if flushed.parse::<Lsn>()? >= lsn {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn count(connection: &mut PgConnection, side: Side, table: &TableName) -> Result<i64> {
    let sql = format!("SELECT count(*) FROM ONLY {}", quote_table(table));
    sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(connection).await.map_err(|e| classify(e, side))
}

/// Which tables of the source the replica's are, in their order, so that a name which moves before a table's first change is noticed. A physical copy has the
/// source's own numbers.
pub(super) async fn source_oids(
    source: &SourceConfig,
    replica: &mut PgConnection,
    tables: &[TableName],
    adopt: Adopt,
) -> Result<Vec<Option<i64>>> {
    let mut from = match adopt.at {
        Some(_) => None,
        None => Some(connect(&source.connect, Side::Source, "millstream init").await?),
    };
    let (schemas, names): (Vec<&str>, Vec<&str>) = tables.iter().map(|t| (t.schema.as_str(), t.name.as_str())).unzip();
    let oids = sqlx::query_scalar(
        "SELECT c.oid::bigint FROM unnest($1::text[], $2::text[]) WITH ORDINALITY u(s, t, n) \
         LEFT JOIN pg_catalog.pg_namespace s ON s.nspname = u.s LEFT JOIN pg_catalog.pg_class c ON c.relnamespace = s.oid AND c.relname = u.t \
         ORDER BY u.n",
    );
    let side = if from.is_some() { Side::Source } else { Side::Replica };
    let oids = oids.bind(schemas).bind(names).fetch_all(from.as_mut().unwrap_or(replica));
    oids.await.map_err(|e| classify(e, side))
}

/// Why a replica is no physical copy that left the source's history at a position; `None` when it is.
async fn check_physical(replica: &ReplicaConfig, history: &History, position: Position) -> Result<Option<String>> {
    let mut client = PgClient::connect(&replica.connect, Mode::Replication, Side::Replica).await?;
    let server = identify(&mut client).await?;
    if server.system_identifier != history.system_identifier {
        return Ok(Some(format!(
            "the replica is cluster {} and the source is {}: --at is for a physical backup of the source. An LSN read beside a dump is no \
             place in the log; load the replica while writers stand still, or let the first copy load it",
            server.system_identifier, history.system_identifier
        )));
    }
    let left = lineage(&mut client, server.timeline).await?;
    match left.iter().find(|(timeline, _)| *timeline == history.timeline) {
        Some((_, switch)) if Position::Lsn(Lsn(*switch)) == position => Ok(None),
        Some((_, switch)) => {
            let (timeline, switch) = (history.timeline, Lsn(*switch));
            Ok(Some(format!("the replica left the source's timeline {timeline} at {switch}: say --at {switch}")))
        }
        None => Ok(Some(format!(
            "the replica is on timeline {}, which did not leave the source's timeline {}: recover the backup to an LSN and promote it",
            server.timeline, history.timeline
        ))),
    }
}

/// The last place of the log at or below a position.
async fn at(queue: &Arc<dyn Queue>, source: &SourceConfig, replica: &ReplicaConfig, position: Position) -> Verdict {
    let start = EntryPoint::first(queue, &source.name).await?;
    stream::hold(queue, &source.name, &replica.name, &start).await?;
    match stream::find(queue, &source.name, start.offset, Some(position)).await? {
        Some(mut cursor) if cursor.position.is_some() => {
            cursor.position = Some(position);
            stream::put_cursor(queue, &source.name, &replica.name, &cursor).await?;
            Ok(Ok(cursor))
        }
        _ => {
            stream::release(queue, &source.name, &replica.name).await?;
            Ok(Err(vec![format!(
                "the log of {} begins after {position}: what lies between is not in it. Take the backup after `millstream init` has begun the stream",
                source.name
            )]))
        }
    }
}
