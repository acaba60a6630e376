//! What a running daemon tells of itself.
//!
//! Stages publish their state through watch channels and know nothing of who reads it; a [`Control`] holds the receiving ends and makes a
//! [`Status`] of them whenever somebody asks. Nothing here is durable and nothing here decides anything about the data. What an operator orders ([`orders`]) goes
//! to the stages through their gates ([`crate::pause`]).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

pub mod build;
pub mod model;
mod orders;
mod rates;
mod sequences;
pub mod survey;

pub use model::Status;

use crate::apply::ApplyStatus;
use crate::apply::copy::CopyProgress;
use crate::capture::CaptureStatus;
use crate::config::{Config, ConfigFile, OnRetainLimit, QueueKind, ReplicaConfig, SourceConfig};
use crate::pause::Gate;
use rates::Window;
use survey::Survey;

/// How often counters are sampled for rates.
pub const SAMPLE_EVERY: Duration = Duration::from_secs(1);

/// The receiving ends, and what does not change.
pub struct Control {
    pub(crate) daemon: model::Daemon,
    pub(crate) file: ConfigFile,
    pub(crate) queue: model::Queue,
    pub(crate) ready_max_lag: Duration,
    pub(crate) sources: BTreeMap<String, SourceView>,
    pub(crate) replicas: BTreeMap<String, ReplicaView>,
    pub(crate) waiting_for: watch::Sender<Option<String>>,
}

/// What is known of a source.
pub struct SourceView {
    /// The capture of this process; `None` when it has not that role.
    pub capture: Option<watch::Receiver<CaptureStatus>>,
    /// What is looked up now and then.
    pub survey: watch::Receiver<Survey>,
    pub(crate) gate: Arc<Gate>,
    retain_max_bytes: u64,
    drops_slot: bool,
    /// Transactions, changes, bytes.
    rate: Mutex<Window<3>>,
}

/// What is known of a replica.
pub struct ReplicaView {
    /// Name of its source.
    pub source: String,
    /// The applier of this process; `None` when it has not that role.
    pub apply: Option<watch::Receiver<ApplyStatus>>,
    /// Its first copy.
    pub copy: Option<watch::Receiver<CopyProgress>>,
    pub(crate) gate: Arc<Gate>,
    /// Transactions, changes, bytes.
    rate: Mutex<Window<3>>,
}

impl Control {
    /// For a daemon of a configuration; views are added with [`Control::source`] and [`Control::replica`].
    #[must_use]
    pub fn new(config: &Config, roles: &[&str]) -> Self {
        let (kind, place) = match &config.queue.kind {
            QueueKind::Embedded { folder } => ("embedded", folder.display().to_string()),
            QueueKind::Kafka { brokers, .. } => ("kafka", brokers.clone()),
        };
        Self {
            daemon: model::Daemon {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
                host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
                started_at: jiff::Timestamp::now().to_string(),
                roles: roles.iter().map(|&role| role.to_owned()).collect(),
                configuration_changed: None,
                waiting_for: None,
            },
            file: config.file.clone(),
            queue: model::Queue { kind: kind.to_owned(), place, max_bytes: config.queue.max_bytes },
            ready_max_lag: config.http.as_ref().map_or(Duration::from_secs(30), |http| http.ready_max_lag),
            sources: BTreeMap::new(),
            replicas: BTreeMap::new(),
            waiting_for: watch::Sender::new(None),
        }
    }

    /// Adds a source.
    pub fn source(
        &mut self,
        config: &SourceConfig,
        capture: Option<watch::Receiver<CaptureStatus>>,
        survey: watch::Receiver<Survey>,
        gate: Arc<Gate>,
    ) {
        let (retain_max_bytes, drops_slot) = (config.retain_max_bytes, config.on_retain_limit == OnRetainLimit::DropSlot);
        let view = SourceView { capture, survey, gate, retain_max_bytes, drops_slot, rate: Mutex::default() };
        self.sources.insert(config.name.clone(), view);
    }

    /// Adds a replica.
    pub fn replica(
        &mut self,
        config: &ReplicaConfig,
        apply: Option<watch::Receiver<ApplyStatus>>,
        copy: Option<watch::Receiver<CopyProgress>>,
        gate: Arc<Gate>,
    ) {
        let view = ReplicaView { source: config.source.clone(), apply, copy, gate, rate: Mutex::default() };
        self.replicas.insert(config.name.clone(), view);
    }

    /// Says what the daemon waits for before it can work.
    pub fn waits_for(&self, what: Option<String>) {
        self.waiting_for.send_replace(what);
    }

    /// Takes one sample of every counter. Called every [`SAMPLE_EVERY`].
    pub fn sample(&self) {
        let now = Instant::now();
        let push = |rate: &Mutex<Window<3>>, counters| rate.lock().unwrap_or_else(PoisonError::into_inner).sample(now, counters);
        for view in self.sources.values() {
            if let Some(capture) = &view.capture {
                let capture = capture.borrow();
                push(&view.rate, [capture.transactions, capture.changes, capture.bytes]);
            }
        }
        for view in self.replicas.values() {
            if let Some(apply) = &view.apply {
                let apply = apply.borrow();
                push(&view.rate, [apply.transactions, apply.changes, apply.bytes]);
            }
        }
    }
}

fn rate_of(window: &Mutex<Window<3>>) -> model::Rate {
    let [transactions, changes, bytes] = window.lock().unwrap_or_else(PoisonError::into_inner).per_second();
    model::Rate { transactions_per_second: transactions, changes_per_second: changes, bytes_per_second: bytes }
}
