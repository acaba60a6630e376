//! `millstream pause` and `millstream resume`: orders to the running daemon.

use clap::Args;

use super::Exit;
use super::order::{give, show, strange};
use crate::config::Config;
use crate::error::Result;
use crate::socket::protocol::{Answer, Kind, PauseReport, Request, Subject};

/// For `pause --help`.
pub const PAUSE_EXAMPLE: &str = "\
Examples:
  millstream pause reports           a replica: nothing is applied, the queue keeps what comes
  millstream pause shop --json       a source: not read, and its WAL is kept there

What is in hand is committed or rolled back first. A pause outlives restarts of the daemon, until
`millstream resume`. Paused already: says so and exits with 0.";

/// For `resume --help`.
pub const RESUME_EXAMPLE: &str = "\
Examples:
  millstream resume reports
  millstream resume shop --source    where a replica is called shop too

Not paused: says so and exits with 0. One that is halted stays halted: millstream status says why.";

/// Whom an order is about.
#[derive(Args, Debug)]
pub struct Target {
    /// Name of a replica or a source.
    #[arg(value_name = "REPLICA|SOURCE")]
    name: String,
    /// It is a source: where a replica has the same name.
    #[arg(long, conflicts_with = "replica")]
    source: bool,
    /// It is a replica: where a source has the same name.
    #[arg(long)]
    replica: bool,
}

/// Arguments of `millstream pause`.
#[derive(Args, Debug)]
pub struct PauseArguments {
    #[command(flatten)]
    target: Target,
    /// What became of it as JSON.
    #[arg(long)]
    json: bool,
}

/// Arguments of `millstream resume`.
#[derive(Args, Debug)]
pub struct ResumeArguments {
    #[command(flatten)]
    target: Target,
    /// What became of it as JSON.
    #[arg(long)]
    json: bool,
}

impl Target {
    fn subject(self) -> Subject {
        let kind = match (self.source, self.replica) {
            (true, _) => Some(Kind::Source),
            (_, true) => Some(Kind::Replica),
            _ => None,
        };
        Subject { name: self.name, kind }
    }
}

pub(super) async fn pause(config: Config, arguments: PauseArguments) -> Result<Exit> {
    order(&config, &Request::Pause(arguments.target.subject()), arguments.json).await
}

pub(super) async fn resume(config: Config, arguments: ResumeArguments) -> Result<Exit> {
    order(&config, &Request::Resume(arguments.target.subject()), arguments.json).await
}

async fn order(config: &Config, request: &Request, json: bool) -> Result<Exit> {
    let report = match give(config, request).await? {
        Ok(Answer::Pause(report)) => report,
        Ok(_) => return Err(strange()),
        Err(exit) => return Ok(exit),
    };
    show(&report, json, || words(&report))?;
    Ok(if report.at_rest { Exit::Good } else { Exit::Temporary })
}

fn words(report: &PauseReport) -> String {
    let PauseReport { kind, name, paused, changed, .. } = report;
    let since = report.since.as_deref().unwrap_or("an unknown time");
    let who = format!("{} {name}", kind.as_str());
    let mut text = match (paused, changed, kind) {
        (true, true, Kind::Replica) => {
            format!("{who} is paused: nothing is applied until `millstream resume {name}`, and the queue keeps what comes\n")
        }
        (true, true, Kind::Source) => format!("{who} is paused: it is not read until `millstream resume {name}`\n"),
        (true, false, _) => format!("{who} was paused already, since {since}\n"),
        (false, true, _) => format!("{who} goes on\n"),
        (false, false, _) => format!("{who} was not paused\n"),
    };
    if !report.at_rest {
        text.push_str("what it has in hand has not ended yet; run the command again to wait for it\n");
    }
    for note in &report.notes {
        text.push_str(&format!("{note}\n"));
    }
    text
}
