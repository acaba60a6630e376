//! FAULTS 27, 28 and 33: somebody wrote to the replica, it refuses a row, or its tables do not fit. Each halts loudly, says what to mend,
//! and goes on by itself once it is mended (I5).

use super::Lane;
use crate::support::postgres::{PgServer, shared, shared_replica};
use crate::support::template::major_version;
use crate::support::tls::CertificateWish;

/// Without event triggers on the source.
const HALT: &str = "schema_changes = \"halt\"";
const T: &str =
    "CREATE TABLE t (id int PRIMARY KEY, v text, n int); INSERT INTO t SELECT n, 'v', n FROM generate_series(1, 10) n";

#[tokio::test(flavor = "multi_thread")]
async fn an_update_without_its_row_halts_and_names_it() {
    let lane = Lane::new(T).await;
    let _daemon = lane.start().await;
    lane.replica.execute("DELETE FROM t WHERE id = 7").await;
    lane.source.execute("UPDATE t SET v = 'new' WHERE id = 7").await;
    lane.source.execute("INSERT INTO t VALUES (11, 'later', 0)").await;
    let status = lane.halted(&["replica_conflict"]).await;
    assert!(status.contains("public") && status.contains('7'), "names table and key: {status}");
    assert_eq!(lane.replica.value("SELECT count(*) FROM t WHERE id = 11").await, "0", "nothing is read past it");
    lane.replica.execute("INSERT INTO t VALUES (7, 'v', 7)").await;
    lane.equal().await;
    lane.site.ready(super::CATCH_UP).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_insert_that_meets_a_row_halts() {
    let lane = Lane::new(T).await;
    let _daemon = lane.start().await;
    lane.replica.execute("INSERT INTO t VALUES (12, 'rogue', 0)").await;
    lane.source.execute("INSERT INTO t VALUES (12, 'ours', 0)").await;
    lane.halted(&["replica_conflict"]).await;
    lane.replica.execute("DELETE FROM t WHERE id = 12").await;
    lane.equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_without_its_row_halts() {
    let lane = Lane::new(T).await;
    let _daemon = lane.start().await;
    lane.replica.execute("DELETE FROM t WHERE id = 3").await;
    lane.source.execute("DELETE FROM t WHERE id = 3").await;
    lane.halted(&["replica_conflict"]).await;
    lane.replica.execute("INSERT INTO t VALUES (3, 'v', 3)").await;
    lane.equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_constraint_of_the_replicas_own_halts_until_it_is_dropped() {
    let lane = Lane::new(T).await;
    let _daemon = lane.start().await;
    lane.replica.execute("ALTER TABLE t ADD CONSTRAINT small CHECK (n < 100)").await;
    lane.source.execute("INSERT INTO t VALUES (20, 'poison', 1000)").await;
    let status = lane.halted(&["replica_constraint"]).await;
    assert!(status.contains("small"), "names the constraint: {status}");
    lane.replica.execute("ALTER TABLE t DROP CONSTRAINT small").await;
    lane.equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_table_halts_until_the_replica_fits_and_capture_goes_on() {
    let lane = Lane::with(T, HALT).await;
    let _daemon = lane.start().await;
    lane.source.execute("INSERT INTO t VALUES (30, 'before', 0)").await;
    lane.source.execute("ALTER TABLE t ADD COLUMN more text").await;
    lane.source.execute("INSERT INTO t VALUES (31, 'after', 0, 'more')").await;
    lane.halted(&["schema_mismatch"]).await;
    let behind = "SELECT pg_current_wal_flush_lsn() - confirmed_flush_lsn < 1000000 FROM pg_replication_slots WHERE database = current_database()";
    assert_eq!(lane.source.value(behind).await, "t", "capture goes on (I7)");
    lane.replica.execute("ALTER TABLE t ADD COLUMN more text").await;
    lane.equal().await;
    lane.source.execute("ALTER TABLE t DROP COLUMN n; UPDATE t SET more = 'x'").await;
    lane.replica.execute("ALTER TABLE t DROP COLUMN n").await;
    lane.equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_is_gone_halts_and_is_not_made_anew() {
    let lane = Lane::new(T).await;
    let daemon = lane.start().await;
    daemon.kill();
    lane.replica.execute("DROP SCHEMA millstream CASCADE").await;
    lane.source.execute("INSERT INTO t VALUES (40, 'x', 0)").await;
    let _daemon = lane.site.start();
    lane.halted(&["ledger_damaged", "not_initialized"]).await;
    assert_eq!(lane.replica.value("SELECT count(*) FROM t").await, "10");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_gone_halts_and_is_not_made_anew() {
    let lane = Lane::new(T).await;
    let daemon = lane.start().await;
    daemon.kill();
    std::fs::remove_dir_all(lane.site.folder().join("queue")).expect("the queue");
    lane.source.execute("INSERT INTO t VALUES (40, 'x', 0)").await;
    let _daemon = lane.site.start();
    lane.halted(&["slot_unknown", "queue_lost"]).await;
    assert_eq!(lane.replica.value("SELECT count(*) FROM t").await, "10");
}

/// FAULTS 36: an older daemon does not guess at what a newer one's ledger means, and a newer one upgrades an older ledger as it starts.
#[tokio::test(flavor = "multi_thread")]
async fn a_newer_ledger_is_not_read_and_an_older_one_is_upgraded() {
    let lane = Lane::new("CREATE TABLE t (id int PRIMARY KEY)").await;
    lane.replica
        .execute(
            "INSERT INTO millstream.schema_version (version, description, success, checksum, execution_time) VALUES (9000, 'later', true, '', 0)",
        )
        .await;
    let daemon = lane.site.start();
    lane.halted(&["format_too_new"]).await;
    assert!(daemon.log().contains("version 9000, which a newer Millstream made"), "{}", daemon.log());
    let refused = lane.site.run(&["init"]).await;
    assert!(refused.code == Some(1) && refused.stderr.contains("format_too_new"), "{refused:?}");
    lane.replica.execute("DELETE FROM millstream.schema_version WHERE version = 9000").await;
    lane.source.execute("INSERT INTO t VALUES (1)").await;
    lane.equal().await;
    daemon.terminate().await;

    // As the first version made it.
    lane.replica
        .execute(
            "DELETE FROM millstream.schema_version WHERE version > 1; ALTER TABLE millstream.copied_table DROP COLUMN timeline, \
             DROP COLUMN source_oid, DROP COLUMN replica_table, DROP COLUMN named_by, DROP COLUMN recopy_asked_at, DROP COLUMN shadow; \
             DROP TABLE millstream.refused, millstream.quarantine, millstream.quarantined_table, millstream.quarantined_key, \
             millstream.quarantined_piece, millstream.quarantined_version",
        )
        .await;
    let daemon = lane.start().await;
    lane.source.execute("INSERT INTO t VALUES (2)").await;
    lane.equal().await;
    assert!(daemon.log().contains("is brought to this version"), "{}", daemon.log());
    let column =
        "SELECT count(*) FROM pg_attribute WHERE attrelid = 'millstream.copied_table'::regclass AND attname = 'timeline'";
    assert_eq!(lane.replica.value(column).await, "1");
    daemon.terminate().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_somebody_drops_is_named() {
    let lane = Lane::new(T).await;
    let _daemon = lane.start().await;
    lane.replica.execute("DROP SCHEMA millstream CASCADE").await;
    lane.source.execute("INSERT INTO t VALUES (30, 'lost', 0)").await;
    lane.halted(&["ledger_damaged"]).await;
}

/// The words named neither the replica nor the column.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_of_the_ledger_that_makes_no_sense_halts_and_says_where() {
    let lane = Lane::new(T).await;
    assert_eq!(lane.start().await.terminate().await.code(), Some(0));
    lane.replica
        .execute(
            "CREATE TABLE kept AS TABLE millstream.replica; CREATE TABLE kept_tables AS TABLE millstream.copied_table; \
             ALTER TABLE millstream.copied_table DROP CONSTRAINT copied_table_state_check",
        )
        .await;
    lane.source.execute("INSERT INTO t VALUES (50, 'x', 0)").await;
    let (replica, tables) = ("millstream.replica, row 'reports'", "millstream.copied_table of replica 'reports', table public.t");
    for (nonsense, place, column) in [
        ("UPDATE millstream.replica SET cursor = '\"nonsense\"'", replica, "cursor"),
        ("UPDATE millstream.replica SET cursor = cursor - 'offset'", replica, "cursor"),
        ("UPDATE millstream.replica SET cursor = jsonb_set(cursor, '{number}', '-1')", replica, "cursor"),
        ("UPDATE millstream.replica SET history = '{}'", replica, "history"),
        ("UPDATE millstream.replica SET stream = 'none'", replica, "stream"),
        ("UPDATE millstream.copied_table SET state = 'nonsense'", tables, "state"),
        ("UPDATE millstream.copied_table SET source_oid = -1", tables, "source_oid"),
    ] {
        lane.replica.execute(nonsense).await;
        let daemon = lane.site.start();
        let status: serde_json::Value = serde_json::from_str(&lane.halted(&["ledger_damaged"]).await).expect("JSON");
        let error = status["replicas"]["reports"]["error"].as_str().expect("an error");
        assert!(
            error.starts_with("replica 'reports': ") && error.contains(&format!("{place}: column {column} ")),
            "{nonsense}: {error}"
        );
        assert!(daemon.log().contains(&format!("{place}: column {column} ")), "{nonsense}: {}", daemon.log());
        assert_eq!(daemon.terminate().await.code(), Some(0), "{nonsense}");
        assert_eq!(lane.replica.value("SELECT count(*) FROM t").await, "10", "{nonsense}: nothing is applied by a guess");
        let mended = "UPDATE millstream.replica r SET cursor = k.cursor, history = k.history, stream = k.stream FROM kept k; \
             UPDATE millstream.copied_table c SET state = k.state, source_oid = k.source_oid FROM kept_tables k";
        lane.replica.execute(mended).await;
    }
    let _daemon = lane.start().await;
    lane.equal().await;
}

/// `init` was to copy it, and failed at its key's name.
#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_table_is_followed_once_the_replica_has_the_name() {
    let lane =
        Lane::with("CREATE SCHEMA other; CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')", HALT).await;
    let _daemon = lane.start().await;
    lane.source.execute("INSERT INTO t VALUES (2, 'b')").await;
    lane.equal().await;
    lane.replica.execute("CREATE SCHEMA IF NOT EXISTS other").await;
    lane.source
        .execute(
            "ALTER TABLE t SET SCHEMA other; ALTER TABLE other.t RENAME TO \"T 2\"; INSERT INTO other.\"T 2\" VALUES (3, 'c')",
        )
        .await;
    let status: serde_json::Value = serde_json::from_str(&lane.halted(&["schema_mismatch"]).await).expect("JSON");
    let error = status["replicas"]["reports"]["error"].as_str().expect("an error").to_owned();
    let statements = error.split_once("run there what was run on the source: ").expect("statements").1;
    lane.replica.execute(statements).await;
    lane.equal().await;
    lane.site.ready(super::CATCH_UP).await;
}

/// Detached at the source, its rows were still the partitioned table's here, and nothing said so.
#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_is_detached_or_attached_is_named_by_check() {
    let lane = Lane::with("CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10); \
         CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20); CREATE TABLE q (id int PRIMARY KEY); INSERT INTO p VALUES (1), (11)", HALT).await;
    let _daemon = lane.start().await;
    lane.source.execute("ALTER TABLE p DETACH PARTITION p1; ALTER TABLE p ATTACH PARTITION q FOR VALUES FROM (30) TO (40)").await;
    lane.source.execute("INSERT INTO p VALUES (31)").await;
    let report = lane.site.run(&["check", "--json"]).await.stdout;
    let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
    let found: Vec<_> = report["findings"].as_array().expect("findings").iter().filter(|f| f["check"] == "partition").collect();
    assert_eq!(found.len(), 2, "{report:#}");
    for finding in found {
        lane.replica.execute(finding["remedy"]["steps"][0].as_str().expect("a statement")).await;
    }
    lane.equal().await;
    assert_eq!(lane.replica.value("SELECT string_agg(id::text, ' ' ORDER BY id) FROM p").await, "11 31");
    assert!(!lane.site.run(&["check"]).await.stdout.contains("partition:"));
}

/// Applied by name alone, the rows of one table went into another in silence (I3).
#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_another_table_takes_halts_until_the_replica_renames_as_well() {
    let lane = Lane::with(
        "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (LIKE t INCLUDING ALL); CREATE TABLE w (LIKE t INCLUDING ALL); \
         INSERT INTO t VALUES (1, 't'); INSERT INTO u VALUES (2, 'u')",
        HALT,
    )
    .await;
    let daemon = lane.start().await;
    let swap = "ALTER TABLE t RENAME TO x; ALTER TABLE u RENAME TO t";
    lane.source.execute(&format!("INSERT INTO u VALUES (3, 'u'); {swap}; INSERT INTO t VALUES (99, 'u')")).await;
    let status = lane.halted(&["schema_mismatch"]).await;
    assert!(status.contains("table public.u is public.t on the source now"), "{status}");
    assert_eq!(lane.replica.value("SELECT count(*) FROM t").await, "1", "nothing of u came here");
    lane.replica.execute(swap).await;
    lane.equal().await;
    // The table that had the name is followed too, though the log has said nothing of it.
    lane.source.execute("INSERT INTO x VALUES (4, 't')").await;
    lane.equal().await;

    // Names are there on both sides before and after: only numbers tell. A replica that came from a dump has others.
    assert_eq!(daemon.terminate().await.code(), Some(0));
    lane.replica.execute("UPDATE millstream.copied_table SET replica_table = '1/2/3'").await;
    let daemon = lane.start().await;
    let change_places = "ALTER TABLE t RENAME TO y; ALTER TABLE w RENAME TO t; ALTER TABLE y RENAME TO w";
    lane.source.execute(&format!("{change_places}; INSERT INTO t VALUES (5, 'w'); INSERT INTO w VALUES (6, 'u')")).await;
    lane.halted(&["schema_mismatch"]).await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
    let daemon = lane.site.start();
    lane.halted(&["schema_mismatch"]).await;
    lane.replica.execute(change_places).await;
    lane.equal().await;
    lane.site.ready(super::CATCH_UP).await;

    // Before the source: rows go to the table, whatever it is called here.
    assert_eq!(daemon.terminate().await.code(), Some(0));
    lane.replica.execute(change_places).await;
    lane.source.execute("INSERT INTO t VALUES (7, 'w'); INSERT INTO w VALUES (8, 'u')").await;
    let daemon = lane.start().await;
    let there = |sql| until_value(&lane.replica, sql);
    there("SELECT count(*) FROM w WHERE id = 7").await;
    there("SELECT count(*) FROM t WHERE id = 8").await;
    lane.source.execute(&format!("{change_places}; INSERT INTO t VALUES (10, 'u')")).await;
    lane.equal().await;
    lane.site.ready(super::CATCH_UP).await;

    // Killed behind the ledger's names and before the rows, which have the names of before as well.
    assert_eq!(daemon.terminate().await.code(), Some(0));
    lane.replica.execute(change_places).await;
    let both = "INSERT INTO t VALUES (11, 'u'); INSERT INTO w VALUES (12, 'w')";
    lane.source.execute(&format!("{both}; {change_places}; INSERT INTO t VALUES (13, 'w')")).await;
    let killed = lane.site.start_with(&[("FAILPOINTS", "apply.before_commit=return(kill)")]);
    let ended = killed.wait(super::CATCH_UP).await;
    assert_eq!(ended.and_then(|status| std::os::unix::process::ExitStatusExt::signal(&status)), Some(9), "{ended:?}");
    assert_eq!(lane.replica.value("SELECT count(*) FROM t WHERE id > 10").await, "0");
    let _daemon = lane.start().await;
    lane.equal().await;
}

/// What has the name is not what had it, and nobody said so.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_put_in_anothers_place_on_the_replica_gets_none_of_its_rows() {
    let lane = Lane::with(&format!("{T}; CREATE TABLE kept (id int PRIMARY KEY)"), HALT).await;
    assert_eq!(lane.start().await.terminate().await.code(), Some(0));
    lane.replica.execute("ALTER TABLE t RENAME TO t_old; CREATE TABLE t (LIKE t_old INCLUDING ALL)").await;
    lane.source.execute("INSERT INTO t VALUES (30, 'x', 1)").await;
    let daemon = lane.site.start();
    let status = lane.halted(&["schema_mismatch"]).await;
    assert!(status.contains("was renamed to public.t_old by hand"), "{status}");
    assert_eq!(lane.replica.value("SELECT count(*) FROM t").await, "0");
    lane.replica.execute("DROP TABLE t; ALTER TABLE t_old RENAME TO t").await;
    lane.equal().await;
    // Rebuilt with every row of it, while nobody writes.
    assert_eq!(daemon.terminate().await.code(), Some(0));
    lane.replica
        .execute("BEGIN; ALTER TABLE t RENAME TO t_old; CREATE TABLE t (LIKE t_old INCLUDING ALL); INSERT INTO t SELECT * FROM t_old; DROP TABLE t_old; COMMIT")
        .await;
    lane.source.execute("INSERT INTO t VALUES (31, 'y', 1)").await;
    let daemon = lane.site.start();
    let status = lane.halted(&["schema_mismatch"]).await;
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    let said = status["replicas"]["reports"]["error"].as_str().expect("an error");
    assert!(said.contains("is not the one that was copied"), "{said}");
    assert_eq!(lane.replica.value("SELECT count(*) FROM t WHERE id = 31").await, "0");
    let (_, statement) = said.split_once("say so there: ").expect("a statement");
    lane.replica.execute(statement.split("')").next().map(|head| format!("{head}')")).expect("a statement").as_str()).await;
    lane.equal().await;
    lane.site.ready(super::CATCH_UP).await;

    // The other way that the halt names: copied again, beside a replica that stands at it.
    assert_eq!(daemon.terminate().await.code(), Some(0));
    lane.replica.execute("BEGIN; DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, v text, n int); COMMIT").await;
    lane.source.execute("INSERT INTO t VALUES (32, 'z', 1)").await;
    let _daemon = lane.site.start();
    lane.halted(&["schema_mismatch"]).await;
    let text = std::fs::read_to_string(lane.site.configuration()).expect("configuration");
    lane.site.configure(&text.replacen("\"public.*\"", "\"public.*\", \"!public.t\"", 1));
    crate::support::wait::until("it to leave", super::CATCH_UP, async || {
        lane.site.run(&["init"]).await;
        lane.replica.value("SELECT count(*) FROM millstream.copied_table WHERE table_name = 't'").await == "0"
    })
    .await;
    lane.replica.execute("TRUNCATE t").await;
    lane.site.configure(&text);
    lane.site.must(&["init"]).await;
    lane.equal().await;
}

/// The same table is in the ledger twice until the old name has left.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_moves_and_is_copied_anew_loses_nothing_to_the_one_that_leaves() {
    let lane =
        Lane::with("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY); INSERT INTO t VALUES (1)", HALT)
            .await;
    assert_eq!(lane.start().await.terminate().await.code(), Some(0));
    let text = std::fs::read_to_string(lane.site.configuration()).expect("configuration");
    lane.site.configure(&text.replacen("\"public.*\"", "\"public.*\", \"two.*\"", 1));
    lane.source
        .execute("INSERT INTO t VALUES (2); CREATE SCHEMA two; ALTER TABLE t SET SCHEMA two; INSERT INTO two.t VALUES (3)")
        .await;
    lane.site.must(&["init"]).await;
    lane.source.execute("INSERT INTO two.t VALUES (4); INSERT INTO u VALUES (1)").await;
    let _daemon = lane.site.start();
    let moved = "SELECT coalesce(string_agg(id::text, ' ' ORDER BY id), '') FROM two.t";
    crate::support::wait::until("the copy", super::CATCH_UP, async || lane.replica.value(moved).await == "1 2 3 4").await;
    for id in 5..15 {
        lane.source.execute(&format!("INSERT INTO two.t VALUES ({id})")).await;
    }
    let all = lane.source.value(moved).await;
    crate::support::wait::until("every row", super::CATCH_UP, async || lane.replica.value(moved).await == all).await;
    crate::support::wait::until("the old one to leave", super::CATCH_UP, async || {
        lane.site.run(&["init"]).await;
        lane.replica.value("SELECT count(*) FROM millstream.copied_table WHERE table_name = 't'").await == "1"
    })
    .await;
    lane.source.execute("UPDATE two.t SET id = 100 WHERE id = 1").await;
    let all = lane.source.value(moved).await;
    crate::support::wait::until("every row", super::CATCH_UP, async || lane.replica.value(moved).await == all).await;
}

async fn until_value(replica: &crate::support::postgres::PgDatabase<'_>, sql: &str) {
    crate::support::wait::until(sql, super::CATCH_UP, async || replica.value(sql).await == "1").await;
}

/// A table of the same name is not the same table.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_dropped_and_made_anew_halts_until_it_is_copied() {
    let lane = Lane::with(
        "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (LIKE t INCLUDING ALL); INSERT INTO t VALUES (1, 'old')",
        HALT,
    )
    .await;
    let _daemon = lane.start().await;
    let publication = lane.source.value("SELECT pubname FROM pg_publication").await;
    lane.source.execute("DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (5, 'unseen')").await;
    let found = lane.site.run(&["check"]).await;
    assert!(found.code == Some(1) && found.stdout.contains("captured"), "{found:?}");
    lane.source
        .execute(&format!(
            "ALTER PUBLICATION {publication} ADD TABLE t; INSERT INTO t VALUES (6, 'new'); INSERT INTO u VALUES (1, 'behind it')"
        ))
        .await;
    let status = lane.halted(&["schema_mismatch"]).await;
    assert!(status.contains("is not the table that was copied"), "{status}");
    assert_eq!(lane.replica.value("SELECT string_agg(v, ' ') FROM t").await, "old");
    // As the halt says.
    let with = std::fs::read_to_string(lane.site.configuration()).expect("configuration");
    let without = with.replacen("\"public.*\"", "\"public.*\", \"!public.t\"", 1);
    assert_ne!(with, without);
    lane.site.configure(&without);
    let left = "SELECT count(*) FROM millstream.copied_table WHERE table_name = 't'";
    crate::support::wait::until("t to leave", super::CATCH_UP, async || {
        lane.site.run(&["init"]).await;
        lane.replica.value(left).await == "0"
    })
    .await;
    lane.replica.execute("TRUNCATE t").await;
    lane.site.configure(&with);
    lane.site.must(&["init"]).await;
    lane.equal().await;
    assert_eq!(lane.replica.value("SELECT string_agg(v, ' ' ORDER BY id) FROM t").await, "unseen new");
    let found = lane.site.run(&["check", "--json"]).await;
    assert!(!found.stdout.contains("\"captured\""), "{found:?}");
}

/// By its name such a table was missing, and the remedy was to empty it.
#[tokio::test(flavor = "multi_thread")]
async fn check_tells_what_is_captured_no_more_from_what_was_renamed_and_from_what_may_still_come() {
    let lane = Lane::with(
        "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE \"a.b\" (id int PRIMARY KEY); INSERT INTO t VALUES (1)",
        HALT,
    )
    .await;
    let captured = async || {
        let report = lane.site.run(&["check", "--json"]).await.stdout;
        let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
        let all = report["findings"].as_array().expect("findings").iter().filter(|f| f["check"] == "captured").cloned();
        all.collect::<Vec<_>>()
    };
    let daemon = lane.start().await;
    lane.source.execute("ALTER TABLE t RENAME TO moved").await;
    assert_eq!(captured().await, [serde_json::Value::Null; 0], "its changes come under its new name");
    let publication = lane.source.value("SELECT pubname FROM pg_publication").await;
    lane.source.execute("DROP TABLE \"a.b\"; CREATE TABLE \"a.b\" (id int PRIMARY KEY)").await;
    let found = captured().await;
    assert!(found.len() == 1 && found[0]["severity"] == "error", "{found:#?}");
    let step = found[0]["remedy"]["steps"][0].as_str().expect("a step");
    assert!(step.starts_with(r#"add "!public.\"a.b\"" to the source's tables"#), "{step}");

    assert_eq!(daemon.terminate().await.code(), Some(0));
    let late = "UPDATE millstream.replica SET source_time_us = source_time_us - 60000000";
    lane.replica.execute(late).await;
    let found = captured().await;
    assert!(found.len() == 1 && found[0]["severity"] == "warning" && !found[0].to_string().contains("drop"), "{found:#?}");
    lane.source.execute(&format!("DROP PUBLICATION {publication}; CREATE PUBLICATION {publication} FOR ALL TABLES")).await;
    // Beside a publication that was altered nothing but a new copy of all mends it.
    let found = captured().await;
    assert!(found.iter().all(|f| f["remedy"]["steps"][0].as_str().is_some_and(|step| step.contains("teardown"))), "{found:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_is_changed_in_its_file_needs_no_restart() {
    let server = PgServer::start().await;
    let lane = Lane::on(shared().await, &server, T).await;
    lane.replica.execute("ALTER ROLE millstream PASSWORD 'first'").await;
    server.set_hba("local all all trust\nhost all all 127.0.0.1/32 scram-sha-256");
    let file = lane.site.folder().join("reports.pw");
    let password = |text: &str| {
        std::fs::write(&file, text).expect("a password file");
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("its mode");
    };
    password("first\n");
    let text = std::fs::read_to_string(lane.site.configuration()).expect("configuration");
    let line = format!("[replica.reports]\npassword_file = \"{}\"", file.display());
    lane.site.configure(&text.replacen("[replica.reports]", &line, 1));
    let daemon = lane.start().await;
    lane.replica
        .execute("ALTER ROLE millstream PASSWORD 'second'; SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'millstream apply%'")
        .await;
    lane.source.execute("INSERT INTO t VALUES (30, 'late', 0)").await;
    lane.halted(&["replica_denied"]).await;
    password("second\n");
    lane.equal().await;
    lane.site.ready(super::CATCH_UP).await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
}

/// It was tried again for ever, as a network's trouble is.
#[tokio::test(flavor = "multi_thread")]
async fn a_replicas_certificate_that_does_not_pass_halts_and_is_78_for_commands() {
    let server = PgServer::builder().tls(CertificateWish::default()).start().await;
    let lane = Lane::on(shared().await, &server, T).await;
    let text = std::fs::read_to_string(lane.site.configuration()).expect("configuration");
    let (url, plain) = (lane.replica.url(), "sslmode=disable");
    assert!(text.contains(&url) && url.ends_with(plain), "{text}");
    let with = |tls: &str| text.replacen(&url, &url.replacen(plain, tls, 1), 1);
    lane.site.configure(&with("sslmode=verify-full"));
    let daemon = lane.site.start();
    lane.source.execute("INSERT INTO t VALUES (30, 'later', 0)").await;
    let status = lane.halted(&["misconfigured"]).await;
    assert!(status.contains("see sslmode and sslrootcert") && status.contains("UnknownIssuer"), "{status}");
    let refused = lane.site.run(&["init"]).await;
    assert!(refused.code == Some(78) && refused.stderr.contains("see sslmode and sslrootcert"), "{refused:?}");
    assert_eq!(daemon.terminate().await.code(), Some(0));
    lane.site.configure(&with(&format!("sslmode=verify-full&sslrootcert={}", server.tls().ca.display())));
    let _daemon = lane.start().await;
    lane.equal().await;
    let encrypted = "SELECT bool_and(ssl)::text FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name LIKE 'millstream apply%'";
    assert_eq!(lane.replica.value(encrypted).await, "true");
}

/// What a publication leaves out is not on the stream, lag stays green, and putting it back brings nothing: only a new copy does.
#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_somebody_alters_halts_until_a_new_copy() {
    let lane = Lane::new(T).await;
    let name = lane.source.value("SELECT pubname FROM pg_publication").await;
    let publishes = |what: &str| format!("ALTER PUBLICATION {name} SET (publish = '{what}')");
    let (taken_out, put_back) =
        (format!("ALTER PUBLICATION {name} DROP TABLE t"), format!("ALTER PUBLICATION {name} ADD TABLE ONLY t"));
    let mut ways = vec![
        (publishes("insert, update"), publishes("insert, update, delete, truncate")),
        (taken_out.clone(), put_back.clone()),
        (
            format!("DROP PUBLICATION {name}"),
            format!("CREATE PUBLICATION {name} FOR TABLE ONLY t, ONLY millstream.schema_change"),
        ),
    ];
    if major_version() >= 15 {
        let back = format!("{taken_out}; {put_back}");
        ways.push((format!("{taken_out}; {put_back} WHERE (id > 5)"), back.clone()));
        ways.push((format!("{taken_out}; {put_back} (id, v)"), back));
    }
    for (n, (alter, mend)) in ways.iter().enumerate() {
        let daemon = lane.start().await;
        lane.equal().await;
        lane.source.execute(alter).await;
        let status = lane.halted(&["publication_altered"]).await;
        assert!(status.contains("was altered"), "{status}");
        lane.source.execute(&format!("DELETE FROM t WHERE id = 1; INSERT INTO t VALUES ({}, 'left out', 0)", 30 + n)).await;
        // Nor does `init` make it look sound.
        assert_eq!(lane.site.run(&["init"]).await.code, Some(78), "{alter}");
        if *alter == taken_out {
            // So `check` sends there no more.
            let report: serde_json::Value =
                serde_json::from_str(&lane.site.run(&["check", "--json"]).await.stdout).expect("JSON");
            let mut findings = report["findings"].as_array().expect("findings").iter();
            let found = findings.find(|f| f["check"] == "captured").expect("the finding");
            let steps = found["remedy"]["steps"].to_string();
            assert!(found["severity"] == "error" && steps.contains("teardown --source shop"), "{found:#}");
        }
        lane.source.execute(mend).await;
        assert_eq!(daemon.terminate().await.code(), Some(0));
        stays_altered_until_a_new_copy(&lane).await;
    }
    // Nobody looks: the mark tells.
    lane.source.execute(&format!("{}; {}", ways[0].0, ways[0].1)).await;
    stays_altered_until_a_new_copy(&lane).await;
    // That the triggers' own table was out for a time as well.
    let own = format!("ALTER PUBLICATION {name} DROP TABLE millstream.schema_change");
    lane.source.execute(&format!("{own}; {}", own.replace("DROP", "ADD"))).await;
    stays_altered_until_a_new_copy(&lane).await;
    let daemon = lane.start().await;
    lane.equal().await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
    // One that is somebody else's is his to drop.
    let other = format!("other_{:08x}", rand::random::<u32>());
    lane.source.execute(&format!("CREATE ROLE {other} SUPERUSER; ALTER PUBLICATION {name} OWNER TO {other}")).await;
    let refused = lane.site.run(&["teardown", "--yes"]).await;
    let way = format!("DROP PUBLICATION \"{name}\"");
    assert!(refused.code != Some(0) && (refused.stdout + &refused.stderr).contains(&way), "{way}");
    lane.source.execute(&way).await;
    lane.site.must(&["teardown", "--yes"]).await;
}

/// Out and back between two looks, beside a daemon that runs and while none does: changes in between were lost in silence.
async fn comes_and_goes_unseen(lane: &Lane<'_>) {
    let name = lane.source.value("SELECT pubname FROM pg_publication").await;
    let (out, back) = (format!("ALTER PUBLICATION {name} DROP TABLE t"), format!("ALTER PUBLICATION {name} ADD TABLE ONLY t"));
    let mut ways = vec![format!("{out}; {back}")];
    if major_version() >= 15 {
        ways.push(format!("ALTER PUBLICATION {name} SET TABLE t WHERE (id > 5), TABLE u, TABLE later, TABLE moved; ALTER PUBLICATION {name} SET TABLE t, TABLE u, TABLE later, TABLE moved"));
    }
    let published = "SELECT string_agg(tablename, ' ' ORDER BY tablename) FROM pg_publication_tables WHERE schemaname = 'public'";
    let triggers = "SELECT count(*) FROM pg_publication_tables WHERE schemaname = 'millstream'";
    for (way, running) in ways.iter().flat_map(|way| [(way, true), (way, false)]) {
        assert_eq!(lane.source.value(published).await, "later moved t u");
        let all =
            if lane.source.value(triggers).await == "1" { "TABLE moved, TABLE millstream.schema_change" } else { "TABLE moved" };
        let way = way.replace("TABLE moved", all);
        let daemon = lane.start().await;
        lane.equal().await;
        if running {
            lane.source.execute(&way).await;
            let status = lane.halted(&["publication_altered"]).await;
            assert!(status.contains("table public.t was taken out of it and put back"), "{status}");
        }
        assert_eq!(daemon.terminate().await.code(), Some(0));
        if !running {
            lane.source.execute(&way).await;
        }
        stays_altered_until_a_new_copy(lane).await;
    }
}

/// What `init` and the triggers do to the publication themselves is nobody's alteration: tables that are added, that leave and come back, that are made, dropped,
/// lose their key.
async fn own_changes_never_halt(lane: &Lane<'_>) {
    let daemon = lane.start().await;
    let with = std::fs::read_to_string(lane.site.configuration()).expect("configuration");
    let without = with.replacen("\"public.*\"", "\"public.*\", \"!public.moved\"", 1);
    assert_ne!(with, without);
    for round in 0..2 {
        let made =
            format!("CREATE TABLE IF NOT EXISTS later (id int PRIMARY KEY); CREATE TABLE passing{round} (id int PRIMARY KEY)");
        lane.source.execute(&made).await;
        lane.site.must(&["init"]).await;
        lane.equal().await;
        let gone = format!("DROP TABLE passing{round}; ALTER TABLE u RENAME TO renamed; ALTER TABLE renamed RENAME TO u");
        lane.source.execute(&gone).await;
        lane.site.configure(&without);
        let left = "SELECT count(*) FROM millstream.copied_table WHERE table_name = 'moved'";
        crate::support::wait::until("the table to leave", super::CATCH_UP, async || {
            lane.site.run(&["init"]).await;
            lane.replica.value(left).await == "0"
        })
        .await;
        lane.replica.execute("TRUNCATE moved").await;
        lane.site.configure(&with);
        lane.site.must(&["init"]).await;
        lane.source.execute(&format!("INSERT INTO moved VALUES ({round}); INSERT INTO later VALUES ({round})")).await;
        lane.equal().await;
    }
    // Past a look, and past a connection.
    lane.site.ready(super::CATCH_UP).await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
    let daemon = lane.start().await;
    lane.equal().await;
    assert!(!lane.site.all_logs().contains("publication_altered"), "{}", lane.site.all_logs());
    assert!(lane.site.run(&["check"]).await.stdout.contains("leaves nothing out"));
    assert_eq!(daemon.terminate().await.code(), Some(0));
}

const T_AND_MORE: &str = "CREATE TABLE t (id int PRIMARY KEY, v text, n int); CREATE TABLE u (id int PRIMARY KEY); CREATE TABLE moved (id int PRIMARY KEY); \
     INSERT INTO t VALUES (1, 'a', 1), (9, 'b', 2)";

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_is_altered_and_put_back_unseen_halts_and_own_changes_do_not() {
    let lane = Lane::new(T_AND_MORE).await;
    own_changes_never_halt(&lane).await;
    comes_and_goes_unseen(&lane).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_is_altered_and_put_back_unseen_halts_without_the_triggers_too() {
    let lane = Lane::with(T_AND_MORE, HALT).await;
    own_changes_never_halt(&lane).await;
    comes_and_goes_unseen(&lane).await;
}

async fn stays_altered_until_a_new_copy(lane: &Lane<'_>) {
    let daemon = lane.site.start();
    lane.halted(&["publication_altered"]).await;
    daemon.kill();
    let refused = lane.site.run(&["init"]).await;
    assert!(refused.code == Some(78) && refused.stderr.contains("was altered"), "{refused:?}");
    let report: serde_json::Value = serde_json::from_str(&lane.site.run(&["check", "--json"]).await.stdout).expect("JSON");
    let findings = report["findings"].as_array().expect("findings");
    let finding = findings.iter().find(|f| f["check"] == "publication").expect("the finding");
    assert_eq!(finding["severity"], "error", "{finding:#}");
    for step in finding["remedy"]["steps"].as_array().expect("steps") {
        let (command, _) = step.as_str().expect("a step").split_once('#').unwrap_or((step.as_str().expect("a step"), ""));
        let program = format!("millstream -c {} ", lane.site.configuration().display());
        let mut words: Vec<&str> = command.strip_prefix(&program).expect("this configuration").split_whitespace().collect();
        if words[0] == "teardown" {
            words.push("--yes");
        } else {
            let tables =
                "SELECT string_agg(format('%I.%I', schemaname, tablename), ', ') FROM pg_tables WHERE schemaname = 'public'";
            let tables = lane.replica.value(tables).await;
            lane.replica.execute(&format!("TRUNCATE {tables}")).await;
        }
        lane.site.must(&words).await;
    }
    let after = lane.site.run(&["check"]).await.stdout;
    assert!(after.contains("leaves nothing out"), "{after}");
}

#[tokio::test(flavor = "multi_thread")]
async fn other_streams_and_replicas_go_on_beside_a_halted_one() {
    let lane = Lane::new(T).await;
    let (second, other, third) = (
        shared_replica().await.new_database().await,
        shared().await.new_database().await,
        shared_replica().await.new_database().await,
    );
    other.execute(T).await;
    let text = std::fs::read_to_string(lane.site.configuration()).expect("configuration");
    lane.site.configure(&format!(
        "{text}\n[replica.second]\nsource = \"shop\"\nurl = \"{}\"\n[source.other]\nurl = \"{}\"\ntables = [\"public.*\"]\n\
         [replica.third]\nsource = \"other\"\nurl = \"{}\"\n",
        second.url(),
        other.url(),
        third.url()
    ));
    lane.site.must(&["init"]).await;
    let daemon = lane.start().await;
    lane.replica.execute("ALTER TABLE t ADD CONSTRAINT own CHECK (n < 100)").await;
    lane.source.execute("INSERT INTO t VALUES (30, 'x', 100)").await;
    lane.halted(&["replica_constraint"]).await;
    lane.source.execute("INSERT INTO t SELECT n, 'later', 0 FROM generate_series(31, 60) n").await;
    other.execute("UPDATE t SET v = 'other'").await;
    crate::support::compare::equal(&lane.source, &second, super::CATCH_UP).await;
    crate::support::compare::equal(&other, &third, super::CATCH_UP).await;

    // A source's stream that is lost for good stops its own replica alone.
    let slot = other.value("SELECT slot_name FROM pg_replication_slots WHERE database = current_database()").await;
    let drop = format!("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{slot}' AND active");
    crate::support::wait::until("the slot to go", super::CATCH_UP, async || {
        other.query(&drop).await.is_ok() && other.query(&format!("SELECT pg_drop_replication_slot('{slot}')")).await.is_ok()
    })
    .await;
    lane.halted(&["slot_missing"]).await;
    lane.source.execute("DELETE FROM t WHERE id = 31").await;
    crate::support::compare::equal(&lane.source, &second, super::CATCH_UP).await;
    // What the halted one has not taken was kept for it.
    lane.replica.execute("ALTER TABLE t DROP CONSTRAINT own").await;
    lane.equal().await;
    assert!(daemon.exited().is_none());
}
