//! From a source database to the queue.

pub mod postgres;
