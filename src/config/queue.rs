//! `[queue]` and `[queue.kafka]`: where the log waits.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use super::Build;
use super::secret::Places;
use super::size::ByteSize;
use crate::error::Result;
use crate::queue::kafka::FIXED_PROPERTIES;

/// Where the log waits.
#[derive(Clone, Debug)]
pub struct QueueConfig {
    /// Which queue.
    pub kind: QueueKind,
    /// Most bytes from the slowest consumer to the end (I6).
    pub max_bytes: u64,
}

/// Which queue.
#[derive(Clone)]
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

impl fmt::Debug for QueueKind {
    /// Shows the settings' names only: their values hold passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded { folder } => f.debug_struct("Embedded").field("folder", folder).finish(),
            Self::Kafka { brokers, settings, topic_prefix, replication_factor } => f
                .debug_struct("Kafka")
                .field("brokers", brokers)
                .field("settings", &settings.keys().collect::<Vec<_>>())
                .field("topic_prefix", topic_prefix)
                .field("replication_factor", replication_factor)
                .finish(),
        }
    }
}

/// As written.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawQueue {
    pub url: Option<String>,
    #[serde(default = "default_max_bytes")]
    pub max_bytes: ByteSize,
    pub kafka: Option<BTreeMap<String, Setting>>,
}

fn default_max_bytes() -> ByteSize {
    ByteSize(100 << 30)
}

/// Keys of `[queue.kafka]` that are ours; every other one is librdkafka's.
pub(super) const OWN_KAFKA_KEYS: &[&str] = &["password", "password_file", "topic_prefix", "replication_factor"];

/// A value for librdkafka; `security.protocol = "x"` without quotes is a table in TOML and means the same as with them.
#[derive(Clone)]
pub(super) enum Setting {
    Text(SecretString),
    Table(BTreeMap<String, Setting>),
}

impl<'de> Deserialize<'de> for Setting {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Setting;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, a number, true or false")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Setting, E> {
                Ok(Setting::Text(text.into()))
            }

            fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Setting, E> {
                Ok(Setting::Text(value.to_string().into()))
            }

            fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Setting, E> {
                Ok(Setting::Text(value.to_string().into()))
            }

            fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Setting, E> {
                Ok(Setting::Text(value.to_string().into()))
            }

            fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Setting, E> {
                Ok(Setting::Text(value.to_string().into()))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Setting, A::Error> {
                let mut table = BTreeMap::new();
                while let Some((name, value)) = map.next_entry()? {
                    table.insert(name, value);
                }
                Ok(Setting::Table(table))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

fn flatten(prefix: &str, table: BTreeMap<String, Setting>, out: &mut BTreeMap<String, SecretString>) {
    for (name, value) in table {
        // The environment cannot write a dot: MILLSTREAM__QUEUE__KAFKA__SASL_USERNAME.
        let own = prefix.is_empty() && OWN_KAFKA_KEYS.contains(&name.as_str());
        let name = if own { name } else { format!("{prefix}{}", name.replace('_', ".")) };
        match value {
            Setting::Text(text) => drop(out.insert(name, text)),
            Setting::Table(inner) => flatten(&format!("{name}."), inner, out),
        }
    }
}

impl RawQueue {
    pub fn has_cleartext_password(&self) -> bool {
        let mut flat = BTreeMap::new();
        flatten("", self.kafka.clone().unwrap_or_default(), &mut flat);
        flat.keys().any(|key| key == "password" || key.ends_with(".password"))
    }
}

impl Build<'_> {
    pub(super) fn queue(&mut self, table: &[&str], raw: RawQueue) -> Result<QueueConfig> {
        let url_key = [table[0], "url"];
        let example = "embedded:/var/lib/millstream or kafka://k1:9092,k2:9092";
        let url = raw.url.ok_or_else(|| self.error(&url_key, format!("missing; write {example}")))?;
        let kind = if let Some(folder) = url.strip_prefix("embedded:") {
            if raw.kafka.is_some() {
                return Err(self.error(&["queue", "kafka"], "the queue is embedded; remove this table or change queue.url"));
            }
            QueueKind::Embedded { folder: self.absolute(&url_key, PathBuf::from(folder))? }
        } else if let Some(brokers) = url.strip_prefix("kafka://") {
            self.kafka(brokers, raw.kafka.unwrap_or_default())?
        } else {
            return Err(self.error(&url_key, format!("not a queue; write {example}")));
        };
        self.at_least(&["queue", "max_bytes"], raw.max_bytes, 1 << 20)?;
        Ok(QueueConfig { kind, max_bytes: raw.max_bytes.0 })
    }

    fn kafka(&mut self, brokers: &str, raw: BTreeMap<String, Setting>) -> Result<QueueKind> {
        let brokers = brokers.trim_end_matches('/');
        if brokers.contains('@') {
            return Err(
                self.error(&["queue", "url"], "user and password stand in [queue.kafka]: sasl.username and password_file")
            );
        }
        for broker in brokers.split(',') {
            let good =
                broker.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0));
            if !good {
                return Err(self.error(&["queue", "url"], format!("'{broker}' is not host:port; write kafka://k1:9092,k2:9092")));
            }
        }
        let mut flat = BTreeMap::new();
        flatten("", raw, &mut flat);
        let text = |value: SecretString| value.expose_secret().to_owned();
        let topic_prefix = flat.remove("topic_prefix").map_or_else(|| "millstream.".to_owned(), text);
        let legal = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if topic_prefix.len() > 128 || !topic_prefix.chars().all(legal) {
            return Err(self.error(&["queue", "kafka", "topic_prefix"], "letters, digits, '.', '_' and '-' only, at most 128"));
        }
        let replication_factor = self.replication_factor(flat.remove("replication_factor"))?;
        let password = self.secret(Places {
            table: &["queue", "kafka"],
            key: "password",
            credential: "queue.kafka.password",
            value: flat.remove("password"),
            file: flat.remove("password_file").map(|path| PathBuf::from(text(path))),
            in_url: None,
        })?;
        for key in FIXED_PROPERTIES {
            if flat.contains_key(*key) {
                return Err(self.error(&["queue", "kafka", key], format!("{key} is set by Millstream itself; remove it")));
            }
        }
        let mut settings: BTreeMap<String, String> = flat.into_iter().map(|(name, value)| (name, text(value))).collect();
        if let Some(password) = password
            && settings.insert("sasl.password".to_owned(), text(password)).is_some()
        {
            return Err(self.error(&["queue", "kafka", "sasl.password"], "there is another password beside it; remove one"));
        }
        self.known_to_librdkafka(&settings)?;
        Ok(QueueKind::Kafka { brokers: brokers.to_owned(), settings, topic_prefix, replication_factor })
    }

    fn replication_factor(&self, raw: Option<SecretString>) -> Result<i32> {
        let Some(raw) = raw else { return Ok(3) };
        raw.expose_secret().parse().ok().filter(|n| (1..=100).contains(n)).ok_or_else(|| {
            self.error(
                &["queue", "kafka", "replication_factor"],
                "must be a number from 1 to 100; 3 survives the loss of a broker",
            )
        })
    }

    /// librdkafka judges each setting by itself, so that the complaint names the key. It never repeats a value here.
    fn known_to_librdkafka(&self, settings: &BTreeMap<String, String>) -> Result<()> {
        for (name, value) in settings {
            let mut one = rdkafka::ClientConfig::new();
            one.set(name, value);
            if one.create_native_config().is_err() {
                let key = ["queue", "kafka", name.as_str()];
                return Err(self.error(
                    &key,
                    "librdkafka does not know this setting, or does not take this value; see its CONFIGURATION.md",
                ));
            }
        }
        Ok(())
    }
}
