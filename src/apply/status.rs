//! What an applier tells of itself, through a watch channel.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::lag::Lag;
use super::quarantine::Quarantine;
use crate::event::{ApplyEpoch, Position, RecordNumber};
use crate::halt::HaltCode;
use crate::queue::log::Cursor;

/// What an applier is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ApplyState {
    /// Connecting, or pausing after a failure that is retried.
    #[default]
    Waiting,
    /// Another applier has the replica.
    Held,
    /// First copy: chunks are being loaded.
    Copying,
    /// First copy: the log is replayed over the loaded chunks; tables are not live.
    CatchingUp,
    /// Applying; every table is live.
    Live,
    /// Stopped by a rule.
    Halted,
    /// Applies nothing because somebody asked for it.
    Paused,
    /// Ended as asked.
    Stopped,
}

/// An applier's state. Nothing here is durable; the ledger is.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ApplyStatus {
    /// The replica's name.
    pub replica: String,
    /// Its source's name.
    pub source: String,
    /// What it is doing.
    pub state: ApplyState,
    /// The incarnation, once claimed.
    pub apply_epoch: Option<ApplyEpoch>,
    /// Last record applied.
    pub number: Option<RecordNumber>,
    /// Where that was in the source.
    pub position: Option<Position>,
    /// Bytes of the stream up to there: the writer's own total minus this is the backlog.
    pub bytes_so_far: u64,
    /// Changes of the stream up to there.
    pub changes_so_far: u64,
    /// The source's clock at the last commit or heartbeat applied, microseconds since 1970-01-01 UTC.
    pub source_time_us: Option<i64>,
    /// When that was applied, by this daemon's clock, microseconds since 1970-01-01 UTC.
    pub applied_at_us: Option<i64>,
    /// Freshness, to be asked for at any moment.
    #[serde(skip)]
    pub lag: Lag,
    /// Source transactions applied by this process.
    pub transactions: u64,
    /// Changes applied by this process.
    pub changes: u64,
    /// Bytes of log applied by this process.
    pub bytes: u64,
    /// Replica transactions committed by this process.
    pub batches: u64,
    /// Changes applied per second, over some seconds.
    pub changes_per_second: f64,
    /// Batches that had to be replayed transaction by transaction.
    pub replays: u64,
    /// Why it is halted.
    pub halt: Option<HaltCode>,
    /// Last failure in words; kept until work goes on.
    pub error: Option<String>,
    /// The same of tables that are being added.
    pub added: Option<(Option<HaltCode>, String)>,
    /// Why a foreign key of tables that were added is not validated yet.
    pub not_validated: Option<String>,
    /// What is in quarantine, and was; `None` before the first look.
    pub quarantine: Option<Quarantine>,
}

impl ApplyStatus {
    /// The ledger holds everything up to a cursor.
    pub fn stands_at(&mut self, cursor: &Cursor) {
        self.number = Some(cursor.number);
        self.position = cursor.position;
        self.bytes_so_far = cursor.bytes_so_far;
        self.changes_so_far = cursor.changes_so_far;
    }
}

/// How long one measurement of a rate takes.
const WINDOW: Duration = Duration::from_secs(2);

/// Counts per second, over some seconds.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    since: Instant,
    count: u64,
    last: f64,
}

impl Default for Rate {
    fn default() -> Self {
        Self { since: Instant::now(), count: 0, last: 0.0 }
    }
}

impl Rate {
    /// So many more.
    pub fn add(&mut self, count: u64) {
        self.count += count;
    }

    /// The rate of the last whole window.
    pub fn per_second(&mut self) -> f64 {
        let elapsed = self.since.elapsed();
        if elapsed >= WINDOW {
            self.last = self.count as f64 / elapsed.as_secs_f64();
            self.since = Instant::now();
            self.count = 0;
        }
        self.last
    }
}
