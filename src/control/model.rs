//! What `/status` says: one JSON document with a version.
//!
//! Fields are added under the same version; one that changes its meaning or goes raises it. Numbers are plain, times are
//! RFC 3339 in UTC, positions are text as the source writes them. What is not known is `null`, never 0.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use crate::apply::quarantine::Quarantine;

/// Version of the document.
pub const VERSION: u32 = 1;

/// The document.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// [`VERSION`].
    pub version: u32,
    /// When this was true.
    pub at: String,
    /// True when `/readyz` answers 200.
    pub ready: bool,
    /// Why not.
    pub not_ready: Vec<String>,
    /// The process.
    pub daemon: Daemon,
    /// Where the log waits.
    pub queue: Queue,
    /// By name.
    pub sources: BTreeMap<String, Source>,
    /// By name.
    pub replicas: BTreeMap<String, Replica>,
}

/// The process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Daemon {
    /// Millstream's version.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Host name.
    pub host: String,
    /// When it started.
    pub started_at: String,
    /// `capture`, `apply`.
    pub roles: Vec<String>,
    /// The configuration file is not what it read last; a reload takes it up. `null` when the file cannot be read.
    pub configuration_changed: Option<bool>,
    /// Why the last reload was refused: what was in force before still is.
    pub reload_refused: Option<String>,
    /// What it waits for before it works: the queue's folder held by another daemon.
    pub waiting_for: Option<String>,
}

/// Where the log waits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Queue {
    /// `embedded` or `kafka`.
    pub kind: String,
    /// Folder, or brokers.
    pub place: String,
    /// Most bytes from the slowest consumer to the end, for each stream.
    pub max_bytes: u64,
}

/// A source and its stream.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Source {
    /// Which database it is: `host:port/database`.
    pub at: String,
    /// `waiting`, `held`, `taking_over`, `streaming`, `queue_full`, `halted`, `paused`, `stopped`; `elsewhere` when this daemon does not capture.
    pub state: String,
    /// Since when it is paused; `null` while it is not. A halted one that is paused stays `halted`.
    pub paused_since: Option<String>,
    /// Since when.
    pub since: Option<String>,
    /// The slot on the source.
    pub slot: Option<String>,
    /// The writer's epoch.
    pub epoch: Option<u64>,
    /// Who has the slot, while it is held elsewhere.
    pub held_by: Option<String>,
    /// Where things stand in the source's log.
    pub positions: Positions,
    /// Bytes of the source's log not durable in the queue yet.
    pub lag_bytes: Option<u64>,
    /// Over the last seconds.
    pub rate: Rate,
    /// Transactions captured since the daemon started.
    pub transactions: u64,
    /// Changes captured since the daemon started.
    pub changes: u64,
    /// Bytes of log written since the daemon started.
    pub bytes: u64,
    /// What the queue holds of the stream.
    pub stream: Stream,
    /// What the source keeps for us.
    pub retained: Retained,
    /// Bytes of transactions in progress in memory.
    pub buffered_bytes: u64,
    /// Bytes of transactions in progress on disk.
    pub spilled_bytes: u64,
    /// Tables that match `tables` and are not captured until `millstream init` runs again.
    pub tables_not_captured: Vec<String>,
    /// Of those, what each needs before `init` takes it in, such as a replica identity: a sentence with the statement.
    pub tables_to_mend: BTreeMap<String, String>,
    /// Sequences of captured tables.
    pub sequences: Vec<Sequence>,
    /// Why heartbeats do not travel.
    pub heartbeat_error: Option<String>,
    /// Why it is halted.
    pub halt: Option<Halt>,
    /// Last failure in words; kept until work goes on.
    pub error: Option<String>,
    /// What to do about it.
    pub remedy: Option<String>,
}

/// A sequence of a captured table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sequence {
    /// Its name, with its schema.
    pub name: String,
    /// What sets it from a replica's own rows, for when the source is lost; `null` where no column holds its plain numbers.
    pub statement: Option<String>,
}

/// Places in a source's log.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Positions {
    /// The end of the source's log.
    pub source: Option<String>,
    /// Received up to here.
    pub received: Option<String>,
    /// Given to the queue up to here.
    pub appended: Option<String>,
    /// Durable in the queue up to here.
    pub queue: Option<String>,
    /// Confirmed to the source up to here.
    pub confirmed: Option<String>,
}

/// Rates, over the last seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rate {
    /// Transactions.
    pub transactions_per_second: f64,
    /// Changes.
    pub changes_per_second: f64,
    /// Bytes of log.
    pub bytes_per_second: f64,
}

/// What the queue holds of a stream.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stream {
    /// Bytes from the slowest consumer to the end.
    pub queued_bytes: Option<u64>,
    /// Changes from the slowest consumer to the end.
    pub queued_changes: Option<u64>,
    /// Most that `queued_bytes` may be.
    pub max_bytes: u64,
    /// Bytes on disk, trimmed in whole segments.
    pub stored_bytes: Option<u64>,
    /// The consumer that holds the queue.
    pub slowest_consumer: Option<String>,
    /// Everybody who has registered, by name.
    pub consumers: BTreeMap<String, Consumer>,
}

/// A registered consumer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Consumer {
    /// Where it stands in the source's log.
    pub position: Option<String>,
    /// Number of the last record that it holds.
    pub record: u64,
    /// Bytes from there to the end.
    pub behind_bytes: Option<u64>,
    /// Changes from there to the end.
    pub behind_changes: Option<u64>,
    /// When it said so.
    pub said_at: String,
    /// It is in this daemon's configuration. One that is not may hold the queue for nobody: `millstream teardown --consumer NAME`.
    pub configured: bool,
}

/// What a slot retains at its source.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Retained {
    /// Bytes of WAL.
    pub bytes: Option<u64>,
    /// `retain_max_bytes`.
    pub budget_bytes: u64,
    /// Seconds for which the slot was not confirmed further while the source's log went on.
    pub unconfirmed_seconds: u64,
    /// `retain_max_age`, in seconds.
    pub budget_age_seconds: u64,
    /// Seconds until a budget ends at the present rate; `null` while nothing grows.
    pub budget_seconds: Option<u64>,
    /// What may still be written before the server itself invalidates the slot; `null` when unlimited.
    pub safe_bytes: Option<u64>,
    /// The budget has ended.
    pub exceeded: bool,
}

/// A halt.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Halt {
    /// Stable; `millstream explain CODE`.
    pub code: String,
    /// Tried again by itself once the cause is mended.
    pub mendable: bool,
    /// What to do.
    pub remedy: String,
}

/// A replica.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Replica {
    /// Its source.
    pub source: String,
    /// Which database it is: `host:port/database`.
    pub at: String,
    /// `waiting`, `held`, `copying`, `catching_up`, `live`, `halted`, `paused`, `stopped`; `elsewhere` when this daemon does not apply.
    pub state: String,
    /// Since when it is paused; `null` while it is not. A halted one that is paused stays `halted`.
    pub paused_since: Option<String>,
    /// Applied up to here, in the source's log.
    pub position: Option<String>,
    /// Last record applied.
    pub record: Option<u64>,
    /// Age of what the replica shows, by heartbeats through the whole log; silence counts.
    pub lag_seconds: Option<f64>,
    /// Bytes of log not applied yet.
    pub lag_bytes: Option<u64>,
    /// Changes in the queue that are not applied yet.
    pub queued_changes: Option<u64>,
    /// Those over the rate of applying; `null` when nothing moves.
    pub drain_seconds: Option<f64>,
    /// Over the last seconds.
    pub rate: Rate,
    /// Source transactions applied since the daemon started.
    pub transactions: u64,
    /// Changes applied since the daemon started.
    pub changes: u64,
    /// Bytes of log applied since the daemon started.
    pub bytes: u64,
    /// Replica transactions committed since the daemon started.
    pub batches: u64,
    /// The first copy, while there is one.
    pub copy: Option<Copy>,
    /// Why a foreign key of tables that were added is `NOT VALID` still; it holds for new rows, and validating is tried again when apply begins anew.
    pub not_validated: Option<String>,
    /// What is in quarantine, and was; `null` before the first look.
    pub quarantine: Option<Quarantine>,
    /// Its sequences; `null` where this daemon does not carry them.
    pub sequences: Option<Sequences>,
    /// Why it is halted.
    pub halt: Option<Halt>,
    /// Last failure in words; kept until work goes on.
    pub error: Option<String>,
    /// What to do about it.
    pub remedy: Option<String>,
}

/// The sequences of a replica.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sequences {
    /// Those that stand where the source's did at the last look, or further.
    pub carried: usize,
    /// When the last look was; `null` before the first.
    pub carried_at: Option<String>,
    /// Those that could not be carried.
    pub not_carried: Vec<NotCarried>,
    /// Why the last look came to nothing.
    pub error: Option<String>,
}

/// A sequence that could not be carried.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NotCarried {
    /// Its name, with its schema.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// Progress of a first copy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Copy {
    /// What it does at the moment.
    pub phase: String,
    /// Tables whose rows are loaded.
    pub tables_done: u64,
    /// Tables of this copy.
    pub tables: u64,
    /// Rows loaded.
    pub rows: u64,
    /// Rows estimated in all.
    pub rows_estimated: Option<u64>,
    /// Bytes loaded.
    pub bytes: u64,
    /// Over the last seconds.
    pub rows_per_second: f64,
    /// Rows left over that rate.
    pub eta_seconds: Option<f64>,
    /// Tables that were live and are copied again: each shows an older state than the others.
    pub again: Vec<String>,
}
