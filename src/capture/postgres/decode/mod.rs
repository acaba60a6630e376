//! pgoutput, read in place: no allocation, no copy, every length checked.
//!
//! Source of every format: PostgreSQL documentation, "Logical Replication Message Formats" (protocol versions 1 and 2). Inside a streamed block, between
//! Stream Start and Stop, messages carry a transaction id that they lack outside: the subtransaction's for rows, relations and types, the top-level one for
//! logical messages (seen on PostgreSQL 15). Versions 3 (two-phase) and 4 (parallel) are not asked for; their messages are malformed here.

mod input;
mod lists;
mod message;
#[cfg(test)]
mod tests;

use input::Input;
pub use lists::{Columns, Oids, TupleCells, TupleData};
pub use message::{ColumnDefinition, Commit, OldTuple, PgOutput, Relation, ShortXid};

use crate::error::Result;
use crate::event::Identity;

/// Microseconds from 1970-01-01 to 2000-01-01, PostgreSQL's epoch.
const EPOCH_2000_US: i64 = 946_684_800_000_000;

/// Reads one message. `in_stream`: between Stream Start and Stream Stop.
///
/// # Errors
/// [`crate::ErrorKind::Malformed`], with the byte where it goes wrong.
#[inline]
pub fn decode(bytes: &[u8], in_stream: bool) -> Result<PgOutput<'_>> {
    let mut input = Input::new(bytes);
    let message = match input.u8()? {
        b'I' => PgOutput::Insert { xid: xid(&mut input, in_stream)?, relation: input.u32()?, new: new_tuple(&mut input)? },
        b'U' => {
            let (xid, relation) = (xid(&mut input, in_stream)?, input.u32()?);
            PgOutput::Update { xid, relation, old: old_tuple(&mut input)?, new: new_tuple(&mut input)? }
        }
        b'D' => {
            let (xid, relation) = (xid(&mut input, in_stream)?, input.u32()?);
            let old = old_tuple(&mut input)?.ok_or_else(|| input.malformed("a delete without an old row"))?;
            PgOutput::Delete { xid, relation, old }
        }
        b'B' => PgOutput::Begin { final_lsn: input.lsn()?, commit_time_us: input.time()?, xid: ShortXid(input.u32()?) },
        b'C' => PgOutput::Commit(commit(&mut input)?),
        b'S' => PgOutput::StreamStart { xid: ShortXid(input.u32()?), first: input.flag()? },
        b'E' => PgOutput::StreamStop,
        b'c' => PgOutput::StreamCommit { xid: ShortXid(input.u32()?), commit: commit(&mut input)? },
        b'A' => PgOutput::StreamAbort { xid: ShortXid(input.u32()?), subxid: ShortXid(input.u32()?) },
        b'R' => PgOutput::Relation(relation(&mut input, in_stream)?),
        b'Y' => PgOutput::Type {
            xid: xid(&mut input, in_stream)?,
            oid: input.u32()?,
            namespace: namespace(input.text()?),
            name: input.text()?,
        },
        b'T' => truncate(&mut input, in_stream)?,
        b'M' => logical_message(&mut input, in_stream)?,
        b'O' => PgOutput::Origin { lsn: input.lsn()?, name: input.text()? },
        other => return Err(input.malformed(&format!("a message of unknown kind '{}'", other.escape_ascii()))),
    };
    if input.rest().is_empty() { Ok(message) } else { Err(input.malformed("bytes behind the end of a message")) }
}

fn xid(input: &mut Input<'_>, in_stream: bool) -> Result<Option<ShortXid>> {
    if in_stream { input.u32().map(|xid| Some(ShortXid(xid))) } else { Ok(None) }
}

fn commit(input: &mut Input<'_>) -> Result<Commit> {
    match input.u8()? {
        0 => Ok(Commit { commit_lsn: input.lsn()?, end_lsn: input.lsn()?, commit_time_us: input.time()? }),
        flags => Err(input.malformed(&format!("unknown flags {flags} of a commit"))),
    }
}

/// pgoutput writes the empty string for `pg_catalog`.
fn namespace(text: &str) -> &str {
    if text.is_empty() { "pg_catalog" } else { text }
}

fn relation<'a>(input: &mut Input<'a>, in_stream: bool) -> Result<Relation<'a>> {
    let xid = xid(input, in_stream)?;
    let oid = input.u32()?;
    let namespace = namespace(input.text()?);
    let name = input.text()?;
    let identity = match input.u8()? {
        b'd' => Identity::Default,
        b'n' => Identity::Nothing,
        b'f' => Identity::Full,
        b'i' => Identity::Index,
        other => return Err(input.malformed(&format!("an unknown replica identity '{}'", other.escape_ascii()))),
    };
    let columns = Columns::read(input)?;
    Ok(Relation { xid, oid, namespace, name, identity, columns })
}

fn new_tuple<'a>(input: &mut Input<'a>) -> Result<TupleData<'a>> {
    match input.u8()? {
        b'N' => TupleData::read(input),
        other => Err(input.malformed(&format!("a row marked '{}' where the new one should be", other.escape_ascii()))),
    }
}

fn old_tuple<'a>(input: &mut Input<'a>) -> Result<Option<OldTuple<'a>>> {
    match input.rest().first() {
        Some(b'K') => {
            input.u8()?;
            TupleData::read(input).map(|tuple| Some(OldTuple::Key(tuple)))
        }
        Some(b'O') => {
            input.u8()?;
            TupleData::read(input).map(|tuple| Some(OldTuple::Full(tuple)))
        }
        _ => Ok(None),
    }
}

fn truncate<'a>(input: &mut Input<'a>, in_stream: bool) -> Result<PgOutput<'a>> {
    let xid = xid(input, in_stream)?;
    let count = input.u32()? as usize;
    let flags = input.u8()?;
    if flags > 3 {
        return Err(input.malformed("unknown flags of a truncate"));
    }
    let bytes = count.checked_mul(4).ok_or_else(|| input.malformed("a truncate of too many tables"))?;
    let relations = Oids::new(input.take(bytes)?);
    Ok(PgOutput::Truncate { xid, relations, cascade: flags & 1 != 0, restart_identity: flags & 2 != 0 })
}

fn logical_message<'a>(input: &mut Input<'a>, in_stream: bool) -> Result<PgOutput<'a>> {
    let xid = xid(input, in_stream)?;
    let transactional = input.flag()?;
    let lsn = input.lsn()?;
    let prefix = input.text()?;
    let length = input.u32()?;
    let content = input.take(length as usize)?;
    Ok(PgOutput::Message { xid, transactional, lsn, prefix, content })
}

/// From PostgreSQL's epoch to Unix's.
pub(crate) fn unix_time_us(postgres_us: i64) -> i64 {
    postgres_us.saturating_add(EPOCH_2000_US)
}

/// From Unix's epoch to PostgreSQL's.
pub(crate) fn postgres_time_us(unix_us: i64) -> i64 {
    unix_us.saturating_sub(EPOCH_2000_US)
}
