//! Topics: what is there, making, trimming and removing them.

use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::Client as RdClient;
use rdkafka::error::{IsError, KafkaError, KafkaResult, RDKafkaErrorCode as Code};
use rdkafka::{ClientContext, Offset};

use super::authorized::{Operation, Resource, authorized};
use super::client::{Context, Events, Reaped, ask, blocking};
use super::errors;
use super::settings::{Client, KafkaSettings};
use crate::error::{Error, ErrorKind, Result};

/// Space comes back a whole segment at a time.
const SEGMENT_BYTES: &str = "268435456";
/// Kafka 4's smallest: a registry is compacted early and stays small.
const REGISTRY_SEGMENT_BYTES: &str = "1048576";

/// What metadata say of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Topic {
    pub partitions: usize,
    /// Brokers that hold partition 0.
    pub replicas: usize,
    /// Those of them that are in sync.
    pub in_sync: usize,
}

/// A topic, once its partition has a leader; `None` when there is none of that name. Blocking.
pub(super) fn look_up<C: ClientContext>(
    client: &RdClient<C>,
    events: &Events,
    topic: &str,
    within: Duration,
) -> Result<Option<Topic>> {
    let doing = format!("topic '{topic}'");
    ask(events, &doing, within, |slice| match describe(client, topic, slice) {
        Err(error) if errors::code_of(&error).is_some_and(errors::no_topic) => Ok(None),
        answer => answer.map(Some),
    })
}

fn describe<C: ClientContext>(client: &RdClient<C>, topic: &str, slice: Duration) -> KafkaResult<Topic> {
    let metadata = client.fetch_metadata(Some(topic), slice)?;
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    let found = found.ok_or(KafkaError::MetadataFetch(Code::UnknownTopicOrPartition))?;
    if let Some(error) = found.error() {
        return Err(KafkaError::MetadataFetch(error.into()));
    }
    let first = found.partitions().iter().find(|partition| partition.id() == 0);
    let first = first.ok_or(KafkaError::MetadataFetch(Code::LeaderNotAvailable))?;
    match first.error() {
        // The leader is known and one of the other replicas is not: good enough.
        Some(error) if error.is_error() && Code::from(error) != Code::ReplicaNotAvailable => {
            return Err(KafkaError::MetadataFetch(error.into()));
        }
        _ => {}
    }
    if first.leader() < 0 {
        return Err(KafkaError::MetadataFetch(Code::LeaderNotAvailable));
    }
    Ok(Topic { partitions: found.partitions().len(), replicas: first.replicas().len(), in_sync: first.isr().len() })
}

/// Offset of the first record kept and of the next one. Blocking.
pub(super) fn watermarks<C: ClientContext>(
    client: &RdClient<C>,
    events: &Events,
    topic: &str,
    within: Duration,
) -> Result<(u64, u64)> {
    let doing = format!("offsets of topic '{topic}'");
    let (low, high) = ask(events, &doing, within, |slice| client.fetch_watermarks(topic, 0, slice))?;
    Ok((to_u64(low), to_u64(high)))
}

/// An offset of Kafka's as ours.
pub(super) fn to_u64(offset: i64) -> u64 {
    u64::try_from(offset).unwrap_or(0)
}

/// An offset of ours as Kafka's.
pub(super) fn to_i64(offset: u64) -> i64 {
    i64::try_from(offset).unwrap_or(i64::MAX)
}

/// Settings of topics that are created.
struct Wish {
    replication_factor: i32,
    max_bytes: String,
    min_in_sync: String,
}

impl Wish {
    fn new(settings: &KafkaSettings) -> Result<Self> {
        let (max_bytes, min_in_sync) = (settings.topic_max_bytes()?.to_string(), settings.min_insync_replicas().to_string());
        Ok(Self { replication_factor: settings.replication_factor, max_bytes, min_in_sync })
    }

    fn topic<'a>(&'a self, name: &'a str) -> NewTopic<'a> {
        NewTopic::new(name, 1, TopicReplication::Fixed(self.replication_factor))
            .set("min.insync.replicas", &self.min_in_sync)
            .set("unclean.leader.election.enable", "false")
            .set("compression.type", "producer")
    }

    fn log<'a>(&'a self, name: &'a str) -> NewTopic<'a> {
        self.topic(name)
            .set("cleanup.policy", "delete")
            .set("retention.ms", "-1")
            .set("retention.bytes", "-1")
            .set("segment.bytes", SEGMENT_BYTES)
            .set("max.message.bytes", &self.max_bytes)
    }

    fn registry<'a>(&'a self, name: &'a str) -> NewTopic<'a> {
        self.topic(name)
            .set("cleanup.policy", "compact")
            .set("segment.bytes", REGISTRY_SEGMENT_BYTES)
            .set("min.cleanable.dirty.ratio", "0.2")
    }
}

/// Asks and changes; made for one errand, because an [`AdminClient`] serves neither logs nor errors while it waits.
pub(super) struct Admin {
    client: Reaped<AdminClient<Context>>,
    within: Duration,
}

impl Admin {
    pub(super) fn new(settings: &KafkaSettings) -> Result<Self> {
        let client = settings
            .client(Client::Admin)
            .create_with_context(Context::new("admin"))
            .map_err(|e| errors::error("connecting to Kafka", &e))?;
        Ok(Self { client: Reaped::new(client), within: settings.answer_within })
    }

    fn options(&self) -> AdminOptions {
        AdminOptions::new().request_timeout(Some(self.within)).operation_timeout(Some(self.within))
    }

    /// Makes the topics of a stream; one that is there stays as it is.
    pub(super) async fn create(&self, settings: &KafkaSettings, log: &str, registry: &str) -> Result<()> {
        let wish = Wish::new(settings)?;
        let results = self.client.create_topics([&wish.log(log), &wish.registry(registry)], &self.options()).await;
        for result in results.map_err(|e| errors::error("creating topics", &e))? {
            match result {
                Ok(_) | Err((_, Code::TopicAlreadyExists)) => {}
                Err((name, code)) => return Err(errors::coded(&format!("creating topic '{name}'"), code)),
            }
        }
        Ok(())
    }

    /// Asks whether the topic could be made.
    pub(super) async fn validate(&self, settings: &KafkaSettings, topic: &str, is_log: bool) -> Result<()> {
        let wish = Wish::new(settings)?;
        let topic = if is_log { wish.log(topic) } else { wish.registry(topic) };
        let doing = format!("creating topic '{}'", topic.name);
        let results = self.client.create_topics([&topic], &self.options().validate_only(true)).await;
        match results.map_err(|e| errors::error(&doing, &e))?.into_iter().next() {
            Some(Err((_, code))) => Err(errors::coded(&doing, code)),
            _ => Ok(()),
        }
    }

    /// Asks whether this user may do all of these. Brokers that do not say are believed to allow them.
    pub(super) async fn may(&self, of: Resource, wanted: &'static [Operation]) -> Result<()> {
        let (client, within) = (self.client.share(), self.within);
        blocking(move || {
            let (client, doing) = (client.inner(), format!("asking for the rights on {of}"));
            let found = ask(client.context().events(), &doing, within, |slice| authorized(client, &of, slice))?;
            let Some(found) = found else { return Ok(()) };
            match wanted.iter().find(|operation| !found.contains(operation)) {
                Some(missing) => Err(errors::coded(&format!("{missing:?} on {of}"), of.denied())),
                None => Ok(()),
            }
        })
        .await
    }

    /// Removes topics; one that is not there is no error.
    pub(super) async fn delete(&self, topics: &[&str]) -> Result<()> {
        let results = self.client.delete_topics(topics, &self.options()).await;
        for result in results.map_err(|e| errors::error("deleting topics", &e))? {
            match result {
                Ok(_) => {}
                Err((_, code)) if errors::no_topic(code) => {}
                Err((name, code)) => return Err(errors::coded(&format!("deleting topic '{name}'"), code)),
            }
        }
        Ok(())
    }

    /// Deletes the records before an offset.
    pub(super) async fn delete_records(&self, topic: &str, below: u64) -> Result<()> {
        let doing = format!("deleting records of topic '{topic}'");
        let mut place = TopicPartitionList::new();
        place.add_partition_offset(topic, 0, Offset::Offset(to_i64(below))).map_err(|e| errors::error(&doing, &e))?;
        let answer = self.client.delete_records(&place, &self.options()).await.map_err(|e| errors::error(&doing, &e))?;
        for element in answer.elements() {
            element.error().map_err(|e| errors::error(&doing, &e))?;
        }
        Ok(())
    }

    /// Settings of a topic or broker in force, by name.
    pub(super) async fn settings_of(&self, resource: ResourceSpecifier<'_>) -> Result<Vec<(String, String)>> {
        let doing = format!("describing the settings of {resource:?}");
        let answers = self.client.describe_configs([&resource], &self.options()).await;
        let mut settings = Vec::new();
        for answer in answers.map_err(|e| errors::error(&doing, &e))? {
            let resource = answer.map_err(|code| errors::coded(&doing, code))?;
            settings.extend(resource.entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?))));
        }
        Ok(settings)
    }
}

/// Waits until a topic is there, or is not, for every later question. Blocking.
pub(super) fn settle<C: ClientContext>(
    client: &RdClient<C>,
    events: &Events,
    topic: &str,
    there: bool,
    within: Duration,
) -> Result<Option<Topic>> {
    let begin = Instant::now();
    loop {
        let found = look_up(client, events, topic, within)?;
        if found.is_some() == there {
            return Ok(found);
        }
        if begin.elapsed() >= within {
            let message =
                format!("topic '{topic}' is {} still, {} s later", if there { "missing" } else { "there" }, within.as_secs());
            return Err(Error::new(ErrorKind::Connection, message));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
