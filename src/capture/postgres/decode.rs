//! pgoutput, read in place: no allocation, no copy, every length checked.
//!
//! Source of every format: PostgreSQL documentation, "Logical Replication Message Formats" (protocol versions 1 and 2). Inside a streamed block, between
//! Stream Start and Stop, messages carry a transaction id that they lack outside: the subtransaction's for rows, relations and types, the top-level one for
//! logical messages (seen on PostgreSQL 15). Versions 3 (two-phase) and 4 (parallel) are not asked for; their messages are malformed here.

use crate::error::{Error, ErrorKind, Result};
use crate::event::{Cell, Identity, Lsn};

/// Microseconds from 1970-01-01 to 2000-01-01, PostgreSQL's epoch.
const EPOCH_2000_US: i64 = 946_684_800_000_000;

/// A transaction id as the server has it: 32 bits that wrap around. [`crate::event::Xid`] is the widened one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ShortXid(pub u32);

/// One message of pgoutput. Times are microseconds since 1970-01-01 UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PgOutput<'a> {
    /// `B`: a transaction, whole, follows.
    Begin {
        /// LSN of its commit record.
        final_lsn: Lsn,
        /// When it committed.
        commit_time_us: i64,
        /// Top level.
        xid: ShortXid,
    },
    /// `C`: the transaction begun by Begin is complete.
    Commit(Commit),
    /// `O`: it was applied under a replication origin.
    Origin {
        /// LSN of its commit at the origin.
        lsn: Lsn,
        /// The origin's name.
        name: &'a str,
    },
    /// `R`: the definition under which the next rows of a table come.
    Relation(Relation<'a>),
    /// `Y`: a type that is not built in.
    Type {
        /// In a streamed block.
        xid: Option<ShortXid>,
        /// `pg_type.oid`
        oid: u32,
        /// Schema.
        namespace: &'a str,
        /// Name.
        name: &'a str,
    },
    /// `I`
    Insert {
        /// In a streamed block.
        xid: Option<ShortXid>,
        /// `pg_class.oid`
        relation: u32,
        /// The row.
        new: TupleData<'a>,
    },
    /// `U`
    Update {
        /// In a streamed block.
        xid: Option<ShortXid>,
        /// `pg_class.oid`
        relation: u32,
        /// What it was, when its key changed or the replica identity is FULL.
        old: Option<OldTuple<'a>>,
        /// What it is.
        new: TupleData<'a>,
    },
    /// `D`
    Delete {
        /// In a streamed block.
        xid: Option<ShortXid>,
        /// `pg_class.oid`
        relation: u32,
        /// What it was.
        old: OldTuple<'a>,
    },
    /// `T`
    Truncate {
        /// In a streamed block.
        xid: Option<ShortXid>,
        /// `pg_class.oid` of each.
        relations: Oids<'a>,
        /// CASCADE
        cascade: bool,
        /// RESTART IDENTITY
        restart_identity: bool,
    },
    /// `M`: a logical message.
    Message {
        /// In a streamed block: the top-level transaction, whatever subtransaction it was emitted in.
        xid: Option<ShortXid>,
        /// False: it stands outside of any transaction.
        transactional: bool,
        /// Where it is.
        lsn: Lsn,
        /// Who it is for.
        prefix: &'a str,
        /// What it says.
        content: &'a [u8],
    },
    /// `S`: a block of a transaction in progress follows.
    StreamStart {
        /// Top level.
        xid: ShortXid,
        /// Its first block.
        first: bool,
    },
    /// `E`: the block ends.
    StreamStop,
    /// `c`: a streamed transaction is complete.
    StreamCommit {
        /// Top level.
        xid: ShortXid,
        /// Where and when.
        commit: Commit,
    },
    /// `A`: a streamed transaction (both ids the same) or one of its subtransactions is undone.
    StreamAbort {
        /// Top level.
        xid: ShortXid,
        /// What is undone.
        subxid: ShortXid,
    },
}

/// Where and when a transaction committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    /// LSN of the commit record.
    pub commit_lsn: Lsn,
    /// LSN behind it: the transaction's position.
    pub end_lsn: Lsn,
    /// When.
    pub commit_time_us: i64,
}

/// A table's definition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relation<'a> {
    /// In a streamed block.
    pub xid: Option<ShortXid>,
    /// `pg_class.oid`
    pub oid: u32,
    /// Schema.
    pub namespace: &'a str,
    /// Name.
    pub name: &'a str,
    /// `pg_class.relreplident`
    pub identity: Identity,
    /// Its published columns.
    pub columns: Columns<'a>,
}

/// One column of a [`Relation`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ColumnDefinition<'a> {
    /// Part of the replica identity.
    pub key: bool,
    /// Name.
    pub name: &'a str,
    /// `pg_type.oid`
    pub type_oid: u32,
    /// `pg_attribute.atttypmod`
    pub type_modifier: i32,
}

/// A row before a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OldTuple<'a> {
    /// `K`: only the replica identity's columns carry values.
    Key(TupleData<'a>),
    /// `O`: everything.
    Full(TupleData<'a>),
}

impl<'a> OldTuple<'a> {
    /// The cells, whatever they hold.
    #[must_use]
    pub fn tuple(self) -> TupleData<'a> {
        match self {
            Self::Key(tuple) | Self::Full(tuple) => tuple,
        }
    }
}

/// A row's cells, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TupleData<'a> {
    columns: u16,
    bytes: &'a [u8],
}

impl<'a> TupleData<'a> {
    /// Number of cells.
    #[must_use]
    pub fn len(self) -> usize {
        usize::from(self.columns)
    }

    /// True for a row of a table without columns.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.columns == 0
    }

    /// Size on the wire.
    #[must_use]
    pub fn byte_len(self) -> usize {
        self.bytes.len()
    }

    /// The cells in column order.
    #[must_use]
    pub fn cells(self) -> TupleCells<'a> {
        TupleCells { rest: self.bytes, left: self.columns }
    }
}

impl<'a> IntoIterator for TupleData<'a> {
    type Item = Cell<'a>;
    type IntoIter = TupleCells<'a>;

    fn into_iter(self) -> TupleCells<'a> {
        self.cells()
    }
}

/// Iterator over a row's cells.
#[derive(Clone, Debug)]
pub struct TupleCells<'a> {
    rest: &'a [u8],
    left: u16,
}

impl<'a> Iterator for TupleCells<'a> {
    type Item = Cell<'a>;

    // The bytes were checked when the message was decoded; `None` for what cannot be is only a second net.
    fn next(&mut self) -> Option<Cell<'a>> {
        self.left = self.left.checked_sub(1)?;
        let (&tag, rest) = self.rest.split_first()?;
        self.rest = rest;
        match tag {
            b'n' => Some(Cell::Null),
            b'u' => Some(Cell::Unchanged),
            _ => {
                let (length, rest) = self.rest.split_first_chunk()?;
                let (value, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
                self.rest = rest;
                Some(Cell::Value(value))
            }
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (usize::from(self.left), Some(usize::from(self.left)))
    }
}

impl ExactSizeIterator for TupleCells<'_> {}

/// A relation's columns, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns<'a> {
    bytes: &'a [u8],
    left: u16,
}

impl Columns<'_> {
    /// Number of columns.
    #[must_use]
    pub fn count_columns(&self) -> usize {
        usize::from(self.left)
    }
}

impl<'a> Iterator for Columns<'a> {
    type Item = ColumnDefinition<'a>;

    fn next(&mut self) -> Option<ColumnDefinition<'a>> {
        self.left = self.left.checked_sub(1)?;
        let mut input = Input { rest: self.bytes, whole: 0 };
        let column = column(&mut input).ok()?;
        self.bytes = input.rest;
        Some(column)
    }
}

/// A list of `pg_class.oid`, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Oids<'a>(&'a [u8]);

impl Iterator for Oids<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let (oid, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*oid))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.0.len() / 4, Some(self.0.len() / 4))
    }
}

impl ExactSizeIterator for Oids<'_> {}

/// Reads one message. `in_stream`: between Stream Start and Stream Stop.
///
/// # Errors
/// [`ErrorKind::Malformed`], with the byte where it goes wrong.
#[inline]
pub fn decode(bytes: &[u8], in_stream: bool) -> Result<PgOutput<'_>> {
    let mut input = Input { rest: bytes, whole: bytes.len() };
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
    if input.rest.is_empty() { Ok(message) } else { Err(input.malformed("bytes behind the end of a message")) }
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
    let left = input.u16()?;
    let bytes = input.rest;
    for _ in 0..left {
        column(input)?;
    }
    let columns = Columns { bytes: &bytes[..bytes.len() - input.rest.len()], left };
    Ok(Relation { xid, oid, namespace, name, identity, columns })
}

fn column<'a>(input: &mut Input<'a>) -> Result<ColumnDefinition<'a>> {
    Ok(ColumnDefinition {
        key: input.flag()?,
        name: input.text()?,
        type_oid: input.u32()?,
        type_modifier: input.u32()?.cast_signed(),
    })
}

fn new_tuple<'a>(input: &mut Input<'a>) -> Result<TupleData<'a>> {
    match input.u8()? {
        b'N' => tuple(input),
        other => Err(input.malformed(&format!("a row marked '{}' where the new one should be", other.escape_ascii()))),
    }
}

fn old_tuple<'a>(input: &mut Input<'a>) -> Result<Option<OldTuple<'a>>> {
    match input.rest.first() {
        Some(b'K') => {
            input.u8()?;
            tuple(input).map(|tuple| Some(OldTuple::Key(tuple)))
        }
        Some(b'O') => {
            input.u8()?;
            tuple(input).map(|tuple| Some(OldTuple::Full(tuple)))
        }
        _ => Ok(None),
    }
}

fn tuple<'a>(input: &mut Input<'a>) -> Result<TupleData<'a>> {
    let columns = input.u16()?;
    let start = input.rest;
    for _ in 0..columns {
        match input.u8()? {
            b't' => {
                let length = input.u32()?;
                input.take(length as usize)?;
            }
            b'n' | b'u' => {}
            b'b' => return Err(input.malformed("a binary value, which was not asked for")),
            other => return Err(input.malformed(&format!("a cell of unknown kind '{}'", other.escape_ascii()))),
        }
    }
    Ok(TupleData { columns, bytes: &start[..start.len() - input.rest.len()] })
}

fn truncate<'a>(input: &mut Input<'a>, in_stream: bool) -> Result<PgOutput<'a>> {
    let xid = xid(input, in_stream)?;
    let count = input.u32()? as usize;
    let flags = input.u8()?;
    if flags > 3 {
        return Err(input.malformed("unknown flags of a truncate"));
    }
    let bytes = count.checked_mul(4).ok_or_else(|| input.malformed("a truncate of too many tables"))?;
    let relations = Oids(input.take(bytes)?);
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

struct Input<'a> {
    rest: &'a [u8],
    whole: usize,
}

impl<'a> Input<'a> {
    #[cold]
    fn malformed(&self, what: &str) -> Error {
        let at = self.whole - self.rest.len().min(self.whole);
        Error::new(ErrorKind::Malformed, format!("pgoutput: {what} at byte {at} of {}", self.whole))
    }

    #[inline]
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
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
    fn u8(&mut self) -> Result<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    #[inline]
    fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_be_bytes)
    }

    #[inline]
    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn lsn(&mut self) -> Result<Lsn> {
        self.array().map(u64::from_be_bytes).map(Lsn)
    }

    fn time(&mut self) -> Result<i64> {
        self.array().map(i64::from_be_bytes).map(unix_time_us)
    }

    fn flag(&mut self) -> Result<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.malformed(&format!("a flag of {other}"))),
        }
    }

    fn text(&mut self) -> Result<&'a str> {
        let Some(end) = self.rest.iter().position(|&byte| byte == 0) else {
            return Err(self.malformed("a text without its end"));
        };
        let text = std::str::from_utf8(&self.rest[..end]).map_err(|_| self.malformed("a text that is not UTF-8"))?;
        self.rest = &self.rest[end + 1..];
        Ok(text)
    }
}

/// From PostgreSQL's epoch to Unix's.
pub(super) fn unix_time_us(postgres_us: i64) -> i64 {
    postgres_us.saturating_add(EPOCH_2000_US)
}

/// From Unix's epoch to PostgreSQL's.
pub(super) fn postgres_time_us(unix_us: i64) -> i64 {
    unix_us.saturating_sub(EPOCH_2000_US)
}
