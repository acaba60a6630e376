//! The daemon.

use crate::config::Config;
use crate::error::Result;

/// What a daemon does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roles {
    /// Reads sources.
    pub capture: bool,
    /// Writes replicas.
    pub apply: bool,
}

/// Runs until it is told to stop.
///
/// # Errors
/// Those of a task that ended early.
pub async fn run(_config: Config, _roles: Roles) -> Result<()> {
    tokio::task::yield_now().await;
    Ok(())
}
