//! What a running daemon tells of itself.
//!
//! Stages publish their state through watch channels and know nothing of who reads it; a [`Control`] holds the receiving ends and makes a
//! [`Status`] of them whenever somebody asks. Nothing here is durable and nothing here decides anything about the data. What an operator orders (`orders`) goes
//! to the stages through their gates ([`crate::pause`]).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

pub mod build;
pub mod model;
mod orders;
mod rates;
pub mod survey;

pub use model::Status;

use crate::apply::ApplyStatus;
use crate::apply::copy::CopyProgress;
use crate::apply::sequences::Carried;
use crate::capture::CaptureStatus;
use crate::config::{Config, ConfigFile, OnRetainLimit, QueueKind, ReplicaConfig, SourceConfig};
use crate::error::Result;
use crate::pause::Gate;
use crate::socket::protocol::ReloadReport;
use rates::Window;
use survey::Survey;

/// How often counters are sampled for rates.
pub const SAMPLE_EVERY: Duration = Duration::from_secs(1);

/// The receiving ends, and what does not change.
pub struct Control {
    daemon: model::Daemon,
    views: RwLock<Views>,
    waiting_for: watch::Sender<Option<String>>,
    /// Why the last reload was refused.
    reload_refused: watch::Sender<Option<String>>,
    reloads: mpsc::Sender<Reload>,
}

/// What a reload may change.
pub(crate) struct Views {
    file: ConfigFile,
    queue: model::Queue,
    ready_max_lag: Duration,
    sources: BTreeMap<String, Arc<SourceView>>,
    replicas: BTreeMap<String, Arc<ReplicaView>>,
}

/// An order to read the configuration again.
pub struct Reload {
    /// Only says what would change.
    pub dry_run: bool,
    /// Where to say it.
    pub answer: oneshot::Sender<Result<ReloadReport>>,
}

/// What is known of a source.
pub struct SourceView {
    /// The capture of this process; `None` when it has not that role.
    pub capture: Option<watch::Receiver<CaptureStatus>>,
    /// What is looked up now and then.
    pub survey: watch::Receiver<Survey>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) name: String,
    /// `host:port/database`.
    pub(crate) at: String,
    retain_max_bytes: u64,
    drops_slot: bool,
    /// Transactions, changes, bytes.
    rate: Arc<Mutex<Window<3>>>,
}

/// What is known of a replica.
pub struct ReplicaView {
    /// Name of its source.
    pub source: String,
    /// `host:port/database`.
    pub(crate) at: String,
    /// The applier of this process; `None` when it has not that role.
    pub apply: Option<watch::Receiver<ApplyStatus>>,
    /// Its first copy.
    pub copy: Option<watch::Receiver<CopyProgress>>,
    /// Its sequences; `None` where nothing carries them here.
    pub sequences: Option<watch::Receiver<Carried>>,
    pub(crate) gate: Arc<Gate>,
    /// Transactions, changes, bytes.
    rate: Arc<Mutex<Window<3>>>,
}

impl Control {
    /// For a daemon of a configuration; views are added with [`Control::source`] and [`Control::replica`]. Orders to reload come out of the receiver.
    #[must_use]
    pub fn new(config: &Config, roles: &[&str]) -> (Self, mpsc::Receiver<Reload>) {
        let (reloads, ordered) = mpsc::channel(1);
        let control = Self {
            daemon: model::Daemon {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
                host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
                started_at: jiff::Timestamp::now().to_string(),
                roles: roles.iter().map(|&role| role.to_owned()).collect(),
                configuration_changed: None,
                reload_refused: None,
                waiting_for: None,
            },
            views: RwLock::new(Views::of(config)),
            waiting_for: watch::Sender::new(None),
            reload_refused: watch::Sender::new(None),
            reloads,
        };
        (control, ordered)
    }

    fn views(&self) -> RwLockReadGuard<'_, Views> {
        self.views.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self) -> RwLockWriteGuard<'_, Views> {
        self.views.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a source, or replaces what was known of it but for its rates.
    pub fn source(
        &self,
        config: &SourceConfig,
        capture: Option<watch::Receiver<CaptureStatus>>,
        survey: watch::Receiver<Survey>,
        gate: Arc<Gate>,
    ) {
        let (retain_max_bytes, drops_slot) = (config.retain_max_bytes, config.on_retain_limit == OnRetainLimit::DropSlot);
        let mut views = self.change();
        let rate = views.sources.get(&config.name).map_or_else(Arc::default, |before| Arc::clone(&before.rate));
        let (name, at) = (config.name.clone(), config.connect.address());
        let view = SourceView { capture, survey, gate, name, at, retain_max_bytes, drops_slot, rate };
        views.sources.insert(config.name.clone(), Arc::new(view));
    }

    /// Adds a replica, or replaces what was known of it but for its rates.
    pub fn replica(
        &self,
        config: &ReplicaConfig,
        apply: Option<watch::Receiver<ApplyStatus>>,
        copy: Option<watch::Receiver<CopyProgress>>,
        sequences: Option<watch::Receiver<Carried>>,
        gate: Arc<Gate>,
    ) {
        let mut views = self.change();
        let rate = views.replicas.get(&config.name).map_or_else(Arc::default, |before| Arc::clone(&before.rate));
        let (source, at) = (config.source.clone(), config.connect.address());
        let view = ReplicaView { source, at, apply, copy, sequences, gate, rate };
        views.replicas.insert(config.name.clone(), Arc::new(view));
    }

    /// Another configuration is in force: forgets whom it does not have.
    pub fn reloaded(&self, config: &Config) {
        self.reload_refused.send_replace(None);
        let mut views = self.change();
        let Views { file, queue, ready_max_lag, .. } = Views::of(config);
        (views.file, views.queue, views.ready_max_lag) = (file, queue, ready_max_lag);
        views.sources.retain(|name, _| config.sources.contains_key(name));
        views.replicas.retain(|name, _| config.replicas.contains_key(name));
    }

    /// The configuration was read again, and the old one stays in force.
    pub fn refused_reload(&self, why: String) {
        self.reload_refused.send_replace(Some(why));
    }

    /// Says what the daemon waits for before it can work.
    pub fn waits_for(&self, what: Option<String>) {
        self.waiting_for.send_replace(what);
    }

    /// Takes one sample of every counter. Called every [`SAMPLE_EVERY`].
    pub fn sample(&self) {
        let now = Instant::now();
        let push = |rate: &Mutex<Window<3>>, counters| rate.lock().unwrap_or_else(PoisonError::into_inner).sample(now, counters);
        let views = self.views();
        for view in views.sources.values() {
            if let Some(capture) = &view.capture {
                let capture = capture.borrow();
                push(&view.rate, [capture.transactions, capture.changes, capture.bytes]);
            }
        }
        for view in views.replicas.values() {
            if let Some(apply) = &view.apply {
                let apply = apply.borrow();
                push(&view.rate, [apply.transactions, apply.changes, apply.bytes]);
            }
        }
    }
}

impl Views {
    /// Without sources and replicas yet.
    fn of(config: &Config) -> Self {
        let (kind, place) = match &config.queue.kind {
            QueueKind::Embedded { folder } => ("embedded", folder.display().to_string()),
            QueueKind::Kafka { brokers, .. } => ("kafka", brokers.clone()),
        };
        Self {
            file: config.file.clone(),
            queue: model::Queue { kind: kind.to_owned(), place, max_bytes: config.queue.max_bytes },
            ready_max_lag: config.http.as_ref().map_or(Duration::from_secs(30), |http| http.ready_max_lag),
            sources: BTreeMap::new(),
            replicas: BTreeMap::new(),
        }
    }
}

fn rate_of(window: &Mutex<Window<3>>) -> model::Rate {
    let [transactions, changes, bytes] = window.lock().unwrap_or_else(PoisonError::into_inner).per_second();
    model::Rate { transactions_per_second: transactions, changes_per_second: changes, bytes_per_second: bytes }
}
