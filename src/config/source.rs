//! `[source.NAME]`: a captured database.

use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use serde::Deserialize;

use super::layers::variable_name;
use super::queue::{QueueConfig, QueueKind};
use super::secret::Places;
use super::size::{ByteSize, Period};
use super::url::PgConnect;
use super::{Build, url};
use crate::error::Result;
use crate::preflight::tables::TablePatterns;

/// A captured database.
#[derive(Clone, Debug)]
pub struct SourceConfig {
    /// Its name: also the stream's.
    pub name: String,
    /// How to reach it.
    pub connect: PgConnect,
    /// Patterns of tables, `!` excludes; the last that matches decides ([`TablePatterns`] reads them).
    pub tables: Vec<String>,
    /// What becomes of its schema changes.
    pub schema_changes: SchemaChanges,
    /// WAL that the slot may retain on the source (I7).
    pub retain_max_bytes: u64,
    /// How long the slot may stand still while the source goes on (I7).
    pub retain_max_age: Duration,
    /// What happens past either.
    pub on_retain_limit: OnRetainLimit,
    /// Memory for transactions in progress; past it they spill.
    pub memory_bytes: u64,
    /// Disk for spilled transactions.
    pub spill_max_bytes: u64,
    /// Where they spill.
    pub spill_dir: PathBuf,
    /// How often a heartbeat travels through the source's log.
    pub heartbeat_interval: Duration,
    /// Parallel readers of a first copy.
    pub copy_workers: usize,
    /// Rate limit of a first copy in bytes per second; `None` for none.
    pub copy_max_bytes_per_second: Option<u64>,
    /// Rows (estimated) of a chunk of a first copy.
    pub copy_chunk_rows: u64,
}

/// What becomes of a source's schema changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SchemaChanges {
    /// Event triggers on the source put them into the log, and replicas make them. Where the triggers cannot be had, as [`Self::Halt`].
    #[default]
    Carry,
    /// Nothing is installed on the source; a replica halts at the first change that does not fit its table.
    Halt,
}

/// What to do when the source retains more than its budget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnRetainLimit {
    /// Say so, loudly.
    #[default]
    Alarm,
    /// Drop the slot to save the source; the stream halts with loss.
    DropSlot,
}

/// As written.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSource {
    pub url: Option<SecretString>,
    pub password: Option<SecretString>,
    pub password_file: Option<PathBuf>,
    pub tables: Option<Texts>,
    #[serde(default)]
    pub schema_changes: SchemaChanges,
    #[serde(default = "default_retain_max_bytes")]
    pub retain_max_bytes: ByteSize,
    #[serde(default = "default_retain_max_age")]
    pub retain_max_age: Period,
    #[serde(default)]
    pub on_retain_limit: OnRetainLimit,
    #[serde(default = "default_memory_bytes")]
    pub memory_bytes: ByteSize,
    #[serde(default = "default_spill_max_bytes")]
    pub spill_max_bytes: ByteSize,
    pub spill_dir: Option<PathBuf>,
    #[serde(default = "default_heartbeat_interval")]
    pub heartbeat_interval: Period,
    #[serde(default = "default_copy_workers")]
    pub copy_workers: u64,
    pub copy_max_bytes_per_second: Option<ByteSize>,
    #[serde(default = "default_copy_chunk_rows")]
    pub copy_chunk_rows: u64,
}

fn default_retain_max_bytes() -> ByteSize {
    ByteSize(50 << 30)
}

fn default_retain_max_age() -> Period {
    Period(Duration::from_secs(7 * 86_400))
}

fn default_memory_bytes() -> ByteSize {
    ByteSize(32 << 20)
}

fn default_spill_max_bytes() -> ByteSize {
    ByteSize(100 << 30)
}

fn default_heartbeat_interval() -> Period {
    Period(Duration::from_secs(1))
}

fn default_copy_workers() -> u64 {
    4
}

fn default_copy_chunk_rows() -> u64 {
    200_000
}

/// A list of texts; in the environment one text with commas.
#[derive(Clone, Deserialize)]
#[serde(untagged, expecting = "a list of texts, such as [\"public.*\", \"!public.scratch_*\"]")]
pub(super) enum Texts {
    List(Vec<String>),
    Commas(String),
}

impl Texts {
    pub fn into_list(self) -> Vec<String> {
        match self {
            Self::List(list) => list,
            Self::Commas(text) => text.split(',').map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect(),
        }
    }
}

impl Build<'_> {
    pub(super) fn source(&mut self, name: &str, raw: RawSource, queue: &QueueConfig) -> Result<SourceConfig> {
        let table = ["source", name];
        let key = |last: &'static str| ["source", name, last];
        let connect = self.connect(&table, raw.url, raw.password, raw.password_file)?;
        let tables = raw.tables.map(Texts::into_list).unwrap_or_default();
        TablePatterns::parse(&tables).map_err(|error| self.error(&key("tables"), error.message()))?;
        if tables.iter().all(|pattern| pattern.starts_with('!')) {
            let way = "name the tables to capture, such as tables = [\"public.*\"]";
            return Err(self.error(&key("tables"), way));
        }
        self.at_least(&key("retain_max_bytes"), raw.retain_max_bytes, 64 << 20)?;
        self.at_least(&key("memory_bytes"), raw.memory_bytes, 1 << 20)?;
        self.at_least(&key("spill_max_bytes"), raw.spill_max_bytes, 1 << 20)?;
        let heartbeat = raw.heartbeat_interval.0;
        if !(Duration::from_millis(10)..=Duration::from_secs(3600)).contains(&heartbeat) {
            return Err(self.error(&key("heartbeat_interval"), "must lie between 10ms and 1h"));
        }
        // An idle stream confirms with each heartbeat.
        if raw.retain_max_age.0 < Duration::from_secs(60).max(heartbeat * 3) {
            return Err(self.error(&key("retain_max_age"), "must be at least 1m, and three times heartbeat_interval"));
        }
        if !(1..=64).contains(&raw.copy_workers) {
            return Err(self.error(&key("copy_workers"), "must lie between 1 and 64"));
        }
        if raw.copy_chunk_rows == 0 {
            return Err(self.error(&key("copy_chunk_rows"), "must be at least 1"));
        }
        if let Some(rate) = raw.copy_max_bytes_per_second {
            self.at_least(&key("copy_max_bytes_per_second"), rate, 1 << 10)?;
        }
        let spill_dir = match (raw.spill_dir, &queue.kind) {
            (Some(folder), _) => self.absolute(&key("spill_dir"), folder)?,
            (None, QueueKind::Embedded { folder }) => folder.join("spill"),
            (None, QueueKind::Kafka { .. }) => PathBuf::from("/var/lib/millstream/spill"),
        };
        Ok(SourceConfig {
            name: name.to_owned(),
            connect,
            tables,
            schema_changes: raw.schema_changes,
            retain_max_bytes: raw.retain_max_bytes.0,
            retain_max_age: raw.retain_max_age.0,
            on_retain_limit: raw.on_retain_limit,
            memory_bytes: raw.memory_bytes.0,
            spill_max_bytes: raw.spill_max_bytes.0,
            spill_dir,
            heartbeat_interval: heartbeat,
            copy_workers: usize::try_from(raw.copy_workers).unwrap_or(64),
            copy_max_bytes_per_second: raw.copy_max_bytes_per_second.map(|rate| rate.0),
            copy_chunk_rows: raw.copy_chunk_rows,
        })
    }

    /// URL and secret of a database, for sources and replicas.
    pub(super) fn connect(
        &mut self,
        table: &[&str; 2],
        raw: Option<SecretString>,
        password: Option<SecretString>,
        password_file: Option<PathBuf>,
    ) -> Result<PgConnect> {
        let url_key = [table[0], table[1], "url"];
        let text = raw.ok_or_else(|| self.error(&url_key, "missing; write url = \"postgres://millstream@db1/shop\""))?;
        let mut connect = url::parse(&text).map_err(|why| self.error(&url_key, why))?;
        let credential = format!("{}.{}.password", table[0], table[1]);
        let by_variable = self.environment.has(&variable_name(&[table[0], table[1], "password"]));
        connect.password_file = password_file.clone().filter(|_| !by_variable);
        connect.unread = if self.to_check { self.unread(table, connect.password_file.as_deref()) } else { None };
        let password_file = password_file.filter(|_| connect.unread.is_none());
        connect.password = self.secret(Places {
            table,
            key: "password",
            credential: &credential,
            value: password,
            file: password_file,
            in_url: connect.password.take(),
        })?;
        for path in connect.root_certificate.iter().chain(connect.client_certificate.iter().flat_map(|(c, k)| [c, k])) {
            self.file(&url_key, path.clone())?;
        }
        Ok(connect)
    }

    pub(super) fn at_least(&self, key: &[&str], size: ByteSize, least: u64) -> Result<()> {
        if size.0 >= least {
            return Ok(());
        }
        Err(self.error(key, format!("{size} is too small; the least is {}", ByteSize(least))))
    }
}
