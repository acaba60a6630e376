//! Tables added to a live replica: copied and applied by a session of their own, until they stand where the others do.
//!
//! # Invariant
//!
//! The session of added tables never goes beyond that of the others, so the two always meet at a place where the others have stopped. While they wait
//! there, neither moves; the ledger joins them only when both of its rows name that place.
//!
//! # Progression (in memory; the ledger's rows are what is durable)
//!
//! ```text
//!  Apart ──close enough──► Asked ──the others end their batch──► Stopped ──at the same place──► Met ──ledger──► done
//!    ▲                                                              │ not within [`PATIENCE`]     │ refused
//!    └──────────────── not again for [`PAUSE`] ─────────────────────┴─────────────────────────────┘
//! ```
//!
//! It lives within the session of the others: what ends that ends this, and both begin again from the ledger.
//!
//! Rejected: *the others drop nothing and the added tables catch up by reading again what they missed* (two readers of one place must then agree on
//! what "missed" is); *one session that copies in between its batches* (a long index build or COPY is its lag).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::first_copy::FirstCopy;
use super::progress;
use super::status::ApplyStatus;
use super::worker::{Applier, boxed};
use crate::error::{Error, Result};
use crate::queue::CONSUMER_PREFIX;
use crate::replica::ReplicaRow;
use crate::replica::postgres::ledger;

/// The others wait no longer than this for the added tables.
const PATIENCE: Duration = Duration::from_secs(3);
/// After a meeting that came to nothing.
const PAUSE: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Apart,
    Asked,
    Stopped,
    Met,
    Done,
}

/// Where two sessions of one replica become one.
pub struct Meeting {
    /// Name of the added tables' row.
    pub added: String,
    /// How far the others are; what the added tables' session has to say is told there too.
    telling: watch::Sender<ApplyStatus>,
    state: watch::Sender<State>,
    /// No meeting before.
    not_before: std::sync::Mutex<Instant>,
    /// So near, in bytes of log, that waiting for the rest is short.
    close_bytes: u64,
}

impl Meeting {
    fn new(added: String, telling: watch::Sender<ApplyStatus>, close_bytes: u64) -> Self {
        let not_before = std::sync::Mutex::new(Instant::now());
        Self { added, telling, state: watch::Sender::new(State::Apart), not_before, close_bytes }
    }

    /// Bytes of the stream that the others have.
    pub fn whole_bytes(&self) -> u64 {
        self.telling.borrow().bytes_so_far
    }

    /// Ends when the others have gone on, or wait.
    pub async fn whole_moved(&self) {
        let (mut whole, mut state) = (self.telling.subscribe(), self.state.subscribe());
        tokio::select! {
            _ = whole.changed() => {}
            _ = state.changed() => {}
        }
    }

    fn is(&self, state: State) -> bool {
        *self.state.borrow() == state
    }

    fn moves(&self, from: State, to: State) -> bool {
        self.state.send_if_modified(|state| {
            let moves = *state == from;
            if moves {
                *state = to;
            }
            moves
        })
    }

    /// The added tables are complete, and stand here with no transaction open. Asks to meet when that is near the others; where they have
    /// stopped, ends once they go on.
    pub async fn arrive(&self, bytes: u64) {
        let whole = self.whole_bytes();
        let due = *self.not_before.lock().unwrap_or_else(std::sync::PoisonError::into_inner) <= Instant::now();
        if due && bytes + self.close_bytes >= whole {
            self.moves(State::Apart, State::Asked);
        }
        if bytes == whole && self.moves(State::Stopped, State::Met) {
            let mut state = self.state.subscribe();
            // The sender is ours: an error cannot be.
            drop(state.wait_for(|state| *state == State::Apart).await);
        }
    }

    /// The others are between two batches. True when the added tables stand at the same place, and wait.
    pub async fn wait(&self) -> bool {
        if !self.moves(State::Asked, State::Stopped) {
            return false;
        }
        let mut state = self.state.subscribe();
        let met = async { state.wait_for(|state| *state != State::Stopped).await.is_ok_and(|state| *state == State::Met) };
        if tokio::time::timeout(PATIENCE, met).await == Ok(true) {
            return true;
        }
        if self.is(State::Met) {
            return true;
        }
        tracing::warn!(
            replica = self.added,
            "tables that were added did not come to where the others are in time; tried again later"
        );
        self.not_again();
        false
    }

    fn not_again(&self) {
        *self.not_before.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Instant::now() + PAUSE;
        self.state.send_replace(State::Apart);
    }

    /// Ends when the ledger has joined them.
    pub async fn ended(&self) {
        let mut state = self.state.subscribe();
        // The sender is ours: an error cannot be.
        drop(state.wait_for(|state| *state == State::Done).await);
    }

    /// The ledger has joined them.
    pub fn done(&self) {
        self.state.send_replace(State::Done);
        self.telling.send_modify(|status| status.added = None);
    }

    /// The ledger, or the replica, would not.
    pub fn refused(&self, error: &Error) {
        tracing::error!(replica = self.added, %error, "tables that were added cannot go live; tried again later, the others go on");
        self.telling.send_modify(|status| status.added = Some((None, error.to_string())));
        self.not_again();
    }
}

/// Tables that are added, beside a session.
pub struct Added {
    /// Where it meets the others.
    pub meeting: Arc<Meeting>,
    _task: AbortOnDropHandle<()>,
    _telling: AbortOnDropHandle<()>,
}

/// Gives tables that were added a row of their own, where others are live. True when there is such a row.
///
/// # Errors
/// Those of replica and queue.
pub async fn set_apart(applier: &Applier, copy: &dyn FirstCopy, row: &ReplicaRow) -> Result<bool> {
    let config = &applier.config;
    let name = ledger::added(&config.name);
    if let Some(cursor) = &row.cursor
        && copy.may_set_apart().await?
    {
        // First the hold on the log, then the row that needs it. One that is there already holds more.
        let key = format!("{CONSUMER_PREFIX}{name}");
        if !applier.queue.registry(&config.source).await?.contains_key(&key) {
            progress::put(&applier.queue, &config.source, &name, &progress::of_cursor(cursor)).await?;
        }
        crate::failpoint::hit("added.registered")?;
        copy.set_apart(row.apply_epoch).await?;
        crate::failpoint::hit("added.apart")?;
        tracing::info!(replica = config.name, "tables were added; they are copied while the others go on");
    } else if !copy.is_apart().await? {
        if !applier.hold_given_up.load(Ordering::Relaxed) {
            give_up_hold(applier).await?;
        }
        return Ok(false);
    }
    applier.hold_given_up.store(false, Ordering::Relaxed);
    Ok(true)
}

/// Works on tables that have a row of their own.
pub fn spawn(applier: &Applier, copy: &dyn FirstCopy, cancel: &CancellationToken, status: &watch::Sender<ApplyStatus>) -> Added {
    let name = ledger::added(&applier.config.name);
    let mut config = applier.config.clone();
    config.name.clone_from(&name);
    let close_bytes = (config.merge_max_bytes as u64).max(1 << 20);
    let meeting = Arc::new(Meeting::new(name.clone(), status.clone(), close_bytes));
    let (target, queue) = (applier.target.named(&name), Arc::clone(&applier.queue));
    let mut part = Applier::new(config, target, queue, Some(copy.of_added(status.subscribe())));
    part.meeting = Some(Arc::clone(&meeting));
    let (told, mut heard) = watch::channel(ApplyStatus::default());
    let outer = status.clone();
    let telling = tokio::spawn(async move {
        while heard.changed().await.is_ok() {
            let said = heard.borrow_and_update().clone();
            let said = said.error.map(|error| (said.halt, error));
            outer.send_if_modified(|status| std::mem::replace(&mut status.added, said.clone()) != said);
        }
    });
    let task = tokio::spawn(boxed(part, cancel.child_token(), told));
    Added { meeting, _task: AbortOnDropHandle::new(task), _telling: AbortOnDropHandle::new(telling) }
}

/// What is left to do when the sessions have become one.
pub async fn clear_up(applier: &Applier, added: Added) {
    drop(added);
    // Its last report may still be on its way, for as long as the queue has time to answer.
    for seconds in [1, 31] {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        if let Err(error) = give_up_hold(applier).await {
            tracing::warn!(replica = applier.config.name, %error, "the hold of added tables on the queue stays until the next start");
        }
    }
}

/// A daemon that was killed between the ledger's word and the queue's leaves a hold on the log for nobody.
async fn give_up_hold(applier: &Applier) -> Result<()> {
    let (stream, key) = (&applier.config.source, format!("{CONSUMER_PREFIX}{}", ledger::added(&applier.config.name)));
    if applier.queue.registry(stream).await?.contains_key(&key) {
        applier.queue.registry_put(stream, &key, None).await?;
    }
    applier.hold_given_up.store(true, Ordering::Relaxed);
    Ok(())
}
