//! Capture from PostgreSQL: the replication slot's stream and pgoutput.

pub mod catalog;
pub mod decode;
pub mod publication;
pub mod relations;
pub mod schema_change;
pub mod slot;
pub mod stream;
