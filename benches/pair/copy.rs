//! First copy against `pg_dump | pg_restore`, both into an empty database, primary key and one secondary index included.

use std::time::Instant;

use crate::Wish;
use crate::pair::{PATIENCE, server};
use crate::report::{Report, Row};
use crate::support::daemon::{Site, pair_configuration};
use crate::support::postgres::tool;

/// Measures both, in turn.
pub async fn run(wish: &Wish, report: &mut Report) {
    let (source, replica) = (server().await, server().await);
    let from = source.new_database().await;
    let fill = format!(
        "CREATE TABLE item (id bigint PRIMARY KEY, kind int NOT NULL, name text NOT NULL, price numeric(12, 2) NOT NULL, changed timestamptz NOT NULL); \
         INSERT INTO item SELECT g, g % 100, md5(g::text), g / 7.0, now() FROM generate_series(1, {}) g; \
         CREATE INDEX item_kind ON item (kind); VACUUM ANALYZE item",
        wish.copy_rows
    );
    for statement in fill.split("; ") {
        from.execute(statement).await;
    }
    let name = format!("copy of {} rows", wish.copy_rows);
    let mut rows = ["pg_dump into pg_restore", "Millstream"].map(|who| Row::new(&name, who, "rows/s"));
    let sum = "SELECT count(*)::text || ' ' || sum(hashtextextended(t::text, 0))::text FROM item t";
    let expected = from.value(sum).await;
    for round in 0..wish.rounds.min(3) {
        for step in 0..2 {
            let ours = (round + step) % 2 == 1;
            let into = replica.new_database().await;
            source.database("postgres").execute("CHECKPOINT").await;
            replica.database("postgres").execute("CHECKPOINT").await;
            let begin = Instant::now();
            if ours {
                let site = Site::new(&pair_configuration(&from.url(), &into.url(), "embedded:{folder}/queue"));
                site.must(&["init"]).await;
                let daemon = site.start();
                site.ready(PATIENCE).await;
                rows[1].add(f64::from(wish.copy_rows) / begin.elapsed().as_secs_f64());
                assert!(daemon.terminate().await.success(), "the daemon ends cleanly");
                site.must(&["teardown", "--yes"]).await;
            } else {
                let (port, to_port) = (source.port().to_string(), replica.port().to_string());
                let dump = tool("pg_dump")
                    .args(["-h", "127.0.0.1", "-p", &port, "-U", "postgres", "-Fc", "-Z0", &from.name])
                    .stdout(std::process::Stdio::piped())
                    .spawn();
                let mut dump = dump.expect("pg_dump");
                let stdin = dump.stdout.take().expect("a pipe");
                let restore = tool("pg_restore")
                    .args(["-h", "127.0.0.1", "-p", &to_port, "-U", "postgres", "-d", &into.name])
                    .stdin(stdin)
                    .status();
                assert!(
                    restore.expect("pg_restore").success() && dump.wait().expect("pg_dump").success(),
                    "dump and restore work"
                );
                rows[0].add(f64::from(wish.copy_rows) / begin.elapsed().as_secs_f64());
            }
            assert_eq!(into.value(sum).await, expected, "the copy differs: the round is void");
            eprintln!(
                "  copy, round {round}: {} {:.1} s",
                if ours { "Millstream" } else { "pg_dump into pg_restore" },
                begin.elapsed().as_secs_f64()
            );
        }
    }
    report.extend(rows, true);
}
