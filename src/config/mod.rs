//! The configuration: one TOML file, environment overrides, secrets from files.
//!
//! Loading goes in three steps, so that every complaint names its place:
//!
//! 1. the file alone is read by `toml` into the `Raw…` structs (unknown keys and wrong types: file, line, column, caret);
//! 2. the environment (`MILLSTREAM__SOURCE__SHOP__URL`) is laid over it by the `config` crate (a complaint now is about a variable);
//! 3. the raw values become a [`Config`]: URLs are taken apart, secrets read, names crossed with each other (file, line, key).
//!
//! A [`Config`] is valid in itself; nothing behind it looks at text again. Its `Debug` shows no secret.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub mod access;
mod control;
pub mod difference;
mod file;
mod http;
mod layers;
mod place;
mod queue;
mod replica;
mod secret;
mod size;
mod source;
mod url;

pub use control::ControlConfig;
pub use difference::Difference;
pub use file::ConfigFile;
pub use http::{HttpConfig, LogConfig, LogFormat};
pub use layers::Environment;
pub use queue::{QueueConfig, QueueKind};
pub use replica::ReplicaConfig;
pub use size::{ByteSize, Period};
pub use source::{OnRetainLimit, SchemaChanges, SourceConfig};
pub use url::{PgConnect, PgHost, TlsMode};

use crate::error::{Error, ErrorKind, Result};
use layers::RawConfig;
use place::Document;

/// Where the configuration is when nobody says otherwise.
pub const DEFAULT_PATH: &str = "/etc/millstream/millstream.toml";

/// The whole configuration, valid in itself.
#[derive(Clone, Debug)]
pub struct Config {
    /// Captured databases by name.
    pub sources: BTreeMap<String, SourceConfig>,
    /// Where the log waits.
    pub queue: QueueConfig,
    /// Databases applied to, by name.
    pub replicas: BTreeMap<String, ReplicaConfig>,
    /// HTTP; `None` when switched off.
    pub http: Option<HttpConfig>,
    /// The local socket for orders.
    pub control: ControlConfig,
    /// What is logged, and how.
    pub log: LogConfig,
    /// What was accepted but should be changed: one sentence each.
    pub warnings: Vec<String>,
    /// The file that it was read from.
    pub file: ConfigFile,
}

impl Config {
    /// Reads a file, with this process's environment over it.
    ///
    /// # Errors
    /// [`ErrorKind::Config`], with file, place, key and the way on.
    pub fn load(path: &Path) -> Result<Self> {
        Self::read(path, false)
    }

    /// As [`Config::load`], for a check of everything: a database whose password file cannot be read says so itself ([`PgConnect::unread`]) and stops no other.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_to_check(path: &Path) -> Result<Self> {
        Self::read(path, true)
    }

    fn read(path: &Path, to_check: bool) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|error| unreadable(path, &error))?;
        Self::build(path, &text, &Environment::of_process()?, to_check)
    }

    /// As [`Config::load`], from a text and an environment at hand.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(path: &Path, text: &str, environment: &Environment) -> Result<Self> {
        Self::build(path, text, environment, false)
    }

    fn build(path: &Path, text: &str, environment: &Environment, to_check: bool) -> Result<Self> {
        let document = Document::new(path, text);
        let (file_alone, raw) = layers::read(&document, environment)?;
        let mut build = Build { document: &document, environment, warnings: Vec::new(), to_check };
        build.cleartext_warnings(&file_alone);
        build.config(raw, ConfigFile::new(path, text))
    }

    /// The replicas of a source.
    pub fn replicas_of<'a>(&'a self, source: &'a str) -> impl Iterator<Item = &'a ReplicaConfig> {
        self.replicas.values().filter(move |replica| replica.source == source)
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    let shown = path.display();
    let message = match error.kind() {
        std::io::ErrorKind::NotFound => {
            format!("{shown}: there is no such file; name the configuration with --config or MILLSTREAM_CONFIG")
        }
        std::io::ErrorKind::PermissionDenied => access::refused(path),
        std::io::ErrorKind::IsADirectory => {
            format!("{shown}: it is a folder; name the file in it with --config or MILLSTREAM_CONFIG")
        }
        std::io::ErrorKind::InvalidData => format!("{shown}: it is not UTF-8 text; a configuration is a TOML file in UTF-8"),
        _ => format!("{shown}: {error}"),
    };
    Error::new(ErrorKind::Config, message)
}

/// A file that the configuration names and that cannot be read.
fn unopened(path: &Path, error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => format!("cannot read {}", access::refused(path)),
        _ => format!("cannot read {}: {error}", path.display()),
    }
}

/// Turns raw values into a [`Config`], with what is needed to complain well.
struct Build<'a> {
    document: &'a Document<'a>,
    environment: &'a Environment,
    warnings: Vec<String>,
    /// What is wrong with one database's password file is let pass.
    to_check: bool,
}

impl Build<'_> {
    fn config(mut self, raw: RawConfig, file: ConfigFile) -> Result<Config> {
        let queue_path = ["queue"];
        let raw_queue = raw.queue.ok_or_else(|| {
            self.error(&[], "[queue] is missing; the simplest one is [queue] url = \"embedded:/var/lib/millstream\"")
        })?;
        let queue = self.queue(&queue_path, raw_queue)?;
        let mut sources = BTreeMap::new();
        for (name, raw) in raw.source {
            self.name(&["source", &name])?;
            sources.insert(name.clone(), self.source(&name, raw, &queue)?);
        }
        let mut replicas: BTreeMap<String, ReplicaConfig> = BTreeMap::new();
        for (name, raw) in raw.replica {
            self.name(&["replica", &name])?;
            let replica = self.replica(&name, raw, &sources)?;
            let place =
                |r: &ReplicaConfig| (r.source.clone(), r.connect.host.clone(), r.connect.port, r.connect.database.clone());
            if let Some(other) = replicas.values().find(|other| place(other) == place(&replica)) {
                let message =
                    format!("the database that replica.{} is applied to; each replica of a source needs its own", other.name);
                return Err(self.error(&["replica", &name, "url"], message));
            }
            replicas.insert(name.clone(), replica);
        }
        if sources.is_empty() {
            return Err(self.error(&[], "no [source.NAME] is configured; name at least one database to capture"));
        }
        for name in sources.keys() {
            if !replicas.values().any(|replica: &ReplicaConfig| replica.source == *name) {
                self.warnings.push(format!("source '{name}' has no [replica.NAME] with source = \"{name}\""));
            }
        }
        let http = self.http(raw.http.unwrap_or_default())?;
        let control = self.control(raw.control.unwrap_or_default(), &queue)?;
        let log = self.log(raw.log.unwrap_or_default())?;
        Ok(Config { sources, queue, replicas, http, control, log, warnings: self.warnings, file })
    }

    /// An error at a key: where it stands in the file, or the variable that set it.
    fn error(&self, key: &[&str], message: impl AsRef<str>) -> Error {
        let variable = layers::variable_name(key);
        let place = if !key.is_empty() && self.environment.has(&variable) {
            format!("environment variable {variable}")
        } else {
            self.document.place_of(key)
        };
        let shown = if key.is_empty() { String::new() } else { format!("{}: ", key.join(".")) };
        Error::new(ErrorKind::Config, format!("{place}: {shown}{}", message.as_ref()))
    }

    /// Names become parts of slot names, topic names, folders and variables.
    fn name(&self, key: &[&str]) -> Result<()> {
        let name = key.last().copied().unwrap_or_default();
        let plain = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        let starts = name.as_bytes().first().is_some_and(u8::is_ascii_lowercase);
        if plain && starts && !name.contains("__") && name.len() <= 32 {
            return Ok(());
        }
        let rule = "a name is 1 to 32 of a-z, 0-9 and single _, and begins with a letter (it becomes part of a slot name)";
        Err(self.error(key, format!("'{name}' cannot be a name: {rule}")))
    }

    /// A file that must be there now rather than fail an hour later.
    fn file(&self, key: &[&str], path: PathBuf) -> Result<PathBuf> {
        match std::fs::File::open(&path) {
            Ok(_) => Ok(path),
            Err(error) => Err(self.error(key, unopened(&path, &error))),
        }
    }

    fn absolute(&self, key: &[&str], path: PathBuf) -> Result<PathBuf> {
        if path.is_absolute() {
            return Ok(path);
        }
        Err(self.error(key, format!("'{}' must be an absolute path, beginning with /", path.display())))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The keys that a table takes, from what it says about one that it does not take.
    fn keys_of(table: &str) -> BTreeSet<String> {
        let text = format!("[{table}]\nno_such_key = 1\n");
        let error = Config::parse(Path::new("x.toml"), &text, &Environment::default()).expect_err("an unknown key").to_string();
        let (_, expected) = error.split_once("expected").expect("a list of keys");
        let expected = expected.split('\n').next().unwrap_or_default();
        expected.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    }

    /// The keys in the first column of the tables under a heading.
    fn documented(heading: &str) -> BTreeSet<String> {
        let document = include_str!("../../docs/configuration.md");
        let section = document.split("\n## ").find(|section| section.starts_with(heading)).expect(heading);
        section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).map(str::to_owned).collect()
    }

    #[test]
    fn every_key_is_documented_and_every_documented_key_is_taken() {
        for (table, heading) in [
            ("source.shop", "[source.NAME]"),
            ("queue", "[queue]"),
            ("replica.reports", "[replica.NAME]"),
            ("http", "[http]"),
            ("control", "[control]"),
            ("log", "[log]"),
        ] {
            assert_eq!(documented(heading), keys_of(table), "{heading}");
        }
        let own: BTreeSet<_> = queue::OWN_KAFKA_KEYS.iter().map(|&key| key.to_owned()).collect();
        assert_eq!(documented("[queue.kafka]"), own);
    }

    #[test]
    fn the_sample_in_deploy_is_valid() {
        let text = include_str!("../../deploy/millstream.toml");
        // Its secrets' files are not on this machine.
        let text: String = text.lines().filter(|line| !line.contains("_file")).map(|line| format!("{line}\n")).collect();
        Config::parse(Path::new("millstream.toml"), &text, &Environment::default()).expect("the sample");
    }
}
