//! The source's log that the slot retains, against its budget (I7).
//!
//! Runs as long as the daemon, also while the stream is halted: that is when the source's disk fills, and rows that nobody needs any more
//! cannot be removed from its catalogs. Past `retain_max_bytes`, or once the slot has stood still for `retain_max_age`, it says so, loudly, or asks for the
//! slot to be dropped, as configured.

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
use crate::event::{Lsn, Position};
use crate::postgres::{Mode, PgClient, Side, SimpleRow, quote_literal};
use crate::queue::Queue;

/// Pause between two looks.
const EVERY: Duration = Duration::from_secs(3);
/// A queue that has not given the slot's name by then is not waited for.
const QUEUE_WAIT: Duration = Duration::from_secs(5);
/// A slot that has not moved for so long stands still.
const STANDS_SECONDS: u64 = 60;
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
    /// Seconds for which the slot was not confirmed further while the source's log went on, as far as this process has seen.
    pub unconfirmed_seconds: u64,
    /// The configured budget.
    pub budget_bytes: u64,
    /// The same in time.
    pub budget_age_seconds: u64,
    /// Seconds until either ends at the present rate; `None` while nothing grows.
    pub budget_seconds: Option<u64>,
    /// The budget has ended.
    pub exceeded: bool,
}

impl Retention {
    /// What lies beyond the budget, in words.
    #[must_use]
    pub fn excess(&self) -> String {
        if self.retained_bytes > self.budget_bytes {
            return format!("{} bytes, more than retain_max_bytes ({})", self.retained_bytes, self.budget_bytes);
        }
        format!(
            "nothing was confirmed for {} s, longer than retain_max_age ({} s)",
            self.unconfirmed_seconds, self.budget_age_seconds
        )
    }

    fn judge(&mut self, budget: &Self, rate: &mut Rate) {
        (self.budget_bytes, self.budget_age_seconds) = (budget.budget_bytes, budget.budget_age_seconds);
        self.exceeded = self.retained_bytes > self.budget_bytes || self.unconfirmed_seconds > self.budget_age_seconds;
        let by_size = rate.seconds_until(self.budget_bytes, self.retained_bytes);
        let stands = self.unconfirmed_seconds >= STANDS_SECONDS;
        let by_age = stands.then(|| self.budget_age_seconds.saturating_sub(self.unconfirmed_seconds));
        self.budget_seconds = by_size.into_iter().chain(by_age).min();
    }
}

/// Looks until it is dropped.
pub async fn run(
    source: SourceConfig,
    queue: Arc<dyn Queue>,
    application_name: String,
    status: Arc<watch::Sender<CaptureStatus>>,
) -> Result<()> {
    let budget = Retention {
        budget_bytes: source.retain_max_bytes,
        budget_age_seconds: source.retain_max_age.as_secs(),
        ..Retention::default()
    };
    let mut watcher = Watcher { source, queue, application_name, client: None, in_queue: None, last: None };
    let mut rate = Rate::default();
    loop {
        match watcher.look().await {
            Ok(Some((slot, mut seen))) => {
                seen.judge(&budget, &mut rate);
                let before = replace(&status, Some(&slot), seen);
                if seen.exceeded && !before.exceeded {
                    tracing::error!(slot, "the slot retains too much of the source's log: {}", seen.excess());
                } else if before.exceeded && !seen.exceeded {
                    tracing::info!(slot, retained_bytes = seen.retained_bytes, "the slot is within its budget again");
                }
            }
            Ok(None) => drop(replace(&status, None, budget)),
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

/// A slot that is not confirmed further.
struct Standstill {
    confirmed: Lsn,
    /// Where the source's log ended.
    end: Lsn,
    at: Instant,
    /// For how long it was seen to stand.
    stood: Duration,
}

/// Looks at the slot over a connection of its own.
struct Watcher {
    source: SourceConfig,
    queue: Arc<dyn Queue>,
    application_name: String,
    client: Option<PgClient>,
    /// The slot's name, once the log gave it.
    in_queue: Option<String>,
    /// What the last look found.
    last: Option<Standstill>,
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
        if rows.is_empty() {
            return Ok(None);
        }
        let row = one(rows)?;
        let (confirmed, end): (Lsn, Lsn) = (row.parse("confirmed")?, row.parse("lsn")?);
        let mut seen = Retention::try_from(row)?;
        seen.unconfirmed_seconds = self.stands_still(confirmed, end).as_secs();
        Ok(Some((slot, seen)))
    }

    /// For how long the slot has stood at this place while the log went on. Time in which nobody looked counts for nothing: the source was
    /// away, or this process slept, and capture is about to go on.
    fn stands_still(&mut self, confirmed: Lsn, end: Lsn) -> Duration {
        let now = Instant::now();
        let stood = match &self.last {
            Some(last) if last.confirmed == confirmed && confirmed < end => {
                let seen = if last.end < end { (now - last.at).min(EVERY * 2) } else { Duration::ZERO };
                last.stood + seen
            }
            _ => Duration::ZERO,
        };
        self.last = Some(Standstill { confirmed, end, at: now, stood });
        stood
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
        "SELECT w.lsn, pg_catalog.pg_wal_lsn_diff(w.lsn, coalesce(s.restart_lsn, w.lsn))::int8 AS retained, s.safe_wal_size, \
         coalesce(s.confirmed_flush_lsn, w.lsn) AS confirmed \
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
