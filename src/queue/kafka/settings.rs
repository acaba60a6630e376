//! How Kafka is reached: the operator's librdkafka properties, ours, and those that nobody may change.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;

use crate::config::QueueKind;
use crate::error::{Error, ErrorKind, Result};

/// librdkafka's `message.max.bytes` unless set.
const DEFAULT_MESSAGE_MAX_BYTES: usize = 1_000_000;
/// Kafka's `max.message.bytes` of a topic unless set.
const DEFAULT_TOPIC_MAX_BYTES: usize = 1_048_588;
/// Room for a record batch's header (61 bytes) and the record's own varints. Kafka documentation, "Record Batch".
pub(super) const RECORD_OVERHEAD: usize = 512;

/// Where and how: `[queue]` and `[queue.kafka]`.
#[derive(Clone)]
pub struct KafkaSettings {
    /// `bootstrap.servers`.
    pub brokers: String,
    /// Properties for librdkafka, passwords among them.
    pub properties: BTreeMap<String, String>,
    /// Before every topic's and consumer group's name.
    pub topic_prefix: String,
    /// Of topics that are created. `min.insync.replicas` of these is one less, at least 1.
    pub replication_factor: i32,
    /// How long Kafka may keep silent before its callers are told ([`ErrorKind::Connection`]).
    pub stall_after: Duration,
    /// How long one question to Kafka may take.
    pub answer_within: Duration,
    /// How long a stream's topic must have been missing before it counts as deleted, which is for ever.
    pub gone_after: Duration,
}

impl KafkaSettings {
    /// Those of a configuration; `None` when its queue is another.
    #[must_use]
    pub fn of(queue: &QueueKind) -> Option<Self> {
        let QueueKind::Kafka { brokers, settings, topic_prefix, replication_factor } = queue else { return None };
        Some(Self::new(brokers.clone(), settings.clone(), topic_prefix.clone(), *replication_factor))
    }

    /// With the usual patience.
    #[must_use]
    pub fn new(brokers: String, properties: BTreeMap<String, String>, topic_prefix: String, replication_factor: i32) -> Self {
        Self {
            brokers,
            properties,
            topic_prefix,
            replication_factor,
            stall_after: Duration::from_secs(30),
            answer_within: Duration::from_secs(15),
            gone_after: Duration::from_secs(30),
        }
    }
}

// Properties hold passwords: names only.
impl fmt::Debug for KafkaSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaSettings")
            .field("brokers", &self.brokers)
            .field("properties", &self.properties.keys().collect::<Vec<_>>())
            .field("topic_prefix", &self.topic_prefix)
            .field("replication_factor", &self.replication_factor)
            .finish_non_exhaustive()
    }
}

/// Properties that the guarantees rest on, by every name they have: nobody may set them.
pub const FIXED_PROPERTIES: &[&str] = &[
    "acks",
    "allow.auto.create.topics",
    "auto.commit.enable",
    "auto.offset.reset",
    "bootstrap.servers",
    "delivery.timeout.ms",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.gapless.guarantee",
    "enable.idempotence",
    "enable.partition.eof",
    "group.id",
    "group.instance.id",
    "isolation.level",
    "max.in.flight",
    "max.in.flight.requests.per.connection",
    "message.send.max.retries",
    "message.timeout.ms",
    "metadata.broker.list",
    "queuing.strategy",
    "request.required.acks",
    "retries",
    "topic.blacklist",
    "transactional.id",
];

/// What the operator may change, with the other name of the property.
const DEFAULTS: &[(&str, &str, &str)] = &[
    ("client.id", "", "millstream"),
    ("compression.type", "compression.codec", "lz4"),
    // Records are batches already, and a waiting one holds up a transaction.
    ("linger.ms", "queue.buffering.max.ms", "0"),
    ("socket.keepalive.enable", "", "true"),
    ("socket.timeout.ms", "", "30000"),
    ("socket.connection.setup.timeout.ms", "", "10000"),
    ("request.timeout.ms", "", "20000"),
    ("reconnect.backoff.max.ms", "", "2000"),
    ("topic.metadata.refresh.interval.ms", "", "30000"),
    ("log.connection.close", "", "false"),
    ("enable.metrics.push", "", "false"),
];

/// Memory of a reader: fetched and not yet read, and one fetch. A fetch is bounded as compressed; a batch in it holds at most
/// `message.max.bytes` uncompressed.
const READER: &[(&str, &str, &str)] = &[
    ("queued.max.messages.kbytes", "", "4096"),
    ("fetch.message.max.bytes", "max.partition.fetch.bytes", "1048576"),
    ("fetch.max.bytes", "", "2097152"),
    // The default of a second would be paid each time that the small queue above is full.
    ("fetch.queue.backoff.ms", "", "10"),
    ("fetch.error.backoff.ms", "", "100"),
];

/// What a client is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Client<'a> {
    /// Appends to the log: never gives up on a record, never leaves one out.
    Writer,
    /// Writes registry entries, and asks for metadata and watermarks.
    Control,
    /// Topic administration.
    Admin,
    /// Reads with `assign`; its group is a name without members.
    Reader(&'a str),
    /// Reads a registry to its end.
    Registry(&'a str),
    /// Commits a consumer group's offset.
    Group(&'a str),
}

impl KafkaSettings {
    /// Refuses properties that the guarantees rest on.
    pub(super) fn validate(&self) -> Result<()> {
        if self.brokers.trim().is_empty() {
            return Err(Error::new(ErrorKind::Config, "[queue] url names no Kafka broker; one looks like kafka://host:9092"));
        }
        if let Some(key) = self.properties.keys().find(|key| FIXED_PROPERTIES.contains(&key.as_str())) {
            let message = format!("[queue.kafka] {key} is fixed, because durability and order rest on it; leave it out");
            return Err(Error::new(ErrorKind::Config, message));
        }
        self.message_max_bytes().map(drop)
    }

    /// librdkafka's limit of one message.
    pub(super) fn message_max_bytes(&self) -> Result<usize> {
        let Some(text) = self.properties.get("message.max.bytes") else { return Ok(DEFAULT_MESSAGE_MAX_BYTES) };
        let bytes = text.parse().ok().filter(|bytes| (65_536..=1_000_000_000).contains(bytes));
        bytes.ok_or_else(|| {
            Error::new(ErrorKind::Config, "[queue.kafka] message.max.bytes must be a number from 65536 to 1000000000")
        })
    }

    /// `max.message.bytes` of topics that are created.
    pub(super) fn topic_max_bytes(&self) -> Result<usize> {
        Ok(DEFAULT_TOPIC_MAX_BYTES.max(self.message_max_bytes()? + 2 * RECORD_OVERHEAD))
    }

    /// `min.insync.replicas` of topics that are created: with three replicas one broker may fail and writing goes on.
    pub(super) fn min_insync_replicas(&self) -> i32 {
        (self.replication_factor - 1).max(1)
    }

    /// Topic of a stream.
    pub(super) fn topic(&self, stream: &str) -> Result<String> {
        // Kafka documentation, "Topic": letters, digits, dot, underscore and hyphen, 249 at most.
        let name = format!("{}{stream}", self.topic_prefix);
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if stream.is_empty() || name.len() > 249 - ".registry".len() || !name.chars().all(allowed) {
            let message = format!(
                "'{name}' cannot be a Kafka topic: topic_prefix and source name take letters, digits, dot, underscore and hyphen, together at most 240"
            );
            return Err(Error::new(ErrorKind::Config, message));
        }
        Ok(name)
    }

    /// Topic of a stream's registry.
    pub(super) fn registry_topic(&self, stream: &str) -> Result<String> {
        Ok(format!("{}.registry", self.topic(stream)?))
    }

    /// librdkafka's configuration of a client.
    pub(super) fn client(&self, client: Client<'_>) -> ClientConfig {
        let mut config = ClientConfig::new();
        let debugging = self.properties.contains_key("debug");
        config.set_log_level(if debugging { RDKafkaLogLevel::Debug } else { RDKafkaLogLevel::Info });
        let default = |config: &mut ClientConfig, table: &[(&str, &str, &str)]| {
            for (name, alias, value) in table {
                if !self.properties.contains_key(*name) && !self.properties.contains_key(*alias) {
                    config.set(*name, *value);
                }
            }
        };
        default(&mut config, DEFAULTS);
        match client {
            Client::Writer | Client::Control | Client::Admin => {}
            Client::Reader(_) | Client::Registry(_) | Client::Group(_) => default(&mut config, READER),
        }
        for (key, value) in &self.properties {
            config.set(key, value);
        }
        config.set("bootstrap.servers", &self.brokers);
        // A topic that vanished must not come back empty.
        config.set("allow.auto.create.topics", "false");
        config.set("isolation.level", "read_uncommitted");
        match client {
            Client::Writer => {
                producer(&mut config);
                config.set("enable.gapless.guarantee", "true").set("message.timeout.ms", "0");
            }
            Client::Control => {
                producer(&mut config);
                config.set("message.timeout.ms", self.answer_within.as_millis().to_string());
            }
            Client::Admin => {}
            Client::Reader(group) | Client::Registry(group) | Client::Group(group) => {
                config.set("group.id", group);
                config.set("enable.auto.commit", "false").set("enable.auto.offset.store", "false");
                config.set("auto.offset.reset", "error");
            }
        }
        if matches!(client, Client::Registry(_)) {
            config.set("enable.partition.eof", "true");
        }
        config
    }
}

fn producer(config: &mut ClientConfig) {
    config.set("enable.idempotence", "true").set("acks", "all").set("max.in.flight", "5");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(properties: &[(&str, &str)]) -> KafkaSettings {
        let properties = properties.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        KafkaSettings::new("127.0.0.1:9092".into(), properties, "millstream.".into(), 3)
    }

    #[test]
    fn properties_that_guarantees_rest_on_are_refused_by_name() {
        for key in ["acks", "request.required.acks", "auto.offset.reset", "message.timeout.ms"] {
            let error = settings(&[(key, "1")]).validate().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.message().contains(key), "{error}");
        }
        settings(&[("sasl.password", "x"), ("linger.ms", "5")]).validate().unwrap();
    }

    #[test]
    fn the_operators_alias_replaces_our_default() {
        let config = settings(&[("compression.codec", "zstd")]).client(Client::Writer);
        assert_eq!(config.get("compression.type"), None);
        assert_eq!(config.get("compression.codec"), Some("zstd"));
    }

    #[test]
    fn every_client_is_accepted_by_librdkafka() {
        for client in
            [Client::Writer, Client::Control, Client::Admin, Client::Reader("g"), Client::Registry("g"), Client::Group("g")]
        {
            settings(&[]).client(client).create_native_config().unwrap_or_else(|e| panic!("{client:?}: {e}"));
        }
    }

    #[test]
    fn passwords_are_not_shown() {
        assert!(!format!("{:?}", settings(&[("sasl.password", "canary")])).contains("canary"));
    }

    #[test]
    fn topic_names_are_checked() {
        assert_eq!(settings(&[]).topic("shop").unwrap(), "millstream.shop");
        for bad in ["", "a b", "a/b", &"x".repeat(240)] {
            assert!(settings(&[]).topic(bad).is_err(), "{bad}");
        }
    }
}
