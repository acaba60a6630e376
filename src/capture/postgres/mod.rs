//! Capture from PostgreSQL: the replication slot's stream and pgoutput.

pub mod decode;
mod pause;
pub mod stream;
