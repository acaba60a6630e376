//! One claimed replica, from its ledger's cursor on, until something fails.
//!
//! ```text
//! read-ahead ─► next unit ─► merge ─► (full | barrier | nothing more now) ─► apply ─► committed: report, status, catch-up
//!                  │                                                            ▲
//!                  └─ piece of a huge transaction ─► replica transaction open ──┘ at its last piece
//! ```
//!
//! Nothing here survives a failure: the session is dropped and the ledger read anew.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::added::Meeting;
use super::first_copy::{CatchUp, Schemas};
use super::lag::Now;
use super::merge::{Batch, Merger};
use super::progress::Reporter;
use super::read::{Piece, ReadAhead, Transactions, Unit};
use super::status::{ApplyState, ApplyStatus, Rate};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::TableSchema;
use crate::halt::HaltCode;
use crate::queue::log::Cursor;
use crate::replica::{Applied, KEEP_ALIVE, Replica, Step, kept_alive};

/// The ledger moves at least this often when only progress comes.
const IDLE_STEP: Duration = Duration::from_secs(1);
/// No transaction waits longer for others to be merged with. With a deep backlog a batch is given that long: fewer, larger replica
/// transactions, and a core left to the walsender. Counted from its first transaction: each one that came would put the end off.
const HOLD: Duration = Duration::from_millis(50);

/// While a replica has two sessions, each looks at the other this often when it has nothing to do.
const LOOK_ASIDE: Duration = Duration::from_millis(50);

/// A claimed replica at work.
pub struct Session<'a> {
    /// The replica.
    pub replica: Box<dyn Replica>,
    /// The log.
    pub log: ReadAhead,
    /// Collects batches.
    pub merger: Merger,
    /// Table versions seen.
    pub schemas: Schemas,
    /// Until tables of a first copy are live.
    pub catch_up: Option<Box<dyn CatchUp>>,
    /// Tells the queue.
    pub reporter: Reporter,
    /// Tells everybody else.
    pub status: &'a watch::Sender<ApplyStatus>,
    /// Changes per second.
    pub rate: Rate,
    /// When the ledger last moved.
    pub stepped: Instant,
    /// A unit that the batch in hand could not take.
    pub carried: VecDeque<Unit>,
    /// What ends the session once the batch before it is applied.
    pub ending: Option<Error>,
    /// A huge transaction is open on the replica.
    pub large: bool,
    /// The last batch was large: more is to be expected.
    pub deep: bool,
    /// The replica's other session, while tables that were added are copied.
    pub beside: Beside,
    /// Last sign of life while waiting for nothing in particular.
    pub alive: Instant,
}

/// Tables added to a live replica are applied by a session of their own until they stand where the others do.
pub enum Beside {
    /// There are none.
    Nobody,
    /// This one has the replica's tables.
    Whole(Arc<Meeting>),
    /// This one has those that were added.
    Added(Arc<Meeting>),
}

/// Why a session ended though nothing failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was asked to.
    Asked,
    /// A later `init` has added tables.
    TablesFound,
}

/// What to do next.
enum Next {
    Batch(Batch),
    Piece(Piece),
    Voided,
}

impl Session<'_> {
    /// Applies until something fails, the work is cancelled or tables are to be copied, which is noticed between batches. Dropping it is safe at any
    /// await: the replica rolls back, or has committed and the ledger says so.
    ///
    /// # Errors
    /// Always, in the end.
    pub async fn run(&mut self, cancel: &CancellationToken, copy_wanted: &CancellationToken) -> Result<Ended> {
        loop {
            self.meet(cancel).await?;
            let next = tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(Ended::Asked),
                // A huge transaction that is half written would be written again.
                () = copy_wanted.cancelled(), if !self.large => return Ok(Ended::TablesFound),
                next = self.next() => next?,
            };
            match next {
                Next::Batch(batch) if batch.is_idle() => self.advance(&batch).await?,
                Next::Batch(batch) => self.apply(&batch).await?,
                Next::Piece(piece) => self.apply_piece(piece).await?,
                Next::Voided => self.void().await?,
            }
        }
    }

    async fn next(&mut self) -> Result<Next> {
        if let Some(error) = self.ending.take() {
            return Err(error);
        }
        loop {
            let Some(unit) = self.next_unit().await? else { return Ok(Next::Batch(self.merger.take())) };
            if self.is_beyond(&unit) {
                self.carried.push_front(unit);
                if self.merger.open().is_empty() {
                    self.wait_for_others().await?;
                }
                return Ok(Next::Batch(self.merger.take()));
            }
            let unit = self.admit(unit).await?;
            if let Some(error) = self.interruption(&unit) {
                if self.merger.open().is_empty() {
                    return Err(error);
                }
                self.ending = Some(error);
                return Ok(Next::Batch(self.merger.take()));
            }
            if let Unit::Progress { source_time_us, .. } = &unit
                && self.merger.open().is_idle()
                && !self.large
            {
                // Everything before it is applied, so it is true of the replica now; the ledger may wait.
                self.fresh(*source_time_us);
            }
            match self.merger.add(unit).map_err(|unit| *unit) {
                Ok(()) if self.merger.is_full() => return Ok(Next::Batch(self.merger.take())),
                Ok(()) => {}
                Err(unit) if !self.merger.open().is_empty() && self.is_barrier(&unit) => {
                    self.carried.push_front(unit);
                    return Ok(Next::Batch(self.merger.take()));
                }
                Err(Unit::Schema(schema)) => drop(self.schemas.insert(schema.id, schema)),
                Err(Unit::Piece(piece)) => return Ok(Next::Piece(piece)),
                Err(_) => return Ok(Next::Voided),
            }
        }
    }

    /// The next unit; `None` when the batch in hand should go now.
    async fn next_unit(&mut self) -> Result<Option<Unit>> {
        if let Some(unit) = self.carried.pop_front() {
            return Ok(Some(unit));
        }
        let open = self.merger.open();
        if self.large {
            return self.log.next().await.map(Some);
        }
        if open.is_empty() && !matches!(self.beside, Beside::Nobody) {
            // Not for ever: the other session may want to meet.
            return match tokio::time::timeout(LOOK_ASIDE, self.log.next()).await {
                Ok(unit) => unit.map(Some),
                Err(_) => self.show_life().await.map(|()| None),
            };
        }
        if open.is_empty() {
            return kept_alive(&mut *self.replica, self.log.next()).await.map(Some);
        }
        if open.age() >= HOLD {
            return Ok(None);
        }
        if let Some(unit) = self.log.try_next()? {
            return Ok(Some(unit));
        }
        let wait = if open.is_idle() && !matches!(self.beside, Beside::Nobody) {
            return Ok(None);
        } else if open.is_idle() {
            IDLE_STEP.saturating_sub(self.stepped.elapsed())
        } else if self.deep {
            HOLD.saturating_sub(open.age())
        } else {
            return Ok(None);
        };
        match tokio::time::timeout(wait, self.log.next()).await {
            Ok(unit) => unit.map(Some),
            Err(_) => Ok(None),
        }
    }

    async fn show_life(&mut self) -> Result<()> {
        if self.alive.elapsed() >= KEEP_ALIVE {
            self.alive = Instant::now();
            self.replica.keep_alive().await?;
        }
        Ok(())
    }

    /// True in the session of added tables for what the others do not have yet: it never goes beyond them.
    fn is_beyond(&self, unit: &Unit) -> bool {
        match (&self.beside, unit.end_bytes()) {
            (Beside::Added(meeting), Some(end)) if !self.large => end > meeting.whole_bytes(),
            _ => false,
        }
    }

    /// Waits for the others to go on, or to wait for us.
    async fn wait_for_others(&mut self) -> Result<()> {
        let Beside::Added(meeting) = &self.beside else { return Ok(()) };
        let meeting = Arc::clone(meeting);
        drop(tokio::time::timeout(LOOK_ASIDE, meeting.whole_moved()).await);
        self.show_life().await
    }

    /// Between batches: where the two sessions of a replica become one.
    async fn meet(&mut self, cancel: &CancellationToken) -> Result<()> {
        if self.large {
            return Ok(());
        }
        match &self.beside {
            Beside::Nobody => Ok(()),
            Beside::Added(meeting) => {
                let meeting = Arc::clone(meeting);
                if self.catch_up.is_none() && self.merger.open().is_empty() {
                    let stands_at = self.status.borrow().bytes_so_far;
                    let arrived = async {
                        meeting.arrive(stands_at).await;
                        Ok(())
                    };
                    kept_alive(&mut *self.replica, arrived).await?;
                }
                Ok(())
            }
            Beside::Whole(meeting) => {
                let meeting = Arc::clone(meeting);
                let wait = meeting.wait();
                tokio::pin!(wait);
                let met = tokio::select! {
                    () = cancel.cancelled() => false,
                    met = &mut wait => met,
                };
                if met { self.take_in(&meeting).await } else { Ok(()) }
            }
        }
    }

    async fn take_in(&mut self, meeting: &Meeting) -> Result<()> {
        match self.replica.take_in(&meeting.added).await {
            Ok(()) => {
                tracing::info!(replica = meeting.added, "the tables that were added are live and one with the others");
                self.beside = Beside::Nobody;
                meeting.done();
                Ok(())
            }
            // The others' work does not depend on it.
            Err(error) if error.kind() != ErrorKind::Connection && error.kind() != ErrorKind::Fenced => {
                meeting.refused(&error);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Lets the first copy's replay drop or change what its chunks have.
    async fn admit(&mut self, unit: Unit) -> Result<Unit> {
        let Some(catch_up) = &mut self.catch_up else { return Ok(unit) };
        match unit {
            Unit::Transactions(found) => {
                let mut admitted = Transactions { changes: Vec::with_capacity(found.changes.len()), marks: Vec::new(), ..found };
                let mut changes = found.changes.into_iter();
                let mut start = 0;
                for mut mark in found.marks {
                    let own: Vec<_> = changes.by_ref().take(mark.end - start).collect();
                    start = mark.end;
                    admitted.changes.extend(catch_up.admit(&mark.header, &self.schemas, own).await?);
                    mark.end = admitted.changes.len();
                    admitted.marks.push(mark);
                }
                Ok(Unit::Transactions(admitted))
            }
            Unit::Piece(mut piece) => {
                let changes = std::mem::take(&mut piece.changes);
                piece.changes = catch_up.admit(&piece.header, &self.schemas, changes).await?;
                Ok(Unit::Piece(piece))
            }
            other => Ok(other),
        }
    }

    /// Why an admitted unit cannot be applied yet. Of a huge transaction every piece is looked at first, so that it is read again once.
    fn interruption(&mut self, unit: &Unit) -> Option<Error> {
        let more_to_come = matches!(unit, Unit::Piece(piece) if !piece.last);
        self.catch_up.as_mut().filter(|_| !more_to_come)?.interruption()
    }

    /// A version that differs from the one in use is not merged across: what came before it is applied even when the replica's
    /// table does not fit it yet.
    fn is_barrier(&self, unit: &Unit) -> bool {
        let differs = |new: &TableSchema| {
            let known = self.schemas.values().filter(|old| old.source_oid == new.source_oid).max_by_key(|old| old.id);
            known.is_some_and(|old| !old.same_shape(new))
        };
        match unit {
            Unit::Schema(schema) => differs(schema),
            _ => true,
        }
    }

    async fn apply(&mut self, batch: &Batch) -> Result<()> {
        let Some(cursor) = batch.cursor.clone() else { return Ok(()) };
        self.deep = self.merger.is_deep(batch);
        let mut applied = Applied::default();
        let outcome = self.replica.apply(batch, &self.schemas, &mut applied).await;
        let changes = batch.changes_of(0, applied.transactions).len() as u64;
        self.status.send_modify(|status| {
            status.transactions += applied.transactions as u64;
            status.changes += changes;
            status.batches += applied.commits;
            status.replays += u64::from(applied.replayed);
        });
        self.rate.add(changes);
        if let Err(error) = outcome {
            self.committed_in_part(batch, applied.transactions);
            return Err(error);
        }
        self.status.send_modify(|status| status.bytes += batch.bytes as u64);
        self.committed(cursor, batch.source_time_us).await
    }

    /// The first transactions of a batch are in, and the next one is refused.
    fn committed_in_part(&mut self, batch: &Batch, transactions: usize) {
        let Some(mark) = transactions.checked_sub(1).map(|last| &batch.marks[last]) else { return };
        let cursor = mark.cursor();
        self.fresh(mark.header.commit_time_us);
        self.status.send_modify(|status| status.stands_at(&cursor));
        self.reporter.committed(cursor);
    }

    async fn advance(&mut self, batch: &Batch) -> Result<()> {
        let Some(cursor) = batch.cursor.clone() else { return Ok(()) };
        let (source_time_us, history) = (batch.source_time_us, batch.history.clone());
        let step = Step { cursor: cursor.clone(), source_time_us, transactions: 0, changes: 0, history };
        self.replica.advance(&step).await?;
        self.committed(cursor, source_time_us).await
    }

    async fn apply_piece(&mut self, piece: Piece) -> Result<()> {
        if piece.first {
            self.replica.begin_large(&piece.header).await?;
            self.large = true;
        }
        if !self.large {
            return Err(Error::new(ErrorKind::Malformed, "a transaction's later part without its first"));
        }
        self.replica.apply_piece(&piece.changes, &self.schemas).await?;
        self.rate.add(piece.changes.len() as u64);
        self.status.send_modify(|status| {
            status.changes += piece.changes.len() as u64;
            status.bytes += piece.bytes as u64;
        });
        if piece.last {
            let time = Some(piece.header.commit_time_us);
            let cursor = piece.place.clone();
            let step = Step { cursor, source_time_us: time, transactions: 1, changes: piece.change_count, history: None };
            self.replica
                .commit_large(&step)
                .await
                .at(|| format!("source transaction {} at {}", piece.header.xid, piece.header.position))?;
            self.large = false;
            self.status.send_modify(|status| {
                status.transactions += 1;
                status.batches += 1;
            });
            self.committed(step.cursor, time).await?;
        }
        Ok(())
    }

    async fn void(&mut self) -> Result<()> {
        if std::mem::take(&mut self.large) {
            self.replica.roll_back_large().await?;
        }
        Ok(())
    }

    /// The replica shows the source as of a time.
    fn fresh(&self, source_time_us: i64) {
        let now = Now::read();
        self.status.send_modify(|status| {
            status.lag.applied(source_time_us, now);
            status.source_time_us = status.lag.source_time_us();
            status.applied_at_us = Some(now.wall_us);
        });
    }

    /// The replica has committed up to a cursor.
    async fn committed(&mut self, cursor: Cursor, source_time_us: Option<i64>) -> Result<()> {
        crate::failpoint::hit("apply.committed")?;
        self.stepped = Instant::now();
        let rate = self.rate.per_second();
        if let Some(time) = source_time_us {
            self.fresh(time);
        }
        self.status.send_modify(|status| {
            status.stands_at(&cursor);
            status.changes_per_second = rate;
        });
        let position = cursor.position;
        self.reporter.committed(cursor);
        if let (Some(catch_up), Some(position)) = (&mut self.catch_up, position)
            && kept_alive(&mut *self.replica, catch_up.committed(position)).await?
        {
            self.catch_up = None;
            self.replica.forget_tables();
        }
        // Not before the end of a first copy: while it fails, each attempt would clear its own halt for a moment.
        let state = if self.catch_up.is_some() { ApplyState::CatchingUp } else { ApplyState::Live };
        self.status.send_modify(|status| {
            status.state = state;
            status.error = None;
            status.halt = None;
        });
        Ok(())
    }
}

/// A stream's record must belong to the stream that the ledger knows.
///
/// # Errors
/// A halt with `ledger_damaged`.
pub fn check_stream(expected: crate::event::StreamId, found: Option<&Cursor>) -> Result<()> {
    match found {
        Some(cursor) if cursor.stream != expected => Err(Error::halt(
            HaltCode::LedgerDamaged,
            format!("the ledger's cursor belongs to stream {}, its row to stream {expected}", cursor.stream),
        )),
        _ => Ok(()),
    }
}
