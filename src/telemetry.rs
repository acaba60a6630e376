//! Logs: `tracing` to standard error, for people, for journald or as JSON. Never a row's values, never a password.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::{LogConfig, LogFormat};
use crate::error::{Error, ErrorKind, Result};

/// Chatty parts of others are kept to warnings unless asked for by name.
const DEFAULT_LEVEL: &str = "info,sqlx=warn,rdkafka=warn,librdkafka=warn,hyper=warn";

/// Changes what is logged, of the subscriber that [`install`] started.
type SetFilter = Box<dyn Fn(EnvFilter) -> std::result::Result<(), tracing_subscriber::reload::Error> + Send + Sync>;
static SET_FILTER: OnceLock<SetFilter> = OnceLock::new();

/// Starts logging. `RUST_LOG` wins over the configuration.
///
/// # Errors
/// [`ErrorKind::Config`] for a filter that cannot be read, [`ErrorKind::Unexpected`] when logging was started before.
pub fn install(config: &LogConfig) -> Result<()> {
    let filter = filter(config)?;
    let builder = fmt::Subscriber::builder().with_env_filter(filter).with_writer(std::io::stderr);
    // journald stamps every line with its own time.
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    macro_rules! start {
        ($builder:expr) => {{
            let builder = $builder.with_filter_reloading();
            let handle = builder.reload_handle();
            let set: SetFilter = Box::new(move |filter| handle.reload(filter));
            builder.finish().try_init().map(|()| drop(SET_FILTER.set(set)))
        }};
    }
    let started = match config.format {
        LogFormat::Json => start!(builder.json().flatten_event(true)),
        LogFormat::Text if journal => start!(builder.without_time().with_ansi(false).with_target(false)),
        LogFormat::Text => start!(builder.with_ansi(colours).with_target(false)),
    };
    started.map_err(|error| Error::new(ErrorKind::Unexpected, format!("cannot start logging: {error}")))?;
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        // The text of a panic may quote what was being worked on; the place is enough to find it.
        tracing::error!(%place, "a defect in Millstream: a task panicked; please report the place and the lines before it");
    }));
    Ok(())
}

fn filter(config: &LogConfig) -> Result<EnvFilter> {
    let (directives, from) = match (std::env::var("RUST_LOG"), &config.level) {
        (Ok(text), _) if !text.is_empty() => (text, "RUST_LOG"),
        (_, Some(text)) => (text.clone(), "log.level"),
        _ => (DEFAULT_LEVEL.to_owned(), "the default"),
    };
    EnvFilter::try_new(&directives)
        .map_err(|error| Error::new(ErrorKind::Config, format!("{from}: '{directives}' is not a log filter: {error}")))
}

/// Logs by another `log.level` from now on. `RUST_LOG` still wins.
///
/// # Errors
/// As [`install`].
pub fn set_level(config: &LogConfig) -> Result<()> {
    let filter = filter(config)?;
    let Some(set) = SET_FILTER.get() else { return Ok(()) };
    set(filter).map_err(|error| Error::new(ErrorKind::Unexpected, format!("cannot change what is logged: {error}")))
}

/// How often a warning that repeats is let through.
const REPEAT: Duration = Duration::from_secs(60);

/// Lets the first of equal warnings through, then one a minute with the number left out, and notices recovery.
#[derive(Debug, Default)]
pub struct Repeating {
    said: Mutex<HashMap<String, Said>>,
}

#[derive(Debug)]
struct Said {
    text: String,
    last: Instant,
    left_out: u64,
    since: Instant,
}

/// What to do about a warning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Say {
    /// Nothing: it was said a moment ago.
    Nothing,
    /// Say it; so many equal ones were left out since the last.
    Now {
        /// How many were left out.
        left_out: u64,
    },
}

impl Repeating {
    /// A warning about a thing came up.
    pub fn failed(&self, thing: &str, text: &str) -> Say {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        match said.get_mut(thing) {
            Some(entry) if entry.text == text && now - entry.last < REPEAT => {
                entry.left_out += 1;
                Say::Nothing
            }
            Some(entry) => {
                let left_out = std::mem::take(&mut entry.left_out);
                text.clone_into(&mut entry.text);
                entry.last = now;
                Say::Now { left_out }
            }
            None => {
                said.insert(thing.to_owned(), Said { text: text.to_owned(), last: now, left_out: 0, since: now });
                Say::Now { left_out: 0 }
            }
        }
    }

    /// The thing works. Gives for how long it did not, if a warning about it was said.
    pub fn recovered(&self, thing: &str) -> Option<Duration> {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.remove(thing).map(|entry| entry.since.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_warnings_are_said_once_and_recovery_is_noticed() {
        let warnings = Repeating::default();
        assert_eq!(warnings.recovered("db1"), None);
        assert_eq!(warnings.failed("db1", "refused"), Say::Now { left_out: 0 });
        assert_eq!(warnings.failed("db1", "refused"), Say::Nothing);
        assert_eq!(warnings.failed("db1", "timeout"), Say::Now { left_out: 1 });
        assert!(warnings.recovered("db1").is_some());
        assert_eq!(warnings.failed("db1", "timeout"), Say::Now { left_out: 0 });
    }
}
