//! What must hold before a pair runs: `check`, `init`, `teardown`; and what is asked of a running one: `table recopy`.

pub mod check;
mod emptying;
pub mod init;
pub(crate) mod put_off;
pub mod recopy;
mod running;
pub mod schema_changes;
pub mod tables;
pub mod teardown;

/// `1 table`, `2 tables`.
fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}
