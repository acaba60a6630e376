//! The daemon: all wiring, top to bottom in the order that data flows. With `fleet` the only place that matches on backend kinds.
//!
//! ```text
//! signals ─► systemd READY, HTTP ─► queue (its folder: one daemon at a time) ─► socket ─► captures ─► surveys ─► appliers
//!                                                                                  │ a task ends early: stop with its error
//!                                              SIGTERM, SIGINT ──────────────────► stop, at most STOP_WITHIN
//!                                              SIGHUP, `millstream reload` ──────► reload: refused whole, or carried
//! ```
//!
//! READY comes as soon as the configuration is known to be valid: a database or a broker that is down is tried again, shown by
//! `/readyz` and `millstream status`, and never a reason not to start. A stream that halts never ends the process.

use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::{Config, QueueConfig, QueueKind};
use crate::control::{Control, Reload, SAMPLE_EVERY};
use crate::error::{Error, ErrorKind, Result};
use crate::queue::Queue;
use crate::queue::embedded::{EmbeddedQueue, FolderLock, Options};
use crate::queue::kafka::{KafkaQueue, KafkaSettings};
use crate::systemd;
use crate::task::Tasks;
use crate::telemetry::{Repeating, Say};

mod fleet;
mod reload;

use fleet::Fleet;

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
    let mut hangup = listen(SignalKind::hangup())?;
    let (control, mut ordered) = Control::new(&config, &roles.names());
    let control = Arc::new(control);
    let queue = config.queue.clone();
    let mut fleet = Fleet::of(config, roles, &control);
    start_telling(&mut fleet, &control, tasks);
    let queue = tokio::select! {
        opened = open_for_daemon(&queue, &control) => {
            let (queue, taken) = opened?;
            *lock = taken;
            queue
        }
        ended = tasks.watch() => return ended,
    };
    fleet.start(&queue, tasks);
    loop {
        tokio::select! {
            ended = tasks.watch() => return ended,
            _ = hangup.recv() => drop(fleet.reload(false, tasks).await),
            Some(Reload { dry_run, answer }) = ordered.recv() => {
                // Whoever asked may have left.
                drop(answer.send(fleet.reload(dry_run, tasks).await));
            }
        }
    }
}

/// Everything that tells others how the daemon is.
fn start_telling(fleet: &mut Fleet, control: &Arc<Control>, tasks: &mut Tasks) {
    let (sampled, cancel) = (Arc::clone(control), tasks.token().clone());
    tasks.spawn("samples", async move {
        let mut ticks = tokio::time::interval(SAMPLE_EVERY);
        while cancel.run_until_cancelled(ticks.tick()).await.is_some() {
            sampled.sample();
        }
        Ok(())
    });
    fleet.start_http(tasks);
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
        QueueKind::Embedded { folder } => Ok(EmbeddedQueue::open_with(folder, Options::within(config.max_bytes))?),
        QueueKind::Kafka { brokers, settings, topic_prefix, replication_factor } => {
            let (brokers, prefix) = (brokers.clone(), topic_prefix.clone());
            Ok(KafkaQueue::open(KafkaSettings::new(brokers, settings.clone(), prefix, *replication_factor))?)
        }
    }
}

/// The signals that end a daemon.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn listen() -> Result<Self> {
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn asked(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

fn listen(kind: SignalKind) -> Result<Signal> {
    signal(kind).map_err(|error| Error::new(ErrorKind::Unexpected, "cannot listen for signals").with_source(error))
}
