//! Somebody else's session on the replica stands in the applier's way: a deadlock, a serialization failure, a lock that is not to be had. The applier gives way
//! and tries again, with growing pauses, and never halts for it.

use std::time::{Duration, Instant};

use sqlx::PgConnection;

use super::Lane;
use crate::support::sql;
use crate::support::wait::until;

const TWO: &str = "CREATE TABLE a (id int PRIMARY KEY, n int); CREATE TABLE b (id int PRIMARY KEY, n int); \
     INSERT INTO a SELECT n, 0 FROM generate_series(1, 10) n; INSERT INTO b SELECT n, 0 FROM generate_series(1, 10) n";

/// A session of somebody's on the replica, in a transaction.
async fn in_transaction(lane: &Lane<'_>, statements: &str) -> PgConnection {
    let mut session = lane.replica.connection().await;
    sql::query(&mut session, &format!("BEGIN; {statements}")).await.expect("a transaction");
    session
}

/// Waits until the applier stands in line behind somebody.
async fn applier_waits(lane: &Lane<'_>) {
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'millstream apply%' \
         AND wait_event_type = 'Lock'";
    until("the applier to wait for a lock", super::CATCH_UP, async || lane.replica.value(waiting).await != "0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_deadlock_the_applier_gives_way_and_tries_again() {
    let lane = Lane::new(TWO).await;
    // The applier is the one that notices, and not before the circle is closed: it looks once.
    let patience = format!("ALTER DATABASE {} SET deadlock_timeout = '3s'", lane.replica.name);
    lane.replica.execute(&patience).await;
    let daemon = lane.start().await;
    lane.source.execute("UPDATE a SET n = 1 WHERE id = 1; UPDATE b SET n = 1 WHERE id = 1").await;
    lane.equal().await;

    let mut other = in_transaction(&lane, "SET LOCAL deadlock_timeout = '40s'; UPDATE a SET n = n WHERE id = 5").await;
    lane.source.execute("BEGIN; UPDATE b SET n = 2 WHERE id = 5; UPDATE a SET n = 2 WHERE id = 5; COMMIT").await;
    applier_waits(&lane).await;
    // Has to wait for the applier, which waits for it; goes on as the applier gives way.
    sql::query(&mut other, "UPDATE b SET n = n WHERE id = 5").await.expect("the applier gave way");
    until("the deadlock to be told", super::CATCH_UP, async || daemon.log().contains("SQLSTATE 40P01")).await;
    lane.source.execute("UPDATE a SET n = 3 WHERE id = 6").await;
    assert_eq!(lane.replica.value("SELECT sum(n) FROM b WHERE id = 5").await, "0", "half a transaction is there");
    sql::query(&mut other, "COMMIT").await.expect("committed");
    lane.equal().await;
    lane.site.ready(super::CATCH_UP).await;
    assert!(daemon.log().contains("goes on by itself") && !daemon.log().contains("halted"), "{}", daemon.log());
    assert_eq!(daemon.terminate().await.code(), Some(0));
}

/// No deadlock, and nobody lets go: the applier asks for ten seconds, rolls back and asks again.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_somebody_holds_for_long_is_asked_for_again() {
    let lane = Lane::new(TWO).await;
    let daemon = lane.start().await;
    let mut other = in_transaction(&lane, "UPDATE a SET n = n WHERE id = 5").await;
    lane.source.execute("BEGIN; UPDATE b SET n = 2 WHERE id = 5; UPDATE a SET n = 2 WHERE id = 5; COMMIT").await;
    until("the applier to roll back", super::CATCH_UP, async || daemon.log().contains("SQLSTATE 55P03")).await;
    applier_waits(&lane).await;
    sql::query(&mut other, "COMMIT").await.expect("committed");
    lane.equal().await;
    lane.site.ready(super::CATCH_UP).await;
    assert!(daemon.log().contains("goes on by itself") && !daemon.log().contains("halted"), "{}", daemon.log());
    assert_eq!(daemon.terminate().await.code(), Some(0));
}

/// The applier asks for what it needs and does not leave it to the database.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_isolates_transactions_by_default_makes_none_of_ours_fail() {
    let lane = Lane::with(TWO, "copy_chunk_rows = 1000").await;
    lane.source.execute("INSERT INTO a SELECT n, 0 FROM generate_series(11, 20000) n").await;
    let isolated = format!("ALTER DATABASE {} SET default_transaction_isolation = 'serializable'", lane.replica.name);
    lane.replica.execute(&isolated).await;
    let daemon = lane.start().await;
    let mut other = in_transaction(&lane, "UPDATE a SET n = n WHERE id = 5").await;
    let isolated = sql::query(&mut other, "SHOW transaction_isolation").await.expect("a setting");
    assert_eq!(isolated[0][0].as_deref(), Some("serializable"));
    lane.source.execute("BEGIN; UPDATE b SET n = 2 WHERE id = 5; UPDATE a SET n = 2 WHERE id = 5; COMMIT").await;
    applier_waits(&lane).await;
    sql::query(&mut other, "COMMIT").await.expect("committed");
    lane.equal().await;
    assert!(!daemon.log().contains("40001"), "{}", daemon.log());
    assert_eq!(daemon.terminate().await.code(), Some(0));
}

/// What a trigger of the replica's does in a session of its own may not serialize.
#[tokio::test(flavor = "multi_thread")]
async fn a_serialization_failure_is_tried_again() {
    let lane = Lane::new(TWO).await;
    let daemon = lane.start().await;
    lane.replica
        .execute(
            "CREATE SEQUENCE attempts; CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS \
             $$BEGIN IF nextval('public.attempts') < 3 THEN RAISE serialization_failure; END IF; RETURN NEW; END$$; \
             CREATE TRIGGER fail BEFORE UPDATE ON a FOR EACH ROW EXECUTE FUNCTION fail(); ALTER TABLE a ENABLE ALWAYS TRIGGER fail",
        )
        .await;
    lane.source.execute("BEGIN; UPDATE b SET n = 2 WHERE id = 5; UPDATE a SET n = 2 WHERE id = 5; COMMIT").await;
    lane.equal().await;
    lane.site.ready(super::CATCH_UP).await;
    assert_eq!(lane.replica.value("SELECT last_value FROM attempts").await, "3");
    let log = daemon.log();
    assert!(log.contains("SQLSTATE 40001") && log.contains("goes on by itself") && !log.contains("halted"), "{log}");
    assert_eq!(daemon.terminate().await.code(), Some(0));
}

/// A trigger of the replica's that waits for less than the applier would.
#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_is_not_to_be_had_is_asked_for_with_growing_pauses() {
    let lane = Lane::new(TWO).await;
    let daemon = lane.start().await;
    lane.replica
        .execute(
            "CREATE TABLE guard (id int PRIMARY KEY); INSERT INTO guard VALUES (1); CREATE SEQUENCE attempts; \
             CREATE FUNCTION ask() RETURNS trigger LANGUAGE plpgsql SET lock_timeout = '20ms' AS \
             $$BEGIN PERFORM nextval('public.attempts'); PERFORM FROM public.guard FOR UPDATE; RETURN NEW; END$$; \
             CREATE TRIGGER ask BEFORE UPDATE ON a FOR EACH ROW EXECUTE FUNCTION ask(); ALTER TABLE a ENABLE ALWAYS TRIGGER ask",
        )
        .await;
    let mut other = in_transaction(&lane, "SELECT FROM guard FOR UPDATE").await;
    let began = Instant::now();
    lane.source.execute("UPDATE a SET n = 2 WHERE id = 5").await;
    let attempts = "SELECT last_value FROM attempts WHERE is_called";
    let fifth = async || {
        lane.replica
            .query(attempts)
            .await
            .is_ok_and(|rows| rows.iter().flatten().flatten().any(|n| n.parse::<u32>().is_ok_and(|n| n >= 5)))
    };
    until("the fifth attempt", super::CATCH_UP, fifth).await;
    // 0.1, 0.2, 0.4 and 0.8 s.
    assert!(began.elapsed() > Duration::from_millis(1400), "five attempts within {:?}", began.elapsed());
    let log = daemon.log();
    assert!(log.contains("SQLSTATE 55P03") && !log.contains("halted"), "{log}");
    assert_eq!(log.matches("goes on by itself").count(), 1, "the same is said once: {log}");
    sql::query(&mut other, "ROLLBACK").await.expect("let go");
    lane.equal().await;
    lane.site.ready(super::CATCH_UP).await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
}
