//! PostgreSQL as a client sees it: ordinary SQL ([`sql`]).

pub mod sql;
