//! How the program ends: one number per meaning, the same for every command.

use crate::error::{Error, ErrorKind};
use crate::halt::{Disposition, HaltCode, disposition};

/// The exit codes. `docs/operations.md` lists them for scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// All good; warnings too, unless `--strict`.
    Good = 0,
    /// A negative verdict: something is halted, a finding is an error.
    Bad = 1,
    /// The command line is wrong.
    Usage = 2,
    /// Could not tell: the daemon, a server or the queue did not answer.
    Unknown = 3,
    /// Failed for now; trying again may help (`EX_TEMPFAIL`).
    Temporary = 75,
    /// The configuration is wrong; trying again does not help (`EX_CONFIG`).
    Config = 78,
}

/// For `--help`.
pub const HELP: &str = "\
Exit codes:
  0   good (warnings too, unless --strict)
  1   a negative verdict
  2   the command line is wrong
  3   could not tell: something did not answer
  75  failed for now; try again
  78  the configuration is wrong";

impl Exit {
    /// Every code.
    pub const ALL: [Self; 6] = [Self::Good, Self::Bad, Self::Usage, Self::Unknown, Self::Temporary, Self::Config];

    /// The code of a number that another process gave; one that is no code could not be told.
    #[must_use]
    pub fn from_code(code: u8) -> Self {
        Self::ALL.into_iter().find(|exit| *exit as u8 == code).unwrap_or(Self::Unknown)
    }

    /// What an error of a command means to whoever called it.
    #[must_use]
    pub fn of(error: &Error) -> Self {
        match error.kind() {
            ErrorKind::Config => Self::Config,
            ErrorKind::Connection => Self::Unknown,
            ErrorKind::Busy | ErrorKind::Held | ErrorKind::Fenced | ErrorKind::NoSpace | ErrorKind::Cancelled => Self::Temporary,
            ErrorKind::Malformed
            | ErrorKind::Corrupt
            | ErrorKind::TooNew
            | ErrorKind::Io
            | ErrorKind::Halt(_)
            | ErrorKind::Unexpected => Self::Bad,
        }
    }
}

/// What a command says as it ends with an error: the code that log, status and metric show for the same cause, and the words.
///
/// A wrong configuration has no code here: its exit code says it, and the message names the key.
#[must_use]
pub fn message(error: &Error) -> String {
    match disposition(error) {
        Disposition::Halt(code) if code != HaltCode::Misconfigured => {
            format!("millstream: [{code}] {error}; see `millstream explain {code}`")
        }
        _ => format!("millstream: {error}"),
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
