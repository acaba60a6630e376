//! Sessions, simple queries, abandoned statements.

use std::time::Duration;

use futures::FutureExt;
use millstream::ErrorKind;
use millstream::config::PgConnect;
use millstream::postgres::{ServerError, session, sql as ordinary};
use sqlx::Row;

use super::{sql, value};
use crate::support::postgres::{PgServer, shared};
use crate::support::proxy::{Mode as ProxyMode, Proxy};

#[tokio::test]
async fn both_clients_have_the_same_session() {
    let database = shared().await.new_database().await;
    // What a role or a database is set to must not show through.
    database
        .execute(&format!(
            "ALTER DATABASE {} SET DateStyle = 'German'; ALTER DATABASE {0} SET search_path = 'public'",
            database.name
        ))
        .await;
    let mut own = sql(&database.connect_tcp()).await.unwrap();
    let mut through_sqlx = ordinary::connect(&database.connect_tcp(), ordinary::Side::Source, "test").await.unwrap();
    for (name, expected) in session::SETTINGS.iter().chain(session::SETTINGS_OF_SQLX) {
        let show = format!("SELECT setting FROM pg_settings WHERE name = '{name}'");
        let of_sqlx: String = sqlx::query(sqlx::AssertSqlSafe(show.clone())).fetch_one(&mut through_sqlx).await.unwrap().get(0);
        let of_ours = value(&mut own, &show).await;
        assert_eq!((of_ours.as_str(), of_sqlx.as_str()), (*expected, *expected), "{name}");
    }
    assert_eq!(value(&mut own, "SHOW application_name").await, "millstream");
    assert_eq!(own.parameter("client_encoding"), Some("UTF8"));
    assert_eq!(value(&mut own, "SELECT pg_backend_pid()").await, own.backend_pid().to_string());
}

/// Small writes are not held back: the end of a COPY waited for an acknowledgement that the server's kernel puts off by 40 ms.
#[tokio::test]
async fn sessions_over_tcp_hold_no_small_writes_back() {
    let database = shared().await.new_database().await;
    // A port that nobody else connects to.
    let proxy = Proxy::start(database.server.port()).await;
    let to = PgConnect { port: proxy.port(), ..database.connect_tcp() };
    let _own = sql(&to).await.unwrap();
    let _through_sqlx = ordinary::connect(&to, ordinary::Side::Replica, "test").await.unwrap();
    let mut looked_at = 0;
    for entry in std::fs::read_dir("/proc/self/fd").unwrap().flatten() {
        let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // SAFETY: the two sessions live to the end; of any other file only its peer is asked.
        let file = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
        let peer = rustix::net::getpeername(file).ok().flatten().and_then(|peer| rustix::net::SocketAddrV4::try_from(peer).ok());
        if peer.is_some_and(|peer| peer.port() == proxy.port()) {
            assert!(rustix::net::sockopt::tcp_nodelay(file).unwrap() && rustix::net::sockopt::socket_keepalive(file).unwrap());
            looked_at += 1;
        }
    }
    assert_eq!(looked_at, 2);
}

#[tokio::test]
async fn rows_nulls_and_errors() {
    let database = shared().await.new_database().await;
    let mut client = sql(&database.connect()).await.unwrap();
    let rows = client.simple_query("SELECT 1 AS a, NULL AS b, ''::text AS c; SELECT true AS d").await.unwrap();
    assert_eq!(rows[0].parse::<u32>("a").unwrap(), 1);
    assert_eq!(rows[0].optional("b").unwrap(), None);
    assert_eq!(rows[0].text("c").unwrap(), "");
    assert_eq!(rows[0].text("b").unwrap_err().kind(), ErrorKind::Malformed);
    assert_eq!(rows[0].text("nothing").unwrap_err().kind(), ErrorKind::Malformed);
    assert!(rows[1].bool("d").unwrap());
    assert!(client.simple_query("").await.unwrap().is_empty());
    assert_eq!(client.execute("CREATE TABLE public.t AS SELECT generate_series(1, 7)").await.unwrap(), 7);

    let error = client.simple_query("SELECT 1 FROM nowhere").await.unwrap_err();
    let server = ServerError::find(&error).unwrap();
    assert_eq!((server.sqlstate.as_str(), server.severity.as_str()), ("42P01", "ERROR"));
    assert_eq!(value(&mut client, "SELECT 2").await, "2", "the session goes on after an error");

    client.simple_query("BEGIN").await.unwrap();
    assert!(client.in_transaction());
    client.simple_query("SELECT 1/0").await.unwrap_err();
    assert_eq!(client.simple_query("SELECT 1").await.unwrap_err().kind(), ErrorKind::Unexpected);
    client.simple_query("ROLLBACK").await.unwrap();
    assert!(!client.in_transaction());
}

#[tokio::test]
async fn an_abandoned_query_does_not_answer_the_next_one() {
    let database = shared().await.new_database().await;
    let mut client = sql(&database.connect()).await.unwrap();
    for polls in 0..20 {
        let mut abandoned = Box::pin(client.simple_query("SELECT 'old', g FROM generate_series(1, 5000) g"));
        for _ in 0..polls {
            if abandoned.as_mut().now_or_never().is_some() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(abandoned);
        assert_eq!(value(&mut client, "SELECT 'new'").await, "new");
    }
    let wait = Duration::from_millis(50);
    assert_eq!(client.simple_query_within("SELECT pg_sleep(0.5)", wait).await.unwrap_err().kind(), ErrorKind::Connection);
    assert_eq!(value(&mut client, "SELECT 'new'").await, "new");
}

#[tokio::test]
async fn ended_backends_and_silent_servers_are_lost_connections() {
    let server = PgServer::start().await;
    let database = server.database("postgres");
    let mut client = sql(&database.connect()).await.unwrap();
    database.execute(&format!("SELECT pg_terminate_backend({})", client.backend_pid())).await;
    let error = client.simple_query("SELECT 1").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connection, "{error}");
    assert_eq!(ServerError::find(&error).map(|e| e.sqlstate.as_str()), Some("57P01"), "why it ended is not lost");

    let proxy = Proxy::start(server.port()).await;
    let mut to = database.connect_tcp();
    to.port = proxy.port();
    to.connect_timeout = Duration::from_millis(300);
    let mut client = sql(&to).await.unwrap();
    proxy.set(ProxyMode::Stall);
    let answer = client.simple_query_within("SELECT 1", Duration::from_millis(200)).await;
    assert_eq!(answer.unwrap_err().kind(), ErrorKind::Connection);
    let refused = sql(&to).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Connection, "{refused}");
}
