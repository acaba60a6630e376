//! The registry topic.

use bytes::Bytes;
use millstream::ErrorKind;
use millstream::queue::Queue;
use millstream::queue::kafka::KafkaQueue;

use super::{assert_lost, offset, stream_of};
use crate::support::kafka;
use crate::support::wait::{LONG, eventually};

fn value(text: &str) -> Option<Bytes> {
    Some(Bytes::from(text.to_owned()))
}

#[tokio::test(flavor = "multi_thread")]
async fn another_process_sees_what_was_put_and_not_what_was_deleted() {
    let kafka = kafka::shared().await;
    let settings = kafka.settings("registry");
    let (ours, theirs) = (KafkaQueue::open(settings.clone()).unwrap(), KafkaQueue::open(settings.clone()).unwrap());
    ours.create("s").await.unwrap();
    assert!(theirs.registry("s").await.unwrap().is_empty());
    for round in 0..5 {
        ours.registry_put("s", "consumer/a", value(&round.to_string())).await.unwrap();
        ours.registry_put("s", &format!("writer/{round}"), value("{}")).await.unwrap();
        if round > 0 {
            ours.registry_put("s", &format!("writer/{}", round - 1), None).await.unwrap();
        }
        let seen = theirs.registry("s").await.unwrap();
        assert_eq!(seen.keys().map(String::as_str).collect::<Vec<_>>(), ["consumer/a", &format!("writer/{round}")]);
        assert_eq!(seen["consumer/a"], round.to_string());
        assert_eq!(seen, ours.registry("s").await.unwrap());
    }
    // One that reads from the beginning agrees.
    let late = KafkaQueue::open(settings).unwrap();
    assert_eq!(late.registry("s").await.unwrap(), ours.registry("s").await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_made_anew_is_not_mixed_with_the_old_one() {
    let kafka = kafka::shared().await;
    let settings = kafka.settings("anew");
    let (ours, theirs) = (KafkaQueue::open(settings.clone()).unwrap(), KafkaQueue::open(settings).unwrap());
    ours.create("s").await.unwrap();
    for key in ["a", "b", "c"] {
        ours.registry_put("s", key, value("old")).await.unwrap();
    }
    assert_eq!(theirs.registry("s").await.unwrap().len(), 3);
    ours.destroy("s").await.unwrap();
    ours.create("s").await.unwrap();
    ours.registry_put("s", "d", value("new")).await.unwrap();
    for queue in [ours, theirs] {
        let seen = queue.registry("s").await.unwrap();
        assert_eq!(seen.keys().collect::<Vec<_>>(), ["d"]);
    }
}

/// A broker that did not know the registry's topic made it look empty: nobody reads, so everything was deleted.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_missing_beside_the_other_is_in_doubt_and_then_lost() {
    let kafka = kafka::shared().await;
    let settings = kafka.settings("half");
    let registry = format!("{}s.registry", settings.topic_prefix);
    let queue = KafkaQueue::open(settings).unwrap();
    stream_of(&queue, "s", 5).await;
    queue.registry_put("s", "consumer/a", value("0")).await.unwrap();
    kafka.delete_topic(&registry).await;
    let mut doubted = false;
    let error = eventually("the registry's end", LONG, async || match queue.registry("s").await {
        Ok(entries) if entries.is_empty() => panic!("no registry is not an empty one"),
        Err(error) if error.kind() != ErrorKind::Connection => Ok(error),
        other => {
            doubted |= other.is_err();
            Err(other)
        }
    });
    assert_lost(&error.await);
    assert!(doubted, "a broker that has just come up would have been believed");
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_the_consumer_group_changes_nothing() {
    let kafka = kafka::shared().await;
    let settings = kafka.settings("group");
    let topic = format!("{}s", settings.topic_prefix);
    let group = format!("{topic}.replica");
    let queue = KafkaQueue::open(settings).unwrap();
    stream_of(&queue, "s", 5).await;
    queue.publish_progress("s", "replica", offset(2)).await.unwrap();
    let committed = || {
        let (brokers, topic) = (kafka.internal(), topic.clone());
        tokio::task::spawn_blocking(move || committed(&brokers, &topic, "replica"))
    };
    eventually("the committed offset", LONG, async || match committed().await.unwrap() {
        Some(3) => Ok(()),
        other => Err(other),
    })
    .await;
    let mut reader = queue.reader("s", offset(3)).await.unwrap();
    let deleted = kafka.admin().delete_groups(&[&group], &rdkafka::admin::AdminOptions::new()).await.unwrap();
    assert!(deleted[0].is_ok(), "{deleted:?}");
    assert_eq!(super::read_some(&mut *reader, 2).await[0].offset, offset(3));
    let mut again = queue.reader("s", offset(3)).await.unwrap();
    assert_eq!(super::read_some(&mut *again, 2).await.len(), 2);
    queue.publish_progress("s", "replica", offset(4)).await.unwrap();
    eventually("the committed offset", LONG, async || match committed().await.unwrap() {
        Some(5) => Ok(()),
        other => Err(other),
    })
    .await;
}

/// What other tools would see.
pub(super) fn committed(brokers: &str, topic: &str, consumer: &str) -> Option<i64> {
    use rdkafka::consumer::{BaseConsumer, Consumer};
    let group = format!("{topic}.{consumer}");
    let client: BaseConsumer =
        rdkafka::ClientConfig::new().set("bootstrap.servers", brokers).set("group.id", group).create().unwrap();
    let mut place = rdkafka::TopicPartitionList::new();
    place.add_partition(topic, 0);
    let committed = client.committed_offsets(place, std::time::Duration::from_secs(5)).ok()?;
    committed.find_partition(topic, 0)?.offset().to_raw().filter(|offset| *offset >= 0)
}
