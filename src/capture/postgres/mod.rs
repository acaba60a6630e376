//! Capture from PostgreSQL: the replication slot's stream and pgoutput.

pub mod decode;
pub mod stream;
