//! `millstream check`: what must hold before a pair runs.

use clap::Args;

use super::Exit;
use super::output::print;
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::preflight::check::{self, Severity};

/// For `--help`.
pub const EXAMPLE: &str = "\
Examples:
  millstream check
  millstream check --strict --json | jq '.findings[] | select(.severity != \"ok\")'";

/// Arguments of `millstream check`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// The report as JSON, with its version.
    #[arg(long)]
    json: bool,
    /// Warnings count as errors.
    #[arg(long)]
    strict: bool,
}

pub(super) async fn run(config: Config, arguments: Arguments) -> Result<Exit> {
    let report = check::run(&config).await.naming(&config.file);
    if arguments.json {
        let json = serde_json::to_string_pretty(&report)
            .map_err(|error| Error::new(ErrorKind::Unexpected, "the report cannot be written as JSON").with_source(error))?;
        print(&format!("{json}\n"))?;
    } else {
        print(&check::table(&report))?;
    }
    let worst = report.findings.iter().map(|finding| finding.severity).max();
    Ok(match worst {
        Some(Severity::Error) => Exit::Bad,
        Some(Severity::Unknown) => Exit::Unknown,
        Some(Severity::Warning) if arguments.strict => Exit::Bad,
        _ => Exit::Good,
    })
}
