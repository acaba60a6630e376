//! Streamed, spilled, cut: large transactions.

use millstream::capture::CaptureState;
use millstream::halt::HaltCode;

use super::rig::Rig;
use crate::support::postgres;
use crate::support::wait::{LONG, until};

const SMALL_WORK_MEM: &str =
    "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET logical_decoding_work_mem = ''64kB''', current_database()); END $$;";

/// FAULTS 18.
#[tokio::test(flavor = "multi_thread")]
async fn undone_savepoints_of_streamed_transactions_leave_nothing() {
    let server = postgres::shared().await;
    let rig = Rig::new(
        server,
        &format!("{SMALL_WORK_MEM} CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int PRIMARY KEY)"),
    )
    .await;
    let capture = rig.start();
    capture.reaches(CaptureState::Streaming).await;
    // Two transactions in progress at once, each beyond the memory that the source gives them, and small ones between.
    let mut one = rig.db.connection().await;
    let mut two = rig.db.connection().await;
    let run = async |connection: &mut sqlx::PgConnection, sql: &'static str| {
        sqlx::raw_sql(sql).execute(connection).await.unwrap();
    };
    run(&mut one, "BEGIN; INSERT INTO t SELECT i, repeat('a', 100) FROM generate_series(1, 2000) i").await;
    run(&mut two, "BEGIN; INSERT INTO t SELECT i, repeat('b', 100) FROM generate_series(10001, 12000) i").await;
    run(
        &mut one,
        "SAVEPOINT s; INSERT INTO t SELECT i, 'undone' FROM generate_series(3001, 5000) i; ALTER TABLE u ADD COLUMN undone text;
         INSERT INTO u SELECT i, 'undone' FROM generate_series(1, 2000) i; ROLLBACK TO s",
    )
    .await;
    rig.db.execute("INSERT INTO u VALUES (77)").await;
    run(&mut one, "SAVEPOINT k; INSERT INTO u SELECT i FROM generate_series(1001, 3000) i; RELEASE k").await;
    run(&mut two, "INSERT INTO t SELECT i, repeat('b', 100) FROM generate_series(12001, 13000) i; ROLLBACK").await;
    run(&mut one, "UPDATE t SET v = 'last' WHERE id = 1; COMMIT").await;
    let log = rig.log_after_marker().await;
    assert_eq!(log.transactions.len(), 2, "the small one, then the large one: commit order");
    assert_eq!(log.transactions[0].changes, ["+u (id=77)"]);
    let large = &log.transactions[1];
    assert_eq!(large.changes.len(), 2000 + 2000 + 1);
    assert!(large.changes[..2000].iter().all(|c| c.starts_with("+t ")));
    assert!(large.changes[2000..4000].iter().all(|c| c.starts_with("+u (id=") && !c.contains("undone")));
    assert_eq!(large.changes[4000], "~t (id=1,v=last)");
    assert!(log.schemas.iter().all(|s| s.columns.iter().all(|c| c.name != "undone")), "no version of what was undone");
    capture.stop().await;
    rig.end().await;
}

/// FAULTS 17, 44: within the memory given, and whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_huge_transaction_spills_and_travels_in_parts() {
    for streamed in [true, false] {
        let server = postgres::shared().await;
        let setting = if streamed { SMALL_WORK_MEM } else { "" };
        let mut rig = Rig::new(server, &format!("{setting} CREATE TABLE t (id int PRIMARY KEY, v text)")).await;
        rig.source.memory_bytes = 256 << 10;
        let capture = rig.start();
        rig.db.execute("INSERT INTO t SELECT i, repeat(i::text, 20) FROM generate_series(1, 60000) i").await;
        rig.db.execute("INSERT INTO t VALUES (0, repeat('w', 3000000))").await;
        let log = rig.log_after_marker().await;
        assert_eq!(log.transactions.len(), 2);
        let large = &log.transactions[0];
        assert!(large.parts > 2, "{} parts", large.parts);
        assert_eq!(large.changes.len(), 60_000);
        for (i, change) in large.changes.iter().enumerate() {
            assert!(change.starts_with(&format!("+t (id={},", i + 1)), "{change}");
        }
        assert_eq!(log.transactions[1].changes, ["+t (id=0,v=<3000000 bytes>)"]);
        assert!(log.transactions[1].parts > 1);
        let status = capture.status.borrow().clone();
        assert!(status.transactions >= 2 && status.changes >= 60_001, "{status:?}");
        until("the spill space to be free", LONG, async || capture.status.borrow().spilled_bytes == 0).await;
        capture.stop().await;
        rig.end().await;
    }
}

/// FAULTS 26, I6: before its first part, with the size, and it goes on once there is room.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_beyond_the_limits_halts_before_its_first_part() {
    let server = postgres::shared().await;
    for spill in [true, false] {
        let mut rig = Rig::new(server, "CREATE TABLE t (id int PRIMARY KEY, v text)").await;
        rig.source.memory_bytes = 64 << 10;
        if spill {
            rig.source.spill_max_bytes = 1 << 20;
        } else {
            rig.queue_max_bytes = 1 << 20;
        }
        let capture = rig.start();
        rig.db.execute("INSERT INTO t VALUES (-1, 'before')").await;
        rig.db.execute("INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(1, 30000) i").await;
        let (code, error) = capture.halts().await;
        assert_eq!(code, HaltCode::TransactionTooLarge);
        assert!(error.contains("1048576") && error.contains("bytes"), "{error}");
        let log = rig.log().await;
        assert_eq!(log.changes(), ["+t (id=-1,v=before)"]);
        capture.stop().await;
        rig.source.spill_max_bytes = 1 << 30;
        rig.queue_max_bytes = 1 << 30;
        let capture = rig.start();
        let log = rig.log_after_marker().await;
        assert_eq!(log.changes().len(), 30_001);
        capture.stop().await;
        rig.end().await;
    }
}
