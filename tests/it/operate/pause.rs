//! `millstream pause` and `resume`.

use std::time::Duration;

use super::{CATCH_UP, ledger, order, ordered, shows};
use crate::support::compare;
use crate::support::daemon::{Site, pair_configuration};
use crate::support::postgres::{PgDatabase, PgServer, shared, shared_replica};
use crate::support::prefix::PrefixReader;
use crate::support::wait::{LONG, until};
use crate::support::workload::{Plan, Workload};
use crate::support::workload_ops::SCHEMA;

const ROWS: &str =
    "CREATE TABLE a (id int PRIMARY KEY, v int NOT NULL); INSERT INTO a SELECT n, 0 FROM generate_series(1, 100) n";

async fn databases() -> (PgDatabase<'static>, PgDatabase<'static>) {
    (shared().await.new_database().await, shared_replica().await.new_database().await)
}

/// What is at work on a replica under the daemon's names.
const SESSIONS: &str = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
    AND (application_name LIKE 'millstream apply %' OR application_name = 'millstream copy')";

async fn queued(site: &Site) -> u64 {
    site.status().await.unwrap_or_default()["replicas"]["reports"]["queued_changes"].as_u64().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_paused_under_load_stands_still_over_a_kill_and_becomes_equal_once_it_goes_on() {
    let (source, replica) = databases().await;
    source.execute(SCHEMA).await;
    let site = Site::pair(&source, &replica);
    site.must(&["init"]).await;
    let daemon = site.start();
    site.ready(CATCH_UP).await;
    let load = Workload::start(&source.server.options(&source.name), &Plan { seed: 11, ..Plan::default() });
    let reader = PrefixReader::start(&replica.server.options(&replica.name), Duration::from_millis(10));
    let applied = async || site.status().await.unwrap_or_default()["replicas"]["reports"]["transactions"].as_u64() > Some(50);
    until("some of the load on the replica", LONG, applied).await;

    let report = ordered(&site, &["pause", "reports"]).await;
    assert_eq!((&report["kind"], &report["paused"], &report["changed"]), (&"replica".into(), &true.into(), &true.into()));
    assert_eq!(report["at_rest"], true, "{report}");
    // From the answer on nothing is written, and no session has the replica.
    let stood = ledger(&replica).await;
    until("the sessions to be gone", LONG, async || replica.value(SESSIONS).await == "0").await;
    until("a backlog", LONG, async || queued(&site).await > 500).await;
    assert_eq!(ledger(&replica).await, stood);
    let status = shows(&site, "/replicas/reports/state", "paused").await;
    assert_eq!(status["replicas"]["reports"]["paused_since"], report["since"], "{status:#}");
    assert_eq!(site.metric("millstream_replica_paused").await, Some(1.0));
    let (code, why) = site.get("/readyz").await.unwrap();
    assert!(code == 503 && why.contains("replica reports is paused since"), "{code} {why}");
    let page = site.run(&["status"]).await.stdout;
    assert!(page.contains("PAUSED") && page.contains(" resume reports"), "{page}");
    let again = order(&site, &["pause", "reports"]).await;
    assert!(again.code == Some(0) && again.stdout.contains("was paused already, since"), "{again:?}");

    // The pause is the queue's to keep, not the process's; nor is the replica claimed by the next one.
    daemon.kill();
    let daemon = site.start();
    shows(&site, "/replicas/reports/state", "paused").await;
    let before = queued(&site).await;
    until("the backlog to grow", LONG, async || queued(&site).await > before + 200).await;
    assert_eq!(ledger(&replica).await, stood);
    assert_eq!(replica.value(SESSIONS).await, "0");

    assert!(order(&site, &["resume", "reports"]).await.stdout.contains("replica reports goes on"));
    let tally = load.stop().await;
    compare::equal(&source, &replica, CATCH_UP).await;
    reader.verdict();
    assert!(tally.changes() > 0);
    site.ready(CATCH_UP).await;
    assert_eq!(site.metric("millstream_replica_paused").await, Some(0.0));
    let again = order(&site, &["resume", "reports"]).await;
    assert!(again.code == Some(0) && again.stdout.contains("was not paused"), "{again:?}");
    assert_eq!(daemon.terminate().await.code(), Some(0));
    assert!(!site.all_logs().contains("panicked"));
}

/// What was in hand is rolled back when it cannot be committed: here it waits for a lock that nobody gives up.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_cannot_end_is_rolled_back_and_applied_once_later() {
    let (source, replica) = databases().await;
    source.execute(ROWS).await;
    let site = Site::pair(&source, &replica);
    site.must(&["init"]).await;
    let daemon = site.start();
    compare::equal(&source, &replica, CATCH_UP).await;
    let mut other = replica.connection().await;
    crate::support::sql::query(&mut other, "BEGIN; SELECT * FROM a WHERE id = 7 FOR UPDATE").await.unwrap();
    source.execute("UPDATE a SET v = v + 1").await;
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'millstream apply %' \
         AND wait_event_type = 'Lock'";
    until("the batch to wait", LONG, async || replica.value(waits).await != "0").await;
    let report = ordered(&site, &["pause", "reports"]).await;
    assert_eq!(report["at_rest"], true, "{report}");
    crate::support::sql::query(&mut other, "ROLLBACK").await.unwrap();
    until("the sessions to be gone", LONG, async || replica.value(SESSIONS).await == "0").await;
    assert_eq!(replica.value("SELECT count(*) FROM a WHERE v <> 0").await, "0");
    ordered(&site, &["resume", "reports"]).await;
    compare::equal(&source, &replica, CATCH_UP).await;
    assert_eq!(replica.value("SELECT count(*) FROM a WHERE v = 1").await, "100");
    assert_eq!(daemon.terminate().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_copy_that_is_paused_keeps_its_finished_chunks() {
    let (source, replica) = databases().await;
    source.execute("CREATE TABLE b (id int PRIMARY KEY, note text); INSERT INTO b SELECT n, repeat('x', 20) FROM generate_series(1, 2000) n").await;
    let configuration = pair_configuration(&source.url(), &replica.url(), "embedded:{folder}/queue");
    let slowly = "tables = [\"public.*\"]\ncopy_chunk_rows = 40\ncopy_max_bytes_per_second = \"8KiB\"";
    let site = Site::new(&configuration.replace("tables = [\"public.*\"]", slowly));
    site.must(&["init"]).await;
    let daemon = site.start();
    let loaded =
        "SELECT string_agg(chunk || ' ' || loaded_at, ',' ORDER BY chunk) FROM millstream.copy_chunk WHERE state = 'loaded'";
    let chunks = async || replica.query(loaded).await.ok().and_then(|rows| rows[0][0].clone()).unwrap_or_default();
    until("chunks to be loaded", LONG, async || chunks().await.split(',').count() >= 3).await;
    ordered(&site, &["pause", "reports"]).await;
    until("the sessions to be gone", LONG, async || replica.value(SESSIONS).await == "0").await;
    let stood = chunks().await;
    source.execute("UPDATE b SET note = 'later' WHERE id % 100 = 0; DELETE FROM b WHERE id = 77").await;
    until("a backlog", LONG, async || queued(&site).await >= 21).await;
    assert_eq!(chunks().await, stood);
    assert_eq!(shows(&site, "/replicas/reports/state", "paused").await["replicas"]["reports"]["copy"]["tables"], 1);
    daemon.kill();
    site.configure(&std::fs::read_to_string(site.configuration()).unwrap().replace("\"8KiB\"", "\"1GiB\""));
    let daemon = site.start();
    shows(&site, "/replicas/reports/state", "paused").await;
    assert_eq!(chunks().await, stood);
    ordered(&site, &["resume", "reports"]).await;
    // While the chunks are still known, those from before are there as they were.
    compare::equal(&source, &replica, CATCH_UP).await;
    site.ready(CATCH_UP).await;
    assert!(!site.all_logs().contains("first copy starts again"), "{}", site.all_logs());
    assert_eq!(daemon.terminate().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_halted_stays_halted_when_it_is_resumed() {
    let (source, replica) = databases().await;
    source.execute(ROWS).await;
    let site = Site::pair(&source, &replica);
    site.must(&["init"]).await;
    let daemon = site.start();
    compare::equal(&source, &replica, CATCH_UP).await;
    replica.execute("DELETE FROM a WHERE id = 5").await;
    source.execute("UPDATE a SET v = 9 WHERE id = 5").await;
    shows(&site, "/replicas/reports/halt/code", "replica_conflict").await;
    ordered(&site, &["pause", "reports"]).await;
    let (_, why) = site.get("/readyz").await.unwrap();
    assert!(
        why.contains("replica reports is halted: replica_conflict") && why.contains("replica reports is paused since"),
        "{why}"
    );
    assert_eq!(site.status().await.unwrap()["replicas"]["reports"]["state"], "halted");
    let resumed = order(&site, &["resume", "reports"]).await;
    assert!(resumed.code == Some(0) && resumed.stdout.contains("millstream explain replica_conflict"), "{resumed:?}");
    // Tried again at once, and refused again.
    shows(&site, "/replicas/reports/halt/code", "replica_conflict").await;
    assert_eq!(replica.value("SELECT count(*) FROM a WHERE v = 9").await, "0");
    replica.execute("INSERT INTO a VALUES (5, 0)").await;
    compare::equal(&source, &replica, CATCH_UP).await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_paused_keeps_its_log_and_its_slot_lets_go() {
    let (source, replica) = databases().await;
    source.execute(SCHEMA).await;
    let site = Site::pair(&source, &replica);
    site.must(&["init"]).await;
    let daemon = site.start();
    site.ready(CATCH_UP).await;
    let load = Workload::start(&source.server.options(&source.name), &Plan { seed: 12, ..Plan::default() });
    let reader = PrefixReader::start(&replica.server.options(&replica.name), Duration::from_millis(10));
    let applied = async || site.status().await.unwrap_or_default()["replicas"]["reports"]["transactions"].as_u64() > Some(50);
    until("some of the load on the replica", LONG, applied).await;

    let report = ordered(&site, &["pause", "shop"]).await;
    assert_eq!((&report["kind"], &report["at_rest"]), (&"source".into(), &true.into()), "{report}");
    assert!(report["notes"][0].as_str().unwrap().contains("past that there is an alarm"), "{report}");
    let slot =
        format!("SELECT active || ' ' || confirmed_flush_lsn FROM pg_replication_slots WHERE database = '{}'", source.name);
    until("the slot to be free", LONG, async || source.value(&slot).await.starts_with("false")).await;
    let stood = source.value(&slot).await;
    shows(&site, "/sources/shop/state", "paused").await;
    assert_eq!(site.metric("millstream_source_paused").await, Some(1.0));
    let (code, why) = site.get("/readyz").await.unwrap();
    assert!(code == 503 && why.contains("source shop is paused since"), "{code} {why}");
    // What the queue has is applied; what the source keeps is counted all the while.
    let retained = async || site.status().await.unwrap_or_default()["sources"]["shop"]["retained"].clone();
    until("the time to be counted", LONG, async || retained().await["unconfirmed_seconds"].as_u64() > Some(3)).await;
    assert_eq!(site.status().await.unwrap()["replicas"]["reports"]["state"], "live");
    daemon.kill();
    let daemon = site.start();
    shows(&site, "/sources/shop/state", "paused").await;
    until("the time to be counted again", LONG, async || retained().await["unconfirmed_seconds"].as_u64() > Some(3)).await;
    assert_eq!(source.value(&slot).await, stood, "nothing was confirmed, and nobody reads");
    ordered(&site, &["resume", "shop"]).await;
    let tally = load.stop().await;
    compare::equal(&source, &replica, CATCH_UP).await;
    reader.verdict();
    assert!(tally.changes() > 0);
    site.ready(CATCH_UP).await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
}

/// Loss is not resumed away. The slot is dropped by hand here; `capture::slots` has the daemon drop it past its budget.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_whose_slot_went_during_a_pause_halts_and_stays_so() {
    let server = PgServer::start().await;
    let (source, replica) = (server.new_database().await, shared_replica().await.new_database().await);
    source.execute(ROWS).await;
    let site = Site::pair(&source, &replica);
    site.must(&["init"]).await;
    let daemon = site.start();
    compare::equal(&source, &replica, CATCH_UP).await;
    ordered(&site, &["pause", "shop"]).await;
    source.execute("UPDATE a SET v = 1").await;
    let drop = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots";
    until("the slot to go", LONG, async || source.query(drop).await.is_ok()).await;
    ordered(&site, &["resume", "shop"]).await;
    shows(&site, "/sources/shop/halt/code", "slot_missing").await;
    ordered(&site, &["pause", "shop"]).await;
    assert_eq!(site.status().await.unwrap()["sources"]["shop"]["state"], "halted");
    let attempts = site.all_logs().matches("halted").count();
    let report = ordered(&site, &["resume", "shop"]).await;
    assert!(report["notes"][0].as_str().unwrap().contains("slot_missing"), "{report}");
    assert_eq!(shows(&site, "/sources/shop/state", "halted").await["sources"]["shop"]["paused_since"], serde_json::Value::Null);
    assert_eq!(site.all_logs().matches("halted").count(), attempts);
    assert_eq!(daemon.terminate().await.code(), Some(0));
}

/// Who comes again under the name begins anew, not paused by somebody before.
#[tokio::test(flavor = "multi_thread")]
async fn a_pause_goes_with_the_replica_that_is_torn_down_beside_the_daemon() {
    let (source, replica) = databases().await;
    source.execute(ROWS).await;
    let site = Site::pair(&source, &replica);
    site.must(&["init"]).await;
    let daemon = site.start();
    compare::equal(&source, &replica, CATCH_UP).await;
    let refused = site.run(&["teardown", "--replica", "reports", "--yes"]).await;
    assert_eq!(refused.code, Some(1), "the daemon applies to it: {refused:?}");
    ordered(&site, &["pause", "reports"]).await;
    site.must(&["teardown", "--replica", "reports", "--yes"]).await;
    shows(&site, "/replicas/reports/halt/code", "not_initialized").await;
    replica.execute("TRUNCATE a").await;
    source.execute("UPDATE a SET v = 3").await;
    site.must(&["init"]).await;
    compare::equal(&source, &replica, CATCH_UP).await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
}
