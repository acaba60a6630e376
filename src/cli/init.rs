//! `millstream init`: what a pair needs and is not there yet.

use std::os::unix::fs::MetadataExt as _;

use clap::Args;

use super::Exit;
use super::output::print_line;
use crate::config::{Config, ConfigFile, QueueKind};
use crate::daemon::open_queue;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Position;
use crate::preflight::init::{self, Adopt, InitOptions, Line, Outcome};

/// For `--help`.
pub const EXAMPLE: &str = "\
Examples:
  millstream init --dry-run          (the SQL, to read first)
  millstream init --replica reports
  millstream init --source shop --superuser-sql | psql -X -v ON_ERROR_STOP=1 -U postgres shop";

/// Arguments of `millstream init`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Print the SQL and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Only this source and its replicas.
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// Only this replica and its source.
    #[arg(long, value_name = "NAME")]
    replica: Option<String>,
    /// Print the SQL that a superuser runs on the source so that schema changes are carried, where the daemon's role may not create event
    /// triggers, and do nothing.
    #[arg(long, requires = "source", conflicts_with_all = ["dry_run", "adopt", "replica"])]
    superuser_sql: bool,
    /// The replica holds the rows already: loaded while writers stood still, or (with --at) a physical backup recovered to an LSN.
    #[arg(long)]
    adopt: bool,
    /// Where the physical backup left the source's history.
    #[arg(long, value_name = "POSITION", requires = "adopt")]
    at: Option<Position>,
}

pub(super) async fn run(config: Config, arguments: Arguments) -> Result<Exit> {
    if let Some(source) = arguments.source.as_deref().filter(|_| arguments.superuser_sql) {
        print_line(&init::superuser_sql(&config, source).await?)?;
        return Ok(Exit::Good);
    }
    as_the_daemons_user(&config)?;
    let queue = open_queue(&config.queue)?;
    let adopt = arguments.adopt.then_some(Adopt { at: arguments.at });
    let options = InitOptions { source: arguments.source, replica: arguments.replica, dry_run: arguments.dry_run, adopt };
    let mut printed = Ok(());
    let mut report = |line: Line| {
        if printed.is_ok() {
            printed = tell(line, &config.file);
        }
    };
    // A reader of the output who has left does not stop half-done work.
    let outcome = init::init(&config, &queue, &options, &mut report).await?;
    printed?;
    Ok(match outcome {
        Outcome::Unchanged => {
            print_line("Everything is there; nothing was changed.")?;
            Exit::Good
        }
        Outcome::Changed => Exit::Good,
        Outcome::Refused => Exit::Bad,
    })
}

/// One line of a report on standard output, as `init` and `teardown` give it.
pub(super) fn tell(line: Line, file: &ConfigFile) -> Result<()> {
    let text = match line {
        Line::Sql { place, statement } => return print_line(&format!("-- {place}\n{statement};")),
        Line::Done(text) => text,
        Line::Waiting(text) => format!("Waiting: {text}"),
        // As SQL has it: a dry run's output can be fed to psql.
        Line::Note(text) => format!("-- Note: {text}"),
        Line::Refused(text) => format!("Refused: {text}"),
    };
    print_line(&file.name_in_commands(&text))
}

/// Files made by root in a folder of the daemon's user would keep the daemon out.
pub(super) fn as_the_daemons_user(config: &Config) -> Result<()> {
    let QueueKind::Embedded { folder } = &config.queue.kind else { return Ok(()) };
    let Ok(owner) = std::fs::metadata(folder).map(|meta| meta.uid()) else { return Ok(()) };
    if owner == 0 || !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let message = format!(
        "{} belongs to the daemon's user (uid {owner}) and this is root, whose files the daemon could not write; run it as that user: \
         sudo -u millstream millstream …",
        folder.display()
    );
    Err(Error::new(ErrorKind::Config, message))
}
