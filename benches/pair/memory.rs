//! Peak resident memory of the whole daemon with one large transaction in flight.

use std::time::Instant;

use crate::Wish;
use crate::pair::{Arena, Competitor, PATIENCE, server};
use crate::report::{Report, Row};
use crate::support::daemon::{Site, pair_configuration};
use crate::support::kafka::Kafka;
use crate::support::wait::eventually;

const BIG: &str = "CREATE TABLE big (id bigint PRIMARY KEY, body text NOT NULL)";

fn transaction(wish: &Wish) -> String {
    format!(
        "BEGIN; INSERT INTO big SELECT g, md5(g::text) || md5((g + 1)::text) FROM generate_series(1, {}) g; INSERT INTO marker VALUES (1); COMMIT",
        wish.memory_rows
    )
}

/// The same transaction with Kafka's client in the process. Peak bytes.
async fn through_kafka(wish: &Wish) -> u64 {
    let (source, replica, kafka) = (server().await, server().await, Kafka::builder().start().await);
    let (from, into) = (source.new_database().await, replica.new_database().await);
    from.execute(&format!("{BIG}; CREATE TABLE marker (n int PRIMARY KEY)")).await;
    let configuration = pair_configuration(&from.url(), &into.url(), &format!("kafka://{}", kafka.brokers()));
    let site = Site::new(&format!("{configuration}\n[queue.kafka]\nreplication_factor = 1\n"));
    site.must(&["init"]).await;
    let daemon = site.start();
    site.ready(PATIENCE).await;
    from.execute(&transaction(wish)).await;
    let marker = "SELECT count(*)::text FROM marker";
    eventually("the marker", PATIENCE, async || match into.value(marker).await.as_str() {
        "1" => Ok(()),
        n => Err(format!("{n}\n{}", site.last_log())),
    })
    .await;
    let peak = daemon.peak_rss_bytes();
    assert!(daemon.terminate().await.success(), "the daemon ends cleanly");
    let sum = "SELECT count(*)::text || ' rows, sum ' || sum(hashtextextended(t::text, 0))::text FROM big t";
    assert_eq!(into.value(sum).await, from.value(sum).await, "the round is void");
    peak
}

/// One transaction, once.
pub async fn run(wish: &Wish, report: &mut Report) {
    let (source, replica) = (server().await, server().await);
    let arena = Arena::new(&source, &replica, BIG).await;
    let name = format!("one transaction of {} rows", wish.memory_rows);
    let mut peak = Row::new(&name, Competitor::Millstream.label(), "MiB peak RSS");
    let mut rates = Competitor::ALL.map(|who| Row::new(&name, who.label(), "changes/s"));
    let daemon = arena.start(Competitor::Millstream).await.expect("a daemon");
    let begin = Instant::now();
    let insert = transaction(wish);
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
    let mut over_kafka = Row::new(&name, "Millstream over Kafka", "MiB peak RSS");
    over_kafka.add(through_kafka(wish).await as f64 / f64::from(1 << 20));
    report.extend([peak, over_kafka], false);
    report.extend(rates, true);
}
