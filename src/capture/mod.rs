//! From a source database to the queue.
//!
//! # Invariant
//!
//! What the source was told is flushed, the queue holds durably (I1). What the log holds is exactly the source's committed transactions that touch
//! published tables, whole, in commit order, once, from the slot's start on (I4, I5).
//!
//! # Progression of a stream
//!
//! ```text
//!                   ┌───────────────── failure that is retried ──────────────────┐
//!                   ▼                                                            │
//!  (init) ──► Waiting ──► Held ──► TakingOver ──► Streaming ◄──► QueueFull ──────┤
//!                   ▲       slot elsewhere   fence, checks                       │
//!                   └──────── mendable, every 10 s ──────── Halted ◄─────────────┘ failure by rule
//!                                                              │ loss: stays
//!                                                              ▼
//!                                                           Stopped (cancelled)
//!  any but a lasting halt ◄── paused, resumed ([`crate::pause`]) ──► Paused
//! ```
//!
//! [`status::CaptureState`] says who is where. None of it is durable; durable are the log, the slot at the source, and the
//! registry's hints, and of these only log and slot decide anything.
//!
//! # Who does what
//!
//! | module | |
//! |---|---|
//! | [`begin`] | for `init`: first and second record, names |
//! | `supervise` | tries again, halts, waits; drops the slot past its budget when asked to |
//! | `connect` | one attempt up to streaming |
//! | [`takeover`], [`recover`] | fence; what the log says of itself |
//! | `worker` | the loop; `worker::intake`: what messages come to |
//! | [`assemble`], [`spill`] | transactions in progress |
//! | [`translate`] | messages to changes |
//! | [`append`], `outbox` | changes to records, records to the queue, what is durable |
//! | [`upkeep`] | hint, fullness, trimming |
//! | [`heartbeat`], [`retention`] | beside the stream |
//! | [`snapshot`] | for a first copy: what a table is, its chunks, reading them |
//! | [`postgres`] | the source's protocol, slot and catalog |
//!
//! # A kill, worked
//!
//! ```text
//! commit at 0/500 comes, is given as #41, durable                       slot confirmed 0/400
//! commit at 0/600 comes, is given as #42, on its way
//! ── SIGKILL ── #42 may or may not be in the queue
//! new process: takes the slot (from 0/400), fence, reads up to it: the log ends with #41, at 0/500
//! 0/500 is sent again: not past the log's end, dropped
//! 0/600 is sent again: becomes #42 of the new epoch; if the old #42 was there, the log ended at 0/600 and this is dropped
//! a zombie's late append of #42 stands behind the fence: void
//! ```
//!
//! # Rejected
//!
//! - *Confirming what was received*: faster trimming at the source, and loss when the queue's host dies.
//! - *Starting to stream at the log's end instead of the slot's place*: see [`postgres::slot`].
//! - *Encoding streamed changes as they arrive*: half the reading for huge transactions, but a Relation message of a subtransaction
//!   that is undone later would already have made a schema version.
//! - *Keeping positions in the registry*: two places that can disagree. The log's tail is the state.

pub mod append;
pub mod assemble;
pub mod begin;
mod connect;
pub mod heartbeat;
#[cfg(test)]
mod loss_tests;
#[cfg(test)]
mod model;
pub mod outbox;
pub mod postgres;
pub mod recover;
pub mod retention;
mod silent;
pub mod snapshot;
pub mod spill;
pub mod status;
mod supervise;
pub mod takeover;
pub mod translate;
pub mod upkeep;
mod worker;

use tokio::sync::watch;

pub use begin::{Beginning, begin_stream, beginning, new_slot_name, publication_name, record_slot_start, slot_name_pattern};
pub use status::{CaptureState, CaptureStatus};
pub use supervise::run_capture;

/// Enters a state; the time of entering is kept while it stays.
fn enter(status: &mut CaptureStatus, state: CaptureState) {
    if status.state != state || status.since_us == 0 {
        status.state = state;
        status.since_us = append::now_us();
    }
    if matches!(state, CaptureState::Streaming | CaptureState::QueueFull) {
        (status.halt, status.error, status.held_by) = (None, None, None);
    }
}

fn set_state(status: &watch::Sender<CaptureStatus>, state: CaptureState) {
    status.send_modify(|status| enter(status, state));
}
