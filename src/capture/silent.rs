//! A slot whose reader died with its host: the server believes in the connection until `wal_sender_timeout` (30 s, as our sessions set it).
//! A daemon that stands by need not wait for that.
//!
//! A walsender is *silent* when its reader has sent no reply for [`SILENT_AFTER`] (or two heartbeats: a daemon that works repeats its feedback every
//! half heartbeat), seen over that whole time by the one who waits, and the walsender was waiting whenever it was looked at. One that decodes takes no
//! replies and is not silent. `reply_time` is the peer's clock, so it is compared with itself only.
//!
//! Ending the wrong one loses nothing: the slot is taken over and the log fenced (I8), and the other daemon stands by.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::postgres::slot::Holder;
use crate::error::Result;
use crate::postgres::PgClient;

/// A reader that replies to nothing for so long is dead, or as good as dead.
const SILENT_AFTER: Duration = Duration::from_secs(15);

/// When a walsender was first seen with its last reply.
struct Seen {
    pid: i32,
    reply: String,
    since: Instant,
}

/// What whoever waits for a slot has seen of its reader.
#[derive(Default)]
pub(super) struct Silence(Mutex<Option<Seen>>);

impl Silence {
    /// Ends the slot's reader when it is a capture of the same source, of another process, and silent. True when it was ended.
    pub(super) async fn end(&self, client: &mut PgClient, holder: &Holder, source: &str, heartbeat: Duration) -> Result<bool> {
        let ours = holder.application_name.starts_with("millstream ") && holder.application_name.contains(&format!(" {source} "));
        let reply = if ours { last_reply(client, holder.pid).await? } else { None };
        if !self.lasted(holder.pid, reply, SILENT_AFTER.max(heartbeat * 2)) {
            return Ok(false);
        }
        client.simple_query(&format!("SELECT pg_catalog.pg_terminate_backend({})", holder.pid)).await?;
        tracing::warn!(source, %holder, "the slot's reader has not been heard of by the source and was ended");
        Ok(true)
    }

    fn lasted(&self, pid: i32, reply: Option<String>, limit: Duration) -> bool {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match (&*seen, reply) {
            (Some(before), Some(reply)) if before.pid == pid && before.reply == reply => before.since.elapsed() >= limit,
            (_, reply) => {
                *seen = reply.map(|reply| Seen { pid, reply, since: Instant::now() });
                false
            }
        }
    }
}

/// A walsender's last reply, by its reader's clock; `None` when it is busy or gone. Wait events: PostgreSQL documentation, "Wait Events of Type Activity" and
/// "… of Type Client"; their capitals changed with 17.
async fn last_reply(client: &mut PgClient, pid: i32) -> Result<Option<String>> {
    let sql = format!(
        "SELECT coalesce(r.reply_time::text, '') AS reply FROM pg_catalog.pg_stat_replication r \
         JOIN pg_catalog.pg_stat_activity a ON a.pid = r.pid WHERE r.pid = {pid} \
         AND lower(a.wait_event) IN ('walsendermain', 'walsenderwaitforwal', 'walsenderwritedata')"
    );
    let rows = client.simple_query(&sql).await?;
    rows.first().map(|row| Ok(row.text("reply")?.to_owned())).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_another_reader_and_a_busy_walsender_begin_the_wait_anew() {
        let silence = Silence::default();
        let lasted = |pid, reply: Option<&str>| silence.lasted(pid, reply.map(str::to_owned), Duration::ZERO);
        assert!(!lasted(1, Some("a")), "seen for the first time");
        assert!(lasted(1, Some("a")));
        assert!(!lasted(1, Some("b")), "it has replied");
        assert!(!lasted(2, Some("b")), "another one");
        assert!(!lasted(2, None) && !lasted(2, Some("b")), "it was busy in between");
        assert!(!silence.lasted(2, Some("b".to_owned()), Duration::from_mins(1)), "not for long enough");
    }
}
