//! One error type: what kind of failure, where it happened, and the cause kept whole.
//!
//! Errors are classified where they arise, by SQLSTATE, errno or Kafka code and never by message text.
//! [`crate::halt`] maps a kind to what the daemon does about it.

use std::error::Error as StdError;
use std::fmt;

use crate::halt::HaltCode;

/// Result with Millstream's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of failure. The kind decides between retry, halt and stop ([`crate::halt::disposition`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The command line or the configuration is wrong. Exit code 78 (configuration) or 2 (usage).
    Config,
    /// The other end cannot be reached, went away or does not answer. Retried.
    Connection,
    /// The other end asks to try again: deadlock, serialization failure, shutting down, too many connections. Retried.
    Busy,
    /// Somebody else holds what only one may hold (slot, directory, ledger). Retried, and said who.
    Held,
    /// A newer writer or applier took over (I8). This one must stop working and start over from the durable state.
    Fenced,
    /// Bytes whose checksum holds, or that a trusted peer sent, make no sense.
    Malformed,
    /// Bytes whose checksum does not hold.
    Corrupt,
    /// Written by a newer Millstream.
    TooNew,
    /// The disk or the file system failed; an fsync that failed is never tried again.
    Io,
    /// No room on a disk or past a configured limit.
    NoSpace,
    /// A rule says that going on would be wrong; the code says which.
    Halt(HaltCode),
    /// The work was asked to end.
    Cancelled,
    /// Anything not foreseen. Halts; never retried for ever, never skipped.
    Unexpected,
}

/// Millstream's error.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    message: String,
    /// Outermost last.
    context: Vec<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error with a message: one sentence that names the object and, where it is known, the way on.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, message: message.into(), context: Vec::new(), source: None }))
    }

    /// A halt by rule.
    pub fn halt(code: HaltCode, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Halt(code), message)
    }

    /// Keeps the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Adds where it happened: stream, table, position.
    #[must_use]
    pub fn context(mut self, place: impl Into<String>) -> Self {
        self.0.context.push(place.into());
        self
    }

    /// The same error under another kind, for a caller that knows better what it means there.
    #[must_use]
    pub fn with_kind(mut self, kind: ErrorKind) -> Self {
        self.0.kind = kind;
        self
    }

    /// What kind of failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The message alone, without places and causes.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for place in self.0.context.iter().rev() {
            write!(f, "{place}: ")?;
        }
        f.write_str(&self.0.message)?;
        let mut cause = self.0.source.as_ref().map(|e| &**e as &(dyn StdError + 'static));
        let mut said = self.0.message.clone();
        while let Some(error) = cause {
            let text = error.to_string();
            if !said.contains(&text) {
                write!(f, ": {text}")?;
                said = text;
            }
            cause = error.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_ref().map(|e| &**e as &(dyn StdError + 'static))
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        use std::io::ErrorKind as Io;
        let kind = match error.kind() {
            Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge => ErrorKind::NoSpace,
            Io::ConnectionRefused
            | Io::ConnectionReset
            | Io::ConnectionAborted
            | Io::NotConnected
            | Io::BrokenPipe
            | Io::TimedOut
            | Io::HostUnreachable
            | Io::NetworkUnreachable
            | Io::NetworkDown
            | Io::UnexpectedEof => ErrorKind::Connection,
            _ => ErrorKind::Io,
        };
        Self::new(kind, error.to_string()).with_source(error)
    }
}

/// Adds a place to the error of a result.
pub trait Context<T> {
    /// Adds where it happened; made only when there is an error.
    fn at<S: Into<String>>(self, place: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for std::result::Result<T, E> {
    fn at<S: Into<String>>(self, place: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|error| error.into().context(place()))
    }
}
