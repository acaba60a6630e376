//! What must hold before a pair runs: `check`, `init`, `teardown`.

pub mod check;
pub mod init;
pub mod tables;
pub mod teardown;
