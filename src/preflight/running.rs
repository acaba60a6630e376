//! Is a daemon still at work on what is to be taken away?
//!
//! - *Embedded queue*: the folder's lock tells, which the kernel drops with the process however it ends. Whoever holds it keeps every daemon of the
//!   folder out meanwhile.
//! - *Kafka*, and one replica alone: the slot's reader, if it is heard of, and the session that holds the replica's lock. A daemon that waits, is paused or is halted has
//!   neither and is not seen; it finds nothing to work on afterwards and says so.
//!
//! A server that cannot be asked hides nobody who could be harmed by what is then not done there.

use std::time::Duration;

use sqlx::{PgConnection, Row as _};
use tokio::time::{Instant, sleep};

use super::init::slot;
use crate::config::{Config, QueueKind, ReplicaConfig, SourceConfig};
use crate::error::{ErrorKind, Result};
use crate::postgres::sql::{Side, classify, connect};
use crate::queue::embedded::{EmbeddedQueue, FolderLock};
use crate::replica::postgres::lock;

const APPLICATION: &str = "millstream teardown";
/// A reader that works answers the server within half of the `wal_sender_timeout` of our sessions (30 s); one that has not is nobody's.
const HEARD_WITHIN: Duration = Duration::from_secs(20);
/// The session of a daemon that was killed is gone within this, but for one in the middle of a statement.
const GONE_WITHIN: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What was found.
pub(super) enum Daemons {
    /// None. The lock, where there is one, keeps it so.
    None(#[expect(dead_code, reason = "held, not read")] Option<FolderLock>),
    /// Who: one sentence each.
    Working(Vec<String>),
}

/// Looks. `whole`: the sources are taken away as well, and not replicas alone.
pub(super) async fn look(config: &Config, selected: &[(&SourceConfig, Vec<&ReplicaConfig>)], whole: bool) -> Result<Daemons> {
    if let QueueKind::Embedded { folder } = &config.queue.kind {
        match EmbeddedQueue::lock_daemon(folder) {
            Ok(lock) => return Ok(Daemons::None(Some(lock))),
            Err(error) if error.kind() != ErrorKind::Held => return Err(error),
            Err(error) if whole => return Ok(Daemons::Working(vec![error.message().to_owned()])),
            Err(_) => {}
        }
    }
    let mut found = Vec::new();
    for (source, replicas) in selected {
        if whole && let Ok(Some(who)) = reader(source).await {
            found.push(who);
        }
        for replica in replicas {
            if let Ok(Some(who)) = applier(replica).await {
                found.push(format!("replica {} is being applied to by {who}", replica.name));
            }
        }
    }
    Ok(if found.is_empty() { Daemons::None(None) } else { Daemons::Working(found) })
}

/// Who reads a slot of a source, once a reply of it was seen to come in.
async fn reader(config: &SourceConfig) -> Result<Option<String>> {
    let mut source = connect(&config.connect, Side::Source, APPLICATION).await?;
    let slots = slot::of_source(&mut source, &config.name).await?;
    let deadline = Instant::now() + HEARD_WITHIN;
    let mut first = None;
    loop {
        let Some((reply, who)) = last_reply(&mut source, &slots).await? else { return Ok(None) };
        match &first {
            Some(first) if *first != reply => return Ok(Some(format!("source {}: {who}", config.name))),
            Some(_) if Instant::now() > deadline => return Ok(None),
            Some(_) => {}
            None => first = Some(reply),
        }
        sleep(LOOK_EVERY).await;
    }
}

/// The last reply of a slot's reader, which is one of ours, and who it is.
async fn last_reply(source: &mut PgConnection, slots: &[String]) -> Result<Option<(String, String)>> {
    let row = sqlx::query(
        "SELECT r.pid || ' ' || coalesce(r.reply_time::text, ''), s.slot_name::text, r.application_name, \
                coalesce(host(r.client_addr), 'a local socket'), r.pid, r.backend_start::text \
         FROM pg_catalog.pg_replication_slots s JOIN pg_catalog.pg_stat_replication r ON r.pid = s.active_pid \
         WHERE s.slot_name = ANY ($1) AND r.application_name LIKE 'millstream%' ORDER BY 2 LIMIT 1",
    )
    .bind(slots)
    .fetch_optional(source)
    .await
    .map_err(|e| classify(e, Side::Source))?;
    Ok(row.map(|row| {
        let (slot, name, host): (String, String, String) = (row.get(1), row.get(2), row.get(3));
        let (pid, since): (i32, String) = (row.get(4), row.get(5));
        (row.get(0), format!("slot {slot} is being read by '{name}' from {host} (backend {pid} on the source, since {since})"))
    }))
}

/// Who applies to a replica and goes on doing so.
async fn applier(config: &ReplicaConfig) -> Result<Option<String>> {
    let mut replica = connect(&config.connect, Side::Replica, APPLICATION).await?;
    let deadline = Instant::now() + GONE_WITHIN;
    loop {
        match lock::holder(&mut replica, &config.name).await? {
            Some(who) if Instant::now() > deadline => return Ok(Some(who)),
            Some(_) => sleep(LOOK_EVERY).await,
            None => return Ok(None),
        }
    }
}
