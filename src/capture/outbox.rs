//! Records on their way to the queue, and what is durable.
//!
//! Invariant: a [`DurablePosition`] comes out only when the queue has acknowledged every record up to it (I1).
//!
//! Progression of a record: given (numbered and encoded, waits here) → accepted (the queue gave a ticket) → durable (the queue
//! acknowledged the ticket).
//!
//! The queue tells the offset of the last durable record only. So nothing is handed over behind the first record of a base row until that one
//! is durable: the offset is its own, and the base's. That costs one sync per base.

use std::collections::VecDeque;

use bytes::Bytes;
use futures::FutureExt;

use crate::error::Result;
use crate::event::{Position, QueueOffset, RecordNumber};
use crate::failpoint;
use crate::queue::{Durable, DurablePosition, QueueWriter, Room, Ticket};

/// A base that is durable, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DurableBase {
    /// Number of its first record.
    pub number: RecordNumber,
    /// Where that lies.
    pub offset: QueueOffset,
}

/// What a record means once it is durable.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mark {
    /// The source has been captured up to here.
    pub position: Option<Position>,
    /// First of a base row: nothing is appended behind it until it is durable.
    pub opens_base: Option<RecordNumber>,
    /// Last of a base row.
    pub closes_base: bool,
}

/// Records between a writer and its queue.
pub(super) struct Outbox {
    writer: Box<dyn QueueWriter>,
    given: VecDeque<(Bytes, Mark)>,
    given_bytes: usize,
    accepted: VecDeque<(Ticket, Mark)>,
    seen: Ticket,
    barrier: Option<Ticket>,
    opened_base: Option<DurableBase>,
    durable_base: Option<DurableBase>,
    durable: Option<DurablePosition>,
}

impl Outbox {
    /// Of a writer whose tickets up to `seen` are durable, as are this position and this base.
    pub(super) fn new(
        writer: Box<dyn QueueWriter>,
        seen: Ticket,
        durable: Option<DurablePosition>,
        durable_base: Option<DurableBase>,
    ) -> Self {
        Self {
            writer,
            given: VecDeque::new(),
            given_bytes: 0,
            accepted: VecDeque::new(),
            seen,
            barrier: None,
            opened_base: None,
            durable_base,
            durable,
        }
    }

    pub(super) fn push(&mut self, record: Bytes, mark: Mark) {
        self.given_bytes += record.len();
        self.given.push_back((record, mark));
    }

    pub(super) fn waiting_bytes(&self) -> usize {
        self.given_bytes
    }

    pub(super) fn is_busy(&self) -> bool {
        !self.given.is_empty() || !self.accepted.is_empty()
    }

    pub(super) fn room(&self) -> Room {
        self.writer.room()
    }

    /// As [`QueueWriter::make_room`]; nothing may be on its way.
    pub(super) fn make_room(&mut self, on: bool) {
        self.writer.make_room(on);
    }

    pub(super) fn durable(&self) -> Option<DurablePosition> {
        self.durable
    }

    pub(super) fn durable_base(&self) -> Option<DurableBase> {
        self.durable_base
    }

    /// Takes one step: hands the next record to the queue, or waits for the next acknowledgement. Gives the position up to which
    /// everything is durable when it has moved. Cancel-safe; pending for ever when there is nothing to do.
    ///
    /// # Errors
    /// Those of the queue. The writer is dead then.
    pub(super) async fn advance(&mut self) -> Result<Option<DurablePosition>> {
        if self.barrier.is_none()
            && let Some((bytes, _)) = self.given.front()
        {
            let ticket = self.writer.append(bytes.clone()).await?;
            self.accept(ticket);
            failpoint::hit("capture.appended")?;
            return match self.writer.durable_past(self.seen).now_or_never() {
                Some(durable) => Ok(self.settle(durable?)),
                None => Ok(None),
            };
        }
        if self.accepted.is_empty() {
            return std::future::pending().await;
        }
        let durable = self.writer.durable_past(self.seen).await?;
        Ok(self.settle(durable))
    }

    fn accept(&mut self, ticket: Ticket) {
        if let Some((bytes, mark)) = self.given.pop_front() {
            self.given_bytes -= bytes.len();
            self.barrier = mark.opens_base.map(|_| ticket);
            self.accepted.push_back((ticket, mark));
        }
    }

    fn settle(&mut self, durable: Durable) -> Option<DurablePosition> {
        self.seen = self.seen.max(durable.ticket);
        let mut moved = None;
        while let Some((ticket, mark)) = self.accepted.front().copied().filter(|(ticket, _)| *ticket <= self.seen) {
            self.accepted.pop_front();
            if self.barrier == Some(ticket) {
                self.barrier = None;
            }
            if let Some(number) = mark.opens_base {
                // The barrier kept it the last record accepted, so that the offset is its own.
                self.opened_base = Some(DurableBase { number, offset: durable.offset });
            }
            if mark.closes_base {
                self.durable_base = self.opened_base;
            }
            moved = mark.position.or(moved);
        }
        let moved = moved.map(DurablePosition::proven);
        self.durable = moved.or(self.durable);
        moved
    }
}
