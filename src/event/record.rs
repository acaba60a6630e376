//! The frame of a record: a fixed header, a payload, a checksum over both. `docs/record-format.md` is the reference.

use bytes::{BufMut, Bytes, BytesMut};

use super::body::Body;
use super::position::{Epoch, Nonce, RecordNumber, StreamId};
use super::wire::Input;
use crate::error::{Error, ErrorKind, Result};

/// First two bytes of every record.
pub const MAGIC: [u8; 2] = *b"MS";
/// Version of the record format that this code writes. A reader refuses a higher one.
pub const FORMAT_VERSION: u8 = 1;
/// Bytes of the header that this code writes, checksum included.
pub const HEADER_BYTES: usize = 80;

/// What a record's payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RecordKind {
    /// [`super::Fence`]
    Fence = 1,
    /// [`super::Genesis`]
    Genesis = 2,
    /// [`super::SlotStart`]
    SlotStart = 3,
    /// [`super::History`]
    History = 4,
    /// [`super::TableSchema`]
    Schema = 5,
    /// [`super::TransactionBatch`]
    Transactions = 6,
    /// [`super::Part`]
    Part = 7,
    /// [`super::Progress`]
    Progress = 8,
    /// [`super::Message`]
    Message = 9,
}

impl RecordKind {
    fn from_wire(kind: u8) -> Option<Self> {
        use RecordKind::{Fence, Genesis, History, Message, Part, Progress, Schema, SlotStart, Transactions};
        [Fence, Genesis, SlotStart, History, Schema, Transactions, Part, Progress, Message].into_iter().find(|k| *k as u8 == kind)
    }
}

/// What every record says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// What the payload is.
    pub kind: RecordKind,
    /// The stream it belongs to.
    pub stream: StreamId,
    /// Its number; 0 for a fence.
    pub number: RecordNumber,
    /// Its writer's epoch.
    pub epoch: Epoch,
    /// Its writer's nonce.
    pub nonce: Nonce,
    /// Reading from this record number yields every schema that this record may refer to. 0 for a fence.
    pub base: RecordNumber,
    /// Bytes of all valid records of the stream before this one: two records' difference is the backlog between them.
    pub bytes_before: u64,
    /// Changes in all valid records before this one.
    pub changes_before: u64,
    /// The writer's clock when it wrote this, microseconds since 1970-01-01 UTC. For searching by time; decides nothing.
    pub written_at_us: i64,
}

/// A record: header and payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What it says of itself.
    pub header: RecordHeader,
    /// What it carries.
    pub body: Body,
}

impl Record {
    /// The record's bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut payload = BytesMut::new();
        self.body.encode(&mut payload);
        encode_frame(&self.header, &payload)
    }

    /// Reads a record.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when the checksum does not hold, [`ErrorKind::TooNew`] for a format, kind or flag of a later
    /// version, [`ErrorKind::Malformed`] when it holds and the content makes no sense.
    pub fn decode(bytes: Bytes) -> Result<Self> {
        let (header, payload) = decode_frame(bytes)?;
        Self::from_frame(header, payload)
    }

    /// Reads the payload behind a header that [`decode_frame`] gave.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`].
    pub fn from_frame(header: RecordHeader, payload: Bytes) -> Result<Self> {
        let body = Body::decode(header.kind, payload).map_err(|e| e.context(format!("record {}", header.number)))?;
        let sensible = match &body {
            Body::Fence(fence) => {
                header.number.0 == 0 && header.base.0 == 0 && (fence.epoch, fence.nonce) == (header.epoch, header.nonce)
            }
            _ => header.base.0 >= 1 && header.base <= header.number,
        };
        if sensible {
            return Ok(Self { header, body });
        }
        let message = format!("record {}: a {:?} whose number, base, epoch or nonce cannot be", header.number, header.kind);
        Err(Error::new(ErrorKind::Malformed, message))
    }
}

/// Writes header, payload and checksum as one record.
#[must_use]
pub fn encode_frame(header: &RecordHeader, payload: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(HEADER_BYTES + payload.len());
    out.put_slice(&MAGIC);
    out.put_u8(FORMAT_VERSION);
    out.put_u8(header.kind as u8);
    out.put_u16_le(0); // flags: none is defined
    out.put_u16_le(HEADER_BYTES as u16);
    out.put_u64_le(header.stream.0);
    out.put_u64_le(header.number.0);
    out.put_u64_le(header.epoch.0);
    out.put_u64_le(header.nonce.0);
    out.put_u64_le(header.base.0);
    out.put_u64_le(header.bytes_before);
    out.put_u64_le(header.changes_before);
    out.put_i64_le(header.written_at_us);
    out.put_u32_le(payload.len() as u32);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&out), payload);
    out.put_u32_le(crc);
    out.put_slice(payload);
    out.freeze()
}

/// Checks a record's frame and gives header and payload.
///
/// # Errors
/// As [`Record::decode`].
pub fn decode_frame(bytes: Bytes) -> Result<(RecordHeader, Bytes)> {
    let total = bytes.len();
    let corrupt = |what: &str| Error::new(ErrorKind::Corrupt, format!("{what} (a record of {total} bytes)"));
    if total < HEADER_BYTES || bytes[..2] != MAGIC {
        return Err(corrupt("not a Millstream record"));
    }
    let (version, kind) = (bytes[2], bytes[3]);
    let flags = u16::from_le_bytes([bytes[4], bytes[5]]);
    let header_bytes = usize::from(u16::from_le_bytes([bytes[6], bytes[7]]));
    if header_bytes < HEADER_BYTES || header_bytes > total {
        return Err(corrupt("a header of impossible length"));
    }
    // The checksum is the header's last four bytes; a longer header keeps that, and what this one has, in its place.
    let crc_at = header_bytes - 4;
    let stored = u32::from_le_bytes([bytes[crc_at], bytes[crc_at + 1], bytes[crc_at + 2], bytes[crc_at + 3]]);
    let computed = crc32c::crc32c_append(crc32c::crc32c(&bytes[..crc_at]), &bytes[header_bytes..]);
    if stored != computed {
        return Err(corrupt("checksum mismatch"));
    }
    // Magic, version, header length and checksum stay where they are in every version: a flipped bit is never taken for a newer one.
    if version > FORMAT_VERSION {
        return Err(Error::new(
            ErrorKind::TooNew,
            format!("record format {version}; this Millstream reads up to {FORMAT_VERSION}"),
        ));
    }
    if version == 0 {
        return Err(Error::new(ErrorKind::Malformed, "record format 0"));
    }
    let kind = RecordKind::from_wire(kind)
        .ok_or_else(|| Error::new(ErrorKind::TooNew, format!("record kind {kind} is unknown to this Millstream")))?;
    if flags != 0 {
        return Err(Error::new(ErrorKind::TooNew, format!("record flags {flags:#06x} are unknown to this Millstream")));
    }
    let mut input = Input::new(bytes.slice(8..crc_at));
    let header = RecordHeader {
        kind,
        stream: StreamId(input.u64()?),
        number: RecordNumber(input.u64()?),
        epoch: Epoch(input.u64()?),
        nonce: Nonce(input.u64()?),
        base: RecordNumber(input.u64()?),
        bytes_before: input.u64()?,
        changes_before: input.u64()?,
        written_at_us: input.i64()?,
    };
    if input.u32()? as usize != total - header_bytes {
        return Err(corrupt("a payload of another length than the header says"));
    }
    Ok((header, bytes.slice(header_bytes..)))
}
