//! What a writer does beside writing, every few seconds: says where its newest base lies, notices a newer writer, measures the
//! slowest consumer, trims.
//!
//! It runs as a task of its own because the registry may be slow while the source wants answers. The worker tells it
//! what is durable through one watch channel and reads how full the queue is from another.
//!
//! Trimming goes below what every consumer wants kept, and never past the newest base of this writer: the tail must
//! always tell schemas and history. The hint is moved before anything in front of the new base goes. A stale writer that wakes up finds a
//! hint of a higher epoch and stops before it trims (I8). A registry in which this writer's own hint is missing may be missing consumers as well:
//! nothing is trimmed by it (I6).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;

use super::begin::put_hint;
use super::outbox::DurableBase;
use super::recover::{self, WriterHint};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Epoch, QueueOffset, RecordNumber};
use crate::queue::{CONSUMER_PREFIX, ConsumerProgress, Queue};

/// Pause between two rounds while there is room.
const EVERY: Duration = Duration::from_secs(2);
/// Pause while the queue is full, or its disk nearly so.
const EVERY_WHEN_FULL: Duration = Duration::from_millis(100);

/// Consumers that have everything take the next base within moments, if they run at all.
const CONSUMERS_WAIT: Duration = Duration::from_secs(10);

/// What the worker tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// The newest durable base.
    pub base: Option<DurableBase>,
    /// The worker stands still because the queue is full, or soon will because the disk is.
    pub waiting: bool,
}

/// The consumer that is furthest behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slowest {
    /// Its name.
    pub name: String,
    /// Last record that it holds durably.
    pub number: RecordNumber,
    /// Bytes of the stream up to there.
    pub bytes_so_far: u64,
}

/// The upkeep of one claimed stream.
pub struct Upkeep {
    /// Where it lives.
    pub queue: Arc<dyn Queue>,
    /// Its name.
    pub stream: String,
    /// The epoch of the writer.
    pub epoch: Epoch,
}

impl Upkeep {
    /// Runs until the worker has gone.
    ///
    /// # Errors
    /// [`ErrorKind::Fenced`] when a newer writer has announced itself; [`ErrorKind::Connection`] when the registry has lost what this one said;
    /// those of the registry.
    pub async fn run(self, mut written: watch::Receiver<Written>, slowest: watch::Sender<Option<Slowest>>) -> Result<()> {
        let mut announced = None;
        loop {
            let now = *written.borrow_and_update();
            let registry = self.queue.registry(&self.stream).await?;
            self.check_own(&registry)?;
            let consumers = consumers(&registry)?;
            slowest.send_replace(slowest_of(&consumers));
            if let Some(base) = now.base {
                if announced != Some(base) {
                    put_hint(&self.queue, &self.stream, WriterHint { epoch: self.epoch, base_offset: base.offset }).await?;
                    announced = Some(base);
                }
                self.queue.trim(&self.stream, trim_below(&consumers, base)).await?;
            }
            let pause = if now.waiting { EVERY_WHEN_FULL } else { EVERY };
            // A worker that begins to wait wants to know at once; everything else can wait for the pause.
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                gone = written.wait_for(|next| next.waiting && !now.waiting) => if gone.is_err() { return Ok(()); },
            }
        }
    }

    /// The newest hint is this writer's, which it wrote before the upkeep began and which only writers of higher epochs delete.
    fn check_own(&self, registry: &BTreeMap<String, Bytes>) -> Result<()> {
        match WriterHint::newest(registry)? {
            Some(hint) if hint.epoch == self.epoch => Ok(()),
            Some(hint) if hint.epoch > self.epoch => {
                let message =
                    format!("stream '{}': a writer of epoch {} took over from epoch {}", self.stream, hint.epoch, self.epoch);
                Err(Error::new(ErrorKind::Fenced, message))
            }
            // The next claim finds out whether that passes ([`super::recover::EntryPoint`]).
            _ => {
                let message = format!("stream '{}': the registry lacks what epoch {} said in it", self.stream, self.epoch);
                Err(Error::new(ErrorKind::Connection, message))
            }
        }
    }
}

/// Every registered consumer.
///
/// # Errors
/// [`ErrorKind::Malformed`] for an entry that is no consumer's progress.
pub fn consumers(registry: &BTreeMap<String, Bytes>) -> Result<BTreeMap<String, ConsumerProgress>> {
    let mut found = BTreeMap::new();
    for (key, value) in registry {
        let Some(name) = key.strip_prefix(CONSUMER_PREFIX) else { continue };
        let progress = serde_json::from_slice(value).map_err(|e| {
            Error::new(ErrorKind::Malformed, format!("registry entry '{key}' is not a consumer's progress")).with_source(e)
        })?;
        found.insert(name.to_owned(), progress);
    }
    Ok(found)
}

/// The consumer whose last record lies furthest back.
#[must_use]
pub fn slowest_of(consumers: &BTreeMap<String, ConsumerProgress>) -> Option<Slowest> {
    let (name, progress) = consumers.iter().min_by_key(|(_, progress)| progress.bytes_so_far)?;
    Some(Slowest { name: name.clone(), number: progress.number, bytes_so_far: progress.bytes_so_far })
}

/// What nobody needs lies before this.
fn trim_below(consumers: &BTreeMap<String, ConsumerProgress>, base: DurableBase) -> QueueOffset {
    consumers.values().map(|progress| progress.keep_from).fold(base.offset, QueueOffset::min)
}

/// Trims by what the registry says alone, for a writer that has no room for its fence and so can neither own the stream nor have upkeep. Every
/// consumer's place is a base that it has read as valid, so the log may begin at the lowest; the hint may be older, if its writer filled the disk between
/// two rounds of upkeep, and counts where there is no consumer. True when every consumer has everything that is there.
///
/// # Errors
/// Those of the queue and of reading.
pub(super) async fn make_room(queue: &Arc<dyn Queue>, stream: &str) -> Result<bool> {
    let registry = queue.registry(stream).await?;
    let Some(hint) = WriterHint::newest(&registry)? else { return Ok(false) };
    let consumers = consumers(&registry)?;
    let lowest = consumers.values().map(|progress| progress.keep_from).min();
    queue.trim(stream, lowest.unwrap_or(hint.base_offset)).await?;
    let last = recover::survey(queue, stream, |_| false).await?.last_reachable;
    Ok(consumers.values().all(|progress| progress.number >= last))
}

/// Waits a while for every consumer to have a base, and trims what is before it.
///
/// # Errors
/// Those of the queue.
pub(super) async fn trim_before(queue: &Arc<dyn Queue>, stream: &str, base: DurableBase) -> Result<()> {
    let patience = Instant::now() + CONSUMERS_WAIT;
    loop {
        let below = trim_below(&consumers(&queue.registry(stream).await?)?, base);
        queue.trim(stream, below).await?;
        if below == base.offset || Instant::now() > patience {
            return Ok(());
        }
        tokio::time::sleep(EVERY_WHEN_FULL).await;
    }
}
