//! A real pair, as status, metrics and `log tail` tell of it; and a pair split over two daemons with Kafka between.

use std::time::Duration;

use serde_json::Value;

use crate::support::compare;
use crate::support::daemon::{Site, pair_configuration};
use crate::support::kafka;
use crate::support::postgres::{shared, shared_replica};
use crate::support::wait::until;

const WAIT: Duration = Duration::from_secs(60);
const TABLE: &str =
    "CREATE TABLE orders (id int PRIMARY KEY, paid bool); INSERT INTO orders SELECT i, true FROM generate_series(1, 1000) i";

/// Twice the pause between two looks at the catalog.
const SOON: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn a_live_pair_tells_positions_lag_and_what_it_does_not_capture() {
    let (source, replica) = (shared().await.new_database().await, shared_replica().await.new_database().await);
    source.execute(TABLE).await;
    let configuration = pair_configuration(&source.url(), &replica.url(), "embedded:{folder}/queue");
    let site = Site::new(&configuration.replacen("[source.shop]", "[source.shop]\nschema_changes = \"halt\"", 1));
    site.must(&["init"]).await;
    source.execute("CREATE TABLE brand_new (id int PRIMARY KEY)").await;
    let daemon = site.start();
    site.ready(WAIT).await;
    until("the new table to be named", WAIT, async || {
        site.status()
            .await
            .is_some_and(|status| status["sources"]["shop"]["tables_not_captured"] == serde_json::json!(["public.brand_new"]))
    })
    .await;

    let json: Value = serde_json::from_str(&site.must(&["status", "--json"]).await).unwrap();
    assert_eq!((&json["version"], &json["ready"]), (&1.into(), &true.into()), "{json:#}");
    let (shop, reports) = (&json["sources"]["shop"], &json["replicas"]["reports"]);
    assert_eq!((&shop["state"], &reports["state"]), (&"streaming".into(), &"live".into()), "{json:#}");
    for place in ["source", "queue", "confirmed"] {
        assert!(shop["positions"][place].as_str().is_some_and(|text| text.contains('/')), "{place}: {json:#}");
    }
    assert!(reports["lag_seconds"].as_f64().is_some_and(|lag| lag < 30.0), "{json:#}");
    assert!(shop["retained"]["bytes"].as_u64().is_some(), "{json:#}");
    assert_eq!(shop["stream"]["consumers"]["reports"]["configured"], true, "{json:#}");

    // Beside the running daemon, from before the change and by key.
    let from = shop["positions"]["queue"].as_str().unwrap();
    source.execute("UPDATE orders SET paid = NULL WHERE id IN (7, 8)").await;
    let line = site.must(&["log", "tail", "shop", "--from", from, "--key", "7", "--limit", "1"]).await;
    let change: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&change["op"], &change["after"]), (&"u".into(), &serde_json::json!({ "id": 7, "paid": null })));
    assert_eq!(change["source"]["table"], "orders");

    let page = site.must(&["status"]).await;
    assert!(page.contains("READY") && page.lines().all(|line| line.chars().count() <= 80), "{page}");
    assert!(page.contains("public.brand_new"), "{page}");
    // Both ways within seconds: a table that is new, and one that `init` has taken in.
    let named = async |wanted: &[&str]| {
        let status = site.status().await.unwrap_or_default();
        status["sources"]["shop"]["tables_not_captured"] == serde_json::json!(wanted)
    };
    source.execute("CREATE TABLE newer (id int PRIMARY KEY)").await;
    until("a newer table to be named", SOON, async || named(&["public.brand_new", "public.newer"]).await).await;
    source.execute("DROP TABLE brand_new").await;
    site.must(&["init"]).await;
    until("no table to be named", SOON, async || named(&[]).await).await;
    compare::equal(&source, &replica, WAIT).await;
    assert!(site.metric("millstream_replica_lag_seconds").await.is_some_and(|lag| lag < 30.0));
    // Not while the table that was taken in is not one with the others.
    until("it to be ready again", WAIT, async || site.metric("millstream_ready").await == Some(1.0)).await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_kafka_the_roles_work_in_two_daemons() {
    let broker = kafka::shared().await;
    let (source, replica) = (shared().await.new_database().await, shared_replica().await.new_database().await);
    source.execute(TABLE).await;
    let url = format!("kafka://{}", broker.brokers());
    let configuration = pair_configuration(&source.url(), &replica.url(), &url);
    let spill = "tables = [\"public.*\"]\nspill_dir = \"{folder}/spill\"";
    let configuration = configuration.replacen("tables = [\"public.*\"]", spill, 1);
    let prefix = broker.prefix("roles");
    let configuration = format!("{configuration}\n[queue.kafka]\nreplication_factor = 1\ntopic_prefix = \"{prefix}\"\n");
    let capturing = Site::new(&configuration).with_env("MILLSTREAM_ROLES", "capture");
    let applying = Site::new(&configuration).with_env("MILLSTREAM_ROLES", "apply");
    capturing.must(&["init"]).await;
    let (capture, apply) = (capturing.start(), applying.start());
    applying.ready(WAIT).await;
    capturing.ready(WAIT).await;
    source.execute("UPDATE orders SET paid = false WHERE id < 500; DELETE FROM orders WHERE id > 900").await;
    compare::equal(&source, &replica, WAIT).await;

    let (captured, applied) = (capturing.status().await.unwrap(), applying.status().await.unwrap());
    assert_eq!(captured["replicas"]["reports"]["state"], "elsewhere", "{captured:#}");
    assert_eq!(captured["sources"]["shop"]["state"], "streaming", "{captured:#}");
    assert_eq!(applied["sources"]["shop"]["state"], "elsewhere", "{applied:#}");
    assert_eq!(applied["replicas"]["reports"]["state"], "live", "{applied:#}");
    until("the queue's depth in the daemon that does not capture", WAIT, async || {
        applying.status().await.is_some_and(|status| status["replicas"]["reports"]["queued_changes"].is_u64())
    })
    .await;
    let lines = applying.must(&["log", "tail", "shop", "--from", "beginning", "--no-follow"]).await;
    assert_eq!(lines.lines().count(), 499 + 100);
    for daemon in [capture, apply] {
        assert_eq!(daemon.terminate().await.code(), Some(0));
    }
}
