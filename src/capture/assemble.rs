//! Transactions in progress: what the source has sent of them, held until each commits or is undone.
//!
//! Invariant: a transaction comes out whole, once, at its commit; of what was undone nothing does. All of them together hold
//! no more memory than the budget and one message, and no more disk than the spill space (I6). The ids of undone subtransactions count, and cannot be
//! spilled: past the budget everything else is.
//!
//! A transaction that the source sends whole (Begin … Commit) is already committed there: its changes are encoded for the log as they come.
//! A streamed one (Stream Start … Stop blocks, interleaved with others) is not: its raw messages are held, each behind
//! its length, because a subtransaction may still be undone, and with it a Relation message that only that subtransaction's
//! DDL made true. Which subtransaction a message belongs to stands in the message itself. They are decoded at the commit, in order.
//!
//! What the source guarantees for that (PostgreSQL 15, `pgoutput.c`): within one streamed transaction it sends Relation anew, and after an
//! abort of a subtransaction again; a logical message carries the top-level xid, so one from an undone savepoint stays.
//!
//! ```text
//! Begin 7 … Commit 7                          → Whole(7)
//! Start 8, R(t) by 9, I by 9, Stop            held
//! Begin 10 … Commit 10                        → Whole(10): commit order, not start order
//! Start 8, I by 8, Stop, Abort 8/9            9's messages are dropped when 8 is read
//! StreamCommit 8                              → Streamed(8)
//! ```

use std::collections::{HashMap, HashSet};

use super::postgres::decode::ShortXid;
use super::spill::{HeldBytes, SpillSpace};
use crate::error::{Error, ErrorKind, Result};

/// Memory of one undone subtransaction: its id, its control byte and the set's free room.
const UNDONE_BYTES: usize = 10;

/// A transaction that the source is sending whole.
#[derive(Debug)]
pub struct Whole {
    /// Top level.
    pub xid: ShortXid,
    /// The replication origin it was applied under.
    pub origin: Option<String>,
    /// Changes encoded.
    pub change_count: u64,
    /// Our own heartbeat is in it.
    pub heartbeat: bool,
    /// It is in the log already: the source sends it again.
    pub known: bool,
    /// The change stream.
    pub held: HeldBytes,
}

/// A transaction in progress at the source.
#[derive(Debug, Default)]
pub struct Streamed {
    /// The replication origin it was applied under.
    pub origin: Option<String>,
    /// Subtransactions that were undone.
    pub undone: HashSet<u32>,
    /// Framed messages.
    pub held: HeldBytes,
}

impl Streamed {
    fn memory_bytes(&self) -> usize {
        self.held.memory_bytes() + self.undone.len() * UNDONE_BYTES
    }
}

/// All transactions in progress.
#[derive(Debug)]
pub struct Assembler {
    open: Option<Whole>,
    streamed: HashMap<u32, Streamed>,
    /// Between Stream Start and Stream Stop.
    block: Option<ShortXid>,
    space: SpillSpace,
    memory_limit: usize,
    memory: usize,
    /// One of them [spills again](HeldBytes::spills_again).
    spills_again: bool,
}

impl Assembler {
    /// With a budget of memory over all transactions, and a place to spill.
    #[must_use]
    pub fn new(space: SpillSpace, memory_limit: u64) -> Self {
        let memory_limit = usize::try_from(memory_limit).unwrap_or(usize::MAX);
        Self { open: None, streamed: HashMap::new(), block: None, space, memory_limit, memory: 0, spills_again: false }
    }

    /// True between Stream Start and Stream Stop: how messages are to be decoded.
    #[must_use]
    pub fn in_block(&self) -> bool {
        self.block.is_some()
    }

    /// True when a transaction that is being sent whole has not been complete.
    #[must_use]
    pub fn in_transaction(&self) -> bool {
        self.open.is_some()
    }

    /// Bytes held in memory.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.memory as u64
    }

    /// The spill space.
    pub fn space(&mut self) -> &mut SpillSpace {
        &mut self.space
    }

    /// Bytes in spill files.
    #[must_use]
    pub fn spilled_bytes(&self) -> u64 {
        self.space.used_bytes()
    }

    /// A whole transaction follows; `known` when it is in the log already.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`] inside another.
    pub fn begin(&mut self, xid: ShortXid, known: bool) -> Result<()> {
        if self.open.is_some() || self.block.is_some() {
            return Err(out_of_place("Begin"));
        }
        self.open = Some(Whole { xid, origin: None, change_count: 0, heartbeat: false, known, held: HeldBytes::default() });
        Ok(())
    }

    /// The transaction that is being sent whole.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`] when there is none.
    pub fn open(&mut self) -> Result<&mut Whole> {
        self.open.as_mut().ok_or_else(|| out_of_place("a change outside of a transaction"))
    }

    /// Adds an encoded change to the transaction that is being sent whole.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`] when there is none.
    pub fn push_change(&mut self, change: &[u8]) -> Result<()> {
        let open = self.open()?;
        let before = open.held.memory_bytes();
        open.held.push(change);
        open.change_count += 1;
        let (after, again) = (open.held.memory_bytes(), open.held.spills_again());
        self.spills_again |= again;
        self.memory = self.memory + after - before;
        Ok(())
    }

    /// The transaction that was being sent whole is complete.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`] when there is none.
    pub fn commit(&mut self) -> Result<Whole> {
        let whole = self.open.take().ok_or_else(|| out_of_place("Commit"))?;
        self.memory -= whole.held.memory_bytes();
        Ok(whole)
    }

    /// A block of a transaction in progress follows.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`] inside another, or when it is not known and not said to be new.
    pub fn stream_start(&mut self, xid: ShortXid, first: bool) -> Result<()> {
        if self.open.is_some() || self.block.is_some() || first == self.streamed.contains_key(&xid.0) {
            return Err(out_of_place("Stream Start"));
        }
        self.streamed.entry(xid.0).or_default();
        self.block = Some(xid);
        Ok(())
    }

    /// The block ends.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`] outside of one.
    pub fn stream_stop(&mut self) -> Result<()> {
        self.block.take().map(drop).ok_or_else(|| out_of_place("Stream Stop"))
    }

    /// The transaction whose block is open.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`] outside of a block.
    pub fn streaming(&mut self) -> Result<&mut Streamed> {
        let wrong = || out_of_place("a streamed message");
        self.block.and_then(|xid| self.streamed.get_mut(&xid.0)).ok_or_else(wrong)
    }

    /// Holds a message of the block.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`] outside of a block.
    pub fn push_message(&mut self, message: &[u8]) -> Result<()> {
        let length = u32::try_from(message.len()).map_err(|_| out_of_place("a message beyond 4 GiB"))?;
        let held = &mut self.streaming()?.held;
        let before = held.memory_bytes();
        held.push(&length.to_le_bytes());
        held.push(message);
        let (after, again) = (held.memory_bytes(), held.spills_again());
        self.spills_again |= again;
        self.memory = self.memory + after - before;
        Ok(())
    }

    /// A streamed transaction, or one of its subtransactions, is undone. One that is not known was undone before it sent anything.
    pub fn stream_abort(&mut self, xid: ShortXid, subxid: ShortXid) {
        if xid != subxid {
            if let Some(streamed) = self.streamed.get_mut(&xid.0)
                && streamed.undone.insert(subxid.0)
            {
                self.memory += UNDONE_BYTES;
            }
        } else if let Some(streamed) = self.streamed.remove(&xid.0) {
            self.memory -= streamed.memory_bytes();
            streamed.held.release(&mut self.space);
        }
    }

    /// A streamed transaction is complete.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`] when it is not known.
    pub fn stream_commit(&mut self, xid: ShortXid) -> Result<Streamed> {
        let streamed = self.streamed.remove(&xid.0).ok_or_else(|| out_of_place("Stream Commit"))?;
        self.memory -= streamed.memory_bytes();
        Ok(streamed)
    }

    /// True when [`Self::make_room`] has something to do.
    #[must_use]
    pub fn is_over_budget(&self) -> bool {
        self.memory > self.memory_limit || self.spills_again
    }

    /// Spills what [spills again](HeldBytes::spills_again), and past the budget the transactions that hold most, until half of it is free.
    ///
    /// # Errors
    /// As [`HeldBytes::spill`].
    pub async fn make_room(&mut self) -> Result<()> {
        if std::mem::take(&mut self.spills_again) {
            let open = self.open.as_mut().map(|whole| &mut whole.held);
            let all = self.streamed.values_mut().map(|streamed| &mut streamed.held).chain(open);
            for held in all.filter(|held| held.spills_again()) {
                self.memory -= held.memory_bytes();
                held.spill(&mut self.space).await?;
            }
        }
        if self.memory <= self.memory_limit {
            return Ok(());
        }
        while self.memory > self.memory_limit / 2 {
            let open = self.open.as_mut().map(|whole| &mut whole.held);
            let all = self.streamed.values_mut().map(|streamed| &mut streamed.held).chain(open);
            let Some(largest) = all.max_by_key(|held| held.memory_bytes()).filter(|held| held.memory_bytes() > 0) else {
                return Ok(());
            };
            self.memory -= largest.memory_bytes();
            largest.spill(&mut self.space).await?;
        }
        Ok(())
    }
}

fn out_of_place(what: &str) -> Error {
    Error::new(ErrorKind::Malformed, format!("pgoutput: {what} out of place"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assembler(memory: u64) -> (tempfile::TempDir, Assembler) {
        let folder = tempfile::tempdir().unwrap();
        let space = SpillSpace::open(folder.path(), 1 << 30).unwrap();
        (folder, Assembler::new(space, memory))
    }

    #[tokio::test]
    async fn transactions_interleave_and_memory_stays_within_the_budget() {
        let (_folder, mut assembler) = assembler(100_000);
        for round in 0..100 {
            for xid in [ShortXid(8), ShortXid(9)] {
                assembler.stream_start(xid, round == 0).unwrap();
                assembler.push_message(&[xid.0 as u8; 3000]).unwrap();
                assembler.stream_stop().unwrap();
                if assembler.is_over_budget() {
                    assembler.make_room().await.unwrap();
                }
                assert!(assembler.memory_bytes() <= 100_000);
            }
        }
        let mut streamed = assembler.stream_commit(ShortXid(8)).unwrap();
        assert_eq!(streamed.held.len(), 100 * 3004);
        let mut reader = streamed.held.reader();
        let mut all = Vec::new();
        while let Some(chunk) = reader.next().await.unwrap() {
            all.extend_from_slice(&chunk);
        }
        assert!(all.chunks(3004).all(|frame| frame[..4] == 3000_u32.to_le_bytes() && frame[4..].iter().all(|b| *b == 8)));
        streamed.held.release(assembler.space());
        let before = assembler.memory_bytes();
        for subxid in [10, 11, 11] {
            assembler.stream_abort(ShortXid(9), ShortXid(subxid));
        }
        assert_eq!(assembler.memory_bytes(), before + 2 * UNDONE_BYTES as u64);
        assembler.stream_abort(ShortXid(9), ShortXid(9));
        assert_eq!((assembler.memory_bytes(), assembler.spilled_bytes()), (0, 0));
    }

    #[tokio::test]
    async fn a_transaction_that_has_a_file_does_not_fill_the_budget_again() {
        let (_folder, mut assembler) = assembler(32 << 20);
        assembler.stream_start(ShortXid(8), true).unwrap();
        let (mut message, mut after_first) = (0_u64, 0);
        while message < 600 {
            assembler.push_message(&[message as u8; 100_000]).unwrap();
            if assembler.is_over_budget() {
                assembler.make_room().await.unwrap();
                assert_eq!(assembler.memory_bytes(), 0);
            }
            if assembler.spilled_bytes() > 0 {
                after_first = after_first.max(assembler.memory_bytes());
            }
            message += 1;
        }
        assert!((1 << 20..4 << 20).contains(&after_first), "{after_first}");
        assembler.stream_stop().unwrap();
        assert_eq!(assembler.stream_commit(ShortXid(8)).unwrap().held.len(), 600 * 100_004);
    }

    #[test]
    fn messages_out_of_place_are_malformed() {
        let (_folder, mut assembler) = assembler(1000);
        assert!(assembler.push_change(b"x").is_err() && assembler.commit().is_err() && assembler.stream_stop().is_err());
        assembler.begin(ShortXid(1), false).unwrap();
        assert!(assembler.begin(ShortXid(2), false).is_err() && assembler.stream_start(ShortXid(3), true).is_err());
        assembler.commit().unwrap();
        assembler.stream_start(ShortXid(3), true).unwrap();
        assert!(assembler.stream_start(ShortXid(4), true).is_err());
        assembler.stream_stop().unwrap();
        assert!(assembler.stream_start(ShortXid(3), true).is_err(), "a first block of a known transaction");
        assert!(assembler.stream_commit(ShortXid(5)).is_err());
    }
}
