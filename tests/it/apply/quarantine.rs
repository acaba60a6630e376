//! Transactions that are kept aside: in batches, in parts, in their pieces.

use millstream::event::{Change, Position, TableSchema};
use millstream::replica::postgres::quarantine::command::{self, Added, Done};

use super::rig::{NULL, Rig, delete, insert, update, v};

const ITEM: &str = "CREATE TABLE item (id int PRIMARY KEY, name text, n int CONSTRAINT small CHECK (n < 1000))";
const NOT_SMALL: &str = "ALTER TABLE item DROP CONSTRAINT small";

async fn ordered(rig: &Rig, position: Position) {
    match command::add(&rig.config, position).await.unwrap() {
        Added::Ordered | Added::Kept(_) => {}
        other => panic!("{other:?}"),
    }
}

fn rows(t: &TableSchema, range: std::ops::Range<i32>) -> Vec<Change> {
    range.map(|i| insert(t, &[v(&i.to_string()), v(&"x".repeat(100)), v("1")])).collect()
}

/// The row that is kept is one of those that a batch would have folded into nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_in_quarantine_is_found_in_the_middle_of_a_batch_before_it_is_folded() {
    let mut rig = Rig::new(ITEM).await;
    let t = rig.table("item").await;
    let poison = rig.log.transaction(vec![insert(&t, &[v("7"), v("poison"), v("5000")])]).await;
    rig.start();
    rig.halted("replica_constraint").await;
    rig.stop().await;
    ordered(&rig, poison).await;
    // Alone: folded with what comes behind it, it would not be refused at all.
    rig.drain(poison).await;
    let mut batch: Vec<_> = (100..150).map(|i| vec![insert(&t, &[v(&i.to_string()), v("ok"), v("1")])]).collect();
    batch.push(vec![
        insert(&t, &[v("200"), v("ok"), v("1")]),
        delete(&t, &[v("7"), NULL, NULL]),
        insert(&t, &[v("7"), v("new"), v("1")]),
    ]);
    batch.push(vec![delete(&t, &[v("7"), NULL, NULL])]);
    batch.push(vec![insert(&t, &[v("201"), v("ok"), v("1")])]);
    let end = rig.log.transactions(&batch).await;
    rig.start();
    let message = rig.halted("quarantined_key").await;
    assert!(message.contains("change 2, delete, key (id)=(7)") && message.contains(&poison.to_string()), "{message}");
    assert_eq!(rig.rows("SELECT count(*), max(id) FROM item").await, "50|149");
    assert_eq!(rig.rows("SELECT transactions FROM millstream.replica").await, "51");
    rig.replica.execute(NOT_SMALL).await;
    assert_eq!(command::retry(&rig.config).await.unwrap(), Done::Done(vec![(poison.to_string(), 1)]));
    rig.applied(end).await;
    assert_eq!(rig.rows("SELECT count(*), max(id), count(*) FILTER (WHERE id = 7) FROM item").await, "52|201|0");
    rig.stop().await;
}

/// It is written before it is seen whole, and kept in pieces as it comes; with too many keys the whole table counts.
#[tokio::test(flavor = "multi_thread")]
async fn a_huge_transaction_is_kept_in_pieces_and_applied_from_them() {
    let mut rig = Rig::new(ITEM).await;
    let t = rig.table("item").await;
    let mut changes = rows(&t, 0..30_000);
    changes.push(update(&t, &[v("5"), v("longer"), v("5000")]));
    let poison = rig.log.parts(&changes, 200_000, usize::MAX).await;
    let after = rig.log.transaction(vec![insert(&t, &[v("-1"), v("after"), v("1")])]).await;
    rig.start();
    let message = rig.halted("replica_constraint").await;
    assert!(message.contains("key (id)=(5)") && message.contains(&poison.to_string()), "{message}");
    ordered(&rig, poison).await;
    let message = rig.halted("quarantined_key").await;
    assert!(message.contains(&poison.to_string()), "{message}");
    assert_eq!(rig.rows("SELECT count(*) FROM item").await, "0");
    assert_eq!(
        rig.rows("SELECT q.changes, t.changes, t.whole, (SELECT count(*) FROM millstream.quarantined_key) FROM millstream.quarantine q JOIN millstream.quarantined_table t USING (replica, ordinal)").await,
        "30001|30001|more than 10000 rows of it were changed|0"
    );
    assert!(rig.rows("SELECT count(*) > 2 FROM millstream.quarantined_piece").await == "t");
    rig.replica.execute(NOT_SMALL).await;
    assert_eq!(command::retry(&rig.config).await.unwrap(), Done::Done(vec![(poison.to_string(), 30_001)]));
    rig.applied(after).await;
    assert_eq!(rig.rows("SELECT count(*), count(*) FILTER (WHERE name = 'longer') FROM item").await, "30001|1");
    assert_eq!(rig.rows("SELECT count(*) FROM millstream.quarantined_piece").await, "0");
    rig.stop().await;
}

/// Under a role whose foreign keys are enforced: a child of the missing row is refused by the replica itself.
#[tokio::test(flavor = "multi_thread")]
async fn an_ordinary_role_keeps_and_applies_as_well_and_a_child_of_a_missing_row_halts() {
    let mut rig = Rig::new(&format!("{ITEM}; CREATE TABLE part (id int PRIMARY KEY, item int REFERENCES item)")).await;
    rig.as_ordinary_role().await;
    let (t, p) = (rig.table("item").await, rig.table("part").await);
    let poison = rig.log.transaction(vec![insert(&t, &[v("7"), v("poison"), v("5000")])]).await;
    let child = rig.log.transaction(vec![insert(&p, &[v("1"), v("7")])]).await;
    rig.start();
    rig.halted("replica_constraint").await;
    ordered(&rig, poison).await;
    crate::support::wait::until("the next one to halt", super::rig::WAIT, async || {
        rig.status.borrow().error.as_deref().is_some_and(|error| error.contains(&child.to_string()))
    })
    .await;
    let message = rig.halted("replica_constraint").await;
    assert!(message.contains("foreign key"), "{message}");
    rig.replica.execute(NOT_SMALL).await;
    command::retry(&rig.config).await.unwrap();
    rig.applied(child).await;
    assert_eq!(rig.rows("SELECT (SELECT count(*) FROM item), (SELECT count(*) FROM part)").await, "1|1");
    rig.stop().await;
}

/// Foreign keys are enforced: a parent that goes would take the row with it, and what is kept of that would have no row to change.
#[tokio::test(flavor = "multi_thread")]
async fn a_parent_whose_rows_take_kept_rows_with_them_halts() {
    let mut rig = Rig::new(&format!(
        "CREATE TABLE owner (id int PRIMARY KEY, n int); {ITEM}; \
         ALTER TABLE item ADD COLUMN owner int REFERENCES owner ON DELETE CASCADE ON UPDATE CASCADE"
    ))
    .await;
    rig.as_ordinary_role().await;
    let (o, t) = (rig.table("owner").await, rig.table("item").await);
    rig.log.transaction(vec![insert(&o, &[v("1"), v("1")]), insert(&o, &[v("2"), v("1")])]).await;
    rig.log.transaction(vec![insert(&t, &[v("7"), v("x"), v("1"), v("1")])]).await;
    let poison = rig.log.transaction(vec![update(&t, &[v("7"), v("x"), v("5000"), v("2")])]).await;
    // What leaves the key as it is takes nothing with it.
    let harmless = rig.log.transaction(vec![update(&o, &[v("1"), v("9")])]).await;
    rig.start();
    rig.halted("replica_constraint").await;
    ordered(&rig, poison).await;
    rig.applied(harmless).await;
    let deleted = rig.log.transaction(vec![delete(&o, &[v("1"), NULL])]).await;
    rig.log.flush().await;
    let message = rig.halted("quarantined_key").await;
    assert!(message.contains(&poison.to_string()) && message.contains("foreign keys"), "{message}");
    assert_eq!(rig.rows("SELECT id, owner FROM item").await, "7|1");
    rig.replica.execute(NOT_SMALL).await;
    assert_eq!(command::retry(&rig.config).await.unwrap(), Done::Done(vec![(poison.to_string(), 1)]));
    rig.applied(deleted).await;
    assert_eq!(rig.rows("SELECT id, n, owner FROM item").await, "7|5000|2");
    rig.stop().await;
}

/// A client that is gone holds the ledger's row no longer than it takes to see that.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_that_is_interrupted_leaves_no_session_behind() {
    let mut rig = Rig::new(ITEM).await;
    let t = rig.table("item").await;
    let poison = rig.log.transaction(vec![insert(&t, &[v("7"), v("poison"), v("5000")])]).await;
    let end = rig.log.transaction(vec![insert(&t, &[v("8"), v("after"), v("1")])]).await;
    rig.start();
    rig.halted("replica_constraint").await;
    ordered(&rig, poison).await;
    rig.applied(end).await;
    rig.replica
        .execute(&format!(
            "{NOT_SMALL}; CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(600); RETURN new; END'; \
             CREATE TRIGGER slow BEFORE INSERT ON item FOR EACH ROW EXECUTE FUNCTION slow(); ALTER TABLE item ENABLE ALWAYS TRIGGER slow"
        ))
        .await;
    let config = rig.config.clone();
    let retry = tokio::spawn(async move { command::retry(&config).await });
    let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'";
    crate::support::wait::until("it to write", super::rig::WAIT, async || rig.rows(sleeping).await == "1").await;
    retry.abort();
    crate::support::wait::until("its session to end", super::rig::WAIT, async || rig.rows(sleeping).await == "0").await;
    rig.replica.execute("DROP TRIGGER slow ON item").await;
    assert_eq!(command::retry(&rig.config).await.unwrap(), Done::Done(vec![(poison.to_string(), 1)]));
    assert_eq!(rig.rows("SELECT count(*) FROM item").await, "2");
    rig.stop().await;
}

/// What stood in the way of keeping a transaction is looked at anew each time.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_whose_table_goes_live_can_be_kept_then() {
    let mut rig = Rig::new(ITEM).await;
    let t = rig.table("item").await;
    rig.replica.execute("UPDATE millstream.copied_table SET state = 'catching_up'").await;
    let poison = rig.log.transaction(vec![insert(&t, &[v("7"), v("poison"), v("5000")])]).await;
    rig.start();
    rig.halted("replica_constraint").await;
    match command::add(&rig.config, poison).await.unwrap() {
        Added::Refused(why) => assert!(why.contains("is not complete"), "{why}"),
        other => panic!("{other:?}"),
    }
    rig.stop().await;
    rig.replica.execute("UPDATE millstream.copied_table SET state = 'live'").await;
    rig.start();
    crate::support::wait::until("it to be seen", super::rig::WAIT, async || {
        rig.rows("SELECT cannot_be_kept IS NULL FROM millstream.refused").await == "t"
    })
    .await;
    ordered(&rig, poison).await;
    rig.applied(poison).await;
    assert_eq!(rig.rows("SELECT state FROM millstream.quarantine").await, "kept");
    rig.stop().await;
}
