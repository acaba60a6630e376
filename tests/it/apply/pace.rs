//! When a batch goes, and what does not end a session.

use std::sync::Arc;
use std::time::Duration;

use millstream::apply::ApplyState;
use millstream::apply::FirstCopy;
use millstream::apply::copy::PostgresCopy;
use millstream::config::{OnRetainLimit, SchemaChanges, SourceConfig};
use millstream::event::{Change, TableSchema};

use super::rig::{Rig, WAIT, insert, v};
use crate::support::wait::until;

const ITEM: &str = "CREATE TABLE item (id int PRIMARY KEY)";

/// After one large batch more was expected, and every transaction within 50 ms of the last put the commit off again: a trickle was not
/// seen on the replica until 10,000 changes had come.
#[tokio::test(flavor = "multi_thread")]
async fn a_trickle_behind_a_large_transaction_is_not_held_back() {
    let mut rig = Rig::new(ITEM).await;
    rig.config.merge_max_changes = 1000;
    let t = rig.table("item").await;
    let large = rig.log.transaction((0..500).map(|n| insert(&t, &[v(&n.to_string())])).collect()).await;
    rig.start();
    rig.applied(large).await;
    let mut ends = Vec::new();
    for n in 1000..1080 {
        ends.push(rig.log.transaction(vec![insert(&t, &[v(&n.to_string())])]).await);
        // The gap is what the test is about.
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    // Nothing is waited for: what came more than a second ago must be there by now.
    let position = rig.status.borrow().position;
    assert!(position >= Some(ends[ends.len() - 35]), "{position:?} of {ends:?}");
    rig.stop().await;
}

fn any_source(rig: &Rig) -> SourceConfig {
    SourceConfig {
        name: "shop".into(),
        connect: rig.replica.connect(),
        tables: vec!["public.*".into()],
        schema_changes: SchemaChanges::default(),
        retain_max_bytes: 1 << 30,
        retain_max_age: Duration::from_secs(7 * 86_400),
        on_retain_limit: OnRetainLimit::Alarm,
        memory_bytes: 16 << 20,
        spill_max_bytes: 1 << 30,
        spill_dir: "unused".into(),
        heartbeat_interval: Duration::from_secs(1),
        copy_workers: 1,
        copy_max_bytes_per_second: None,
        copy_chunk_rows: 100,
    }
}

/// Every five seconds a session of its own asks the ledger for tables that a later `init` added.
#[tokio::test(flavor = "multi_thread")]
async fn a_look_for_new_tables_that_fails_does_not_end_a_session_that_works() {
    let mut rig = Rig::new(ITEM).await;
    let role = rig.as_ordinary_role().await;
    let (copy, _progress) = PostgresCopy::new(any_source(&rig), rig.config.clone());
    rig.first_copy = Some(Arc::clone(&copy) as Arc<dyn FirstCopy>);
    let t = rig.table("item").await;
    let first = rig.log.transaction(vec![insert(&t, &[v("1")])]).await;
    rig.start();
    rig.applied(first).await;
    // The look of the start may have left its session open.
    let limit = format!(
        "ALTER ROLE {role} CONNECTION LIMIT 1; \
         SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = '{role}' AND application_name NOT LIKE 'millstream apply %'"
    );
    rig.replica.execute(&limit).await;
    assert!(copy.wanted().await.is_err(), "the limit does not hold");
    // Longer than between two looks.
    tokio::time::sleep(Duration::from_secs(7)).await;
    let second = rig.log.transaction(vec![insert(&t, &[v("2")])]).await;
    rig.applied(second).await;
    assert_eq!(rig.status.borrow().state, ApplyState::Live);
    assert_eq!(rig.rows("SELECT apply_epoch FROM millstream.replica").await, "1", "it was claimed once");
    // A look that succeeds and finds tables still does.
    rig.replica
        .execute(&format!(
            "ALTER ROLE {role} CONNECTION LIMIT -1; CREATE TABLE later (id int PRIMARY KEY); CREATE PUBLICATION millstream_shop FOR TABLE later;
             INSERT INTO millstream.copied_table (replica, table_schema, table_name, state) VALUES ('reports', 'public', 'later', 'pending')"
        ))
        .await;
    until("the session to start over", WAIT, async || rig.rows("SELECT apply_epoch > 1 FROM millstream.replica").await == "t")
        .await;
    rig.kill();
}

/// A hundred transactions of one row, the slow one among them.
fn hundred(slow: &TableSchema) -> Vec<Vec<Change>> {
    (0..100).map(|n| vec![insert(slow, &[v(&n.to_string())])]).collect()
}

/// Cancels statements as `statement_timeout` does, while the limit is among some.
fn impatient(limits: &str) -> String {
    format!(
        "CREATE TABLE slow (id int PRIMARY KEY);
         CREATE FUNCTION cancel() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF NEW.id = 57 AND current_setting('statement_timeout') IN ({limits}) THEN
                PERFORM pg_catalog.pg_cancel_backend(pg_catalog.pg_backend_pid()); PERFORM pg_catalog.pg_sleep(5);
            END IF; RETURN NEW; END $$;
         CREATE TRIGGER cancel BEFORE INSERT ON slow FOR EACH ROW EXECUTE FUNCTION cancel();
         ALTER TABLE slow ENABLE ALWAYS TRIGGER cancel"
    )
}

/// It was rolled back and tried again as a whole, for ever and without a halt.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_past_the_statement_timeout_goes_in_halves_and_one_transaction_gets_more_time() {
    let mut rig = Rig::new(&impatient("'2min'")).await;
    let t = rig.table("slow").await;
    rig.log.transactions(&hundred(&t)).await;
    let large: Vec<_> = (100..200).chain(std::iter::once(57)).map(|n| insert(&t, &[v(&n.to_string())])).collect();
    let end = rig.log.position();
    rig.start();
    rig.applied(end).await;
    rig.replica.execute("DELETE FROM slow WHERE id = 57").await;
    let end = rig.log.parts(&large, 300, usize::MAX).await;
    rig.applied(end).await;
    rig.stop().await;
    assert_eq!(rig.rows("SELECT count(*) FROM slow").await, "200");
    assert_eq!(rig.rows("SELECT apply_epoch FROM millstream.replica").await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_is_given_up_with_more_time_too_halts_and_names_its_table() {
    let mut rig = Rig::new(&impatient("'2min', '30min'")).await;
    let t = rig.table("slow").await;
    rig.log.transactions(&hundred(&t)).await;
    rig.start();
    let message = rig.halted("replica_constraint").await;
    assert!(message.contains("public.slow") && message.contains("missing index"), "{message}");
    assert_eq!(rig.rows("SELECT max(id) FROM slow").await, "56");
}
