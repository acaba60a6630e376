//! How far a first copy is, and how fast it may be.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::watch;

use crate::apply::ApplyStatus;
use crate::apply::lag::Now;

/// What a first copy is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CopyPhase {
    /// There is none.
    #[default]
    None,
    /// For transactions that began before the tables were published.
    Waiting,
    /// Tables are cut into chunks.
    Planning,
    /// Chunks are loaded.
    Loading,
    /// The log is replayed past the last snapshot.
    CatchingUp,
    /// Deferred keys and indexes are built.
    Building,
}

impl CopyPhase {
    /// For people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Waiting => "waiting for transactions",
            Self::Planning => "planning",
            Self::Loading => "loading",
            Self::CatchingUp => "catching up",
            Self::Building => "building indexes",
        }
    }
}

/// How far a first copy is. Nothing here is durable; the ledger is.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CopyProgress {
    /// What it is doing.
    pub phase: CopyPhase,
    /// Tables that are not live.
    pub tables: u64,
    /// Those of them whose chunks are all loaded.
    pub tables_loaded: u64,
    /// Chunks of them all.
    pub chunks: u64,
    /// Chunks that are loaded.
    pub chunks_loaded: u64,
    /// Rows in loaded chunks, and so far in those in flight.
    pub rows: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Rows that the source is believed to have.
    pub rows_estimated: u64,
    /// Rows a second since loading began in this process.
    pub rows_per_second: f64,
    /// Time left at that rate.
    pub eta_seconds: Option<f64>,
    /// Keys and indexes built.
    pub indexes_built: u64,
    /// Keys and indexes to build.
    pub indexes: u64,
    /// The transaction that is waited for: who, since when, doing what.
    pub waiting_for: Option<String>,
    /// Those of the tables that were live, and are copied again.
    pub again: Vec<String>,
}

/// Tells progress and keeps the rate.
#[derive(Clone, Debug)]
pub(super) struct Meter {
    sender: watch::Sender<CopyProgress>,
    limit: Option<f64>,
    clock: Arc<Mutex<Clock>>,
    /// Tables that are live already, whose changes go first.
    others: Option<watch::Receiver<ApplyStatus>>,
}

/// Live tables that are later than this make a copy beside them go slowly.
const LATE: Duration = Duration::from_secs(2);
/// How much more slowly: so long for each piece.
const GIVE_WAY: Duration = Duration::from_millis(500);

#[derive(Debug)]
struct Clock {
    /// Loading in this process began.
    began: Instant,
    /// Rows that were loaded then.
    rows_before: u64,
    /// No byte is taken before this moment.
    free_at: Instant,
}

impl Meter {
    pub(super) fn new(limit: Option<u64>) -> (Self, watch::Receiver<CopyProgress>) {
        let (sender, receiver) = watch::channel(CopyProgress::default());
        let now = Instant::now();
        let clock = Arc::new(Mutex::new(Clock { began: now, rows_before: 0, free_at: now }));
        (Self { sender, limit: limit.map(|bytes| bytes.max(1) as f64), clock, others: None }, receiver)
    }

    /// The same, of a copy beside tables that are live.
    pub(super) fn behind(&self, others: watch::Receiver<ApplyStatus>) -> Self {
        Self { others: Some(others), ..self.clone() }
    }

    pub(super) fn progress(&self) -> watch::Receiver<CopyProgress> {
        self.sender.subscribe()
    }

    fn clock(&self) -> std::sync::MutexGuard<'_, Clock> {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn phase(&self, phase: CopyPhase) {
        self.sender.send_modify(|p| {
            p.phase = phase;
            if phase == CopyPhase::None {
                *p = CopyProgress::default();
            }
        });
    }

    /// Which tables are copied again.
    pub(super) fn again(&self, tables: Vec<String>) {
        self.sender.send_if_modified(|p| std::mem::replace(&mut p.again, tables.clone()) != tables);
    }

    pub(super) fn waiting_for(&self, whom: Option<String>) {
        self.sender.send_if_modified(|p| std::mem::replace(&mut p.waiting_for, whom.clone()) != whom);
    }

    /// Loading begins, or goes on, from what the ledger says.
    pub(super) fn begin(&self, from: CopyProgress) {
        *self.clock() = Clock { began: Instant::now(), rows_before: from.rows, free_at: Instant::now() };
        self.sender.send_modify(|p| *p = CopyProgress { phase: CopyPhase::Loading, again: std::mem::take(&mut p.again), ..from });
    }

    /// Waits until bytes may pass: under `copy_max_bytes_per_second`, in turns in the order of asking, and while tables that are live are late, more slowly.
    pub(super) async fn pass(&self, bytes: usize) {
        if self.others.as_ref().is_some_and(|others| is_late(&others.borrow(), Now::read())) {
            tokio::time::sleep(GIVE_WAY).await;
        }
        let Some(limit) = self.limit else { return };
        let until = {
            let mut clock = self.clock();
            let now = Instant::now();
            let from = clock.free_at.max(now);
            clock.free_at = from + Duration::from_secs_f64(bytes as f64 / limit);
            from
        };
        tokio::time::sleep_until(until.into()).await;
    }

    pub(super) fn moved(&self, rows: u64, bytes: u64) {
        let (elapsed, before) = {
            let clock = self.clock();
            (clock.began.elapsed().as_secs_f64().max(0.001), clock.rows_before)
        };
        self.sender.send_modify(|p| {
            p.rows += rows;
            p.bytes += bytes;
            p.rows_per_second = p.rows.saturating_sub(before) as f64 / elapsed;
            let left = p.rows_estimated.saturating_sub(p.rows) as f64;
            p.eta_seconds = (p.rows_per_second > 0.0).then(|| left / p.rows_per_second);
        });
    }

    pub(super) fn chunk_loaded(&self, last_of_table: bool) {
        self.sender.send_modify(|p| {
            p.chunks_loaded += 1;
            p.tables_loaded += u64::from(last_of_table);
        });
    }

    pub(super) fn building(&self, built: u64, of: u64) {
        self.sender.send_modify(|p| {
            p.phase = CopyPhase::Building;
            (p.indexes_built, p.indexes) = (built, of);
            p.eta_seconds = None;
        });
    }
}

/// Late, and at work on it: where the source is silent and sends no heartbeats, age alone says nothing.
fn is_late(others: &ApplyStatus, now: Now) -> bool {
    others.lag.silence(now).is_some_and(|silence| silence < LATE) && others.lag.at(now) > Some(LATE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_gives_way_to_tables_that_are_late_and_at_work_and_to_no_others() {
        const SECOND: i64 = 1_000_000;
        let at = |us: i64| Now { wall_us: us, steady_us: us };
        let status = |source_time_us: i64, applied_at_us: i64| {
            let mut status = ApplyStatus::default();
            status.lag.applied(source_time_us, at(applied_at_us));
            status
        };
        let now = 1_000 * SECOND;
        assert!(is_late(&status(now - 9 * SECOND, now - SECOND), at(now)));
        assert!(!is_late(&status(now - SECOND, now), at(now)), "in time");
        assert!(!is_late(&status(now - 9 * SECOND, now - 9 * SECOND), at(now)), "silent");
        assert!(!is_late(&ApplyStatus::default(), at(now)), "nothing applied yet");
    }
}
