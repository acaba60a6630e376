//! Whole pairs over Kafka: daemons and broker are killed and paused, the log is taken away.

use std::time::Duration;

use millstream::queue::Queue;
use millstream::queue::kafka::{KafkaQueue, KafkaSettings};
use rustix::process::Signal;

use crate::support::compare;
use crate::support::daemon::{Site, pair_configuration};
use crate::support::kafka::{self, Kafka};
use crate::support::postgres::{PgDatabase, PgServer};
use crate::support::prefix::PrefixReader;
use crate::support::process::Process;
use crate::support::wait::{LONG, until};
use crate::support::workload::{Plan, Workload};
use crate::support::workload_ops::SCHEMA;

/// For a pair to become equal again after the worst.
const CATCH_UP: Duration = Duration::from_secs(120);

/// The configuration of a pair over this broker.
fn configuration(kafka: &Kafka, prefix: &str, source: &PgDatabase<'_>, replica: &PgDatabase<'_>) -> String {
    let pair = pair_configuration(&source.url(), &replica.url(), &format!("kafka://{}", kafka.brokers()));
    let http = pair.replace("[queue]\n", "[queue]\nmax_bytes = \"1GiB\"\n");
    format!("{http}\n[queue.kafka]\ntopic_prefix = \"{prefix}\"\nreplication_factor = 1\n")
}

async fn halted(site: &Site, code: &str) {
    let quoted = format!("\"{code}\"");
    let seen = async || site.get("/status").await.is_ok_and(|(_, body)| body.contains(&quoted));
    until(&format!("a halt with {code}"), CATCH_UP, seen).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pair_over_kafka_survives_kills_of_daemon_and_broker() {
    let (source, replica, kafka) = tokio::join!(PgServer::start(), PgServer::start(), Kafka::builder().start());
    let (from, to) = (source.new_database().await, replica.new_database().await);
    from.execute(SCHEMA).await;
    let site = Site::new(&configuration(&kafka, "storm.", &from, &to));
    site.must(&["init"]).await;
    let workload = Workload::start(&source.options(&from.name), &Plan::default());
    let mut daemon = site.start();
    site.ready(CATCH_UP).await;
    let reader = PrefixReader::start(&replica.options(&to.name), Duration::from_millis(10));
    let mut peak = 0;
    for round in 0..14_u64 {
        tokio::time::sleep(Duration::from_millis(300 + round * 131 % 900)).await;
        match round % 7 {
            3 => {
                kafka.node(1).kill();
                tokio::time::sleep(Duration::from_millis(500)).await;
                kafka.node(1).start();
                kafka.ready().await;
            }
            5 => {
                kafka.node(1).pause();
                tokio::time::sleep(Duration::from_secs(3)).await;
                kafka.node(1).resume();
            }
            _ => {
                assert!(daemon.exited().is_none(), "the daemon ended by itself:\n{}", daemon.log_tail());
                peak = peak.max(daemon.kill());
                daemon = site.start();
            }
        }
    }
    let tally = workload.stop().await;
    let compared = compare::equal(&from, &to, CATCH_UP).await;
    reader.verdict();
    assert!(tally.changes() > 0 && compared.rows > 0, "nothing was proved: {tally:?} {compared:?}");
    assert!(peak < 256 << 20, "{} MiB", peak >> 20);
    assert_eq!(daemon.terminate().await.code(), Some(0));
    let logs = site.all_logs();
    assert!(!logs.contains("panicked"), "{}", site.last_log());
}

#[tokio::test(flavor = "multi_thread")]
async fn capture_and_apply_work_in_two_daemons_and_a_second_capture_is_fenced() {
    let (source, replica) = tokio::join!(PgServer::start(), PgServer::start());
    let kafka = kafka::shared().await;
    let (from, to) = (source.new_database().await, replica.new_database().await);
    from.execute(SCHEMA).await;
    let text = configuration(kafka, &kafka.prefix("roles"), &from, &to);
    let (capture, apply) = (Site::new(&text), Site::new(&text));
    capture.must(&["init"]).await;
    let roles = |site: &Site, role: &str| Process::spawn(site.command(&["run", "--roles", role])).expect("a daemon");
    let first = roles(&capture, "capture");
    let applier = roles(&apply, "apply");
    let workload = Workload::start(&source.options(&from.name), &Plan::default());
    apply.ready(CATCH_UP).await;
    // A machine that stands still; another takes its place; the first comes back.
    first.signal(Signal::STOP);
    let sql = "SELECT count(pg_terminate_backend(active_pid)) FROM pg_replication_slots WHERE active_pid IS NOT NULL";
    from.execute(sql).await;
    let standby = Site::new(&text);
    let second = roles(&standby, "capture");
    let done = workload.tally.transactions();
    until("the second capture to work", LONG, async || workload.tally.transactions() > done + 200).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    first.signal(Signal::CONT);
    let done = workload.tally.transactions();
    until("more transactions", LONG, async || workload.tally.transactions() > done + 500).await;
    workload.stop().await;
    compare::equal(&from, &to, CATCH_UP).await;
    drop((first, second, applier));
}

/// I6 on Kafka too: what the slowest consumer has not read stops capture, and what it has read goes, with DeleteRecords.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_stops_capture_and_goes_on_as_the_replica_reads() {
    let (source, replica) = tokio::join!(PgServer::start(), PgServer::start());
    let kafka = kafka::shared().await;
    let (from, to) = (source.new_database().await, replica.new_database().await);
    from.execute("CREATE TABLE t (id int PRIMARY KEY, v text)").await;
    let prefix = kafka.prefix("full");
    let text = configuration(kafka, &prefix, &from, &to).replace("max_bytes = \"1GiB\"", "max_bytes = \"1MiB\"");
    let (capture, apply) = (Site::new(&text), Site::new(&text));
    capture.must(&["init"]).await;
    let start = |site: &Site, role: &str| Process::spawn(site.command(&["run", "--roles", role])).expect("a daemon");
    let capturing = start(&capture, "capture");
    for part in 0..40 {
        // About 160 kB a transaction that does not compress.
        let rows = format!(
            "INSERT INTO t SELECT n, md5(random()::text) || md5(random()::text) FROM generate_series({part} * 2000 + 1, {part} * 2000 + 2000) n"
        );
        from.execute(&rows).await;
    }
    let full = async || capture.status().await.is_some_and(|status| status["sources"]["shop"]["state"] == "queue_full");
    until("a full queue", CATCH_UP, full).await;
    let first_kept = async || {
        let log = format!("{prefix}shop");
        let offsets = kafka.tool("org.apache.kafka.tools.GetOffsetShell", &["--topic", &log, "--time", "earliest"]).await;
        offsets.trim().rsplit(':').next().and_then(|offset| offset.parse::<u64>().ok()).unwrap_or_else(|| panic!("{offsets}"))
    };
    let before = first_kept().await;
    let applying = start(&apply, "apply");
    compare::equal(&from, &to, CATCH_UP).await;
    let streaming = async || capture.status().await.is_some_and(|status| status["sources"]["shop"]["state"] == "streaming");
    until("capture to stream again", CATCH_UP, streaming).await;
    assert_eq!(to.value("SELECT count(*) FROM t").await, "80000");
    // Deleted is what lies before the place from which every schema in force can be read, and that moves on every few megabytes.
    for part in 0..160 {
        let first = part % 40 * 2000 + 1;
        let rows =
            format!("UPDATE t SET v = md5(random()::text) || md5(random()::text) WHERE id BETWEEN {first} AND {first} + 1999");
        from.execute(&rows).await;
    }
    compare::equal(&from, &to, CATCH_UP).await;
    until("what was read to be deleted", CATCH_UP, async || first_kept().await > before).await;
    drop((capturing, applying));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_deleted_halts_and_is_never_made_anew() {
    let (source, replica) = tokio::join!(PgServer::start(), PgServer::start());
    let kafka = kafka::shared().await;
    let (from, to) = (source.new_database().await, replica.new_database().await);
    from.execute("CREATE TABLE t (id int PRIMARY KEY, v text)").await;
    let prefix = kafka.prefix("deleted");
    let site = Site::new(&configuration(kafka, &prefix, &from, &to));
    site.must(&["init"]).await;
    let daemon = site.start();
    site.ready(CATCH_UP).await;
    from.execute("INSERT INTO t SELECT n, 'before' FROM generate_series(1, 1000) n").await;
    compare::equal(&from, &to, CATCH_UP).await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
    from.execute("UPDATE t SET v = 'while it was away'").await;

    kafka.delete_topic(&format!("{prefix}shop")).await;
    let daemon = site.start();
    halted(&site, "queue_lost").await;
    assert!(daemon.exited().is_none(), "a halt does not end the daemon");
    let untouched = to.value("SELECT count(*) FROM t WHERE v = 'before'").await;
    assert_eq!(untouched, "1000");
    let settings = KafkaSettings::new(kafka.brokers(), kafka.properties(), prefix, 1);
    let queue = KafkaQueue::open(KafkaSettings { gone_after: Duration::ZERO, ..settings }).unwrap();
    assert_eq!(queue.bounds("shop").await.unwrap(), None);
}

/// FAULTS 22: the group's name is a courtesy to lag exporters. Whoever joins it, is killed in it or commits in it, the ledger decides what is read.
#[tokio::test(flavor = "multi_thread")]
async fn others_in_a_replicas_consumer_group_change_nothing() {
    use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
    use rdkafka::{Offset, TopicPartitionList};
    let (source, replica) = tokio::join!(PgServer::start(), PgServer::start());
    let kafka = kafka::shared().await;
    let (from, to) = (source.new_database().await, replica.new_database().await);
    from.execute("CREATE TABLE t (id int PRIMARY KEY, v int)").await;
    let prefix = kafka.prefix("groups");
    let topic = format!("{prefix}shop");
    let site = Site::new(&configuration(kafka, &prefix, &from, &to));
    site.must(&["init"]).await;
    let daemon = site.start();
    site.ready(CATCH_UP).await;
    from.execute("INSERT INTO t SELECT n, 0 FROM generate_series(1, 500) n").await;
    compare::equal(&from, &to, CATCH_UP).await;

    // The replica's own: it has committed there.
    let group = format!("{topic}.reports");
    until("the replica's own commit", LONG, async || {
        let (brokers, topic) = (kafka.internal(), topic.clone());
        let read = tokio::task::spawn_blocking(move || super::registry::committed(&brokers, &topic, "reports"));
        read.await.expect("a read").is_some_and(|offset| offset > 0)
    })
    .await;
    let member = || {
        let consumer: BaseConsumer = rdkafka::ClientConfig::new()
            .set("bootstrap.servers", kafka.brokers())
            .set("group.id", &group)
            .set("auto.offset.reset", "earliest")
            .set("session.timeout.ms", "6000")
            .create()
            .expect("a consumer");
        consumer.subscribe(&[&topic]).expect("subscribed");
        consumer
    };
    let takes = |consumer: BaseConsumer| {
        let taken = move || {
            let end = std::time::Instant::now() + LONG;
            while std::time::Instant::now() < end {
                if matches!(consumer.poll(Duration::from_millis(100)), Some(Ok(_))) {
                    return consumer;
                }
            }
            panic!("the stranger is given no record");
        };
        async { tokio::task::spawn_blocking(taken).await.expect("a stranger in the group") }
    };
    // The stranger owns the partition in the group's eyes, then another joins, and the first goes.
    let first = takes(member()).await;
    from.execute("UPDATE t SET v = 1 WHERE id % 2 = 0").await;
    compare::equal(&from, &to, CATCH_UP).await;
    let second = member();
    drop(first);
    let second = takes(second).await;
    // It commits the beginning, and the next start of the daemon must not begin there.
    let mut place = TopicPartitionList::new();
    place.add_partition_offset(&topic, 0, Offset::Offset(0)).expect("a place");
    assert_eq!(daemon.terminate().await.code(), Some(0));
    second.commit(&place, CommitMode::Sync).expect("committed");
    from.execute("UPDATE t SET v = v + 1").await;
    let daemon = site.start();
    compare::equal(&from, &to, CATCH_UP).await;
    // Far past the end as well.
    assert_eq!(daemon.terminate().await.code(), Some(0));
    let mut place = TopicPartitionList::new();
    place.add_partition_offset(&topic, 0, Offset::Offset(1_000_000)).expect("a place");
    second.commit(&place, CommitMode::Sync).expect("committed");
    from.execute("UPDATE t SET v = v + 1; DELETE FROM t WHERE id = 7").await;
    let daemon = site.start();
    compare::equal(&from, &to, CATCH_UP).await;
    assert!(!site.all_logs().contains("halted"), "{}", site.last_log());
    assert_eq!(daemon.terminate().await.code(), Some(0));
}

/// FAULTS 21: an administrator tidies up. The group comes back with the next commit, for lag exporters, and what is read is the ledger's affair.
#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_consumer_group_changes_nothing_beside_a_running_daemon_or_without_one() {
    use rdkafka::admin::AdminOptions;
    let (source, replica) = tokio::join!(PgServer::start(), PgServer::start());
    let kafka = kafka::shared().await;
    let (from, to) = (source.new_database().await, replica.new_database().await);
    from.execute("CREATE TABLE t (id int PRIMARY KEY, v int)").await;
    let prefix = kafka.prefix("tidied");
    let topic = format!("{prefix}shop");
    let group = format!("{topic}.reports");
    let site = Site::new(&configuration(kafka, &prefix, &from, &to));
    site.must(&["init"]).await;
    let daemon = site.start();
    site.ready(CATCH_UP).await;
    from.execute("INSERT INTO t SELECT n, 0 FROM generate_series(1, 500) n").await;
    compare::equal(&from, &to, CATCH_UP).await;
    let commits = || {
        until("the replica's own commit", LONG, async || {
            let (brokers, topic) = (kafka.internal(), topic.clone());
            let read = tokio::task::spawn_blocking(move || super::registry::committed(&brokers, &topic, "reports"));
            read.await.expect("a read").is_some_and(|offset| offset > 0)
        })
    };
    let delete = async || {
        commits().await;
        let deleted = kafka.admin().delete_groups(&[&group], &AdminOptions::new()).await.expect("an answer");
        assert!(deleted.len() == 1 && deleted[0].is_ok(), "{deleted:?}");
    };
    delete().await;
    from.execute("UPDATE t SET v = v + 1; DELETE FROM t WHERE id % 10 = 0").await;
    compare::equal(&from, &to, CATCH_UP).await;
    delete().await;
    assert_eq!(daemon.terminate().await.code(), Some(0));

    from.execute("UPDATE t SET v = v + 1; INSERT INTO t SELECT n, 0 FROM generate_series(1001, 1200) n").await;
    // It may have committed as it ended.
    let deleted = kafka.admin().delete_groups(&[&group], &AdminOptions::new()).await.expect("an answer");
    assert_eq!(deleted.len(), 1, "{deleted:?}");
    let (brokers, name) = (kafka.internal(), topic.clone());
    let left = tokio::task::spawn_blocking(move || super::registry::committed(&brokers, &name, "reports")).await;
    assert_eq!(left.expect("a read"), None, "the group is there still");
    let daemon = site.start();
    compare::equal(&from, &to, CATCH_UP).await;
    from.execute("DELETE FROM t WHERE id = 7").await;
    compare::equal(&from, &to, CATCH_UP).await;
    commits().await;
    // A row that came twice would halt it.
    assert!(!site.all_logs().contains("halted"), "{}", site.last_log());
    assert_eq!(to.value("SELECT count(*) FROM t WHERE v > 2").await, "0");
    assert_eq!(daemon.terminate().await.code(), Some(0));
}

/// FAULTS 44: twenty times what the broker takes in one record, and twenty-five as it grows.
#[tokio::test(flavor = "multi_thread")]
async fn a_value_far_beyond_the_brokers_limit_travels_in_parts() {
    let (source, replica) = tokio::join!(PgServer::start(), PgServer::start());
    let kafka = kafka::shared().await;
    let (from, to) = (source.new_database().await, replica.new_database().await);
    from.execute("CREATE TABLE giant (id int PRIMARY KEY, v text)").await;
    let site = Site::new(&configuration(kafka, &kafka.prefix("giant"), &from, &to));
    site.must(&["init"]).await;
    let daemon = site.start();
    site.ready(CATCH_UP).await;
    from.execute("INSERT INTO giant VALUES (1, repeat('0123456789abcdef', 1310720)), (2, 'small')").await;
    from.execute("UPDATE giant SET v = v || repeat('more', 1310720)").await;
    compare::equal(&from, &to, CATCH_UP).await;
    assert_eq!(to.value("SELECT sum(length(v)) FROM giant").await, "31457285");
    assert!(!daemon.log().contains("halted"), "{}", daemon.log_tail());
    daemon.terminate().await;
}

/// No folder has a lock here: the slot's reader and the applier's session tell.
#[tokio::test(flavor = "multi_thread")]
async fn a_teardown_beside_a_running_daemon_is_refused_and_after_a_kill_it_is_not() {
    let (source, replica) = tokio::join!(PgServer::start(), PgServer::start());
    let kafka = kafka::shared().await;
    let (from, to) = (source.new_database().await, replica.new_database().await);
    from.execute("CREATE TABLE t (id int PRIMARY KEY)").await;
    let site = Site::new(&configuration(kafka, &kafka.prefix("teardown"), &from, &to));
    site.must(&["init"]).await;
    let daemon = site.start();
    site.ready(CATCH_UP).await;
    let refused = site.run(&["teardown", "--yes"]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    for part in [
        "source shop: slot millstream_shop_",
        "is being read by 'millstream ",
        "is being applied to by",
        "systemctl stop millstream",
    ] {
        assert!(refused.stdout.contains(part), "'{part}' is not in {refused:?}");
    }
    assert_eq!(from.value("SELECT count(*) FROM pg_replication_slots").await, "1");
    assert!(!daemon.log().contains("halted"), "{}", daemon.log());
    daemon.kill();
    site.must(&["teardown", "--yes"]).await;
    assert_eq!(from.value("SELECT count(*) FROM pg_replication_slots").await, "0");
}
