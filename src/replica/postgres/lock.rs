//! One applier per replica: a session-level advisory lock that dies with its connection. A convenience that avoids fights and
//! tells who holds it; what makes two appliers safe is the apply epoch (I8).

use sqlx::{PgConnection, Row};

use super::errors::{SHORT_WAIT, within};
use crate::error::{Error, ErrorKind, Result};

/// Takes the lock of a replica for this session.
///
/// # Errors
/// [`ErrorKind::Held`], naming the holder.
pub async fn acquire(connection: &mut PgConnection, replica: &str) -> Result<()> {
    let key = format!("millstream/replica/{replica}");
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
    let holder = within(
        SHORT_WAIT,
        "asking who holds the replica's lock",
        sqlx::query(
            "SELECT a.pid, coalesce(a.application_name, ''), coalesce(host(a.client_addr), 'a local socket'), a.backend_start::text \
             FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid, \
                  LATERAL (SELECT pg_catalog.hashtextextended($1, 0) AS key) k \
             WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 \
               AND l.classid::bigint = ((k.key >> 32) & 4294967295) AND l.objid::bigint = (k.key & 4294967295) \
               AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())",
        )
        .bind(&key)
        .fetch_optional(connection),
    )
    .await?;
    let who = holder.map_or_else(
        || "another session, gone by now".to_owned(),
        |row| {
            let (pid, name): (i32, String) = (row.get(0), row.get(1));
            let (host, since): (String, String) = (row.get(2), row.get(3));
            format!("'{name}' from {host} (backend {pid} on the replica, since {since})")
        },
    );
    Err(Error::new(ErrorKind::Held, format!("replica '{replica}' is being applied to by {who}")))
}
