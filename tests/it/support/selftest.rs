//! The support's own tests: what others build on must hold.

use std::time::Duration;

use super::postgres::{self, PgServer};
use super::tls::CertificateWish;
use super::wait::{LONG, eventually};

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
    let mut trusted = super::sql::connect(&options.clone().ssl_root_cert(&server.tls().ca)).await.expect("a connection");
    let rows = super::sql::query(&mut trusted, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").await.expect("rows");
    assert_eq!(rows[0][0].as_deref(), Some("t"));
    assert!(super::sql::connect(&options).await.is_err(), "its authority is not the system's");
}
