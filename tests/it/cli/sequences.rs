//! Sequences: carried at intervals by the daemon, and on demand by `millstream sequences`.

use std::time::Duration;

use serde_json::Value;

use crate::support::compare;
use crate::support::daemon::Site;
use crate::support::postgres::{PgDatabase, shared, shared_replica};
use crate::support::wait::until;

const WAIT: Duration = Duration::from_secs(60);
const TABLES: &str = "CREATE TABLE a (id serial PRIMARY KEY, v text); \
    CREATE TABLE \"B\" (id int GENERATED ALWAYS AS IDENTITY (INCREMENT -1) PRIMARY KEY); \
    CREATE SEQUENCE shared; CREATE TABLE c (id text PRIMARY KEY DEFAULT 'c' || nextval('shared')); CREATE TABLE unused (id serial PRIMARY KEY)";
const ROWS: &str = "INSERT INTO a (v) SELECT 'x' FROM generate_series(1, 50); INSERT INTO \"B\" DEFAULT VALUES; INSERT INTO \"B\" DEFAULT VALUES; \
    INSERT INTO c DEFAULT VALUES";

/// A pair that looks at its sequences every second.
fn pair(source: &PgDatabase<'_>, replica: &PgDatabase<'_>) -> Site {
    let site = Site::pair(source, replica);
    let configuration = std::fs::read_to_string(site.configuration()).unwrap();
    let every = "[replica.reports]\nsequences_interval = \"1s\"";
    std::fs::write(site.configuration(), configuration.replacen("[replica.reports]", every, 1)).unwrap();
    site
}

async fn value(database: &PgDatabase<'_>, sequence: &str) -> String {
    database.value(&format!("SELECT last_value || ' ' || is_called FROM {sequence}")).await
}

async fn carried(source: &PgDatabase<'_>, replica: &PgDatabase<'_>, sequence: &str) {
    until("the sequence to be carried", WAIT, async || value(source, sequence).await == value(replica, sequence).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sequences_follow_the_source_and_never_go_back_under_who_writes_on_the_replica() {
    let (source, replica) = (shared().await.new_database().await, shared_replica().await.new_database().await);
    source.execute(&format!("{TABLES}; {ROWS}")).await;
    let site = pair(&source, &replica);
    site.must(&["init"]).await;
    let daemon = site.start();
    site.ready(WAIT).await;
    for sequence in ["a_id_seq", "\"B_id_seq\"", "shared", "unused_id_seq"] {
        carried(&source, &replica, sequence).await;
    }
    source.execute(ROWS).await;
    carried(&source, &replica, "a_id_seq").await;
    assert_eq!(value(&replica, "a_id_seq").await, "100 true");
    // Moved back at the source, it is moved back on the replica.
    source.execute("ALTER SEQUENCE shared RESTART WITH 1").await;
    carried(&source, &replica, "shared").await;
    // Moved on by somebody who writes on the replica, it stays, for the source's stands still.
    replica.execute("SELECT setval('a_id_seq', 500)").await;
    source.execute("INSERT INTO unused DEFAULT VALUES").await;
    carried(&source, &replica, "unused_id_seq").await;
    assert_eq!(value(&replica, "a_id_seq").await, "500 true");
    let status = site.status().await.unwrap();
    assert_eq!(status["replicas"]["reports"]["sequences"]["carried"], 4, "{status:#}");
    assert!(site.metric("millstream_replica_sequences_carried_timestamp_seconds").await.is_some_and(|at| at > 1.7e9));
    assert_eq!(site.metric("millstream_replica_sequences_not_carried").await, Some(0.0));
    assert_eq!(daemon.terminate().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sequence_that_cannot_be_carried_is_named_and_the_others_go_on() {
    let (source, replica) = (shared().await.new_database().await, shared_replica().await.new_database().await);
    source.execute(&format!("{TABLES}; {ROWS}")).await;
    let site = pair(&source, &replica);
    site.must(&["init"]).await;
    replica.execute("ALTER SEQUENCE shared RENAME TO elsewhere; ALTER SEQUENCE a_id_seq MAXVALUE 20").await;
    let daemon = site.start();
    site.ready(WAIT).await;
    carried(&source, &replica, "\"B_id_seq\"").await;
    until("both to be named", WAIT, async || {
        let status = site.status().await.unwrap_or_default();
        let left = status["replicas"]["reports"]["sequences"]["not_carried"].to_string();
        left.contains("no sequence of this name") && left.contains("out of bounds")
    })
    .await;
    assert!(site.must(&["status"]).await.contains("is not carried"));
    assert_eq!(site.run(&["sequences", "reports"]).await.code, Some(1));
    // Nothing of it keeps rows from going on.
    source.execute(ROWS).await;
    compare::equal(&source, &replica, WAIT).await;
    replica.execute("ALTER SEQUENCE elsewhere RENAME TO shared; ALTER SEQUENCE a_id_seq MAXVALUE 2000").await;
    carried(&source, &replica, "shared").await;
    carried(&source, &replica, "a_id_seq").await;
    until("nothing to be named", WAIT, async || site.metric("millstream_replica_sequences_not_carried").await == Some(0.0)).await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
}

/// A switch-over: nobody writes to the source any more, the daemon stops, and the replica goes on with numbers that nobody has.
#[tokio::test(flavor = "multi_thread")]
async fn on_demand_without_a_daemon_and_from_the_rows_when_the_source_is_lost() {
    let (source, replica) = (shared().await.new_database().await, shared_replica().await.new_database().await);
    source.execute(&format!("{TABLES}; {ROWS}")).await;
    let site = Site::pair(&source, &replica);
    site.must(&["init"]).await;
    let daemon = site.start();
    site.ready(WAIT).await;
    compare::equal(&source, &replica, WAIT).await;
    until("the sequences to be listed", WAIT, async || {
        site.status()
            .await
            .is_some_and(|status| status["sources"]["shop"]["sequences"].as_array().is_some_and(|all| !all.is_empty()))
    })
    .await;
    let json: Value = serde_json::from_str(&site.must(&["status", "--json"]).await).unwrap();
    let listed = json["sources"]["shop"]["sequences"].as_array().unwrap();
    let names: Vec<&str> = listed.iter().filter_map(|sequence| sequence["name"].as_str()).collect();
    assert_eq!(names, ["public.B_id_seq", "public.a_id_seq", "public.shared", "public.unused_id_seq"], "{json:#}");
    assert_eq!(listed[2]["statement"], Value::Null, "its numbers are in no column as such");
    assert_eq!(daemon.terminate().await.code(), Some(0));

    source.execute(ROWS).await;
    source.execute("DELETE FROM a WHERE id > 60").await;
    let fates: Value = serde_json::from_str(&site.must(&["sequences", "reports", "--json"]).await).unwrap();
    assert_eq!(fates[1], serde_json::json!({"name": "public.a_id_seq", "outcome": "set", "last_value": 100, "is_called": true}));
    assert!(site.must(&["sequences", "reports"]).await.contains("public.a_id_seq  stands at 100"));
    let unknown = site.run(&["sequences", "nobody"]).await;
    assert!(unknown.code == Some(2) && unknown.stderr.contains("the replicas are: reports"), "{unknown:?}");
    for (statement, next) in [
        ("INSERT INTO a (v) VALUES ('new') RETURNING id", "101"),
        ("INSERT INTO \"B\" DEFAULT VALUES RETURNING id", "-5"),
        ("INSERT INTO unused DEFAULT VALUES RETURNING id", "1"),
    ] {
        assert_eq!(replica.value(statement).await, next);
    }

    // With the source lost, its rows on the replica say where to go on.
    replica.execute("SELECT setval('a_id_seq', 1), setval('\"B_id_seq\"', -1)").await;
    for statement in listed.iter().filter_map(|sequence| sequence["statement"].as_str()) {
        replica.query(statement).await.unwrap();
    }
    assert_eq!(replica.value("INSERT INTO a (v) VALUES ('new') RETURNING id").await, "102");
    assert_eq!(replica.value("INSERT INTO \"B\" DEFAULT VALUES RETURNING id").await, "-6");
}

/// Another cluster under the source's address: its numbers mean nothing.
#[tokio::test(flavor = "multi_thread")]
async fn numbers_of_another_cluster_are_not_taken() {
    let (source, replica) = (shared().await.new_database().await, shared_replica().await.new_database().await);
    source.execute(&format!("{TABLES}; {ROWS}")).await;
    let site = Site::pair(&source, &replica);
    site.must(&["init"]).await;
    replica.execute("UPDATE millstream.replica SET history = jsonb_set(history, '{system_identifier}', '\"77\"')").await;
    let refused = site.run(&["sequences", "reports"]).await;
    assert!(refused.code == Some(1) && refused.stderr.contains("copied from cluster 77"), "{refused:?}");
    assert_eq!(value(&replica, "a_id_seq").await, "1 false");
}
