//! The file, then the environment over it.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use config::FileFormat;
use serde::Deserialize;

use super::control::RawControl;
use super::http::{RawHttp, RawLog};
use super::place::Document;
use super::queue::RawQueue;
use super::replica::RawReplica;
use super::source::RawSource;
use crate::error::{Error, ErrorKind, Result};

const PREFIX: &str = "MILLSTREAM__";

/// The file's tables, as written.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawConfig {
    #[serde(default)]
    pub source: BTreeMap<String, RawSource>,
    pub queue: Option<RawQueue>,
    #[serde(default)]
    pub replica: BTreeMap<String, RawReplica>,
    pub http: Option<RawHttp>,
    pub control: Option<RawControl>,
    pub log: Option<RawLog>,
}

/// What the environment says: overrides, and systemd's credentials folder.
#[derive(Clone, Default)]
pub struct Environment {
    overrides: HashMap<String, String>,
    credentials: Option<PathBuf>,
}

impl Environment {
    /// This process's environment.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for one of our variables that is not UTF-8.
    pub fn of_process() -> Result<Self> {
        let mut overrides = HashMap::new();
        for (name, value) in std::env::vars_os() {
            let Ok(name) = name.into_string() else { continue };
            if !name.starts_with(PREFIX) {
                continue;
            }
            let value = value
                .into_string()
                .map_err(|_| Error::new(ErrorKind::Config, format!("environment variable {name}: its value is not UTF-8")))?;
            overrides.insert(name, value);
        }
        let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
        Ok(Self { overrides, credentials })
    }

    /// An environment of these variables, for tests and tools.
    pub fn of<K: Into<String>, V: Into<String>>(variables: impl IntoIterator<Item = (K, V)>) -> Self {
        let mut environment = Self::default();
        for (name, value) in variables {
            let (name, value) = (name.into(), value.into());
            if name == "CREDENTIALS_DIRECTORY" {
                environment.credentials = Some(PathBuf::from(value));
            } else if name.starts_with(PREFIX) {
                environment.overrides.insert(name, value);
            }
        }
        environment
    }

    pub(super) fn has(&self, variable: &str) -> bool {
        self.overrides.contains_key(variable)
    }

    /// systemd's credential of a name, when systemd passed one (systemd.exec(5), `LoadCredential=`).
    pub(super) fn credential(&self, name: &str) -> Option<PathBuf> {
        self.credentials.as_ref().map(|folder| folder.join(name)).filter(|path| path.exists())
    }

    fn names(&self) -> String {
        let mut names: Vec<_> = self.overrides.keys().map(String::as_str).collect();
        names.sort_unstable();
        names.join(", ")
    }
}

/// The variable that sets a key.
pub(super) fn variable_name(key: &[&str]) -> String {
    format!("{PREFIX}{}", key.iter().map(|part| part.to_uppercase().replace('.', "_")).collect::<Vec<_>>().join("__"))
}

/// The file alone, and the file with the environment over it.
pub(super) fn read(document: &Document<'_>, environment: &Environment) -> Result<(RawConfig, RawConfig)> {
    let file: RawConfig = toml::from_str(document.text()).map_err(|error| document.complaint(&error))?;
    if environment.overrides.is_empty() {
        return Ok((file.clone(), file));
    }
    for name in environment.overrides.keys() {
        if name.chars().any(|c| c.is_ascii_lowercase()) {
            let message = format!(
                "environment variable {name}: write it in capitals, such as {}",
                variable_name(&["source", "shop", "url"])
            );
            return Err(Error::new(ErrorKind::Config, message));
        }
    }
    let variables = config::Environment::with_prefix("MILLSTREAM")
        .prefix_separator("__")
        .separator("__")
        .source(Some(environment.overrides.clone().into_iter().collect()));
    let merged: RawConfig = config::Config::builder()
        .add_source(config::File::from_str(document.text(), FileFormat::Toml))
        .add_source(variables)
        .build()
        .and_then(config::Config::try_deserialize)
        .map_err(|error| complaint(&error, environment))?;
    strangers("source", file.source.keys(), merged.source.iter().map(|(name, raw)| (name, raw.url.is_some())), environment)?;
    strangers("replica", file.replica.keys(), merged.replica.iter().map(|(name, raw)| (name, raw.url.is_some())), environment)?;
    Ok((file, merged))
}

/// A table that only variables name, and without the URL that makes it one: a name that was misspelt. `merged` says of each table whether it has a URL.
fn strangers<'a>(
    kind: &str,
    file: impl Iterator<Item = &'a String>,
    merged: impl Iterator<Item = (&'a String, bool)>,
    environment: &Environment,
) -> Result<()> {
    let known: Vec<&str> = file.map(String::as_str).collect();
    let mut unknown = merged.filter(|(name, has_url)| !has_url && !known.contains(&name.as_str()));
    let Some((name, _)) = unknown.next() else { return Ok(()) };
    let prefix = format!("{}__", variable_name(&[kind, name]));
    let mut variables: Vec<&str> =
        environment.overrides.keys().map(String::as_str).filter(|variable| variable.starts_with(&prefix)).collect();
    variables.sort_unstable();
    let has = match known.as_slice() {
        [] => format!("no [{kind}.NAME]"),
        some => some.iter().map(|name| format!("[{kind}.{name}]")).collect::<Vec<_>>().join(", "),
    };
    let message = format!(
        "environment variable {}: there is no [{kind}.{name}]; the file has {has}. To make one by the environment, set {prefix}URL as well",
        variables.join(", ")
    );
    Err(Error::new(ErrorKind::Config, message))
}

/// The file alone was good, so a variable is to blame. Its value is not repeated: it may be a secret.
fn complaint(error: &config::ConfigError, environment: &Environment) -> Error {
    let detail = match error {
        config::ConfigError::Type { expected, key, .. } => {
            let key = key.as_deref().unwrap_or_default();
            let parts: Vec<_> = key.split('.').collect();
            let variable = variable_name(&parts);
            if environment.has(&variable) {
                return Error::new(ErrorKind::Config, format!("environment variable {variable}: its value is not {expected}"));
            }
            format!("a value is not {expected}")
        }
        config::ConfigError::At { error, key: Some(key), .. } => {
            let parts: Vec<_> = key.split('.').collect();
            return complaint_at(&variable_name(&parts), error, environment);
        }
        other => format!("{other}"),
    };
    Error::new(ErrorKind::Config, format!("environment variables ({}): {detail}", environment.names()))
}

fn complaint_at(variable: &str, error: &config::ConfigError, environment: &Environment) -> Error {
    let text = error.to_string();
    let known =
        if environment.has(variable) { format!("variable {variable}") } else { format!("variables ({})", environment.names()) };
    let secret = ["PASSWORD", "TOKEN", "URL", "SECRET"].iter().any(|word| variable.contains(word));
    let detail = if secret { "its value cannot be used here".to_owned() } else { text };
    Error::new(ErrorKind::Config, format!("environment {known}: {detail}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_names_its_key() {
        assert_eq!(variable_name(&["source", "shop", "url"]), "MILLSTREAM__SOURCE__SHOP__URL");
        assert_eq!(variable_name(&["queue", "kafka", "sasl.password"]), "MILLSTREAM__QUEUE__KAFKA__SASL_PASSWORD");
    }
}
