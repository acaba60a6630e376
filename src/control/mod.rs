//! What a running daemon tells of itself.
//!
//! Stages publish their state through watch channels and know nothing of who reads it; a [`Control`] holds the receiving ends and makes a
//! [`Status`] of them whenever somebody asks. Nothing here is durable and nothing here decides anything about the data.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

pub mod build;
pub mod model;
mod rates;
pub mod survey;

pub use model::Status;

use crate::apply::ApplyStatus;
use crate::apply::copy::CopyProgress;
use crate::apply::sequences::Carried;
use crate::capture::CaptureStatus;
use crate::config::{Config, ConfigFile, QueueKind};
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
    /// Which database each source and replica is.
    pub(crate) places: Places,
    pub(crate) waiting_for: watch::Sender<Option<String>>,
}

/// `host:port/database` by name.
pub(crate) struct Places {
    pub(crate) sources: BTreeMap<String, String>,
    pub(crate) replicas: BTreeMap<String, String>,
}

/// What is known of a source.
pub struct SourceView {
    /// The capture of this process; `None` when it has not that role.
    pub capture: Option<watch::Receiver<CaptureStatus>>,
    /// What is looked up now and then.
    pub survey: watch::Receiver<Survey>,
    retain_max_bytes: u64,
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
    /// Its sequences; `None` where nothing carries them here.
    pub sequences: Option<watch::Receiver<Carried>>,
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
            places: Places {
                sources: config.sources.iter().map(|(name, source)| (name.clone(), source.connect.address())).collect(),
                replicas: config.replicas.iter().map(|(name, replica)| (name.clone(), replica.connect.address())).collect(),
            },
            waiting_for: watch::Sender::new(None),
        }
    }

    /// Adds a source.
    pub fn source(
        &mut self,
        name: &str,
        retain_max_bytes: u64,
        capture: Option<watch::Receiver<CaptureStatus>>,
        survey: watch::Receiver<Survey>,
    ) {
        let view = SourceView { capture, survey, retain_max_bytes, rate: Mutex::default() };
        self.sources.insert(name.to_owned(), view);
    }

    /// Adds a replica.
    pub fn replica(
        &mut self,
        name: &str,
        source: &str,
        apply: Option<watch::Receiver<ApplyStatus>>,
        copy: Option<watch::Receiver<CopyProgress>>,
        sequences: Option<watch::Receiver<Carried>>,
    ) {
        let view = ReplicaView { source: source.to_owned(), apply, copy, sequences, rate: Mutex::default() };
        self.replicas.insert(name.to_owned(), view);
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
