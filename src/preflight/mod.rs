//! What must hold before a pair runs: `check`, `init`, `teardown`; and what is asked of a running one: `table recopy`.

pub mod check;
mod emptying;
pub mod init;
pub mod recopy;
mod running;
pub mod schema_changes;
pub mod tables;
pub mod teardown;
