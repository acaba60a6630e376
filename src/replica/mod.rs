//! What a database engine needs to be a replica: writing batches, the ledger, its errors.

pub mod postgres;
