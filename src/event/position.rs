//! Numbers that must not be mixed: positions of the source, record numbers of the log, offsets of the queue, epochs of writers.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind};

/// A PostgreSQL log sequence number: a byte position in the WAL (PostgreSQL documentation, "pg_lsn Type").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl FromStr for Lsn {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = || Error::new(ErrorKind::Malformed, format!("'{text}' is not an LSN; one looks like 16/B374D848"));
        let (high, low) = text.split_once('/').ok_or_else(bad)?;
        if high.len() > 8 || low.len() > 8 {
            return Err(bad());
        }
        let high = u32::from_str_radix(high, 16).map_err(|_| bad())?;
        let low = u32::from_str_radix(low, 16).map_err(|_| bad())?;
        Ok(Self(u64::from(high) << 32 | u64::from(low)))
    }
}

/// Where the source stood: the end of a transaction's commit record, or a place that an idle stream has passed.
///
/// Positions are compared only within one history. For PostgreSQL a position is the LSN behind the commit record (`end_lsn` of
/// pgoutput's Commit message), which is also what feedback confirms. Wire tags 2 (GTID set) and 3 (binlog file and
/// offset) are reserved for MySQL and MariaDB; those are compared as sets or numbers, never as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Position {
    /// PostgreSQL. Wire tag 1, then a little-endian `u64`.
    Lsn(Lsn),
}

impl Position {
    /// The LSN of a PostgreSQL position.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`] when the position is another engine's.
    pub fn lsn(self) -> Result<Lsn, Error> {
        match self {
            Self::Lsn(lsn) => Ok(lsn),
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lsn(lsn) => lsn.fmt(f),
        }
    }
}

impl FromStr for Position {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        text.parse().map(Self::Lsn)
    }
}

impl Serialize for Position {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Position {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The one after this.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// A top-level transaction id of the source, widened to 64 bits (PostgreSQL's `xid8`).
    Xid
}
number! {
    /// Contiguous count of the valid records of a stream. The first record has number 1; fences carry 0.
    RecordNumber
}
number! {
    /// Where the queue keeps a record. Only the queue that gave it understands it; contiguous in neither queue.
    QueueOffset
}
number! {
    /// Incarnation of a stream's writer. Every capture start raises it (I8).
    Epoch
}
number! {
    /// Random number that tells two writers of one epoch apart (I8).
    Nonce
}
number! {
    /// Random identity of a stream, drawn when it is made. A topic that was deleted and made anew has another.
    StreamId
}
number! {
    /// Incarnation of a replica's applier, kept in the replica's ledger (I8).
    ApplyEpoch
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_compared_as_numbers_and_not_as_text() {
        let position = |text: &str| text.parse::<Position>().unwrap();
        for (before, after) in [("0/FFFFFFFF", "1/0"), ("0/9", "0/10"), ("9/0", "10/0"), ("A/0", "10/0"), ("0/0", "0/1")] {
            assert!(position(before) < position(after), "{before} {after}");
        }
        assert_eq!(position("0/0A"), position("0/a"));
    }
}
