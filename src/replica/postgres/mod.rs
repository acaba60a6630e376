//! A PostgreSQL replica.

pub mod connect;
pub mod errors;
pub mod ledger;
pub mod lock;
pub mod quote;
