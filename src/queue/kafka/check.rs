//! What `millstream check` asks of Kafka: topics that keep everything, brokers that keep what they acknowledged, rights.
//!
//! Only looks: creation is validated by the broker and not done, a deletion is asked for below the first record.

use rdkafka::admin::ResourceSpecifier;
use rdkafka::producer::Producer;

use super::authorized::{Operation, Resource};
use super::check_rights as rights;
use super::settings::RECORD_OVERHEAD;
use super::topics::{Admin, Topic, look_up};
use super::{KafkaQueue, KafkaSettings};
use crate::config::ByteSize;
use crate::error::{Error, ErrorKind, Result};
use crate::halt::HaltCode;
use crate::preflight::check::{Findings, Place, Remedy, Side};

/// Below this a topic would cut even small transactions into many pieces.
const SMALLEST_RECORD_BYTES: usize = 64 << 10;

/// Looks at the cluster and at the topics of these streams.
pub async fn check(settings: &KafkaSettings, streams: &[&str]) -> Findings {
    let mut findings = Findings::new(Side::Queue, "kafka");
    if let Err(error) = look(settings, streams, &mut findings).await {
        cannot_look(settings, &mut findings, "connection", &error);
    }
    findings
}

async fn look(settings: &KafkaSettings, streams: &[&str], findings: &mut Findings) -> Result<()> {
    let queue = KafkaQueue::open(settings.clone())?;
    let brokers = queue
        .question(|control, events, within| {
            super::client::ask(events, "asking for the brokers", within, |slice| control.client().fetch_metadata(None, slice))
                .map(|metadata| metadata.brokers().len())
        })
        .await?;
    findings.ok("connection", format!("{brokers} brokers behind {}", settings.brokers));
    let wanted = usize::try_from(settings.replication_factor).unwrap_or(usize::MAX);
    if brokers < wanted {
        findings.error(
            "replication_factor",
            format!("{brokers} brokers, and replication_factor is {wanted}"),
            "topics with more replicas than brokers cannot be made",
            Some(Remedy::at(Place::Configuration, format!("queue.kafka.replication_factor = {brokers}"))),
        );
    }
    let admin = Admin::new(settings)?;
    let mut missing = false;
    for stream in streams {
        let group = settings.topic(stream)?;
        match admin.may(Resource::Group(group.clone()), &[Operation::Describe, Operation::Read]).await {
            Ok(()) => findings.ok("rights", "may describe and read"),
            Err(error) => cannot_look(settings, findings, "rights", &error),
        }
        findings.about(format!("group {group}"));
        for (topic, is_log) in [(settings.topic(stream)?, true), (settings.registry_topic(stream)?, false)] {
            let name = topic.clone();
            let found = queue.question(move |control, events, within| look_up(control.client(), events, &name, within)).await;
            let subject = Subject { settings, topic: &topic, is_log };
            match found {
                Ok(Some(found)) => subject.there(&queue, &admin, &found, findings).await,
                Ok(None) => {
                    missing = true;
                    subject.missing(&admin, findings).await;
                }
                Err(error) => subject.cannot_look("topic", &error, findings),
            }
        }
    }
    if missing && settings.replication_factor < 3 {
        few_replicas_to_come(settings, brokers, findings);
    }
    Ok(())
}

/// Before `init` has made the topics is the time to say it: afterwards their replicas have to be reassigned.
fn few_replicas_to_come(settings: &KafkaSettings, brokers: usize, findings: &mut Findings) {
    let what = format!("topics would be made with replication factor {}", settings.replication_factor);
    let why = "the loss of a broker loses the log, or stops it";
    let step = "queue.kafka.replication_factor = 3";
    let remedy = match brokers {
        0..3 => Remedy::at(Place::Person, format!("start three brokers, then {step}, before `millstream init`")),
        _ => Remedy::at(Place::Configuration, step),
    };
    findings.warn("replication_factor", what, why, Some(remedy));
}

type Verdict = fn(&mut Findings, &'static str, String, String, Option<Remedy>);

/// A topic that is looked at.
struct Subject<'a> {
    settings: &'a KafkaSettings,
    topic: &'a str,
    is_log: bool,
}

impl Subject<'_> {
    async fn missing(&self, admin: &Admin, findings: &mut Findings) {
        match admin.validate(self.settings, self.topic, self.is_log).await {
            Ok(()) => findings.ok("topic", "not there yet; `millstream init` makes it"),
            Err(error) => self.cannot_look("topic", &error, findings),
        }
        findings.about(self.topic);
    }

    async fn there(&self, queue: &KafkaQueue, admin: &Admin, found: &Topic, findings: &mut Findings) {
        if found.partitions == 1 {
            findings.ok("partitions", "1 partition");
        } else {
            findings.error(
                "partitions",
                format!("{} partitions", found.partitions),
                "there is no order between partitions",
                Some(Remedy::at(
                    Place::Person,
                    format!(
                        "kafka-topics.sh {} --delete --topic {}   # when nobody else uses it; `millstream init` makes it anew",
                        self.server(),
                        self.topic
                    ),
                )),
            );
        }
        findings.about(self.topic);
        match admin.settings_of(ResourceSpecifier::Topic(self.topic)).await {
            Ok(values) => self.values(&Values(values), found, findings),
            Err(error) => self.cannot_look("topic_settings", &error, findings),
        }
        for (right, answer) in rights::probe(queue, admin, self.topic, self.is_log).await {
            match answer {
                Ok(()) => findings.ok("rights", right),
                Err(error) => self.cannot_look("rights", &error, findings),
            }
            findings.about(self.topic);
        }
    }

    fn values(&self, values: &Values, found: &Topic, findings: &mut Findings) {
        let policy = if self.is_log { "delete" } else { "compact" };
        let why =
            if self.is_log { "compaction removes records of the log" } else { "entries of the registry would be deleted by age" };
        self.must_be(values, "cleanup.policy", policy, why, findings);
        if self.is_log {
            for name in ["retention.ms", "retention.bytes"] {
                let why = match values.get(name).and_then(|value| value.parse().ok()) {
                    Some(limit) => survives(name, limit),
                    None => "Kafka deletes records that a replica has not read".to_owned(),
                };
                self.must_be(values, name, "-1", &why, findings);
            }
            self.record_size(values, findings);
        }
        let why = "a broker that was behind may become leader, and what others acknowledged is lost";
        self.should_be(values, "unclean.leader.election.enable", "false", why, findings);
        self.replicas(values.number("min.insync.replicas").unwrap_or(1), found, findings);
    }

    fn must_be(&self, values: &Values, name: &'static str, wanted: &str, why: &str, findings: &mut Findings) {
        self.compare(values, name, wanted, why, findings, Findings::error);
    }

    fn should_be(&self, values: &Values, name: &'static str, wanted: &str, why: &str, findings: &mut Findings) {
        self.compare(values, name, wanted, why, findings, Findings::warn);
    }

    fn compare(&self, values: &Values, name: &'static str, wanted: &str, why: &str, findings: &mut Findings, otherwise: Verdict) {
        let Some(value) = values.get(name) else { return };
        if value == wanted {
            findings.ok(name, format!("{name}={value}"));
        } else {
            otherwise(findings, name, format!("{name}={value}"), why.to_owned(), Some(self.alter(name, wanted)));
        }
        findings.about(self.topic);
    }

    fn record_size(&self, values: &Values, findings: &mut Findings) {
        let Some(limit) = values.number("max.message.bytes") else { return };
        let sent = self.settings.message_max_bytes().unwrap_or(0);
        let what = format!("max.message.bytes={limit}");
        if limit < SMALLEST_RECORD_BYTES {
            let why = "transactions are cut into so many records that throughput suffers";
            findings.error("max.message.bytes", what, why, Some(self.alter("max.message.bytes", "1048588")));
        } else if limit < sent + RECORD_OVERHEAD {
            let why = "records are cut smaller than message.max.bytes under [queue.kafka] says";
            let wanted = (sent + 2 * RECORD_OVERHEAD).to_string();
            findings.warn("max.message.bytes", what, why, Some(self.alter("max.message.bytes", &wanted)));
        } else {
            findings.ok("max.message.bytes", what);
        }
        findings.about(self.topic);
    }

    fn replicas(&self, min_in_sync: usize, found: &Topic, findings: &mut Findings) {
        let Topic { replicas, in_sync, .. } = *found;
        let what = format!("{replicas} replicas, {in_sync} in sync, min.insync.replicas={min_in_sync}");
        if in_sync < min_in_sync {
            let why = "Kafka takes no record until more replicas are in sync; capture waits";
            findings.error("min.insync.replicas", what, why, Some(Remedy::at(Place::Person, "start the brokers that are down")));
        } else if replicas < 3 {
            let why = "the loss of a broker loses the log, or stops it";
            let remedy =
                "three brokers, queue.kafka.replication_factor = 3 before `millstream init`, or kafka-reassign-partitions.sh";
            findings.warn("replication_factor", what, why, Some(Remedy::at(Place::Person, remedy)));
        } else if min_in_sync < 2 {
            let why = "a record counts as durable when one broker has it";
            findings.warn("min.insync.replicas", what, why, Some(self.alter("min.insync.replicas", "2")));
        } else if min_in_sync == replicas {
            let wanted = (replicas - 1).to_string();
            let why = "one broker that is down stops capture";
            findings.warn("min.insync.replicas", what, why, Some(self.alter("min.insync.replicas", &wanted)));
        } else {
            findings.ok("min.insync.replicas", what);
        }
        findings.about(self.topic);
    }

    fn cannot_look(&self, check: &'static str, error: &Error, findings: &mut Findings) {
        cannot_look(self.settings, findings, check, error);
        findings.about(self.topic);
    }

    fn server(&self) -> String {
        server(self.settings)
    }

    fn alter(&self, name: &str, value: &str) -> Remedy {
        let server = self.server();
        let topic = self.topic;
        let command =
            format!("kafka-configs.sh {server} --alter --entity-type topics --entity-name {topic} --add-config {name}={value}");
        Remedy::at(Place::Shell, command)
    }
}

/// What an error means for the verdict, and what mends it.
fn cannot_look(settings: &KafkaSettings, findings: &mut Findings, check: &'static str, error: &Error) {
    let what = error.to_string();
    match error.kind() {
        ErrorKind::Halt(HaltCode::QueueDenied) if error.message().contains("sasl.") => {
            let step = "queue.kafka: sasl.mechanism, sasl.username and password_file as the brokers know them";
            findings.error(check, what, "Kafka lets nobody in without", Some(Remedy::at(Place::Configuration, step)));
        }
        ErrorKind::Halt(HaltCode::QueueDenied) => {
            let mut remedy = Remedy::at(Place::Shell, "");
            remedy.steps = rights::grants(settings, &server(settings));
            findings.error(check, what, "Millstream needs this right on its topics and groups", Some(remedy));
        }
        ErrorKind::Config => {
            let step = "queue.kafka: the property that the message names, as librdkafka's CONFIGURATION.md has it";
            findings.error(check, what, "Kafka or librdkafka refuses it", Some(Remedy::at(Place::Configuration, step)));
        }
        ErrorKind::Connection | ErrorKind::Busy => {
            let step = "queue.url, and security.protocol and ssl.* under [queue.kafka], as the brokers listen";
            findings.error(check, what, "no broker, no log", Some(Remedy::at(Place::Configuration, step)));
        }
        _ => findings.unknown(check, what, "could not be looked at", None),
    }
}

/// The outage that a finite retention survives.
fn survives(name: &str, limit: u64) -> String {
    let outage = match name {
        "retention.ms" => format!("off for more than {}", duration(limit / 1000)),
        _ => format!("more than {} behind", ByteSize(limit)),
    };
    format!("Kafka deletes what a replica has not read: one that was {outage} must be copied again")
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86400),
    }
}

/// How Kafka's tools reach the cluster.
fn server(settings: &KafkaSettings) -> String {
    let config = if settings.properties.contains_key("security.protocol") { " --command-config admin.properties" } else { "" };
    format!("--bootstrap-server {}{config}", settings.brokers)
}

/// A topic's settings in force.
struct Values(Vec<(String, String)>);

impl Values {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn number(&self, name: &str) -> Option<usize> {
        self.get(name)?.parse().ok()
    }
}
