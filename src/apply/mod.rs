//! From the queue to a replica, whatever its engine.
//!
//! [`first_copy`] is what a first copy and the replay of the log behind it need of each other; [`status`] what an applier
//! tells of itself.

pub mod first_copy;
pub mod status;

pub use first_copy::{CatchUp, FirstCopy};
pub use status::{ApplyState, ApplyStatus};
