//! Quarantine: the one way past a source transaction that the replica refuses.
//!
//! # Invariant
//!
//! A source transaction is applied whole, or kept whole: in the replica transaction that moves the ledger past it, its changes are written to the
//! ledger's own tables instead of to the replica's (I3, I4). Nothing is kept unless somebody ordered exactly this transaction to be, by its position,
//! after it had halted the replica; and it is tried once more first. No change is applied to a row whose earlier change is kept.
//!
//! # Progression
//!
//! ```text
//!  refused ──note──► halted ──`add` POSITION──► ordered ──tried again──► applied after all: the order falls
//!     ▲                                                        └refused─► kept ──`retry`──────────────────► applied
//!     └── a later one that changes a row of it ◄──────────────────────────┤  ──`clear`──────────────────► cleared ─┐
//!                                                                         └──its tables copied again────► cured ◄─┘
//!                                                         (dropped, where all its tables are gone)
//! ```
//!
//! All of it is durable, in tables of the schema `millstream`: `refused` (one row for each replica: what it stands at), `quarantine` (the account, which stays),
//! its tables and keys, and the pieces with the values, which go when it is over. In memory an applier has only the keys of what is kept
//! (`keys::Touched`), read when it claims the replica and after any failure. They are never fewer than those of the ledger: only an applier adds to them,
//! and looks at the ledger again before it halts by them. While nothing is kept, that costs one query per session and nothing per batch.
//!
//! # What is refused
//!
//! An order for any other transaction than the one that the replica stands at, and for a halt that is not about rows (`replica_conflict`,
//! `replica_constraint`, `quarantined_key` are). `refused.transactions` tells whether it still stands there: the ledger counts every transaction.
//! A transaction that changes the schema: later ones need the change. One with tables that are not live: their copy is not complete,
//! and what it reads of the source is not to be undone. The same goes for the row of tables that are copied beside others (`#added`): it notes nothing. Those
//! tables get their part of a transaction that the others keep.
//!
//! # Keys
//!
//! Of each change the key that finds the row, of the old image and the new one, by the source's number of the table: a renamed table stays the same one.
//! Keys are compared by their text, so a table counts as changed in every row (which only halts more) where text may differ and be equal to the
//! server (numeric, citext, char(n), a nondeterministic collation, an enum, a domain, anything that is not [`super::catalog::CatalogColumn::exact`]),
//! where it has no key, where the key's columns are others by now, past 10,000 keys, and after a TRUNCATE. A later TRUNCATE of a table with any key of a
//! kept transaction halts as well. The check looks at the changes as the log has them, before they are merged or folded.
//!
//! A schema change of such a table is carried: it means the same for the rows that are there; refused, it names what is kept. Rows that refer to one that
//! is missing are refused by the replica where it enforces foreign keys, and dangle until `retry` where it does not. Where it does, a later transaction counts
//! as well that deletes a row, or changes a key, which a table of what is kept refers to with an action (CASCADE, SET NULL, SET DEFAULT), over any number of
//! tables: whose rows those take with them only the replica knows.
//!
//! # `retry`
//!
//! Everything that is kept, oldest first, in one replica transaction under the ledger row's lock, without the applier's part: the command does it in a session of its own. The lock
//! keeps the applier's transactions out, the accounts' state makes it happen once. It is refused, and changes nothing, where
//! - the replica refuses a row, still or because of what others did since,
//! - a later transaction that was cleared had changed the same row (what it did would be undone in part),
//! - a table has other columns than it had (what an ALTER filled them with is not in what is kept),
//! - a table is being copied again. Once it is live, it has what the transaction did: its changes are left out.
//!
//! All but the first are for `table recopy`, which cures what is kept and what was cleared of a table in the transaction that makes it live. The part of a
//! table that the source dropped, or that left the replica, is left out as well (`ended`). Versions of tables are old by then: their rows go where the ledger
//! has their table now, under whatever name.
//!
//! # `clear`
//!
//! Drops the values. The keys halt nobody any more: whoever clears says that the rows were mended by hand, or that they do not matter. The account stays, and the
//! replica counts as not whole until the tables were copied again. Two transactions that share a key hold it each.
//!
//! # A huge transaction
//!
//! It comes in parts and is written before it is seen whole. Refused at a part, it is gone from memory: the order is *confirmed*, and the next attempt writes
//! the parts to quarantine as they come. What is kept is cut into pieces of about a megabyte, and read so by `retry` and `show`.
//!
//! Worked: `A` inserts k and is refused; `add`; kept. `B` updates k: `quarantined_key`, naming `A`. Either the cause is mended and `retry` applies `A`, and `B`
//! goes in by itself; or `add` keeps `B` as well, and `retry` applies both; or `table recopy` cures `A`, and `B` is part of the copy.
//!
//! # Rejected
//!
//! *Quarantine by the daemon's socket*: what the replica stands at is the ledger's to say, and must be said together with the order. *Skipping only the rows that are refused*:
//! readers would see half a transaction. *Keeping the place in the log instead of the changes*: the queue drops what its consumers have read. *Waiting with the cursor
//! in front of the transaction*: the queue would fill.

pub mod account;
mod applier;
pub mod command;
pub(crate) mod ended;
mod keep;
mod keys;
mod refusal;
mod retry;

pub(super) use keep::Keeper;
pub(super) use keys::{Touched, kept_of};

use crate::error::{Error, ErrorKind};
use crate::halt::HaltCode;

/// The replica refused the rows: what quarantine is for.
pub(super) fn is_refusal(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Halt(HaltCode::ReplicaConflict | HaltCode::ReplicaConstraint | HaltCode::QuarantinedKey))
}
