//! TLS, SASL and rights, on one broker that asks for all three.

use millstream::ErrorKind;
use millstream::halt::HaltCode;
use millstream::preflight::check::Severity;
use millstream::queue::Queue;
use millstream::queue::kafka::{KafkaQueue, KafkaSettings};
use std::time::{Duration, Instant};

use super::{append_all, offset, read_some, record};
use crate::support::daemon::{Site, pair_configuration};
use crate::support::files::write_private;
use crate::support::kafka::Kafka;
use crate::support::tls::CertificateWish;
use crate::support::wait::{LONG, eventually, until};

#[tokio::test(flavor = "multi_thread")]
async fn tls_scram_and_acls() {
    let kafka = Kafka::builder().tls(CertificateWish::default()).user("app", "canary-password").acls().start().await;
    let with = |changes: &[(&str, &str)]| {
        let mut settings = kafka.settings("secure");
        settings.answer_within = Duration::from_secs(12);
        for (key, value) in changes {
            settings.properties.insert((*key).into(), (*value).into());
        }
        settings
    };

    refused(with(&[("sasl.password", "wrong")]), ErrorKind::Halt(HaltCode::QueueDenied), "sasl.").await;
    refused(with(&[("ssl.ca.location", "/etc/ssl/certs/ca-certificates.crt")]), ErrorKind::Connection, "certificate").await;
    refused(with(&[("security.protocol", "plaintext")]), ErrorKind::Connection, "no answer").await;
    // Right password, no rights yet.
    let settings = with(&[]);
    refused(settings.clone(), ErrorKind::Halt(HaltCode::QueueDenied), "kafka-acls.sh").await;

    // What `check` prints for it mends it.
    let found = millstream::queue::kafka::check(&settings, &["s"]).await.into_list();
    let remedy = found.iter().find_map(|f| f.remedy.as_ref()).unwrap();
    assert_eq!(remedy.steps.len(), 2, "{found:#?}");
    for command in &remedy.steps {
        super::check::carry_out(&kafka, command).await;
    }
    let found = millstream::queue::kafka::check(&settings, &["s"]).await.into_list();
    assert!(found.iter().all(|f| f.severity <= Severity::Warning), "{found:#?}");
    each_right_that_is_missing_is_found(&kafka, &settings).await;
    for mechanism in ["SCRAM-SHA-256", "PLAIN"] {
        let mut settings = settings.clone();
        settings.properties.insert("sasl.mechanism".into(), mechanism.into());
        let queue = KafkaQueue::open(settings).unwrap();
        queue.create(mechanism).await.unwrap();
        let mut writer = queue.writer(mechanism).await.unwrap();
        append_all(&mut *writer, (0..10).map(|n| record(n, 100))).await;
        let mut reader = queue.reader(mechanism, offset(0)).await.unwrap();
        assert_eq!(read_some(&mut *reader, 10).await.len(), 10);
        queue.registry_put(mechanism, "k", Some("v".into())).await.unwrap();
        assert_eq!(queue.registry(mechanism).await.unwrap().len(), 1);
        queue.publish_progress(mechanism, "replica", offset(3)).await.unwrap();
        queue.trim(mechanism, offset(5)).await.unwrap();
        queue.destroy(mechanism).await.unwrap();
    }
    the_password_is_in_no_line(&kafka, &settings).await;
}

/// Rights that only writing would need are asked for all the same.
async fn each_right_that_is_missing_is_found(kafka: &Kafka, settings: &KafkaSettings) {
    KafkaQueue::open(settings.clone()).unwrap().create("s").await.unwrap();
    let prefix = &settings.topic_prefix;
    for (operation, kind) in [("Write", "topic"), ("Read", "group")] {
        let taken = format!(
            "kafka-acls.sh --remove --force --allow-principal User:app --operation {operation} --{kind} {prefix} --resource-pattern-type prefixed"
        );
        super::check::carry_out(kafka, &taken).await;
        let finding = eventually("the missing right", LONG, async || {
            let found = millstream::queue::kafka::check(settings, &["s"]).await.into_list();
            found.iter().find(|f| f.severity == Severity::Error).cloned().ok_or(found)
        })
        .await;
        assert_eq!(finding.check, "rights", "{finding:#?}");
        assert!(finding.what.contains(&format!("{operation} on {kind} '{prefix}s")), "{finding:#?}");
        for command in &finding.remedy.unwrap().steps {
            super::check::carry_out(kafka, command).await;
        }
        eventually("nothing wrong", LONG, async || {
            let found = millstream::queue::kafka::check(settings, &["s"]).await.into_list();
            if found.iter().all(|f| f.severity <= Severity::Warning) { Ok(()) } else { Err(found) }
        })
        .await;
    }
}

/// THREATS 4: everything says everything it can.
async fn the_password_is_in_no_line(kafka: &Kafka, settings: &KafkaSettings) {
    let file = kafka.folder().join("password");
    write_private(&file, "canary-password\n");
    let mut configuration = pair_configuration(
        "postgresql://nobody@127.0.0.1:1/x",
        "postgresql://nobody@127.0.0.1:1/y",
        &format!("kafka://{}", settings.brokers),
    );
    configuration += &format!(
        "[queue.kafka]\npassword_file = \"{}\"\ndebug = \"all\"\nreplication_factor = 1\ntopic_prefix = \"{}\"\n",
        file.display(),
        settings.topic_prefix
    );
    for (key, value) in settings.properties.iter().filter(|(key, _)| *key != "sasl.password") {
        configuration += &format!("\"{key}\" = \"{value}\"\n");
    }
    let site = Site::new(&configuration).with_env("RUST_LOG", "trace");
    let checked = site.run(&["check"]).await;
    let daemon = site.start();
    until("a daemon that works with Kafka", LONG, async || daemon.log().contains("SASL")).await;
    drop(daemon);
    let said = checked.stdout + &checked.stderr + &site.all_logs();
    assert!(said.contains("SASL"), "librdkafka was to talk:\n{said}");
    assert!(!said.contains("canary"), "{}", crate::scenarios::around(&said, "canary"));
}

async fn refused(settings: KafkaSettings, kind: ErrorKind, says: &str) {
    let queue = KafkaQueue::open(settings).unwrap();
    let begin = Instant::now();
    let error = queue.create("s").await.unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(says), "{error}");
    assert!(!format!("{error:?}").contains("canary"), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(20), "{error}");
}
