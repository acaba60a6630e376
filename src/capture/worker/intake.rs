//! What the source's messages come to: into the assembler, and at each commit out of it into the log.

use bytes::Bytes;
use tokio::time::Instant;

use super::Worker;
use crate::capture::heartbeat;
use crate::capture::postgres::decode::{Commit, PgOutput, decode};
use crate::capture::translate::{Emission, Step, Tools, encode, unresolved};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Lsn, Position, Progress, TransactionHeader};
use crate::failpoint;
use crate::halt::HaltCode;

impl Worker {
    /// One message of the output plugin.
    pub(super) async fn take_output(&mut self, payload: &Bytes) -> Result<()> {
        let in_block = self.parts.assembler.in_block();
        let message = decode(payload, in_block)?;
        match message {
            PgOutput::Begin { final_lsn, xid, .. } => {
                // A commit record that begins before what is in the log is in the log.
                let known = self.given().is_some_and(|given| final_lsn < given);
                self.parts.assembler.begin(xid, known)
            }
            PgOutput::Commit(commit) => self.commit(commit),
            PgOutput::Origin { name, .. } => self.origin(name, in_block),
            PgOutput::StreamStart { xid, first } => self.parts.assembler.stream_start(xid, first),
            PgOutput::StreamStop => self.parts.assembler.stream_stop(),
            PgOutput::StreamAbort { xid, subxid } => {
                self.parts.assembler.stream_abort(xid, subxid);
                Ok(())
            }
            PgOutput::StreamCommit { xid, commit } => {
                let mut streamed = self.parts.assembler.stream_commit(xid)?;
                let header = self.header(xid.0, commit, streamed.origin.take());
                self.check_kept(streamed.held.is_lost(), streamed.held.len(), &header)?;
                let known = self.is_known(commit.end_lsn);
                self.emission = Some(Emission::streamed(header, known, streamed, &self.relations));
                Ok(())
            }
            PgOutput::Message { transactional: false, lsn, prefix, content, .. } => self.message(lsn, prefix, content),
            _ if in_block => {
                self.parts.assembler.push_message(payload)?;
                self.make_room().await
            }
            PgOutput::Relation(relation) => {
                self.relations.note_relation(relation.oid, payload, false);
                Ok(())
            }
            PgOutput::Type { oid, namespace, name, .. } => {
                self.relations.note_type(oid, namespace, name);
                Ok(())
            }
            PgOutput::Message { prefix: heartbeat::PREFIX, .. } => {
                self.parts.assembler.open()?.heartbeat = true;
                Ok(())
            }
            change => self.change(&change).await,
        }
    }

    async fn change(&mut self, change: &PgOutput<'_>) -> Result<()> {
        if self.parts.assembler.open()?.known {
            return Ok(());
        }
        while let Some(oid) = unresolved(change, &self.relations) {
            self.relations.resolve(oid, &mut self.parts.catalog, &mut self.parts.log).await?;
        }
        if let Some(bytes) = encode(change, &self.relations, &mut self.encoder)? {
            self.parts.assembler.push_change(bytes)?;
            self.make_room().await?;
        }
        Ok(())
    }

    async fn make_room(&mut self) -> Result<()> {
        if self.parts.assembler.is_over_budget() {
            self.parts.assembler.make_room().await?;
        }
        Ok(())
    }

    fn origin(&mut self, name: &str, in_block: bool) -> Result<()> {
        let origin = Some(name.to_owned());
        if in_block {
            self.parts.assembler.streaming()?.origin = origin;
        } else {
            self.parts.assembler.open()?.origin = origin;
        }
        Ok(())
    }

    fn commit(&mut self, commit: Commit) -> Result<()> {
        let mut whole = self.parts.assembler.commit()?;
        if whole.known != self.is_known(commit.end_lsn) {
            // Positions are ends of records, so a commit record lies before one or behind it.
            let message = format!("commit record {} to {} lies across the log's end", commit.commit_lsn, commit.end_lsn);
            return Err(Error::new(ErrorKind::Unexpected, message));
        }
        if whole.known {
            whole.held.release(self.parts.assembler.space());
            return Ok(());
        }
        let header = self.header(whole.xid.0, commit, whole.origin.take());
        self.check_kept(whole.held.is_lost(), whole.held.len(), &header)?;
        if whole.change_count == 0 {
            return self.empty(&header, whole.heartbeat);
        }
        let small = whole.held.in_one_piece().filter(|bytes| bytes.len() <= self.parts.log.whole_bytes());
        if let Some(changes) = small {
            self.parts.log.give_transaction(&header, whole.change_count, changes);
            self.totals.transactions += 1;
            self.totals.changes += whole.change_count;
        } else {
            self.emission = Some(Emission::whole(header, whole.change_count, whole.held));
        }
        Ok(())
    }

    /// Nothing of the transaction is for the log. Our heartbeat becomes a progress record; the rest goes with the next one.
    fn empty(&mut self, header: &TransactionHeader, heartbeat: bool) -> Result<()> {
        self.wal_end = self.wal_end.max(header.position.lsn()?);
        if heartbeat {
            let progress = Progress { position: header.position, source_time_us: header.commit_time_us, heartbeat: true };
            self.parts.log.give_progress(progress);
            self.last_progress = Instant::now();
        }
        Ok(())
    }

    fn message(&mut self, lsn: Lsn, prefix: &str, content: &[u8]) -> Result<()> {
        if prefix == heartbeat::PREFIX || self.is_known(lsn) {
            return Ok(());
        }
        self.parts.log.give_message(lsn, prefix, Bytes::copy_from_slice(content))
    }

    /// One step of the large transaction in hand.
    pub(super) async fn emit(&mut self) -> Result<()> {
        let Some(emission) = &mut self.emission else { return Ok(()) };
        let parts = &mut self.parts;
        let mut tools = Tools {
            relations: &mut self.relations,
            catalog: &mut parts.catalog,
            log: &mut parts.log,
            encoder: &mut self.encoder,
        };
        if self.wants_room.take().is_some() {
            emission.begin(&mut tools);
            return Ok(());
        }
        let xid = emission.header().xid;
        let step = emission.step(&mut tools).await.map_err(|e| e.context(format!("transaction {xid}")))?;
        match step {
            Step::More => return failpoint::hit("capture.mid_parts"),
            Step::WantsRoom(bytes) => {
                self.wants_room = Some(bytes);
                if bytes > parts.queue_max_bytes {
                    let message =
                        format!("transaction {xid} is {bytes} bytes of log, [queue] max_bytes is {}", parts.queue_max_bytes);
                    return Err(Error::halt(HaltCode::TransactionTooLarge, message));
                }
                return Ok(());
            }
            Step::Done => {
                self.totals.transactions += 1;
                self.totals.changes += emission.change_count();
            }
            Step::Empty(_) => {}
        }
        let Some(emission) = self.emission.take() else { return Ok(()) };
        let header = emission.header().clone();
        emission.into_held().release(self.parts.assembler.space());
        if let Step::Empty(heartbeat) = step
            && !self.is_known(header.position.lsn()?)
        {
            self.empty(&header, heartbeat)?;
        }
        Ok(())
    }

    fn header(&mut self, xid: u32, commit: Commit, origin: Option<String>) -> TransactionHeader {
        TransactionHeader {
            xid: self.parts.xids.widen(xid),
            position: Position::Lsn(commit.end_lsn),
            commit_lsn: commit.commit_lsn,
            commit_time_us: commit.commit_time_us,
            origin,
        }
    }

    fn check_kept(&mut self, lost: bool, bytes: u64, header: &TransactionHeader) -> Result<()> {
        if !lost {
            return Ok(());
        }
        let limit = self.parts.assembler.space().max_bytes();
        let needed = bytes + self.parts.assembler.spilled_bytes();
        let message = format!(
            "transaction {} at {} needs {needed} bytes of spill space, spill_max_bytes is {limit}",
            header.xid, header.position
        );
        Err(Error::halt(HaltCode::TransactionTooLarge, message))
    }
}
