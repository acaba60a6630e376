//! `millstream reload`: the daemon reads its configuration again.

use clap::Args;

use super::Exit;
use super::order::{give, show, strange};
use crate::config::Config;
use crate::error::Result;
use crate::socket::protocol::{Answer, ReloadReport, Request};

/// For `--help`.
pub const EXAMPLE: &str = "\
Examples:
  millstream reload --dry-run
  millstream reload

Prints what differs from what the daemon has, then carries it: sources and replicas that are new
start, those that are gone stop, those that changed start anew, all others go on. A configuration
that is not valid, or that needs a restart ([queue] but for max_bytes, log.format), is refused whole.";

/// Arguments of `millstream reload`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Only says what would change.
    #[arg(long)]
    dry_run: bool,
    /// What differs as JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(config: Config, arguments: Arguments) -> Result<Exit> {
    let report = match give(&config, &Request::Reload { dry_run: arguments.dry_run }).await? {
        Ok(Answer::Reload(report)) => report,
        Ok(_) => return Err(strange()),
        Err(exit) => return Ok(exit),
    };
    show(&report, arguments.json, || words(&report))?;
    Ok(Exit::Good)
}

fn words(report: &ReloadReport) -> String {
    let lines = report.changes.iter().chain(&report.restarts).chain(&report.notes);
    let mut text: String = lines.map(|line| format!("{line}\n")).collect();
    text.push_str(match (report.done, report.changes.is_empty()) {
        (true, true) => "Read again; nothing differs.\n",
        (true, false) => "Reloaded.\n",
        (false, true) => "Nothing differs.\n",
        (false, false) => "Nothing was changed: this was a dry run.\n",
    });
    text
}
