//! Tables that somebody renames, replaces or alters on the replica under a session that has written to them and is about to write again. By
//! names alone, and by what it knew of them, rows went into another table, or were rounded, until it looked again minutes later (I3).

use millstream::event::Identity;

use super::rig::{Rig, SAME, insert, update, v};

/// `s.a` and `t.b` hold rows that tell whose they are.
const TWO: &str = "CREATE SCHEMA s; CREATE SCHEMA t; CREATE TABLE s.a (id int PRIMARY KEY, whose text); \
     CREATE TABLE t.b (id int PRIMARY KEY, whose text); CREATE TABLE s.ballast (id int PRIMARY KEY)";
/// Every row of both, under the names of the source.
const ROWS: &str =
    "SELECT string_agg(id || whose, ' ' ORDER BY whose, id) FROM (SELECT * FROM s.a UNION ALL SELECT * FROM t.b) r";

async fn epoch(rig: &Rig) -> String {
    rig.rows("SELECT apply_epoch FROM millstream.replica").await
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_go_to_their_own_tables_when_names_are_swapped_under_a_session_that_writes() {
    let mut rig = Rig::new(TWO).await;
    let a = rig.table_in("s", "a", Identity::Default).await;
    let b = rig.table_in("t", "b", Identity::Default).await;
    rig.start();
    let both = |n: u32| vec![insert(&a, &[v(&n.to_string()), v("a")]), insert(&b, &[v(&(n + 1).to_string()), v("b")])];
    let first = rig.log.transaction(both(1)).await;
    rig.applied(first).await;
    let swaps = [
        "BEGIN; ALTER TABLE s.a SET SCHEMA t; ALTER TABLE t.b SET SCHEMA s; ALTER TABLE t.a RENAME TO c; ALTER TABLE s.b RENAME TO a; \
         ALTER TABLE t.c RENAME TO b; COMMIT",
        // No lock of the tables is taken for this.
        "BEGIN; ALTER TABLE s.a RENAME TO b; ALTER TABLE t.b RENAME TO a; ALTER SCHEMA s RENAME TO u; ALTER SCHEMA t RENAME TO s; \
         ALTER SCHEMA u RENAME TO t; COMMIT",
    ];
    let whole = "SELECT (SELECT string_agg(id || whose, ' ' ORDER BY id) FROM s.a) || ' / ' || (SELECT string_agg(id || whose, ' ' ORDER BY id) FROM t.b)";
    let end = rig.log.transaction(both(3)).await;
    rig.applied(end).await;
    assert_eq!(rig.rows(whole).await, "1a 3a / 2b 4b");

    rig.replica.execute(swaps[0]).await;
    let end = rig.log.transaction(both(5)).await;
    rig.applied(end).await;
    assert_eq!(rig.rows(whole).await, "2b 4b 6b / 1a 3a 5a", "names are swapped here, rows are not");
    rig.replica.execute(swaps[1]).await;
    let end = rig.log.transaction(both(7)).await;
    rig.applied(end).await;
    assert_eq!(rig.rows(whole).await, "1a 3a 5a 7a / 2b 4b 6b 8b");

    // The pieces of a huge transaction, each of which could be the first to go astray.
    rig.replica.execute(swaps[0]).await;
    let many: Vec<_> = (100..400).map(|n| insert(&a, &[v(&n.to_string()), v("a")])).collect();
    let end = rig.log.parts(&many, 512, usize::MAX).await;
    rig.applied(end).await;
    assert_eq!(rig.rows("SELECT count(*), (SELECT count(*) FROM s.a) FROM t.b WHERE whose = 'a'").await, "304|4");

    // A row that is not in the other table is missing nowhere: no conflict is seen, and none is told.
    let before = epoch(&rig).await;
    rig.replica.execute(swaps[0]).await;
    let end = rig.log.transaction(vec![update(&a, &[v("1"), v("a!")]), update(&b, &[v("2"), SAME])]).await;
    rig.applied(end).await;
    assert_eq!(rig.rows("SELECT whose FROM s.a WHERE id = 1").await, "a!");
    assert_eq!(epoch(&rig).await, before, "the session found it out by itself");
    assert!(rig.rows(ROWS).await.contains("8b"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_made_anew_under_a_session_that_writes_gets_no_row() {
    let mut rig = Rig::new(TWO).await;
    let a = rig.table_in("s", "a", Identity::Default).await;
    rig.start();
    let end = rig.log.transaction(vec![insert(&a, &[v("1"), v("a")])]).await;
    rig.applied(end).await;
    rig.replica.execute("BEGIN; DROP TABLE s.a; CREATE TABLE s.a (id int PRIMARY KEY, whose text); COMMIT").await;
    rig.log.transaction(vec![insert(&a, &[v("2"), v("a")])]).await;
    let said = rig.halted("schema_mismatch").await;
    assert!(said.contains("is not the one that was copied"), "{said}");
    assert_eq!(rig.rows("SELECT count(*) FROM s.a").await, "0");
}

/// PostgreSQL rounds to a narrower column without a word.
#[tokio::test(flavor = "multi_thread")]
async fn a_column_altered_under_a_session_that_writes_is_seen_before_its_values_are_cut() {
    let mut rig = Rig::new("CREATE TABLE n (id int PRIMARY KEY, x numeric(10,4), y numeric(10,4))").await;
    let n = rig.table("n").await;
    rig.start();
    let end = rig.log.transaction(vec![insert(&n, &[v("1"), v("1.2345"), v("0")])]).await;
    rig.applied(end).await;
    rig.replica.execute("ALTER TABLE n ALTER COLUMN x TYPE numeric(10,1)").await;
    let end = rig.log.transaction(vec![insert(&n, &[v("2"), v("2.3456"), v("0")])]).await;
    let said = rig.halted("schema_mismatch").await;
    assert!(said.contains("column x of table public.n is numeric(10,1)"), "{said}");
    assert_eq!(rig.rows("SELECT count(*) FROM n").await, "1");
    rig.replica.execute("ALTER TABLE n ALTER COLUMN x TYPE numeric(10,4)").await;
    rig.applied(end).await;
    assert_eq!(rig.rows("SELECT x FROM n WHERE id = 2").await, "2.3456");
}

/// What was fitted to the first version is no more when the second one comes.
#[tokio::test(flavor = "multi_thread")]
async fn a_column_made_before_the_source_has_it_is_seen_when_it_comes() {
    let mut rig = Rig::new("CREATE TABLE n (id int PRIMARY KEY)").await;
    let before = rig.table("n").await;
    rig.start();
    let end = rig.log.transaction(vec![insert(&before, &[v("1")])]).await;
    rig.applied(end).await;
    let epoch_before = epoch(&rig).await;
    rig.replica.execute("ALTER TABLE n ADD COLUMN x text").await;
    let after = rig.table("n").await;
    let end = rig.log.transaction(vec![insert(&after, &[v("2"), v("x")])]).await;
    rig.applied(end).await;
    assert_eq!(rig.rows("SELECT id, x FROM n ORDER BY id").await, "1|~\n2|x");
    assert_eq!(epoch(&rig).await, epoch_before, "no halt, no new session");
}
