//! Second unique keys, deferrable ones, foreign keys, triggers (FAULTS 29, 42).

use super::rig::{NULL, Rig, SAME, delete, insert, update, update_from, v};

/// FAULTS 29.
#[tokio::test(flavor = "multi_thread")]
async fn a_unique_value_moves_between_rows_in_one_batch() {
    let mut rig = Rig::new("CREATE TABLE person (id int PRIMARY KEY, email text UNIQUE)").await;
    rig.replica.execute("INSERT INTO person VALUES (1, 'x'), (2, 'y'), (3, 'z')").await;
    let t = rig.table("person").await;
    let end = rig
        .log
        .transactions(&[
            vec![delete(&t, &[v("1"), NULL]), insert(&t, &[v("4"), v("x")])],
            // A swap through a third value, as a source without deferrable keys must do it.
            vec![update(&t, &[v("2"), v("tmp")]), update(&t, &[v("3"), v("y")]), update(&t, &[v("2"), v("z")])],
        ])
        .await;
    rig.drain(end).await;
    assert_eq!(rig.rows("SELECT * FROM person ORDER BY id").await, "2|z\n3|y\n4|x");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_swaps_cost_time_and_nothing_else() {
    let mut rig = Rig::new("CREATE TABLE person (id int PRIMARY KEY, email text UNIQUE)").await;
    rig.replica.execute("INSERT INTO person SELECT n, 'm' || n FROM generate_series(0, 199) n").await;
    let t = rig.table("person").await;
    let swap = |a: i32, b: i32| {
        let id = |n: i32| n.to_string();
        let mail = |n: i32| format!("m{n}");
        vec![update(&t, &[v(&id(a)), v("tmp")]), update(&t, &[v(&id(b)), v(&mail(a))]), update(&t, &[v(&id(a)), v(&mail(b))])]
    };
    let swaps: Vec<_> = (0..100).map(|i| swap(2 * i, 2 * i + 1)).collect();
    let end = rig.log.transactions(&swaps).await;
    rig.drain(end).await;
    let sql = "SELECT bool_and(email = 'm' || (id # 1)), count(DISTINCT email) FROM person";
    assert_eq!(rig.rows(sql).await, "t|200");
    assert_eq!(rig.rows("SELECT transactions, changes FROM millstream.replica").await, "100|300");
    assert_eq!(rig.status.borrow().replays, 0, "moving values are no reason to replay a batch in pieces");
}

/// Rows are taken apart for it; what the log does not say of them must survive that: unchanged cells, the replica's own columns.
#[tokio::test(flavor = "multi_thread")]
async fn values_that_rotate_keep_what_the_log_does_not_say_of_their_rows() {
    let mut rig = Rig::new(
        "CREATE TABLE seat (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, wide text, code text NOT NULL UNIQUE, twice text
            GENERATED ALWAYS AS (code || code) STORED, during int4range, EXCLUDE USING gist (during WITH &&));
         INSERT INTO seat (wide, code, during) SELECT 'wide ' || n, 'c' || n, int4range(n * 10, n * 10 + 5) FROM generate_series(1, 5) n",
    )
    .await;
    let t = rig.table("seat").await;
    rig.replica.execute("ALTER TABLE seat ADD COLUMN own text DEFAULT 'kept'; UPDATE seat SET own = 'own ' || id").await;
    let end = rig
        .log
        .transactions(&[
            vec![update(&t, &[v("1"), SAME, v("tmp"), v("[90,95)")])],
            vec![update(&t, &[v("2"), v("new"), v("c1"), v("[10,15)")])],
            vec![update(&t, &[v("3"), SAME, v("c2"), v("[20,25)")])],
            vec![update(&t, &[v("1"), SAME, v("c3"), v("[30,35)")]), delete(&t, &[v("4"), NULL, NULL, NULL])],
            vec![insert(&t, &[v("6"), v("wide 6"), v("c4"), v("[40,45)")])],
        ])
        .await;
    rig.drain(end).await;
    assert_eq!(
        rig.rows("SELECT id, wide, code, twice, during, own FROM seat ORDER BY id").await,
        "1|wide 1|c3|c3c3|[30,35)|own 1\n2|new|c1|c1c1|[10,15)|own 2\n3|wide 3|c2|c2c2|[20,25)|own 3\n\
         5|wide 5|c5|c5c5|[50,55)|own 5\n6|wide 6|c4|c4c4|[40,45)|kept"
    );
    assert_eq!(rig.status.borrow().replays, 0);
}

/// FAULTS 29: the keys themselves swap; only a deferrable key lets a source do that in one statement.
#[tokio::test(flavor = "multi_thread")]
async fn deferrable_keys_are_checked_at_commit_and_not_switched_off() {
    let mut rig = Rig::new(
        "CREATE TABLE d (id int PRIMARY KEY DEFERRABLE, u int UNIQUE DEFERRABLE INITIALLY DEFERRED); INSERT INTO d VALUES (1, 10), (2, 20)",
    )
    .await;
    // PostgreSQL takes no deferrable index for a replica identity.
    let t = rig.full("d").await;
    let end = rig
        .log
        .transaction(vec![
            update_from(&t, &[v("1"), v("10")], &[v("2"), v("10")]),
            update_from(&t, &[v("2"), v("20")], &[v("1"), v("20")]),
        ])
        .await;
    rig.start();
    rig.applied(end).await;
    assert_eq!(rig.rows("SELECT * FROM d ORDER BY id").await, "1|20\n2|10");
    // A rogue row: with the replica role alone the duplicate would be stored in silence.
    rig.replica.execute("INSERT INTO d VALUES (3, 30)").await;
    let end = rig.log.transaction(vec![insert(&t, &[v("3"), v("31")])]).await;
    rig.halted("replica_constraint").await;
    rig.replica.execute("DELETE FROM d WHERE id = 3").await;
    rig.applied(end).await;
    assert_eq!(rig.rows("SELECT count(*), count(DISTINCT id) FROM d").await, "3|3");
    rig.stop().await;
}

const FAMILY: &str = "CREATE TABLE parent (id int PRIMARY KEY, name text);
    CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent ON DELETE CASCADE, up int REFERENCES child);
    CREATE TABLE audit (n int);
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO public.audit VALUES (1); RETURN NEW; END';
    CREATE TRIGGER note AFTER INSERT ON parent FOR EACH ROW EXECUTE FUNCTION note()";

async fn family(rig: &mut Rig) {
    let (p, c) = (rig.table("parent").await, rig.table("child").await);
    let end = rig
        .log
        .transactions(&[
            vec![insert(&p, &[v("1"), v("a")]), insert(&c, &[v("1"), v("1"), NULL]), insert(&c, &[v("2"), v("1"), v("1")])],
            vec![insert(&p, &[v("2"), v("b")])],
            vec![insert(&c, &[v("3"), v("2"), NULL])],
            vec![update(&c, &[v("3"), v("1"), v("2")]), delete(&p, &[v("2"), NULL])],
            vec![insert(&p, &[v("3"), v("c")]), insert(&c, &[v("4"), v("3"), NULL])],
            // The source's cascade: the parent first, then the child that went with it.
            vec![delete(&p, &[v("3"), NULL]), delete(&c, &[v("4"), NULL, NULL])],
        ])
        .await;
    rig.drain(end).await;
    assert_eq!(rig.rows("SELECT * FROM parent").await, "1|a");
    assert_eq!(rig.rows("SELECT * FROM child ORDER BY id").await, "1|1|~\n2|1|1\n3|1|2");
}

/// FAULTS 42.
#[tokio::test(flavor = "multi_thread")]
async fn foreign_keys_under_the_replica_role() {
    let mut rig = Rig::new(FAMILY).await;
    rig.config.connect = rig.replica.connect_with_replica_role();
    family(&mut rig).await;
    assert_eq!(rig.rows("SELECT count(*) FROM audit").await, "0", "the application's trigger fired");
}

/// FAULTS 42, as a role that may not switch triggers off.
#[tokio::test(flavor = "multi_thread")]
async fn foreign_keys_that_are_enforced() {
    let mut rig = Rig::new(FAMILY).await;
    rig.as_ordinary_role().await;
    family(&mut rig).await;
    assert_eq!(rig.rows("SELECT count(*) FROM audit").await, "3", "the trigger fires for an ordinary role");
}

/// A role that may not set `session_replication_role` has foreign keys enforced, as the source had them: at COMMIT.
#[tokio::test(flavor = "multi_thread")]
async fn a_role_without_replica_rights_checks_deferrable_keys_at_commit_as_the_source_did() {
    let mut rig = Rig::new(
        "CREATE TABLE hen (id int PRIMARY KEY, egg int NOT NULL);
         CREATE TABLE egg (id int PRIMARY KEY, hen int NOT NULL REFERENCES hen DEFERRABLE);
         ALTER TABLE hen ADD FOREIGN KEY (egg) REFERENCES egg DEFERRABLE",
    )
    .await;
    rig.as_ordinary_role().await;
    let (h, e) = (rig.table("hen").await, rig.table("egg").await);
    let end = rig.log.transaction(vec![insert(&h, &[v("1"), v("1")]), insert(&e, &[v("1"), v("1")])]).await;
    rig.drain(end).await;
    assert_eq!(rig.rows("SELECT * FROM hen JOIN egg ON egg.id = hen.egg").await, "1|1|1|1");
}

/// Tables that inherit are tables of their own, with the same keys.
#[tokio::test(flavor = "multi_thread")]
async fn changes_to_a_parent_leave_rows_of_those_that_inherit_from_it_alone() {
    let mut rig = Rig::new(
        "CREATE TABLE base (id int PRIMARY KEY, n int); CREATE TABLE derived (PRIMARY KEY (id)) INHERITS (base);
         INSERT INTO base VALUES (1, 1), (2, 2); INSERT INTO derived VALUES (1, 1), (2, 2), (3, 3);
         CREATE TABLE bare (n int); CREATE TABLE bare_derived () INHERITS (bare);
         INSERT INTO bare_derived VALUES (7); INSERT INTO bare VALUES (7), (8); INSERT INTO bare_derived VALUES (8)",
    )
    .await;
    let (b, full) = (rig.table("base").await, rig.full("bare").await);
    let end = rig
        .log
        .transaction(vec![
            delete(&b, &[v("1"), NULL]),
            update(&b, &[v("2"), v("22")]),
            delete(&full, &[v("7")]),
            update_from(&full, &[v("8")], &[v("9")]),
        ])
        .await;
    rig.drain(end).await;
    assert_eq!(
        rig.rows("SELECT tableoid::regclass, * FROM base ORDER BY 2, 1").await,
        "derived|1|1\nbase|2|22\nderived|2|2\nderived|3|3"
    );
    assert_eq!(rig.rows("SELECT tableoid::regclass, n FROM bare ORDER BY 2, 1").await, "bare_derived|7\nbare_derived|8\nbare|9");
    assert_eq!(rig.status.borrow().replays, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_whose_triggers_fire_always_gets_its_changes_in_order() {
    let mut rig = Rig::new(
        "CREATE TABLE item (id int PRIMARY KEY, name text);
         CREATE TABLE seen (n serial, what text);
         CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN INSERT INTO public.seen (what) VALUES (TG_OP || coalesce(NEW.name, OLD.name)); RETURN NULL; END';
         CREATE TRIGGER see AFTER INSERT OR UPDATE OR DELETE ON item FOR EACH ROW EXECUTE FUNCTION see();
         ALTER TABLE item ENABLE ALWAYS TRIGGER see",
    )
    .await;
    let t = rig.table("item").await;
    let end = rig
        .log
        .transactions(&[
            vec![insert(&t, &[v("1"), v("a")])],
            vec![update(&t, &[v("1"), v("b")]), update(&t, &[v("1"), v("c")])],
            vec![delete(&t, &[v("1"), NULL])],
        ])
        .await;
    rig.drain(end).await;
    assert_eq!(rig.rows("SELECT what FROM seen ORDER BY n").await, "INSERTa\nUPDATEb\nUPDATEc\nDELETEc");
}

#[tokio::test(flavor = "multi_thread")]
async fn partial_expression_and_exclusion_constraints() {
    let mut rig = Rig::new(
        "CREATE TABLE booking (id int PRIMARY KEY, room int, during int4range, code text,
            EXCLUDE USING gist (during WITH &&));
         CREATE UNIQUE INDEX ON booking (lower(code)); CREATE UNIQUE INDEX ON booking (room) WHERE room > 5",
    )
    .await;
    let t = rig.table("booking").await;
    let end = rig
        .log
        .transactions(&[
            vec![insert(&t, &[v("1"), v("9"), v("[1,5)"), v("A")]), insert(&t, &[v("2"), v("8"), v("[5,9)"), v("B")])],
            // Each takes what the other leaves.
            vec![update(&t, &[v("1"), v("1"), v("[20,30)"), v("c")]), update(&t, &[v("2"), v("9"), v("[1,5)"), v("a")])],
            vec![update(&t, &[v("1"), v("8"), v("[5,9)"), v("b")])],
        ])
        .await;
    rig.drain(end).await;
    assert_eq!(rig.rows("SELECT * FROM booking ORDER BY id").await, "1|8|[5,9)|b\n2|9|[1,5)|a");
}
