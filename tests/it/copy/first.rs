use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::load::{ROWS, SCHEMA, Writers};
use crate::support::compare;
use crate::support::daemon::{Site, pair_configuration};
use crate::support::postgres::{PgDatabase, shared, shared_replica};
use crate::support::wait::{LONG, until};

pub(super) const COPIED: Duration = Duration::from_secs(120);

/// A pair whose copies are many small chunks.
pub(super) fn site(source: &PgDatabase<'_>, replica: &PgDatabase<'_>, more: &str) -> Site {
    let configuration = pair_configuration(&source.url(), &replica.url(), "embedded:{folder}/queue");
    let settings =
        format!("tables = [\"public.*\"]\ncopy_chunk_rows = 40\ncopy_workers = 4\nheartbeat_interval = \"200ms\"\n{more}");
    Site::new(&configuration.replace("tables = [\"public.*\"]", &settings))
}

pub(super) async fn databases() -> (PgDatabase<'static>, PgDatabase<'static>) {
    (shared().await.new_database().await, shared_replica().await.new_database().await)
}

pub(super) async fn live(replica: &PgDatabase<'_>) -> bool {
    replica.query("SELECT 1 FROM millstream.copied_table WHERE state <> 'live'").await.is_ok_and(|rows| rows.is_empty())
}

const KEYS: &str = "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1";
const CONSTRAINTS: &str = "SELECT conrelid::regclass::text || ' ' || conname || ' ' || pg_get_constraintdef(oid) FROM pg_constraint \
     WHERE connamespace = 'public'::regnamespace AND contype <> 'n' ORDER BY 1"; // 'n': NOT NULL, a constraint from PostgreSQL 18 on

pub(super) async fn same_keys(source: &PgDatabase<'_>, replica: &PgDatabase<'_>) {
    for sql in [KEYS, CONSTRAINTS] {
        assert_eq!(source.query(sql).await.unwrap(), replica.query(sql).await.unwrap());
    }
}

/// FAULTS 34. `COPY_ROUNDS` asks for more, `COPY_SEED` replays one.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_under_concurrent_writers_is_exact() {
    let rounds: u64 = std::env::var("COPY_ROUNDS").map_or(3, |text| text.parse().unwrap());
    let first: u64 = std::env::var("COPY_SEED").map_or_else(|_| rand::random_range(1..1_000_000), |text| text.parse().unwrap());
    for seed in first..first + rounds {
        println!("COPY_SEED={seed}");
        let (source, replica) = databases().await;
        source.execute(SCHEMA).await;
        source.execute(ROWS).await;
        let writers = Writers::start(&source.server.options(&source.name), seed, 4);
        let site = site(&source, &replica, "");
        site.must(&["init"]).await;
        let daemon = site.start();
        until("the tables to be live", COPIED, async || live(&replica).await).await;
        let done = writers.stop().await;
        compare::equal(&source, &replica, COPIED).await;
        same_keys(&source, &replica).await;
        assert!(done > 50, "only {done} transactions");
        daemon.terminate().await;
        site.must(&["teardown", "--yes"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_killed_again_and_again_goes_on_where_it_was() {
    let seed: u64 = std::env::var("COPY_SEED").map_or_else(|_| rand::random_range(1..1_000_000), |text| text.parse().unwrap());
    println!("COPY_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let (source, replica) = databases().await;
    source.execute(SCHEMA).await;
    source.execute(ROWS).await;
    let writers = Writers::start(&source.server.options(&source.name), seed, 3);
    let site = site(&source, &replica, "copy_max_bytes_per_second = \"400KiB\"");
    site.must(&["init"]).await;
    let mut loaded = 0_u64;
    for _ in 0..12 {
        let daemon = site.start();
        tokio::time::sleep(Duration::from_millis(random.random_range(50..900))).await;
        daemon.kill();
        if live(&replica).await {
            break;
        }
        let restarts = site.all_logs().matches("first copy starts again").count();
        let now = replica.value("SELECT count(*) FROM millstream.copy_chunk WHERE state = 'loaded'").await.parse().unwrap();
        assert!(now >= loaded || restarts > 0, "{now} chunks are loaded, {loaded} were");
        loaded = now;
    }
    let daemon = site.start();
    until("the tables to be live", COPIED, async || live(&replica).await).await;
    writers.stop().await;
    compare::equal(&source, &replica, COPIED).await;
    same_keys(&source, &replica).await;
    daemon.terminate().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_began_before_the_copy_is_waited_for_and_named() {
    let (source, replica) = databases().await;
    source
        .execute("CREATE TABLE a (id int PRIMARY KEY, v text); INSERT INTO a SELECT n, 'x' FROM generate_series(1, 200) n")
        .await;
    let site = site(&source, &replica, "");
    site.must(&["init"]).await;
    let mut open = source.connection().await;
    crate::support::sql::query(&mut open, "BEGIN; UPDATE a SET v = 'late' WHERE id = 5 /* the late one */").await.unwrap();
    let daemon = site.start();
    let named = async || {
        let status = site.status().await.unwrap_or_default();
        let phase = status["replicas"]["reports"]["copy"]["phase"].as_str().unwrap_or_default().to_owned();
        phase.contains("waiting for transactions") && phase.contains("the late one")
    };
    until("the status to name the transaction", LONG, named).await;
    assert_eq!(replica.value("SELECT count(*) FROM a").await, "0", "no chunk is read before it has ended");
    crate::support::sql::query(&mut open, "COMMIT").await.unwrap();
    compare::equal(&source, &replica, LONG).await;
    daemon.terminate().await;
}

/// A snapshot does not list the newest transactions in progress: with nobody else writing, the one that wrote before its table was published lay
/// beyond the snapshot's end, was not waited for, and its rows were lost.
#[tokio::test(flavor = "multi_thread")]
async fn the_newest_transaction_in_progress_is_waited_for_as_well() {
    use millstream::capture::snapshot::TableReader;
    let server = crate::support::postgres::PgServer::builder().set("autovacuum", "off").start().await;
    let source = server.new_database().await;
    source.execute("CREATE TABLE a (id int PRIMARY KEY)").await;
    let mut open = source.connection().await;
    crate::support::sql::query(&mut open, "BEGIN; INSERT INTO a VALUES (1)").await.unwrap();
    let mut reader = TableReader::connect(&source.connect()).await.unwrap();
    assert!(reader.current_snapshot().await.unwrap().in_progress.is_empty(), "this is the trap");
    assert_eq!(reader.barrier_snapshot().await.unwrap().in_progress.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_a_later_init_adds_are_copied_while_the_others_stay_live() {
    let (source, replica) = databases().await;
    source
        .execute("CREATE TABLE a (id int PRIMARY KEY, v text); INSERT INTO a SELECT n, 'x' FROM generate_series(1, 200) n")
        .await;
    let site = site(&source, &replica, "");
    site.must(&["init"]).await;
    let daemon = site.start();
    compare::equal(&source, &replica, LONG).await;
    source
        .execute("CREATE TABLE b (id int PRIMARY KEY, v text); INSERT INTO b SELECT n, 'x' FROM generate_series(1, 500) n")
        .await;
    site.must(&["init"]).await;
    source.execute("UPDATE b SET v = 'y' WHERE id % 2 = 0; UPDATE a SET v = 'y'; DELETE FROM b WHERE id % 5 = 0").await;
    compare::equal(&source, &replica, LONG).await;
    assert_eq!(daemon.exited(), None);
    let halts = daemon.log();
    assert!(!halts.contains("apply halted"), "{halts}");
    daemon.terminate().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_changes_while_it_is_copied_is_copied_again() {
    let (source, replica) = databases().await;
    source
        .execute(
            "CREATE TABLE a (id int PRIMARY KEY, v varchar(10)); INSERT INTO a SELECT n, 'x' FROM generate_series(1, 2000) n",
        )
        .await;
    let site = site(&source, &replica, "copy_max_bytes_per_second = \"2KiB\"");
    site.must(&["init"]).await;
    let daemon = site.start();
    let some = "SELECT count(*) > 0 FROM millstream.copy_chunk WHERE state = 'loaded'";
    until("a chunk to be loaded", LONG, async || replica.value(some).await == "t").await;
    replica.execute("ALTER TABLE a ALTER v TYPE varchar(20)").await;
    source.execute("ALTER TABLE a ALTER v TYPE varchar(20); UPDATE a SET v = 'longer than ten' WHERE id % 3 = 0").await;
    daemon.terminate().await;
    site.configure(&std::fs::read_to_string(site.configuration()).unwrap().replace("\"2KiB\"", "\"1GiB\""));
    let daemon = site.start();
    until("the tables to be live", COPIED, async || live(&replica).await).await;
    compare::equal(&source, &replica, LONG).await;
    assert!(site.all_logs().contains("starts again"));
    daemon.terminate().await;
}

/// A row moves into a chunk that is loaded from one that is not, without the wide value that the move did not touch.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_moves_without_its_wide_value_is_read_again() {
    let (source, replica) = databases().await;
    source.execute("CREATE TABLE a (id int PRIMARY KEY, wide text); ALTER TABLE a ALTER wide SET STORAGE EXTERNAL").await;
    source.execute("INSERT INTO a SELECT n, repeat(md5(n::text), 90) FROM generate_series(1, 400) n").await;
    // Without it the table, whose values are stored aside, is taken for so small that its last chunk is begun with its first.
    source.execute("ANALYZE a").await;
    let site = site(&source, &replica, "copy_max_bytes_per_second = \"64KiB\"");
    site.must(&["init"]).await;
    let daemon = site.start();
    // The one that the rows move into.
    let some = "SELECT count(*) > 0 FROM millstream.copy_chunk WHERE state = 'loaded' AND lower IS NULL";
    until("the first chunk to be loaded", LONG, async || {
        replica.query(some).await.is_ok_and(|rows| rows[0][0].as_deref() == Some("t"))
    })
    .await;
    source.execute("UPDATE a SET id = -id WHERE id > 390").await;
    source.execute("UPDATE a SET id = -id WHERE id = -395; DELETE FROM a WHERE id = -396").await;
    until("the tables to be live", COPIED, async || live(&replica).await).await;
    compare::equal(&source, &replica, LONG).await;
    assert!(site.all_logs().contains("are read again"), "{}", site.all_logs());
    daemon.terminate().await;
}

/// Chunks whose rows lie behind a commit of the replica: table, number, snapshot that they were read in, when.
const LOADED: &str =
    "SELECT table_name, chunk, snapshot, loaded_at FROM millstream.copy_chunk WHERE state = 'loaded' ORDER BY 1, 2";

/// What passes the limit is counted in pieces of 128 KiB, and a chunk's last piece, if smaller, is not counted: chunks here are whole pieces.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_keeps_to_its_rate_tells_how_far_it_is_and_starts_no_finished_chunk_again() {
    const LIMIT: f64 = (2 << 20) as f64;
    let (source, replica) = databases().await;
    source.execute("CREATE TABLE a (id int PRIMARY KEY, wide text); ALTER TABLE a ALTER wide SET STORAGE EXTERNAL").await;
    // 16 KiB a row, 8 rows a piece, 40 rows a chunk: 640 KiB a chunk, 12.5 MiB in all.
    source.execute("INSERT INTO a SELECT n, repeat(md5(n::text), 512) FROM generate_series(1, 800) n; ANALYZE a").await;
    let site = site(&source, &replica, "copy_max_bytes_per_second = \"2MiB\"");
    site.must(&["init"]).await;
    let daemon = site.start();

    let mut seen: Vec<(std::time::Instant, f64, f64)> = Vec::new();
    let mut told_eta = false;
    until("half of it to be loaded", COPIED, async || {
        let status = site.status().await.unwrap_or_default();
        let copy = &status["replicas"]["reports"]["copy"];
        if copy["phase"] != "loading" {
            return false;
        }
        let (rows, bytes) = (copy["rows"].as_f64().expect("rows"), copy["bytes"].as_f64().expect("bytes"));
        if let Some((_, rows_before, bytes_before)) = seen.last() {
            assert!(rows >= *rows_before && bytes >= *bytes_before, "{copy}");
        }
        assert_eq!((&copy["tables"], &copy["rows_estimated"]), (&1.into(), &800.into()), "{copy}");
        told_eta |= copy["eta_seconds"].as_f64().is_some_and(|left| left > 0.0 && left < 60.0);
        seen.push((std::time::Instant::now(), rows, bytes));
        rows >= 400.0
    })
    .await;
    assert!(told_eta, "no time that is left was told");
    // Between two looks at it, so that starting does not count; four loaders may each have a piece on its way.
    let ((began, _, from), (ended, rows, to)) = (seen[0], seen[seen.len() - 1]);
    let (bytes, seconds) = (to - from, (ended - began).as_secs_f64());
    assert!(rows < 800.0 && bytes > (2 << 20) as f64, "not looked at while it was copied: {seen:?}");
    let most = LIMIT * seconds + (5 * (128 << 10)) as f64;
    assert!(bytes < most, "{bytes} bytes in {seconds:.2} s, limit {LIMIT} bytes/s");

    daemon.kill();
    let before = replica.query(LOADED).await.expect("chunks");
    assert!(!before.is_empty(), "no chunk is loaded");
    // Built once, when the chunks are loaded; until then that is no misfit.
    let keys = "SELECT count(*) FROM pg_constraint WHERE conrelid = 'a'::regclass AND contype = 'p'";
    assert_eq!(replica.value(keys).await, "0");
    let checked = site.run(&["check"]).await;
    assert!(!checked.stdout.contains("table_fit") && !checked.stdout.contains("primary key"), "{}", checked.stdout);
    let daemon = site.start();
    let more = async || replica.query(LOADED).await.is_ok_and(|now| now.len() > before.len());
    until("another chunk to be loaded", COPIED, more).await;
    let after = replica.query(LOADED).await.expect("chunks");
    for chunk in &before {
        assert!(after.contains(chunk), "{chunk:?} was loaded again: {after:?}");
    }
    assert!(!site.all_logs().contains("first copy starts again"), "{}", site.all_logs());
    daemon.kill();
    site.configure(&std::fs::read_to_string(site.configuration()).unwrap().replace("\"2MiB\"", "\"1GiB\""));
    let daemon = site.start();
    compare::equal(&source, &replica, COPIED).await;
    site.ready(COPIED).await;
    assert_eq!(replica.value(keys).await, "1");
    daemon.terminate().await;
}

/// The ledger forgot it at once, and the replica halted at what the log still held of it, with no remedy that worked.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_taken_out_before_it_is_copied_leaves_and_the_others_go_on() {
    let (source, replica) = databases().await;
    source
        .execute("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY); INSERT INTO a SELECT generate_series(1, 200)")
        .await;
    let site = site(&source, &replica, "");
    site.must(&["init"]).await;
    // A change to it is in the log before the publication lets it go: capture runs, the copy waits for a transaction.
    let mut open = source.connection().await;
    crate::support::sql::query(&mut open, "BEGIN; INSERT INTO b VALUES (1000)").await.unwrap();
    let daemon = site.start();
    source.execute("INSERT INTO b VALUES (1); DELETE FROM b WHERE id = 1").await;
    let waits = async || site.status().await.unwrap_or_default().to_string().contains("waiting for transactions");
    until("the copy to wait", LONG, waits).await;
    daemon.terminate().await;
    let with = std::fs::read_to_string(site.configuration()).unwrap();
    site.configure(&with.replace("[\"public.*\"]", "[\"public.*\", \"!public.b\"]"));
    crate::support::sql::query(&mut open, "COMMIT").await.unwrap();
    site.must(&["init"]).await;
    assert_eq!(replica.value("SELECT state FROM millstream.copied_table WHERE table_name = 'b'").await, "leaving");
    let daemon = site.start();
    let rows = async || replica.query("SELECT count(*) FROM a").await.is_ok_and(|rows| rows[0][0].as_deref() == Some("200"));
    until("the other table to be copied", LONG, rows).await;
    until("the tables to be live", LONG, async || {
        replica.value("SELECT count(*) FROM millstream.copied_table WHERE state = 'live'").await == "1"
    })
    .await;
    site.must(&["init"]).await;
    daemon.terminate().await;
    assert_eq!(replica.value("SELECT string_agg(table_name, ',') FROM millstream.copied_table").await, "a");
    assert_eq!(replica.value("SELECT count(*) FROM b").await, "0");
    assert!(!site.all_logs().contains("apply halted"), "{}", site.all_logs());
}

/// An `init` that was killed between the ledger and the publication stopped the tables that were live.
#[tokio::test(flavor = "multi_thread")]
async fn a_pending_table_that_is_not_published_does_not_stop_the_others() {
    let (source, replica) = databases().await;
    source.execute("CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1)").await;
    let site = site(&source, &replica, "");
    site.must(&["init"]).await;
    replica
        .execute("INSERT INTO millstream.copied_table (replica, table_schema, table_name, state) VALUES ('reports', 'public', 'later', 'pending')")
        .await;
    let daemon = site.start();
    until("the row to come", LONG, async || replica.value("SELECT count(*) FROM a").await == "1").await;
    source.execute("INSERT INTO a VALUES (2)").await;
    until("the next row to come", LONG, async || replica.value("SELECT count(*) FROM a").await == "2").await;
    assert!(daemon.log().contains("not published yet") && !daemon.log().contains("apply halted"), "{}", daemon.log());
    daemon.terminate().await;
}

/// A promoted server may lack what was read from the one before it.
#[tokio::test(flavor = "multi_thread")]
async fn chunks_of_another_timeline_are_read_again_and_another_cluster_halts() {
    let (source, replica) = databases().await;
    source.execute("CREATE TABLE a (id int PRIMARY KEY, v text); INSERT INTO a SELECT n, repeat('x', 500) FROM generate_series(1, 400) n").await;
    let site = site(&source, &replica, "copy_max_bytes_per_second = \"8KiB\"");
    site.must(&["init"]).await;
    let daemon = site.start();
    let some = "SELECT count(*) > 0 FROM millstream.copy_chunk WHERE state = 'loaded'";
    until("a chunk to be loaded", LONG, async || replica.value(some).await == "t").await;
    daemon.terminate().await;
    replica.execute("UPDATE millstream.copied_table SET timeline = 77").await;
    site.configure(&std::fs::read_to_string(site.configuration()).unwrap().replace("\"8KiB\"", "\"1GiB\""));
    let known = replica.value("SELECT history->>'system_identifier' FROM millstream.replica").await;
    replica.execute("UPDATE millstream.replica SET history = jsonb_set(history, '{system_identifier}', '\"5\"')").await;
    let daemon = site.start();
    until("the halt", LONG, async || daemon.log().contains("history_changed")).await;
    daemon.terminate().await;
    replica
        .execute(&format!("UPDATE millstream.replica SET history = jsonb_set(history, '{{system_identifier}}', '\"{known}\"')"))
        .await;
    let daemon = site.start();
    compare::equal(&source, &replica, LONG).await;
    assert!(site.all_logs().contains("first copy starts again"), "{}", site.all_logs());
    daemon.terminate().await;
}

/// What an operator, and a load balancer, see of it.
#[tokio::test(flavor = "multi_thread")]
async fn while_it_runs_readyz_is_red_and_status_says_how_far_it_is() {
    let (source, replica) = databases().await;
    source
        .execute(
            "CREATE TABLE a (id int PRIMARY KEY, note text); \
             INSERT INTO a SELECT n, repeat('x', 20) FROM generate_series(1, 1000) n; ANALYZE a",
        )
        .await;
    // Chunks of 1.2 KiB: they go by one or two a second.
    let site = site(&source, &replica, "copy_max_bytes_per_second = \"2KiB\"");
    site.must(&["init"]).await;
    let daemon = site.start();
    let copy = async || site.status().await.map(|status| status["replicas"]["reports"]["copy"].clone()).unwrap_or_default();
    until("some chunks", LONG, async || copy().await["rows"].as_u64().is_some_and(|rows| rows >= 80)).await;
    let shown = copy().await;
    assert_eq!((&shown["tables"], &shown["tables_done"]), (&1.into(), &0.into()), "{shown}");
    assert!(shown["rows_estimated"].as_u64() == Some(1000) && shown["bytes"].as_u64().is_some_and(|n| n > 0), "{shown}");
    until("an estimate of the time left", LONG, async || copy().await["eta_seconds"].as_f64().is_some_and(|eta| eta > 0.0)).await;
    let (code, why) = site.get("/readyz").await.expect("an answer");
    assert!(code == 503 && why.contains("reports is copying"), "{code} {why}");
    assert_eq!(site.metric("millstream_replica_live").await, Some(0.0));
    assert!(site.metric("millstream_copy_rows").await.is_some_and(|rows| (80.0..1000.0).contains(&rows)));
    let page = site.run(&["status"]).await;
    assert_eq!(page.code, Some(1), "{}", page.stdout);
    assert!(page.stdout.contains("of about 1,000 rows") && page.stdout.contains("copying"), "{}", page.stdout);

    // Live changes meanwhile wait for nothing but the copy's end.
    source.execute("UPDATE a SET note = 'changed' WHERE id % 100 = 0").await;
    daemon.terminate().await;
    site.configure(&std::fs::read_to_string(site.configuration()).unwrap().replace("\"2KiB\"", "\"1GiB\""));
    let _daemon = site.start();
    site.ready(COPIED).await;
    assert!(copy().await.is_null());
    assert_eq!(site.metric("millstream_replica_live").await, Some(1.0));
    assert_eq!(site.run(&["status"]).await.code, Some(0));
    compare::equal(&source, &replica, LONG).await;
}

/// It stayed HALTED above a copy that went on for hours.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_goes_on_after_a_halt_is_halted_no_more() {
    let (source, replica) = databases().await;
    source
        .execute(
            "CREATE TABLE a (id int PRIMARY KEY, note text); \
             INSERT INTO a SELECT n, repeat('x', 20) FROM generate_series(1, 2000) n; ANALYZE a",
        )
        .await;
    replica.execute("CREATE TABLE a (id int PRIMARY KEY, note text CONSTRAINT none CHECK (note <> repeat('x', 20)))").await;
    let site = site(&source, &replica, "copy_max_bytes_per_second = \"2KiB\"");
    site.must(&["init"]).await;
    let daemon = site.start();
    let reports = async || site.status().await.map(|status| status["replicas"]["reports"].clone()).unwrap_or_default();
    until("it to halt", LONG, async || reports().await["halt"]["code"] == "replica_constraint").await;
    replica.execute("ALTER TABLE a DROP CONSTRAINT none").await;
    until("it to be seen copying", COPIED, async || {
        let reports = reports().await;
        reports["state"] == "copying" && reports["halt"].is_null() && reports["error"].is_null()
    })
    .await;
    assert_eq!(reports().await["copy"]["phase"], "loading", "seen while it loads");
    daemon.terminate().await;
    site.configure(&std::fs::read_to_string(site.configuration()).unwrap().replace("\"2KiB\"", "\"1GiB\""));
    let _daemon = site.start();
    compare::equal(&source, &replica, COPIED).await;
}
