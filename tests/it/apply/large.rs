//! Transactions that come in parts (FAULTS 17).

use millstream::event::Change;

use super::rig::{NULL, Rig, delete, insert, update, v};

const ITEM: &str = "CREATE TABLE item (id int PRIMARY KEY, name text UNIQUE)";

fn many(t: &millstream::event::TableSchema, range: std::ops::Range<i32>) -> Vec<Change> {
    range.map(|i| insert(t, &[v(&i.to_string()), v(&format!("name {i}"))])).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_are_one_replica_transaction() {
    let mut rig = Rig::new(ITEM).await;
    let t = rig.table("item").await;
    rig.log.transaction(vec![insert(&t, &[v("-1"), v("before")])]).await;
    let mut changes = many(&t, 0..20_000);
    changes.push(update(&t, &[v("5"), v("x".repeat(100_000).as_str())]));
    changes.push(delete(&t, &[v("6"), NULL]));
    // Everything but its last part: nothing may show.
    let parts = 40;
    let position = rig.log.parts(&changes, 10_000, parts).await;
    rig.start();
    crate::support::wait::until("the parts to be read", super::rig::WAIT, async || rig.status.borrow().changes > 10_000).await;
    assert_eq!(rig.rows("SELECT count(*) FROM item").await, "1");
    // The writer dies; its successor sends the transaction again, whole.
    rig.log.take_over(parts as u64).await;
    assert_eq!(rig.log.position(), position);
    let end = rig.log.parts(&changes, 50_000, usize::MAX).await;
    rig.applied(end).await;
    let end = rig.log.transaction(vec![insert(&t, &[v("-2"), v("after")])]).await;
    rig.applied(end).await;
    rig.stop().await;
    assert_eq!(rig.rows("SELECT count(*), max(length(name)) FROM item").await, "20001|100000");
    assert_eq!(rig.rows("SELECT transactions, changes FROM millstream.replica").await, "3|20004");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poison_row_in_a_part_is_named_and_nothing_of_the_transaction_shows() {
    let mut rig = Rig::new(ITEM).await;
    rig.replica.execute("INSERT INTO item VALUES (7777, 'rogue')").await;
    let t = rig.table("item").await;
    let end = rig.log.parts(&many(&t, 0..10_000), 20_000, usize::MAX).await;
    rig.start();
    let message = rig.halted("replica_conflict").await;
    assert!(message.contains("key (id)=(7777)") && message.contains("source transaction"), "{message}");
    assert_eq!(rig.rows("SELECT count(*) FROM item").await, "1");
    rig.replica.execute("DELETE FROM item").await;
    rig.applied(end).await;
    assert_eq!(rig.rows("SELECT count(*) FROM item").await, "10000");
}
