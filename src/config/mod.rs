//! The configuration: one TOML file, environment overrides, secrets from files.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

/// The whole configuration, valid in itself.
#[derive(Clone, Debug)]
pub struct Config {
    /// Captured databases by name.
    pub sources: BTreeMap<String, SourceConfig>,
    /// Where the log waits.
    pub queue: QueueConfig,
    /// Databases applied to, by name.
    pub replicas: BTreeMap<String, ReplicaConfig>,
    /// HTTP, when asked for.
    pub http: Option<HttpConfig>,
}

/// How to reach a PostgreSQL server, from a libpq URL and the secrets beside it.
#[derive(Clone, Debug)]
pub struct PgConnect {
    /// Where it listens.
    pub host: PgHost,
    /// Port, also part of a Unix socket's name.
    pub port: u16,
    /// Role.
    pub user: String,
    /// Database.
    pub database: String,
    /// Password, if one is needed.
    pub password: Option<SecretString>,
    /// TLS, as libpq's `sslmode`. `verify-full` by default off loopback, `prefer` on it, ignored on a Unix socket.
    pub tls: TlsMode,
    /// `sslrootcert`: certificates to trust instead of the system's.
    pub root_certificate: Option<PathBuf>,
    /// `sslcert` and `sslkey`.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
    /// `connect_timeout`.
    pub connect_timeout: Duration,
}

/// Where a PostgreSQL server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PgHost {
    /// Name or address.
    Tcp(String),
    /// Folder of the socket.
    Unix(PathBuf),
}

/// libpq's `sslmode` (PostgreSQL documentation, "SSL Mode Descriptions").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsMode {
    /// Never.
    Disable,
    /// When the server offers it, unverified.
    Prefer,
    /// Always, unverified.
    Require,
    /// Always, chain verified.
    VerifyCa,
    /// Always, chain and host name verified.
    VerifyFull,
}

/// A captured database.
#[derive(Clone, Debug)]
pub struct SourceConfig {
    /// Its name: also the stream's.
    pub name: String,
    /// How to reach it.
    pub connect: PgConnect,
    /// Patterns of tables, `!` excludes; the last that matches decides.
    pub tables: Vec<String>,
    /// WAL that the slot may retain on the source (I7).
    pub retain_max_bytes: u64,
    /// What happens past it.
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

/// What to do when the source retains more than its budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnRetainLimit {
    /// Say so, loudly.
    Alarm,
    /// Drop the slot to save the source; the stream halts with loss.
    DropSlot,
}

/// Where the log waits.
#[derive(Clone, Debug)]
pub struct QueueConfig {
    /// Which queue.
    pub kind: QueueKind,
    /// Most bytes from the slowest consumer to the end (I6).
    pub max_bytes: u64,
}

/// Which queue.
#[derive(Clone, Debug)]
pub enum QueueKind {
    /// `embedded:/folder`
    Embedded {
        /// Its folder.
        folder: PathBuf,
    },
    /// `kafka://host:port,…`
    Kafka {
        /// `bootstrap.servers`.
        brokers: String,
        /// `[queue.kafka]`: passed to librdkafka, passwords resolved.
        settings: BTreeMap<String, String>,
        /// Prefix of the topics' names.
        topic_prefix: String,
        /// Replication factor of topics that are created.
        replication_factor: i32,
    },
}

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
}

/// The daemon's HTTP side.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// Address; loopback unless asked otherwise.
    pub listen: SocketAddr,
    /// Bearer token for addresses off loopback.
    pub token: Option<SecretString>,
    /// `/readyz` answers 503 past this lag.
    pub ready_max_lag: Duration,
}
