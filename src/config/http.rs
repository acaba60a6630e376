//! `[http]` and `[log]`: what the daemon tells, to whom.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

use super::Build;
use super::secret::Places;
use super::size::Period;
use super::source::Texts;
use crate::error::Result;

/// The daemon's HTTP side.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// Address; loopback unless asked otherwise.
    pub listen: SocketAddr,
    /// Bearer token for addresses off loopback.
    pub token: Option<SecretString>,
    /// `/readyz` answers 503 past this lag.
    pub ready_max_lag: Duration,
    /// Names, beside `localhost` and plain addresses, that a request's Host header may carry.
    pub hosts: Vec<String>,
}

/// What is logged, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogConfig {
    /// `tracing` filter directives, such as `info` or `info,millstream::capture=debug`. `RUST_LOG` wins.
    pub level: Option<String>,
    /// Shape of a line.
    pub format: LogFormat,
}

/// Shape of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people and journald.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// As written.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawHttp {
    pub listen: Option<String>,
    pub token: Option<SecretString>,
    pub token_file: Option<PathBuf>,
    pub ready_max_lag: Option<Period>,
    pub hosts: Option<Texts>,
}

/// As written.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLog {
    pub level: Option<String>,
    #[serde(default)]
    pub format: LogFormat,
}

const DEFAULT_LISTEN: &str = "127.0.0.1:8321";

impl Build<'_> {
    pub(super) fn http(&mut self, raw: RawHttp) -> Result<Option<HttpConfig>> {
        let text = raw.listen.as_deref().unwrap_or(DEFAULT_LISTEN);
        if text == "off" {
            return Ok(None);
        }
        let key = ["http", "listen"];
        let listen: SocketAddr = text.parse().map_err(|_| {
            self.error(&key, format!("'{text}' is not an address and port; write \"{DEFAULT_LISTEN}\", or \"off\""))
        })?;
        let token = self.secret(Places {
            table: &["http"],
            key: "token",
            credential: "http.token",
            value: raw.token,
            file: raw.token_file,
            in_url: None,
        })?;
        if token.is_none() && !listen.ip().is_loopback() {
            let way = "set token_file to a file with a long random token, or listen on 127.0.0.1";
            return Err(self.error(&key, format!("{listen} can be reached from other machines and no token is set; {way}")));
        }
        if token.as_ref().is_some_and(|token| token.expose_secret().len() < 16) {
            return Err(self.error(
                &["http", "token_file"],
                "the token is shorter than 16 characters; `openssl rand -hex 32` makes a good one",
            ));
        }
        let ready_max_lag = raw.ready_max_lag.map_or(Duration::from_secs(30), |period| period.0);
        Ok(Some(HttpConfig { listen, token, ready_max_lag, hosts: raw.hosts.map(Texts::into_list).unwrap_or_default() }))
    }

    pub(super) fn log(&self, raw: RawLog) -> Result<LogConfig> {
        if let Some(level) = &raw.level {
            level.parse::<tracing_subscriber::filter::EnvFilter>().map_err(|error| {
                self.error(
                    &["log", "level"],
                    format!("'{level}' is not a filter ({error}); write error, warn, info, debug or trace"),
                )
            })?;
        }
        Ok(LogConfig { level: raw.level, format: raw.format })
    }
}
