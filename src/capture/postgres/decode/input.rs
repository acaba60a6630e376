//! Reading numbers and texts of a message, bounds-checked, without allocation.

use super::unix_time_us;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Lsn;

/// Bytes being read, with the place for errors.
pub(super) struct Input<'a> {
    rest: &'a [u8],
    whole: usize,
}

impl<'a> Input<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, whole: bytes.len() }
    }

    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    #[cold]
    pub(super) fn malformed(&self, what: &str) -> Error {
        let at = self.whole - self.rest.len();
        Error::new(ErrorKind::Malformed, format!("pgoutput: {what} at byte {at} of {}", self.whole))
    }

    #[inline]
    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let Some((taken, rest)) = self.rest.split_at_checked(count) else {
            return Err(self.malformed(&format!("{count} bytes announced and not there")));
        };
        self.rest = rest;
        Ok(taken)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let Some((taken, rest)) = self.rest.split_first_chunk() else {
            return Err(self.malformed(&format!("a number of {N} bytes is cut")));
        };
        self.rest = rest;
        Ok(*taken)
    }

    #[inline]
    pub(super) fn u8(&mut self) -> Result<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    #[inline]
    pub(super) fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_be_bytes)
    }

    #[inline]
    pub(super) fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn lsn(&mut self) -> Result<Lsn> {
        self.array().map(u64::from_be_bytes).map(Lsn)
    }

    pub(super) fn time(&mut self) -> Result<i64> {
        self.array().map(i64::from_be_bytes).map(unix_time_us)
    }

    pub(super) fn flag(&mut self) -> Result<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.malformed(&format!("a flag of {other}"))),
        }
    }

    pub(super) fn text(&mut self) -> Result<&'a str> {
        let Some(end) = self.rest.iter().position(|&byte| byte == 0) else {
            return Err(self.malformed("a text without its end"));
        };
        let text = std::str::from_utf8(&self.rest[..end]).map_err(|_| self.malformed("a text that is not UTF-8"))?;
        self.rest = &self.rest[end + 1..];
        Ok(text)
    }
}
