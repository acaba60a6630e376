//! Commit-to-visible latency of a live table while another one is added, against the same table alone.

use std::time::Duration;

use crate::Wish;
use crate::latency::sample;
use crate::pair::{PATIENCE, server};
use crate::report::{Report, Row, percentile};
use crate::support::compare;
use crate::support::daemon::{Site, pair_configuration};
use crate::support::wait::until;

/// Between two commits, at least.
const PAUSE: Duration = Duration::from_millis(5);
/// Commits between two looks whether the table is live.
const LOOK_EACH: u32 = 20;

/// Measures both, in turn.
pub async fn run(wish: &Wish, report: &mut Report) {
    let (source, replica) = (server().await, server().await);
    let (from, into) = (source.new_database().await, replica.new_database().await);
    from.execute("CREATE TABLE beat (id bigint PRIMARY KEY, body text)").await;
    // Carried, a new table's rows would travel by the log, and nothing would be copied.
    let configuration = pair_configuration(&from.url(), &into.url(), "embedded:{folder}/queue");
    let site = Site::new(&configuration.replacen("[source.shop]\n", "[source.shop]\nschema_changes = \"halt\"\n", 1));
    site.must(&["init"]).await;
    let daemon = site.start();
    site.ready(PATIENCE).await;
    let group = |what: &str| {
        let name = format!("commit to visible beside a table of {} rows that is added, {what}", wish.copy_rows);
        ["the live table alone", "while the other is added"].map(|who| Row::new(&name, who, "ms"))
    };
    let (mut p50, mut p99, mut longest) = (group("p50"), group("p99"), group("longest"));
    let (mut writer, mut reader) = (from.connection().await, into.connection().await);
    let mut id = 0_i64;
    for round in 0..wish.rounds.min(3) {
        for statement in [
            format!("CREATE TABLE item_{round} (id bigint PRIMARY KEY, kind int NOT NULL, name text NOT NULL)"),
            format!("INSERT INTO item_{round} SELECT g, g % 100, md5(g::text) FROM generate_series(1, {}) g", wish.copy_rows),
            format!("CREATE INDEX ON item_{round} (kind)"),
            format!("VACUUM ANALYZE item_{round}"),
            "CHECKPOINT".to_owned(),
        ] {
            from.execute(&statement).await;
        }
        let live = format!(
            "SELECT count(*)::text FROM millstream.copied_table WHERE replica = 'reports' AND table_name = 'item_{round}' AND state = 'live'"
        );
        for (index, adding) in [false, true].into_iter().enumerate() {
            if adding {
                site.must(&["init"]).await;
            }
            let mut samples = Vec::new();
            loop {
                samples.push(sample(&mut writer, &mut reader, &mut id).await);
                tokio::time::sleep(PAUSE).await;
                let count = u32::try_from(samples.len()).expect("few");
                let ends = if adding {
                    count.is_multiple_of(LOOK_EACH) && into.value(&live).await == "1"
                } else {
                    count >= wish.latency_samples
                };
                if ends {
                    break;
                }
            }
            p50[index].add(percentile(&mut samples, 0.50));
            p99[index].add(percentile(&mut samples, 0.99));
            longest[index].add(percentile(&mut samples, 1.0));
            eprintln!(
                "  added, round {round}: {} samples, adding: {adding}, p50 {:.2} ms",
                samples.len(),
                percentile(&mut samples, 0.50)
            );
        }
        until("both sides to be equal", PATIENCE, async || compare::compare(&from, &into).await.is_ok()).await;
        site.ready(PATIENCE).await;
    }
    assert!(daemon.terminate().await.success(), "the daemon ends cleanly");
    report.extend(p50, false);
    report.extend(p99, false);
    report.extend(longest, false);
}
