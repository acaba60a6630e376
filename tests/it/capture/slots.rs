//! What was done to the slot or the source behind our back is noticed, and never skipped over.

use std::sync::Arc;

use millstream::capture::CaptureState;
use millstream::capture::postgres::slot;
use millstream::config::OnRetainLimit;
use millstream::event::Position;
use millstream::halt::HaltCode;
use millstream::pause::{Pauses, Who};
use millstream::queue::Queue;
use millstream::queue::embedded::EmbeddedQueue;

use super::rig::{KEEPER, Rig};
use crate::support::postgres::{self, PgServer};
use crate::support::proxy::{Mode, Proxy};
use crate::support::wait::{LONG, eventually, until};

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE unpublished (id int, v text)";

async fn captured(rig: &Rig<'_>) {
    let capture = rig.start();
    rig.db.execute("INSERT INTO t VALUES (1, 'a')").await;
    assert_eq!(rig.log_after_marker().await.changes(), ["+t (id=1,v=a)"]);
    capture.stop().await;
}

/// FAULTS 7.
#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_slot_halts() {
    let rig = Rig::new(postgres::shared().await, TABLE).await;
    captured(&rig).await;
    slot::drop(&mut rig.client().await, &rig.slot).await.unwrap();
    rig.db.execute("INSERT INTO t VALUES (2, 'lost')").await;
    let capture = rig.start();
    let (code, error) = capture.halts().await;
    assert_eq!(code, HaltCode::SlotMissing);
    assert!(error.contains(&rig.slot), "{error}");
    capture.stop().await;
}

/// FAULTS 7, 41.
#[tokio::test(flavor = "multi_thread")]
async fn a_recreated_slot_starts_past_the_queues_end_and_halts() {
    let rig = Rig::new(postgres::shared().await, TABLE).await;
    captured(&rig).await;
    slot::drop(&mut rig.client().await, &rig.slot).await.unwrap();
    rig.db.execute("INSERT INTO t VALUES (2, 'lost')").await;
    rig.create_slot().await;
    let capture = rig.start();
    assert_eq!(capture.halts().await.0, HaltCode::SlotAhead);
    capture.stop().await;
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_somebody_else_consumed_from_halts() {
    let rig = Rig::new(postgres::shared().await, TABLE).await;
    captured(&rig).await;
    rig.db.execute("INSERT INTO t VALUES (2, 'lost')").await;
    let advance = format!("SELECT pg_replication_slot_advance('{}', pg_current_wal_lsn())", rig.slot);
    rig.db.execute(&advance).await;
    let capture = rig.start();
    assert_eq!(capture.halts().await.0, HaltCode::SlotAhead);
    capture.stop().await;
    rig.end().await;
}

/// FAULTS 6.
#[tokio::test(flavor = "multi_thread")]
async fn an_invalidated_slot_halts() {
    let server = PgServer::builder().set("max_slot_wal_keep_size", "1MB").start().await;
    let rig = Rig::new(&server, TABLE).await;
    captured(&rig).await;
    for _ in 0..4 {
        rig.db.execute("INSERT INTO unpublished SELECT i, repeat('x', 500) FROM generate_series(1, 40000) i").await;
        rig.db.execute("SELECT pg_switch_wal(); CHECKPOINT").await;
    }
    let capture = rig.start();
    assert_eq!(capture.halts().await.0, HaltCode::SlotInvalidated);
    capture.stop().await;
}

/// FAULTS 8: nothing published is written, and the slot moves on with the source.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_stream_acknowledges_what_is_not_published() {
    let server = PgServer::start().await;
    let mut rig = Rig::new(&server, TABLE).await;
    // No heartbeat within this test: keepalives alone must do.
    rig.source.heartbeat_interval = std::time::Duration::from_millis(200);
    rig.db.execute("CREATE ROLE silenced LOGIN REPLICATION").await;
    // Its arguments differ by version.
    let signature = rig
        .db
        .value("SELECT string_agg(oid::regprocedure::text, ', ') FROM pg_proc WHERE proname = 'pg_logical_emit_message'")
        .await;
    rig.db.execute(&format!("REVOKE EXECUTE ON FUNCTION {signature} FROM PUBLIC")).await;
    rig.source.connect.user = "silenced".into();
    let capture = rig.start();
    capture.reaches(CaptureState::Streaming).await;
    rig.db.execute("INSERT INTO unpublished SELECT i, repeat('x', 500) FROM generate_series(1, 20000) i").await;
    let end = rig.db.value("SELECT pg_current_wal_lsn()::text").await;
    let confirmed =
        format!("SELECT (confirmed_flush_lsn >= '{end}')::text FROM pg_replication_slots WHERE slot_name = '{}'", rig.slot);
    until("the slot to be confirmed", LONG, async || rig.db.value(&confirmed).await == "true").await;
    let log = rig.log().await;
    assert!(log.transactions.is_empty() && log.position >= Some(end.parse().unwrap()), "progress is durable first");
    assert_eq!(log.heartbeats, 0);
    capture.stop().await;
}

/// FAULTS 5: the second waits, says who works, and takes over.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_capture_waits_says_for_whom_and_takes_over() {
    let rig = Rig::new(postgres::shared().await, TABLE).await;
    let first = rig.start();
    first.reaches(CaptureState::Streaming).await;
    let second = rig.start();
    let held = second.reaches(CaptureState::Held).await;
    let holder = held.held_by.unwrap();
    assert!(holder.contains("pid ") && holder.contains("millstream") && holder.contains("client"), "{holder}");
    rig.db.execute("INSERT INTO t VALUES (1, 'a')").await;
    rig.log_after_marker().await;
    first.stop().await;
    second.reaches(CaptureState::Streaming).await;
    rig.db.execute("INSERT INTO t VALUES (2, 'b')").await;
    assert_eq!(rig.log_after_marker().await.changes(), ["+t (id=1,v=a)", "+t (id=2,v=b)"]);
    second.stop().await;
    rig.end().await;
}

/// FAULTS 3: nothing of a transaction in progress is lost or doubled by restarts.
#[tokio::test(flavor = "multi_thread")]
async fn restarts_in_the_middle_of_transactions_lose_and_double_nothing() {
    let rig = Rig::new(postgres::shared().await, TABLE).await;
    let mut expected = Vec::new();
    let mut open = rig.db.connection().await;
    for round in 0..6_i32 {
        let capture = rig.start();
        let begin = format!("BEGIN; INSERT INTO t VALUES ({}, 'open')", 1000 + round);
        sqlx::raw_sql(sqlx::AssertSqlSafe(begin)).execute(&mut open).await.unwrap();
        let batch = format!("INSERT INTO t SELECT {round} * 100 + i, 'x' FROM generate_series(1, 50) i");
        rig.db.execute(&batch).await;
        if round % 2 == 0 {
            capture.reaches(CaptureState::Streaming).await;
        }
        capture.kill().await;
        sqlx::raw_sql("COMMIT").execute(&mut open).await.unwrap();
        expected.extend((1..=50).map(|i| format!("+t (id={},v=x)", round * 100 + i)));
        expected.push(format!("+t (id={},v=open)", 1000 + round));
    }
    let capture = rig.start();
    assert_eq!(rig.log_after_marker().await.changes(), expected);
    capture.stop().await;
    rig.end().await;
}

async fn insert_round(db: &postgres::PgDatabase<'_>, round: usize) {
    let batch = format!("INSERT INTO t SELECT {round} * 100 + i, repeat('x', 100) FROM generate_series(1, 100) i");
    db.execute(&batch).await;
}

/// I6: a full queue stops reading, the connection lives on, and it goes on once the consumer has read.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_stops_capture_without_losing_the_connection() {
    let mut rig = Rig::new(postgres::shared().await, TABLE).await;
    rig.queue_max_bytes = 200_000;
    let capture = rig.start();
    capture.reaches(CaptureState::Streaming).await;
    let epoch = capture.status.borrow().epoch;
    // The size is looked at now and then: a fast capture is far beyond it by then.
    let mut rounds = 0;
    while capture.status.borrow().state != CaptureState::QueueFull {
        insert_round(&rig.db, rounds).await;
        rounds += 1;
        assert!(rounds < 10_000, "the queue never fills");
    }
    for _ in 0..20 {
        insert_round(&rig.db, rounds).await;
        rounds += 1;
    }
    let full = capture.reaches(CaptureState::QueueFull).await;
    assert_eq!(full.slowest.as_deref(), Some(KEEPER));
    // Longer than heartbeats and silence checks would need to end the connection.
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert_eq!(capture.status.borrow().state, CaptureState::QueueFull);
    assert_eq!(capture.status.borrow().epoch, epoch);
    let before = rig.log().await.transactions.len();
    assert!(before < rounds, "{before}");
    let log = eventually("everything, as the consumer reads on", LONG, async || {
        rig.register(KEEPER).await;
        let log = rig.log().await;
        if log.transactions.len() == rounds { Ok(log) } else { Err(log.transactions.len()) }
    })
    .await;
    assert_eq!(log.changes().len(), rounds * 100);
    assert_eq!(capture.status.borrow().epoch, epoch, "the same connection");
    capture.stop().await;
    rig.end().await;
}

/// I7: a fast shutdown waits for the walsender, which waits for us, who wait for the consumer.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_does_not_hold_up_the_sources_shutdown() {
    let server = PgServer::start().await;
    let mut rig = Rig::new(&server, TABLE).await;
    rig.queue_max_bytes = 200_000;
    let capture = rig.start();
    capture.reaches(CaptureState::Streaming).await;
    // More than the sockets between hold.
    for round in 0..200_i32 {
        let batch = format!("INSERT INTO t SELECT {round} * 50 + i, repeat('x', 2000) FROM generate_series(1, 50) i");
        rig.db.execute(&batch).await;
    }
    capture.reaches(CaptureState::QueueFull).await;
    let since = std::time::Instant::now();
    server.stop().await;
    assert!(since.elapsed() < LONG / 2, "it took {:?}", since.elapsed());
    server.restart().await;
    let log = eventually("everything, as the consumer reads on", LONG * 3, async || {
        rig.register(KEEPER).await;
        let log = rig.log().await;
        if log.changes().len() == 10_000 { Ok(log) } else { Err(log.changes().len()) }
    })
    .await;
    assert_eq!(log.transactions.len(), 200);
    capture.stop().await;
}

/// FAULTS 12: another cluster behind the address.
#[tokio::test(flavor = "multi_thread")]
async fn another_cluster_behind_the_address_halts() {
    let rig = Rig::new(postgres::shared().await, TABLE).await;
    captured(&rig).await;
    let other = postgres::shared_replica().await.new_database().await;
    let mut source = rig.source.clone();
    source.connect = other.connect();
    let capture = rig.start_with(source, Arc::clone(&rig.queue));
    assert_eq!(capture.halts().await.0, HaltCode::HistoryChanged);
    capture.stop().await;
    rig.end().await;
}

/// A queue beside which a slot stands that it knows nothing of: init was never finished there.
#[tokio::test(flavor = "multi_thread")]
async fn an_empty_queue_is_not_initialised() {
    let rig = Rig::new(postgres::shared().await, TABLE).await;
    let empty: Arc<dyn Queue> = EmbeddedQueue::open(&rig.folder.path().join("other")).unwrap();
    let capture = rig.start_with(rig.source.clone(), Arc::clone(&empty));
    assert_eq!(capture.halts().await.0, HaltCode::NotInitialized);
    capture.stop().await;
    let end: Position = rig.db.value("SELECT pg_current_wal_lsn()::text").await.parse().unwrap();
    assert!(end > Position::Lsn(millstream::event::Lsn(0)));
    rig.end().await;
}

/// FAULTS 12: promoted without loss, with the slot: goes on by itself. A source restored to before the queue's end: halts.
#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_that_lost_nothing_is_followed_and_one_that_did_is_not() {
    for lossless in [true, false] {
        let server = PgServer::start().await;
        let rig = Rig::new(&server, TABLE).await;
        if !lossless {
            // What a standby that was behind would have had.
            captured(&rig).await;
            server.stop().await;
            copy_folder(server.data(), &rig.folder.path().join("old"));
            server.restart().await;
            let capture = rig.start();
            rig.db.execute("INSERT INTO t VALUES (2, 'lost')").await;
            rig.log_after_marker().await;
            capture.stop().await;
        } else {
            captured(&rig).await;
        }
        server.stop().await;
        if !lossless {
            std::fs::remove_dir_all(server.data()).unwrap();
            copy_folder(&rig.folder.path().join("old"), server.data());
        }
        // A standby of itself, promoted at once: a new timeline from where its WAL ends.
        std::fs::write(server.data().join("standby.signal"), "").unwrap();
        crate::support::files::give_to_server_user(&server.data().join("standby.signal"));
        server.restart().await;
        rig.db.value("SELECT pg_promote()::text").await;
        until("the promotion", LONG, async || rig.db.value("SELECT pg_is_in_recovery()::text").await == "false").await;
        rig.db.execute("INSERT INTO t VALUES (3, 'after')").await;
        let capture = rig.start();
        if lossless {
            let log = rig.log_after_marker().await;
            assert_eq!(log.changes(), ["+t (id=1,v=a)", "+t (id=3,v=after)"]);
            let history = log.histories.last().unwrap();
            assert_eq!((history.timeline, history.lineage.len()), (2, 1));
        } else {
            assert_eq!(capture.halts().await.0, HaltCode::HistoryChanged);
        }
        capture.stop().await;
    }
}

fn copy_folder(from: &std::path::Path, to: &std::path::Path) {
    let status = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success());
}

/// FAULTS 13: nothing comes through any more and nobody says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_half_open_connection_is_noticed_within_two_heartbeats() {
    let server = PgServer::start().await;
    let mut rig = Rig::new(&server, TABLE).await;
    let proxy = Proxy::start(server.port()).await;
    rig.source.connect = rig.db.connect_tcp();
    rig.source.connect.port = proxy.port();
    rig.source.heartbeat_interval = std::time::Duration::from_secs(1);
    let capture = rig.start();
    capture.reaches(CaptureState::Streaming).await;
    rig.db.execute("INSERT INTO t VALUES (1, 'a')").await;
    rig.log_after_marker().await;
    proxy.set(Mode::Stall);
    let since = std::time::Instant::now();
    capture.reaches(CaptureState::Waiting).await;
    let noticed = since.elapsed();
    assert!(noticed < std::time::Duration::from_millis(2800), "two heartbeats and a machine's hiccup: {noticed:?}");
    assert!(capture.status.borrow().error.as_ref().is_some_and(|e| e.contains("silent")), "{:?}", capture.status.borrow().error);
    proxy.set(Mode::Pass);
    rig.db.execute("INSERT INTO t VALUES (2, 'b')").await;
    assert_eq!(rig.log_after_marker().await.changes(), ["+t (id=1,v=a)", "+t (id=2,v=b)"]);
    capture.stop().await;
}

/// I7: the slot goes rather than the source's disk, when that was asked for.
#[tokio::test(flavor = "multi_thread")]
async fn past_its_budget_the_slot_is_dropped_when_asked_for() {
    let server = PgServer::start().await;
    let mut rig = Rig::new(&server, TABLE).await;
    rig.source.retain_max_bytes = 1 << 20;
    rig.queue_max_bytes = 1000;
    let capture = rig.start();
    capture.reaches(CaptureState::Streaming).await;
    rig.db.execute("INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(1, 100) i").await;
    rig.db.execute("INSERT INTO unpublished SELECT i, repeat('x', 500) FROM generate_series(1, 8000) i").await;
    until("an alarm", LONG, async || capture.status.borrow().retention.exceeded).await;
    assert_eq!(rig.db.value("SELECT count(*)::text FROM pg_replication_slots").await, "1", "an alarm drops nothing");
    capture.stop().await;
    rig.source.on_retain_limit = OnRetainLimit::DropSlot;
    let capture = rig.start();
    let (code, error) = capture.halts().await;
    assert_eq!(code, HaltCode::SlotMissing);
    assert!(error.contains("retain_max_bytes"), "{error}");
    assert_eq!(rig.db.value("SELECT count(*)::text FROM pg_replication_slots").await, "0");
    capture.stop().await;
}

/// A pause is no reason to endanger the source (I7), and the loss outlives it.
#[tokio::test(flavor = "multi_thread")]
async fn past_its_budget_the_slot_of_a_paused_source_is_dropped_when_asked_for() {
    let server = PgServer::start().await;
    let mut rig = Rig::new(&server, TABLE).await;
    rig.source.retain_max_bytes = 1 << 20;
    rig.source.on_retain_limit = OnRetainLimit::DropSlot;
    let pauses = Pauses::new("shop");
    pauses.open(&rig.queue);
    let gate = pauses.gate(Who::Source);
    let capture = rig.start_behind(Arc::clone(&gate));
    capture.reaches(CaptureState::Streaming).await;
    gate.pause().await.unwrap();
    capture.reaches(CaptureState::Paused).await;
    assert_eq!(rig.db.value("SELECT count(*)::text FROM pg_replication_slots WHERE active").await, "0");
    rig.db.execute("INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(1, 8000) i").await;
    let (code, error) = capture.halts().await;
    assert_eq!(code, HaltCode::SlotMissing);
    assert!(error.contains("retain_max_bytes"), "{error}");
    assert_eq!(rig.db.value("SELECT count(*)::text FROM pg_replication_slots").await, "0");
    gate.resume().await.unwrap();
    assert_eq!(capture.status.borrow().state, CaptureState::Halted);
    capture.stop().await;
}

/// I7, in time: nothing is confirmed while the queue is full, and the source's log goes on.
#[tokio::test(flavor = "multi_thread")]
async fn past_its_age_the_slot_is_dropped_when_asked_for() {
    let server = PgServer::start().await;
    let mut rig = Rig::new(&server, TABLE).await;
    rig.queue_max_bytes = 1000;
    rig.source.retain_max_age = std::time::Duration::from_secs(4);
    rig.source.on_retain_limit = OnRetainLimit::DropSlot;
    let capture = rig.start();
    capture.reaches(CaptureState::Streaming).await;
    rig.db.execute("INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(1, 100) i").await;
    let (code, error) = capture.halts().await;
    assert_eq!(code, HaltCode::SlotMissing);
    assert!(error.contains("retain_max_age"), "{error}");
    assert_eq!(rig.db.value("SELECT count(*)::text FROM pg_replication_slots").await, "0");
    capture.stop().await;
}

/// I7: a queue that cannot be read says neither the slot's name nor when it will come back, and the source fills all the same.
#[tokio::test(flavor = "multi_thread")]
async fn past_its_budget_the_slot_is_dropped_also_when_the_queue_is_lost() {
    let server = PgServer::start().await;
    let mut rig = Rig::new(&server, TABLE).await;
    captured(&rig).await;
    rig.db.execute("INSERT INTO unpublished SELECT i, repeat('x', 500) FROM generate_series(1, 8000) i").await;
    rig.source.retain_max_bytes = 1 << 20;
    rig.source.on_retain_limit = OnRetainLimit::DropSlot;
    let lost: Arc<dyn Queue> = EmbeddedQueue::open(&rig.folder.path().join("lost")).unwrap();
    let capture = rig.start_with(rig.source.clone(), lost);
    capture.halts().await;
    assert_eq!(capture.status.borrow().number, None, "it has no log to read the name from");
    let slots = "SELECT count(*)::text FROM pg_replication_slots";
    until("the slot to go", LONG, async || rig.db.value(slots).await == "0").await;
    capture.stop().await;
}

/// A daemon with another queue and a source of the same name must not end the one that works.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_somebody_reads_is_not_dropped_by_one_who_lost_his_queue() {
    let server = PgServer::start().await;
    let mut rig = Rig::new(&server, TABLE).await;
    let working = rig.start();
    working.reaches(CaptureState::Streaming).await;
    rig.source.retain_max_bytes = 0;
    rig.source.on_retain_limit = OnRetainLimit::DropSlot;
    let other: Arc<dyn Queue> = EmbeddedQueue::open(&rig.folder.path().join("other")).unwrap();
    let capture = rig.start_with(rig.source.clone(), other);
    capture.halts().await;
    // Two of its looks at what slots retain, three seconds apart.
    tokio::time::sleep(std::time::Duration::from_secs(7)).await;
    assert_eq!(capture.status.borrow().slot, None);
    assert_eq!(rig.db.value("SELECT count(*)::text FROM pg_replication_slots WHERE active").await, "1");
    capture.stop().await;
    working.stop().await;
}

/// The source's own answers to a restart of everything.
#[tokio::test(flavor = "multi_thread")]
async fn crashes_of_the_source_lose_and_double_nothing() {
    let server = PgServer::start().await;
    let rig = Rig::new(&server, TABLE).await;
    let capture = rig.start();
    for round in 0..3_i32 {
        let insert = format!("INSERT INTO t VALUES ({round}, 'x'); SELECT pg_logical_emit_message(false, 'app', '{round}')");
        rig.db.execute(&insert).await;
        if round == 1 {
            rig.log_after_marker().await;
        }
        server.crash();
        server.restart().await;
    }
    let log = rig.log_after_marker().await;
    assert_eq!(log.changes(), ["+t (id=0,v=x)", "+t (id=1,v=x)", "+t (id=2,v=x)"]);
    assert_eq!(log.messages.last().map(String::as_str), Some("app:2"));
    let mut once = log.messages.clone();
    once.dedup();
    assert_eq!(once, log.messages, "messages come once");
    capture.stop().await;
}
