//! The support's own tests: what others build on must hold.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::support::compare;
use crate::support::postgres::{self, PgServer};
use crate::support::prefix::PrefixReader;
use crate::support::proxy::{Mode, Proxy};
use crate::support::tls::CertificateWish;
use crate::support::wait::{LONG, eventually, until};
use crate::support::workload::{Plan, Workload};
use crate::support::workload_ops::SCHEMA;

#[tokio::test]
async fn a_crashed_server_comes_back_with_what_was_committed() {
    let server = PgServer::start().await;
    let db = server.database("postgres");
    db.execute("CREATE TABLE t (id int); INSERT INTO t VALUES (7)").await;
    server.crash();
    server.restart().await;
    let value = eventually("an answer", LONG, async || db.query("SELECT id FROM t").await).await;
    assert_eq!(value, vec![vec![Some("7".to_owned())]]);
}

#[tokio::test]
async fn a_frozen_server_stays_silent_until_it_thaws() {
    let server = PgServer::start().await;
    let db = server.database("postgres");
    db.execute("SELECT 1").await;
    server.freeze();
    assert!(tokio::time::timeout(Duration::from_millis(300), db.query("SELECT 1")).await.is_err());
    server.thaw();
    db.execute("SELECT 1").await;
}

#[tokio::test]
async fn servers_have_identities_of_their_own() {
    let sql = "SELECT system_identifier FROM pg_control_system()";
    let one = postgres::shared().await.new_database().await;
    let two = postgres::shared_replica().await.new_database().await;
    assert_ne!(one.value(sql).await, two.value(sql).await);
}

#[tokio::test]
async fn tls_is_offered_when_asked_for() {
    let server = PgServer::builder().tls(CertificateWish::default()).start().await;
    let options = server.options("postgres").host("127.0.0.1").ssl_mode(sqlx::postgres::PgSslMode::VerifyFull);
    let mut trusted = crate::support::sql::connect(&options.clone().ssl_root_cert(&server.tls().ca)).await.expect("a connection");
    let rows =
        crate::support::sql::query(&mut trusted, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").await.expect("rows");
    assert_eq!(rows[0][0].as_deref(), Some("t"));
    assert!(crate::support::sql::connect(&options).await.is_err(), "its authority is not the system's");
}

/// The workload against PostgreSQL's own subscription: equal at the end, prefixes all the while, and the comparison sees a difference.
#[tokio::test(flavor = "multi_thread")]
async fn the_workload_the_reader_and_the_comparison_hold_on_native_replication() {
    let source = postgres::shared().await.new_database().await;
    let replica = postgres::shared_replica().await.new_database().await;
    source.execute(SCHEMA).await;
    source.execute("CREATE PUBLICATION p FOR ALL TABLES").await;
    replica.execute(SCHEMA).await;
    let emptied = "TRUNCATE seat, shift, account, chain, chain_left, chain_right";
    replica.execute(emptied).await;
    let connection =
        format!("host={} port={} user=postgres dbname={}", source.server.folder().display(), source.server.port(), source.name);
    replica.execute(&format!("CREATE SUBSCRIPTION {}_s CONNECTION '{connection}' PUBLICATION p", replica.name)).await;
    let copied = async || replica.value("SELECT bool_and(srsubstate = 'r') FROM pg_subscription_rel").await == "t";
    until("the subscription's first copy", LONG, copied).await;

    let reader = PrefixReader::start(&replica.server.options(&replica.name), Duration::from_millis(5));
    let workload = Workload::start(&source.server.options(&source.name), &Plan::default());
    until("a thousand transactions", LONG, async || workload.tally.transactions() > 1000).await;
    let tally = workload.stop().await;
    let compared = compare::equal(&source, &replica, LONG).await;
    reader.verdict();
    assert!(compared.rows > 100 && tally.changes() > 1000, "{compared:?} {tally:?}");
    assert!(reader.seen.steps.load(Ordering::Relaxed) > 10, "{:?}", reader.seen);

    replica.execute("DELETE FROM seat WHERE id = 7; UPDATE account SET balance = balance + 1 WHERE id = 1").await;
    let difference = compare::compare(&source, &replica).await.expect_err("two differences");
    assert!(difference.contains("\"seat\"") && difference.contains("\"account\""), "{difference}");
    until("the reader to see it", LONG, async || !reader.violations().is_empty()).await;
    replica.execute(&format!("DROP SUBSCRIPTION {}_s", replica.name)).await;
}

#[tokio::test]
async fn a_proxy_loses_the_answer_to_a_commit() {
    let db = postgres::shared().await.new_database().await;
    db.execute("CREATE TABLE t (id int)").await;
    let proxy = Proxy::start(db.server.port()).await;
    let options = db.server.options(&db.name).host("127.0.0.1").port(proxy.port());
    let mut connection = crate::support::sql::connect(&options).await.expect("a connection");
    proxy.lose_answer_to(b"COMMIT");
    let answer = crate::support::sql::query(&mut connection, "BEGIN; INSERT INTO t VALUES (1); COMMIT").await;
    assert!(matches!(answer, Err(sqlx::Error::Io(_))), "{answer:?}");
    assert_eq!((db.value("SELECT count(*) FROM t").await.as_str(), proxy.strikes()), ("1", 1));
}

#[tokio::test]
async fn a_stalled_proxy_keeps_connections_and_goes_on() {
    let db = postgres::shared().await.new_database().await;
    let proxy = Proxy::start(db.server.port()).await;
    let options = db.server.options(&db.name).host("127.0.0.1").port(proxy.port());
    let mut connection = crate::support::sql::connect(&options).await.expect("a connection");
    proxy.set(Mode::Stall);
    let asked = tokio::spawn(async move { crate::support::sql::query(&mut connection, "SELECT 1").await.is_ok() });
    assert!(!db.query("SELECT 1").await.expect("rows").is_empty() && !asked.is_finished());
    proxy.set(Mode::Pass);
    assert!(asked.await.expect("join"));
    proxy.set(Mode::Refuse);
    assert!(crate::support::sql::connect(&options).await.is_err());
}
