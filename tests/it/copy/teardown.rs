use std::time::Duration;

use millstream::error::{ErrorKind, Result};
use millstream::preflight::init::{Line, Outcome};
use millstream::preflight::teardown::{TeardownOptions, look, teardown};

use super::Pair;
use super::first::{COPIED, databases, live, site};
use crate::support::compare;
use crate::support::daemon::Site;
use crate::support::postgres::{shared, shared_replica};
use crate::support::wait::until;

async fn attempt(pair: &Pair) -> (Result<Outcome>, Vec<Line>) {
    let mut lines = Vec::new();
    let (options, mut report) = (TeardownOptions::default(), |line| lines.push(line));
    let done = match look(&pair.config, &options, &mut report).await.unwrap() {
        Some(quiet) => teardown(&pair.config, &pair.queue, &options, quiet, &mut report).await,
        None => Ok(Outcome::Refused),
    };
    (done, lines)
}

async fn run(pair: &Pair) -> (Outcome, Vec<Line>) {
    let (done, lines) = attempt(pair).await;
    (done.unwrap(), lines)
}

fn slots(pair: &Pair) -> String {
    format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'millstream_{}%'", pair.shop().name)
}

#[tokio::test]
async fn it_leaves_nothing_and_twice_finds_nothing() {
    let pair = Pair::new().await;
    pair.source.execute("CREATE TABLE a (id int PRIMARY KEY)").await;
    pair.init().await;
    assert_eq!(pair.source.value(&slots(&pair)).await, "1");
    let (outcome, lines) = run(&pair).await;
    assert_eq!(outcome, Outcome::Changed, "{lines:?}");
    assert_eq!(pair.source.value(&slots(&pair)).await, "0");
    assert_eq!(pair.source.value("SELECT count(*) FROM pg_publication").await, "0");
    assert_eq!(pair.replica.value("SELECT count(*) FROM pg_namespace WHERE nspname = 'millstream'").await, "0");
    assert_eq!(pair.replica.value("SELECT count(*) FROM a").await, "0", "the tables stay");
    assert!(pair.queue.bounds(&pair.shop().name).await.unwrap().is_none());
    assert_eq!(run(&pair).await.0, Outcome::Unchanged);
    pair.init().await;
}

#[tokio::test]
async fn missing_parts_and_an_unreachable_replica_do_not_keep_the_slot_standing() {
    let mut pair = Pair::new().await;
    pair.source.execute("CREATE TABLE a (id int PRIMARY KEY)").await;
    pair.init().await;
    pair.source.execute(&format!("DROP PUBLICATION millstream_{}", pair.shop().name)).await;
    let reachable = pair.config.replicas["reports"].connect.clone();
    pair.config.replicas.get_mut("reports").unwrap().connect.port = 1;
    let (outcome, lines) = attempt(&pair).await;
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Connection);
    assert!(format!("{lines:?}").contains("DROP SCHEMA millstream CASCADE"), "{lines:?}");
    assert_eq!(pair.source.value(&slots(&pair)).await, "0");
    pair.config.replicas.get_mut("reports").unwrap().connect = reachable;
    assert_eq!(run(&pair).await.0, Outcome::Changed);
    assert_eq!(run(&pair).await.0, Outcome::Unchanged);
}

#[tokio::test]
async fn an_unreachable_source_is_said_and_its_stream_is_kept() {
    let mut pair = Pair::new().await;
    pair.source.execute("CREATE TABLE a (id int PRIMARY KEY)").await;
    pair.init().await;
    let port = pair.shop().connect.port;
    pair.config.sources.values_mut().next().unwrap().connect.port = 1;
    let (outcome, lines) = attempt(&pair).await;
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Connection);
    let said = format!("{lines:?}");
    assert!(said.contains("may remain there") && said.contains("is kept, as the record of the slot"), "{said}");
    assert!(pair.queue.bounds(&pair.shop().name).await.unwrap().is_some(), "it is the record of the slot's name");
    pair.config.sources.values_mut().next().unwrap().connect.port = port;
    assert_eq!(run(&pair).await.0, Outcome::Changed);
    assert_eq!(pair.source.value(&slots(&pair)).await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_asks_and_it_ends_the_walsender_of_a_daemon_that_was_killed() {
    let source = shared().await.new_database().await;
    let replica = shared_replica().await.new_database().await;
    source.execute("CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1)").await;
    let site = Site::pair(&source, &replica);
    site.must(&["init"]).await;
    let daemon = site.start();
    compare::equal(&source, &replica, Duration::from_secs(60)).await;
    daemon.kill();
    let asked = site.run(&["teardown"]).await;
    assert!(asked.code == Some(2) && asked.stderr.contains("--yes"), "{asked:?}");
    site.must(&["teardown", "--yes"]).await;
    let left = format!("SELECT count(*) FROM pg_replication_slots WHERE database = '{}'", source.name);
    assert_eq!(source.value(&left).await, "0");
}

/// What the event triggers had set stayed, and nobody said so: whole old rows in every WAL record for ever.
#[tokio::test(flavor = "multi_thread")]
async fn whole_old_rows_that_stay_are_named_with_what_undoes_them() {
    let source = shared().await.new_database().await;
    let replica = shared_replica().await.new_database().await;
    source
        .execute(
            "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (LIKE a INCLUDING ALL); CREATE TABLE c (LIKE a INCLUDING ALL)",
        )
        .await;
    let site = Site::pair(&source, &replica);
    site.must(&["init"]).await;
    source
        .execute(
            "ALTER TABLE a DROP CONSTRAINT a_pkey; ALTER TABLE b DROP CONSTRAINT b_pkey; CREATE PUBLICATION others FOR TABLE b",
        )
        .await;
    let full = "SELECT string_agg(relname::text, ' ' ORDER BY relname) FROM pg_class WHERE relreplident = 'f' AND relname IN ('a', 'b', 'c')";
    assert_eq!(source.value(full).await, "a b");
    let said = site.must(&["teardown", "--yes"]).await;
    let note =
        said.lines().find(|line| line.contains("REPLICA IDENTITY FULL stays on 1 table")).unwrap_or_else(|| panic!("{said}"));
    assert_eq!(source.value(full).await, "a b", "named, not changed");
    source.execute(note.split_once("as the owner: ").expect("a statement").1).await;
    assert_eq!(source.value(full).await, "b", "another publication needs it");
}

/// It said "Refused" with 1; what could not be told is 3, for scripts as well.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_cannot_be_reached_is_3_and_what_remains_is_said() {
    let source = shared().await.new_database().await;
    let replica = shared_replica().await.new_database().await;
    source.execute("CREATE TABLE a (id int PRIMARY KEY)").await;
    let site = Site::pair(&source, &replica);
    site.must(&["init"]).await;
    let sound = std::fs::read_to_string(site.configuration()).unwrap();
    site.configure(&sound.replace(&source.url(), &source.url_at(1)));
    let outcome = site.run(&["teardown", "--yes"]).await;
    assert_eq!(outcome.code, Some(3), "{outcome:?}");
    assert!(outcome.stdout.contains("may remain there") && outcome.stderr.contains("what remains is said above"), "{outcome:?}");
    site.configure(&sound);
    site.must(&["teardown", "--yes"]).await;
    let left = format!("SELECT count(*) FROM pg_replication_slots WHERE database = '{}'", source.name);
    assert_eq!(source.value(&left).await, "0");
}

/// It took slot, publication and ledger away underneath the daemon, without a word.
#[tokio::test(flavor = "multi_thread")]
async fn beside_a_running_daemon_nothing_is_taken_away() {
    let source = shared().await.new_database().await;
    let replica = shared_replica().await.new_database().await;
    source.execute("CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1)").await;
    let site = Site::pair(&source, &replica);
    site.must(&["init"]).await;
    let daemon = site.start();
    compare::equal(&source, &replica, Duration::from_secs(60)).await;
    let whole = site.run(&["teardown", "--yes"]).await;
    assert_eq!(whole.code, Some(1), "{whole:?}");
    for part in [&*format!("is held by process {} on ", daemon.pid()), "systemctl stop millstream", "nothing was changed"] {
        assert!(whole.stdout.contains(part), "'{part}' is not in {whole:?}");
    }
    let one = site.run(&["teardown", "--replica", "reports", "--yes"]).await;
    assert_eq!(one.code, Some(1), "{one:?}");
    assert!(one.stdout.contains("replica reports is being applied to by 'millstream apply reports'"), "{one:?}");
    source.execute("INSERT INTO a VALUES (2)").await;
    compare::equal(&source, &replica, Duration::from_secs(60)).await;
    assert!(!daemon.log().contains("halted"), "{}", daemon.log());
    assert_eq!(daemon.terminate().await.code(), Some(0));
    site.must(&["teardown", "--replica", "reports", "--yes"]).await;
    site.must(&["teardown", "--yes"]).await;
}

/// Keys that a copy had put off, or taken off, were in the ledger alone: teardown named them, and the next pair went live without them, in silence.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_given_up_copy_had_put_off_comes_with_the_next_one() {
    let (source, replica) = databases().await;
    source
        .execute(
            "CREATE TABLE a (id int PRIMARY KEY, v text UNIQUE, r tsrange, EXCLUDE USING gist (r WITH &&)); CREATE INDEX a_length ON a (length(v)); \
             CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a); \
             INSERT INTO a SELECT n, md5(n::text) FROM generate_series(1, 600) n; INSERT INTO b SELECT n, n FROM generate_series(1, 600) n; ANALYZE",
        )
        .await;
    // The replica's own: as good as its operator's word.
    replica
        .execute(
            "CREATE TABLE b (id int PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED); CREATE UNIQUE INDEX b_twice ON b (twice); \
             CREATE TABLE c (id int PRIMARY KEY); ALTER TABLE b ADD CONSTRAINT later FOREIGN KEY (a) REFERENCES c NOT VALID",
        )
        .await;
    let site = site(&source, &replica, "copy_max_bytes_per_second = \"2KiB\"");
    site.must(&["init"]).await;
    let daemon = site.start();
    until("a chunk to be loaded", COPIED, async || {
        replica.value("SELECT count(*) > 0 FROM millstream.copy_chunk WHERE state = 'loaded'").await == "t"
    })
    .await;
    daemon.terminate().await;
    let keys = "SELECT string_agg(k, '; ' ORDER BY k) FROM (SELECT conrelid::regclass::text || ' ' || contype::text || ' ' || pg_get_constraintdef(oid) AS k \
         FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype <> 'n') x";
    assert_eq!(replica.value(keys).await, "c p PRIMARY KEY (id)", "off while rows are loaded");
    for again in [false, true] {
        let said = site.must(&["teardown", "--yes"]).await;
        assert_eq!(said.contains("millstream.put_off, which stays"), !again, "{said}");
        if !again {
            let whole = site.run(&["init"]).await;
            assert!(whole.code == Some(1) && whole.stdout.contains("rows, and they are never emptied"), "{whole:?}");
        }
    }
    replica.execute("TRUNCATE a, b").await;
    site.configure(&std::fs::read_to_string(site.configuration()).unwrap().replace("\"2KiB\"", "\"1GiB\""));
    let printed = site.must(&["init", "--dry-run"]).await;
    assert!(printed.contains("PRIMARY KEY (id)") && printed.contains("EXCLUDE"), "{printed}");
    site.must(&["init"]).await;
    assert_eq!(replica.value("SELECT to_regclass('millstream.put_off') IS NULL").await, "t");
    replica.execute("INSERT INTO c SELECT n FROM generate_series(1, 600) n").await;
    let daemon = site.start();
    until("the tables to be live", COPIED, async || live(&replica).await).await;
    compare::equal(&source, &replica, COPIED).await;
    let expected = [
        "a p PRIMARY KEY (id)",
        "a u UNIQUE (v)",
        "a x EXCLUDE USING gist (r WITH &&)",
        "b f FOREIGN KEY (a) REFERENCES c(id) NOT VALID",
        "b p PRIMARY KEY (id)",
        "c p PRIMARY KEY (id)",
    ];
    assert_eq!(replica.value(keys).await, expected.join("; "));
    let indexes = "SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_class WHERE relname IN ('a_length', 'b_twice')";
    assert_eq!(replica.value(indexes).await, "a_length b_twice");
    daemon.terminate().await;
    site.must(&["teardown", "--yes"]).await;
    assert_eq!(
        replica.value("SELECT count(*) FROM pg_namespace WHERE nspname = 'millstream'").await,
        "0",
        "nothing is left of it"
    );
}
