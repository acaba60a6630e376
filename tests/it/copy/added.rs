//! Tables added to a live replica: copied beside the others, which go on, and one with them at one commit of the source.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::first::{COPIED, databases, live, same_keys, site};
use crate::support::compare;
use crate::support::daemon::{Site, pair_configuration};
use crate::support::kafka;
use crate::support::postgres::PgDatabase;
use crate::support::sql::{connect, query};
use crate::support::wait::{LONG, until};

/// Chunks of 1.2 KiB: they go by one or two a second.
const SLOWLY: &str = "schema_changes = \"halt\"\ncopy_max_bytes_per_second = \"2KiB\"";
/// Live tables that were not held up show a change within this time, on a machine that does three things at once.
const SOON: Duration = Duration::from_secs(5);

const A: &str =
    "CREATE TABLE a (id int PRIMARY KEY, v bigint NOT NULL); INSERT INTO a SELECT n, 1000 FROM generate_series(1, 20) n";
const B: &str = "CREATE TABLE b (id int PRIMARY KEY, v bigint NOT NULL, note text, a int REFERENCES a); \
    INSERT INTO b SELECT n, 0, repeat('x', 20), 1 + n % 20 FROM generate_series(1, 1000) n; CREATE INDEX b_note ON b (note)";

fn faster(site: &Site) {
    site.configure(&std::fs::read_to_string(site.configuration()).unwrap().replace("\"2KiB\"", "\"1GiB\""));
}

async fn state_of(replica: &PgDatabase<'_>, table: &str) -> String {
    let sql = format!("SELECT replica || ' ' || state FROM millstream.copied_table WHERE table_name = '{table}'");
    replica.query(&sql).await.ok().and_then(|rows| rows.first()?[0].clone()).unwrap_or_default()
}

/// One ledger row, one hold on the queue, nothing put off.
async fn one_again(site: &Site, replica: &PgDatabase<'_>) {
    until("the tables to be one with the others", COPIED, async || {
        replica.value("SELECT count(*) FROM millstream.replica").await == "1" && live(replica).await
    })
    .await;
    until("what was put off to be done", LONG, async || {
        replica.value("SELECT count(*) FROM millstream.deferred_ddl").await == "0"
    })
    .await;
    until("its hold on the queue to be given up", LONG, async || {
        let Some(status) = site.status().await else { return false };
        let consumers = status["sources"]["shop"]["stream"]["consumers"].as_object().cloned().unwrap_or_default();
        consumers.keys().eq(["reports"])
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_added_is_copied_while_the_others_keep_their_lag() {
    let (source, replica) = databases().await;
    source.execute(A).await;
    let site = site(&source, &replica, SLOWLY);
    site.must(&["init"]).await;
    let daemon = site.start();
    compare::equal(&source, &replica, LONG).await;
    source.execute(B).await;
    site.must(&["init"]).await;
    let some = "SELECT count(*) > 0 FROM millstream.copy_chunk WHERE replica = 'reports#added' AND state = 'loaded'";
    until("a chunk to be loaded", LONG, async || replica.value(some).await == "t").await;
    // What concerns both goes to each in its turn, a TRUNCATE to those that are live at once.
    for round in 1..=5 {
        source
            .execute(&format!("BEGIN; UPDATE a SET v = {round}; UPDATE b SET v = {round} WHERE id % 7 = {round}; COMMIT"))
            .await;
        let seen = format!("SELECT count(*) FROM a WHERE v = {round}");
        until("a live table to go on", SOON, async || replica.value(&seen).await == "20").await;
        assert_eq!(state_of(&replica, "b").await, "reports#added copying");
    }
    let status = site.status().await.expect("a status");
    let reports = &status["replicas"]["reports"];
    assert_eq!(reports["state"], "live");
    assert_eq!(reports["copy"]["tables"], 1, "{reports}");
    assert!(reports["lag_seconds"].as_f64().unwrap() < 5.0, "{reports}");
    let (code, why) = site.get("/readyz").await.expect("an answer");
    assert_eq!(code, 503, "{why}");
    assert!(why.contains("copying tables that were added"), "{why}");
    until("its hold on the queue to be seen", LONG, async || {
        let status = site.status().await.unwrap_or_default();
        status["sources"]["shop"]["stream"]["consumers"]["reports#added"]["configured"] == true
    })
    .await;

    // A third table comes along, and the whole is resumed behind a kill.
    source
        .execute(
            "CREATE TABLE c (id int PRIMARY KEY, b int REFERENCES b); INSERT INTO c SELECT n, n FROM generate_series(1, 30) n",
        )
        .await;
    site.must(&["init"]).await;
    until("the third to join the second", LONG, async || state_of(&replica, "c").await.starts_with("reports#added")).await;
    source.execute("UPDATE a SET v = 77; DELETE FROM c WHERE id = 3; DELETE FROM b WHERE id > 990").await;
    until("a live table to go on", SOON, async || replica.value("SELECT count(*) FROM a WHERE v = 77").await == "20").await;
    let loaded = "SELECT count(*) FROM millstream.copy_chunk WHERE table_name = 'b' AND state = 'loaded'";
    let before: u64 = replica.value(loaded).await.parse().unwrap();
    daemon.kill();
    assert!(replica.value(loaded).await.parse::<u64>().unwrap() >= before, "no finished chunk is begun again");
    faster(&site);
    let daemon = site.start();
    one_again(&site, &replica).await;
    compare::equal(&source, &replica, LONG).await;
    same_keys(&source, &replica).await;
    assert_eq!(replica.value("SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND NOT convalidated").await, "0");
    site.ready(LONG).await;
    source.execute("UPDATE b SET v = 5 WHERE id < 10; TRUNCATE c; INSERT INTO c VALUES (1, 1)").await;
    compare::equal(&source, &replica, LONG).await;
    assert!(!site.all_logs().contains("apply halted"), "{}", site.all_logs());
    assert_eq!(daemon.terminate().await.code(), Some(0));
}

/// I4 at the moment where two become one: sums over a live table and one that was added hold in every snapshot of a reader.
#[tokio::test(flavor = "multi_thread")]
async fn readers_see_prefixes_when_an_added_table_meets_the_others_under_load() {
    let (source, replica) = databases().await;
    let site = site(&source, &replica, "schema_changes = \"halt\"");
    meet_under_load(&source, &replica, site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_kafka_as_well() {
    let ((source, replica), broker) = tokio::join!(databases(), kafka::shared());
    let configuration = pair_configuration(&source.url(), &replica.url(), &format!("kafka://{}", broker.brokers())).replace(
        "tables = [\"public.*\"]",
        "tables = [\"public.*\"]\nschema_changes = \"halt\"\ncopy_chunk_rows = 40\nspill_dir = \"{folder}/spill\"",
    );
    let prefix = broker.prefix("added");
    let site = Site::new(&format!("{configuration}\n[queue.kafka]\nreplication_factor = 1\ntopic_prefix = \"{prefix}\"\n"));
    meet_under_load(&source, &replica, site).await;
}

async fn meet_under_load(source: &PgDatabase<'_>, replica: &PgDatabase<'_>, site: Site) {
    source.execute(A).await;
    site.must(&["init"]).await;
    let daemon = site.start();
    compare::equal(source, replica, LONG).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..3)
        .map(|number| {
            let (stop, options) = (Arc::clone(&stop), source.connect());
            tokio::spawn(async move {
                let mut connection = connect(&options.sqlx_options()).await.unwrap();
                let mut done = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    let id = 1 + (done + number * 7) % 20;
                    let sql =
                        format!("BEGIN; UPDATE public.a SET v = v - 1 WHERE id = {id}; UPDATE public.b SET v = v + 1 WHERE id = {id}; COMMIT");
                    // Before there is a table b, nothing happens.
                    if query(&mut connection, &sql).await.is_err() {
                        query(&mut connection, "ROLLBACK").await.unwrap();
                    }
                    done += 1;
                }
            })
        })
        .collect();
    for table in ["b", "d"] {
        source
            .execute(
                &B.replace("TABLE b", &format!("TABLE {table}"))
                    .replace("INTO b", &format!("INTO {table}"))
                    .replace("b_note ON b", &format!("{table}_note ON {table}")),
            )
            .await;
        site.must(&["init"]).await;
        let (mut after, mut before) = (0, 0);
        let sums = format!(
            "SELECT EXISTS (SELECT FROM millstream.copied_table WHERE replica = 'reports' AND table_name = '{table}' AND state = 'live'), \
             (SELECT sum(v) FROM a) + (SELECT coalesce(sum(v), 0) FROM b)"
        );
        until("reads behind the meeting", COPIED, async || {
            let rows = replica.query(&sums).await.unwrap();
            if rows[0][0].as_deref() == Some("t") {
                assert_eq!(rows[0][1].as_deref(), Some("20000"), "{table}: read {after} behind the meeting, {before} before");
                after += 1;
            } else {
                before += 1;
            }
            after >= 200
        })
        .await;
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    compare::equal(source, replica, LONG).await;
    one_again(&site, replica).await;
    same_keys(source, replica).await;
    assert!(!site.all_logs().contains("apply halted"), "{}", site.all_logs());
    assert_eq!(daemon.terminate().await.code(), Some(0));
}

/// A table may leave again before it is complete, and a teardown takes everything.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_leaves_while_it_is_added_is_forgotten_and_a_teardown_takes_both_rows() {
    let (source, replica) = databases().await;
    source.execute(A).await;
    let site = site(&source, &replica, SLOWLY);
    site.must(&["init"]).await;
    let daemon = site.start();
    compare::equal(&source, &replica, LONG).await;
    source.execute(B).await;
    site.must(&["init"]).await;
    until("its copy to begin", LONG, async || state_of(&replica, "b").await == "reports#added copying").await;
    let wanted = std::fs::read_to_string(site.configuration()).unwrap();
    site.configure(&wanted.replace("tables = [\"public.*\"]", "tables = [\"public.*\", \"!public.b\"]"));
    site.must(&["init"]).await;
    source.execute("UPDATE b SET v = 1; UPDATE a SET v = 1").await;
    until("the row to go", COPIED, async || {
        site.must(&["init"]).await;
        replica.value("SELECT count(*) FROM millstream.replica").await == "1" && state_of(&replica, "b").await.is_empty()
    })
    .await;
    until("the others to go on", LONG, async || replica.value("SELECT count(*) FROM a WHERE v = 1").await == "20").await;
    source.execute("CREATE TABLE e (LIKE b INCLUDING ALL); INSERT INTO e SELECT * FROM b").await;
    site.must(&["init"]).await;
    until("its copy to begin", LONG, async || state_of(&replica, "e").await == "reports#added copying").await;
    assert!(!site.all_logs().contains("apply halted"), "{}", site.all_logs());
    assert_eq!(daemon.terminate().await.code(), Some(0));
    site.must(&["teardown", "--replica", "reports", "--yes"]).await;
    // What the copy of e had put off waits for the next init.
    assert_eq!(
        replica
            .value(
                "SELECT string_agg(relname, ' ') FROM pg_class WHERE relnamespace = 'millstream'::regnamespace AND relkind = 'r'"
            )
            .await,
        "put_off"
    );
    let again = site.must(&["teardown", "--yes"]).await;
    assert!(again.contains("stream"), "{again}");
}
