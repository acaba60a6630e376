//! Capture from PostgreSQL: the replication slot's stream and pgoutput.

pub mod catalog;
pub mod decode;
pub mod relations;
pub mod slot;
pub mod stream;
