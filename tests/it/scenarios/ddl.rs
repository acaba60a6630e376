//! Schema changes that the source's event triggers say reach the replica at their place in the commit order (I3, I4, DESIGN decision 7).

use super::Lane;
use crate::support::daemon::{Daemon, Site, pair_configuration};
use crate::support::postgres::{ROLE, shared, shared_replica};
use crate::support::template::major_version;
use crate::support::wait::until;

const T: &str =
    "CREATE TABLE t (id int PRIMARY KEY, v varchar(5), n int); INSERT INTO t SELECT n, 'v', n FROM generate_series(1, 10) n";

async fn settled(lane: &Lane<'_>, daemon: Daemon<'_>) {
    lane.equal().await;
    lane.site.ready(super::CATCH_UP).await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
}

const SHAPE: &str = "SELECT string_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod) || ' ' || a.attnotnull || ' ' \
    || coalesce(pg_get_expr(d.adbin, d.adrelid), '-'), ', ' ORDER BY a.attname) FROM pg_attribute a \
    LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum \
    WHERE a.attrelid = 't'::regclass AND a.attnum > 0 AND NOT a.attisdropped";

#[tokio::test(flavor = "multi_thread")]
async fn columns_come_go_and_change_with_the_rows_around_them() {
    let lane = Lane::new(T).await;
    let daemon = lane.start().await;
    for statements in [
        // Rows that were there show the constant, whatever the default says later.
        "ALTER TABLE t ADD COLUMN a int DEFAULT 7; ALTER TABLE t ALTER COLUMN a SET DEFAULT 8; INSERT INTO t (id) VALUES (20)",
        "BEGIN; INSERT INTO t (id) VALUES (21); ALTER TABLE t ADD COLUMN b text[] DEFAULT '{x,\"a b\"}'; \
         INSERT INTO t (id, b) VALUES (22, '{}'); ALTER TABLE t RENAME COLUMN v TO w; UPDATE t SET w = 'u'; COMMIT",
        "ALTER TABLE t ALTER COLUMN w TYPE varchar(50); UPDATE t SET w = repeat('x', 40) WHERE id = 1",
        "ALTER TABLE t ALTER COLUMN w TYPE text; ALTER TABLE t ALTER COLUMN a SET NOT NULL; ALTER TABLE t ALTER COLUMN a DROP NOT NULL",
        "BEGIN; ALTER TABLE t ADD COLUMN z int; SAVEPOINT s; ALTER TABLE t ADD COLUMN gone int; ROLLBACK TO s; COMMIT",
        // The same name is another column.
        "ALTER TABLE t DROP COLUMN n; ALTER TABLE t ADD COLUMN n text DEFAULT 'new'; UPDATE t SET n = 'it' WHERE id = 3",
        "BEGIN; ALTER TABLE t RENAME z TO aside; ALTER TABLE t RENAME a TO z; ALTER TABLE t RENAME aside TO a; COMMIT",
        "SET session_replication_role = replica; ALTER TABLE t ADD COLUMN \"Odd \"\"name'\" timestamptz DEFAULT '2026-01-02 03:04:05+00'; \
         RESET session_replication_role; INSERT INTO t (id) VALUES (23)",
    ] {
        lane.source.execute(statements).await;
    }
    lane.equal().await;
    assert_eq!(lane.replica.value(SHAPE).await, lane.source.value(SHAPE).await);
    settled(&lane, daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_and_labels_come_move_and_go() {
    let lane = Lane::new(
        "CREATE TYPE mood AS ENUM ('a', 'b'); CREATE TABLE t (id int PRIMARY KEY, m mood); INSERT INTO t VALUES (1, 'a')",
    )
    .await;
    let daemon = lane.start().await;
    lane.source.execute("ALTER TYPE mood ADD VALUE 'c' BEFORE 'b'").await;
    lane.source
        .execute(
            "CREATE SCHEMA kinds; CREATE TYPE kinds.\"Size s\" AS ENUM ('s', 'it''s'); ALTER TABLE t ADD COLUMN sizes kinds.\"Size s\"[]; \
             CREATE TYPE hue AS ENUM ('red'); CREATE TABLE hues (h hue PRIMARY KEY); INSERT INTO hues VALUES ('red'); \
             UPDATE t SET sizes = '{s,it''s}' WHERE id = 1",
        )
        .await;
    lane.source.execute("INSERT INTO t VALUES (2, 'c')").await;
    lane.source
        .execute("BEGIN; CREATE TABLE u (id int PRIMARY KEY, m mood DEFAULT 'a'); INSERT INTO u VALUES (1, 'b'); COMMIT")
        .await;
    lane.source.execute("BEGIN; ALTER TABLE t RENAME TO x; ALTER TABLE u RENAME TO t; ALTER TABLE x RENAME TO u; COMMIT").await;
    // What names mean now is in the ledger, not in memory.
    lane.equal().await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
    let daemon = lane.start().await;
    lane.source.execute("INSERT INTO t VALUES (9, 'a'); INSERT INTO u VALUES (8, 'b'); CREATE SCHEMA \"else\"; ALTER TABLE u SET SCHEMA \"else\"").await;
    lane.source.execute("INSERT INTO \"else\".u VALUES (10, 'c')").await;
    lane.equal().await;
    lane.source.execute("DROP TABLE t").await;
    lane.source.execute("INSERT INTO \"else\".u VALUES (11, 'c')").await;
    lane.equal().await;
    assert_eq!(lane.replica.value("SELECT to_regclass('public.t') IS NULL").await, "t");
    settled(&lane, daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rewritten_table_halts_and_one_that_the_replica_refuses_goes_on_once_mended() {
    let lane = Lane::new(T).await;
    let _daemon = lane.start().await;
    lane.replica.execute("CREATE VIEW seen AS SELECT n FROM t").await;
    lane.source.execute("ALTER TABLE t DROP COLUMN n; INSERT INTO t VALUES (30, 'x')").await;
    let status = lane.halted(&["schema_change_refused"]).await;
    assert!(status.contains("DROP COLUMN"), "names the statement: {status}");
    lane.replica.execute("DROP VIEW seen").await;
    lane.equal().await;
    lane.source.execute("ALTER TABLE t ADD COLUMN r double precision DEFAULT random()").await;
    lane.halted(&["table_rewritten"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_comes_with_rows_stays_out_and_stops_nothing() {
    let lane = Lane::new(T).await;
    let daemon = lane.start().await;
    lane.source.execute("CREATE TABLE late (v int); INSERT INTO late VALUES (1); ALTER TABLE late ADD PRIMARY KEY (v)").await;
    let published = "SELECT count(*) FROM pg_publication_tables WHERE tablename = 'late'";
    assert_eq!(lane.source.value(published).await, "0");
    let named = async || {
        let status = lane.site.status().await.unwrap_or_default();
        status["sources"]["shop"]["tables_not_captured"] == serde_json::json!(["public.keyless", "public.late"])
            && status["sources"]["shop"]["tables_to_mend"]["public.keyless"]
                .as_str()
                .is_some_and(|text| text.contains("REPLICA IDENTITY FULL"))
    };
    lane.source.execute("CREATE TABLE keyless (v int)").await;
    until("both to be named", super::CATCH_UP, named).await;
    // What mends it makes it one of the others: it is empty.
    lane.source.execute("ALTER TABLE keyless REPLICA IDENTITY FULL; INSERT INTO keyless VALUES (5), (5)").await;
    lane.source.execute("DROP TABLE late; CREATE TABLE late (v int); ALTER TABLE late ADD PRIMARY KEY (v)").await;
    assert_eq!(lane.source.value(published).await, "1", "an empty one has nothing to copy");
    lane.source.execute("INSERT INTO late VALUES (2)").await;
    settled(&lane, daemon).await;
}

/// I7.
#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_that_cannot_write_makes_no_statement_fail() {
    let lane = Lane::new(T).await;
    lane.source.execute("ALTER TABLE millstream.schema_change RENAME TO broken").await;
    lane.source
        .execute("SET search_path = 'millstream'; ALTER TABLE public.t ADD COLUMN x int; DROP TABLE public.t; CREATE TABLE public.s (id int PRIMARY KEY)")
        .await;
    assert_eq!(lane.source.value("SELECT to_regclass('public.t') IS NULL AND to_regclass('public.s') IS NOT NULL").await, "t");
}

/// Its rows would have stood beside the source's, and nothing would have said so.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_table_that_the_replica_has_with_rows_of_its_own_halts() {
    let lane = Lane::new(T).await;
    let _daemon = lane.start().await;
    lane.replica.execute("CREATE TABLE promo (id int PRIMARY KEY, v text); INSERT INTO promo VALUES (99, 'only here')").await;
    lane.source.execute("CREATE TABLE promo (id int PRIMARY KEY, v text); INSERT INTO promo VALUES (1, 'source')").await;
    let status = lane.halted(&["replica_conflict"]).await;
    assert!(status.contains("holds rows"), "{status}");
    lane.replica.execute("TRUNCATE promo").await;
    lane.equal().await;
    lane.site.ready(super::CATCH_UP).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_before_the_commit_of_a_schema_change_makes_it_once() {
    let lane = Lane::new(T).await;
    assert_eq!(lane.start().await.terminate().await.code(), Some(0));
    lane.source
        .execute("BEGIN; INSERT INTO t VALUES (40, 'b', 1); ALTER TABLE t DROP COLUMN n; INSERT INTO t VALUES (41, 'a'); COMMIT")
        .await;
    let killed = lane.site.start_with(&[("FAILPOINTS", "apply.before_commit=return(kill)")]);
    let ended = killed.wait(super::CATCH_UP).await;
    assert_eq!(ended.and_then(|status| std::os::unix::process::ExitStatusExt::signal(&status)), Some(9), "{ended:?}");
    assert_eq!(lane.replica.value("SELECT count(*) FROM t").await, "10", "nothing of it is there");
    let daemon = lane.start().await;
    settled(&lane, daemon).await;
}

/// Rows travel by leaves; which leaves a partitioned table has is a schema change.
#[tokio::test(flavor = "multi_thread")]
async fn partitions_come_go_and_move() {
    let lane = Lane::new(
        "CREATE TABLE p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id); CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10); \
         CREATE TABLE q (id int PRIMARY KEY, v text); INSERT INTO p VALUES (1, 'a'); INSERT INTO q VALUES (31, 'q')",
    )
    .await;
    let daemon = lane.start().await;
    for statements in [
        "CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20); INSERT INTO p VALUES (11, 'b')",
        "ALTER TABLE p ATTACH PARTITION q FOR VALUES FROM (30) TO (40); INSERT INTO p VALUES (32, 'c')",
        "ALTER TABLE p DETACH PARTITION p1; INSERT INTO p1 VALUES (2, 'alone')",
        "ALTER TABLE p RENAME TO \"P p\"; ALTER TABLE \"P p\" ADD COLUMN n int DEFAULT 3; INSERT INTO \"P p\" VALUES (12, 'd', 4)",
        "BEGIN; CREATE TABLE m (at date NOT NULL, id int, PRIMARY KEY (id, at)) PARTITION BY RANGE (at); \
         CREATE TABLE m1 PARTITION OF m FOR VALUES FROM ('2026-01-01') TO ('2026-02-01'); INSERT INTO m VALUES ('2026-01-05', 1); COMMIT",
        "DROP TABLE p2",
    ] {
        lane.source.execute(statements).await;
    }
    lane.equal().await;
    for parent in ["\"P p\"", "m"] {
        let rows = format!("SELECT string_agg(x::text, ' ' ORDER BY x::text) FROM {parent} x");
        // A table that the source has no more is in no comparison: its DROP may still be on its way.
        until(parent, super::CATCH_UP, async || lane.replica.value(&rows).await == lane.source.value(&rows).await).await;
    }
    assert!(!lane.site.run(&["check"]).await.stdout.contains("partition:"));
    settled(&lane, daemon).await;
}

/// A transaction that is streamed before its end, with a schema change and an undone one in it.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_inside_a_large_transaction_keeps_its_place() {
    let small =
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET logical_decoding_work_mem = ''64kB''', current_database()); END $$";
    let lane = Lane::new(&format!("{small}; {T}")).await;
    let daemon = lane.start().await;
    lane.source
        .execute(
            "BEGIN; INSERT INTO t SELECT i, 'a', i FROM generate_series(100, 5000) i; SAVEPOINT s; ALTER TABLE t ADD COLUMN undone int; \
             INSERT INTO t SELECT i, 'u', i, 7 FROM generate_series(5001, 9000) i; ROLLBACK TO s; ALTER TABLE t RENAME COLUMN n TO m; \
             ALTER TABLE t ADD COLUMN kept int DEFAULT 5; INSERT INTO t SELECT i, 'k', i, 8 FROM generate_series(10001, 15000) i; COMMIT",
        )
        .await;
    lane.equal().await;
    assert_eq!(lane.replica.value(SHAPE).await, lane.source.value(SHAPE).await);
    settled(&lane, daemon).await;
}

/// What a role that is no superuser does with what a superuser installed.
#[tokio::test(flavor = "multi_thread")]
async fn a_superuser_installs_for_a_role_that_may_not() {
    let (source, replica) = (shared().await.new_database().await, shared_replica().await.new_database().await);
    let role = format!("capture_{:08x}", rand::random::<u32>());
    source
        .execute(&format!(
            "CREATE ROLE {role} LOGIN REPLICATION; ALTER SCHEMA public OWNER TO {role}; GRANT CREATE ON DATABASE {} TO {role}; SET ROLE {role}; {T}; RESET ROLE",
            source.name
        ))
        .await;
    let configuration = pair_configuration(&source.url(), &replica.url(), "embedded:{folder}/queue");
    let mut site = Site::new(&configuration.replacen(&format!("//{ROLE}@"), &format!("//{role}@"), 1));
    site.without_triggers = true;
    let lane = Lane { source, replica, site };
    let found = async || {
        let report: serde_json::Value = serde_json::from_str(&lane.site.run(&["check", "--json"]).await.stdout).expect("JSON");
        let findings = report["findings"].as_array().expect("findings");
        findings.iter().find(|f| f["check"] == "schema_changes").expect("the finding").clone()
    };
    let carry_out = async |finding: &serde_json::Value| {
        for step in finding["remedy"]["steps"].as_array().expect("steps") {
            let command = step.as_str().expect("a step").split(" | ").next().expect("a command");
            let program = format!("millstream -c {} ", lane.site.configuration().display());
            let words: Vec<&str> = command.strip_prefix(&program).expect("this configuration").split(' ').collect();
            let printed = lane.site.must(&words).await;
            if words.contains(&"--superuser-sql") {
                let heading = format!("-- on source shop, {}, as a superuser", lane.source.connect_tcp().address());
                assert_eq!(printed.lines().next(), Some(&*heading));
                lane.source.execute(&printed).await;
            }
        }
    };
    let said = lane.site.must(&["init"]).await;
    assert!(said.contains("schema changes are not carried, a replica halts at one") && said.contains(&role), "{said}");
    let finding = found().await;
    assert_eq!(finding["severity"], "warning", "{finding:#}");
    carry_out(&finding).await;
    let finding = found().await;
    assert_eq!(finding["severity"], "ok", "{finding:#}");
    assert!(lane.site.must(&["init"]).await.contains("nothing was changed"));
    let daemon = lane.start().await;
    lane.source
        .execute(&format!(
            "SET ROLE {role}; ALTER TABLE t ADD COLUMN more text DEFAULT 'm'; CREATE TABLE u (id int PRIMARY KEY); INSERT INTO u VALUES (1); RESET ROLE"
        ))
        .await;
    lane.source.execute("INSERT INTO t VALUES (50, 'x', 1, 'y')").await;
    lane.equal().await;
    assert_eq!(lane.replica.value(SHAPE).await, lane.source.value(SHAPE).await);

    lane.source.execute("ALTER EVENT TRIGGER millstream_ddl DISABLE").await;
    let finding = found().await;
    let named = finding["what"].as_str().is_some_and(|what| what.contains("millstream_ddl"));
    assert!(finding["severity"] == "warning" && named, "{finding:#}");
    // What left the publication unknown to the triggers' memory would look as if somebody had taken it out.
    let text = std::fs::read_to_string(lane.site.configuration()).expect("configuration");
    lane.site.configure(&text.replacen("\"public.*\"", "\"public.*\", \"!public.u\"", 1));
    let refused = lane.site.run(&["init"]).await;
    assert!(refused.code == Some(1) && refused.stdout.contains("--superuser-sql"), "{refused:?}");
    lane.site.configure(&text);
    carry_out(&finding).await;
    assert_eq!(found().await["severity"], "ok");
    assert_eq!(daemon.terminate().await.code(), Some(0));
    lane.site.must(&["teardown", "--yes"]).await;
    let left = "SELECT (SELECT count(*) FROM pg_event_trigger WHERE evtname LIKE 'millstream%') + \
         (SELECT count(*) FROM pg_namespace WHERE nspname = 'millstream')";
    assert_eq!(lane.source.value(left).await, "0");
}

/// Twice changes nothing, other patterns are taken up, and `halt` takes everything away.
#[tokio::test(flavor = "multi_thread")]
async fn init_keeps_the_triggers_as_the_configuration_says() {
    let lane = Lane::new(T).await;
    assert!(lane.site.must(&["init"]).await.contains("nothing was changed"));
    let there = "SELECT count(*) FROM pg_event_trigger WHERE evtname LIKE 'millstream%'";
    assert_eq!(lane.source.value(there).await, "3");
    let text = std::fs::read_to_string(lane.site.configuration()).expect("the configuration");
    lane.site.configure(&text.replacen("\"public.*\"", "\"public.*\", \"!public.scratch_?\"", 1));
    assert!(lane.site.must(&["init"]).await.contains("schema changes are carried"));
    assert!(lane.site.must(&["init"]).await.contains("nothing was changed"));
    lane.source.execute("CREATE TABLE scratch_1 (id int PRIMARY KEY); CREATE TABLE taken (id int PRIMARY KEY)").await;
    let published = "SELECT string_agg(tablename, ' ' ORDER BY tablename) FROM pg_publication_tables WHERE schemaname = 'public'";
    assert_eq!(lane.source.value(published).await, "t taken");
    lane.site.configure(&text.replacen("[source.shop]", "[source.shop]\nschema_changes = \"halt\"", 1));
    assert!(lane.site.must(&["init"]).await.contains("not carried any more"));
    assert_eq!(lane.source.value(there).await, "0");
    assert!(lane.site.must(&["init"]).await.contains("nothing was changed"));
}

/// A generated column takes no USING, and its type could not be widened.
#[tokio::test(flavor = "multi_thread")]
async fn generated_columns_come_widen_and_become_plain() {
    let lane = Lane::new(T).await;
    let daemon = lane.start().await;
    for statements in [
        "CREATE TABLE u (id int PRIMARY KEY, g varchar(10) GENERATED ALWAYS AS ('g' || id::text) STORED); INSERT INTO u VALUES (1)",
        "ALTER TABLE u ALTER COLUMN g TYPE varchar(20); INSERT INTO u VALUES (2)",
        "ALTER TABLE u RENAME COLUMN id TO number; INSERT INTO u VALUES (3)",
        "ALTER TABLE u ALTER COLUMN g DROP EXPRESSION; INSERT INTO u VALUES (4, 'plain')",
    ] {
        lane.source.execute(statements).await;
    }
    settled(&lane, daemon).await;
    assert_eq!(lane.replica.value("SELECT string_agg(g, ' ' ORDER BY number) FROM u").await, "g1 g2 g3 plain");
}

/// Of PostgreSQL 18, and the default kind there: kept nowhere, so that nothing of it travels.
#[tokio::test(flavor = "multi_thread")]
async fn virtual_generated_columns_are_made_by_init_and_carried() {
    if major_version() < 18 || lane_replica_version().await < 18 {
        return;
    }
    let lane = Lane::new(
        "CREATE TABLE t (id int PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2), kept int GENERATED ALWAYS AS (n * 3) STORED); \
         INSERT INTO t (id, n) SELECT n, n FROM generate_series(1, 10) n",
    )
    .await;
    let kinds = "SELECT string_agg(attname || ' ' || attgenerated::text, ', ' ORDER BY attname) FROM pg_attribute \
         WHERE attrelid = 't'::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated <> ''";
    assert_eq!(lane.replica.value(kinds).await, "kept s, twice v");
    let daemon = lane.start().await;
    lane.source
        .execute("UPDATE t SET n = 7 WHERE id = 1; INSERT INTO t (id, n) VALUES (20, 20); DELETE FROM t WHERE id = 2")
        .await;
    lane.equal().await;
    assert_eq!(lane.replica.value("SELECT twice || ' ' || kept FROM t WHERE id = 1").await, "14 21");

    lane.source
        .execute(
            "ALTER TABLE t ADD COLUMN half numeric GENERATED ALWAYS AS (n / 2.0) VIRTUAL; UPDATE t SET n = 9 WHERE id = 3; \
             CREATE TABLE u (id int PRIMARY KEY, next int GENERATED ALWAYS AS (id + 1)); INSERT INTO u (id) VALUES (1)",
        )
        .await;
    lane.source
        .execute("ALTER TABLE t ADD COLUMN v text GENERATED ALWAYS AS ('n' || n::text); INSERT INTO t (id, n) VALUES (21, 1)")
        .await;
    lane.equal().await;
    assert_eq!(lane.replica.value(kinds).await, "half v, kept s, twice v, v v");
    assert_eq!(lane.replica.value("SELECT half || ' ' || v FROM t WHERE id = 3").await, "4.5000000000000000 n9");
    assert_eq!(
        lane.replica
            .value("SELECT attgenerated::text FROM pg_attribute WHERE attrelid = 'u'::regclass AND attname = 'next'")
            .await,
        "v"
    );
    assert_eq!(lane.replica.value(SHAPE).await, lane.source.value(SHAPE).await);

    // PostgreSQL refuses another expression where a table is published, so that there is none to carry; the way round it is.
    let refused = lane.source.query("ALTER TABLE t ALTER COLUMN twice SET EXPRESSION AS (n * 20)").await.expect_err("refused");
    assert!(refused.to_string().contains("publication"), "{refused}");
    let anew = "ALTER TABLE t DROP COLUMN twice; ALTER TABLE t ADD COLUMN twice int GENERATED ALWAYS AS (n * 20); UPDATE t SET n = 5 WHERE id = 4";
    lane.source.execute(anew).await;
    lane.equal().await;
    assert_eq!(lane.replica.value("SELECT twice FROM t WHERE id = 4").await, "100");
    lane.source.execute("ALTER TABLE t ALTER COLUMN v TYPE varchar(40); ALTER TABLE t RENAME COLUMN n TO m").await;
    lane.source.execute("ALTER TABLE t DROP COLUMN half; INSERT INTO t (id, m) VALUES (22, 2)").await;
    settled(&lane, daemon).await;
    assert_eq!(lane.replica.value(kinds).await, "kept s, twice v, v v");
}

async fn lane_replica_version() -> u32 {
    let number = shared_replica().await.database("postgres").value("SHOW server_version_num").await;
    number.parse::<u32>().expect("a number") / 10_000
}
