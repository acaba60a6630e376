//! Live tables that are copied again: their readers see the old content until the new one is there whole, and the others go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::first::{COPIED, databases, live, same_keys, site as any_site};
use super::load::{ROWS, SCHEMA, Writers};
use crate::support::compare;
use crate::support::daemon::Site;
use crate::support::postgres::PgDatabase;
use crate::support::sql::{connect, query};
use crate::support::wait::{LONG, until};

/// Chunks of 1.2 KiB: they go by one or two a second.
const SLOWLY: &str = "copy_max_bytes_per_second = \"2KiB\"";
const FAST: &str = "copy_max_bytes_per_second = \"1GiB\"";
/// Live tables that were not held up show a change within this time, on a machine that does three things at once.
const SOON: Duration = Duration::from_secs(5);

const A: &str =
    "CREATE TABLE a (id int PRIMARY KEY, v bigint NOT NULL); INSERT INTO a SELECT n, 1000 FROM generate_series(1, 20) n";
const B: &str = "CREATE TABLE b (id int PRIMARY KEY, v bigint NOT NULL, note text, a int REFERENCES a ON DELETE CASCADE); \
    INSERT INTO b SELECT n, 0, repeat('x', 20), 1 + n % 20 FROM generate_series(1, 1000) n; CREATE INDEX b_note ON b (note)";
const C: &str = "CREATE TABLE c (id int PRIMARY KEY, b int REFERENCES b ON DELETE CASCADE); INSERT INTO c SELECT n, n FROM generate_series(1, 30) n";

/// Before PostgreSQL 15 only a superuser may keep foreign keys from being enforced, and with them a table from being copied again.
fn site(source: &PgDatabase<'_>, replica: &PgDatabase<'_>, more: &str) -> Site {
    let site = any_site(source, replica, more);
    if replica.server.major_version() < 15 {
        let whole = std::fs::read_to_string(site.configuration()).unwrap();
        site.configure(&whole.replace(&replica.url(), &replica.url().replacen("millstream@", "postgres@", 1)));
    }
    site
}

fn configure(site: &Site, from: &str, to: &str) {
    site.configure(&std::fs::read_to_string(site.configuration()).unwrap().replace(from, to));
}

async fn recopy(site: &Site, table: &str) {
    let said = site.must(&["table", "recopy", "reports", table]).await;
    assert!(said.contains(&format!("{table} is copied again on replica reports")), "{said}");
}

async fn state_of(replica: &PgDatabase<'_>, table: &str) -> String {
    let sql = format!("SELECT replica || ' ' || state FROM millstream.copied_table WHERE table_name = '{table}'");
    replica.query(&sql).await.ok().and_then(|rows| rows.first()?[0].clone()).unwrap_or_default()
}

/// One ledger row, nobody's shadow, nothing asked for.
async fn done(replica: &PgDatabase<'_>) {
    until("the tables to be one with the others", COPIED, async || {
        let asked =
            "SELECT (SELECT count(*) FROM millstream.replica) + (SELECT count(recopy_asked_at) FROM millstream.copied_table)";
        replica.value(asked).await == "1" && live(replica).await
    })
    .await;
    assert_eq!(replica.value("SELECT count(*) FROM pg_class WHERE relname LIKE 'recopy%'").await, "0");
}

async fn chunk_loaded(replica: &PgDatabase<'_>) {
    let some = "SELECT count(*) > 0 FROM millstream.copy_chunk WHERE replica = 'reports#added' AND state = 'loaded'";
    until("a chunk to be loaded", LONG, async || replica.value(some).await == "t").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_see_the_old_content_until_the_new_one_is_there_and_what_hangs_on_the_table_stays() {
    let (source, replica) = databases().await;
    source.execute(&format!("{A}; {B}; {C}")).await;
    let site = site(&source, &replica, FAST);
    site.must(&["init"]).await;
    let daemon = site.start();
    compare::equal(&source, &replica, COPIED).await;
    done(&replica).await;
    daemon.terminate().await;
    configure(&site, FAST, SLOWLY);
    replica
        .execute(
            "CREATE VIEW seen AS SELECT id, note FROM b; COMMENT ON TABLE b IS 'ours'; CREATE ROLE reader_of_b; GRANT SELECT ON b TO reader_of_b; \
             CREATE INDEX b_v ON b (v); ALTER TABLE b ADD COLUMN mine text DEFAULT 'new'; UPDATE b SET mine = 'mine ' || id; \
             SET session_replication_role = replica; UPDATE b SET note = 'damaged' WHERE id > 500; DELETE FROM b WHERE id <= 10; \
             INSERT INTO b VALUES (5000, 1, 'nobody''s', 1); RESET session_replication_role",
        )
        .await;
    let hangs = "SELECT b::regclass::oid || ' ' || relacl::text || ' ' || obj_description(oid) || (SELECT string_agg(oid::text, ',' ORDER BY oid) \
         FROM pg_constraint WHERE 'b'::regclass IN (conrelid, confrelid)) FROM pg_class, (VALUES ('b')) v (b) WHERE oid = 'b'::regclass";
    let before = replica.value(hangs).await;
    let content = "SELECT md5(string_agg(b::text, ',' ORDER BY id)) || (SELECT count(*) FROM seen WHERE note = 'damaged') FROM b";
    let old = replica.value(content).await;
    let daemon = site.start();
    site.ready(LONG).await;
    recopy(&site, "public.b").await;
    chunk_loaded(&replica).await;
    for round in 1..=5 {
        source
            .execute(&format!("BEGIN; UPDATE a SET v = {round}; UPDATE b SET v = {round} WHERE id % 7 = {round}; DELETE FROM b WHERE id = {round}; COMMIT"))
            .await;
        let seen = format!("SELECT count(*) FROM a WHERE v = {round}");
        until("a live table to go on", SOON, async || replica.value(&seen).await == "20").await;
        assert_eq!(state_of(&replica, "b").await, "reports#added copying");
        assert_eq!(replica.value(content).await, old);
    }
    let again = site.run(&["table", "recopy", "reports", "public.b", "--json"]).await;
    assert_eq!(again.code, Some(1), "{again:?}");
    let answer: serde_json::Value = serde_json::from_str(&again.stdout).unwrap();
    assert_eq!(answer["asked"], false, "{answer}");
    assert!(answer["refused"].as_str().unwrap().contains("being copied already"), "{answer}");
    let status = site.status().await.expect("a status");
    let reports = &status["replicas"]["reports"];
    assert_eq!((&reports["state"], &reports["copy"]["again"]), (&"live".into(), &serde_json::json!(["public.b"])), "{reports}");
    assert!(reports["copy"]["rows"].as_u64() > Some(0) && reports["lag_seconds"].as_f64().unwrap() < 5.0, "{reports}");
    let (code, why) = site.get("/readyz").await.expect("an answer");
    assert!(code == 503 && why.contains("reports is copying again: public.b"), "{code} {why}");
    let page = site.run(&["status"]).await;
    assert!(page.stdout.contains("copied again public.b"), "{}", page.stdout);

    let loaded = "SELECT count(*) FROM millstream.copy_chunk WHERE table_name = 'b' AND state = 'loaded'";
    let chunks: u64 = replica.value(loaded).await.parse().unwrap();
    daemon.kill();
    assert_eq!(replica.value(content).await, old);
    configure(&site, SLOWLY, FAST);
    let daemon = site.start();
    done(&replica).await;
    assert!(chunks > 0 && !site.all_logs().contains("starts again"), "{}", site.all_logs());
    compare::equal(&source, &replica, LONG).await;
    assert_eq!(replica.value(hangs).await, before);
    assert_eq!(replica.value("SELECT count(*) FROM seen WHERE note = 'damaged'").await, "0");
    // A column of the replica's own: kept under the same key, its default where the row was not there.
    assert_eq!(replica.value("SELECT count(*) FROM b WHERE mine = 'mine ' || id").await, "990");
    assert_eq!(replica.value("SELECT count(*) FROM b WHERE mine = 'new'").await, "5");
    site.ready(LONG).await;
    source.execute("UPDATE b SET v = 5 WHERE id < 20; TRUNCATE c; INSERT INTO c VALUES (1, 20)").await;
    compare::equal(&source, &replica, LONG).await;
    assert!(!site.all_logs().contains("apply halted"), "{}", site.all_logs());
    assert_eq!(daemon.terminate().await.code(), Some(0));
    replica.execute("DROP OWNED BY reader_of_b; DROP ROLE reader_of_b").await;
}

/// Every kind of table, each copied again while all are written to and the daemon dies. `COPY_SEED` replays it.
#[tokio::test(flavor = "multi_thread")]
async fn under_load_and_kills_every_table_is_exact_after_it_was_copied_again() {
    let seed: u64 = std::env::var("COPY_SEED").map_or_else(|_| rand::random_range(1..1_000_000), |text| text.parse().unwrap());
    println!("COPY_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let (source, replica) = databases().await;
    source.execute(SCHEMA).await;
    source.execute(ROWS).await;
    let site = site(&source, &replica, "");
    site.must(&["init"]).await;
    let daemon = site.start();
    compare::equal(&source, &replica, COPIED).await;
    done(&replica).await;
    daemon.terminate().await;
    // Whoever copies what differs alone must see what differs.
    replica
        .execute(
            "UPDATE ints SET u = -u, n = 99 WHERE id % 2 = 0; DELETE FROM texts WHERE n % 3 = 0; UPDATE uuids SET n = 4; \
             INSERT INTO pairs SELECT a, b || 'x', n FROM pairs; DELETE FROM full_rows; UPDATE by_index SET a = a - 5000; \
             UPDATE bare SET b = 'y' WHERE a < 10; DELETE FROM emptied WHERE id > 100; UPDATE kids SET parent = 1",
        )
        .await;
    let tables = ["ints", "kids", "texts", "pairs", "uuids", "full_rows", "by_index", "bare", "emptied"];
    // All at once: nothing else mends what was broken, and the load would halt at it.
    for table in tables {
        recopy(&site, &format!("public.{table}")).await;
    }
    let writers = Writers::start(&source.server.options(&source.name), seed, 3);
    for _ in 0..6 {
        let daemon = site.start();
        tokio::time::sleep(Duration::from_millis(random.random_range(100..1500))).await;
        daemon.kill();
    }
    let daemon = site.start();
    done(&replica).await;
    // Then one by one, beside the others.
    for table in tables {
        recopy(&site, &format!("public.{table}")).await;
        done(&replica).await;
    }
    let transactions = writers.stop().await;
    compare::equal(&source, &replica, COPIED).await;
    same_keys(&source, &replica).await;
    assert!(transactions > 50, "only {transactions} transactions");
    assert!(!site.all_logs().contains("apply halted"), "{}", site.all_logs());
    daemon.terminate().await;
}

/// I4: what two tables hold together is right in every snapshot in which both are live, and while one is not it holds what it held.
#[tokio::test(flavor = "multi_thread")]
async fn readers_see_the_old_content_whole_or_a_prefix_with_the_others() {
    let (source, replica) = databases().await;
    source.execute(&format!("{A}; {B}")).await;
    let site = site(&source, &replica, FAST);
    site.must(&["init"]).await;
    let daemon = site.start();
    compare::equal(&source, &replica, COPIED).await;
    done(&replica).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..3)
        .map(|number| {
            let (stop, options) = (Arc::clone(&stop), source.connect());
            tokio::spawn(async move {
                let mut connection = connect(&options.sqlx_options()).await.unwrap();
                let mut turns = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    let id = 1 + (turns + number * 7) % 20;
                    let sql =
                        format!("BEGIN; UPDATE public.a SET v = v - 1 WHERE id = {id}; UPDATE public.b SET v = v + 1 WHERE id = {id}; COMMIT");
                    query(&mut connection, &sql).await.unwrap();
                    turns += 1;
                }
            })
        })
        .collect();
    let look = "SELECT (SELECT replica || coalesce(' ' || shadow, '') FROM millstream.copied_table WHERE table_name = 'b'), \
         (SELECT sum(v) FROM b), (SELECT sum(v) FROM a) + (SELECT sum(v) FROM b)";
    for round in 0..3 {
        let (mut frozen, mut old, mut new) = (None, 0, 0);
        recopy(&site, "public.b").await;
        until("reads behind the copy", COPIED, async || {
            let rows = replica.query(look).await.unwrap();
            let [Some(state), Some(sum), Some(both)] = &rows[0][..] else { panic!("{rows:?}") };
            match state.as_str() {
                "reports" => {
                    assert_eq!(both, "20000", "round {round}: {old} reads of the old content");
                    new += u32::from(old > 0);
                }
                // Complete and not met yet: ahead of what it was, behind the others.
                "reports#added" => {}
                _ => {
                    assert_eq!(frozen.get_or_insert_with(|| sum.clone()), sum, "round {round}: the old content changed");
                    old += 1;
                }
            }
            new >= 50
        })
        .await;
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    compare::equal(&source, &replica, LONG).await;
    done(&replica).await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
}

/// A row that somebody deleted on the replica stopped all of it until somebody put it back by hand.
#[tokio::test(flavor = "multi_thread")]
async fn a_halt_about_one_table_ends_when_that_table_is_copied_again() {
    let (source, replica) = databases().await;
    source.execute(&format!("{A}; {B}")).await;
    let site = site(&source, &replica, "");
    site.must(&["init"]).await;
    let daemon = site.start();
    compare::equal(&source, &replica, COPIED).await;
    done(&replica).await;
    replica.execute("DELETE FROM b WHERE id = 3").await;
    source.execute("UPDATE b SET v = 7 WHERE id = 3").await;
    until("the halt", LONG, async || daemon.log().contains("replica_conflict")).await;
    recopy(&site, "public.b").await;
    compare::equal(&source, &replica, LONG).await;
    done(&replica).await;
    site.ready(LONG).await;
    daemon.terminate().await;
}

/// Values that are equal and not the same, keys that are shared for a moment, rows without a key, no rows, a partition.
#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_table_is_the_sources_to_the_byte() {
    let (source, replica) = databases().await;
    source
        .execute(
            "CREATE TABLE numbers (id numeric PRIMARY KEY, n numeric, f float8, j json, x xml, t text[]); \
             INSERT INTO numbers VALUES (1.0, 1.0, 'NaN', '{\"a\": 1}', '<a/>', '{a,NULL}'), (2, 2.50, -0.0, 'null', NULL, NULL); \
             CREATE TABLE swapped (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, n int); ALTER TABLE swapped REPLICA IDENTITY FULL; \
             INSERT INTO swapped SELECT n, n FROM generate_series(1, 100) n; \
             CREATE TABLE bare (a int, b text); ALTER TABLE bare REPLICA IDENTITY FULL; INSERT INTO bare SELECT n % 3, 'x' FROM generate_series(1, 30) n; \
             CREATE TABLE none (id int PRIMARY KEY); \
             CREATE TABLE taken (id int PRIMARY KEY, u int UNIQUE); INSERT INTO taken SELECT n, n FROM generate_series(1, 100) n; \
             CREATE TABLE numbered (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED); \
             INSERT INTO numbered (a) SELECT n FROM generate_series(1, 100) n; \
             CREATE TABLE parted (id int PRIMARY KEY, v int) PARTITION BY RANGE (id); CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (100); \
             INSERT INTO parted SELECT n, n FROM generate_series(1, 99) n",
        )
        .await;
    let site = site(&source, &replica, "");
    site.must(&["init"]).await;
    let daemon = site.start();
    compare::equal(&source, &replica, COPIED).await;
    done(&replica).await;
    replica
        .execute(
            "UPDATE numbers SET n = 1.00, j = '{\"a\":1}', t = '{a}' WHERE id = 1; DELETE FROM numbers WHERE id = 2; \
             DELETE FROM swapped WHERE id > 50; UPDATE swapped SET n = 0; UPDATE bare SET b = 'y' WHERE a = 1; INSERT INTO none VALUES (1); \
             UPDATE taken SET u = -u; UPDATE taken SET u = 101 + u; DELETE FROM numbered WHERE id < 50; UPDATE numbered SET a = 0; \
             DELETE FROM parted WHERE id > 5; UPDATE parted SET v = 0",
        )
        .await;
    for table in ["numbers", "swapped", "bare", "none", "taken", "numbered", "parted_1"] {
        recopy(&site, &format!("public.{table}")).await;
    }
    compare::equal(&source, &replica, COPIED).await;
    done(&replica).await;
    same_keys(&source, &replica).await;
    source
        .execute("BEGIN; UPDATE swapped SET id = 3 - id WHERE id < 3; COMMIT; DELETE FROM bare WHERE a = 0; UPDATE numbers SET n = 3; INSERT INTO parted VALUES (0, 0)")
        .await;
    compare::equal(&source, &replica, LONG).await;
    let refused = site.run(&["table", "recopy", "reports", "public.parted"]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stdout.contains("its partitions are copied one by one: public.parted_1"), "{refused:?}");
    assert!(!site.all_logs().contains("apply halted"), "{}", site.all_logs());
    daemon.terminate().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_the_source_drops_meanwhile_goes_and_may_come_again() {
    let (source, replica) = databases().await;
    source.execute(&format!("{A}; {B}")).await;
    let site = site(&source, &replica, FAST);
    site.must(&["init"]).await;
    let daemon = site.start();
    compare::equal(&source, &replica, COPIED).await;
    done(&replica).await;
    daemon.terminate().await;
    configure(&site, FAST, SLOWLY);
    let daemon = site.start();
    recopy(&site, "public.b").await;
    chunk_loaded(&replica).await;
    source.execute("INSERT INTO b VALUES (3000, 1, 'last', 1); DROP TABLE b; UPDATE a SET v = 5").await;
    until("the others to go on", LONG, async || replica.value("SELECT count(*) FROM a WHERE v = 5").await == "20").await;
    assert_eq!(replica.value("SELECT to_regclass('b') IS NULL").await, "t");
    done(&replica).await;
    source.execute(B).await;
    source.execute("UPDATE a SET v = 6; UPDATE b SET v = 6 WHERE id < 10").await;
    compare::equal(&source, &replica, LONG).await;
    site.ready(LONG).await;
    assert!(!site.all_logs().contains("apply halted"), "{}", site.all_logs());
    daemon.terminate().await;
}

/// PostgreSQL refuses to truncate what a foreign key refers to, and half of the statement is the other row's.
#[tokio::test(flavor = "multi_thread")]
async fn tables_that_are_truncated_together_are_emptied_by_whoever_has_them() {
    let (source, replica) = databases().await;
    source.execute(&format!("{A}; {B}; {C}")).await;
    let site = site(&source, &replica, FAST);
    site.must(&["init"]).await;
    let daemon = site.start();
    compare::equal(&source, &replica, COPIED).await;
    done(&replica).await;
    daemon.terminate().await;
    configure(&site, FAST, SLOWLY);
    let daemon = site.start();
    recopy(&site, "public.b").await;
    chunk_loaded(&replica).await;
    // `b` refers to `a`, `c` refers to `b`.
    source.execute("TRUNCATE a, b, c; INSERT INTO a VALUES (1, 1)").await;
    until("the others to be emptied", SOON, async || replica.value("SELECT count(*) FROM a").await == "1").await;
    assert_eq!(replica.value("SELECT (SELECT count(*) FROM c) || ' ' || (SELECT count(*) FROM b)").await, "0 1000");
    daemon.terminate().await;
    configure(&site, SLOWLY, FAST);
    let daemon = site.start();
    compare::equal(&source, &replica, COPIED).await;
    done(&replica).await;
    same_keys(&source, &replica).await;
    assert!(!site.all_logs().contains("apply halted"), "{}", site.all_logs());
    daemon.terminate().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_copied_again_is_refused_with_the_reason() {
    let (source, replica) = databases().await;
    source.execute(&format!("{A}; {B}; CREATE TABLE d (id int PRIMARY KEY, n int UNIQUE DEFERRABLE)")).await;
    let site = site(&source, &replica, "");
    let refused = async |table: &str| {
        let said = site.run(&["table", "recopy", "reports", table]).await;
        (said.code, format!("{}{}", said.stdout, said.stderr))
    };
    let (code, said) = refused("public.a").await;
    assert!(code == Some(1) && said.contains("not_initialized"), "{code:?} {said}");
    site.must(&["init"]).await;
    let (code, said) = refused("public.a").await;
    assert!(code == Some(1) && said.contains("is being copied already"), "{code:?} {said}");
    let daemon = site.start();
    compare::equal(&source, &replica, COPIED).await;
    done(&replica).await;
    daemon.terminate().await;
    let (code, said) = refused("public.z").await;
    assert!(
        code == Some(1) && said.contains("has no table public.z; its tables are public.a, public.b, public.d"),
        "{code:?} {said}"
    );
    for bad in ["z", "public.*"] {
        let (code, said) = refused(bad).await;
        assert!(code == Some(2) && said.contains("one looks like public.orders"), "{code:?} {said}");
    }
    let unknown = site.run(&["table", "recopy", "other", "public.a"]).await;
    assert!(unknown.code == Some(78) && unknown.stderr.contains("no replica 'other'"), "{unknown:?}");

    // A deferrable key is checked under the ordinary role alone, which enforces foreign keys as well.
    let (code, said) = refused("public.b").await;
    assert!(code == Some(1) && said.contains("deferrable keys"), "{code:?} {said}");
    let statements = |after: &str| said.split_once(after).unwrap().1.split_once(";)").unwrap().0.to_owned();
    let (drop, add) = (statements("Drop them there ("), statements("once it is live ("));
    replica.execute(&drop).await;
    let asked = site.must(&["table", "recopy", "reports", "public.b"]).await;
    assert!(asked.contains("Note: nobody applies to this replica at the moment"), "{asked}");
    let (code, said) = refused("public.b").await;
    assert!(code == Some(1) && said.contains("somebody asked for it at"), "{code:?} {said}");
    let daemon = site.start();
    done(&replica).await;
    replica.execute(&add).await;
    source.execute("UPDATE b SET v = 5; INSERT INTO d VALUES (1, 1)").await;
    compare::equal(&source, &replica, LONG).await;
    same_keys(&source, &replica).await;
    daemon.terminate().await;
}

/// The table that readers see follows at the change's place, the copy begins again with the new shape; a column that went and came back has no old values.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_whose_definition_changes_while_it_is_copied_again_becomes_the_sources() {
    let (source, replica) = databases().await;
    source.execute(&format!("{A}; {B}")).await;
    let site = site(&source, &replica, FAST);
    site.must(&["init"]).await;
    let daemon = site.start();
    compare::equal(&source, &replica, COPIED).await;
    done(&replica).await;
    daemon.terminate().await;
    configure(&site, FAST, SLOWLY);
    let daemon = site.start();
    site.ready(LONG).await;
    recopy(&site, "public.b").await;
    chunk_loaded(&replica).await;
    source
        .execute("ALTER TABLE b DROP COLUMN note; ALTER TABLE b ADD COLUMN more int DEFAULT 7; UPDATE b SET v = 5 WHERE id < 50")
        .await;
    let columns = "SELECT string_agg(attname, ' ' ORDER BY attname) FROM pg_attribute WHERE attrelid = 'b'::regclass AND attnum > 0 AND NOT attisdropped";
    until("what readers see to follow", LONG, async || replica.value(columns).await == "a id more v").await;
    source.execute("ALTER TABLE b ADD COLUMN note text DEFAULT 'anew'").await;
    until("what readers see to follow again", LONG, async || replica.value(columns).await == "a id more note v").await;
    daemon.terminate().await;
    configure(&site, SLOWLY, FAST);
    let daemon = site.start();
    compare::equal(&source, &replica, COPIED).await;
    done(&replica).await;
    assert_eq!(replica.value("SELECT count(*) FROM b WHERE note = 'anew' AND more = 7").await, "1000");
    daemon.terminate().await;
}
