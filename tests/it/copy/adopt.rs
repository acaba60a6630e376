use millstream::event::Position;
use millstream::preflight::init::{Adopt, InitOptions, Line, Outcome};

use super::Pair;
use crate::support::compare;
use crate::support::daemon::{Site, pair_configuration};
use crate::support::postgres::PgServer;
use crate::support::wait::{LONG, until};

fn adopt(at: Option<Position>) -> InitOptions {
    InitOptions { adopt: Some(Adopt { at }), ..InitOptions::default() }
}

/// Servers of its own: on a shared one other tests' writers never stand still.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_was_loaded_while_writers_stood_still_goes_on_from_there() {
    let (one, other) = tokio::join!(PgServer::builder().set("autovacuum", "off").start(), PgServer::start());
    let (source, replica) = (one.new_database().await, other.new_database().await);
    let tables = "CREATE TABLE a (id int PRIMARY KEY, v text)";
    source.execute(tables).await;
    replica.execute(tables).await;
    let rows = "INSERT INTO a SELECT n, 'x' FROM generate_series(1, 100) n";
    source.execute(rows).await;
    let site = Site::pair(&source, &replica);
    let refused = site.run(&["init", "--adopt"]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stdout.contains("100 rows at the source, 0 on the replica"), "{refused:?}");
    replica.execute(rows).await;

    let mut open = source.connection().await;
    crate::support::sql::query(&mut open, "BEGIN; UPDATE a SET v = 'late' WHERE id = 1").await.unwrap();
    let refused = site.run(&["init", "--adopt"]).await;
    assert!(refused.code == Some(1) && refused.stdout.contains("writers do not stand still"), "{refused:?}");
    crate::support::sql::query(&mut open, "ROLLBACK").await.unwrap();

    site.must(&["init", "--adopt"]).await;
    source.execute("UPDATE a SET v = 'y' WHERE id < 50; DELETE FROM a WHERE id > 90; INSERT INTO a VALUES (1000)").await;
    let daemon = site.start();
    compare::equal(&source, &replica, LONG).await;
    assert!(!daemon.log().contains("halted"), "{}", daemon.log());
    daemon.terminate().await;
}

#[tokio::test]
async fn an_lsn_beside_a_dump_is_refused() {
    let pair = Pair::new().await;
    pair.source.execute("CREATE TABLE a (id int PRIMARY KEY)").await;
    pair.replica.execute("CREATE TABLE a (id int PRIMARY KEY)").await;
    let (outcome, lines) = pair.init_with(adopt(Some("0/5000000".parse().unwrap()))).await;
    assert_eq!(outcome.unwrap(), Outcome::Refused);
    let said = |text: &str| lines.iter().any(|l| matches!(l, Line::Refused(t) if t.contains(text)));
    assert!(said("An LSN read beside a dump is no place in the log"), "{lines:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_physical_backup_goes_on_from_where_it_left_the_source() {
    // Its workers take transaction ids, and writers would not stand still.
    let one = PgServer::builder().set("autovacuum", "off").start().await;
    let source = one.new_database().await;
    source
        .execute("CREATE TABLE a (id int PRIMARY KEY, v text); INSERT INTO a SELECT n, 'x' FROM generate_series(1, 100) n")
        .await;
    // The stream begins before the copy is made, so that the log can continue it.
    let site = Site::new(
        &pair_configuration(&source.url(), &source.url(), "embedded:{folder}/queue")
            .replace("[replica.reports]\nsource = \"shop\"", "[replica.unused]\nsource = \"shop\""),
    );
    let without = std::fs::read_to_string(site.configuration()).unwrap();
    let cut = without.split("[replica.unused]").next().unwrap().to_owned();
    let http = without.split("[http]").nth(1).unwrap().to_owned();
    site.configure(&format!("{cut}[http]{http}"));
    site.must(&["init"]).await;
    source.execute("UPDATE a SET v = 'before' WHERE id < 20").await;

    let standby = one.cold_standby().await;
    let replica = standby.database(&source.name);
    source.execute("UPDATE a SET v = 'streamed' WHERE id = 30").await;
    until("the standby to follow", LONG, async || replica.value("SELECT v FROM a WHERE id = 30").await == "streamed").await;
    replica.value("SELECT pg_promote()::text").await;
    source.execute("UPDATE a SET v = 'after' WHERE id > 80; INSERT INTO a VALUES (500, 'after')").await;
    let left = replica.value("SELECT split_part(pg_read_file('pg_wal/00000002.history'), E'\\t', 2)").await;

    site.configure(&format!("{cut}[replica.reports]\nsource = \"shop\"\nurl = \"{}\"\n[http]{http}", replica.url()));
    let wrong = site.run(&["init", "--adopt", "--at", "0/1"]).await;
    assert!(wrong.code == Some(1) && wrong.stdout.contains(&format!("--at {left}")), "{wrong:?}");
    // Somebody writes; the source has gone on; both are alike.
    let mut open = source.connection().await;
    crate::support::sql::query(&mut open, "BEGIN; UPDATE a SET v = 'late' WHERE id = 1").await.unwrap();
    let said = site.must(&["init", "--adopt", "--at", &left]).await;
    assert!(said.contains("rows of 1 tables are not comparable: writers do not stand still"), "{said}");
    crate::support::sql::query(&mut open, "ROLLBACK").await.unwrap();
    replica.execute("DROP SCHEMA millstream CASCADE").await;
    let said = site.must(&["init", "--adopt", "--at", &left]).await;
    assert!(
        said.contains(&format!("the source has gone on since {left}: public.a: 101 rows at the source, 100 on the replica")),
        "{said}"
    );
    replica.execute("DROP SCHEMA millstream CASCADE").await;
    source.execute("DELETE FROM a WHERE id = 500").await;
    let said = site.must(&["init", "--adopt", "--at", &left]).await;
    assert!(said.contains("rows of 1 tables are counted alike"), "{said}");
    let daemon = site.start();
    compare::equal(&source, &replica, LONG).await;
    source.execute("DELETE FROM a WHERE id < 10").await;
    compare::equal(&source, &replica, LONG).await;
    assert!(!daemon.log().contains("halted"), "{}", daemon.log());
    daemon.terminate().await;
}
