//! The source's log that the slot retains, against its budget (I7).
//!
//! Runs as long as the daemon, also while the stream is halted: that is when the source's disk fills. Past
//! `retain_max_bytes` it says so, loudly, or asks for the slot to be dropped, as configured.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;
use tokio::time::Instant;

use super::begin::slot_name_pattern;
use super::postgres::catalog::one;
use super::recover;
use super::status::CaptureStatus;
use crate::config::SourceConfig;
use crate::error::Result;
use crate::event::Position;
use crate::postgres::{Mode, PgClient, Side, SimpleRow, quote_literal};
use crate::queue::Queue;

/// Pause between two looks.
const EVERY: Duration = Duration::from_secs(3);
/// A queue that has not given the slot's name by then is not waited for.
const QUEUE_WAIT: Duration = Duration::from_secs(5);
/// Weight of the newest rate among those before.
const NEWEST: f64 = 0.2;

/// What the slot retains. Positions and bytes are the source's own figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Retention {
    /// The source's log ends here.
    pub source_position: Option<Position>,
    /// From the slot's restart place to there.
    pub retained_bytes: u64,
    /// What may still be written before the source itself invalidates the slot (`max_slot_wal_keep_size`); `None` when unlimited.
    pub safe_bytes: Option<u64>,
    /// The configured budget.
    pub budget_bytes: u64,
    /// Seconds until the budget ends at the present rate; `None` while it does not grow.
    pub budget_seconds: Option<u64>,
    /// The budget has ended.
    pub exceeded: bool,
}

/// Looks until it is dropped.
pub async fn run(
    source: SourceConfig,
    queue: Arc<dyn Queue>,
    application_name: String,
    status: Arc<watch::Sender<CaptureStatus>>,
) -> Result<()> {
    let budget_bytes = source.retain_max_bytes;
    let mut watcher = Watcher { source, queue, application_name, client: None, in_queue: None };
    let mut rate = Rate::default();
    loop {
        match watcher.look().await {
            Ok(Some((slot, mut seen))) => {
                seen.budget_bytes = budget_bytes;
                seen.exceeded = seen.retained_bytes > budget_bytes;
                seen.budget_seconds = rate.seconds_until(budget_bytes, seen.retained_bytes);
                let before = replace(&status, Some(&slot), seen);
                if seen.exceeded && !before.exceeded {
                    tracing::error!(
                        slot,
                        retained_bytes = seen.retained_bytes,
                        budget_bytes,
                        "the slot retains more of the source's log than retain_max_bytes"
                    );
                } else if before.exceeded && !seen.exceeded {
                    tracing::info!(slot, retained_bytes = seen.retained_bytes, "the slot is within retain_max_bytes again");
                }
            }
            Ok(None) => drop(replace(&status, None, Retention { budget_bytes, ..Retention::default() })),
            // The stream's own connection says it louder.
            Err(error) => {
                tracing::debug!(%error, "retained log not known");
                watcher.client = None;
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

fn replace(status: &watch::Sender<CaptureStatus>, slot: Option<&str>, seen: Retention) -> Retention {
    let mut before = Retention::default();
    status.send_modify(|status| {
        before = std::mem::replace(&mut status.retention, seen);
        if let Some(slot) = slot {
            status.slot = Some(slot.to_owned());
        }
    });
    before
}

/// Looks at the slot over a connection of its own.
struct Watcher {
    source: SourceConfig,
    queue: Arc<dyn Queue>,
    application_name: String,
    client: Option<PgClient>,
    /// The slot's name, once the log gave it.
    in_queue: Option<String>,
}

impl Watcher {
    /// The slot and what it retains; `None` when there is none.
    async fn look(&mut self) -> Result<Option<(String, Retention)>> {
        if self.in_queue.is_none() {
            let identity = recover::identity(&self.queue, &self.source.name);
            let answer = tokio::time::timeout(QUEUE_WAIT, identity).await;
            self.in_queue = answer.ok().and_then(Result::ok).map(|history| history.slot);
        }
        let slot = match &self.in_queue {
            Some(slot) => slot.clone(),
            None => match self.only_slot().await? {
                Some(slot) => slot,
                None => return Ok(None),
            },
        };
        let rows = self.client().await?.simple_query(&sql(&slot)).await?;
        if rows.is_empty() { Ok(None) } else { Ok(Some((slot, one(rows)?.try_into()?))) }
    }

    /// The one slot that the source has for us: queues are down, damaged or lost for long at times, and the slot retains all the while. One that is being
    /// read is somebody else's, who has another queue for a source of that name: not ours to judge or to drop.
    async fn only_slot(&mut self) -> Result<Option<String>> {
        let sql = format!(
            "SELECT slot_name FROM pg_catalog.pg_replication_slots \
             WHERE slot_name ~ {} AND database = pg_catalog.current_database() AND NOT active",
            quote_literal(&slot_name_pattern(&self.source.name))
        );
        let rows = self.client().await?.simple_query(&sql).await?;
        if rows.len() == 1 { one(rows)?.text("slot_name").map(|slot| Some(slot.to_owned())) } else { Ok(None) }
    }

    async fn client(&mut self) -> Result<&mut PgClient> {
        match &mut self.client {
            Some(client) => Ok(client),
            empty => {
                let settings = [("application_name", self.application_name.as_str())];
                Ok(empty.insert(PgClient::connect_with(&self.source.connect, Mode::Sql, Side::Source, &settings).await?))
            }
        }
    }
}

fn sql(slot: &str) -> String {
    format!(
        "SELECT w.lsn, pg_catalog.pg_wal_lsn_diff(w.lsn, coalesce(s.restart_lsn, w.lsn))::int8 AS retained, s.safe_wal_size \
         FROM pg_catalog.pg_replication_slots s, LATERAL (SELECT CASE WHEN pg_catalog.pg_is_in_recovery() \
           THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_lsn() END) AS w (lsn) \
         WHERE s.slot_name = {}",
        quote_literal(slot)
    )
}

impl TryFrom<SimpleRow> for Retention {
    type Error = crate::Error;

    fn try_from(row: SimpleRow) -> Result<Self> {
        let retained: i64 = row.parse("retained")?;
        let safe = row.optional("safe_wal_size")?.and_then(|text| text.parse::<i64>().ok());
        Ok(Self {
            source_position: Some(Position::Lsn(row.parse("lsn")?)),
            retained_bytes: u64::try_from(retained).unwrap_or(0),
            safe_bytes: safe.map(|bytes| u64::try_from(bytes).unwrap_or(0)),
            ..Self::default()
        })
    }
}

/// How fast the retained bytes grow, smoothed.
#[derive(Debug, Default)]
struct Rate {
    before: Option<(Instant, u64)>,
    bytes_per_second: f64,
}

impl Rate {
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an estimate")]
    fn seconds_until(&mut self, budget: u64, retained: u64) -> Option<u64> {
        let now = Instant::now();
        if let Some((at, bytes)) = self.before.replace((now, retained)) {
            let newest = (retained as f64 - bytes as f64) / (now - at).as_secs_f64().max(0.001);
            self.bytes_per_second += NEWEST * (newest - self.bytes_per_second);
        }
        let left = budget.saturating_sub(retained);
        (self.bytes_per_second > 1.0).then(|| (left as f64 / self.bytes_per_second) as u64)
    }
}
