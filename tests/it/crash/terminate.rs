//! SIGTERM while something stands in the way: the daemon ends in order within the ten seconds that it promises ([`Daemon::terminate`] counts them), and what it
//! had not done is done by the next.
//!
//! [`Daemon::terminate`]: crate::support::daemon::Daemon::terminate

use super::{CATCH_UP, Pair, Servers};
use crate::support::compare;
use crate::support::sql;
use crate::support::wait::until;

async fn ends_equal(pair: &Pair<'_>) {
    let daemon = pair.site.start();
    pair.caught_up().await;
    compare::equal(&pair.source, &pair.replica, CATCH_UP).await;
    pair.site.ready(CATCH_UP).await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
}

fn batch(number: u32) -> String {
    // About 1 MiB, in a transaction of its own.
    format!("INSERT INTO bulk SELECT {number} * 1000 + g, 8, repeat(md5(g::text), 32) FROM generate_series(1, 1000) g")
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_replica_that_does_not_answer_it_ends_in_time() {
    let servers = Servers::start().await;
    let pair = Pair::new(&servers).await;
    let daemon = pair.site.start();
    pair.site.ready(CATCH_UP).await;
    pair.caught_up().await;
    pair.replica.server.freeze();
    pair.source.execute(&batch(1)).await;
    until("changes that wait for the replica", CATCH_UP, async || {
        pair.site.status().await.is_some_and(|status| status["replicas"]["reports"]["queued_changes"].as_u64() >= Some(1000))
    })
    .await;
    let ended = daemon.terminate().await;
    pair.replica.server.thaw();
    assert_eq!(ended.code(), Some(0), "{}", pair.site.last_log());
    assert_eq!(pair.replica.value("SELECT count(*) FROM bulk").await, "0", "nothing of it had been written");
    ends_equal(&pair).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_full_queue_it_ends_in_time() {
    let servers = Servers::start().await;
    let pair = Pair::with(&servers, false, &[("[queue]", "max_bytes = \"16MiB\"")]).await;
    let daemon = pair.site.start();
    pair.site.ready(CATCH_UP).await;
    pair.caught_up().await;
    // Taken by nobody, so that capture has nowhere to put the rest.
    pair.replica.server.freeze();
    for number in 0..40 {
        pair.source.execute(&batch(number)).await;
    }
    until("a full queue", CATCH_UP, async || {
        pair.site.status().await.is_some_and(|status| status["sources"]["shop"]["state"] == "queue_full")
    })
    .await;
    let ended = daemon.terminate().await;
    pair.replica.server.thaw();
    assert_eq!(ended.code(), Some(0), "{}", pair.site.last_log());
    ends_equal(&pair).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_middle_of_a_first_copy_it_ends_in_time() {
    let servers = Servers::start().await;
    let pair = Pair::with(&servers, false, &[("[source.shop]", "copy_chunk_rows = 1000")]).await;
    for number in 0..20 {
        pair.source.execute(&batch(number)).await;
    }
    let bystander = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'millstream%' \
         AND wait_event_type = 'Lock'";
    // Somebody holds the table that is loaded: no chunk of it can end.
    let mut other = pair.replica.connection().await;
    sql::query(&mut other, "BEGIN; LOCK TABLE bulk IN SHARE MODE").await.expect("a lock");
    let daemon = pair.site.start();
    until("a loader that waits", CATCH_UP, async || pair.replica.value(bystander).await != "0").await;
    let status = pair.site.status().await.expect("a status");
    assert_eq!(status["replicas"]["reports"]["state"], "copying", "{status:#}");
    assert_eq!(daemon.terminate().await.code(), Some(0), "{}", pair.site.last_log());
    sql::query(&mut other, "ROLLBACK").await.expect("let go");
    assert_eq!(pair.replica.value("SELECT count(*) FROM millstream.copied_table WHERE state = 'live'").await, "0");

    // While chunks are coming in.
    let daemon = pair.site.start();
    until("the first chunks", CATCH_UP, async || {
        pair.replica.value("SELECT count(*) FROM millstream.copy_chunk WHERE state = 'loaded' AND table_name = 'bulk'").await
            != "0"
    })
    .await;
    assert_eq!(daemon.terminate().await.code(), Some(0), "{}", pair.site.last_log());
    ends_equal(&pair).await;
    assert_eq!(pair.replica.value("SELECT count(*) FROM bulk").await, "20000");
}
