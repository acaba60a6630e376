//! Reads ahead of the replica, decoded, bounded by bytes (I6).
//!
//! Every unit that carries changes holds its bytes' share of the budget until it is dropped, which is after its COMMIT. So what
//! is read ahead and what is being applied together stay within the budget; one record alone may be larger.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::task::AbortOnDropHandle;

use super::merge::Mark;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::{Body, Change, ChangeReader, History, Part, Position, TableSchema, TransactionBatch, TransactionHeader};
use crate::queue::log::{Cursor, Entry, LogReader, LogRecord};

/// What is asked of the queue at once.
const READ_BYTES: usize = 1 << 20;
/// How long one read waits for something new.
const READ_WAIT: Duration = Duration::from_secs(1);
/// The budget is counted in pieces of this size.
const PERMIT_BYTES: usize = 1024;
/// What a change takes beside its bytes of log, which it shares: of narrow rows that is most of it.
pub(super) const CHANGE_BYTES: usize = size_of::<Change>();
/// Units waiting; their bytes are what is bounded.
const UNITS: usize = 4096;

/// Transactions of one record.
#[derive(Debug)]
pub struct Transactions {
    /// Their changes, in order.
    pub changes: Vec<Change>,
    /// Where each ends.
    pub marks: Vec<Mark>,
    /// Bytes of log.
    pub bytes: usize,
    /// Share of the budget.
    pub permit: Option<OwnedSemaphorePermit>,
}

/// A piece of a huge transaction.
#[derive(Debug)]
pub struct Piece {
    /// The transaction.
    pub header: Arc<TransactionHeader>,
    /// Nothing of it came before.
    pub first: bool,
    /// Nothing of it comes after.
    pub last: bool,
    /// The changes that are complete with this piece.
    pub changes: Vec<Change>,
    /// Changes in the whole transaction.
    pub change_count: u64,
    /// The record.
    pub place: Cursor,
    /// Bytes of log.
    pub bytes: usize,
    /// Share of the budget.
    pub permit: Option<OwnedSemaphorePermit>,
}

/// What the log says, as far as a replica is concerned.
#[derive(Debug)]
pub enum Unit {
    /// A table's version.
    Schema(Arc<TableSchema>),
    /// Whole transactions.
    Transactions(Transactions),
    /// A piece of a huge one.
    Piece(Piece),
    /// The pieces since the last other unit are void.
    PartsVoided,
    /// The source stood here.
    Progress {
        /// The record.
        place: Cursor,
        /// When, by its clock.
        source_time_us: i64,
    },
    /// A record that means nothing to the rows.
    Pass {
        /// The record.
        place: Cursor,
        /// The source's identity, when it went on.
        history: Option<History>,
    },
}

impl Unit {
    /// Bytes of the stream up to its end; `None` for what moves no cursor.
    #[must_use]
    pub fn end_bytes(&self) -> Option<u64> {
        match self {
            Self::Transactions(found) => found.marks.last().map(|mark| mark.bytes_so_far),
            Self::Piece(piece) => Some(piece.place.bytes_so_far),
            Self::Progress { place, .. } | Self::Pass { place, .. } => Some(place.bytes_so_far),
            Self::Schema(_) | Self::PartsVoided => None,
        }
    }
}

/// From valid records to units, without I/O.
#[derive(Debug, Default)]
pub struct Decoder {
    /// Transactions up to here are applied.
    applied: Option<Position>,
    /// Position of what was read last.
    position: Option<Position>,
    large: Option<(Arc<TransactionHeader>, ChangeReader)>,
}

impl Decoder {
    /// Drops what a ledger has already.
    #[must_use]
    pub fn after(cursor: Option<&Cursor>) -> Self {
        let applied = cursor.and_then(|cursor| cursor.position);
        Self { applied, position: applied, large: None }
    }

    /// The unit of an entry; none when the ledger has it, or for fences.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`].
    pub fn decode(&mut self, entry: Entry) -> Result<Option<Unit>> {
        match entry {
            Entry::PartsVoided => Ok(self.large.take().map(|_| Unit::PartsVoided)),
            Entry::Record(record) => {
                let number = record.record.header.number;
                self.record(record).at(|| format!("record {number}"))
            }
        }
    }

    fn record(&mut self, record: LogRecord) -> Result<Option<Unit>> {
        match &record.record.body {
            Body::Progress(progress) => self.reach(progress.position),
            Body::SlotStart(start) => self.reach(start.position),
            _ => {}
        }
        let place = record.cursor(self.position, 0);
        let unit = match record.record.body {
            Body::Fence(_) => return Ok(None),
            Body::Schema(schema) => Unit::Schema(Arc::new(schema)),
            Body::Transactions(batch) => return self.transactions(&batch, place, record.stored_bytes),
            Body::Part(part) => return self.part(part, place, record.stored_bytes),
            Body::Progress(progress) => Unit::Progress { place, source_time_us: progress.source_time_us },
            Body::History(history) => Unit::Pass { place, history: Some(history) },
            Body::Genesis(_) | Body::SlotStart(_) | Body::Message(_) => Unit::Pass { place, history: None },
        };
        Ok(Some(unit))
    }

    fn reach(&mut self, position: Position) {
        self.position = self.position.max(Some(position));
    }

    fn is_applied(&self, position: Position) -> bool {
        self.applied.is_some_and(|applied| position <= applied)
    }

    fn transactions(&mut self, batch: &TransactionBatch, place: Cursor, bytes: usize) -> Result<Option<Unit>> {
        let whole = place.bytes_so_far;
        let mut changes_so_far = place.changes_so_far;
        let place = Arc::new(Cursor { bytes_so_far: whole.saturating_sub(bytes as u64), ..place });
        let mut found = Transactions { changes: Vec::new(), marks: Vec::new(), bytes, permit: None };
        for transaction in batch.iter() {
            let transaction = transaction?;
            changes_so_far += transaction.change_count;
            if self.is_applied(transaction.header.position) {
                continue;
            }
            found.changes.reserve(usize::try_from(transaction.change_count).unwrap_or(0).min(transaction.changes.len()));
            for change in transaction.changes() {
                found.changes.push(change?);
            }
            self.reach(transaction.header.position);
            let (end, bytes_so_far) = (found.changes.len(), place.bytes_so_far);
            found.marks.push(Mark { end, header: transaction.header, place: Arc::clone(&place), bytes_so_far, changes_so_far });
        }
        if let Some(last) = found.marks.last_mut() {
            last.bytes_so_far = whole;
        }
        Ok((!found.marks.is_empty()).then_some(Unit::Transactions(found)))
    }

    fn part(&mut self, part: Part, place: Cursor, bytes: usize) -> Result<Option<Unit>> {
        if self.is_applied(part.header.position) {
            return Ok(None);
        }
        let first = part.index == 0;
        if first {
            self.large = Some((Arc::new(part.header), ChangeReader::default()));
        }
        let (header, reader) = self
            .large
            .as_mut()
            .ok_or_else(|| Error::new(ErrorKind::Malformed, "a transaction's later part without its first"))?;
        let header = Arc::clone(header);
        reader.push(part.bytes);
        let mut changes = Vec::new();
        while let Some(change) = reader.next_change()? {
            changes.push(change);
        }
        if part.last {
            reader.finish()?;
            self.large = None;
            self.reach(header.position);
        }
        let changes_so_far = place.changes_so_far + if part.last { part.change_count } else { 0 };
        let place = Cursor { position: Some(header.position), changes_so_far, ..place };
        let (last, change_count) = (part.last, part.change_count);
        Ok(Some(Unit::Piece(Piece { header, first, last, changes, change_count, place, bytes, permit: None })))
    }
}

/// Reads in a task of its own.
pub struct ReadAhead {
    units: mpsc::Receiver<Result<Unit>>,
    _task: AbortOnDropHandle<()>,
}

impl ReadAhead {
    /// Begins to read.
    #[must_use]
    pub fn spawn(reader: LogReader, decoder: Decoder, budget_bytes: usize) -> Self {
        let (sender, units) = mpsc::channel(UNITS);
        let task = tokio::spawn(async move {
            if let Err(error) = read(reader, decoder, budget_bytes, &sender).await {
                // Nobody listens any more when this fails, and nobody needs to.
                drop(sender.send(Err(error)).await);
            }
        });
        Self { units, _task: AbortOnDropHandle::new(task) }
    }

    /// The next unit. Cancel-safe.
    ///
    /// # Errors
    /// Those of the log.
    pub async fn next(&mut self) -> Result<Unit> {
        self.units.recv().await.unwrap_or_else(|| Err(ended()))
    }

    /// The next unit, if it is there.
    ///
    /// # Errors
    /// Those of the log.
    pub fn try_next(&mut self) -> Result<Option<Unit>> {
        match self.units.try_recv() {
            Ok(unit) => unit.map(Some),
            Err(mpsc::error::TryRecvError::Empty) => Ok(None),
            Err(mpsc::error::TryRecvError::Disconnected) => Err(ended()),
        }
    }
}

fn ended() -> Error {
    Error::new(ErrorKind::Unexpected, "the reader of the log ended without saying why")
}

async fn read(
    mut reader: LogReader,
    mut decoder: Decoder,
    budget_bytes: usize,
    sender: &mpsc::Sender<Result<Unit>>,
) -> Result<()> {
    let permits = (budget_bytes / PERMIT_BYTES).clamp(1, Semaphore::MAX_PERMITS);
    let budget = Arc::new(Semaphore::new(permits));
    loop {
        for entry in reader.read(READ_BYTES, READ_WAIT).await? {
            let Some(mut unit) = decoder.decode(entry)? else { continue };
            if let Some((bytes, permit)) = unit.budgeted() {
                let share = u32::try_from((bytes / PERMIT_BYTES + 1).min(permits)).unwrap_or(u32::MAX);
                let granted = Arc::clone(&budget).acquire_many_owned(share).await;
                *permit = Some(granted.map_err(|_| ended())?);
            }
            if sender.send(Ok(unit)).await.is_err() {
                return Ok(());
            }
        }
    }
}

impl Unit {
    fn budgeted(&mut self) -> Option<(usize, &mut Option<OwnedSemaphorePermit>)> {
        match self {
            Self::Transactions(unit) => Some((unit.bytes + unit.changes.len() * CHANGE_BYTES, &mut unit.permit)),
            Self::Piece(unit) => Some((unit.bytes + unit.changes.len() * CHANGE_BYTES, &mut unit.permit)),
            _ => None,
        }
    }
}
