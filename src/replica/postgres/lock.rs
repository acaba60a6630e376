//! One applier per replica: a session-level advisory lock that dies with its connection. A convenience that avoids fights and
//! tells who holds it; what makes two appliers safe is the apply epoch (I8).
//!
//! A connection can outlive its daemon: a proxy or a pooler between them keeps it. An applier shows signs of life every
//! [`crate::replica::KEEP_ALIVE`]; one of our own role that has not for half a minute is ended, or the replica would stand still
//! until somebody did it by hand. One that was merely stopped and wakes up finds its session gone, and the ledger under another epoch.

use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::errors::{SHORT_WAIT, within};
use crate::error::{Error, ErrorKind, Result};

/// A holder that has been idle for so long is nobody's any more.
const ORPHANED_SECONDS: f64 = 30.0;

/// The holder of a lock.
const HOLDER: &str = "FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid, \
     LATERAL (SELECT pg_catalog.hashtextextended($1, 0) AS key) k \
     WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 \
       AND l.classid::bigint = ((k.key >> 32) & 4294967295) AND l.objid::bigint = (k.key & 4294967295) \
       AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())";

/// Takes the lock of a replica for this session.
///
/// # Errors
/// [`ErrorKind::Held`], naming the holder.
pub async fn acquire(connection: &mut PgConnection, replica: &str) -> Result<()> {
    let key = key(replica);
    let taken: bool = within(
        SHORT_WAIT,
        "taking the replica's lock",
        sqlx::query_scalar("SELECT pg_catalog.pg_try_advisory_lock(pg_catalog.hashtextextended($1, 0))")
            .bind(&key)
            .fetch_one(&mut *connection),
    )
    .await?;
    if taken {
        return Ok(());
    }
    let orphan = format!(
        "SELECT pg_catalog.pg_terminate_backend(a.pid) {HOLDER} AND a.application_name = $2 AND a.usename = current_user AND a.state = 'idle' \
         AND a.state_change < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $3)"
    );
    let ended = sqlx::query(AssertSqlSafe(orphan)).bind(&key).bind(format!("millstream apply {replica}")).bind(ORPHANED_SECONDS);
    let ended =
        within(SHORT_WAIT, "looking for an orphan with the replica's lock", ended.fetch_optional(&mut *connection)).await?;
    if ended.is_some() {
        tracing::warn!(replica, "ended a session on the replica that held its lock and showed no sign of life");
    }
    let who = held_by(connection, replica, None).await?.unwrap_or_else(|| "another session, gone by now".to_owned());
    Err(Error::new(ErrorKind::Held, format!("replica '{replica}' is being applied to by {who}")))
}

/// Who applies to a replica, as far as its lock tells; `None` for nobody, and for a session that no daemon is behind any more.
///
/// # Errors
/// The server's.
pub async fn holder(connection: &mut PgConnection, replica: &str) -> Result<Option<String>> {
    held_by(connection, replica, Some(ORPHANED_SECONDS)).await
}

/// The holder, unless it has been idle for so long.
async fn held_by(connection: &mut PgConnection, replica: &str, idle_seconds: Option<f64>) -> Result<Option<String>> {
    let sql = format!(
        "SELECT a.pid, coalesce(a.application_name, ''), coalesce(host(a.client_addr), 'a local socket'), a.backend_start::text {HOLDER} \
         AND ($2 IS NULL OR a.state <> 'idle' OR a.state_change > pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $2))"
    );
    let row = sqlx::query(AssertSqlSafe(sql)).bind(key(replica)).bind(idle_seconds).fetch_optional(connection);
    let row = within(SHORT_WAIT, "asking who holds the replica's lock", row).await?;
    Ok(row.map(|row| {
        let (pid, name): (i32, String) = (row.get(0), row.get(1));
        let (host, since): (String, String) = (row.get(2), row.get(3));
        format!("'{name}' from {host} (backend {pid} on the replica, since {since})")
    }))
}

fn key(replica: &str) -> String {
    format!("millstream/replica/{replica}")
}
