//! Peak resident memory of the whole daemon with one large transaction in flight.

use std::time::Instant;

use crate::Wish;
use crate::pair::{Arena, Competitor, server};
use crate::report::{Report, Row};

/// One transaction, once.
pub async fn run(wish: &Wish, report: &mut Report) {
    let (source, replica) = (server().await, server().await);
    let arena = Arena::new(&source, &replica, "CREATE TABLE big (id bigint PRIMARY KEY, body text NOT NULL)").await;
    let name = format!("one transaction of {} rows", wish.memory_rows);
    let mut peak = Row::new(&name, Competitor::Millstream.label(), "MiB peak RSS");
    let mut rates = Competitor::ALL.map(|who| Row::new(&name, who.label(), "changes/s"));
    let daemon = arena.start(Competitor::Millstream).await.expect("a daemon");
    let begin = Instant::now();
    let insert = format!(
        "BEGIN; INSERT INTO big SELECT g, md5(g::text) || md5((g + 1)::text) FROM generate_series(1, {}) g; INSERT INTO marker VALUES (1); COMMIT",
        wish.memory_rows
    );
    let mut session = arena.source.connection().await;
    sqlx::raw_sql(sqlx::AssertSqlSafe(insert)).execute(&mut session).await.expect("the transaction");
    let took = arena.visible(Competitor::Millstream, 1, begin).await;
    let bytes = daemon.peak_rss_bytes();
    peak.add(bytes as f64 / f64::from(1 << 20));
    arena.stop(Competitor::Millstream, Some(daemon)).await;
    rates[1].add(f64::from(wish.memory_rows) / took.as_secs_f64());
    for index in [0, 2] {
        let begin = Instant::now();
        arena.start(Competitor::ALL[index]).await;
        let took = arena.visible(Competitor::ALL[index], 1, begin).await;
        arena.stop(Competitor::ALL[index], None).await;
        rates[index].add(f64::from(wish.memory_rows) / took.as_secs_f64());
    }
    arena.verify(&["big", "marker"]).await;
    report.extend([peak], false);
    report.extend(rates, true);
}
