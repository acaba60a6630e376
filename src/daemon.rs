//! The daemon: all wiring, top to bottom in the order that data flows. The only place that matches on backend kinds.
//!
//! ```text
//! signals ─► systemd READY, HTTP ─► queue (its folder: one daemon at a time) ─► socket ─► captures ─► surveys ─► appliers
//!                                                                                  │ a task ends early: stop with its error
//!                                              SIGTERM, SIGINT ──────────────────► stop, at most STOP_WITHIN
//! ```
//!
//! READY comes as soon as the configuration is known to be valid: a database or a broker that is down is tried again, shown by
//! `/readyz` and `millstream status`, and never a reason not to start. A stream that halts never ends the process.

use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::apply::copy::{CopyProgress, PostgresCopy};
use crate::apply::{Applier, ApplyStatus, FirstCopy, run_apply};
use crate::capture::{CaptureStatus, run_capture};
use crate::config::{Config, QueueConfig, QueueKind, ReplicaConfig, SourceConfig};
use crate::control::survey::{self, Survey};
use crate::control::{Control, SAMPLE_EVERY};
use crate::error::{Error, ErrorKind, Result};
use crate::http;
use crate::pause::{Gate, Pauses, Who};
use crate::queue::Queue;
use crate::queue::embedded::{EmbeddedQueue, FolderLock};
use crate::queue::kafka::{KafkaQueue, KafkaSettings};
use crate::replica::ReplicaTarget;
use crate::replica::postgres::PostgresTarget;
use crate::socket;
use crate::systemd;
use crate::task::Tasks;
use crate::telemetry::{Repeating, Say};

/// Time from SIGTERM to the process's end, with a second left for the process itself.
const STOP_WITHIN: Duration = Duration::from_secs(9);
/// Pause before a queue folder that another daemon has is asked for again.
const LOCK_AGAIN: Duration = Duration::from_secs(1);

/// What a daemon does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roles {
    /// Reads sources.
    pub capture: bool,
    /// Writes replicas.
    pub apply: bool,
}

impl Roles {
    fn names(self) -> Vec<&'static str> {
        [(self.capture, "capture"), (self.apply, "apply")].iter().filter(|(has, _)| *has).map(|(_, name)| *name).collect()
    }
}

/// Runs until it is told to stop.
///
/// # Errors
/// [`ErrorKind::Config`] for roles that the queue cannot be split by, and that of a task that ended early.
pub async fn run(config: Config, roles: Roles) -> Result<()> {
    if !(roles.capture && roles.apply) && matches!(config.queue.kind, QueueKind::Embedded { .. }) {
        let message =
            "--roles splits the work over several daemons and needs a Kafka queue; with the embedded queue one daemon does all";
        return Err(Error::new(ErrorKind::Config, message));
    }
    let mut stop = Stop::listen()?;
    let mut tasks = Tasks::new(CancellationToken::new());
    // Held until every task has ended: another daemon on the folder then finds it quiet.
    let mut lock = None;
    let ended = {
        let work = work(config, roles, &mut tasks, &mut lock);
        tokio::pin!(work);
        tokio::select! {
            ended = &mut work => ended,
            name = stop.asked() => {
                tracing::info!(signal = name, "stopping");
                Ok(())
            }
        }
    };
    systemd::stopping();
    if let Err(error) = &ended {
        tracing::error!(%error, "the daemon ends");
    }
    tokio::select! {
        late = tasks.stop(STOP_WITHIN) => if !late.is_empty() {
            tracing::warn!(tasks = late.join(", "), "did not end in time; what they had not committed is done again at the next start");
        },
        name = stop.asked() => tracing::warn!(signal = name, "asked a second time: ending at once"),
    }
    drop(lock);
    tracing::info!("stopped");
    ended
}

/// Starts everything and watches it.
async fn work(config: Config, roles: Roles, tasks: &mut Tasks, lock: &mut Option<FolderLock>) -> Result<()> {
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        pid = std::process::id(),
        roles = roles.names().join(","),
        sources = config.sources.len(),
        replicas = config.replicas.len(),
        "millstream starts"
    );
    let (control, channels) = channels(&config, roles);
    start_telling(&config, &control, tasks);
    let queue = tokio::select! {
        opened = open_for_daemon(&config.queue, &control) => {
            let (queue, taken) = opened?;
            *lock = taken;
            queue
        }
        ended = tasks.watch() => return ended,
    };
    if let Some(path) = config.control.socket.clone() {
        tasks.spawn("socket", socket::serve(path, Arc::clone(&control), tasks.token().clone()));
    }
    for SourceWork { source, pauses, gate, captured, surveyed } in channels.sources {
        pauses.open(&queue);
        let captured_here = captured.is_some();
        if let Some(status) = captured {
            let name = format!("capture {}", source.name);
            let (queue, cancel) = (Arc::clone(&queue), tasks.token().clone());
            tasks.spawn(name, run_capture(source.clone(), config.queue.max_bytes, queue, gate, cancel, status));
        }
        tasks.spawn(format!("pauses {}", source.name), pauses.watch(tasks.token().clone()));
        let name = format!("survey {}", source.name);
        tasks.spawn(name, survey::run(source, Arc::clone(&queue), captured_here, surveyed, tasks.token().clone()));
    }
    for ReplicaWork { replica, gate, status, copy } in channels.replicas {
        let name = format!("apply {}", replica.name);
        let mut applier = applier(replica, &queue, copy);
        applier.gate = gate;
        let cancel = tasks.token().clone();
        tasks.spawn(name, async move {
            run_apply(applier, cancel, status).await;
            Ok(())
        });
    }
    tasks.watch().await
}

/// What a source's tasks work on, and where they tell.
struct SourceWork {
    source: SourceConfig,
    /// Of its stream.
    pauses: Arc<Pauses>,
    gate: Arc<Gate>,
    /// `None` where this daemon does not capture.
    captured: Option<watch::Sender<CaptureStatus>>,
    surveyed: watch::Sender<Survey>,
}

/// What a replica's applier works on, and where it tells.
struct ReplicaWork {
    replica: ReplicaConfig,
    gate: Arc<Gate>,
    status: watch::Sender<ApplyStatus>,
    copy: Option<Arc<dyn FirstCopy>>,
}

/// The sending ends for the stages, with what each works on.
struct Channels {
    sources: Vec<SourceWork>,
    replicas: Vec<ReplicaWork>,
}

fn channels(config: &Config, roles: Roles) -> (Arc<Control>, Channels) {
    let mut control = Control::new(config, &roles.names());
    let mut channels = Channels { sources: Vec::new(), replicas: Vec::new() };
    for source in config.sources.values() {
        let surveyed = watch::Sender::new(Survey::default());
        let captured = roles.capture.then(|| watch::Sender::new(CaptureStatus::default()));
        let pauses = Pauses::new(&source.name);
        let gate = pauses.gate(Who::Source);
        let capture = captured.as_ref().map(watch::Sender::subscribe);
        control.source(source, capture, surveyed.subscribe(), Arc::clone(&gate));
        for replica in config.replicas_of(&source.name) {
            let gate = pauses.gate(Who::Replica(replica.name.clone()));
            let apply = roles.apply.then(|| watch::Sender::new(ApplyStatus::default()));
            let (copy, progress) = first_copy(source, replica);
            control.replica(replica, apply.as_ref().map(watch::Sender::subscribe), Some(progress), Arc::clone(&gate));
            channels.replicas.extend(apply.map(|status| ReplicaWork {
                replica: replica.clone(),
                gate,
                status,
                copy: Some(copy),
            }));
        }
        channels.sources.push(SourceWork { source: source.clone(), pauses, gate, captured, surveyed });
    }
    (Arc::new(control), channels)
}

/// Everything that tells others how the daemon is.
fn start_telling(config: &Config, control: &Arc<Control>, tasks: &mut Tasks) {
    let (sampled, cancel) = (Arc::clone(control), tasks.token().clone());
    tasks.spawn("samples", async move {
        let mut ticks = tokio::time::interval(SAMPLE_EVERY);
        while cancel.run_until_cancelled(ticks.tick()).await.is_some() {
            sampled.sample();
        }
        Ok(())
    });
    if let Some(config) = config.http.clone() {
        tasks.spawn("http", http::serve(config, Arc::clone(control), tasks.token().clone()));
    }
    systemd::ready();
    tasks.spawn("systemd", systemd::run(Arc::clone(control), tasks.token().clone()));
}

/// Opens the queue; an embedded one is waited for while another daemon has its folder.
async fn open_for_daemon(config: &QueueConfig, control: &Control) -> Result<(Arc<dyn Queue>, Option<FolderLock>)> {
    let QueueKind::Embedded { folder } = &config.kind else { return Ok((open_queue(config)?, None)) };
    let warnings = Repeating::default();
    loop {
        let error = match EmbeddedQueue::lock_daemon(folder).and_then(|lock| Ok((open_queue(config)?, Some(lock)))) {
            Ok(opened) => {
                control.waits_for(None);
                if let Some(after) = warnings.recovered("queue") {
                    tracing::info!(seconds = after.as_secs(), folder = %folder.display(), "the queue's folder is ours now");
                }
                return Ok(opened);
            }
            Err(error) => error,
        };
        if warnings.failed("queue", &error.to_string()) != Say::Nothing {
            tracing::warn!(%error, "waiting for the queue's folder");
        }
        control.waits_for(Some(error.to_string()));
        tokio::time::sleep(LOCK_AGAIN).await;
    }
}

/// The queue of a configuration, without a daemon's lock on it.
///
/// # Errors
/// [`ErrorKind::Config`] for settings that it does not take; those of the file system.
pub fn open_queue(config: &QueueConfig) -> Result<Arc<dyn Queue>> {
    match &config.kind {
        QueueKind::Embedded { folder } => Ok(EmbeddedQueue::open(folder)?),
        QueueKind::Kafka { brokers, settings, topic_prefix, replication_factor } => {
            let (brokers, prefix) = (brokers.clone(), topic_prefix.clone());
            Ok(KafkaQueue::open(KafkaSettings::new(brokers, settings.clone(), prefix, *replication_factor))?)
        }
    }
}

fn applier(replica: ReplicaConfig, queue: &Arc<dyn Queue>, first_copy: Option<Arc<dyn FirstCopy>>) -> Applier {
    let target: Arc<dyn ReplicaTarget> = Arc::new(PostgresTarget::new(replica.clone()));
    Applier::new(replica, target, Arc::clone(queue), first_copy)
}

/// What loads the tables of a replica that are not live yet: straight from the source, not through the queue.
fn first_copy(source: &SourceConfig, replica: &ReplicaConfig) -> (Arc<dyn FirstCopy>, watch::Receiver<CopyProgress>) {
    let (copy, progress) = PostgresCopy::new(source.clone(), replica.clone());
    (copy, progress)
}

/// The signals that end a daemon.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn listen() -> Result<Self> {
        let listen = |kind| {
            signal(kind).map_err(|error| Error::new(ErrorKind::Unexpected, "cannot listen for signals").with_source(error))
        };
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn asked(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
