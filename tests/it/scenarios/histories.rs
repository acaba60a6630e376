//! FAULTS 6, 7, 12 and 41: the slot or the source is not what it was. What would lose changes halts, and stays halted over a restart.

use std::process::Command;

use super::{CATCH_UP, Lane};
use crate::support::postgres::{PgServer, shared_replica};
use crate::support::process::{as_server_user, run};
use crate::support::wait::until;

const T: &str = "CREATE TABLE t (id serial PRIMARY KEY, v text); INSERT INTO t (v) SELECT 'v' FROM generate_series(1, 10)";
const WRITE: &str = "INSERT INTO t (v) SELECT repeat('x', 100) FROM generate_series(1, 100)";

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_slot_halts_for_good() {
    let lane = Lane::new(T).await;
    lane.start().await.kill();
    let slot = lane.slot().await;
    drop_slot(&lane, &slot).await;
    lane.source.execute(WRITE).await;
    let daemon = lane.site.start();
    lane.halted(&["slot_missing"]).await;
    daemon.kill();
    let _daemon = lane.site.start();
    lane.halted(&["slot_missing"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_was_made_anew_halts() {
    let lane = Lane::new(T).await;
    lane.start().await.kill();
    let slot = lane.slot().await;
    drop_slot(&lane, &slot).await;
    lane.source.execute(WRITE).await;
    lane.source.execute(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")).await;
    let _daemon = lane.site.start();
    lane.halted(&["slot_ahead", "slot_unknown"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_somebody_advanced_halts() {
    let lane = Lane::new(T).await;
    lane.start().await.kill();
    let slot = lane.slot().await;
    released(&lane, &slot).await;
    lane.source.execute(WRITE).await;
    lane.source.execute(&format!("SELECT pg_replication_slot_advance('{slot}', pg_current_wal_lsn())")).await;
    let _daemon = lane.site.start();
    lane.halted(&["slot_ahead"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalidated_slot_halts() {
    let source = PgServer::builder()
        .set("max_slot_wal_keep_size", "1MB")
        .set("max_wal_size", "32MB")
        .set("min_wal_size", "32MB")
        .start()
        .await;
    let lane = Lane::on(&source, shared_replica().await, T).await;
    lane.start().await.kill();
    let lost = "SELECT coalesce(bool_or(wal_status = 'lost'), false) FROM pg_replication_slots";
    until("the slot to be invalidated", CATCH_UP, async || {
        lane.source.execute(WRITE).await;
        lane.source.execute("SELECT pg_switch_wal()").await;
        lane.source.execute("CHECKPOINT").await;
        lane.source.value(lost).await == "t"
    })
    .await;
    let _daemon = lane.site.start();
    lane.halted(&["slot_invalidated"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_server_behind_the_address_halts() {
    let lane = Lane::new(T).await;
    lane.start().await.kill();
    let other = PgServer::start().await;
    other.database("postgres").execute(&format!("CREATE DATABASE {}", lane.source.name)).await;
    other.database(&lane.source.name).execute(T).await;
    let text = std::fs::read_to_string(lane.site.configuration()).expect("millstream.toml");
    lane.site.configure(&text.replace(&format!(":{}/", lane.source.server.port()), &format!(":{}/", other.port())));
    let _daemon = lane.site.start();
    lane.halted(&["history_changed"]).await;
}

/// The same cluster, back in its own past: identifier and timeline are as ever, only the end of its log lies before the queue's.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_restored_to_the_past_halts() {
    let source = PgServer::start().await;
    let lane = Lane::on(&source, shared_replica().await, T).await;
    let daemon = lane.start().await;
    lane.equal().await;
    source.stop().await;
    let backup = source.folder().join("backup");
    run(as_server_user(Command::new("cp").arg("-a").arg(source.data()).arg(&backup)));
    source.restart().await;
    lane.source.execute(WRITE).await;
    lane.equal().await;
    source.stop().await;
    std::fs::remove_dir_all(source.data()).expect("the cluster");
    std::fs::rename(&backup, source.data()).expect("the backup");
    source.restart().await;
    lane.source.execute("INSERT INTO t (v) VALUES ('another present')").await;
    lane.halted(&["history_changed", "slot_missing"]).await;
    daemon.kill();
    let _daemon = lane.site.start();
    lane.halted(&["history_changed", "slot_missing"]).await;
}

async fn drop_slot(lane: &Lane<'_>, slot: &str) {
    released(lane, slot).await;
    lane.source.execute(&format!("SELECT pg_drop_replication_slot('{slot}')")).await;
}

/// A killed daemon's walsender takes a moment to notice.
async fn released(lane: &Lane<'_>, slot: &str) {
    let active = format!("SELECT active FROM pg_replication_slots WHERE slot_name = '{slot}'");
    until("the slot to be free", CATCH_UP, async || lane.source.value(&active).await == "f").await;
}
