//! Every kind of change, alone and many of them in one batch.

use millstream::event::Change;

use super::rig::{NULL, Rig, SAME, delete, insert, update, update_from, v};

const ITEM: &str = "CREATE TABLE item (id int PRIMARY KEY, name text, big text)";

#[tokio::test(flavor = "multi_thread")]
async fn inserts_updates_and_deletes_arrive() {
    let mut rig = Rig::new(ITEM).await;
    let t = rig.table("item").await;
    rig.log.transaction(vec![insert(&t, &[v("1"), v("one"), NULL]), insert(&t, &[v("2"), v("two"), v("b")])]).await;
    rig.log.transaction(vec![insert(&t, &[v("3"), v(""), v("tab\tback\\slash\nline")])]).await;
    let end = rig.log.transaction(vec![update(&t, &[v("1"), v("eins"), v("x")]), delete(&t, &[v("2"), NULL, NULL])]).await;
    rig.drain(end).await;
    assert_eq!(rig.rows("SELECT * FROM item ORDER BY id").await, "1|eins|x\n3||tab\tback\\slash\nline");
    let ledger = rig.rows("SELECT transactions, changes, apply_epoch, position FROM millstream.replica").await;
    assert_eq!(ledger, format!("3|5|1|{end}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_rows_at_once_arrive_whole() {
    let mut rig = Rig::new(ITEM).await;
    let t = rig.table("item").await;
    let odd = "a\tb\nc\\d\r\\N\u{1F600}";
    let rows: Vec<Vec<Change>> =
        (0..5000).map(|i| vec![insert(&t, &[v(&i.to_string()), if i % 3 == 0 { NULL } else { v(odd) }, v("")])]).collect();
    rig.log.transactions(&rows).await;
    let rows: Vec<Vec<Change>> = (0..5000).map(|i| vec![update(&t, &[v(&i.to_string()), v(&format!("n{i}")), SAME])]).collect();
    rig.log.transactions(&rows).await;
    let rows: Vec<Vec<Change>> = (0..2500).map(|i| vec![delete(&t, &[v(&(i * 2).to_string()), NULL, NULL])]).collect();
    let end = rig.log.transactions(&rows).await;
    rig.drain(end).await;
    assert_eq!(
        rig.rows("SELECT count(*), sum(id), count(*) FILTER (WHERE name = 'n' || id AND big = '') FROM item").await,
        "2500|6250000|2500"
    );
}

/// FAULTS 31.
#[tokio::test(flavor = "multi_thread")]
async fn one_key_updated_deleted_inserted_and_updated_in_one_batch() {
    let mut rig = Rig::new(ITEM).await;
    rig.replica.execute("INSERT INTO item VALUES (1, 'a', 'wide'), (2, 'b', 'wide')").await;
    let t = rig.table("item").await;
    let end = rig
        .log
        .transactions(&[
            vec![update(&t, &[v("1"), v("a2"), SAME])],
            vec![delete(&t, &[v("1"), NULL, NULL])],
            vec![insert(&t, &[v("1"), v("a3"), v("new")])],
            vec![update(&t, &[v("1"), v("a4"), SAME])],
            vec![update(&t, &[v("2"), v("b2"), SAME]), delete(&t, &[v("2"), NULL, NULL])],
            vec![insert(&t, &[v("3"), v("c"), NULL]), delete(&t, &[v("3"), NULL, NULL])],
        ])
        .await;
    rig.drain(end).await;
    assert_eq!(rig.rows("SELECT * FROM item ORDER BY id").await, "1|a4|new");
    assert_eq!(rig.status.borrow().replays, 0);
}

/// FAULTS 39.
#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_value_is_kept_and_never_null() {
    let mut rig = Rig::new(ITEM).await;
    rig.replica.execute("INSERT INTO item SELECT n, 'n', repeat('x', 10000) FROM generate_series(1, 60) n").await;
    let t = rig.table("item").await;
    let rows: Vec<_> = (1..=40).map(|i| vec![update(&t, &[v(&i.to_string()), v("new"), SAME])]).collect();
    rig.log.transactions(&rows).await;
    // A changed key with a value that did not come: the row is not wholly known.
    let end = rig.log.transaction(vec![update_from(&t, &[v("50"), NULL, NULL], &[v("500"), v("moved"), SAME])]).await;
    rig.drain(end).await;
    let sql = "SELECT count(*), count(*) FILTER (WHERE name = 'new'), min(length(big)) FROM item";
    assert_eq!(rig.rows(sql).await, "60|40|10000");
    assert_eq!(rig.rows("SELECT name, length(big) FROM item WHERE id = 500").await, "moved|10000");
}

/// FAULTS 30: PostgreSQL sends these in the order in which the source carried them out.
#[tokio::test(flavor = "multi_thread")]
async fn keys_shifted_by_one() {
    let mut rig = Rig::new(ITEM).await;
    rig.replica.execute("INSERT INTO item SELECT n, 'n' || n, 'wide' FROM generate_series(1, 100) n").await;
    let t = rig.table("item").await;
    let shift = |from: i32| {
        let (old, new) = (from.to_string(), (from + 1).to_string());
        update_from(&t, &[v(&old), NULL, NULL], &[v(&new), v(&format!("n{from}")), SAME])
    };
    let end = rig.log.transaction((1..=100).rev().map(shift).collect()).await;
    rig.drain(end).await;
    assert_eq!(rig.rows("SELECT count(*), min(id), bool_and(name = 'n' || (id - 1)) FROM item").await, "100|2|t");
}

/// FAULTS 32.
#[tokio::test(flavor = "multi_thread")]
async fn one_of_equal_rows_without_a_key() {
    let mut rig = Rig::new("CREATE TABLE heap (a int, b text, c numeric, d json)").await;
    rig.replica
        .execute(
            "INSERT INTO heap VALUES (1, 'x', 1.0, '{\"k\":1}'), (1, 'x', 1.0, '{\"k\":1}'), (1, 'x', 1.0, '{\"k\":1}'),
             (1, 'x', 1.00, '{\"k\":1}'), (2, NULL, NULL, NULL), (2, NULL, NULL, NULL)",
        )
        .await;
    let t = rig.full("heap").await;
    let equal = [v("1"), v("x"), v("1.0"), v("{\"k\":1}")];
    let end = rig
        .log
        .transaction(vec![
            update_from(&t, &equal, &[v("1"), v("y"), v("1.0"), SAME]),
            delete(&t, &equal),
            delete(&t, &[v("1"), v("x"), v("1.00"), v("{\"k\":1}")]),
            update_from(&t, &[v("2"), NULL, NULL, NULL], &[v("3"), NULL, NULL, NULL]),
            insert(&t, &[v("2"), NULL, NULL, NULL]),
        ])
        .await;
    rig.drain(end).await;
    let rows = rig.rows("SELECT a, b, c, d FROM heap ORDER BY a, b").await;
    assert_eq!(rows, "1|x|1.0|{\"k\":1}\n1|y|1.0|{\"k\":1}\n2|~|~|~\n2|~|~|~\n3|~|~|~");
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_emptied_together_between_other_changes() {
    let mut rig = Rig::new(
        "CREATE TABLE parent (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY);
         CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent);
         INSERT INTO parent DEFAULT VALUES; INSERT INTO child VALUES (1, 1)",
    )
    .await;
    let (parent, child) = (rig.table("parent").await, rig.table("child").await);
    let truncate = Change::Truncate { tables: vec![parent.id, child.id], cascade: false, restart_identity: true };
    let end = rig
        .log
        .transactions(&[
            vec![insert(&parent, &[v("2")]), insert(&child, &[v("2"), v("2")])],
            vec![truncate, insert(&parent, &[v("7")]), insert(&child, &[v("3"), v("7")])],
        ])
        .await;
    rig.drain(end).await;
    assert_eq!(rig.rows("SELECT * FROM child").await, "3|7");
    assert_eq!(rig.rows("INSERT INTO parent DEFAULT VALUES RETURNING id").await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_of_the_replica_s_own_and_computed_ones_are_left_alone() {
    let mut rig = Rig::new(
        "CREATE TABLE item (note text DEFAULT 'own', id int PRIMARY KEY, name text, upper text GENERATED ALWAYS AS (upper(name)) STORED)",
    )
    .await;
    rig.replica.execute("INSERT INTO item (note, id, name) VALUES ('kept', 1, 'a'), ('moved', 2, 'b')").await;
    let mut described = rig.describe("public", "item", millstream::event::Identity::Default).await;
    described.columns.retain(|column| column.name != "note");
    let t = rig.log.schema(described).await;
    let end = rig
        .log
        .transaction(vec![
            update(&t, &[v("1"), v("aa")]),
            update_from(&t, &[v("2"), NULL], &[v("20"), v("bb")]),
            insert(&t, &[v("3"), v("c")]),
        ])
        .await;
    rig.drain(end).await;
    let rows = rig.rows("SELECT id, name, note, upper FROM item ORDER BY id").await;
    assert_eq!(rows, "1|aa|kept|AA\n3|c|own|C\n20|bb|moved|BB");
}

#[tokio::test(flavor = "multi_thread")]
async fn identity_columns_that_are_always_generated() {
    let mut rig = Rig::new(
        "CREATE TABLE item (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text);
         CREATE TABLE other (id int PRIMARY KEY, serial int GENERATED ALWAYS AS IDENTITY, name text);
         INSERT INTO item OVERRIDING SYSTEM VALUE VALUES (1, 'a'), (2, 'b');
         INSERT INTO other OVERRIDING SYSTEM VALUE VALUES (1, 10, 'a'), (2, 20, 'b')",
    )
    .await;
    let (item, other) = (rig.table("item").await, rig.table("other").await);
    let end = rig
        .log
        .transactions(&[
            vec![
                update(&item, &[v("1"), v("aa")]),
                update(&other, &[v("1"), v("10"), v("aa")]),
                insert(&item, &[v("9"), v("i")]),
            ],
            // UPDATE … SET id = DEFAULT on the source: the key changes, the name did not come.
            vec![update_from(&item, &[v("2"), NULL], &[v("3"), SAME])],
            // UPDATE … SET serial = DEFAULT: no key changes, and nothing says so.
            vec![update(&other, &[v("2"), v("21"), v("b")])],
        ])
        .await;
    rig.drain(end).await;
    assert_eq!(rig.rows("SELECT * FROM item ORDER BY id").await, "1|aa\n3|b\n9|i");
    assert_eq!(rig.rows("SELECT * FROM other ORDER BY id").await, "1|10|aa\n2|21|b");
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_alone_moves_the_ledger_and_the_consumer() {
    let mut rig = Rig::new(ITEM).await;
    rig.start();
    let first = rig.log.progress(1_000_000).await;
    rig.applied(first).await;
    let second = rig.log.progress(2_000_000).await;
    rig.applied(second).await;
    assert_eq!(rig.rows("SELECT source_time_us, changes FROM millstream.replica").await, "2000000|0");
    let queue = rig.queue.clone();
    crate::support::wait::until("the queue to be told", super::rig::WAIT, async || {
        let registry = queue.registry("shop").await.unwrap();
        registry.get("consumer/reports").is_some_and(|entry| {
            let told: millstream::queue::ConsumerProgress = serde_json::from_slice(entry).unwrap();
            told.position == Some(second)
        })
    })
    .await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_versions_of_a_table_in_one_transaction() {
    let mut rig = Rig::new("CREATE TABLE item (id int PRIMARY KEY, name text, extra int)").await;
    let mut before = rig.describe("public", "item", millstream::event::Identity::Default).await;
    before.columns.pop();
    let old = rig.log.schema(before).await;
    let new = rig.table("item").await;
    let end = rig
        .log
        .transaction(vec![
            insert(&old, &[v("1"), v("a")]),
            insert(&old, &[v("2"), v("b")]),
            update(&new, &[v("1"), v("aa"), v("5")]),
            insert(&new, &[v("3"), v("c"), NULL]),
        ])
        .await;
    rig.drain(end).await;
    assert_eq!(rig.rows("SELECT * FROM item ORDER BY id").await, "1|aa|5\n2|b|~\n3|c|~");
}
