//! `[replica.NAME]`: a database that is applied to.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use serde::Deserialize;

use super::Build;
use super::size::{ByteSize, Period};
use super::source::SourceConfig;
use super::url::PgConnect;
use crate::error::Result;

/// A database that is applied to.
#[derive(Clone, Debug)]
pub struct ReplicaConfig {
    /// Its name: also the consumer's and the ledger row's.
    pub name: String,
    /// Name of its source.
    pub source: String,
    /// How to reach it.
    pub connect: PgConnect,
    /// Most bytes of changes merged into one replica transaction.
    pub merge_max_bytes: usize,
    /// Most changes merged into one replica transaction.
    pub merge_max_changes: u64,
    /// How often sequences are carried; zero for never.
    pub sequences_interval: Duration,
}

/// As written.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawReplica {
    pub source: Option<String>,
    pub url: Option<SecretString>,
    pub password: Option<SecretString>,
    pub password_file: Option<PathBuf>,
    #[serde(default = "default_merge_max_bytes")]
    pub merge_max_bytes: ByteSize,
    #[serde(default = "default_merge_max_changes")]
    pub merge_max_changes: u64,
    #[serde(default = "default_sequences_interval")]
    pub sequences_interval: Period,
}

fn default_sequences_interval() -> Period {
    Period(Duration::from_secs(10))
}

fn default_merge_max_bytes() -> ByteSize {
    ByteSize(4 << 20)
}

fn default_merge_max_changes() -> u64 {
    10_000
}

impl Build<'_> {
    pub(super) fn replica(
        &mut self,
        name: &str,
        raw: RawReplica,
        sources: &BTreeMap<String, SourceConfig>,
    ) -> Result<ReplicaConfig> {
        let key = |last: &'static str| ["replica", name, last];
        let known = || sources.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        let source = raw
            .source
            .ok_or_else(|| self.error(&key("source"), format!("missing; name the source to follow, one of: {}", known())))?;
        let from = sources
            .get(&source)
            .ok_or_else(|| self.error(&key("source"), format!("there is no [source.{source}]; the sources are: {}", known())))?;
        let connect = self.connect(&["replica", name], raw.url, raw.password, raw.password_file)?;
        let same = |c: &PgConnect| (c.host.clone(), c.port, c.database.clone());
        if same(&connect) == same(&from.connect) {
            return Err(self.error(&key("url"), format!("this is the database of [source.{source}] itself")));
        }
        self.at_least(&key("merge_max_bytes"), raw.merge_max_bytes, 64 << 10)?;
        if raw.merge_max_changes == 0 {
            return Err(self.error(&key("merge_max_changes"), "must be at least 1"));
        }
        let interval = raw.sequences_interval.0;
        if !interval.is_zero() && !(Duration::from_secs(1)..=Duration::from_secs(86_400)).contains(&interval) {
            return Err(self.error(&key("sequences_interval"), "must be \"0s\" (never), or lie between 1s and 24h"));
        }
        Ok(ReplicaConfig {
            name: name.to_owned(),
            source,
            connect,
            merge_max_bytes: usize::try_from(raw.merge_max_bytes.0).unwrap_or(usize::MAX),
            merge_max_changes: raw.merge_max_changes,
            sequences_interval: interval,
        })
    }
}
