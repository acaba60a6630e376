//! Tables that the configuration no longer names, on a replica that has them.
//!
//! The publication lets them go first. The log may still hold changes to them, and a replica that does not know a table halts at its changes; so the
//! ledger keeps the table until the replica has passed the place where the publication let it go. Until then changes to a live table are applied,
//! and those to one that never was are dropped. It can come back only after that, by a new copy:
//! changes made while it was not published are in no log.

use std::time::Duration;

use sqlx::PgConnection;

use super::publication::PublicationPlan;
use super::{Line, Report, Target};
use crate::error::Result;
use crate::event::TableName;
use crate::postgres::sql::{Side, classify};
use crate::replica::postgres::ledger::{CopyState, added};
use crate::replica::postgres::quarantine::ended::forget_gone;

/// How long `init` waits for a running daemon to pass the place.
const WAIT: Duration = Duration::from_secs(10);

/// Tables that are to be published again before they have left.
pub(super) fn still_leaving(target: &Target<'_>, published: &PublicationPlan) -> Vec<String> {
    let live = |table: &&TableName| target.registered.get(*table) == Some(&CopyState::Live);
    let text = |table: &TableName| {
        format!(
            "{table} is live on replica {} and was not published for a while: what happened to it meanwhile is lost. Take it out of the source's \
             tables, run `millstream init` until it has left, empty it on the replica, then put it back",
            target.config.name
        )
    };
    published.added.iter().filter(live).map(text).collect()
}

/// Lets tables go, as far as the replica has come. True when something was changed.
pub(super) async fn leave(
    target: &mut Target<'_>,
    source: &mut PgConnection,
    published: &PublicationPlan,
    report: Report<'_>,
) -> Result<bool> {
    if target.plan.leaving.is_empty() {
        return Ok(false);
    }
    let name = &target.config.name;
    // A run that was killed behind the publication has left tables without a mark.
    let mut unmarked = Vec::new();
    for table in &target.plan.leaving {
        if !has(&mut target.connection, name, table, true).await? {
            unmarked.push(table);
        }
    }
    if !unmarked.is_empty() {
        let Some(here) = published_no_more(source).await? else {
            report(Line::Note(format!(
                "replica {name}: tables leave once the transactions have ended that were in progress when they were taken out of the \
                 publication; run init again then"
            )));
            return Ok(!published.removed.is_empty());
        };
        for table in unmarked {
            mark(&mut target.connection, name, table, &here).await?;
        }
    }
    let deadline = tokio::time::Instant::now() + WAIT;
    loop {
        let mut left = Vec::new();
        for table in &target.plan.leaving {
            if !forget(&mut target.connection, name, table).await? {
                left.push(table.to_string());
            }
        }
        if left.is_empty() {
            report(Line::Done(format!("replica {name}: {}", super::gist(&[], &target.plan.leaving))));
            return Ok(true);
        }
        if tokio::time::Instant::now() > deadline {
            let list = left.join(", ");
            report(Line::Note(format!(
                "replica {name}: {list} leave once the replica has passed their last changes; run init again then"
            )));
            return Ok(left.len() < target.plan.leaving.len());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// A place in the source's log behind every change to tables that the publication has let go: what a transaction changed before is sent when it
/// commits. `None` when such a transaction does not end for a while.
async fn published_no_more(source: &mut PgConnection) -> Result<Option<String>> {
    let fail = |e| classify(e, Side::Source);
    // An id of our own bounds them all; a snapshot's end hides the newest ones in progress.
    let bound: String =
        sqlx::query_scalar("SELECT pg_catalog.pg_current_xact_id()::text").fetch_one(&mut *source).await.map_err(fail)?;
    let deadline = tokio::time::Instant::now() + WAIT;
    let ended = "SELECT pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot()) >= $1::xid8";
    while !sqlx::query_scalar::<_, bool>(ended).bind(&bound).fetch_one(&mut *source).await.map_err(fail)? {
        if tokio::time::Instant::now() > deadline {
            return Ok(None);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let here = sqlx::query_scalar("SELECT pg_catalog.pg_current_wal_insert_lsn()::text").fetch_one(source).await.map_err(fail)?;
    Ok(Some(here))
}

/// True when the ledger has a table; `marked`: with the place that it leaves at.
async fn has(replica: &mut PgConnection, name: &str, table: &TableName, marked: bool) -> Result<bool> {
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM millstream.copied_table WHERE replica IN ($1, $5) AND table_schema = $2 AND table_name = $3 \
         AND (NOT $4 OR live_after_lsn IS NOT NULL))",
    )
    .bind(name)
    .bind(&table.schema)
    .bind(&table.name)
    .bind(marked)
    .bind(added(name))
    .fetch_one(replica)
    .await
    .map_err(|e| classify(e, Side::Replica))
}

async fn mark(replica: &mut PgConnection, name: &str, table: &TableName, here: &str) -> Result<()> {
    sqlx::query("UPDATE millstream.copied_table SET live_after_lsn = $4::pg_lsn WHERE replica IN ($1, $5) AND table_schema = $2 AND table_name = $3")
        .bind(name)
        .bind(&table.schema)
        .bind(&table.name)
        .bind(here)
        .bind(added(name))
        .execute(replica)
        .await
        .map(drop)
        .map_err(|e| classify(e, Side::Replica))
}

/// Forgets a table that the replica has passed the end of. True when the ledger has it no longer.
async fn forget(replica: &mut PgConnection, name: &str, table: &TableName) -> Result<bool> {
    let gone = sqlx::query(
        "DELETE FROM millstream.copied_table c USING millstream.replica r WHERE r.name = c.replica AND c.replica IN ($1, $4) \
         AND c.table_schema = $2 AND c.table_name = $3 AND r.position::pg_lsn >= c.live_after_lsn",
    )
    .bind(name)
    .bind(&table.schema)
    .bind(&table.name)
    .bind(added(name))
    .execute(&mut *replica)
    .await
    .map_err(|e| classify(e, Side::Replica))?;
    forget_gone(replica, name).await?;
    Ok(gone.rows_affected() == 1 || !has(replica, name, table, false).await?)
}
