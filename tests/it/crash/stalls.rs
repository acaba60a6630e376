//! Somebody stands still: the replica, the daemon, a huge transaction. Memory stays bounded, the source is not harmed.

use std::time::Duration;

use rustix::process::Signal;

use super::{CATCH_UP, Pair, Servers};
use crate::support::postgres::PgServer;
use crate::support::wait::{LONG, until};
use crate::support::workload::Plan;

const MIB: u64 = 1 << 20;

/// FAULTS 16, I6, I7: the source's walsender times out after 4 s of silence, and must not.
#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_replica_leaves_the_source_answered_and_memory_bounded() {
    let source = PgServer::builder().set("wal_sender_timeout", "4s");
    let servers = Servers::start_with(source, PgServer::builder()).await;
    let pair = Pair::new(&servers).await;
    let workload = pair.load(&Plan { large_rows: 20_000, ..Plan::default() });
    let daemon = pair.site.start();
    pair.site.ready(CATCH_UP).await;
    let reader = pair.reader();
    let walsender = pair.source.value("SELECT pid FROM pg_stat_replication LIMIT 1").await;
    let confirmed = "SELECT max(confirmed_flush_lsn) - '0/0' FROM pg_replication_slots";
    let before: f64 = pair.source.value(confirmed).await.parse().expect("a number");
    pair.replica.server.freeze();
    tokio::time::sleep(Duration::from_secs(12)).await;
    let after: f64 = pair.source.value(confirmed).await.parse().expect("a number");
    let same = pair.source.value("SELECT pid FROM pg_stat_replication LIMIT 1").await;
    pair.replica.server.thaw();
    assert_eq!(walsender, same, "the source gave the connection up:\n{}", pair.source.server.log());
    assert!(after > before, "the queue takes changes while the replica stands: {before} {after}");
    pair.verdict(workload, &reader).await;
    let peak = daemon.peak_rss_bytes();
    assert!(peak < 256 * MIB, "{} MiB", peak / MIB);
}

/// I6: a full queue stops capture, drops nothing, and goes on when there is room.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_stops_capture_and_drops_nothing() {
    let servers = Servers::start().await;
    let pair = Pair::with(&servers, false, &[("[queue]", "max_bytes = \"16MiB\"")]).await;
    let daemon = pair.site.start();
    pair.site.ready(CATCH_UP).await;
    let reader = pair.reader();
    let workload =
        pair.load(&Plan { writers: 2, chains: 1, pause: Duration::from_millis(20), large_rows: 500, ..Plan::default() });
    pair.replica.server.freeze();
    for n in 0..60 {
        // 1 MiB each, in transactions of their own.
        let rows = format!(
            "INSERT INTO bulk SELECT {n} * 1000 + g + 500000000, 8, repeat(md5(g::text), 32) FROM generate_series(1, 1000) g"
        );
        pair.source.execute(&rows).await;
    }
    let folder = pair.site.folder().join("queue");
    until("the queue to fill", LONG, async || size_of(&folder) > 15 * MIB).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let size = size_of(&folder);
    pair.replica.server.thaw();
    assert!(size < 40 * MIB, "the queue grew past its limit: {} MiB", size / MIB);
    pair.verdict(workload, &reader).await;
    drop(daemon);
}

/// FAULTS 17: one transaction that is far larger than memory may be. 600,000 rows here, for the time that it takes; `make bench` has 5 million.
#[tokio::test(flavor = "multi_thread")]
async fn a_huge_transaction_passes_in_bounded_memory() {
    let servers = Servers::start().await;
    let pair = Pair::new(&servers).await;
    let workload =
        pair.load(&Plan { writers: 1, chains: 1, pause: Duration::from_millis(20), large_rows: 500, ..Plan::default() });
    let daemon = pair.site.start();
    pair.site.ready(CATCH_UP).await;
    let reader = pair.reader();
    pair.source
        .execute("INSERT INTO bulk SELECT n + 600000000, 7, repeat(md5(n::text), 4) FROM generate_series(1, 600000) n")
        .await;
    pair.verdict(workload, &reader).await;
    let peak = daemon.peak_rss_bytes();
    assert!(peak < 128 * MIB, "{} MiB", peak / MIB);
}

/// The daemon itself stands still and wakes up again, its connections timed out or not.
#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_daemon_goes_on_when_it_is_continued() {
    let source = PgServer::builder().set("wal_sender_timeout", "2s");
    let servers = Servers::start_with(source, PgServer::builder()).await;
    let pair = Pair::new(&servers).await;
    let workload = pair.load(&Plan::default());
    let daemon = pair.site.start();
    pair.site.ready(CATCH_UP).await;
    let reader = pair.reader();
    for pause in [Duration::from_millis(300), Duration::from_secs(4)] {
        daemon.signal(Signal::STOP);
        tokio::time::sleep(pause).await;
        daemon.signal(Signal::CONT);
        pair.caught_up().await;
    }
    pair.verdict(workload, &reader).await;
}

fn size_of(folder: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| if entry.path().is_dir() { size_of(&entry.path()) } else { entry.metadata().map_or(0, |data| data.len()) })
        .sum()
}
