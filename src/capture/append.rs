//! The stream's one writer: numbers records, fills headers, batches small transactions, cuts large ones, repeats bases.
//!
//! Invariant: records leave in the order in which they were given, numbered without a gap. Nothing here is durable by itself; a new
//! writer learns everything from the queue ([`super::recover`]). What becomes of a record once it is given: [`super::outbox`].
//!
//! A *base row* is [`History`], every schema in force, and a [`Progress`] that says again where the stream stands. The
//! History and the schemas still name the old base; the Progress names the first of the row, and so does every record after it.
//! The row is repeated about every [`BASE_EVERY_BYTES`], whoever wrote the last one, and never between the parts of a transaction. A base stays valid over
//! fences, so a new writer goes on from the one that it has read.
//!
//! ```text
//! #17 Transactions   base 2
//! #18 History        base 2
//! #19 Schema t v3    base 2
//! #20 Progress       base 18   ← durable: consumers' cursors name #18 from here on, trimming up to it is allowed
//! #21 Transactions   base 18
//! ```

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};

use super::outbox::{DurableBase, Mark, Outbox};
use super::takeover::Claim;
use crate::error::{Error, ErrorKind, Result};
use crate::event::record::{HEADER_BYTES, encode_frame};
use crate::event::{
    Body, Epoch, Genesis, History, Lsn, Message, Nonce, Part, Position, Progress, RecordHeader, RecordKind, RecordNumber,
    SchemaId, SlotStart, StreamId, TableSchema, TransactionHeader, write_transaction,
};
use crate::queue::{DurablePosition, Room};

/// A batch of small transactions is given at this size, when the source has not paused before.
pub const BATCH_BYTES: usize = 256 << 10;
/// Log between two bases.
pub const BASE_EVERY_BYTES: u64 = 16 << 20;
/// Largest part of a large transaction.
const PART_BYTES: usize = 1 << 20;
/// What a part says besides its piece, and the frame, fit in this.
const PART_OVERHEAD: usize = 4 << 10;

/// The clock, for headers: microseconds since 1970-01-01 UTC.
pub(crate) fn now_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_micros()).unwrap_or(i64::MAX))
}

/// As often as the queue can trim, and a row that is itself large less often.
fn base_every(room: Room, row_bytes: u64) -> u64 {
    BASE_EVERY_BYTES.min(room.step_bytes).max(8 * row_bytes)
}

/// A large transaction being given part by part.
#[derive(Debug)]
struct PartsInHand {
    header: TransactionHeader,
    change_count: u64,
    total_bytes: u64,
    given_bytes: u64,
    index: u32,
}

/// The writer of a claimed stream.
pub struct LogWriter {
    out: Outbox,
    max_record_bytes: usize,
    stream: StreamId,
    epoch: Epoch,
    nonce: Nonce,
    last: RecordNumber,
    last_reachable: RecordNumber,
    bytes_total: u64,
    changes_total: u64,
    base: RecordNumber,
    bytes_at_base: u64,
    base_every: u64,
    next_base: Option<RecordNumber>,
    history: Option<History>,
    schemas: BTreeMap<u32, TableSchema>,
    next_schema: u32,
    given: Option<Position>,
    source_time_us: i64,
    batch: BytesMut,
    batch_changes: u64,
    parts: Option<PartsInHand>,
}

impl LogWriter {
    /// Goes on with a claimed stream. [`Self::ensure_base`] comes first for one that has begun.
    #[must_use]
    pub fn new(claim: Claim, max_record_bytes: usize) -> Self {
        let recovered = claim.recovered;
        let base = recovered.row.map(|row| DurableBase { number: row.number, offset: row.offset });
        let base_every = base_every(claim.writer.room(), recovered.row.map_or(0, |row| row.bytes));
        Self {
            next_schema: recovered.next_schema(),
            // The position was read back from the queue behind a durable fence.
            out: Outbox::new(claim.writer, claim.ticket, recovered.position.map(DurablePosition::proven), base),
            max_record_bytes,
            stream: claim.stream,
            epoch: claim.epoch,
            nonce: claim.nonce,
            last: recovered.last,
            last_reachable: recovered.last_reachable,
            bytes_total: recovered.bytes_total,
            changes_total: recovered.changes_total,
            base: recovered.base.map_or(RecordNumber(1), |(number, _)| number),
            bytes_at_base: recovered.row.map_or(recovered.bytes_total, |row| row.bytes_before),
            base_every,
            next_base: None,
            history: recovered.history,
            schemas: recovered.schemas,
            given: recovered.position,
            source_time_us: recovered.source_time_us,
            batch: BytesMut::new(),
            batch_changes: 0,
            parts: None,
        }
    }

    /// The epoch it writes under.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Number of the last record given.
    #[must_use]
    pub fn last(&self) -> RecordNumber {
        self.last
    }

    /// Number of the last record given that a consumer's cursor can come to: a table's version moves none.
    #[must_use]
    pub fn last_reachable(&self) -> RecordNumber {
        self.last_reachable
    }

    /// Bytes of all valid records, those on their way included.
    #[must_use]
    pub fn bytes_total(&self) -> u64 {
        self.bytes_total
    }

    /// Changes of all valid records, those on their way included.
    #[must_use]
    pub fn changes_total(&self) -> u64 {
        self.changes_total
    }

    /// Everything up to here has been given, not necessarily durable. What the source sends again up to it is dropped.
    #[must_use]
    pub fn given(&self) -> Option<Position> {
        self.given
    }

    /// The source's clock there, microseconds since 1970-01-01 UTC; 0 when nothing told it.
    #[must_use]
    pub fn source_time_us(&self) -> i64 {
        self.source_time_us
    }

    /// Everything up to here is durable.
    #[must_use]
    pub fn durable(&self) -> Option<DurablePosition> {
        self.out.durable()
    }

    /// The newest base that is durable as a whole row.
    #[must_use]
    pub fn durable_base(&self) -> Option<DurableBase> {
        self.out.durable_base()
    }

    /// The version of a table in force.
    #[must_use]
    pub fn schema(&self, source_oid: u32) -> Option<&TableSchema> {
        self.schemas.get(&source_oid)
    }

    /// Bytes that the queue has not accepted yet, the open batch included.
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        self.out.waiting_bytes() + self.batch.len()
    }

    /// How the queue's storage is.
    #[must_use]
    pub fn room(&self) -> Room {
        self.out.room()
    }

    /// Ends what [`super::takeover::claim`] began on a full disk. Everything given is durable.
    pub(super) fn room_is_made(&mut self) {
        self.out.make_room(false);
    }

    /// True while [`Self::advance`] has something to do.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.out.is_busy()
    }

    /// Largest piece for [`Self::give_part`].
    #[must_use]
    pub fn part_bytes(&self) -> usize {
        PART_BYTES.min(self.max_record_bytes.saturating_sub(PART_OVERHEAD)).max(1)
    }

    /// A change stream beyond this travels in parts.
    #[must_use]
    pub fn whole_bytes(&self) -> usize {
        (PART_BYTES / 2).min(self.max_record_bytes / 2)
    }

    /// The stream's first record.
    pub fn give_genesis(&mut self, genesis: Genesis) {
        self.history = Some(genesis.history.clone());
        self.give(&Body::Genesis(genesis), 0, Mark { opens_base: Some(RecordNumber(1)), closes_base: true, position: None });
    }

    /// The stream's second record.
    pub fn give_slot_start(&mut self, position: Position) {
        self.given = Some(position);
        self.give(&Body::SlotStart(SlotStart { position }), 0, Mark { position: Some(position), ..Mark::default() });
    }

    /// The source's history went on; it travels with the next base row.
    pub fn set_history(&mut self, history: History) {
        self.history = Some(history);
    }

    /// A new version of a table, under the name that it is given here. Before its first use (I5).
    pub fn give_schema(&mut self, mut schema: TableSchema) -> SchemaId {
        self.flush();
        schema.id = SchemaId(self.next_schema);
        self.next_schema += 1;
        let id = schema.id;
        self.schemas.insert(schema.source_oid, schema.clone());
        self.give(&Body::Schema(schema), 0, Mark::default());
        id
    }

    /// A base row, unless the one that was recovered is recent enough: a stream whose writer comes and goes would consist of base rows.
    pub fn ensure_base(&mut self) {
        if self.durable_base().is_none() {
            self.give_base();
        } else {
            self.renew_base();
        }
    }

    /// A base row.
    pub fn give_base(&mut self) {
        self.flush();
        let first = self.last.next();
        self.bytes_at_base = self.bytes_total;
        if let Some(history) = self.history.clone() {
            self.give(&Body::History(history), 0, Mark { opens_base: Some(first), ..Mark::default() });
        }
        let schemas = std::mem::take(&mut self.schemas);
        for schema in schemas.values() {
            self.give(&Body::Schema(schema.clone()), 0, Mark::default());
        }
        self.schemas = schemas;
        self.next_base = Some(first);
        self.base_every = base_every(self.out.room(), self.bytes_total - self.bytes_at_base);
        if let Some(position) = self.given {
            let progress = Progress { position, source_time_us: self.source_time_us, heartbeat: false };
            self.give(&Body::Progress(progress), 0, Mark { position: Some(position), opens_base: None, closes_base: true });
        }
    }

    /// A small transaction, its change stream whole. It waits in the batch until [`Self::flush`].
    pub fn give_transaction(&mut self, header: &TransactionHeader, change_count: u64, changes: &[u8]) {
        let limit = self.max_record_bytes.saturating_sub(PART_OVERHEAD);
        if self.batch.len() + changes.len() > limit {
            self.flush();
        }
        write_transaction(header, change_count, changes, &mut self.batch);
        self.batch_changes += change_count;
        self.given = Some(header.position);
        self.source_time_us = header.commit_time_us;
        if self.batch.len() >= BATCH_BYTES {
            self.flush();
        }
    }

    /// Gives the batch, if there is one.
    pub fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let (batch, changes) = (self.batch.split(), std::mem::take(&mut self.batch_changes));
        self.give_payload(RecordKind::Transactions, &batch, changes, Mark { position: self.given, ..Mark::default() });
        self.batch = batch;
        self.batch.clear();
    }

    /// The source stood at a position with nothing before it that is not in the log.
    pub fn give_progress(&mut self, progress: Progress) {
        self.flush();
        self.given = Some(progress.position);
        self.source_time_us = progress.source_time_us;
        let mark = Mark { position: Some(progress.position), ..Mark::default() };
        self.give(&Body::Progress(progress), 0, mark);
    }

    /// A non-transactional message of an application. Its LSN is the end of its record (PostgreSQL's `logicalmsg_decode`), so it is a
    /// position like a commit's: everything up to it is in the log, and a slot confirmed to it does not send it again.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`] when it fits in no record.
    pub fn give_message(&mut self, lsn: Lsn, prefix: &str, content: Bytes) -> Result<()> {
        if content.len() + prefix.len() + PART_OVERHEAD > self.max_record_bytes {
            let message = format!(
                "a logical message of {} bytes at {lsn} is larger than a record of this queue may be ({} bytes); raise the limit of the queue",
                content.len(),
                self.max_record_bytes
            );
            return Err(Error::new(ErrorKind::NoSpace, message));
        }
        self.flush();
        let position = Position::Lsn(lsn);
        self.given = Some(position);
        let message = Message { lsn, prefix: prefix.to_owned(), content };
        self.give(&Body::Message(message), 0, Mark { position: Some(position), ..Mark::default() });
        Ok(())
    }

    /// A large transaction begins; its change stream follows by [`Self::give_part`] and nothing else comes between.
    pub fn begin_parts(&mut self, header: TransactionHeader, change_count: u64, total_bytes: u64) {
        self.flush();
        self.renew_base();
        self.parts = Some(PartsInHand { header, change_count, total_bytes, given_bytes: 0, index: 0 });
    }

    /// The next piece, at most [`Self::part_bytes`]. The one that completes the stream becomes the last part; true then.
    ///
    /// # Errors
    /// [`ErrorKind::Unexpected`] when no large transaction was begun or the piece reaches beyond its end: a bug.
    pub fn give_part(&mut self, piece: Bytes) -> Result<bool> {
        let wrong = || Error::new(ErrorKind::Unexpected, "a part that belongs to no large transaction");
        let mut parts = self.parts.take().ok_or_else(wrong)?;
        parts.given_bytes += piece.len() as u64;
        if parts.given_bytes > parts.total_bytes {
            return Err(wrong());
        }
        let last = parts.given_bytes == parts.total_bytes;
        let part = Part {
            header: parts.header.clone(),
            index: parts.index,
            last,
            change_count: parts.change_count,
            total_bytes: parts.total_bytes,
            bytes: piece,
        };
        parts.index += 1;
        if last {
            self.given = Some(parts.header.position);
            self.source_time_us = parts.header.commit_time_us;
            let mark = Mark { position: self.given, ..Mark::default() };
            self.give(&Body::Part(part), parts.change_count, mark);
            return Ok(true);
        }
        self.parts = Some(parts);
        self.give(&Body::Part(part), 0, Mark::default());
        Ok(false)
    }

    /// As `Outbox::advance`.
    ///
    /// # Errors
    /// Those of the queue. The writer is dead then.
    pub async fn advance(&mut self) -> Result<Option<DurablePosition>> {
        self.out.advance().await
    }

    /// Advances until everything given is durable.
    ///
    /// # Errors
    /// As [`Self::advance`].
    pub async fn drain(&mut self) -> Result<()> {
        self.flush();
        while self.is_busy() {
            self.advance().await?;
        }
        Ok(())
    }

    fn renew_base(&mut self) {
        if self.parts.is_none() && self.bytes_total - self.bytes_at_base >= self.base_every && self.next_base.is_none() {
            self.give_base();
        }
    }

    fn give(&mut self, body: &Body, changes: u64, mark: Mark) {
        let mut payload = BytesMut::new();
        body.encode(&mut payload);
        self.give_payload(body.kind(), &payload, changes, mark);
    }

    fn give_payload(&mut self, kind: RecordKind, payload: &[u8], changes: u64, mark: Mark) {
        let row = matches!(kind, RecordKind::Genesis | RecordKind::SlotStart | RecordKind::History | RecordKind::Schema);
        if !row && let Some(base) = self.next_base.take() {
            self.base = base;
        }
        self.last = self.last.next();
        if kind != RecordKind::Schema {
            self.last_reachable = self.last;
        }
        let header = RecordHeader {
            kind,
            stream: self.stream,
            number: self.last,
            epoch: self.epoch,
            nonce: self.nonce,
            base: self.base,
            bytes_before: self.bytes_total,
            changes_before: self.changes_total,
            written_at_us: now_us(),
        };
        let bytes = encode_frame(&header, payload);
        debug_assert_eq!(bytes.len(), HEADER_BYTES + payload.len());
        self.bytes_total += bytes.len() as u64;
        self.changes_total += changes;
        self.out.push(bytes, mark);
        if !row {
            self.renew_base();
        }
    }
}
