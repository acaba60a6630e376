//! One suite per trait, run over every implementation.

pub mod queue;
mod queue_embedded;
mod queue_log;
pub mod records;
