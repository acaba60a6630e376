//! `make soak`: storms for `SOAK_SECONDS`, each on fresh servers with a seed of its own that is printed. Every third goes over Kafka;
//! `SOAK_SEED` with `QUEUE` replays one.

use std::time::{Duration, Instant};

use super::storm::{Over, Until, seed, storm};

/// One storm's length: short enough that first copies, starts and ends are tried again and again.
const ROUND: Duration = Duration::from_secs(90);

#[tokio::test(flavor = "multi_thread")]
async fn random_kills_for_as_long_as_asked() {
    let Some(total) = std::env::var("SOAK_SECONDS").ok().map(|text| Duration::from_secs(text.parse().expect("SOAK_SECONDS")))
    else {
        return;
    };
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
