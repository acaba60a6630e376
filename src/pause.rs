//! Pauses: an operator asks for them, the queue keeps them, capture and apply obey them.
//!
//! # Invariant
//!
//! A source or replica is paused exactly while its stream's registry has an entry that says so. Nobody works before the registry was read
//! ([`Gate::check`]), and whoever works is told within `LOOK_EVERY` of an entry that another process wrote, at once of one that this process did.
//!
//! The registry is where a consumer's place is kept, so a pause outlives daemons, is seen by a second daemon on the same queue, can be asked for while the
//! database concerned is down, and goes with what it belongs to: with the stream, or with the replica's registration.
//!
//! # Progression
//!
//! ```text
//!  open ──pause: entry durable──► closed, at work ──the batch in hand is committed or rolled back──► closed, at rest
//!    ▲                                                                                               │
//!    └──────────────────────────── resume: entry gone ◄──────────────────────────────────────────────┘
//! ```
//!
//! Reads and writes of the registry are ordered by one lock for each stream: what was read before a pause was written must not open the gate again.
//!
//! Rejected: *in the ledger*: a replica that is down, which is one reason to pause it, could not be paused. *In a file beside the socket*: a second daemon
//! that takes over would not know.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use crate::capture::append::now_us;
use crate::error::{Context as _, Error, ErrorKind, Result};
use crate::queue::Queue;

/// Registry key prefix of pauses: `paused/source`, `paused/replica/NAME`.
pub const PAUSED_PREFIX: &str = "paused/";
/// A pause that another daemon was asked for is seen within this time.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// For one answer of the queue.
const DEADLINE: Duration = Duration::from_secs(30);

/// Whom a pause is about, within a stream.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// The stream's source: capture.
    Source,
    /// A replica that follows it.
    Replica(String),
}

impl Who {
    /// Its key in the stream's registry.
    #[must_use]
    pub fn key(&self) -> String {
        match self {
            Self::Source => format!("{PAUSED_PREFIX}source"),
            Self::Replica(name) => format!("{PAUSED_PREFIX}replica/{name}"),
        }
    }
}

/// What the registry says of a pause, as JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Paused {
    /// When it was asked for, microseconds since 1970-01-01 UTC; 0 when that cannot be read.
    pub since_us: i64,
}

/// The pauses of one stream; `None` before the registry was read.
type Seen = Option<BTreeMap<String, Paused>>;

/// The pauses of one stream.
pub struct Pauses {
    stream: String,
    queue: OnceLock<Arc<dyn Queue>>,
    /// Held over a look or a change.
    order: Mutex<()>,
    seen: watch::Sender<Seen>,
}

impl Pauses {
    /// Of a stream whose queue is not open yet.
    #[must_use]
    pub fn new(stream: &str) -> Arc<Self> {
        let seen = watch::Sender::new(None);
        Arc::new(Self { stream: stream.to_owned(), queue: OnceLock::new(), order: Mutex::new(()), seen })
    }

    /// The queue is open.
    pub fn open(&self, queue: &Arc<dyn Queue>) {
        self.queue.get_or_init(|| Arc::clone(queue));
    }

    fn queue(&self) -> Result<&Arc<dyn Queue>> {
        self.queue.get().ok_or_else(|| Error::new(ErrorKind::Busy, "the daemon has not opened its queue yet"))
    }

    /// What is paused, from the registry.
    ///
    /// # Errors
    /// Those of the queue.
    async fn look(&self) -> Result<BTreeMap<String, Paused>> {
        let _order = self.order.lock().await;
        self.read().await
    }

    /// The caller holds `order`.
    async fn read(&self) -> Result<BTreeMap<String, Paused>> {
        let registry = answered(self.queue()?.registry(&self.stream)).await?;
        let found: BTreeMap<String, Paused> = registry
            .into_iter()
            .filter(|(key, _)| key.starts_with(PAUSED_PREFIX))
            // What a newer version wrote may not be readable; it is paused all the same.
            .map(|(key, value)| (key, serde_json::from_slice(&value).unwrap_or_default()))
            .collect();
        self.tell(&found);
        Ok(found)
    }

    fn tell(&self, found: &BTreeMap<String, Paused>) {
        self.seen.send_if_modified(|seen| {
            let changes = seen.as_ref() != Some(found);
            if changes {
                *seen = Some(found.clone());
            }
            changes
        });
    }

    /// Pauses; durable when this returns. False when it was paused already.
    async fn pause(&self, who: &Who) -> Result<(bool, Paused)> {
        let _order = self.order.lock().await;
        let mut found = self.read().await?;
        if let Some(paused) = found.get(&who.key()) {
            return Ok((false, *paused));
        }
        let paused = Paused { since_us: now_us() };
        let value = serde_json::to_vec(&paused)
            .map_err(|e| Error::new(ErrorKind::Unexpected, "a pause does not serialize").with_source(e))?;
        answered(self.queue()?.registry_put(&self.stream, &who.key(), Some(value.into()))).await?;
        found.insert(who.key(), paused);
        self.tell(&found);
        Ok((true, paused))
    }

    /// Resumes; durable when this returns. False when it was not paused.
    async fn resume(&self, who: &Who) -> Result<bool> {
        let _order = self.order.lock().await;
        let mut found = self.read().await?;
        if found.remove(&who.key()).is_none() {
            return Ok(false);
        }
        answered(self.queue()?.registry_put(&self.stream, &who.key(), None)).await?;
        self.tell(&found);
        Ok(true)
    }

    /// Looks again and again until cancelled: another daemon on the queue, or a command, may have been asked.
    ///
    /// # Errors
    /// None; the type is that of a task.
    pub async fn watch(self: Arc<Self>, cancel: CancellationToken) -> Result<()> {
        loop {
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                looked = self.look() => if let Err(error) = looked {
                    tracing::debug!(stream = self.stream, %error, "what is paused could not be looked at");
                }
            }
        }
    }

    /// Where one that may be paused asks.
    #[must_use]
    pub fn gate(self: &Arc<Self>, who: Who) -> Arc<Gate> {
        let (key, seen) = (who.key(), self.seen.subscribe());
        Arc::new(Gate { of: Some((Arc::clone(self), who)), key, seen, at_work: watch::Sender::new(false) })
    }
}

async fn answered<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let late = |_| Error::new(ErrorKind::Connection, format!("the queue did not answer within {} s", DEADLINE.as_secs()));
    tokio::time::timeout(DEADLINE, work).await.map_err(late)?
}

/// What stands before the work of one source or replica.
pub struct Gate {
    of: Option<(Arc<Pauses>, Who)>,
    key: String,
    seen: watch::Receiver<Seen>,
    at_work: watch::Sender<bool>,
}

impl Gate {
    /// One that nobody can close.
    #[must_use]
    pub fn always_open() -> Arc<Self> {
        let seen = watch::Sender::new(Some(BTreeMap::new())).subscribe();
        Arc::new(Self { of: None, key: String::new(), seen, at_work: watch::Sender::new(false) })
    }

    /// Asks the queue whether work may begin: `None` when it may.
    ///
    /// # Errors
    /// Those of the queue.
    pub async fn check(&self) -> Result<Option<Paused>> {
        match &self.of {
            Some((pauses, _)) => Ok(pauses.look().await.at(|| "looking for a pause")?.get(&self.key).copied()),
            None => Ok(None),
        }
    }

    /// As far as is known.
    #[must_use]
    pub fn paused(&self) -> Option<Paused> {
        self.seen.borrow().as_ref()?.get(&self.key).copied()
    }

    /// Ends once it is paused.
    pub async fn closed(&self) {
        self.becomes(true).await;
    }

    /// Ends once it is not.
    pub async fn opened(&self) {
        self.becomes(false).await;
    }

    async fn becomes(&self, closed: bool) {
        let mut seen = self.seen.clone();
        let as_wanted = seen.wait_for(|seen| seen.as_ref().is_some_and(|all| all.contains_key(&self.key) == closed));
        if as_wanted.await.is_err() {
            // Nobody can change it any more.
            std::future::pending::<()>().await;
        }
    }

    /// Work has begun; it has ended when this is dropped.
    #[must_use]
    pub fn work(&self) -> AtWork<'_> {
        self.at_work.send_replace(true);
        AtWork(self)
    }

    /// Waits for the work in hand to end; false when it had not by then.
    pub async fn at_rest(&self, within: Duration) -> bool {
        let mut at_work = self.at_work.subscribe();
        let rest = at_work.wait_for(|at_work| !*at_work);
        matches!(tokio::time::timeout(within, rest).await, Ok(Ok(_)))
    }

    /// Pauses; durable when this returns, and the work in hand ends soon. False when it was paused already.
    ///
    /// # Errors
    /// Those of the queue: nothing is changed then, or it is not known.
    pub async fn pause(&self) -> Result<(bool, Paused)> {
        let (pauses, who) = self.of()?;
        pauses.pause(who).await
    }

    /// Resumes; durable when this returns. False when it was not paused.
    ///
    /// # Errors
    /// As [`Self::pause`].
    pub async fn resume(&self) -> Result<bool> {
        let (pauses, who) = self.of()?;
        pauses.resume(who).await
    }

    fn of(&self) -> Result<(&Pauses, &Who)> {
        let of = self.of.as_ref().map(|(pauses, who)| (&**pauses, who));
        of.ok_or_else(|| Error::new(ErrorKind::Unexpected, "nothing that could be paused"))
    }
}

/// While this lives, its gate's owner is at work.
pub struct AtWork<'g>(&'g Gate);

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        self.0.at_work.send_replace(false);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::queue::embedded::EmbeddedQueue;

    async fn queue(folder: &tempfile::TempDir) -> Arc<dyn Queue> {
        let queue: Arc<dyn Queue> = EmbeddedQueue::open(folder.path()).expect("a queue");
        queue.create("shop").await.expect("a stream");
        queue
    }

    #[tokio::test]
    async fn a_pause_is_durable_seen_by_others_and_asked_for_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let queue = queue(&folder).await;
        let (ours, theirs) = (Pauses::new("shop"), Pauses::new("shop"));
        let reports = || Who::Replica("reports".to_owned());
        let gate = ours.gate(reports());
        assert_eq!(gate.check().await.expect_err("no queue yet").kind(), ErrorKind::Busy);
        ours.open(&queue);
        theirs.open(&queue);
        assert_eq!(gate.check().await.expect("a look"), None);
        let (changed, since) = gate.pause().await.expect("a pause");
        assert!(changed && since.since_us > 0);
        assert_eq!(gate.pause().await.expect("a pause"), (false, since));
        gate.closed().await;
        assert_eq!(theirs.gate(reports()).check().await.expect("a look"), Some(since));
        assert_eq!(theirs.gate(Who::Source).check().await.expect("a look"), None);
        assert!(theirs.gate(reports()).resume().await.expect("an end"));
        assert_eq!(gate.check().await.expect("a look"), None);
        gate.opened().await;
        assert!(!gate.resume().await.expect("an end"));
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_paused_all_the_same() {
        let folder = tempfile::tempdir().expect("a folder");
        let queue = queue(&folder).await;
        queue.registry_put("shop", "paused/source", Some(Bytes::from_static(b"newer"))).await.expect("an entry");
        let pauses = Pauses::new("shop");
        pauses.open(&queue);
        assert_eq!(pauses.gate(Who::Source).check().await.expect("a look"), Some(Paused { since_us: 0 }));
    }

    #[tokio::test]
    async fn who_works_is_waited_for() {
        let pauses = Pauses::new("shop");
        let gate = pauses.gate(Who::Source);
        assert!(gate.at_rest(Duration::ZERO).await);
        let work = gate.work();
        assert!(!gate.at_rest(Duration::from_millis(20)).await);
        drop(work);
        assert!(gate.at_rest(Duration::from_secs(5)).await);
    }
}
