//! `millstream check` on Kafka: what is wrong is found, and the command that it prints mends it.

use millstream::preflight::check::{Finding, Place, Severity};
use millstream::queue::Queue;
use millstream::queue::kafka::{self as kafka_queue, KafkaQueue, KafkaSettings};

use crate::support::kafka::{self, Kafka};
use crate::support::wait::{LONG, eventually};

async fn findings(settings: &KafkaSettings, streams: &[&str]) -> Vec<Finding> {
    kafka_queue::check(settings, streams).await.into_list()
}

fn problems(findings: &[Finding]) -> Vec<&'static str> {
    findings.iter().filter(|f| f.severity > Severity::Warning).map(|f| f.check).collect()
}

/// Carries a printed command out with the tool that it names.
pub(super) async fn carry_out(kafka: &Kafka, command: &str) {
    let words: Vec<&str> = command.split_whitespace().collect();
    let class = match words[0] {
        "kafka-configs.sh" => "kafka.admin.ConfigCommand",
        "kafka-topics.sh" => "org.apache.kafka.tools.TopicCommand",
        "kafka-acls.sh" => "org.apache.kafka.tools.AclCommand",
        other => panic!("{other} is not one of Kafka's tools"),
    };
    let from = words.iter().position(|word| word.starts_with("--") && !["--bootstrap-server", "--command-config"].contains(word));
    kafka.tool(class, &words[from.unwrap()..]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_command_mends_what_it_is_printed_for() {
    let kafka = kafka::shared().await;
    let settings = kafka.settings("check");
    let topic = format!("{}s", settings.topic_prefix);
    let bad = [
        ("retention.ms", "60000"),
        ("retention.bytes", "1000000"),
        ("cleanup.policy", "compact,delete"),
        ("max.message.bytes", "10000"),
        ("unclean.leader.election.enable", "true"),
    ];
    kafka.create_topic(&topic, 1, &bad).await;
    kafka.create_topic(&format!("{topic}.registry"), 1, &[("cleanup.policy", "delete")]).await;
    let found = findings(&settings, &["s"]).await;
    let mut names = problems(&found);
    names.sort_unstable();
    let expected = ["cleanup.policy", "cleanup.policy", "max.message.bytes", "retention.bytes", "retention.ms"];
    assert_eq!(names, expected, "{found:#?}");
    let unclean = |f: &&Finding| f.check == "unclean.leader.election.enable" && f.object.as_deref() == Some(topic.as_str());
    assert_eq!(found.iter().find(unclean).map(|f| f.severity), Some(Severity::Warning), "{found:#?}");
    let why = |check: &str| found.iter().find(|f| f.check == check).map(|f| f.why.clone()).unwrap();
    assert!(why("retention.ms").contains("off for more than 60 s"), "{found:#?}");
    assert!(why("retention.bytes").contains("behind"), "{found:#?}");
    for finding in found.iter().filter(|f| f.severity == Severity::Error || unclean(f)) {
        let remedy = finding.remedy.as_ref().unwrap();
        assert_eq!(remedy.place, Place::Shell);
        for command in &remedy.steps {
            carry_out(kafka, command).await;
        }
    }
    let after = findings(&settings, &["s"]).await;
    assert!(problems(&after).is_empty(), "{after:#?}");
    KafkaQueue::open(settings).unwrap().create("s").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_init_makes_is_as_check_wants_it() {
    let kafka = kafka::shared().await;
    let settings = kafka.settings("fine");
    let before = findings(&settings, &["s"]).await;
    assert!(problems(&before).is_empty(), "{before:#?}");
    // One broker is to be thought about before the topics are made, not after.
    assert!(before.iter().any(|f| f.check == "replication_factor" && f.severity == Severity::Warning), "{before:#?}");
    KafkaQueue::open(settings.clone()).unwrap().create("s").await.unwrap();
    let after = findings(&settings, &["s"]).await;
    assert!(problems(&after).is_empty(), "{after:#?}");
    let rights = after.iter().filter(|f| f.check == "rights" && f.severity == Severity::Ok).count();
    // The group's; of the log's topic to read, write and delete; of the registry's to read and write.
    assert_eq!(rights, 6, "{after:#?}");
    // One broker cannot be more than a warning.
    assert!(after.iter().any(|f| f.check == "replication_factor" && f.severity == Severity::Warning), "{after:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_replicas_than_brokers_and_partitions_are_found() {
    let kafka = kafka::shared().await;
    let mut settings = kafka.settings("many");
    settings.replication_factor = 3;
    kafka.create_topic(&format!("{}two", settings.topic_prefix), 2, &[]).await;
    let found = findings(&settings, &["two", "new"]).await;
    for check in ["replication_factor", "partitions", "topic"] {
        assert!(found.iter().any(|f| f.check == check && f.severity == Severity::Error), "{check}: {found:#?}");
    }
    // As printed: fewer replicas, and the topic deleted for `init` to make it anew.
    let remedy = |name: &str| found.iter().find(|f| f.check == name && f.severity == Severity::Error).unwrap().remedy.clone();
    let factor = remedy("replication_factor").unwrap().steps[0].clone();
    settings.replication_factor = factor.rsplit(' ').next().unwrap().parse().unwrap();
    let command = remedy("partitions").unwrap().steps[0].clone();
    let (command, _) = command.split_once('#').unwrap();
    carry_out(kafka, command).await;
    let after = eventually("the topic to be gone", LONG, async || {
        let found = findings(&settings, &["two", "new"]).await;
        if problems(&found).is_empty() { Ok(found) } else { Err(found) }
    })
    .await;
    assert!(!after.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_is_not_there_is_one_finding() {
    let mut settings = KafkaSettings::new("127.0.0.1:1".into(), std::collections::BTreeMap::new(), "x.".into(), 1);
    settings.answer_within = std::time::Duration::from_secs(2);
    let found = findings(&settings, &["s"]).await;
    assert_eq!(problems(&found), ["connection"], "{found:#?}");
    assert!(found[0].what.contains("refused"), "{found:#?}");
}
