//! The fence rule and the numbers, without I/O.

use super::{Entry, LogRecord};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::record::decode_frame;
use crate::event::{
    Body, Epoch, Fence, Nonce, Part, Position, QueueOffset, Record, RecordHeader, RecordKind, RecordNumber, StreamId, Xid,
};
use crate::halt::HaltCode;
use crate::queue::StoredRecord;

/// The rules, without I/O: give it every stored record in order, get what is valid.
#[derive(Debug, Default)]
pub struct FenceFilter {
    stream: Option<StreamId>,
    in_force: Option<(Epoch, Nonce)>,
    /// Number that the next valid record must have.
    expected: Option<RecordNumber>,
    /// The transaction whose last part has not come.
    open: Option<OpenParts>,
    /// The base that the last valid record named, and where it lies.
    base: Option<(RecordNumber, QueueOffset)>,
    /// Records that may become a base: those of a row since the last other record.
    row: Vec<(RecordNumber, QueueOffset)>,
}

/// A transaction whose last part has not come.
#[derive(Clone, Copy, Debug)]
struct OpenParts {
    /// Number of its first part.
    first: RecordNumber,
    /// Index that its next part must have.
    next_index: u32,
    /// Who it is.
    xid: Xid,
    position: Position,
}

impl FenceFilter {
    /// For a reader that begins at a valid place.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The stream's identity, once a record was seen.
    #[must_use]
    pub fn stream(&self) -> Option<StreamId> {
        self.stream
    }

    /// The fence in force, once a record was seen.
    #[must_use]
    pub fn in_force(&self) -> Option<(Epoch, Nonce)> {
        self.in_force
    }

    /// Number that the next valid record must have.
    #[must_use]
    pub fn expected(&self) -> Option<RecordNumber> {
        self.expected
    }

    /// The base in force and where it lies: what a writer names until its own base is made.
    #[must_use]
    pub fn base(&self) -> Option<(RecordNumber, QueueOffset)> {
        self.base
    }

    /// Judges one record.
    ///
    /// # Errors
    /// Corrupt, too new or malformed records; halts with `queue_gap` and `queue_lost`. The filter cannot be used after one.
    pub fn judge(&mut self, stored: StoredRecord, out: &mut Vec<Entry>) -> Result<()> {
        let offset = stored.offset;
        self.judge_at(stored, out).at(|| format!("queue offset {offset}"))
    }

    fn judge_at(&mut self, stored: StoredRecord, out: &mut Vec<Entry>) -> Result<()> {
        let StoredRecord { offset, bytes } = stored;
        let stored_bytes = bytes.len();
        let (header, payload) = decode_frame(bytes)?;
        if self.is_lost_beginning(&header) {
            return Ok(());
        }
        self.check_stream(&header)?;
        if header.kind != RecordKind::Fence && !self.is_valid(&header)? {
            return Ok(()); // void: what it says inside does not matter
        }
        let record = Record::from_frame(header, payload)?;
        let base_offset = match &record.body {
            Body::Fence(fence) => {
                if !self.take_fence(fence, out) {
                    return Ok(());
                }
                self.base.map_or(offset, |(_, at)| at)
            }
            body => {
                self.check_number(&header)?;
                self.note_part(&header, body)?;
                self.note_base(&header, offset)?
            }
        };
        out.push(Entry::Record(LogRecord { offset, base_offset, record, stored_bytes }));
        Ok(())
    }

    /// Two writers that find an empty stream begin it under two identities. The first fence decides; the other one is void, also with a higher epoch (its
    /// writer saw the hint of the first before the first's fence), and its writer takes over the identity that it reads before it. A stream made anew is
    /// told by its next record.
    fn is_lost_beginning(&self, header: &RecordHeader) -> bool {
        self.stream.is_some_and(|stream| stream != header.stream) && header.kind == RecordKind::Fence
    }

    fn check_stream(&mut self, header: &RecordHeader) -> Result<()> {
        let stream = *self.stream.get_or_insert(header.stream);
        if stream == header.stream {
            return Ok(());
        }
        Err(Error::halt(HaltCode::QueueLost, format!("a record of another stream ({}, not {stream}) is there", header.stream)))
    }

    fn is_valid(&mut self, header: &RecordHeader) -> Result<bool> {
        let writer = (header.epoch, header.nonce);
        match *self.in_force.get_or_insert(writer) {
            fence if fence == writer => Ok(true),
            (epoch, _) if header.epoch > epoch => Err(gap(format!(
                "record {} of epoch {} stands behind epoch {epoch} without a fence between",
                header.number, header.epoch
            ))),
            _ => Ok(false),
        }
    }

    /// True when the fence is in force from here on.
    fn take_fence(&mut self, fence: &Fence, out: &mut Vec<Entry>) -> bool {
        if self.in_force.is_some_and(|(epoch, _)| fence.epoch <= epoch) {
            return false;
        }
        self.in_force = Some((fence.epoch, fence.nonce));
        self.row.clear();
        if let Some(open) = self.open.take() {
            self.expected = Some(open.first);
            out.push(Entry::PartsVoided);
        }
        true
    }

    fn check_number(&mut self, header: &RecordHeader) -> Result<()> {
        if let Some(expected) = self.expected.filter(|e| *e != header.number) {
            return Err(gap(format!("record {} where {expected} should be", header.number)));
        }
        self.expected = Some(header.number.next());
        Ok(())
    }

    /// The parts of a transaction stand side by side, each once. A reader never begins between them: it begins at a base.
    fn note_part(&mut self, header: &RecordHeader, body: &Body) -> Result<()> {
        let malformed = |what: String| Err(Error::new(ErrorKind::Malformed, format!("record {}: {what}", header.number)));
        let Body::Part(part) = body else {
            return match self.open {
                Some(open) => {
                    malformed(format!("it stands between the parts of the transaction that begins at record {}", open.first))
                }
                None => Ok(()),
            };
        };
        let fits = self.open.map_or(part.index == 0, |open| {
            (open.next_index, open.xid, open.position) == (part.index, part.header.xid, part.header.position)
        });
        if !fits {
            return malformed(format!("part {} of transaction {} stands where it does not belong", part.index, part.header.xid));
        }
        self.open = if part.last { None } else { Some(self.open_with(header.number, part)?) };
        Ok(())
    }

    fn open_with(&self, number: RecordNumber, part: &Part) -> Result<OpenParts> {
        let next_index = part.index.checked_add(1);
        let next_index = next_index.ok_or_else(|| Error::new(ErrorKind::Malformed, "a transaction of more than 2^32 parts"))?;
        let first = self.open.map_or(number, |open| open.first);
        Ok(OpenParts { first, next_index, xid: part.header.xid, position: part.header.position })
    }

    /// Where the record's base lies. A new one is among the row before it; where there is no row, the record is its own.
    fn note_base(&mut self, header: &RecordHeader, offset: QueueOffset) -> Result<QueueOffset> {
        let in_row =
            matches!(header.kind, RecordKind::Genesis | RecordKind::SlotStart | RecordKind::History | RecordKind::Schema);
        if in_row || self.row.is_empty() {
            self.row.push((header.number, offset));
        }
        let known = self.base.filter(|(number, _)| *number == header.base);
        let named = || {
            let may_name = !in_row || self.base.is_none();
            let found = self.row.iter().copied().find(|(number, _)| *number == header.base);
            found.filter(|_| may_name && header.kind != RecordKind::Part)
        };
        // The reader began here: the base that the row's records name lies further back and is not needed.
        let began = || self.base.is_none().then_some((header.base, offset));
        let Some(base) = known.or_else(named).or_else(began) else {
            return Err(gap(format!("record {} names base {}, which no row before it begins with", header.number, header.base)));
        };
        self.base = Some(base);
        if !in_row {
            self.row.clear();
        }
        Ok(base.1)
    }
}

fn gap(message: String) -> Error {
    Error::halt(HaltCode::QueueGap, message)
}
