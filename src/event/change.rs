//! Changes and transactions, and their encoding inside records.
//!
//! A transaction's changes are one byte stream: each change is a varint length and that many bytes. A small transaction
//! stands whole in a batch record; a large one's stream is cut into part records at any byte, so that a value larger than
//! a record fits, and [`ChangeReader`] puts it together again holding no more than one change.

use bytes::{BufMut, Bytes, BytesMut};

use super::position::{Lsn, Position, Xid};
use super::schema::SchemaId;
use super::value::Row;
use super::wire::{self, Input};
use crate::error::{Error, ErrorKind, Result};

/// A change larger than this is malformed: PostgreSQL's rows end at 1.6 TB on paper and at 1 GiB a value in practice; two whole images fit.
const MAX_CHANGE_BYTES: u64 = 4 << 30;

/// The old image of an update or delete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OldImage {
    /// Only identity columns carry values; the others are NULL and mean nothing.
    Key(Row),
    /// The whole row (REPLICA IDENTITY FULL).
    Full(Row),
}

impl OldImage {
    /// The row, whatever it holds.
    #[must_use]
    pub fn row(&self) -> &Row {
        match self {
            Self::Key(row) | Self::Full(row) => row,
        }
    }
}

/// One change of a transaction, in the order in which it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A row came.
    Insert {
        /// Its table.
        table: SchemaId,
        /// The row.
        new: Row,
    },
    /// A row changed. Without an old image its key did not.
    Update {
        /// Its table.
        table: SchemaId,
        /// What it was, when the source says: the key when it changed, or everything.
        old: Option<OldImage>,
        /// What it is; cells may be unchanged.
        new: Row,
    },
    /// A row went.
    Delete {
        /// Its table.
        table: SchemaId,
        /// What it was.
        old: OldImage,
    },
    /// Tables were emptied together.
    Truncate {
        /// The tables.
        tables: Vec<SchemaId>,
        /// The statement said CASCADE (the tables it reached are listed as well).
        cascade: bool,
        /// The statement said RESTART IDENTITY.
        restart_identity: bool,
    },
    /// A transactional logical message of an application.
    Message {
        /// Who it is for.
        prefix: String,
        /// What it says.
        content: Bytes,
    },
    /// The source's own word on a change of its schema, at its place among the rows.
    Schema {
        /// JSON: kind, relation, tag, before, after, note (`docs/record-format.md`, "Schema change").
        content: Bytes,
    },
}

pub(super) const INSERT: u8 = 1;
pub(super) const UPDATE: u8 = 2;
pub(super) const DELETE: u8 = 3;
pub(super) const TRUNCATE: u8 = 4;
pub(super) const MESSAGE: u8 = 5;
pub(super) const SCHEMA: u8 = 6;
pub(super) const OLD_NONE: u8 = 0;
pub(super) const OLD_KEY: u8 = 1;
pub(super) const OLD_FULL: u8 = 2;

impl Change {
    fn decode(bytes: Bytes) -> Result<Self> {
        let mut input = Input::new(bytes);
        let change = match input.u8()? {
            INSERT => Self::Insert { table: schema_id(&mut input)?, new: Row::decode(&mut input)? },
            UPDATE => {
                let table = schema_id(&mut input)?;
                Self::Update { table, old: old_image(&mut input)?, new: Row::decode(&mut input)? }
            }
            DELETE => {
                let table = schema_id(&mut input)?;
                let old = old_image(&mut input)?.ok_or_else(|| input.malformed("a delete without an old image"))?;
                Self::Delete { table, old }
            }
            TRUNCATE => truncate(&mut input)?,
            MESSAGE => Self::Message { prefix: input.text()?, content: input.rest() },
            SCHEMA => Self::Schema { content: input.rest() },
            kind => return Err(input.unknown(&format!("a change of kind {kind}"))),
        };
        if input.is_empty() { Ok(change) } else { Err(input.malformed("bytes behind the end of a change")) }
    }

    fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Insert { table, new } => {
                out.put_u8(INSERT);
                wire::put_varint(out, u64::from(table.0));
                new.encode(out);
            }
            Self::Update { table, old, new } => {
                out.put_u8(UPDATE);
                wire::put_varint(out, u64::from(table.0));
                put_old(out, old.as_ref());
                new.encode(out);
            }
            Self::Delete { table, old } => {
                out.put_u8(DELETE);
                wire::put_varint(out, u64::from(table.0));
                put_old(out, Some(old));
            }
            Self::Truncate { tables, cascade, restart_identity } => {
                out.put_u8(TRUNCATE);
                out.put_u8(u8::from(*cascade) | u8::from(*restart_identity) << 1);
                wire::put_varint(out, tables.len() as u64);
                tables.iter().for_each(|table| wire::put_varint(out, u64::from(table.0)));
            }
            Self::Message { prefix, content } => {
                out.put_u8(MESSAGE);
                wire::put_text(out, prefix);
                out.put_slice(content);
            }
            Self::Schema { content } => {
                out.put_u8(SCHEMA);
                out.put_slice(content);
            }
        }
    }
}

fn schema_id(input: &mut Input) -> Result<SchemaId> {
    u32::try_from(input.varint()?).map(SchemaId).map_err(|_| input.malformed("a schema id beyond 32 bits"))
}

fn old_image(input: &mut Input) -> Result<Option<OldImage>> {
    match input.u8()? {
        OLD_NONE => Ok(None),
        OLD_KEY => Row::decode(input).map(|row| Some(OldImage::Key(row))),
        OLD_FULL => Row::decode(input).map(|row| Some(OldImage::Full(row))),
        kind => Err(input.unknown(&format!("an old image of kind {kind}"))),
    }
}

fn put_old(out: &mut BytesMut, old: Option<&OldImage>) {
    match old {
        None => out.put_u8(OLD_NONE),
        Some(OldImage::Key(row)) => {
            out.put_u8(OLD_KEY);
            row.encode(out);
        }
        Some(OldImage::Full(row)) => {
            out.put_u8(OLD_FULL);
            row.encode(out);
        }
    }
}

fn truncate(input: &mut Input) -> Result<Change> {
    let flags = input.u8()?;
    if flags > 3 {
        return Err(input.unknown(&format!("a truncate with flags {flags:#04x}")));
    }
    let count = input.varint()?;
    let mut tables = Vec::new();
    for _ in 0..count {
        tables.push(schema_id(input)?);
    }
    Ok(Change::Truncate { tables, cascade: flags & 1 != 0, restart_identity: flags & 2 != 0 })
}

/// Appends one change to a transaction's change stream: varint length, then the change.
pub fn write_change(change: &Change, out: &mut BytesMut, scratch: &mut BytesMut) {
    scratch.clear();
    change.encode(scratch);
    wire::put_varint(out, scratch.len() as u64);
    out.put_slice(scratch);
}

/// What a transaction is, apart from its changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransactionHeader {
    /// Top-level transaction id.
    pub xid: Xid,
    /// End of the commit record: the position after this transaction.
    pub position: Position,
    /// Start of the commit record.
    pub commit_lsn: Lsn,
    /// Commit time at the source, microseconds since 1970-01-01 UTC.
    pub commit_time_us: i64,
    /// Name of the replication origin that the transaction was applied under, if any.
    pub origin: Option<String>,
}

impl TransactionHeader {
    pub(super) fn encode(&self, out: &mut BytesMut) {
        wire::put_varint(out, self.xid.0);
        wire::put_position(out, self.position);
        out.put_u64_le(self.commit_lsn.0);
        out.put_i64_le(self.commit_time_us);
        wire::put_text(out, self.origin.as_deref().unwrap_or_default());
    }

    pub(super) fn decode(input: &mut Input) -> Result<Self> {
        Ok(Self {
            xid: Xid(input.varint()?),
            position: input.position_value()?,
            commit_lsn: Lsn(input.u64()?),
            commit_time_us: input.i64()?,
            origin: Some(input.text()?).filter(|name| !name.is_empty()),
        })
    }
}

/// A whole transaction, its changes still encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// Who and when.
    pub header: TransactionHeader,
    /// Number of changes.
    pub change_count: u64,
    /// The change stream.
    pub changes: Bytes,
}

impl Transaction {
    /// The changes, decoded one by one.
    pub fn changes(&self) -> impl Iterator<Item = Result<Change>> + use<> {
        let mut reader = ChangeReader::default();
        reader.push(self.changes.clone());
        let mut failed = false;
        std::iter::from_fn(move || {
            if failed {
                return None;
            }
            let item = match reader.next_change() {
                Ok(Some(change)) => Some(Ok(change)),
                Ok(None) => reader.finish().err().map(Err),
                Err(error) => Some(Err(error)),
            };
            failed = matches!(item, Some(Err(_)) | None);
            item
        })
    }

    pub(super) fn decode(input: &mut Input) -> Result<Self> {
        let header = TransactionHeader::decode(input)?;
        let change_count = input.varint()?;
        let length = input.varint()?;
        Ok(Self { header, change_count, changes: input.bytes(length)? })
    }
}

/// Appends a whole transaction to a batch payload.
pub fn write_transaction(header: &TransactionHeader, change_count: u64, changes: &[u8], out: &mut BytesMut) {
    header.encode(out);
    wire::put_varint(out, change_count);
    wire::put_varint(out, changes.len() as u64);
    out.put_slice(changes);
}

/// Reads changes from a change stream that arrives in pieces cut at any byte. Holds at most one incomplete change.
#[derive(Debug, Default)]
pub struct ChangeReader {
    piece: Bytes,
    carry: BytesMut,
}

impl ChangeReader {
    /// The next piece of the stream. Every change that was complete must have been taken.
    pub fn push(&mut self, piece: Bytes) {
        if self.piece.is_empty() && self.carry.is_empty() {
            self.piece = piece;
        } else {
            self.carry.extend_from_slice(&std::mem::take(&mut self.piece));
            self.carry.extend_from_slice(&piece);
        }
    }

    /// The next complete change; `None` when another piece is needed, or at the end.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`], [`ErrorKind::TooNew`]: the stream cannot be read on.
    pub fn next_change(&mut self) -> Result<Option<Change>> {
        if !self.carry.is_empty() {
            match complete(&self.carry)? {
                None => return Ok(None),
                Some((skip, length)) => {
                    let mut frame = self.carry.split_to(skip + length);
                    if self.piece.is_empty() {
                        self.piece = std::mem::take(&mut self.carry).freeze();
                    }
                    return Change::decode(frame.split_off(skip).freeze()).map(Some);
                }
            }
        }
        match complete(&self.piece)? {
            None => Ok(None),
            Some((skip, length)) => {
                let mut frame = self.piece.split_to(skip + length);
                Change::decode(frame.split_off(skip)).map(Some)
            }
        }
    }

    /// Bytes held of a change that is not complete yet.
    #[must_use]
    pub fn pending_bytes(&self) -> usize {
        self.piece.len() + self.carry.len()
    }

    /// Says that the stream has ended.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`] when it ended inside a change.
    pub fn finish(&self) -> Result<()> {
        match self.pending_bytes() {
            0 => Ok(()),
            n => Err(Error::new(ErrorKind::Malformed, format!("a transaction ends inside a change, {n} bytes in"))),
        }
    }
}

/// Bytes of the length prefix and of the change, when both are there.
fn complete(bytes: &[u8]) -> Result<Option<(usize, usize)>> {
    let Some((length, skip)) = wire::split_varint(bytes) else {
        let cut = bytes.len() < 10;
        return if cut { Ok(None) } else { Err(Error::new(ErrorKind::Malformed, "a change with a malformed length")) };
    };
    if length == 0 || length > MAX_CHANGE_BYTES {
        return Err(Error::new(ErrorKind::Malformed, format!("a change of {length} bytes")));
    }
    let length = usize::try_from(length).map_err(|_| Error::new(ErrorKind::Malformed, "a change beyond memory"))?;
    Ok((bytes.len() - skip >= length).then_some((skip, length)))
}
