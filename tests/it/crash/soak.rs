//! `make soak`: storms for `SOAK_SECONDS`, each on fresh servers with a seed of its own that is printed, and one transaction of ten million
//! rows. Every third storm goes over Kafka; `SOAK_SEED` with `QUEUE` replays one.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::storm::{Over, Until, seed, storm};
use super::{Pair, Servers};
use crate::support::compare;
use crate::support::kafka::Kafka;
use crate::support::wait::until;

/// One storm's length: short enough that first copies, starts and ends are tried again and again.
const ROUND: Duration = Duration::from_secs(90);
/// For ten million rows to be captured and applied from the beginning, on a slow machine with a debug build.
const HUGE: Duration = Duration::from_secs(1800);
/// Of the daemon, whatever a transaction's size: what the project promises.
const MEMORY: u64 = 128 << 20;

/// `SOAK_SECONDS`, when somebody asks for a soak.
fn asked() -> Option<Duration> {
    std::env::var("SOAK_SECONDS").ok().map(|text| Duration::from_secs(text.parse().expect("SOAK_SECONDS")))
}

#[tokio::test(flavor = "multi_thread")]
async fn random_kills_for_as_long_as_asked() {
    let Some(total) = asked() else { return };
    let began = Instant::now();
    let mut kills = 0;
    let mut round = seed();
    while began.elapsed() < total {
        let over = Over::of(round);
        println!(
            "round with SOAK_SEED={round} over {over:?}, {:.0} of {} s, {kills} kills so far",
            began.elapsed().as_secs_f32(),
            total.as_secs()
        );
        kills += storm(round, Until::Elapsed(ROUND.min(total)), over).await.kills();
        round += 1;
    }
    println!("{kills} kills in {:.0} s; every round ended with both sides equal", began.elapsed().as_secs_f32());
    assert!(kills > 0);
}

/// FAULTS 17 at its size: the daemon is killed on the way, and needs no more memory than for a small one.
#[tokio::test(flavor = "multi_thread")]
async fn ten_million_rows_in_one_transaction() {
    if asked().is_none() {
        return;
    }
    // librdkafka's buffers are this process's memory as well.
    let only = std::env::var("QUEUE").ok();
    for (name, over) in [("embedded", Over::Embedded), ("kafka", Over::Kafka)] {
        if only.as_deref().is_none_or(|only| only == name) {
            huge_transaction(over).await;
        }
    }
}

async fn huge_transaction(over: Over) {
    let mut random = StdRng::seed_from_u64(seed());
    let servers = Servers::start().await;
    let kafka = if over == Over::Kafka { Some(Kafka::builder().start().await) } else { None };
    let pair = match &kafka {
        Some(kafka) => Pair::over_kafka(&servers, kafka).await,
        None => Pair::with(&servers, false, &[]).await,
    };
    pair.source.execute("CREATE TABLE huge (id int PRIMARY KEY, name text NOT NULL)").await;
    pair.site.must(&["init"]).await;
    let mut daemon = pair.site.start();
    pair.site.ready(super::CATCH_UP).await;
    let began = Instant::now();
    pair.source.execute("INSERT INTO huge SELECT i, 'name ' || i FROM generate_series(1, 10000000) i").await;
    println!("committed in {:.0} s", began.elapsed().as_secs_f32());
    let mut peak = 0;
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(random.random_range(1_000..30_000))).await;
        let seen = pair.replica.value("SELECT count(*) FROM huge").await;
        assert!(["0", "10000000"].contains(&seen.as_str()), "{seen} rows of a transaction");
        peak = peak.max(daemon.kill());
        daemon = pair.site.start();
    }
    // Looked for in another table: each look at this one reads what is not committed yet.
    pair.source.execute("INSERT INTO marker VALUES (1)").await;
    until("the transaction on the replica", HUGE, async || pair.replica.value("SELECT count(*) FROM marker").await == "1").await;
    peak = peak.max(daemon.peak_rss_bytes());
    let compared = compare::equal(&pair.source, &pair.replica, HUGE).await;
    println!(
        "{over:?}: {} rows equal after {:.0} s and 5 kills; {} MiB",
        compared.rows,
        began.elapsed().as_secs_f32(),
        peak >> 20
    );
    assert!(compared.rows >= 10_000_000 && peak < MEMORY, "{peak} bytes of memory");
    assert_eq!(daemon.terminate().await.code(), Some(0));
}
