//! Room for what comes next: in the queue's budget, which waits for ever (I6), and on its disk, which is waited for only while trimming may mend it.

use std::time::Duration;

use tokio::time::Instant;

use super::{OUTBOX_BYTES, Worker};
use crate::capture::upkeep::{Slowest, Written};
use crate::error::{Error, ErrorKind, Result};

/// Consumers that run, and the upkeep that trims behind them, give a full disk room within this time; a longer one is for people to hear of.
const DISK_WAIT: Duration = Duration::from_secs(5);

impl Worker {
    /// Bytes from the slowest consumer to the end.
    pub(super) fn queued_bytes(&self) -> u64 {
        let behind = |slowest: &Slowest| self.parts.log.bytes_total().saturating_sub(slowest.bytes_so_far);
        self.parts.slowest.borrow().as_ref().map_or(0, behind)
    }

    pub(super) fn is_full(&self) -> bool {
        self.queued_bytes() >= self.parts.queue_max_bytes && !self.all_caught_up()
    }

    /// Room for a large transaction: what is queued and it together fit, or nothing is queued.
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        self.queued_bytes().saturating_add(bytes) <= self.parts.queue_max_bytes || self.all_caught_up()
    }

    fn all_caught_up(&self) -> bool {
        self.parts.slowest.borrow().as_ref().is_none_or(|slowest| slowest.number >= self.parts.log.last_reachable())
    }

    pub(super) fn tell_upkeep(&self, full: bool) {
        let waiting = full || self.wants_room.is_some_and(|bytes| !self.has_room(bytes)) || self.parts.log.room().is_short();
        let next = Written { base: self.parts.log.durable_base(), waiting };
        self.parts.written.send_if_modified(|now| {
            let moved = *now != next;
            *now = next;
            moved
        });
    }

    /// What holds the source back is room.
    pub(super) fn wants_for_room(&self) -> bool {
        let parts = self.wants_room.is_some_and(|bytes| !self.has_room(bytes));
        self.is_full() || parts || self.short_since.is_some_and(|since| since.elapsed() < DISK_WAIT)
    }

    /// True while the source is not read because the disk is nearly full and what nobody needs may yet go. After a while it is read on to the end of
    /// the disk, except that a large transaction is not begun there: it would fill the disk, be voided, and fill it again.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`] for such a transaction.
    pub(super) fn waits_for_disk(&mut self) -> Result<bool> {
        let room = self.parts.log.room();
        let wanted = self.wants_room.filter(|bytes| self.has_room(*bytes));
        let least = (2 * OUTBOX_BYTES as u64).min(room.step_bytes.saturating_mul(2));
        // Between its parts a large transaction takes what was there when it was begun.
        let short = match (wanted, &self.emission) {
            (Some(bytes), _) => room.free_bytes < on_disk(bytes),
            (None, Some(_)) => false,
            (None, None) => room.free_bytes < least,
        };
        if !short {
            self.short_since = None;
            return Ok(false);
        }
        let since = *self.short_since.get_or_insert_with(Instant::now);
        if since.elapsed() < DISK_WAIT {
            return Ok(true);
        }
        wanted.map_or(Ok(false), |bytes| {
            let message = format!("a transaction is {bytes} bytes of log, {} are free on the queue's disk", room.free_bytes);
            Err(Error::new(ErrorKind::NoSpace, message))
        })
    }
}

/// What so many bytes of records take at most, with their frames and the base before them.
fn on_disk(bytes: u64) -> u64 {
    bytes + bytes / 64 + OUTBOX_BYTES as u64
}
