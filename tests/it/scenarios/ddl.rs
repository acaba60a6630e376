//! Schema changes that the source's event triggers say reach the replica at their place in the commit order (I3, I4, DESIGN decision 7).

use super::Lane;
use crate::support::daemon::Daemon;

const TRIGGERS: &str = include_str!("../../../migrations/source_postgres/0001_schema_changes.sql");
const T: &str =
    "CREATE TABLE t (id int PRIMARY KEY, v varchar(5), n int); INSERT INTO t SELECT n, 'v', n FROM generate_series(1, 10) n";

/// A live pair whose source says its schema changes.
async fn lane(ddl: &str) -> Lane<'static> {
    let lane = Lane::new(ddl).await;
    let publication = lane.source.value("SELECT pubname FROM pg_publication").await;
    lane.source.execute(&format!("CREATE SCHEMA millstream; {TRIGGERS}")).await;
    lane.source
        .execute(&format!(
            "ALTER PUBLICATION \"{publication}\" ADD TABLE ONLY millstream.schema_change; \
             INSERT INTO millstream.captured VALUES ('{publication}', ARRAY['^public' || chr(31)]); \
             INSERT INTO millstream.known_table SELECT prrelid, millstream.facts(prrelid) FROM pg_publication_rel \
             WHERE millstream.facts(prrelid) ->> 'schema' <> 'millstream'"
        ))
        .await;
    lane
}

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
    let lane = lane(T).await;
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
    let lane =
        lane("CREATE TYPE mood AS ENUM ('a', 'b'); CREATE TABLE t (id int PRIMARY KEY, m mood); INSERT INTO t VALUES (1, 'a')")
            .await;
    let daemon = lane.start().await;
    lane.source.execute("ALTER TYPE mood ADD VALUE 'c' BEFORE 'b'").await;
    lane.source.execute("INSERT INTO t VALUES (2, 'c')").await;
    lane.source
        .execute("BEGIN; CREATE TABLE u (id int PRIMARY KEY, m mood DEFAULT 'a'); INSERT INTO u VALUES (1, 'b'); COMMIT")
        .await;
    lane.source.execute("BEGIN; ALTER TABLE t RENAME TO x; ALTER TABLE u RENAME TO t; ALTER TABLE x RENAME TO u; COMMIT").await;
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
    let lane = lane(T).await;
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
    let lane = lane(T).await;
    let daemon = lane.start().await;
    lane.source.execute("CREATE TABLE late (v int); INSERT INTO late VALUES (1); ALTER TABLE late ADD PRIMARY KEY (v)").await;
    let published = "SELECT count(*) FROM pg_publication_tables WHERE tablename = 'late'";
    assert_eq!(lane.source.value(published).await, "0");
    lane.source.execute("DROP TABLE late; CREATE TABLE late (v int); ALTER TABLE late ADD PRIMARY KEY (v)").await;
    assert_eq!(lane.source.value(published).await, "1", "an empty one has nothing to copy");
    lane.source.execute("INSERT INTO late VALUES (2)").await;
    settled(&lane, daemon).await;
}

/// I7.
#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_that_cannot_write_makes_no_statement_fail() {
    let lane = lane(T).await;
    lane.source.execute("ALTER TABLE millstream.schema_change RENAME TO broken").await;
    lane.source
        .execute("SET search_path = 'millstream'; ALTER TABLE public.t ADD COLUMN x int; DROP TABLE public.t; CREATE TABLE public.s (id int PRIMARY KEY)")
        .await;
    assert_eq!(lane.source.value("SELECT to_regclass('public.t') IS NULL AND to_regclass('public.s') IS NOT NULL").await, "t");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_before_the_commit_of_a_schema_change_makes_it_once() {
    let lane = lane(T).await;
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
