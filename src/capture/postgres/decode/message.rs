//! What pgoutput says, borrowed from the bytes it came in.

use super::lists::{Columns, Oids, TupleData};
use crate::event::{Identity, Lsn};

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
