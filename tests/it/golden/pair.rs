//! A pair as a released version left it: records queued, the ledger of that version on the replica. Every later version goes on with it.
//!
//! `tests/golden/v1/pair/queue/` is the embedded queue's folder, `replica.sql` the replica's database as `pg_dump` wrote it while the replica
//! was paused, `expected.json` what each table holds once everything queued is applied. Made by `cargo test --test it -- --ignored
//! write_the_pair`, never changed; a later format gets a folder of its own beside it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::corpus;
use crate::support::daemon::{Site, pair_configuration};
use crate::support::postgres::{PgDatabase, free_port, shared, shared_replica, tool};
use crate::support::wait::{LONG, eventually, until};
use crate::support::{process, sql};

/// One of each kind that rows and records come in.
const BEFORE: &str = "CREATE TABLE items (id int PRIMARY KEY, name text NOT NULL, price numeric(12,2), body text, tags int[], extra jsonb, raw bytea); \
    ALTER TABLE items ALTER COLUMN body SET STORAGE EXTERNAL; \
    CREATE TABLE moved (id int PRIMARY KEY, note text); \
    CREATE TABLE keyless (n int, note text); ALTER TABLE keyless REPLICA IDENTITY FULL; \
    CREATE TABLE emptied (id int PRIMARY KEY); \
    CREATE TABLE \"Ört\" (\"ключ\" uuid PRIMARY KEY, \"a\"\"b\" boolean); \
    INSERT INTO items SELECT n, 'item ' || n, n / 4.0, repeat(n::text, 3000), ARRAY[n, NULL], jsonb_build_object('n', n), \
        decode(lpad(to_hex(n), 4, '0'), 'hex') FROM generate_series(1, 5) n; \
    INSERT INTO moved SELECT n, 'before' FROM generate_series(1, 20) n; \
    INSERT INTO keyless SELECT n % 3, 'same' FROM generate_series(1, 12) n; \
    INSERT INTO emptied SELECT generate_series(1, 5); \
    INSERT INTO \"Ört\" VALUES ('00000000-0000-0000-0000-000000000001', true)";

/// Queued while the replica stood: each is a transaction.
const QUEUED: [&str; 9] = [
    "UPDATE items SET name = 'new name' WHERE id <= 3",
    "UPDATE moved SET id = id + 100; DELETE FROM moved WHERE id = 107; INSERT INTO moved VALUES (7, 'after')",
    "DELETE FROM keyless WHERE ctid IN (SELECT ctid FROM keyless WHERE n = 1 LIMIT 2); UPDATE keyless SET note = NULL WHERE n = 2",
    "TRUNCATE emptied; INSERT INTO emptied VALUES (9)",
    "ALTER TABLE items ADD COLUMN stock int NOT NULL DEFAULT 7; ALTER TABLE items RENAME COLUMN raw TO bytes; UPDATE items SET stock = 8 WHERE id = 2",
    "INSERT INTO moved SELECT n, md5(n::text) FROM generate_series(1000, 7000) n",
    "BEGIN; INSERT INTO items (id, name) VALUES (50, 'kept'); SAVEPOINT s; INSERT INTO items (id, name) VALUES (51, 'undone'); ROLLBACK TO s; COMMIT",
    "CREATE TABLE late (id int PRIMARY KEY, v text); INSERT INTO late VALUES (1, 'x')",
    "ALTER TABLE moved DROP COLUMN note; INSERT INTO \"Ört\" VALUES ('00000000-0000-0000-0000-000000000002', NULL)",
];

const TABLES: [&str; 6] = ["items", "moved", "keyless", "emptied", "\"Ört\"", "late"];

async fn content(database: &PgDatabase<'_>) -> Value {
    let mut found = serde_json::Map::new();
    for table in TABLES {
        let sum = format!(
            "SELECT count(*) || ' rows ' || md5(coalesce(string_agg(t::text, E'\\n' ORDER BY t::text COLLATE \"C\"), '')) FROM public.{table} t"
        );
        let value = database.query(&sum).await.map_or_else(|e| e.to_string(), |rows| rows[0][0].clone().unwrap_or_default());
        found.insert(table.to_owned(), value.into());
    }
    found.into()
}

/// Without the files that a running daemon locks.
fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if target.extension().is_some_and(|e| e == "lock") {
            continue;
        }
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn folder() -> PathBuf {
    corpus().join("pair")
}

/// FAULTS 36 and 28: today's daemon brings the ledger to its own version, applies what the older one had queued, and writes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_pair_of_version_1_goes_on_where_it_was() {
    let replica = shared_replica().await.new_database().await;
    let dump = std::fs::read_to_string(folder().join("replica.sql")).unwrap();
    sql::query(&mut replica.connection().await, &dump).await.expect("the replica's dump");
    let ledger = "SELECT max(version)::text FROM millstream.schema_version";
    assert_eq!(replica.value(ledger).await, "5", "the ledger of that version");
    // The source of that pair is gone; what it sent is in the queue.
    let source = format!("postgres://millstream@127.0.0.1:{}/gone?sslmode=disable", free_port());
    let site = Site::new(&pair_configuration(&source, &replica.url(), "embedded:{folder}/queue"));
    copy_folder(&folder().join("queue"), &site.folder().join("queue"));
    let daemon = site.start();
    until("the pause to be kept", LONG, async || site.run(&["status"]).await.stdout.contains("PAUSED")).await;
    site.must(&["resume", "reports"]).await;
    let expected: Value = serde_json::from_slice(&std::fs::read(folder().join("expected.json")).unwrap()).unwrap();
    eventually("what was queued", Duration::from_secs(60), async || {
        let found = content(&replica).await;
        if found == expected { Ok(()) } else { Err(format!("{found:#}\n{}", site.last_log())) }
    })
    .await;
    let newest = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations/postgres")).unwrap();
    let newest = newest.filter_map(|file| file.unwrap().file_name().to_str()?.split('_').next()?.parse::<u32>().ok()).max();
    assert_eq!(replica.value(ledger).await, newest.unwrap().to_string());
    assert_eq!(daemon.terminate().await.code(), Some(0));
    assert!(!site.all_logs().contains("panicked"));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "writes the pair of the corpus, if it is missing"]
async fn write_the_pair() {
    if folder().exists() {
        return;
    }
    let (source, replica) = (shared().await.new_database().await, shared_replica().await.new_database().await);
    source.execute(BEFORE).await;
    let site = Site::pair(&source, &replica);
    site.must(&["init"]).await;
    let daemon = site.start();
    site.ready(LONG).await;
    site.must(&["pause", "reports"]).await;
    for transaction in QUEUED {
        source.execute(transaction).await;
    }
    let end = source.value("SELECT pg_current_wal_lsn()::text").await;
    until("all of it to be captured", LONG, async || {
        let confirmed = format!(
            "SELECT (confirmed_flush_lsn >= '{end}')::text FROM pg_replication_slots WHERE database = current_database()"
        );
        source.value(&confirmed).await == "true"
    })
    .await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
    copy_folder(&site.folder().join("queue"), &folder().join("queue"));
    let mut dump = tool("pg_dump");
    let server = replica.server;
    dump.args(["--inserts", "--no-privileges", "-U", "postgres", "-h"]).arg(server.folder()).args([
        "-p",
        &server.port().to_string(),
        &replica.name,
    ]);
    let text = process::run(&mut dump);
    // What psql understands and a server does not.
    let text: String = text.lines().filter(|line| !line.starts_with('\\')).flat_map(|line| [line, "\n"]).collect();
    std::fs::write(folder().join("replica.sql"), text).unwrap();
    std::fs::write(folder().join("expected.json"), serde_json::to_string_pretty(&content(&source).await).unwrap() + "\n")
        .unwrap();
}
