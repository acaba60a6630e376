//! Between the daemon and its servers: answers lost, hosts gone without a word, lines that flap.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::storm::seed;
use super::{CATCH_UP, Pair, Servers};
use crate::support::proxy::{Mode, Strike};
use crate::support::wait::{LONG, until};
use crate::support::workload::Plan;

/// FAULTS 2: the commit happened, its answer was lost. The ledger decides (I3).
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_is_lost_is_not_applied_twice() {
    let servers = Servers::start().await;
    let pair = Pair::proxied(&servers).await;
    let workload = pair.load(&Plan::default());
    let _daemon = pair.site.start();
    pair.site.ready(CATCH_UP).await;
    let reader = pair.reader();
    for strike in [Strike::AnswerLost, Strike::Before].repeat(10) {
        let struck = pair.to_replica.strikes();
        pair.to_replica.strike_on(b"COMMIT", strike, 1);
        until("a COMMIT to be struck", LONG, async || pair.to_replica.strikes() > struck).await;
    }
    pair.verdict(workload, &reader).await;
}

/// FAULTS 14: the applier's host is gone in mid-transaction; its session lives on, with the ledger's row locked.
#[tokio::test(flavor = "multi_thread")]
async fn an_orphaned_session_on_the_replica_does_not_hold_the_pair_up_for_long() {
    let servers = Servers::start().await;
    let pair = Pair::proxied(&servers).await;
    let workload = pair.load(&Plan::default());
    let _daemon = pair.site.start();
    pair.site.ready(CATCH_UP).await;
    let reader = pair.reader();
    pair.to_replica.strike_on(b"COMMIT", Strike::Orphaned, 1);
    until("a session to be orphaned", LONG, async || pair.to_replica.strikes() > 0).await;
    pair.caught_up().await;
    pair.verdict(workload, &reader).await;
}

/// FAULTS 13: nothing comes any more and nothing closes. Health must not stay green, and the stream goes on by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_half_open_source_connection_is_noticed() {
    let servers = Servers::start().await;
    let pair = Pair::with(&servers, true, &[("[http]", "ready_max_lag = \"2s\"")]).await;
    let workload =
        pair.load(&Plan { writers: 1, chains: 1, pause: Duration::from_millis(40), large_rows: 500, ..Plan::default() });
    let _daemon = pair.site.start();
    pair.site.ready(CATCH_UP).await;
    let reader = pair.reader();
    pair.to_source.set(Mode::Stall);
    until("/readyz to turn red", Duration::from_secs(10), async || {
        pair.site.get("/readyz").await.is_ok_and(|(code, _)| code == 503)
    })
    .await;
    pair.to_source.set(Mode::Pass);
    pair.site.ready(CATCH_UP).await;
    // And once more with the stalled connections dead for good.
    pair.to_source.set(Mode::Stall);
    tokio::time::sleep(Duration::from_secs(3)).await;
    pair.to_source.reset();
    pair.to_source.set(Mode::Pass);
    pair.verdict(workload, &reader).await;
}

/// FAULTS 15: resets, refusals, pauses and delays on both sides.
#[tokio::test(flavor = "multi_thread")]
async fn a_flapping_network_loses_and_doubles_nothing() {
    let mut random = StdRng::seed_from_u64(seed());
    let servers = Servers::start().await;
    let pair = Pair::proxied(&servers).await;
    let workload = pair.load(&Plan::default());
    let _daemon = pair.site.start();
    pair.site.ready(CATCH_UP).await;
    let reader = pair.reader();
    for _ in 0..50 {
        let proxy = if random.random_ratio(1, 2) { &pair.to_source } else { &pair.to_replica };
        match random.random_range(0..5) {
            0 | 1 => proxy.reset(),
            2 => proxy.set(Mode::Refuse),
            3 => proxy.set(Mode::Stall),
            _ => proxy.set(Mode::Delay(Duration::from_millis(random.random_range(1..40)))),
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(10..400))).await;
        proxy.set(Mode::Pass);
        tokio::time::sleep(Duration::from_millis(random.random_range(0..300))).await;
    }
    pair.verdict(workload, &reader).await;
}
