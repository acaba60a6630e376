//! Beginning a stream, for `millstream init` (I1): the first record before the slot, the second once the slot stands.
//!
//! ```text
//!  publication ──► begin_stream (Genesis durable, names the slot) ──► slot created ──► record_slot_start (durable)
//!                      ▲                                                 │ killed here: a slot may stand
//!                      └── the next init finds Genesis without SlotStart: drops the slot that it names, creates it anew ──┘
//! ```
//!
//! The slot's name holds a nonce drawn for this stream, so that a slot of that name is this stream's or an earlier attempt's
//! at it, and never somebody else's.

use std::sync::Arc;

use super::append::LogWriter;
use super::outbox::DurableBase;
use super::recover::{self, Recovered, WriterHint};
use super::takeover::claim;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Epoch, Genesis, History, Position};
use crate::halt::HaltCode;
use crate::queue::{DurablePosition, Queue};

/// How far a stream has been begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// No valid record: nothing has been begun.
    Nothing,
    /// The first record is there and the second is not: the slot that it names must be dropped, if it stands, and made.
    SlotPending(Genesis),
    /// Both are there (or were, before trimming): the source's identity in force.
    Begun(History),
}

/// What a source's configured name becomes in the names of its slot and publication: lower-case letters, digits, underscores.
fn name_part(source: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
    // With prefix and nonce within the 63 bytes that PostgreSQL keeps of a name.
    source.chars().map(plain).take(40).collect()
}

/// Name of a source's publication.
#[must_use]
pub fn publication_name(source: &str) -> String {
    format!("millstream_{}", name_part(source))
}

/// A name for a new slot: `millstream_<source>_<8 hex>`.
#[must_use]
pub fn new_slot_name(source: &str) -> String {
    format!("millstream_{}_{:08x}", name_part(source), rand::random::<u32>())
}

/// What the names of a source's slots look like, as a regular expression.
#[must_use]
pub fn slot_name_pattern(source: &str) -> String {
    format!("^millstream_{}_[0-9a-f]{{8}}$", name_part(source))
}

/// Says how far a stream has been begun, without claiming it.
///
/// # Errors
/// Those of the queue and of reading.
pub async fn beginning(queue: &Arc<dyn Queue>, stream: &str) -> Result<Beginning> {
    if queue.bounds(stream).await?.is_none() {
        return Ok(Beginning::Nothing);
    }
    let recovered = recover::survey(queue, stream, |r| r.started && r.history.is_some()).await?;
    Ok(judge(recovered))
}

fn judge(recovered: Recovered) -> Beginning {
    match (recovered.history, recovered.genesis) {
        (Some(history), _) if recovered.started => Beginning::Begun(history),
        (_, Some(genesis)) => Beginning::SlotPending(genesis),
        _ => Beginning::Nothing,
    }
}

/// Makes the stream's storage and its first record; durable when this returns. The publication stands already, the slot does not.
///
/// # Errors
/// [`ErrorKind::Unexpected`] when the stream has been begun before; those of [`claim`].
pub async fn begin_stream(queue: &Arc<dyn Queue>, stream: &str, genesis: Genesis) -> Result<()> {
    let begun = || Error::new(ErrorKind::Unexpected, format!("stream '{stream}' has already been begun"));
    queue.create(stream).await?;
    // Before the fence: it would end the writer of a stream that is there after all.
    if beginning(queue, stream).await? != Beginning::Nothing {
        return Err(begun());
    }
    let claim = claim(queue, stream, &holder()).await?;
    if judge(claim.recovered.clone()) != Beginning::Nothing {
        return Err(begun());
    }
    let mut log = LogWriter::new(claim, queue.max_record_bytes());
    log.give_genesis(genesis);
    log.drain().await?;
    announce(queue, stream, log.epoch(), log.durable_base()).await
}

/// Records the slot's start as the stream's second record; durable when this returns.
///
/// # Errors
/// A halt with `slot_unknown` when the stream's first record is not there or names another slot; [`ErrorKind::Unexpected`] when the second already is;
/// those of [`claim`].
pub async fn record_slot_start(queue: &Arc<dyn Queue>, stream: &str, slot: &str, position: Position) -> Result<DurablePosition> {
    let claim = claim(queue, stream, &holder()).await?;
    match judge(claim.recovered.clone()) {
        Beginning::SlotPending(genesis) if genesis.history.slot == slot => {}
        Beginning::Begun(_) => {
            return Err(Error::new(ErrorKind::Unexpected, format!("stream '{stream}' has a slot already")));
        }
        _ => {
            let message = format!("stream '{stream}' has no record of having made slot '{slot}'");
            return Err(Error::halt(HaltCode::SlotUnknown, message));
        }
    }
    let mut log = LogWriter::new(claim, queue.max_record_bytes());
    log.give_slot_start(position);
    log.drain().await?;
    log.durable().ok_or_else(|| Error::new(ErrorKind::Unexpected, "a drained writer without a position"))
}

/// Tells later writers where to start reading, and forgets what earlier ones said.
///
/// # Errors
/// Those of the registry.
pub(super) async fn announce(queue: &Arc<dyn Queue>, stream: &str, epoch: Epoch, base: Option<DurableBase>) -> Result<()> {
    let Some(base) = base else { return Ok(()) };
    put_hint(queue, stream, WriterHint { epoch, base_offset: base.offset }).await
}

/// Writes a hint, then deletes those of lower epochs. The base it names was durable before this was called.
///
/// # Errors
/// [`ErrorKind::Fenced`] when a higher epoch has been claimed; those of the registry.
pub(super) async fn put_hint(queue: &Arc<dyn Queue>, stream: &str, hint: WriterHint) -> Result<()> {
    let value = serde_json::to_vec(&hint)
        .map_err(|e| Error::new(ErrorKind::Unexpected, "a writer's hint that is not JSON").with_source(e))?;
    let registry = queue.registry(stream).await?;
    if let Some(newer) = WriterHint::newest(&registry)?.filter(|newest| newest.epoch > hint.epoch) {
        let message = format!("stream '{stream}': epoch {} was claimed after epoch {}", newer.epoch, hint.epoch);
        return Err(Error::new(ErrorKind::Fenced, message));
    }
    queue.registry_put(stream, &WriterHint::key(hint.epoch), Some(value.into())).await?;
    for key in registry.into_keys() {
        let epoch = key.strip_prefix(crate::queue::WRITER_PREFIX).and_then(|text| text.parse::<u64>().ok());
        if epoch.is_some_and(|epoch| epoch < hint.epoch.0) {
            queue.registry_put(stream, &key, None).await?;
        }
    }
    Ok(())
}

/// Host and process, for people who read a fence.
#[must_use]
pub fn holder() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{host}:{}", std::process::id())
}
