//! From the queue to a replica, whatever its engine.
//!
//! Invariant (I3, I4): the replica's tables and ledger are the source as of one commit, always; a batch takes them to a later one.
//!
//! [`worker`] claims the replica and starts over after failures → [`read`] reads ahead → [`merge`] collects whole
//! transactions → the replica plans ([`compact`] per key, [`runs`] in order) and writes → [`session`] reports what is
//! committed to the queue ([`progress`]) and to everybody else ([`status`], [`lag`]). [`first_copy`] is what a first copy and the
//! replay of the log behind it need of each other; [`added`] works on tables that come to a live replica, in a session beside the others'.

pub mod added;
pub mod compact;
pub mod copy;
pub mod ddl;
pub mod first_copy;
pub mod lag;
pub mod merge;
pub mod progress;
pub mod quarantine;
pub mod read;
pub mod rows;
pub mod runs;
pub mod sequences;
pub mod session;
pub mod status;
pub mod worker;

pub use first_copy::{CatchUp, FirstCopy};
pub use status::{ApplyState, ApplyStatus};
pub use worker::{Applier, run_apply};
