//! The sources and replicas at work, each of which is started and stopped while the others go on.
//!
//! What a source or replica tells ([`CaptureStatus`], [`ApplyStatus`]) and its gate outlive its tasks: counters and halts stay over a restart.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::Roles;
use crate::apply::copy::{CopyProgress, PostgresCopy};
use crate::apply::sequences::{self, Carried};
use crate::apply::{Applier, ApplyStatus, FirstCopy, run_apply};
use crate::capture::{CaptureStatus, run_capture};
use crate::config::{Config, ReplicaConfig, SourceConfig};
use crate::control::Control;
use crate::control::survey::{self, Survey};
use crate::http;
use crate::pause::{Gate, Pauses, Who};
use crate::queue::Queue;
use crate::replica::ReplicaTarget;
use crate::replica::postgres::PostgresTarget;
use crate::socket;
use crate::task::{Part, Tasks};

/// What is stopped by a reload ends by itself within this time; longer than the stages' own drains.
const END_WITHIN: Duration = Duration::from_secs(15);

/// Everything that a reload may start, stop or start anew.
pub(super) struct Fleet {
    /// In force.
    pub config: Config,
    pub control: Arc<Control>,
    roles: Roles,
    queue: Option<Arc<dyn Queue>>,
    sources: BTreeMap<String, Source>,
    replicas: BTreeMap<String, Replica>,
    http: Option<Part>,
    socket: Option<Part>,
}

/// One source: what outlives its tasks, and its tasks.
struct Source {
    pauses: Arc<Pauses>,
    gate: Arc<Gate>,
    /// `None` where this daemon does not capture.
    captured: Option<watch::Sender<CaptureStatus>>,
    surveyed: watch::Sender<Survey>,
    capture: Option<Part>,
    /// Looks at what others may have changed.
    looks: Option<Part>,
}

/// One replica.
struct Replica {
    gate: Arc<Gate>,
    /// `None` where this daemon does not apply.
    status: Option<watch::Sender<ApplyStatus>>,
    carried: watch::Sender<Carried>,
    copy: Arc<dyn FirstCopy>,
    apply: Option<Part>,
}

impl Fleet {
    /// Nobody at work yet; `/status` knows them.
    pub(super) fn of(config: Config, roles: Roles, control: &Arc<Control>) -> Self {
        let control = Arc::clone(control);
        let mut fleet = Self {
            config,
            control,
            roles,
            queue: None,
            sources: BTreeMap::new(),
            replicas: BTreeMap::new(),
            http: None,
            socket: None,
        };
        fleet.enlist();
        fleet
    }

    /// Makes known whom the configuration has, new or old.
    pub(super) fn enlist(&mut self) {
        for config in self.config.sources.values() {
            let source = self.sources.entry(config.name.clone()).or_insert_with(|| Source::new(config, self.roles));
            let captured = source.captured.as_ref().map(watch::Sender::subscribe);
            self.control.source(config, captured, source.surveyed.subscribe(), Arc::clone(&source.gate));
        }
        for config in self.config.replicas.values() {
            let Some((source, of)) = self.config.sources.get(&config.source).zip(self.sources.get(&config.source)) else {
                continue;
            };
            let (copy, progress) = first_copy(source, config);
            let gate = of.pauses.gate(Who::Replica(config.name.clone()));
            // One that is at work keeps its copy and its gate; one that is about to be started anew takes these.
            let replica = match self.replicas.remove(&config.name) {
                Some(known) if known.apply.is_some() => {
                    self.replicas.insert(config.name.clone(), known);
                    continue;
                }
                Some(known) => Replica { gate, copy, ..known },
                None => {
                    let status = self.roles.apply.then(|| watch::Sender::new(ApplyStatus::default()));
                    Replica { gate, status, carried: watch::Sender::new(Carried::default()), copy, apply: None }
                }
            };
            let status = replica.status.as_ref().map(watch::Sender::subscribe);
            let carries = self.roles.apply && !config.sequences_interval.is_zero();
            let sequences = carries.then(|| replica.carried.subscribe());
            self.control.replica(config, status, Some(progress), sequences, Arc::clone(&replica.gate));
            self.replicas.insert(config.name.clone(), replica);
        }
    }

    /// The queue is open: everybody begins.
    pub(super) fn start(&mut self, queue: &Arc<dyn Queue>, tasks: &mut Tasks) {
        self.queue = Some(Arc::clone(queue));
        self.start_socket(tasks);
        self.start_missing(tasks);
    }

    /// Starts whoever is not at work.
    pub(super) fn start_missing(&mut self, tasks: &mut Tasks) {
        let Some(queue) = self.queue.clone() else { return };
        for (name, source) in &mut self.sources {
            if let Some(config) = self.config.sources.get(name) {
                source.start(config, self.config.queue.max_bytes, &queue, tasks);
            }
        }
        for (name, replica) in &mut self.replicas {
            if let Some(config) = self.config.replicas.get(name)
                && let Some(source) = self.config.sources.get(&config.source)
            {
                replica.start(config, source, &queue, tasks);
            }
        }
    }

    pub(super) fn start_http(&mut self, tasks: &mut Tasks) {
        if let Some(config) = self.config.http.clone() {
            let mut part = tasks.part();
            let serve = http::serve(config, Arc::clone(&self.control), part.token().clone());
            tasks.spawn_in(&mut part, "http", serve);
            self.http = Some(part);
        }
    }

    fn start_socket(&mut self, tasks: &mut Tasks) {
        if let Some(path) = self.config.control.socket.clone() {
            let mut part = tasks.part();
            let serve = socket::serve(path, Arc::clone(&self.control), part.token().clone());
            tasks.spawn_in(&mut part, "socket", serve);
            self.socket = Some(part);
        }
    }

    pub(super) async fn restart_http(&mut self, tasks: &mut Tasks) {
        if let Some(part) = self.http.take() {
            part.ended(END_WITHIN).await;
        }
        self.start_http(tasks);
    }

    /// The order that is being carried out may have come over it: its answer still goes out.
    pub(super) fn restart_socket(&mut self, tasks: &mut Tasks) {
        if let Some(part) = self.socket.take() {
            part.cancel();
        }
        self.start_socket(tasks);
    }

    /// Stops the tasks of some, all at once, and waits for them. `forget`: they are not configured any more.
    pub(super) async fn stop(&mut self, stops: &Stops) {
        let mut parts = Vec::new();
        for (name, source) in &mut self.sources {
            if stops.captures.contains(name) {
                parts.extend(source.capture.take());
            }
            if stops.looks.contains(name) {
                parts.extend(source.looks.take());
            }
        }
        for (name, replica) in &mut self.replicas {
            if stops.replicas.contains(name) {
                parts.extend(replica.apply.take());
            }
        }
        parts.iter().for_each(Part::cancel);
        for part in parts {
            part.ended(END_WITHIN).await;
        }
    }

    /// Forgets whom the configuration does not have. Their tasks have ended.
    pub(super) fn forget(&mut self) {
        self.sources.retain(|name, _| self.config.sources.contains_key(name));
        self.replicas.retain(|name, _| self.config.replicas.contains_key(name));
    }

    /// The slot of a source, as far as it is known.
    pub(super) fn slot(&self, source: &str) -> Option<String> {
        self.sources.get(source)?.captured.as_ref()?.borrow().slot.clone()
    }
}

/// Whose tasks are stopped.
#[derive(Debug, Default)]
pub(super) struct Stops {
    pub captures: Vec<String>,
    pub looks: Vec<String>,
    pub replicas: Vec<String>,
}

impl Source {
    fn new(config: &SourceConfig, roles: Roles) -> Self {
        let pauses = Pauses::new(&config.name);
        let gate = pauses.gate(Who::Source);
        let captured = roles.capture.then(|| watch::Sender::new(CaptureStatus::default()));
        Self { pauses, gate, captured, surveyed: watch::Sender::new(Survey::default()), capture: None, looks: None }
    }

    fn start(&mut self, config: &SourceConfig, queue_max_bytes: u64, queue: &Arc<dyn Queue>, tasks: &mut Tasks) {
        self.pauses.open(queue);
        if let (Some(status), None) = (&self.captured, &self.capture) {
            let mut part = tasks.part();
            let (gate, cancel, status) = (Arc::clone(&self.gate), part.token().clone(), status.clone());
            let capture = run_capture(config.clone(), queue_max_bytes, Arc::clone(queue), gate, cancel, status);
            tasks.spawn_in(&mut part, format!("capture {}", config.name), capture);
            self.capture = Some(part);
        }
        if self.looks.is_none() {
            let mut part = tasks.part();
            let cancel = part.token().clone();
            let pauses = Arc::clone(&self.pauses).watch(cancel.clone());
            tasks.spawn_in(&mut part, format!("pauses {}", config.name), pauses);
            let survey = survey::run(config.clone(), Arc::clone(queue), self.captured.is_some(), self.surveyed.clone(), cancel);
            tasks.spawn_in(&mut part, format!("survey {}", config.name), survey);
            self.looks = Some(part);
        }
    }
}

impl Replica {
    fn start(&mut self, config: &ReplicaConfig, source: &SourceConfig, queue: &Arc<dyn Queue>, tasks: &mut Tasks) {
        let (Some(status), None) = (&self.status, &self.apply) else { return };
        let target: Arc<dyn ReplicaTarget> = Arc::new(PostgresTarget::new(config.clone()));
        let mut applier = Applier::new(config.clone(), target, Arc::clone(queue), Some(Arc::clone(&self.copy)));
        applier.gate = Arc::clone(&self.gate);
        let mut part = tasks.part();
        let (cancel, status) = (part.token().clone(), status.clone());
        if !config.sequences_interval.is_zero() {
            let (live, carried, cancel) = (status.subscribe(), self.carried.clone(), cancel.clone());
            let carry = sequences::run(source.clone(), config.clone(), live, carried, cancel);
            tasks.spawn_in(&mut part, format!("sequences {}", config.name), carry);
        }
        tasks.spawn_in(&mut part, format!("apply {}", config.name), async move {
            run_apply(applier, cancel, status).await;
            Ok(())
        });
        self.apply = Some(part);
    }
}

/// What loads the tables of a replica that are not live yet: straight from the source, not through the queue.
fn first_copy(source: &SourceConfig, replica: &ReplicaConfig) -> (Arc<dyn FirstCopy>, watch::Receiver<CopyProgress>) {
    let (copy, progress) = PostgresCopy::new(source.clone(), replica.clone());
    (copy, progress)
}
