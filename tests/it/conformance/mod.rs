//! One suite per trait, run over every implementation.

pub mod queue;
mod queue_embedded;
mod queue_kafka;
mod queue_log;
pub mod records;
