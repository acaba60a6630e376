//! The source's replication slot: made, named by what it waits for, dropped. And the source's identity.

use std::time::Duration;

use sqlx::{PgConnection, Row};
use tokio::time::{Instant, sleep};

use crate::capture::begin::publication_name;
use crate::capture::postgres::slot::{identify, lineage};
use crate::config::SourceConfig;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::{History, Lsn};
use crate::postgres::sql::{Side, classify, connect};
use crate::postgres::{Mode, PgClient};

const APPLICATION: &str = "millstream init";
/// How often the blockers of a slot's creation are looked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A walsender that was told to end is gone within this, or something is wrong with its host.
const SENDER_GONE: Duration = Duration::from_secs(20);

/// A transaction that something waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocker {
    /// `backend pid 123` or `prepared transaction 'x'`.
    pub who: String,
    /// Since when its transaction runs.
    pub age_seconds: i64,
    /// What it does, cut; `None` where nothing can be said.
    pub query: Option<String>,
}

impl std::fmt::Display for Blocker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, in a transaction for {} s", self.who, self.age_seconds)?;
        self.query.as_ref().map_or(Ok(()), |query| write!(f, ": {query}"))
    }
}

/// Transactions with one of these ids that are still in progress, oldest first. With `None`, all that have an id, first those that
/// `waiting_pid` waits for.
///
/// A query's literals are replaced: values go into no log.
///
/// # Errors
/// The server's.
pub async fn blockers(source: &mut PgConnection, xids: Option<&[i64]>, waiting_pid: i32) -> Result<Vec<Blocker>> {
    let rows = sqlx::query(
        "WITH busy AS ( \
             SELECT a.pid, 'backend pid ' || a.pid || coalesce(' (' || nullif(a.usename, '') || coalesce(', ' || nullif(a.application_name, ''), '') || ')', '') AS who, \
                    a.xact_start AS since, a.backend_xid AS xid, \
                    pg_catalog.left(pg_catalog.regexp_replace(pg_catalog.regexp_replace(a.query, '''[^'']*''', '''...''', 'g'), '\\s+', ' ', 'g'), 120) AS query \
             FROM pg_catalog.pg_stat_activity a WHERE a.backend_xid IS NOT NULL AND a.pid <> pg_catalog.pg_backend_pid() \
             UNION ALL \
             SELECT 0, 'prepared transaction ' || pg_catalog.quote_literal(p.gid), p.prepared, p.transaction, NULL FROM pg_catalog.pg_prepared_xacts p) \
         SELECT who, coalesce(extract(epoch FROM clock_timestamp() - since), 0)::int8, query FROM busy \
         WHERE $1::int8[] IS NULL OR xid::text::int8 = ANY (SELECT x & 4294967295 FROM unnest($1::int8[]) x) \
         ORDER BY NOT pid = ANY (pg_catalog.pg_blocking_pids($2)), since NULLS LAST",
    )
    .bind(xids)
    .bind(waiting_pid)
    .fetch_all(source)
    .await
    .map_err(|e| classify(e, Side::Source))?;
    Ok(rows.iter().map(|r| Blocker { who: r.get(0), age_seconds: r.get(1), query: r.get(2) }).collect())
}

/// Creates a logical slot and gives its consistent point. While the server waits for older transactions, `waiting` is told which.
///
/// # Errors
/// The server's.
pub async fn create(config: &SourceConfig, slot: &str, waiting: &mut (dyn FnMut(String) + Send)) -> Result<Lsn> {
    let mut maker = connect(&config.connect, Side::Source, APPLICATION).await?;
    let mut watcher = connect(&config.connect, Side::Source, APPLICATION).await?;
    let pid: i32 = sqlx::query_scalar("SELECT pg_catalog.pg_backend_pid()")
        .fetch_one(&mut maker)
        .await
        .map_err(|e| classify(e, Side::Source))?;
    let version = maker.server_version_num().unwrap_or(0);
    // Synchronised to standbys (I5: a promotion without the slot is loss), from the version on that can.
    let options = if version >= 170_000 { "false, false, true" } else { "false, false" };
    let sql = format!("SELECT lsn::text FROM pg_catalog.pg_create_logical_replication_slot($1, 'pgoutput', {options})");
    let make = sqlx::query_scalar::<_, String>(sqlx::AssertSqlSafe(sql)).bind(slot).fetch_one(&mut maker);
    tokio::pin!(make);
    let mut said = String::new();
    loop {
        tokio::select! {
            made = &mut make => {
                return made.map_err(|e| classify(e, Side::Source)).at(|| format!("creating slot '{slot}'"))?.parse();
            }
            () = sleep(LOOK_EVERY) => {
                let first = blockers(&mut watcher, None, pid).await?.into_iter().next();
                if let Some(blocker) = first {
                    let text = format!("creating the slot waits for {blocker}");
                    if blocker.who != said {
                        said.clone_from(&blocker.who);
                        waiting(text);
                    }
                }
            }
        }
    }
}

/// Whether a slot stands.
///
/// # Errors
/// The server's.
pub async fn exists(source: &mut PgConnection, slot: &str) -> Result<bool> {
    sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_replication_slots WHERE slot_name = $1)")
        .bind(slot)
        .fetch_one(source)
        .await
        .map_err(|e| classify(e, Side::Source))
}

/// Slots of ours for a source, whatever their nonce.
///
/// # Errors
/// The server's.
pub async fn of_source(source: &mut PgConnection, source_name: &str) -> Result<Vec<String>> {
    let pattern = format!("^{}_[0-9a-f]{{8}}$", publication_name(source_name));
    sqlx::query_scalar(
        "SELECT slot_name::text FROM pg_catalog.pg_replication_slots \
         WHERE slot_name ~ $1 AND plugin = 'pgoutput' AND database = pg_catalog.current_database() ORDER BY 1",
    )
    .bind(pattern)
    .fetch_all(source)
    .await
    .map_err(|e| classify(e, Side::Source))
}

/// Drops a slot; ends the walsender that reads it when that is ours. False when it was not there.
///
/// # Errors
/// The server's; [`ErrorKind::Held`] when somebody else reads it, or our walsender does not go.
pub async fn drop_slot(source: &mut PgConnection, slot: &str) -> Result<bool> {
    let deadline = Instant::now() + SENDER_GONE;
    loop {
        let row = sqlx::query(
            "SELECT s.active_pid, coalesce(a.application_name, ''), a.usename = current_user \
             FROM pg_catalog.pg_replication_slots s LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = s.active_pid WHERE s.slot_name = $1",
        )
        .bind(slot)
        .fetch_optional(&mut *source)
        .await
        .map_err(|e| classify(e, Side::Source))?;
        let Some(row) = row else { return Ok(false) };
        let (pid, application, own): (Option<i32>, String, Option<bool>) = (row.get(0), row.get(1), row.get(2));
        let Some(pid) = pid else {
            let dropped = sqlx::query("SELECT pg_catalog.pg_drop_replication_slot($1)").bind(slot).execute(&mut *source).await;
            match dropped {
                Ok(_) => return Ok(true),
                // Somebody connected to it meanwhile: look again.
                Err(e) if e.as_database_error().and_then(|d| d.code()).is_some_and(|c| c == "55006") => continue,
                Err(e) => return Err(classify(e, Side::Source).context(format!("dropping slot '{slot}'"))),
            }
        };
        if own != Some(true) || !application.starts_with("millstream") {
            let message =
                format!("slot '{slot}' is being read by backend pid {pid} ('{application}'), which is not ours; end that first");
            return Err(Error::new(ErrorKind::Held, message));
        }
        if Instant::now() > deadline {
            let message = format!(
                "slot '{slot}': our walsender, backend pid {pid}, does not end; is a daemon still running? stop it first"
            );
            return Err(Error::new(ErrorKind::Held, message));
        }
        sqlx::query("SELECT pg_catalog.pg_terminate_backend($1)")
            .bind(pid)
            .execute(&mut *source)
            .await
            .map_err(|e| classify(e, Side::Source))?;
        sleep(Duration::from_millis(100)).await;
    }
}

/// The source's identity as it is now, with a slot that is to be made.
///
/// # Errors
/// The server's.
pub async fn history(config: &SourceConfig, slot: String) -> Result<History> {
    let mut client = PgClient::connect(&config.connect, Mode::Replication, Side::Source).await?;
    let server = identify(&mut client).await?;
    let lineage = lineage(&mut client, server.timeline).await?;
    let database = config.connect.database.clone();
    Ok(History { system_identifier: server.system_identifier, timeline: server.timeline, lineage, database, slot })
}
