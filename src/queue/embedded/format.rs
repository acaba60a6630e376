//! The bytes of a segment: its header, batch marks, frames. All numbers little-endian, all checksums CRC-32C.

use crate::error::{Error, ErrorKind, Result};

/// First bytes of a segment.
const SEGMENT_MAGIC: [u8; 8] = *b"MILLSEG\n";
/// Version of the segment format that this code writes.
const SEGMENT_VERSION: u16 = 1;
/// Bytes of a segment's header.
pub(super) const SEGMENT_HEADER: u64 = 48;
/// First bytes of a batch mark.
pub(super) const MARK_MAGIC: [u8; 4] = *b"MSBM";
/// Bytes of a batch mark.
pub(super) const MARK: u64 = 32;
/// Bytes before a record in its frame.
pub(super) const FRAME_HEADER: u64 = 16;
/// No frame is larger than this, whatever a file says.
pub(super) const MAX_FRAME: u64 = 64 << 20;

/// What a segment says of itself: magic 8, version u16, header bytes u16, zero u32, folder id u64, first offset u64, made
/// at u64 (microseconds), zero u32, checksum of the bytes before it u32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    /// Random, drawn when the stream's folder was made.
    pub(super) folder: u64,
    /// Offset of its first record.
    pub(super) first: u64,
}

impl SegmentHeader {
    pub(super) fn encode(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SEGMENT_HEADER as usize);
        out.extend_from_slice(&SEGMENT_MAGIC);
        out.extend_from_slice(&SEGMENT_VERSION.to_le_bytes());
        out.extend_from_slice(&(SEGMENT_HEADER as u16).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.folder.to_le_bytes());
        out.extend_from_slice(&self.first.to_le_bytes());
        out.extend_from_slice(&jiff::Timestamp::now().as_microsecond().to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&crc32c::crc32c(&out).to_le_bytes());
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self> {
        let corrupt = |what: &str| Error::new(ErrorKind::Corrupt, format!("a segment's header {what}"));
        if bytes.len() < SEGMENT_HEADER as usize || bytes[..8] != SEGMENT_MAGIC {
            return Err(corrupt("is cut or not one"));
        }
        let version = u16::from_le_bytes([bytes[8], bytes[9]]);
        if version > SEGMENT_VERSION {
            let message = format!("segment format {version}; this Millstream reads up to {SEGMENT_VERSION}");
            return Err(Error::new(ErrorKind::TooNew, message));
        }
        let crc_at = SEGMENT_HEADER as usize - 4;
        if crc32c::crc32c(&bytes[..crc_at]) != u32_at(bytes, crc_at) {
            return Err(corrupt("does not match its checksum"));
        }
        Ok(Self { folder: u64_at(bytes, 16), first: u64_at(bytes, 24) })
    }
}

/// Stands before each batch, and (with no records) behind the last one. It is written only when everything before it is
/// durable, so it says so. Magic 4, records u32, its own place in the file u64, offset of its first record u64, bytes of the
/// frames behind it u32, checksum u32 over the folder's id and the bytes before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// Where in the file it stands.
    pub(super) at: u64,
    /// Offset of the first record behind it.
    pub(super) first: u64,
    /// Records of the batch; none in a seal.
    pub(super) records: u32,
    /// Bytes of the batch's frames.
    pub(super) bytes: u32,
}

impl Mark {
    pub(super) fn encode(self, folder: u64) -> [u8; MARK as usize] {
        let mut out = [0; MARK as usize];
        out[..4].copy_from_slice(&MARK_MAGIC);
        out[4..8].copy_from_slice(&self.records.to_le_bytes());
        out[8..16].copy_from_slice(&self.at.to_le_bytes());
        out[16..24].copy_from_slice(&self.first.to_le_bytes());
        out[24..28].copy_from_slice(&self.bytes.to_le_bytes());
        let crc = Self::checksum(folder, &out[..28]);
        out[28..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// The mark at a place of a file; `None` when none is there.
    pub(super) fn decode(bytes: &[u8], folder: u64, at: u64) -> Option<Self> {
        if bytes.len() < MARK as usize || bytes[..4] != MARK_MAGIC {
            return None;
        }
        let mark = Self { at: u64_at(bytes, 8), first: u64_at(bytes, 16), records: u32_at(bytes, 4), bytes: u32_at(bytes, 24) };
        let sound = u32_at(bytes, 28) == Self::checksum(folder, &bytes[..28]);
        let sensible = (mark.records == 0) == (mark.bytes == 0) && mark.at == at;
        (sound && sensible).then_some(mark)
    }

    fn checksum(folder: u64, bytes: &[u8]) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c(&folder.to_le_bytes()), bytes)
    }

    /// True when it only says that everything before it is durable.
    pub(super) fn is_seal(self) -> bool {
        self.records == 0
    }

    /// Where the first frame begins.
    pub(super) fn body(self) -> u64 {
        self.at + MARK
    }

    /// Where the next mark belongs: behind the batch. A seal is overwritten by the next mark.
    pub(super) fn next(self) -> u64 {
        if self.is_seal() { self.at } else { self.body() + u64::from(self.bytes) }
    }

    /// Offset behind its last record.
    pub(super) fn end(self) -> u64 {
        self.first + u64::from(self.records)
    }
}

/// Appends a record's frame: length u32, checksum u32 over length, offset and record, offset u64, the record.
pub(super) fn put_frame(out: &mut Vec<u8>, offset: u64, record: &[u8]) {
    let length = (record.len() as u32).to_le_bytes();
    out.extend_from_slice(&length);
    out.extend_from_slice(&frame_checksum(&length, &offset.to_le_bytes(), record).to_le_bytes());
    out.extend_from_slice(&offset.to_le_bytes());
    out.extend_from_slice(record);
}

/// The record's length, when the frame's first bytes make sense at this place.
pub(super) fn frame_length(header: &[u8], offset: u64, room: u64) -> Option<u64> {
    let length = u64::from(u32_at(header, 0));
    (u64_at(header, 8) == offset && length <= MAX_FRAME && FRAME_HEADER + length <= room).then_some(length)
}

/// True when a whole frame matches its checksum.
pub(super) fn frame_sound(frame: &[u8]) -> bool {
    u32_at(frame, 4) == frame_checksum(&frame[..4], &frame[8..16], &frame[16..])
}

fn frame_checksum(length: &[u8], offset: &[u8], record: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(length), offset), record)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut raw = [0; 4];
    raw.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(raw)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut raw = [0; 8];
    raw.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(raw)
}

/// A segment's file name.
pub(super) fn segment_name(first: u64) -> String {
    format!("{first:020}.seg")
}

/// The first offset in a segment's file name.
pub(super) fn parse_segment_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".seg")?;
    (digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?
}
