//! Rows and tables that are not as they should be: halt with the place, the good part committed, mended and gone on (FAULTS 27, 28, 33).

use millstream::event::Identity;

use super::rig::{NULL, Rig, delete, insert, update, v};

const ITEM: &str = "CREATE TABLE item (id int PRIMARY KEY, name text)";

#[tokio::test(flavor = "multi_thread")]
async fn a_poison_row_halts_at_its_transaction_and_what_came_before_is_committed() {
    let mut rig = Rig::new("CREATE TABLE item (id int PRIMARY KEY, name text CONSTRAINT short CHECK (length(name) < 10))").await;
    let t = rig.table("item").await;
    let mut rows: Vec<_> = (0..100).map(|i| vec![insert(&t, &[v(&i.to_string()), v("ok")])]).collect();
    rows[57].push(insert(&t, &[v("1000"), v("a secret that is too long")]));
    let end = rig.log.transactions(&rows).await;
    rig.start();
    let message = rig.halted("replica_constraint").await;
    for part in ["short", "public.item", "key (id)=(1000)", "change 2, insert", "source transaction"] {
        assert!(message.contains(part), "{part} is not in: {message}");
    }
    assert!(!message.contains("secret"), "a value in: {message}");
    assert_eq!(rig.rows("SELECT count(*), max(id) FROM item").await, "57|56");
    assert_eq!(rig.rows("SELECT transactions, changes FROM millstream.replica").await, "57|57");
    rig.replica.execute("ALTER TABLE item DROP CONSTRAINT short").await;
    rig.applied(end).await;
    rig.stop().await;
    assert_eq!(rig.rows("SELECT count(*) FROM item").await, "101");
}

/// After a restart the whole life of the stream was counted as backlog until the first commit, which a halted replica never comes to.
#[tokio::test(flavor = "multi_thread")]
async fn the_backlog_of_a_halted_replica_is_exact_after_a_restart_too() {
    let mut rig = Rig::new(ITEM).await;
    rig.replica.execute("INSERT INTO item VALUES (77, 'rogue')").await;
    let t = rig.table("item").await;
    let inserts = |ids: std::ops::Range<i32>| ids.map(|i| insert(&t, &[v(&i.to_string()), v("ok")])).collect::<Vec<_>>();
    // One record, the last two of its transactions behind the halt; then another record.
    rig.log.transactions(&[inserts(0..70), inserts(70..75), inserts(75..80), inserts(80..100)]).await;
    let end = rig.log.transactions(&[inserts(100..110)]).await;
    for _ in 0..2 {
        rig.start();
        rig.halted("replica_conflict").await;
        let status = rig.status.borrow().clone();
        assert_eq!((rig.log.changes() - status.changes_so_far, rig.log.changes()), (35, 110));
        assert!(status.bytes_so_far > 0 && status.bytes_so_far < rig.log.bytes(), "{status:?}");
        rig.stop().await;
    }
    rig.replica.execute("DELETE FROM item WHERE id = 77").await;
    rig.drain(end).await;
    let status = rig.status.borrow().clone();
    assert_eq!((status.changes_so_far, status.bytes_so_far), (110, rig.log.bytes()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_somebody_deleted_is_a_conflict() {
    let mut rig = Rig::new(ITEM).await;
    rig.replica.execute("INSERT INTO item VALUES (1, 'a'), (3, 'c')").await;
    let t = rig.table("item").await;
    let end = rig
        .log
        .transactions(&[
            vec![update(&t, &[v("1"), v("aa")])],
            vec![update(&t, &[v("2"), v("bb")])],
            vec![delete(&t, &[v("3"), NULL])],
        ])
        .await;
    rig.start();
    let message = rig.halted("replica_conflict").await;
    assert!(message.contains("key (id)=(2)") && message.contains("not there"), "{message}");
    assert_eq!(rig.rows("SELECT * FROM item ORDER BY id").await, "1|aa\n3|c");
    rig.replica.execute("INSERT INTO item VALUES (2, 'b')").await;
    rig.applied(end).await;
    assert_eq!(rig.rows("SELECT * FROM item ORDER BY id").await, "1|aa\n2|bb");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_somebody_inserted_is_a_conflict() {
    let mut rig = Rig::new(ITEM).await;
    rig.replica.execute("INSERT INTO item VALUES (77, 'rogue')").await;
    let t = rig.table("item").await;
    let rows: Vec<_> = (0..100).map(|i| vec![insert(&t, &[v(&i.to_string()), v("ok")])]).collect();
    let end = rig.log.transactions(&rows).await;
    rig.start();
    let message = rig.halted("replica_conflict").await;
    assert!(message.contains("key (id)=(77)") && message.contains("already there"), "{message}");
    rig.replica.execute("DELETE FROM item WHERE id = 77").await;
    rig.applied(end).await;
    assert_eq!(rig.rows("SELECT count(*) FROM item WHERE name = 'ok'").await, "100");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_row_without_a_key_is_a_conflict() {
    let mut rig = Rig::new("CREATE TABLE heap (a int, b text)").await;
    let t = rig.full("heap").await;
    let end = rig.log.transaction(vec![delete(&t, &[v("1"), NULL])]).await;
    rig.start();
    rig.halted("replica_conflict").await;
    rig.replica.execute("INSERT INTO heap VALUES (1, NULL), (1, 'x')").await;
    rig.applied(end).await;
    assert_eq!(rig.rows("SELECT * FROM heap").await, "1|x");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_does_not_fit_halts_with_what_to_change() {
    let mut rig = Rig::new("CREATE TABLE item (id int PRIMARY KEY, name text, added int)").await;
    let t = rig.table("item").await;
    rig.replica.execute("ALTER TABLE item DROP COLUMN added").await;
    rig.log.transaction(vec![insert(&t, &[v("1"), v("a"), v("5")])]).await;
    rig.start();
    let message = rig.halted("schema_mismatch").await;
    assert!(message.contains("ALTER TABLE \"public\".\"item\" ADD COLUMN \"added\""), "{message}");
    assert!(message.contains("its DEFAULT included"), "{message}");
    rig.replica.execute("ALTER TABLE item ADD COLUMN added int").await;
    rig.applied(rig.log.position()).await;
    // A later version with another type, behind a transaction of the old one that must not wait for it.
    let mut wider = rig.describe("public", "item", Identity::Default).await;
    wider.columns[2].type_name = "pg_catalog.int8".into();
    let before = rig.log.transaction(vec![insert(&t, &[v("2"), v("b"), NULL])]).await;
    let wide = rig.log.schema(wider).await;
    let end = rig.log.transaction(vec![insert(&wide, &[v("3"), v("c"), v("5000000000")])]).await;
    let message = rig.halted("schema_mismatch").await;
    assert!(message.contains("int8") && message.contains("added"), "{message}");
    rig.applied(before).await;
    rig.replica.execute("ALTER TABLE item ALTER COLUMN added TYPE bigint").await;
    rig.applied(end).await;
    assert_eq!(rig.rows("SELECT * FROM item ORDER BY id").await, "1|a|5\n2|b|~\n3|c|5000000000");
    rig.stop().await;
}

/// Assignment rounds without a word: the source's `ALTER TYPE numeric(12,4)` came through as rows with two decimals.
#[tokio::test(flavor = "multi_thread")]
async fn a_column_of_less_precision_halts_before_anything_is_rounded() {
    let mut rig = Rig::new("CREATE TABLE price (id int PRIMARY KEY, n numeric(12,4), at timestamp, code varchar(20))").await;
    let t = rig.table("price").await;
    rig.replica
        .execute("ALTER TABLE price ALTER n TYPE numeric(10,2), ALTER at TYPE timestamp(0), ALTER code TYPE varchar(10)")
        .await;
    let end = rig.log.transaction(vec![insert(&t, &[v("1"), v("1.2345"), v("2024-01-01 00:00:00.5"), v("x    ")])]).await;
    rig.start();
    let message = rig.halted("schema_mismatch").await;
    let remedy = "ALTER TABLE \"public\".\"price\" ALTER COLUMN \"n\" TYPE numeric(12,4)";
    assert!(message.contains("is numeric(10,2) on the replica") && message.contains(remedy), "{message}");
    rig.replica.execute("ALTER TABLE price ALTER n TYPE numeric(12,4), ALTER at TYPE timestamp, ALTER code TYPE varchar").await;
    rig.applied(end).await;
    assert_eq!(rig.rows("SELECT id, n, at, code || '|' FROM price").await, "1|1.2345|2024-01-01 00:00:00.5|x    |");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_table_and_one_that_the_ledger_does_not_know() {
    let mut rig = Rig::new(ITEM).await;
    let t = rig.table("item").await;
    let end = rig.log.transaction(vec![insert(&t, &[v("1"), v("a")])]).await;
    rig.replica.execute("ALTER TABLE item RENAME TO away").await;
    rig.start();
    let message = rig.halted("schema_mismatch").await;
    assert!(message.contains("public.item is not on the replica"), "{message}");
    rig.replica.execute("ALTER TABLE away RENAME TO item; DELETE FROM millstream.copied_table").await;
    let mut status = rig.status.clone();
    status.wait_for(|s| s.error.as_deref().is_some_and(|e| e.contains("not among the tables"))).await.unwrap();
    rig.adopt_tables().await;
    rig.applied(end).await;
}
