//! Frames of the frontend/backend protocol: one byte of tag, a 32-bit length that counts itself, the payload.
//!
//! Source of every format: PostgreSQL documentation, "Message Formats". `postgres-protocol` makes what we send; what we receive is split here, since it
//! knows neither `CopyBothResponse` nor a limit on lengths, and copies where the stream need not.

use bytes::{Buf, Bytes, BytesMut};

use crate::error::{Error, ErrorKind, Result};

/// A server allocates no message beyond 1 GiB (`MaxAllocSize`); a longer one is not PostgreSQL's.
pub const MAX_FRAME_BYTES: usize = 1 << 30;
/// Nothing that comes before authentication is longer; what claims to be is another protocol.
pub const MAX_STARTUP_FRAME_BYTES: usize = 64 << 10;

/// One message of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Which message.
    pub tag: u8,
    /// What follows tag and length, shared with the read buffer.
    pub payload: Bytes,
}

impl Frame {
    /// Splits the next whole frame off a read buffer; `None` when more bytes are needed. Never allocates by a length.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`] for a length that cannot be.
    pub fn split(buffer: &mut BytesMut, max_bytes: usize) -> Result<Option<Self>> {
        let Some(&[tag, a, b, c, d]) = buffer.first_chunk::<5>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if length < 4 || length > max_bytes {
            return Err(malformed(format!("a message '{}' of {length} bytes", tag.escape_ascii())));
        }
        if buffer.len() < length + 1 {
            return Ok(None);
        }
        let mut payload = buffer.split_to(length + 1).freeze();
        payload.advance(5);
        Ok(Some(Self { tag, payload }))
    }

    /// The error for a message that has no place where it came.
    #[must_use]
    pub fn unexpected(&self, doing: &str) -> Error {
        malformed(format!("a message '{}' while {doing}", self.tag.escape_ascii()))
    }
}

pub(super) fn malformed(what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Malformed, format!("the PostgreSQL server sent {what}"))
}

/// A payload being read.
#[derive(Debug)]
pub struct Payload<'a> {
    rest: &'a [u8],
    whole: usize,
}

impl<'a> Payload<'a> {
    /// From its first byte.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, whole: bytes.len() }
    }

    /// What has not been read.
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// A number of bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`] when they are not there.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or_else(|| self.cut())?;
        self.rest = rest;
        Ok(taken)
    }

    /// Big-endian bytes of a number.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or_else(|| self.cut())?;
        self.rest = rest;
        Ok(*taken)
    }

    /// An `Int8`.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn u8(&mut self) -> Result<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// An `Int16`.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// An `Int32`.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn i32(&mut self) -> Result<i32> {
        self.array().map(i32::from_be_bytes)
    }

    /// A `String`, without its NUL.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn cstr(&mut self) -> Result<&'a [u8]> {
        let end = self.rest.iter().position(|&byte| byte == 0).ok_or_else(|| self.cut())?;
        let text = &self.rest[..end];
        self.rest = &self.rest[end + 1..];
        Ok(text)
    }

    /// A `String` as UTF-8.
    ///
    /// # Errors
    /// As [`Self::take`], and for other bytes.
    pub fn text(&mut self) -> Result<&'a str> {
        std::str::from_utf8(self.cstr()?).map_err(|_| malformed("text that is not UTF-8"))
    }

    fn cut(&self) -> Error {
        malformed(format!("a message that is cut at byte {} of {}", self.whole - self.rest.len(), self.whole))
    }
}

/// Iterates over the fields of `ErrorResponse` and `NoticeResponse`: tag and text.
#[derive(Debug)]
pub struct Fields<'a>(Payload<'a>);

impl<'a> Fields<'a> {
    /// Of such a message's payload.
    #[must_use]
    pub fn new(payload: &'a [u8]) -> Self {
        Self(Payload::new(payload))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u8, &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        let field = match self.0.u8() {
            Ok(0) => {
                self.0.rest = &[];
                return None;
            }
            Ok(tag) => self.0.cstr().map(|text| (tag, text)),
            // The terminating zero has been read, or there was never anything.
            Err(_) => return None,
        };
        if field.is_err() {
            self.0.rest = &[];
        }
        Some(field)
    }
}

/// The names in a `RowDescription`.
///
/// # Errors
/// [`ErrorKind::Malformed`].
pub fn row_description(payload: &[u8]) -> Result<Vec<String>> {
    let mut input = Payload::new(payload);
    let count = input.u16()?;
    let mut names = Vec::new();
    for _ in 0..count {
        names.push(input.text()?.to_owned());
        // table oid, attribute number, type oid, type size, type modifier, format
        input.take(4 + 2 + 4 + 2 + 4 + 2)?;
    }
    Ok(names)
}

/// The cells of a `DataRow`, as text.
///
/// # Errors
/// [`ErrorKind::Malformed`].
pub fn data_row(payload: &[u8]) -> Result<Vec<Option<String>>> {
    let mut input = Payload::new(payload);
    let count = input.u16()?;
    let mut cells = Vec::new();
    for _ in 0..count {
        cells.push(match input.i32()? {
            -1 => None,
            length => {
                let length = usize::try_from(length).map_err(|_| malformed("a value of negative length"))?;
                let text = std::str::from_utf8(input.take(length)?).map_err(|_| malformed("a value that is not UTF-8"))?;
                Some(text.to_owned())
            }
        });
    }
    Ok(cells)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_split_at_any_byte() {
        let bytes = b"Z\0\0\0\x05IC\0\0\0\x08abc\0";
        let mut buffer = BytesMut::new();
        let mut frames = Vec::new();
        for byte in bytes {
            buffer.extend_from_slice(&[*byte]);
            frames.extend(Frame::split(&mut buffer, MAX_FRAME_BYTES).unwrap());
        }
        let expected =
            [Frame { tag: b'Z', payload: Bytes::from_static(b"I") }, Frame { tag: b'C', payload: Bytes::from_static(b"abc\0") }];
        assert_eq!(frames, expected);
        assert!(buffer.is_empty());
    }

    #[test]
    fn impossible_lengths_are_malformed() {
        for bytes in [&b"Z\0\0\0\x03"[..], b"Z\xff\xff\xff\xff", b"HTTP/1.1 400"] {
            let error = Frame::split(&mut BytesMut::from(bytes), MAX_STARTUP_FRAME_BYTES).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Malformed);
        }
    }

    #[test]
    fn rows() {
        assert_eq!(data_row(b"\0\x02\0\0\0\x02ab\xff\xff\xff\xff").unwrap(), [Some("ab".to_owned()), None]);
        assert!(data_row(b"\0\x02\0\0\0\x09ab").is_err());
        assert!(data_row(b"\0\x01\xff\xff\xff\xfe").is_err());
        let described = row_description(b"\0\x01id\0\0\0\0\0\0\0\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0").unwrap();
        assert_eq!(described, ["id"]);
    }
}
