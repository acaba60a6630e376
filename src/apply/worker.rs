//! Keeps one replica applied to: claims it, copies what is not copied, applies the log, and starts over after any failure.
//!
//! ```text
//! connect ─► lock ─► raise epoch ─► first copy ─► open the log behind the ledger's cursor ─► apply … fails
//!    ▲         │ held by another                                                               │
//!    └── pause ┴──────────── retry: growing pauses │ mendable halt: every 10 s ◄───────────────┘
//!                            lasting halt: until restart │ cancelled: ends
//! ```
//!
//! Before the first line stands the replica's [`Gate`]: while it is paused nothing is claimed. A pause ends a session as the daemon's own end does: the
//! batch in hand is committed, or rolled back; finished chunks of a first copy stay; lock and session on the replica are given up. A lasting halt stays one
//! over a pause.
//!
//! Designs considered: keeping the replica's session over a failure of the queue (saves one reconnection; but then two places
//! decide what is applied, memory and ledger, and they can differ).

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::added::{self, Meeting};
use super::first_copy::{FirstCopy, Schemas};
use super::merge::Merger;
use super::progress::Reporter;
use super::read::{CHANGE_BYTES, Decoder, ReadAhead};
use super::session::{Beside, Ended, Session, check_stream};
use super::status::{ApplyState, ApplyStatus, Rate};
use crate::config::ReplicaConfig;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::halt::{Disposition, RETRY_HALTED_SECONDS, disposition};
use crate::pause::Gate;
use crate::queue::Queue;
use crate::queue::log::{LogReader, Start};
use crate::replica::{ReplicaTarget, kept_alive};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(10);
/// A replica that another applier has is asked for this often.
const HELD_PAUSE: Duration = Duration::from_secs(1);
/// What is at work when the daemon ends gets this long to commit; what it has not committed by then rolls back.
const DRAIN: Duration = Duration::from_secs(5);
/// Tables that a later `init` adds, or that are to be copied again, are found within this time.
const LOOK_FOR_TABLES: Duration = Duration::from_secs(1);
/// Read-ahead, as a multiple of what one batch may hold: one being applied, one being collected, one being read.
const READ_AHEAD_BATCHES: usize = 3;

/// One replica's applier and what it stands between.
pub struct Applier {
    /// The replica.
    pub config: ReplicaConfig,
    /// How it is written to.
    pub target: Arc<dyn ReplicaTarget>,
    /// Where the log is.
    pub queue: Arc<dyn Queue>,
    /// What loads tables that are not live; `None` where none is wanted.
    pub first_copy: Option<Arc<dyn FirstCopy>>,
    /// Closed while it is paused.
    pub gate: Arc<Gate>,
    /// These are tables that were added, and where they meet the others.
    pub(super) meeting: Option<Arc<Meeting>>,
    /// The queue holds nothing for tables that were added, as far as is known.
    pub(super) hold_given_up: AtomicBool,
}

impl Applier {
    /// Of a whole replica, which nobody pauses unless its gate is replaced.
    #[must_use]
    pub fn new(
        config: ReplicaConfig,
        target: Arc<dyn ReplicaTarget>,
        queue: Arc<dyn Queue>,
        first_copy: Option<Arc<dyn FirstCopy>>,
    ) -> Self {
        let gate = Gate::always_open();
        Self { config, target, queue, first_copy, gate, meeting: None, hold_given_up: AtomicBool::new(false) }
    }
}

/// How one turn ended though nothing failed.
enum Turn {
    /// The work was asked to end.
    Asked,
    /// A later `init` has added tables.
    TablesFound,
    /// A pause began or ended.
    Gate,
}

/// [`run_apply`], for a task of its own.
pub(super) fn boxed(
    applier: Applier,
    cancel: CancellationToken,
    status: watch::Sender<ApplyStatus>,
) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(run_apply(applier, cancel, status))
}

/// Applies until cancelled; failures and halts are told through `status` and never end it.
pub async fn run_apply(applier: Applier, cancel: CancellationToken, status: watch::Sender<ApplyStatus>) {
    status.send_modify(|status| {
        status.replica.clone_from(&applier.config.name);
        status.source.clone_from(&applier.config.source);
        if status.halt.is_some() {
            status.state = ApplyState::Halted;
        }
    });
    let mut pause = FIRST_PAUSE;
    loop {
        let began = Instant::now();
        let (before, position) = (status.borrow().batches, status.borrow().position);
        let error = match turn(&applier, &cancel, &status).await {
            Ok(Turn::Asked) => break,
            Ok(Turn::TablesFound) => {
                tracing::info!(replica = applier.config.name, "tables are to be copied; apply begins anew with them");
                continue;
            }
            Ok(Turn::Gate) => {
                pause = FIRST_PAUSE;
                continue;
            }
            Err(error) => error.context(format!("replica '{}'", applier.config.name)),
        };
        // A claim that finds the ledger further on shows that a commit went in whose answer was lost.
        let moved = status.borrow().batches > before || status.borrow().position != position;
        let has_work = applier.first_copy.as_ref().is_some_and(|copy| copy.has_work());
        if moved || has_work || began.elapsed() > LAST_PAUSE {
            pause = FIRST_PAUSE;
        }
        let Some(wait) = next_attempt(&error, has_work, &status, &mut pause) else { break };
        // One that loss has halted stays halted over a pause.
        let lasts = status.borrow().halt.is_some_and(|code| !code.mendable());
        let paused = applier.gate.paused().is_some();
        tokio::select! {
            () = cancel.cancelled() => break,
            () = wait => {}
            () = applier.gate.closed(), if !paused && !lasts => {}
            () = asked_again(&applier, &status) => {}
        }
    }
    status.send_modify(|status| status.state = ApplyState::Stopped);
}

/// A pause to its end, or a session to its own.
async fn turn(applier: &Applier, cancel: &CancellationToken, status: &watch::Sender<ApplyStatus>) -> Result<Turn> {
    let gate = &applier.gate;
    let paused = tokio::select! {
        () = cancel.cancelled() => return Ok(Turn::Asked),
        paused = gate.check() => paused?,
    };
    if paused.is_some() {
        begins(status, ApplyState::Paused);
        if let Some(copy) = &applier.first_copy {
            copy.rest().await;
        }
        tracing::info!(replica = applier.config.name, "paused: nothing is applied until it is resumed");
        tokio::select! {
            () = cancel.cancelled() => return Ok(Turn::Asked),
            () = gate.opened() => {}
        }
        tracing::info!(replica = applier.config.name, "resumed");
        begins(status, ApplyState::Waiting);
        return Ok(Turn::Gate);
    }
    let _at_work = gate.work();
    let session = cancel.child_token();
    let attempt = attempt(applier, &session, status);
    tokio::pin!(attempt);
    let ended = tokio::select! {
        ended = &mut attempt => ended,
        () = gate.closed() => {
            session.cancel();
            attempt.await
        }
    };
    match ended {
        // What a copy says that was asked to end.
        Err(error) if error.kind() != ErrorKind::Cancelled => Err(error),
        Ok(Ended::TablesFound) => Ok(Turn::TablesFound),
        _ if cancel.is_cancelled() => Ok(Turn::Asked),
        _ => {
            begins(status, ApplyState::Paused);
            Ok(Turn::Gate)
        }
    }
}

/// Tells of a failure and gives the pause after it. `has_work`: there are tables to copy, for which apply makes room; `None` when the work was asked to end.
fn next_attempt(
    error: &Error,
    has_work: bool,
    status: &watch::Sender<ApplyStatus>,
    pause: &mut Duration,
) -> Option<std::pin::Pin<Box<dyn Future<Output = ()> + Send>>> {
    let repeated = status.borrow().error.as_deref() == Some(&error.to_string());
    let (state, halt, wait) = match disposition(error) {
        Disposition::Stop => return None,
        Disposition::Retry if error.kind() == ErrorKind::Held => (ApplyState::Held, None, Some(HELD_PAUSE)),
        Disposition::Retry => {
            let wait = *pause;
            *pause = (*pause * 2).min(LAST_PAUSE);
            (ApplyState::Waiting, None, Some(wait))
        }
        Disposition::Halt(code) => {
            (ApplyState::Halted, Some(code), code.mendable().then_some(Duration::from_secs(RETRY_HALTED_SECONDS)))
        }
    };
    if !repeated {
        match halt {
            Some(code) => tracing::error!(%code, %error, "apply halted; `millstream explain {code}` says what to do"),
            None if has_work && error.kind() == ErrorKind::Busy => {
                tracing::info!(reason = %error, "apply begins anew with a copy")
            }
            None => tracing::warn!(%error, "apply is interrupted and goes on by itself"),
        }
    }
    status.send_modify(|status| {
        status.state = state;
        status.halt = halt;
        status.error = Some(error.to_string());
    });
    Some(match wait {
        Some(wait) => Box::pin(tokio::time::sleep(wait)),
        None => Box::pin(std::future::pending()),
    })
}

/// Ends when somebody asks a replica that is halted to copy a table again, or orders what it stands at to be kept in quarantine.
async fn asked_again(applier: &Applier, status: &watch::Sender<ApplyStatus>) {
    let halt = status.borrow().halt;
    let (Some(copy), Some(halt)) = (applier.first_copy.as_deref(), halt) else { return std::future::pending().await };
    loop {
        tokio::time::sleep(LOOK_FOR_TABLES).await;
        // A replica that does not answer is the next attempt's to tell.
        let is_due = look_at_quarantine(copy, applier.meeting.is_some(), status).await;
        if (is_due && halt.mendable()) || copy.is_asked_again().await.unwrap_or(false) {
            return;
        }
    }
}

/// Shows what is in quarantine; true when what the replica stands at is to be tried at once. `added`: of tables beside the others, which have none.
async fn look_at_quarantine(copy: &dyn FirstCopy, added: bool, status: &watch::Sender<ApplyStatus>) -> bool {
    if added {
        return false;
    }
    match copy.quarantine().await {
        Ok(look) => {
            status.send_if_modified(|status| {
                let changes = status.quarantine.as_ref() != Some(&*look.quarantine);
                if changes {
                    status.quarantine = Some((*look.quarantine).clone());
                }
                changes
            });
            look.due
        }
        Err(error) => {
            tracing::debug!(%error, "what is in quarantine cannot be looked at");
            false
        }
    }
}

/// One session, from claim to failure.
async fn attempt(applier: &Applier, cancel: &CancellationToken, status: &watch::Sender<ApplyStatus>) -> Result<Ended> {
    let work = session(applier, cancel, status);
    tokio::pin!(work);
    tokio::select! {
        done = &mut work => return done,
        () = cancel.cancelled() => {}
    }
    // The session notices the cancellation by itself between batches; a batch at work may still commit.
    match tokio::time::timeout(DRAIN, work).await {
        Ok(Err(error)) if error.kind() != ErrorKind::Cancelled => {
            tracing::warn!(%error, "apply failed while ending");
        }
        Ok(_) => {}
        Err(_) => tracing::warn!("the replica did not answer in time; what was not committed is rolled back"),
    }
    Ok(Ended::Asked)
}

async fn session(applier: &Applier, cancel: &CancellationToken, status: &watch::Sender<ApplyStatus>) -> Result<Ended> {
    let config = &applier.config;
    let (mut replica, row) = applier.target.claim().await?;
    check_stream(row.stream, row.cursor.as_ref())?;
    tracing::info!(replica = config.name, epoch = row.apply_epoch.0, "claimed the replica");
    status.send_modify(|status| status.apply_epoch = Some(row.apply_epoch));
    let apart = match (&applier.first_copy, &applier.meeting) {
        (Some(copy), None) => {
            kept_alive(&mut *replica, added::set_apart(applier, &**copy, &row)).await.at(|| "tables that were added")?
        }
        _ => false,
    };
    let catch_up = match &applier.first_copy {
        Some(copy) => {
            begins(status, ApplyState::Copying);
            let prepared = async {
                tokio::select! {
                    prepared = copy.prepare(row.apply_epoch, cancel) => prepared,
                    never = notices_that_it_copies(&**copy, status) => match never {},
                }
            };
            kept_alive(&mut *replica, prepared).await.at(|| "first copy")?
        }
        None => None,
    };
    let start = row.cursor.clone().map_or(Start::First, Start::After);
    let reader = LogReader::open(&applier.queue, &config.source, start).await?;
    let decoder = Decoder::after(row.cursor.as_ref());
    let changes = usize::try_from(config.merge_max_changes).unwrap_or(usize::MAX).saturating_mul(CHANGE_BYTES);
    let budget = config.merge_max_bytes.saturating_add(changes).saturating_mul(READ_AHEAD_BATCHES);
    let log = ReadAhead::spawn(reader, decoder, budget);
    let reporter = Reporter::spawn(Arc::clone(&applier.queue), config.source.clone(), config.name.clone());
    if let Some(cursor) = &row.cursor {
        reporter.committed(cursor.clone());
    }
    begins(status, if catch_up.is_some() { ApplyState::CatchingUp } else { ApplyState::Live });
    status.send_modify(|status| {
        if let Some(cursor) = &row.cursor {
            status.stands_at(cursor);
        }
        status.source_time_us = row.source_time_us;
    });
    let others = applier.first_copy.as_ref().filter(|_| apart).map(|copy| added::spawn(applier, &**copy, cancel, status));
    let beside = match (&applier.meeting, &others) {
        (Some(meeting), _) => Beside::Added(Arc::clone(meeting)),
        (None, Some(added)) => Beside::Whole(Arc::clone(&added.meeting)),
        (None, None) => Beside::Nobody,
    };
    let mut session = Session {
        replica,
        log,
        merger: Merger::new(config.merge_max_bytes, config.merge_max_changes),
        schemas: Schemas::default(),
        catch_up,
        reporter,
        status,
        rate: Rate::default(),
        stepped: Instant::now(),
        carried: std::collections::VecDeque::new(),
        ending: None,
        large: false,
        deep: false,
        beside,
        alive: Instant::now(),
    };
    let copy_wanted = CancellationToken::new();
    tokio::select! {
        ended = session.run(cancel, &copy_wanted) => ended,
        never = look_for_tables(applier, &copy_wanted, status) => match never {},
        never = see_to_added(applier, others, status) => match never {},
    }
}

/// A copy may take hours, and commits nothing for the session before its end. One that loads rows when an attempt has gone on for longer than the pause
/// before it is halted no more; a look at its first rows would clear the halt of each attempt that fails for a moment.
async fn notices_that_it_copies(copy: &dyn FirstCopy, status: &watch::Sender<ApplyStatus>) -> std::convert::Infallible {
    if status.borrow().halt.is_some() {
        tokio::time::sleep(Duration::from_secs(RETRY_HALTED_SECONDS)).await;
        let mut progress = copy.progress();
        let rows = progress.borrow().rows;
        if progress.wait_for(|now| now.rows > rows).await.is_ok() {
            status.send_modify(|status| {
                status.state = ApplyState::Copying;
                status.error = None;
                status.halt = None;
            });
        }
    }
    std::future::pending().await
}

/// Waits for tables that were added to be one with the others, and does what is left to do then.
async fn see_to_added(
    applier: &Applier,
    others: Option<added::Added>,
    status: &watch::Sender<ApplyStatus>,
) -> std::convert::Infallible {
    let (Some(copy), None) = (&applier.first_copy, &applier.meeting) else { return std::future::pending().await };
    if let Some(others) = others {
        others.meeting.ended().await;
        let (validated, ()) = tokio::join!(copy.validate(true), added::clear_up(applier, others));
        said(status, validated);
    } else {
        // A daemon was killed behind the meeting.
        said(status, copy.validate(false).await);
    }
    std::future::pending().await
}

fn said(status: &watch::Sender<ApplyStatus>, validated: Result<()>) {
    if let Err(error) = &validated {
        let replica = status.borrow().replica.clone();
        tracing::warn!(replica, %error, "a foreign key could not be validated; tried again when apply begins anew");
    }
    status.send_modify(|status| status.not_validated = validated.err().map(|error| error.to_string()));
}

/// Says when a later `init` has added tables, so that the session ends and the next one begins with their copy. A look that fails is no
/// reason to end one that works.
async fn look_for_tables(
    applier: &Applier,
    found: &CancellationToken,
    status: &watch::Sender<ApplyStatus>,
) -> std::convert::Infallible {
    let Some(copy) = applier.first_copy.as_deref() else { return std::future::pending().await };
    let replica = &applier.config.name;
    let mut failing = false;
    loop {
        look_at_quarantine(copy, applier.meeting.is_some(), status).await;
        tokio::time::sleep(LOOK_FOR_TABLES).await;
        match copy.wanted().await {
            Ok(wanted) => {
                if std::mem::take(&mut failing) {
                    tracing::info!(replica, "tables to be copied are looked for again");
                }
                if wanted {
                    found.cancel();
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(replica, %error, "tables to be copied cannot be looked for");
                }
            }
        }
    }
}

/// A halted replica stays so until something is committed, or is copied for a while: a new attempt alone mends nothing.
fn begins(status: &watch::Sender<ApplyStatus>, state: ApplyState) {
    status.send_if_modified(|status| {
        let changes = status.halt.is_none() && status.state != state;
        if changes {
            status.state = state;
        }
        changes
    });
}
