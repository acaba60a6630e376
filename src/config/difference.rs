//! What differs between two configurations, key by key: what a reload prints, and what it restarts by. Never a secret's value.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use secrecy::{ExposeSecret as _, SecretString};

use super::{
    ByteSize, Config, ControlConfig, HttpConfig, LogConfig, PgConnect, QueueConfig, QueueKind, ReplicaConfig, SourceConfig,
};

/// One key that has another value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Such as `source.shop.copy_workers`.
    pub key: String,
    /// Before and after; `None` for a secret.
    values: Option<(String, String)>,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.values {
            Some((before, after)) => write!(f, "{}: {before} -> {after}", self.key),
            None => write!(f, "{}: changed", self.key),
        }
    }
}

/// The last part of a key that has another value.
pub type Changed = BTreeMap<&'static str, Change>;

/// What became of the tables of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// Only in the new one.
    pub added: Vec<String>,
    /// Only in the old one.
    pub removed: Vec<String>,
    /// In both, with the keys that differ.
    pub changed: BTreeMap<String, Changed>,
}

/// What differs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// `[source.NAME]`
    pub sources: Parts,
    /// `[replica.NAME]`
    pub replicas: Parts,
    /// `[queue]`
    pub queue: Changed,
    /// `[http]`
    pub http: Changed,
    /// `[control]`
    pub control: Changed,
    /// `[log]`
    pub log: Changed,
}

impl Difference {
    /// From one to the other.
    #[must_use]
    pub fn between(before: &Config, after: &Config) -> Self {
        Self {
            sources: parts("source", &before.sources, &after.sources, of_source),
            replicas: parts("replica", &before.replicas, &after.replicas, of_replica),
            queue: changes("queue", &of_queue(&before.queue), &of_queue(&after.queue)),
            http: changes("http", &of_http(before.http.as_ref()), &of_http(after.http.as_ref())),
            control: changes("control", &of_control(&before.control), &of_control(&after.control)),
            log: changes("log", &of_log(&before.log), &of_log(&after.log)),
        }
    }

    /// Nothing differs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// One line for each thing that differs.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (kind, parts) in [("source", &self.sources), ("replica", &self.replicas)] {
            lines.extend(parts.removed.iter().map(|name| format!("{kind}.{name}: removed")));
            lines.extend(parts.added.iter().map(|name| format!("{kind}.{name}: added")));
            lines.extend(parts.changed.values().flat_map(BTreeMap::values).map(ToString::to_string));
        }
        let tables = [&self.queue, &self.http, &self.control, &self.log];
        lines.extend(tables.into_iter().flat_map(BTreeMap::values).map(ToString::to_string));
        lines
    }
}

/// A value as it may be shown, or a secret.
#[derive(PartialEq, Eq)]
enum Value {
    Plain(String),
    Secret(String),
}

type Keys = BTreeMap<&'static str, Value>;

fn plain(value: impl fmt::Display) -> Value {
    Value::Plain(value.to_string())
}

/// Exactly: two that look alike when rounded differ all the same.
fn bytes(value: u64) -> Value {
    let text = ByteSize(value).to_string();
    if text.contains('.') { plain(format_args!("{value} B")) } else { plain(text) }
}

fn path(value: Option<&PathBuf>) -> Value {
    plain(value.map_or_else(|| "none".to_owned(), |path| path.display().to_string()))
}

fn secret(value: Option<&SecretString>) -> Value {
    Value::Secret(value.map(|secret| secret.expose_secret().to_owned()).unwrap_or_default())
}

fn parts<T>(kind: &str, before: &BTreeMap<String, T>, after: &BTreeMap<String, T>, keys: fn(&T) -> Keys) -> Parts {
    let only = |these: &BTreeMap<String, T>, those: &BTreeMap<String, T>| -> Vec<String> {
        these.keys().filter(|name| !those.contains_key(*name)).cloned().collect()
    };
    let both = before.iter().filter_map(|(name, old)| Some((name, old, after.get(name)?)));
    let changed = both.map(|(name, old, new)| (name.clone(), changes(&format!("{kind}.{name}"), &keys(old), &keys(new))));
    Parts {
        added: only(after, before),
        removed: only(before, after),
        changed: changed.filter(|(_, changes)| !changes.is_empty()).collect(),
    }
}

/// A key that only one of them has goes or comes with another that says so: `url`, `listen`, `password_file`.
fn changes(table: &str, before: &Keys, after: &Keys) -> Changed {
    let mut changes = Changed::new();
    for (name, old, new) in before.iter().filter_map(|(name, old)| Some((name, old, after.get(name)?))) {
        if old == new {
            continue;
        }
        let values = match (old, new) {
            (Value::Plain(old), Value::Plain(new)) => Some((old.clone(), new.clone())),
            _ => None,
        };
        changes.insert(*name, Change { key: format!("{table}.{name}"), values });
    }
    changes
}

// Each of these takes its struct apart whole: a key that is added later is not forgotten here.

fn of_source(config: &SourceConfig) -> Keys {
    let SourceConfig {
        name: _,
        connect,
        tables,
        schema_changes,
        retain_max_bytes,
        retain_max_age,
        on_retain_limit,
        memory_bytes,
        spill_max_bytes,
        spill_dir,
        heartbeat_interval,
        copy_workers,
        copy_max_bytes_per_second,
        copy_chunk_rows,
    } = config;
    let mut keys = of_connection(connect);
    keys.extend([
        ("tables", plain(tables.join(", "))),
        ("schema_changes", plain(format_args!("{schema_changes:?}").to_string().to_lowercase())),
        ("retain_max_bytes", bytes(*retain_max_bytes)),
        ("retain_max_age", plain(format!("{retain_max_age:?}"))),
        ("on_retain_limit", plain(format!("{on_retain_limit:?}"))),
        ("memory_bytes", bytes(*memory_bytes)),
        ("spill_max_bytes", bytes(*spill_max_bytes)),
        ("spill_dir", path(Some(spill_dir))),
        ("heartbeat_interval", plain(format!("{heartbeat_interval:?}"))),
        ("copy_workers", plain(copy_workers)),
        ("copy_max_bytes_per_second", copy_max_bytes_per_second.map_or(plain("none"), bytes)),
        ("copy_chunk_rows", plain(copy_chunk_rows)),
    ]);
    keys
}

fn of_replica(config: &ReplicaConfig) -> Keys {
    let ReplicaConfig { name: _, source, connect, merge_max_bytes, merge_max_changes, sequences_interval } = config;
    let mut keys = of_connection(connect);
    keys.extend([
        ("source", plain(source)),
        ("merge_max_bytes", bytes(*merge_max_bytes as u64)),
        ("merge_max_changes", plain(merge_max_changes)),
        ("sequences_interval", plain(format!("{sequences_interval:?}"))),
    ]);
    keys
}

/// A password that is read from a file is read again for every connection: another one there changes nothing here.
fn of_connection(connect: &PgConnect) -> Keys {
    let PgConnect {
        host: _,
        port: _,
        user: _,
        database: _,
        password,
        password_file,
        tls,
        root_certificate,
        client_certificate,
        connect_timeout,
        unread: _,
    } = connect;
    let (certificate, key) = client_certificate.as_ref().map(|(certificate, key)| (certificate, key)).unzip();
    let mut keys = Keys::from([
        ("url", plain(connect)),
        ("url sslmode", plain(format!("{tls:?}"))),
        ("url sslrootcert", path(root_certificate.as_ref())),
        ("url sslcert", path(certificate)),
        ("url sslkey", path(key)),
        ("url connect_timeout", plain(format!("{connect_timeout:?}"))),
        ("password_file", path(password_file.as_ref())),
    ]);
    if password_file.is_none() {
        keys.insert("password", secret(password.as_ref()));
    }
    keys
}

fn of_queue(config: &QueueConfig) -> Keys {
    let QueueConfig { kind, max_bytes } = config;
    let mut keys = Keys::from([("max_bytes", bytes(*max_bytes))]);
    match kind {
        QueueKind::Embedded { folder } => keys.extend([("url", plain(format!("embedded:{}", folder.display())))]),
        QueueKind::Kafka { brokers, settings, topic_prefix, replication_factor } => keys.extend([
            ("url", plain(format!("kafka://{brokers}"))),
            ("kafka.topic_prefix", plain(topic_prefix)),
            ("kafka.replication_factor", plain(replication_factor)),
            // Passwords among them, under names that only librdkafka knows.
            ("kafka", Value::Secret(settings.iter().map(|(name, value)| format!("{name}={value}\n")).collect())),
        ]),
    }
    keys
}

fn of_http(config: Option<&HttpConfig>) -> Keys {
    let Some(HttpConfig { listen, token, ready_max_lag, hosts }) = config else {
        return Keys::from([("listen", plain("off"))]);
    };
    Keys::from([
        ("listen", plain(listen)),
        ("token", secret(token.as_ref())),
        ("ready_max_lag", plain(format!("{ready_max_lag:?}"))),
        ("hosts", plain(hosts.join(", "))),
    ])
}

fn of_control(config: &ControlConfig) -> Keys {
    let ControlConfig { socket } = config;
    Keys::from([("socket", plain(socket.as_ref().map_or_else(|| "off".to_owned(), |path| path.display().to_string())))])
}

fn of_log(config: &LogConfig) -> Keys {
    let LogConfig { level, format } = config;
    Keys::from([("level", plain(level.as_deref().unwrap_or("info"))), ("format", plain(format!("{format:?}").to_lowercase()))])
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::Environment;
    use super::*;

    const PAIR: &str = r#"
[source.shop]
url = "postgres://ms:first@db1/shop"
tables = ["public.*"]
[queue]
url = "embedded:/q"
[replica.reports]
source = "shop"
url = "postgres://ms@db2/shop"
"#;

    fn config(text: &str) -> Config {
        Config::parse(Path::new("x.toml"), text, &Environment::default()).expect("a configuration")
    }

    fn lines(from: &str, to: &str) -> Vec<String> {
        Difference::between(&config(PAIR), &config(&PAIR.replace(from, to))).lines()
    }

    #[test]
    fn what_differs_is_said_key_by_key() {
        assert!(Difference::between(&config(PAIR), &config(PAIR)).is_empty());
        assert_eq!(lines("[queue]", "copy_workers = 8\n[queue]"), ["source.shop.copy_workers: 4 -> 8"]);
        assert_eq!(lines("db2", "db3"), ["replica.reports.url: ms@db2:5432/shop -> ms@db3:5432/shop"]);
        assert_eq!(
            lines("embedded:/q", "embedded:/r"),
            [
                "source.shop.spill_dir: /q/spill -> /r/spill",
                "queue.url: embedded:/q -> embedded:/r",
                "control.socket: /q/millstream.sock -> /r/millstream.sock"
            ]
        );
        assert_eq!(lines("replica.reports", "replica.report"), ["replica.reports: removed", "replica.report: added"]);
        let off = format!("{PAIR}[http]\nlisten = \"off\"\n");
        assert_eq!(Difference::between(&config(PAIR), &config(&off)).lines(), ["http.listen: 127.0.0.1:8321 -> off"]);
    }

    #[test]
    fn of_a_secret_nothing_is_said_but_that_it_changed() {
        let changed = lines("ms:first", "ms:second");
        assert_eq!(changed, ["source.shop.password: changed"]);
        let difference = Difference::between(&config(PAIR), &config(&PAIR.replace("ms:first", "ms:second")));
        assert!(!format!("{difference:?}").contains("second"));
    }
}
