//! What must hold before a pair runs: `check`, `init`, `teardown`.

pub mod check;
mod emptying;
pub mod init;
pub(crate) mod put_off;
mod running;
pub mod schema_changes;
pub mod tables;
pub mod teardown;
