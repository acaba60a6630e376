//! Waits of a first copy, each with an end: sqlx's sockets have no keepalive, so a server whose host is gone would be waited for for ever.

use std::time::Duration;

use sqlx::PgConnection;

use super::APPLICATION;
use crate::config::PgConnect;
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint::deadline;
use crate::postgres::sql::{Side, classify, connect};

/// For an answer that takes no work to speak of.
const ANSWER: Duration = Duration::from_secs(60);
/// Between two looks at a session that works.
const LOOK_EVERY: Duration = Duration::from_secs(20);
/// Looks in a row that may fail: a server that refuses one may still be at work on hours of an index.
const LOOKS: u32 = 3;

/// Waits for an answer.
///
/// # Errors
/// The work's; [`ErrorKind::Connection`] when there is no answer. What it used is then in an unknown state and must be dropped.
pub(super) async fn within<T>(what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    let limit = deadline(ANSWER);
    match tokio::time::timeout(limit, work).await {
        Ok(done) => done,
        Err(_) => Err(Error::new(ErrorKind::Connection, format!("{what}: no answer within {} s", limit.as_secs()))),
    }
}

/// Waits for work of any length on a replica's session (loading a chunk, building an index), and looks from another session whether its backend is
/// still there.
///
/// # Errors
/// The work's; [`ErrorKind::Connection`] when the backend or the server is gone.
pub(super) async fn watched<T>(replica: &PgConnect, backend: i32, work: impl Future<Output = Result<T>>) -> Result<T> {
    let look = async {
        let mut failed = 0;
        loop {
            tokio::time::sleep(deadline(LOOK_EVERY)).await;
            match within("looking for a session of the copy", is_there(replica, backend)).await {
                Ok(true) => failed = 0,
                Ok(false) => return Error::new(ErrorKind::Connection, format!("backend {backend} on the replica is gone")),
                Err(error) => {
                    failed += 1;
                    if failed == LOOKS && error.kind() == ErrorKind::Connection {
                        return error;
                    }
                }
            }
        }
    };
    tokio::select! {
        biased;
        done = work => done,
        gone = look => Err(gone),
    }
}

/// The backend of a session.
pub(super) async fn backend(connection: &mut PgConnection) -> Result<i32> {
    let ask = sqlx::query_scalar("SELECT pg_catalog.pg_backend_pid()").fetch_one(connection);
    within("asking for the backend", async { ask.await.map_err(|e| classify(e, Side::Replica)) }).await
}

async fn is_there(replica: &PgConnect, backend: i32) -> Result<bool> {
    let mut connection = connect(replica, Side::Replica, APPLICATION).await?;
    let sql = "SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_stat_activity WHERE pid = $1 AND application_name = $2)";
    let found = sqlx::query_scalar(sql).bind(backend).bind(APPLICATION).fetch_one(&mut connection);
    found.await.map_err(|e| classify(e, Side::Replica))
}
