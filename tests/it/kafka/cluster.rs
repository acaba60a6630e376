//! Three brokers: one fails and nothing happens; an unclean election loses the tail and is noticed (FAULTS 20).

use std::time::Duration;

use bytes::Bytes;
use millstream::preflight::check::Severity;
use millstream::queue::kafka::{self as kafka_queue, KafkaQueue, KafkaSettings};
use millstream::queue::{Queue, Ticket};
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::{append_all, assert_lost, durable, offset, read_some, read_until_error, record};
use crate::support::kafka::Kafka;
use crate::support::wait::{LONG, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_dies_costs_nothing_and_an_unclean_election_is_loss() {
    let kafka = Kafka::builder()
        .nodes(3)
        .set("replica.fetch.max.bytes", "65536")
        .set("replica.fetch.response.max.bytes", "65536")
        // A follower that lags is throttled, in sync or not, and leaves the in-sync set well within the writer's 30 s.
        .set("replica.lag.time.max.ms", "5000")
        .start()
        .await;
    let settings = kafka.settings("cluster");
    let topic = format!("{}s", settings.topic_prefix);
    let queue = KafkaQueue::open(settings.clone()).unwrap();
    queue.create("s").await.unwrap();
    in_sync_replicas_are_mended_as_printed(&kafka, &settings, &topic).await;
    let mut writer = queue.writer("s").await.unwrap();
    let mut reader = queue.reader("s", offset(0)).await.unwrap();
    append_all(&mut *writer, (0..50).map(|n| record(n, 2000))).await;

    // The leader dies: two are left, as many as min.insync.replicas asks for.
    let (leader, _) = leader_and_in_sync(&kafka, &topic).await.unwrap();
    kafka.node(leader).kill();
    let mut last = Ticket(0);
    for n in 50..100 {
        last = writer.append(record(n, 2000)).await.unwrap();
    }
    durable(&mut *writer, last).await;
    kafka.node(leader).start();
    let read = read_some(&mut *reader, 100).await;
    for (n, stored) in read.iter().enumerate() {
        assert_eq!(stored.bytes, record(n, 2000));
    }
    eventually("all three in sync", LONG, async || match leader_and_in_sync(&kafka, &topic).await {
        Some((_, 3)) => Ok(()),
        other => Err(other),
    })
    .await;

    // Two replicas fall behind, the third alone takes records and dies: one that never had them leads.
    let throttle = "leader.replication.throttled.rate=1,follower.replication.throttled.rate=1";
    let arguments = ["--alter", "--entity-type", "brokers", "--entity-default", "--add-config", throttle];
    kafka.tool("kafka.admin.ConfigCommand", &arguments).await;
    let settings = [
        ("min.insync.replicas", "1"),
        ("unclean.leader.election.enable", "true"),
        ("retention.ms", "-1"),
        ("leader.replication.throttled.replicas", "*"),
        ("follower.replication.throttled.replicas", "*"),
    ];
    kafka.alter_topic(&topic, &settings).await;
    let (leader, _) = leader_and_in_sync(&kafka, &topic).await.unwrap();
    let mut sent = 100;
    let mut alone = offset(0);
    for follower in (1..=3).filter(|id| *id != leader) {
        // In-sync replicas are not throttled; one that was away and has much to fetch is.
        kafka.node(follower).kill();
        alone = append_all(&mut *writer, (sent..sent + 12).map(noise)).await.offset;
        sent += 12;
        kafka.node(follower).start();
        kafka.ready().await;
    }
    eventually("one alone in sync", LONG, async || match leader_and_in_sync(&kafka, &topic).await {
        Some((who, 1)) if who == leader => Ok(()),
        other => Err(other),
    })
    .await;
    read_some(&mut *reader, sent - 100).await;
    drop(writer);
    kafka.node(leader).kill();
    let end = eventually("the shorter topic", LONG, async || match queue.bounds("s").await {
        Ok(Some(bounds)) if bounds.end <= alone => Ok(bounds.end),
        other => Err(other),
    })
    .await;
    assert!(end >= offset(100), "{end}");
    assert_lost(&queue.reader("s", alone.next()).await.err().unwrap());
    assert_lost(&read_until_error(&mut *reader).await);
}

/// Cannot be compressed.
fn noise(n: usize) -> Bytes {
    let mut bytes = record(n, 500_000).to_vec();
    rand::fill(&mut bytes[20..]);
    bytes.into()
}

/// Node that leads the topic, and how many replicas are in sync.
async fn leader_and_in_sync(kafka: &Kafka, topic: &str) -> Option<(usize, usize)> {
    let (servers, topic) = (kafka.internal(), topic.to_owned());
    let ask = move || {
        let client: BaseConsumer = rdkafka::ClientConfig::new().set("bootstrap.servers", servers).create().unwrap();
        let metadata = client.fetch_metadata(Some(&topic), Duration::from_secs(5)).ok()?;
        let partition = metadata.topics()[0].partitions().first()?;
        Some((usize::try_from(partition.leader()).ok()?, partition.isr().len()))
    };
    tokio::task::spawn_blocking(ask).await.unwrap()
}

/// Three brokers are what `min.insync.replicas` can be judged by: too few, and so many that none may fail.
async fn in_sync_replicas_are_mended_as_printed(kafka: &Kafka, settings: &KafkaSettings, topic: &str) {
    let look = async || {
        let found = kafka_queue::check(settings, &["s"]).await.into_list();
        found.into_iter().find(|f| f.check == "min.insync.replicas" && f.object.as_deref() == Some(topic)).expect("a finding")
    };
    for value in ["1", "3"] {
        kafka.alter_topic(topic, &[("min.insync.replicas", value)]).await;
        let found = eventually(&format!("min.insync.replicas={value}"), LONG, async || {
            let found = look().await;
            let shown = found.what.ends_with(&format!("min.insync.replicas={value}"));
            if shown && found.severity == Severity::Warning { Ok(found) } else { Err(found) }
        })
        .await;
        super::check::carry_out(kafka, &found.remedy.expect("a remedy").steps[0]).await;
        eventually("the finding to be gone", LONG, async || {
            let found = look().await;
            if found.severity == Severity::Ok { Ok(()) } else { Err(found) }
        })
        .await;
    }
}
