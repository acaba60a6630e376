//! The replication stream of a real slot.

use std::time::Duration;

use futures::FutureExt;
use millstream::capture::postgres::decode::{PgOutput, decode};
use millstream::capture::postgres::stream::{ReplicationStream, StreamMessage, StreamOptions};
use millstream::event::{Cell, Lsn};
use millstream::postgres::{Mode, PgClient, ServerError, Side};
use millstream::{ErrorKind, Result};
use tokio::time::{Instant, timeout};

use crate::support::postgres::{PgDatabase, PgServer, shared};
use crate::support::proxy::{Mode as ProxyMode, Proxy};
use crate::support::wait::{LONG, eventually};

async fn slot(database: &PgDatabase<'_>, name: &str) {
    database.execute("CREATE PUBLICATION \"p'q\" FOR ALL TABLES").await;
    database.execute(&format!("SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')")).await;
}

fn options() -> StreamOptions {
    StreamOptions::new(vec!["p'q".into()])
}

async fn start(database: &PgDatabase<'_>, slot: &str, options: &StreamOptions) -> Result<ReplicationStream> {
    let client = PgClient::connect(&database.connect(), Mode::Replication, Side::Source).await?;
    ReplicationStream::start(client, slot, Lsn(0), options).await
}

/// What pgoutput says, until a message for which `done` is true.
async fn collect(stream: &mut ReplicationStream, done: impl Fn(&PgOutput<'_>) -> bool) -> Vec<String> {
    let mut in_stream = false;
    let mut said = Vec::new();
    loop {
        let message = timeout(LONG, stream.next()).await.expect("a message").unwrap();
        let StreamMessage::XLogData(data) = message else { continue };
        let output = decode(&data.payload, in_stream).unwrap();
        in_stream = matches!(output, PgOutput::StreamStart { .. }) || in_stream && output != PgOutput::StreamStop;
        said.push(describe(&output));
        if done(&output) {
            return said;
        }
    }
}

fn describe(output: &PgOutput<'_>) -> String {
    let row = |cells: &mut dyn Iterator<Item = Cell<'_>>| {
        let texts = cells.map(|cell| match cell {
            Cell::Null => "null".to_owned(),
            Cell::Unchanged => "unchanged".to_owned(),
            Cell::Value(value) => String::from_utf8_lossy(value).chars().take(10).collect(),
        });
        texts.collect::<Vec<_>>().join(",")
    };
    match output {
        PgOutput::Begin { .. } => "begin".into(),
        PgOutput::Commit(_) => "commit".into(),
        PgOutput::Relation(relation) => format!("relation {}.{}", relation.namespace, relation.name),
        PgOutput::Insert { new, .. } => format!("insert {}", row(&mut new.cells())),
        PgOutput::Update { old, new, .. } => {
            let old = old.map_or(String::new(), |old| format!("{} -> ", row(&mut old.tuple().cells())));
            format!("update {old}{}", row(&mut new.cells()))
        }
        PgOutput::Delete { old, .. } => format!("delete {}", row(&mut old.tuple().cells())),
        PgOutput::Truncate { cascade, restart_identity, .. } => format!("truncate {cascade} {restart_identity}"),
        PgOutput::Message { prefix, content, .. } => format!("message {prefix} {}", String::from_utf8_lossy(content)),
        other => format!("{other:?}"),
    }
}

fn is_commit(output: &PgOutput<'_>) -> bool {
    matches!(output, PgOutput::Commit(_))
}

#[tokio::test]
async fn changes_come_as_they_were_made() {
    let database = shared().await.new_database().await;
    database.execute("CREATE TABLE \"T;\" (id int PRIMARY KEY, v text, n numeric)").await;
    slot(&database, "changes").await;
    let mut stream = start(&database, "changes", &options()).await.unwrap();
    database
        .execute(
            "BEGIN; INSERT INTO \"T;\" VALUES (1, 'é', NULL), (2, '', 'NaN'); UPDATE \"T;\" SET id = 3 WHERE id = 2; \
             UPDATE \"T;\" SET v = 'w' WHERE id = 1; DELETE FROM \"T;\" WHERE id = 1; TRUNCATE \"T;\" RESTART IDENTITY CASCADE; \
             SELECT pg_logical_emit_message(true, 'app', 'hello'); COMMIT",
        )
        .await;
    let mut said = collect(&mut stream, is_commit).await;
    // pgoutput describes a table again after any invalidation: another session's autovacuum, the TRUNCATE below.
    let mut described = false;
    said.retain(|message| !message.starts_with("relation") || !std::mem::replace(&mut described, true));
    let expected = [
        "begin",
        "relation public.T;",
        "insert 1,é,null",
        "insert 2,,NaN",
        "update 2,null,null -> 3,,NaN",
        "update 1,w,null",
        "delete 1,null,null",
        "truncate true true",
        "message app hello",
        "commit",
    ];
    assert_eq!(said, expected);
    stream.close().await.unwrap();
    let again = start(&database, "changes", &options()).await.expect("the slot is free again at once");
    drop(again);
}

#[tokio::test]
async fn a_streamed_transaction_names_its_subtransactions() {
    let server = PgServer::builder().set("logical_decoding_work_mem", "64kB").start().await;
    let database = server.database("postgres");
    database.execute("CREATE TABLE t (id int PRIMARY KEY, v text)").await;
    slot(&database, "streamed").await;
    let mut stream = start(&database, "streamed", &options()).await.unwrap();
    database
        .execute(
            "BEGIN; INSERT INTO t SELECT g, repeat('x', 100) FROM generate_series(1, 3000) g; SAVEPOINT s; \
             INSERT INTO t SELECT g, repeat('y', 100) FROM generate_series(3001, 6000) g; ROLLBACK TO s; COMMIT",
        )
        .await;
    let said = collect(&mut stream, |output| matches!(output, PgOutput::StreamCommit { .. })).await;
    assert!(said[0].contains("StreamStart") && said[0].contains("first: true"), "{}", said[0]);
    assert_eq!(said.iter().filter(|s| s.contains("xxxx")).count(), 3000);
    assert!(said.iter().any(|s| s.contains("yyyy")), "rows of the savepoint were sent before it was undone");
    let aborts: Vec<_> = said.iter().filter(|s| s.contains("StreamAbort")).collect();
    let [abort] = aborts[..] else { panic!("{aborts:?}") };
    let ids: Vec<&str> = abort.split(|c: char| !c.is_ascii_digit()).filter(|s| !s.is_empty()).collect();
    assert_ne!(ids[0], ids[1], "the subtransaction alone is undone: {abort}");
}

#[tokio::test]
async fn dropped_calls_lose_nothing() {
    let database = shared().await.new_database().await;
    database.execute("CREATE TABLE t (id int PRIMARY KEY, v text)").await;
    slot(&database, "dropped").await;
    let mut stream = start(&database, "dropped", &options()).await.unwrap();
    database.execute("INSERT INTO t SELECT g, repeat('x', g % 900) FROM generate_series(1, 20000) g").await;
    let (mut rows, mut calls) = (0_u32, 0_u32);
    let work = async {
        loop {
            calls += 1;
            // Polled once and dropped, every other time.
            let message = if calls.is_multiple_of(2) {
                stream.next().await
            } else {
                match stream.next().now_or_never() {
                    Some(message) => message,
                    None => {
                        stream.more().await.unwrap();
                        stream.repeat_feedback(false).now_or_never();
                        continue;
                    }
                }
            };
            let StreamMessage::XLogData(data) = message.unwrap() else { continue };
            match decode(&data.payload, false).unwrap() {
                PgOutput::Insert { new, .. } => {
                    rows += 1;
                    assert_eq!(new.cells().next(), Some(Cell::Value(rows.to_string().as_bytes())));
                }
                PgOutput::Commit(_) => break,
                _ => {}
            }
        }
    };
    timeout(LONG, work).await.unwrap();
    assert_eq!(rows, 20_000);
}

#[tokio::test]
async fn a_slot_in_use_is_held_and_a_missing_one_is_not_there() {
    let database = shared().await.new_database().await;
    slot(&database, "held").await;
    let first = start(&database, "held", &options()).await.unwrap();
    let error = start(&database, "held", &options()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Held, "{error}");
    let error = start(&database, "nowhere", &options()).await.unwrap_err();
    assert_eq!(ServerError::find(&error).unwrap().sqlstate, "42704");
    first.close().await.unwrap();
}

#[tokio::test]
async fn the_walsender_answers_and_its_end_says_why() {
    let database = shared().await.new_database().await;
    slot(&database, "ended").await;
    let mut stream = start(&database, "ended", &options()).await.unwrap();
    stream.repeat_feedback(true).await.unwrap();
    let answer = timeout(LONG, stream.next()).await.unwrap().unwrap();
    let StreamMessage::Keepalive(keepalive) = answer else { panic!("{answer:?}") };
    assert!(keepalive.wal_end > Lsn(0));
    assert!(keepalive.server_time_us > 1_600_000_000_000_000);

    database.execute(&format!("SELECT pg_terminate_backend({})", stream.backend_pid())).await;
    let error = eventually("the end", LONG, async || match stream.next().await {
        Err(error) => Ok(error),
        Ok(message) => Err(message),
    })
    .await;
    assert_eq!(error.kind(), ErrorKind::Connection);
    assert_eq!(ServerError::find(&error).unwrap().sqlstate, "57P01", "{error}");
}

#[tokio::test]
async fn an_idle_walsender_is_probed_and_a_silent_one_is_lost() {
    let database = shared().await.new_database().await;
    slot(&database, "silent").await;
    let proxy = Proxy::start(database.server.port()).await;
    let mut to = database.connect_tcp();
    to.port = proxy.port();
    let client = PgClient::connect(&to, Mode::Replication, Side::Source).await.unwrap();
    let short = StreamOptions { silence: Duration::from_secs(2), ..options() };
    let mut stream = ReplicationStream::start(client, "silent", Lsn(0), &short).await.unwrap();
    // Idle for longer than the silence allowed: every answer is one to a probe.
    for _ in 0..4 {
        let message = timeout(LONG, stream.next()).await.unwrap().unwrap();
        assert!(matches!(message, StreamMessage::Keepalive(_)));
    }
    proxy.set(ProxyMode::Stall);
    // A walsender that decodes what is not for us says nothing either: whoever knows that it does can wait for as long as it takes.
    let excused = Instant::now();
    while excused.elapsed() < 3 * short.silence {
        stream.excuse_silence();
        if let Ok(message) = timeout(short.silence * 3 / 4, stream.next()).await {
            assert!(matches!(message.unwrap(), StreamMessage::Keepalive(_)));
        }
    }
    let error = timeout(LONG, async {
        loop {
            if let Err(error) = stream.next().await {
                return error;
            }
        }
    });
    let error = error.await.expect("noticed");
    assert_eq!(error.kind(), ErrorKind::Connection, "{error}");
}
