//! Which rights are there: asked for in ways that change nothing.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::producer::Producer;
use rdkafka::{Offset, TopicPartitionList};

use super::authorized::{Operation, Resource};
use super::client::{Context, blocking};
use super::settings::{Client, KafkaSettings};
use super::topics::{Admin, to_i64, watermarks};
use super::{KafkaQueue, errors};
use crate::error::Result;

/// The commands that give Millstream its rights; `docs/kafka.md` says what each is for.
pub(super) fn grants(settings: &KafkaSettings, server: &str) -> Vec<String> {
    let user = settings.properties.get("sasl.username").map_or("USER", String::as_str);
    let scope = |kind: &str| {
        if settings.topic_prefix.is_empty() {
            format!("--{kind} '*'")
        } else {
            format!("--{kind} {} --resource-pattern-type prefixed", settings.topic_prefix)
        }
    };
    let grant = |operations: &[&str], scope: String| {
        let operations: String = operations.iter().map(|name| format!(" --operation {name}")).collect();
        format!("kafka-acls.sh {server} --add --allow-principal User:{user}{operations} {scope}")
    };
    vec![
        grant(&["Create", "Describe", "DescribeConfigs", "Read", "Write", "Delete"], scope("topic")),
        grant(&["Read", "Describe"], scope("group")),
    ]
}

/// Asks whether a topic that is there may be read and written, and the log's records deleted (trim).
pub(super) async fn probe(queue: &KafkaQueue, admin: &Admin, topic: &str, is_log: bool) -> Vec<(&'static str, Result<()>)> {
    let name = topic.to_owned();
    let place = queue.question(move |control, events, within| watermarks(control.client(), events, &name, within)).await;
    let low = match place {
        Ok((low, _)) => low,
        Err(error) => return vec![("may describe", Err(error))],
    };
    let (settings, name) = (queue.settings.clone(), topic.to_owned());
    let mut answers = vec![("may read", blocking(move || read(&settings, &name, low)).await)];
    answers.push(("may write", admin.may(Resource::Topic(topic.to_owned()), &[Operation::Write]).await));
    if is_log {
        answers.push(("may delete records", admin.delete_records(topic, low).await));
    }
    answers
}

/// Reads one record or the end of the topic. Blocking.
fn read(settings: &KafkaSettings, topic: &str, low: u64) -> Result<()> {
    let doing = format!("reading topic '{topic}'");
    let failed = |error: KafkaError| errors::error(&doing, &error);
    let consumer: BaseConsumer<Context> =
        settings.client(Client::Registry(topic)).create_with_context(Context::new("check")).map_err(failed)?;
    let mut place = TopicPartitionList::new();
    place.add_partition_offset(topic, 0, Offset::Offset(to_i64(low))).map_err(failed)?;
    consumer.assign(&place).map_err(failed)?;
    let begin = Instant::now();
    loop {
        match consumer.poll(Duration::from_millis(200)) {
            Some(Ok(_) | Err(KafkaError::PartitionEOF(_))) => return Ok(()),
            Some(Err(error)) if !errors::code_of(&error).is_some_and(errors::passes) => return Err(failed(error)),
            _ if begin.elapsed() > settings.answer_within => {
                return Err(consumer.client().context().events().no_answer(&doing, begin.elapsed()));
            }
            _ => {}
        }
    }
}
