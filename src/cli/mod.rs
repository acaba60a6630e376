//! The commands: what is read from the command line, who does it, and how the program ends.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{Config, ConfigFile, DEFAULT_PATH};
use crate::error::{Error, ErrorKind, Result};

mod check;
pub mod exit;
mod explain;
mod init;
mod order;
mod output;
mod pause;
mod quarantine;
mod reload;
pub mod render;
mod run;
mod sequences;
mod status;
mod table;
mod tail;
mod tail_filter;
mod tail_start;
mod teardown;

pub use exit::Exit;

/// Database change replication through one durable log.
#[derive(Debug, Parser)]
#[command(name = "millstream", version, about, after_help = exit::HELP, max_term_width = 100, arg_required_else_help = true)]
pub struct Cli {
    /// The configuration file.
    #[arg(short, long, global = true, value_name = "FILE", env = "MILLSTREAM_CONFIG", default_value = DEFAULT_PATH)]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the daemon: captures, queues and applies until it is told to stop.
    #[command(after_help = run::EXAMPLE)]
    Run(run::Arguments),
    /// Looks at source, queue and replica: what is wrong, why it matters, and what mends it.
    #[command(after_help = check::EXAMPLE)]
    Check(check::Arguments),
    /// Makes what is missing: publication, slot, ledger, tables on the replica. Safe to repeat, refuses rather than harms.
    #[command(after_help = init::EXAMPLE)]
    Init(init::Arguments),
    /// Takes away what init made: slot, publication, stream, ledger. Asks first. The replica's tables stay.
    #[command(after_help = teardown::EXAMPLE)]
    Teardown(teardown::Arguments),
    /// Asks the running daemon how its sources and replicas are.
    #[command(after_help = status::EXAMPLE)]
    Status(status::Arguments),
    /// Sets a replica's sequences to where the source's stand, now: the daemon does it at intervals.
    #[command(after_help = sequences::EXAMPLE)]
    Sequences(sequences::Arguments),
    /// Has a replica or a source stand still until `resume`, over restarts of the daemon.
    #[command(after_help = pause::PAUSE_EXAMPLE)]
    Pause(pause::PauseArguments),
    /// Lets a replica or a source that was paused go on.
    #[command(after_help = pause::RESUME_EXAMPLE)]
    Resume(pause::ResumeArguments),
    /// Has the daemon read its configuration again, and says what that changes.
    #[command(after_help = reload::EXAMPLE)]
    Reload(reload::Arguments),
    /// Reads the log.
    #[command(subcommand, after_help = tail::EXAMPLE)]
    Log(Log),
    /// Works on one table of a replica.
    #[command(subcommand, after_help = table::EXAMPLE)]
    Table(Table),
    /// The one way past a transaction that a replica refuses: keeps it aside, whole, at your word. Never by itself.
    #[command(subcommand, after_help = quarantine::EXAMPLE)]
    Quarantine(quarantine::Order),
    /// Says what a halt's code means and what to do; lists all codes without one. Needs nothing that runs.
    #[command(after_help = explain::EXAMPLE)]
    Explain(explain::Arguments),
}

#[derive(Debug, Subcommand)]
enum Log {
    /// Shows changes as Debezium's envelope, one JSON object a line, beside a running daemon or without one.
    #[command(after_help = tail::EXAMPLE)]
    Tail(tail::Arguments),
}

#[derive(Debug, Subcommand)]
enum Table {
    /// Copies a live table again while all others go on. Its readers see the old content until the new one is live.
    #[command(after_help = table::EXAMPLE)]
    Recopy(table::Arguments),
}

/// The program: reads the command line, runs a command, gives the exit code.
#[must_use]
pub fn main() -> ExitCode {
    #[cfg(feature = "failpoints")]
    let _scenario = fail::FailScenario::setup();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    // One TLS provider for everything in the process, before anything could pick another. Fails only when one is there already.
    drop(rustls::crypto::ring::default_provider().install_default());
    let file = ConfigFile::named(&cli.config);
    match cli.run() {
        Ok(exit) => exit.into(),
        Err(error) if error.kind() == ErrorKind::Cancelled => Exit::Good.into(),
        Err(error) => {
            output::complain(&file.name_in_commands(&exit::message(&error)));
            Exit::of(&error).into()
        }
    }
}

/// Help and version are answers, everything else is a complaint.
fn usage(error: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind as Clap;
    let exit = match error.kind() {
        Clap::DisplayHelp | Clap::DisplayVersion => Exit::Good,
        _ => Exit::Usage,
    };
    // A closed stdout is no reason to fail: whoever asked has left.
    drop(error.print());
    exit.into()
}

impl Cli {
    fn run(self) -> Result<Exit> {
        match self.command {
            Command::Explain(arguments) => explain::run(&arguments),
            Command::Run(arguments) => block_on(run::run(Config::load(&self.config)?, arguments)),
            Command::Check(arguments) => block_on(check::run(warned(Config::load_to_check(&self.config)?), arguments)),
            Command::Init(arguments) => block_on(init::run(load(&self.config)?, arguments)),
            Command::Teardown(arguments) => block_on(teardown::run(load(&self.config)?, arguments)),
            Command::Log(Log::Tail(arguments)) => block_on(tail::run(load(&self.config)?, arguments)),
            Command::Sequences(arguments) => block_on(sequences::run(load(&self.config)?, arguments)),
            Command::Pause(arguments) => block_on(pause::pause(load(&self.config)?, arguments)),
            Command::Resume(arguments) => block_on(pause::resume(load(&self.config)?, arguments)),
            Command::Reload(arguments) => block_on(reload::run(load(&self.config)?, arguments)),
            Command::Table(Table::Recopy(arguments)) => block_on(table::run(load(&self.config)?, arguments)),
            Command::Quarantine(order) => block_on(quarantine::run(load(&self.config)?, order)),
            Command::Status(arguments) => block_on(status::run(load(&self.config)?, arguments)),
        }
    }
}

/// The command's own runtime. It is not waited for when the command ends: a blocking call that hangs must not hold the process.
fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::new(ErrorKind::Io, "cannot start threads").with_source(error))?;
    let result = runtime.block_on(work);
    runtime.shutdown_background();
    result
}

/// The configuration, with what is wrong though it was accepted said on standard error.
fn load(path: &Path) -> Result<Config> {
    Config::load(path).map(warned)
}

fn warned(config: Config) -> Config {
    for warning in &config.warnings {
        output::complain(&format!("millstream: warning: {warning}"));
    }
    config
}
