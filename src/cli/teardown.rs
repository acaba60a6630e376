//! `millstream teardown`: takes away what `init` made.

use std::io::{self, BufRead as _, IsTerminal as _};

use clap::Args;

use super::Exit;
use super::init::tell;
use super::output::{complain, print_line};
use crate::config::Config;
use crate::daemon::open_queue;
use crate::error::Result;
use crate::preflight::init::Outcome;
use crate::preflight::teardown::{TeardownOptions, describe, look, teardown};

/// For `--help`.
pub const EXAMPLE: &str = "\
Examples:
  millstream teardown --yes
  millstream teardown --replica reports      its source and other replicas go on
  millstream teardown --consumer old_one     a replica that is not configured any more";

/// Arguments of `millstream teardown`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Only this source and its replicas.
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// Only this replica: source, slot and stream stay for the others.
    #[arg(long, value_name = "NAME")]
    replica: Option<String>,
    /// Only the place in the queue of a replica that the configuration no longer has, so that the queue is not kept for it.
    #[arg(long, value_name = "NAME", conflicts_with = "replica")]
    consumer: Option<String>,
    /// Does not ask.
    #[arg(long)]
    yes: bool,
}

pub(super) async fn run(config: Config, arguments: Arguments) -> Result<Exit> {
    super::init::as_the_daemons_user(&config)?;
    let options = TeardownOptions { source: arguments.source, replica: arguments.replica, consumer: arguments.consumer };
    let lines = describe(&config, &options)?;
    let mut printed = Ok(());
    let mut report = |line| {
        if printed.is_ok() {
            printed = tell(line, &config.file);
        }
    };
    let quiet = look(&config, &options, &mut report).await?;
    if !arguments.yes && quiet.is_some() {
        announce(&lines);
        if !io::stdin().is_terminal() {
            complain("millstream: nobody is there to be asked; say --yes");
            return Ok(Exit::Usage);
        }
        if !confirmed()? {
            print_line("Nothing was changed.")?;
            return Ok(Exit::Bad);
        }
    }
    let Some(quiet) = quiet else {
        printed?;
        return Ok(Exit::Bad);
    };
    let queue = open_queue(&config.queue)?;
    let outcome = teardown(&config, &queue, &options, quiet, &mut report).await;
    printed?;
    Ok(match outcome? {
        Outcome::Unchanged => {
            print_line("Nothing is there; nothing was changed.")?;
            Exit::Good
        }
        Outcome::Changed => Exit::Good,
        Outcome::Refused => Exit::Bad,
    })
}

fn announce(lines: &[String]) {
    complain("This takes away for good:");
    lines.iter().for_each(|line| complain(&format!("  {line}")));
}

fn confirmed() -> Result<bool> {
    complain("Type yes to go on:");
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(answer.trim() == "yes")
}
