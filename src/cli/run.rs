//! `millstream run`: the daemon.

use clap::{Args, ValueEnum};

use super::Exit;
use crate::config::Config;
use crate::daemon::{self, Roles};
use crate::error::{Error, ErrorKind, Result};
use crate::telemetry;

/// For `--help`.
pub const EXAMPLE: &str = "Examples:
  millstream run -c /etc/millstream/millstream.toml
  millstream run --roles capture        (Kafka only: another daemon applies)";

/// Arguments of `millstream run`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// What this daemon does; everything by default. With an embedded queue all roles run in one daemon.
    #[arg(long, value_name = "ROLE,…", value_delimiter = ',', env = "MILLSTREAM_ROLES")]
    roles: Vec<Role>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Role {
    /// Reads the sources and appends to the queue.
    Capture,
    /// Reads the queue and writes the replicas.
    Apply,
    /// Keeps the log as files. Not in this version.
    Archive,
}

pub(super) async fn run(config: Config, arguments: Arguments) -> Result<Exit> {
    let roles = roles(&arguments.roles)?;
    telemetry::install(&config.log)?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    daemon::run(config, roles).await?;
    Ok(Exit::Good)
}

fn roles(asked: &[Role]) -> Result<Roles> {
    if asked.contains(&Role::Archive) {
        let message = "--roles archive: this version has no archive; leave the role out (capture, apply)";
        return Err(Error::new(ErrorKind::Config, message));
    }
    let all = asked.is_empty();
    Ok(Roles { capture: all || asked.contains(&Role::Capture), apply: all || asked.contains(&Role::Apply) })
}
