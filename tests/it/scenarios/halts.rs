//! FAULTS 27, 28 and 33: somebody wrote to the replica, it refuses a row, or its tables do not fit. Each halts loudly, says what to mend,
//! and goes on by itself once it is mended (I5).

use super::Lane;

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
    let lane = Lane::new(T).await;
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
            "DELETE FROM millstream.schema_version WHERE version > 1; ALTER TABLE millstream.copied_table DROP COLUMN timeline",
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
