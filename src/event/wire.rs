//! The record format's primitives: little-endian integers, varints, length-prefixed bytes; reading is bounds-checked and
//! never allocates by a length it has not seen the bytes of.

use bytes::{BufMut, Bytes, BytesMut};

use super::Position;
use super::position::Lsn;
use crate::error::{Error, ErrorKind, Result};

/// Bytes being read, with the place for errors.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    whole: Bytes,
    at: usize,
}

impl Input {
    pub(crate) fn new(bytes: Bytes) -> Self {
        Self { whole: bytes, at: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.at == self.whole.len()
    }

    pub(crate) fn remaining(&self) -> usize {
        self.whole.len() - self.at
    }

    pub(crate) fn malformed(&self, what: &str) -> Error {
        Error::new(ErrorKind::Malformed, format!("{what} at byte {} of {}", self.at, self.whole.len()))
    }

    /// For a kind, tag or flag that a later version may have brought.
    pub(crate) fn unknown(&self, what: &str) -> Error {
        let place = format!("at byte {} of {}", self.at, self.whole.len());
        Error::new(ErrorKind::TooNew, format!("{what} {place} is unknown to this Millstream"))
    }

    fn take(&mut self, length: u64, what: &str) -> Result<&[u8]> {
        let length = usize::try_from(length).ok().filter(|&n| n <= self.remaining()).ok_or_else(|| self.malformed(what))?;
        let start = self.at;
        self.at += length;
        Ok(&self.whole[start..self.at])
    }

    pub(crate) fn skip(&mut self, length: u64) -> Result<()> {
        self.take(length, "a value that is cut short").map(drop)
    }

    /// The bytes between this and a later state of the same input, shared.
    pub(crate) fn slice_to(&self, end: &Self) -> Bytes {
        self.whole.slice(self.at..end.at)
    }

    pub(crate) fn bytes(&mut self, length: u64) -> Result<Bytes> {
        let start = self.clone();
        self.skip(length)?;
        Ok(start.slice_to(self))
    }

    pub(crate) fn rest(&mut self) -> Bytes {
        let rest = self.whole.slice(self.at..);
        self.at = self.whole.len();
        rest
    }

    pub(crate) fn u8(&mut self) -> Result<u8> {
        Ok(self.take(1, "a missing byte")?[0])
    }

    pub(crate) fn u32(&mut self) -> Result<u32> {
        let mut raw = [0; 4];
        raw.copy_from_slice(self.take(4, "a cut 32-bit number")?);
        Ok(u32::from_le_bytes(raw))
    }

    pub(crate) fn u64(&mut self) -> Result<u64> {
        let mut raw = [0; 8];
        raw.copy_from_slice(self.take(8, "a cut 64-bit number")?);
        Ok(u64::from_le_bytes(raw))
    }

    pub(crate) fn i64(&mut self) -> Result<i64> {
        self.u64().map(u64::cast_signed)
    }

    pub(crate) fn varint(&mut self) -> Result<u64> {
        let (value, used) = split_varint(&self.whole[self.at..]).ok_or_else(|| self.malformed("a malformed varint"))?;
        self.at += used;
        Ok(value)
    }

    pub(crate) fn text(&mut self) -> Result<String> {
        let length = self.varint()?;
        let raw = self.bytes(length)?;
        String::from_utf8(raw.to_vec()).map_err(|_| self.malformed("text that is not UTF-8"))
    }

    pub(crate) fn position_value(&mut self) -> Result<Position> {
        match self.u8()? {
            1 => Ok(Position::Lsn(Lsn(self.u64()?))),
            tag => Err(self.unknown(&format!("a position of kind {tag}"))),
        }
    }
}

/// Reads a varint (LEB128, at most 10 bytes): value and bytes used. `None` when cut short or too large.
pub(crate) fn split_varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0_u64;
    for (index, &byte) in bytes.iter().take(10).enumerate() {
        let part = u64::from(byte & 0x7F);
        if index == 9 && part > 1 {
            return None;
        }
        value |= part << (7 * index);
        if byte & 0x80 == 0 {
            return Some((value, index + 1));
        }
    }
    None
}

pub(crate) fn put_varint(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8((value & 0x7F) as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

pub(crate) fn put_text(out: &mut BytesMut, text: &str) {
    put_varint(out, text.len() as u64);
    out.put_slice(text.as_bytes());
}

pub(crate) fn put_position(out: &mut BytesMut, position: Position) {
    match position {
        Position::Lsn(lsn) => {
            out.put_u8(1);
            out.put_u64_le(lsn.0);
        }
    }
}
