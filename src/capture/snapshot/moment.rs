//! When a chunk was read: which transactions it sees, and from when on they are all in the log.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, ErrorKind, Result};
use crate::event::{Lsn, Xid};

/// `pg_snapshot` in 64-bit top-level transaction ids (PostgreSQL documentation, "pg_snapshot Components").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Every transaction below has ended.
    pub xmin: Xid,
    /// No transaction from here on has ended.
    pub xmax: Xid,
    /// Those between that are in progress, ascending.
    pub in_progress: Vec<Xid>,
}

impl Snapshot {
    /// True when a transaction that committed is in the snapshot.
    #[must_use]
    pub fn sees(&self, xid: Xid) -> bool {
        xid < self.xmin || (xid < self.xmax && self.in_progress.binary_search(&xid).is_err())
    }
}

impl FromStr for Snapshot {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || Error::new(ErrorKind::Malformed, format!("'{text}' is not a snapshot"));
        let number = |part: &str| part.parse().map(Xid).map_err(|_| bad());
        let mut parts = text.splitn(3, ':');
        let (Some(xmin), Some(xmax), Some(list)) = (parts.next(), parts.next(), parts.next()) else { return Err(bad()) };
        let mut in_progress = list.split(',').filter(|p| !p.is_empty()).map(number).collect::<Result<Vec<_>>>()?;
        in_progress.sort_unstable();
        Ok(Self { xmin: number(xmin)?, xmax: number(xmax)?, in_progress })
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list: Vec<String> = self.in_progress.iter().map(ToString::to_string).collect();
        write!(f, "{}:{}:{}", self.xmin, self.xmax, list.join(","))
    }
}

/// When a chunk was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkMoment {
    /// What it sees.
    pub snapshot: Snapshot,
    /// Everything that it sees committed before this place.
    pub insert_lsn: Lsn,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_sees_what_had_ended() {
        let snapshot: Snapshot = "10:20:12,15".parse().unwrap();
        let seen: Vec<u64> = (8..22).filter(|x| snapshot.sees(Xid(*x))).collect();
        assert_eq!(seen, [8, 9, 10, 11, 13, 14, 16, 17, 18, 19]);
        assert_eq!(snapshot.to_string(), "10:20:12,15");
        let empty: Snapshot = "10:10:".parse().unwrap();
        assert!(empty.sees(Xid(9)) && !empty.sees(Xid(10)));
        assert!("10:20".parse::<Snapshot>().is_err() && "a:b:c".parse::<Snapshot>().is_err());
    }
}
