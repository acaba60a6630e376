//! One connection's life: from taking over to the first failure or the end.
//!
//! One `select!` loop, in this order of priority, so that nothing downstream keeps the source waiting for an answer:
//!
//! 1. **the queue**: hand over the next record, or hear what has become durable; feedback goes out right after (at most every
//!    [`FEEDBACK_EVERY`] under load, at once when nothing is on its way)
//! 2. **the end**: cancellation, or the upkeep task's failure
//! 3. **ticks**: feedback repeated, progress of an idle source, silence, status
//! 4. **the source**: one message, then all that has been read already; the batch is given when the socket has nothing more
//! 5. **a large transaction** in hand, a megabyte at a time
//!
//! The source is not read while the queue accepts nothing more ([`OUTBOX_BYTES`]), while it is full (I6), or while a large transaction is being given. The walsender
//! then blocks in its send and still takes our feedback, which the ticks repeat. A source that shuts down meanwhile is left to itself: its walsender would wait for us.
//!
//! Deadlocks considered: the queue counts as full by what its slowest consumer has *committed*, which does not move inside a large transaction; so
//! fullness is looked at before the first part and never between parts. Nor does it move over the table versions that the first pass over a large transaction has
//! given already: a consumer has caught up when it has everything before those. A transaction larger than the whole queue would wait for ever; it halts.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::append::LogWriter;
use super::assemble::Assembler;
use super::heartbeat::Pulse;
use super::postgres::catalog::{Catalog, XidClock};
use super::postgres::publication;
use super::postgres::relations::Relations;
use super::postgres::stream::{ReplicationStream, StreamMessage};
use super::status::{CaptureState, CaptureStatus};
use super::translate::Emission;
use super::upkeep::{Slowest, Written};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{ChangeEncoder, Lsn, Position, Progress};
use crate::failpoint;
use crate::queue::DurablePosition;
use crate::task::ended_early;

mod intake;
mod room;

/// Records that the queue has not accepted: past this the source is not read.
const OUTBOX_BYTES: usize = 4 << 20;
/// Messages worked off before the loop looks at everything else again.
const TURN_BYTES: usize = 1 << 20;
/// Pause between two feedbacks while records are on their way.
const FEEDBACK_EVERY: Duration = Duration::from_millis(50);
/// Time for what is on its way when the work is to end.
const DRAIN_WAIT: Duration = Duration::from_secs(5);

/// What one connection works with, made by [`super::connect`].
pub(super) struct Parts {
    /// The source's name.
    pub source: String,
    pub log: LogWriter,
    pub stream: ReplicationStream,
    pub catalog: Catalog,
    pub xids: XidClock,
    pub assembler: Assembler,
    pub queue_max_bytes: u64,
    pub heartbeat_interval: Duration,
    pub written: watch::Sender<Written>,
    pub slowest: watch::Receiver<Option<Slowest>>,
    pub pulse: watch::Receiver<Pulse>,
    pub status: Arc<watch::Sender<CaptureStatus>>,
}

/// A task that ends with its owner.
pub(super) struct Owned<T>(pub JoinHandle<T>);

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The loop's state.
pub(super) struct Worker {
    parts: Parts,
    relations: Relations,
    encoder: ChangeEncoder,
    emission: Option<Emission>,
    /// The source is read.
    listening: bool,
    /// The emission waits for room for so many bytes.
    wants_room: Option<u64>,
    /// The queue's disk is short since then.
    short_since: Option<Instant>,
    wal_end: Lsn,
    server_time_us: i64,
    confirmed: Option<DurablePosition>,
    last_feedback: Instant,
    last_repeat: Instant,
    last_progress: Instant,
    /// Something came from the source, or we did not listen.
    last_heard: Instant,
    totals: Totals,
}

/// What the process has captured, connections before this one included.
#[derive(Clone, Copy, Debug)]
struct Totals {
    transactions: u64,
    changes: u64,
    /// Bytes of the process minus the stream's total: stays the same while both grow.
    bytes_offset: i64,
}

impl Worker {
    pub(super) fn new(parts: Parts) -> Self {
        let now = Instant::now();
        let totals = {
            let status = parts.status.borrow();
            let bytes_offset = status.bytes.cast_signed() - parts.log.bytes_total().cast_signed();
            Totals { transactions: status.transactions, changes: status.changes, bytes_offset }
        };
        Self {
            parts,
            relations: Relations::default(),
            encoder: ChangeEncoder::default(),
            emission: None,
            listening: true,
            wants_room: None,
            short_since: None,
            wal_end: Lsn(0),
            server_time_us: 0,
            confirmed: None,
            last_feedback: now,
            last_repeat: now,
            last_progress: now,
            last_heard: now,
            totals,
        }
    }

    /// Works until it is cancelled or something fails.
    pub(super) async fn run(&mut self, upkeep: &mut Owned<Result<()>>, cancel: &CancellationToken) -> Result<()> {
        self.work(upkeep, cancel).await.map_err(|error| publication::of_stream(&self.parts.source, error))
    }

    async fn work(&mut self, upkeep: &mut Owned<Result<()>>, cancel: &CancellationToken) -> Result<()> {
        let mut ticks = tokio::time::interval((self.parts.heartbeat_interval / 4).max(Duration::from_millis(5)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.feed_back().await?;
            let full = self.is_full();
            self.tell_upkeep(full);
            let short = self.waits_for_disk()?;
            let listening = self.emission.is_none() && !full && !short && self.parts.log.waiting_bytes() < OUTBOX_BYTES;
            self.listening = listening;
            if !listening {
                self.last_heard = Instant::now();
            }
            let emitting = self.emission.is_some() && self.wants_room.is_none_or(|bytes| self.has_room(bytes));
            let emitting = emitting && !short && self.parts.log.waiting_bytes() < OUTBOX_BYTES;
            tokio::select! {
                biased;
                moved = self.parts.log.advance(), if self.parts.log.is_busy() => drop(moved?),
                () = cancel.cancelled() => return self.finish().await,
                ended = &mut upkeep.0 => return Err(upkeep_ended(ended)),
                _ = ticks.tick() => self.tick().await?,
                changed = self.parts.slowest.changed() => if changed.is_err() {
                    // The upkeep has ended: its own branch says why.
                    tokio::task::yield_now().await;
                },
                message = self.parts.stream.next(), if listening => {
                    self.take(message?).await?;
                    self.take_more().await?;
                }
                () = std::future::ready(()), if emitting => self.emit().await?,
            }
        }
    }

    /// Takes what has been read already, up to a turn's worth; gives the batch when the socket is empty.
    async fn take_more(&mut self) -> Result<()> {
        let mut worked = 0;
        while worked < TURN_BYTES && self.emission.is_none() && self.parts.log.waiting_bytes() < OUTBOX_BYTES {
            match self.parts.stream.try_next()? {
                Some(message) => {
                    if let StreamMessage::XLogData(data) = &message {
                        worked += data.payload.len() + 32;
                    }
                    self.take(message).await?;
                }
                None if self.parts.stream.more().await? => {}
                None => {
                    self.parts.log.flush();
                    break;
                }
            }
        }
        self.last_heard = Instant::now();
        Ok(())
    }

    async fn take(&mut self, message: StreamMessage) -> Result<()> {
        match message {
            StreamMessage::Keepalive(keepalive) => {
                self.last_heard = Instant::now();
                self.wal_end = self.wal_end.max(keepalive.wal_end);
                self.server_time_us = keepalive.server_time_us;
                if keepalive.reply_requested {
                    self.repeat_feedback(false).await?;
                }
                Ok(())
            }
            StreamMessage::XLogData(data) => {
                self.take_output(&data.payload).await.map_err(|e| e.context(format!("at {}", data.wal_start)))
            }
        }
    }

    fn given(&self) -> Option<Lsn> {
        self.parts.log.given().and_then(|position| position.lsn().ok())
    }

    fn is_known(&self, end: Lsn) -> bool {
        self.given().is_some_and(|given| end <= given)
    }

    /// Confirms what has become durable (I1).
    async fn feed_back(&mut self) -> Result<()> {
        let Some(durable) = self.parts.log.durable().filter(|durable| self.confirmed.is_none_or(|c| c < *durable)) else {
            return Ok(());
        };
        if self.parts.log.is_busy() && self.last_feedback.elapsed() < FEEDBACK_EVERY {
            return Ok(());
        }
        failpoint::hit("capture.before_feedback")?;
        self.parts.stream.send_feedback(durable, false).await?;
        failpoint::hit("capture.after_feedback")?;
        self.confirmed = Some(durable);
        self.last_feedback = Instant::now();
        Ok(())
    }

    async fn repeat_feedback(&mut self, reply: bool) -> Result<()> {
        self.last_repeat = Instant::now();
        self.parts.stream.repeat_feedback(reply).await
    }

    async fn tick(&mut self) -> Result<()> {
        if self.last_repeat.elapsed() >= self.parts.heartbeat_interval / 2 {
            // With a request to answer: the answer's absence is how a half-open connection is noticed.
            self.repeat_feedback(true).await?;
        }
        self.progress();
        self.report();
        self.check_shutdown()?;
        self.check_publication()?;
        self.check_silence().await
    }

    /// An idle source, or one whose changes are not published: the log says how far it stands, and then the source may forget (I1, I7).
    fn progress(&mut self) {
        let idle = !self.parts.assembler.in_transaction() && self.emission.is_none() && !self.is_full();
        let due = self.last_progress.elapsed() >= self.parts.heartbeat_interval;
        if idle && due && self.given().is_none_or(|given| given < self.wal_end) {
            let progress =
                Progress { position: Position::Lsn(self.wal_end), source_time_us: self.server_time_us, heartbeat: false };
            self.parts.log.give_progress(progress);
            self.last_progress = Instant::now();
        }
    }

    fn check_publication(&self) -> Result<()> {
        match &*self.parts.pulse.borrow() {
            Pulse::LeavesOut(what) => Err(publication::altered(&self.parts.source, what)),
            _ => Ok(()),
        }
    }

    /// A source that shuts down waits until its walsender has sent everything. We do not take it, so we leave (I7).
    fn check_shutdown(&self) -> Result<()> {
        if !self.listening && *self.parts.pulse.borrow() == Pulse::ShuttingDown {
            return Err(Error::new(ErrorKind::Connection, "the source shuts down, and the queue takes nothing more of it"));
        }
        Ok(())
    }

    /// The walsender answers at once unless it is busy decoding what is not for us. So after a heartbeat of silence the source is asked over
    /// another connection what the walsender does, and given the second one for the answer.
    async fn check_silence(&mut self) -> Result<()> {
        let heard = self.last_heard.max(self.parts.stream.last_heard());
        // What has arrived while this process stood still counts.
        if heard.elapsed() < self.parts.heartbeat_interval || self.parts.stream.try_fill()? {
            return Ok(());
        }
        let sql = format!("SELECT wait_event FROM pg_catalog.pg_stat_activity WHERE pid = {}", self.parts.stream.backend_pid());
        let wait = self.parts.heartbeat_interval;
        let silent = |why: &str| {
            let message = format!("the source has been silent for {:.1} s and {why}", heard.elapsed().as_secs_f32());
            Error::new(ErrorKind::Connection, message)
        };
        let rows = self.parts.catalog.client().simple_query_within(&sql, wait).await;
        let rows = rows.map_err(|e| silent("does not answer on another connection either").with_source(e))?;
        let Some(row) = rows.first() else {
            return Err(silent("its walsender is gone"));
        };
        match row.get(0) {
            // It waits for us, or for nothing: what it says does not reach us.
            Some(
                "WalSenderMain"
                | "WalSenderWaitForWAL"
                | "WalSenderWaitWal"
                | "WalSenderWriteData"
                | "ClientRead"
                | "ClientWrite",
            ) => {
                if heard.elapsed() >= 2 * wait {
                    Err(silent("its walsender waits for us"))
                } else {
                    Ok(())
                }
            }
            _ => {
                // The stream has a clock of its own, which would end the connection; the next one would find the walsender as busy.
                self.parts.stream.excuse_silence();
                Ok(())
            }
        }
    }

    fn report(&self) {
        let state = if self.wants_for_room() { CaptureState::QueueFull } else { CaptureState::Streaming };
        let heartbeat_error = match &*self.parts.pulse.borrow() {
            Pulse::Starting | Pulse::Beating => None,
            Pulse::ReadOnly => Some("the source takes no writes".to_owned()),
            Pulse::ShuttingDown => Some("the source is shutting down".to_owned()),
            Pulse::Failing(error) => Some(error.clone()),
            Pulse::LeavesOut(what) => Some(format!("the publication was altered: {what}")),
        };
        let slowest = self.parts.slowest.borrow().as_ref().map(|slowest| slowest.name.clone());
        let (log, queued_bytes) = (&self.parts.log, self.queued_bytes());
        self.parts.status.send_modify(|status| {
            super::enter(status, state);
            status.epoch = Some(log.epoch());
            status.received = self.given().max(Some(self.wal_end).filter(|lsn| lsn.0 > 0)).map(Position::Lsn);
            status.received_time_us = Some(self.server_time_us).filter(|us| *us > 0);
            status.appended = log.given();
            status.durable = log.durable().map(DurablePosition::get);
            status.confirmed = self.confirmed.map(DurablePosition::get);
            status.source_time_us = Some(log.source_time_us()).filter(|us| *us > 0);
            status.number = Some(log.last());
            status.bytes_total = log.bytes_total();
            status.changes_total = log.changes_total();
            status.slowest = slowest;
            status.queued_bytes = queued_bytes;
            status.heartbeat_error = heartbeat_error;
            status.buffered_bytes = self.parts.assembler.memory_bytes();
            status.transactions = self.totals.transactions;
            status.changes = self.totals.changes;
            status.bytes = log.bytes_total().saturating_add_signed(self.totals.bytes_offset);
            status.spilled_bytes = self.parts.assembler.spilled_bytes();
        });
    }

    /// The orderly end: what was given becomes durable and is confirmed; a large transaction in hand is left, and voided by the next fence.
    async fn finish(&mut self) -> Result<()> {
        let drained = tokio::time::timeout(DRAIN_WAIT, self.parts.log.drain()).await;
        if let Ok(result) = drained {
            result?;
        }
        if let Some(durable) = self.parts.log.durable() {
            self.parts.stream.send_feedback(durable, false).await?;
            self.confirmed = Some(durable);
        }
        self.report();
        Err(Error::new(ErrorKind::Cancelled, "capture was asked to end"))
    }

    /// Lets go of the slot.
    pub(super) async fn close(self) -> Result<()> {
        self.parts.stream.close().await
    }
}

fn upkeep_ended(ended: std::result::Result<Result<()>, tokio::task::JoinError>) -> Error {
    match ended {
        Ok(Ok(())) => Error::new(ErrorKind::Unexpected, "the queue's upkeep ended early"),
        Ok(Err(error)) => error,
        Err(error) => ended_early("the queue's upkeep", &error),
    }
}
