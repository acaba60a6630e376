//! Commit-to-visible latency at light load: from the moment when COMMIT has returned at the source to the first look at the target
//! that shows the row, looking all the time.

use std::time::{Duration, Instant};

use sqlx::{Executor, PgConnection};

use crate::Wish;
use crate::pair::{Arena, Competitor, PATIENCE, server};
use crate::report::{Report, Row, percentile};

/// Between two commits, at least.
const PAUSE: Duration = Duration::from_millis(5);

/// Measures each competitor alone.
pub async fn run(wish: &Wish, report: &mut Report) {
    let (source, replica) = (server().await, server().await);
    let arena = Arena::new(&source, &replica, "CREATE TABLE beat (id bigint PRIMARY KEY, body text)").await;
    let mut p50 = Competitor::ALL.map(|who| Row::new("commit to visible, light load, p50", who.label(), "ms"));
    let mut p99 = Competitor::ALL.map(|who| Row::new("commit to visible, light load, p99", who.label(), "ms"));
    let mut id = 0_i64;
    for round in 0..wish.rounds {
        for index in 0..Competitor::ALL.len() {
            let index = if round.is_multiple_of(2) { index } else { Competitor::ALL.len() - 1 - index };
            let who = Competitor::ALL[index];
            let daemon = arena.start(who).await;
            let mut writer = arena.source.connection().await;
            let mut reader = arena.target(who).connection().await;
            // The first rows also wait for the start.
            for _ in 0..20 {
                sample(&mut writer, &mut reader, &mut id).await;
            }
            let mut samples = Vec::new();
            for _ in 0..wish.latency_samples {
                samples.push(sample(&mut writer, &mut reader, &mut id).await);
                tokio::time::sleep(PAUSE).await;
            }
            arena.stop(who, daemon).await;
            p50[index].add(percentile(&mut samples, 0.50));
            p99[index].add(percentile(&mut samples, 0.99));
            eprintln!("  latency, round {round}: {:>38} p50 {:.2} ms", who.label(), percentile(&mut samples, 0.50));
        }
    }
    report.extend(p50, false);
    report.extend(p99, false);
}

/// One row, from its commit to its sight, in milliseconds.
pub async fn sample(writer: &mut PgConnection, reader: &mut PgConnection, id: &mut i64) -> f64 {
    *id += 1;
    let insert = sqlx::query("INSERT INTO beat VALUES ($1, 'light load')").bind(*id);
    writer.execute(insert).await.expect("an insert");
    let committed = Instant::now();
    loop {
        let look = sqlx::query("SELECT FROM beat WHERE id = $1").bind(*id);
        if reader.fetch_optional(look).await.expect("a look").is_some() {
            return committed.elapsed().as_secs_f64() * 1e3;
        }
        assert!(committed.elapsed() < PATIENCE, "row {id} never came");
    }
}
