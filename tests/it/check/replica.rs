//! Findings about a replica.

use std::time::Duration;

use millstream::config::{PgConnect, ReplicaConfig};
use millstream::preflight::check::{Finding, Severity, SourceSide, check_replica, check_source};
use millstream::preflight::init::{Blueprint, Extension};

use super::{carry_out, gone, plain_role, problem, replica_config, server, source_config};
use crate::support::postgres::{self, PgDatabase};

/// Of a source of which only the patterns are known.
fn side(tables: &[String]) -> SourceSide<'_> {
    SourceSide {
        name: "shop",
        facts: None,
        tables,
        blueprint: None,
        carries: false,
        altered: false,
        published: None,
        heartbeat: Duration::ZERO,
    }
}

async fn findings(replica: &ReplicaConfig) -> Vec<Finding> {
    let tables = ["public.*".to_owned()];
    check_replica(replica, &side(&tables)).await.into_list()
}

async fn mends(replica: &ReplicaConfig, database: &PgDatabase<'_>, check: &str) -> Finding {
    let found = problem(&findings(replica).await, check);
    assert!(!found.why.is_empty(), "{check} does not say why it matters");
    carry_out(found.remedy.as_ref().unwrap_or_else(|| panic!("{check} has no remedy")), database).await;
    gone(&findings(replica).await, check);
    found
}

#[tokio::test]
async fn an_empty_replica_of_a_superuser_has_nothing_wrong() {
    let db = postgres::shared_replica().await.new_database().await;
    let all = findings(&replica_config(db.connect())).await;
    let wrong: Vec<_> = all.iter().filter(|f| f.severity == Severity::Error || f.severity == Severity::Unknown).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn rights_of_a_role_that_may_nothing() {
    let server = server(&[]).await;
    let db = server.new_database().await;
    db.execute("CREATE TABLE t (id int PRIMARY KEY)").await;
    let replica = replica_config(plain_role(&db, "poor").await);
    mends(&replica, &db, "ledger_right").await;
    mends(&replica, &db, "table_right").await;
    db.execute("ALTER TABLE t ENABLE ROW LEVEL SECURITY").await;
    mends(&replica, &db, "row_security").await;
    // Last: on PostgreSQL 14 it takes a superuser.
    mends(&replica, &db, "session_replication_role").await;
}

#[tokio::test]
async fn what_fires_and_what_refuses() {
    let db = postgres::shared_replica().await.new_database().await;
    db.execute(
        "CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; \
         CREATE TABLE watched (id int PRIMARY KEY); CREATE TRIGGER w BEFORE INSERT ON watched FOR EACH ROW EXECUTE FUNCTION meddle(); \
         ALTER TABLE watched ENABLE ALWAYS TRIGGER w; \
         CREATE TABLE late (id int PRIMARY KEY DEFERRABLE); CREATE TRIGGER l BEFORE INSERT ON late FOR EACH ROW EXECUTE FUNCTION meddle()",
    )
    .await;
    let replica = replica_config(db.connect_with_replica_role());
    mends(&replica, &db, "trigger").await;
    assert_eq!(mends(&replica, &db, "deferrable").await.severity, Severity::Error);
}

#[tokio::test]
async fn rows_in_a_table_that_init_would_copy_into() {
    let db = postgres::shared_replica().await.new_database().await;
    db.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)").await;
    assert_eq!(mends(&replica_config(db.connect()), &db, "rows_inside").await.severity, Severity::Error);
}

/// One TRUNCATE for each table was refused by the foreign keys between them.
#[tokio::test]
async fn rows_in_tables_that_refer_to_each_other_are_removed_at_once_and_nobody_elses() {
    let db = postgres::shared_replica().await.new_database().await;
    db.execute(
        "CREATE TABLE parent (id int PRIMARY KEY, above int REFERENCES parent); \
         CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent); \
         CREATE TABLE empty (id int PRIMARY KEY, child int REFERENCES child); \
         CREATE TABLE parts (id int PRIMARY KEY, parent int REFERENCES parent) PARTITION BY RANGE (id); \
         CREATE TABLE parts_one PARTITION OF parts FOR VALUES FROM (0) TO (10); \
         CREATE TABLE apart (id int PRIMARY KEY); \
         INSERT INTO parent VALUES (1, 1); INSERT INTO child VALUES (1, 1)",
    )
    .await;
    let replica = replica_config(db.connect());
    let found = mends(&replica, &db, "rows_inside").await;
    assert_eq!(found.what, "2 tables hold rows: public.child, public.parent");
    let remedy = found.remedy.expect("a remedy");
    assert!(remedy.steps.len() == 1 && !remedy.steps[0].contains("CASCADE") && !remedy.steps[0].contains("apart"), "{remedy:?}");

    // A table that is not replicated refers to one: its foreign key is named, its rows stay.
    db.execute(
        "CREATE SCHEMA audit; CREATE TABLE audit.log (id int, parent int CONSTRAINT of_parent REFERENCES public.parent); \
         INSERT INTO parent VALUES (1, NULL); INSERT INTO child VALUES (1, 1); INSERT INTO audit.log VALUES (1, 1)",
    )
    .await;
    let found = mends(&replica, &db, "rows_inside").await;
    assert!(found.why.contains("audit.log"), "{found:?}");
    assert_eq!(found.remedy.expect("a remedy").steps[0], r#"ALTER TABLE "audit"."log" DROP CONSTRAINT "of_parent""#);
    assert_eq!(db.value("SELECT count(*) FROM audit.log").await, "1");
}

#[tokio::test]
async fn a_missing_extension() {
    let db = postgres::shared_replica().await.new_database().await;
    let replica = replica_config(db.connect());
    let poor = replica_config(plain_role(&db, &format!("poor_{:08x}", rand::random::<u32>())).await);
    let tables = ["public.*".to_owned()];
    let look = async |replica: &ReplicaConfig, name: &str| {
        let extension = Extension { name: name.into(), schema: "public".into(), needed_by: "index public.words_idx".into() };
        let blueprint = Blueprint { extensions: vec![extension], ..Blueprint::default() };
        let side = SourceSide { blueprint: Some(&blueprint), ..side(&tables) };
        check_replica(replica, &side).await.into_list()
    };
    gone(&look(&replica, "pg_trgm").await, "extension");
    let found = problem(&look(&poor, "pg_trgm").await, "extension");
    carry_out(found.remedy.as_ref().expect("a remedy"), &db.server.database(&db.name)).await;
    gone(&look(&poor, "pg_trgm").await, "extension");
    let found = problem(&look(&replica, "not_there").await, "extension");
    assert!(found.what.contains("not on this server"), "{found:?}");
}

#[tokio::test]
async fn the_same_database_twice_and_an_encoding_that_lacks_characters() {
    let server = postgres::shared_replica().await;
    let db = server.new_database().await;
    db.execute("CREATE TABLE t (id int PRIMARY KEY)").await;
    let (_, facts) = check_source(&source_config(db.connect())).await;
    let facts = facts.expect("the source's facts");
    assert_eq!(facts.encoding, "UTF8");
    let tables = ["public.*".to_owned()];
    let side = SourceSide { facts: Some(&facts), ..side(&tables) };
    let look = async |connect| check_replica(&replica_config(connect), &side).await.into_list();
    assert_eq!(problem(&look(db.connect()).await, "same_database").severity, Severity::Error);

    // The remedy is another database's name; a database that does not fit has a remedy of its own.
    let name = format!("{}_latin", db.name);
    let admin = server.database("postgres");
    admin.execute(&format!("CREATE DATABASE {name} ENCODING 'LATIN1' TEMPLATE template0 LOCALE 'C'")).await;
    let latin = PgConnect { database: name.clone(), ..db.connect() };
    let found = look(latin.clone()).await;
    gone(&found, "same_database");
    let remedy = problem(&found, "encoding").remedy.expect("a remedy");
    admin.execute(&format!("DROP DATABASE {name}")).await;
    admin.execute(&remedy.steps[0]).await;
    gone(&look(latin).await, "encoding");
}

#[tokio::test]
async fn a_foreign_key_that_is_checked_until_the_role_may_switch_it_off() {
    let server = server(&[]).await;
    let db = server.new_database().await;
    db.execute("CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent)")
        .await;
    let replica = replica_config(plain_role(&db, "poor").await);
    db.execute("GRANT ALL ON parent, child TO poor").await;
    let found = findings(&replica).await;
    assert_eq!(problem(&found, "foreign_key").object.as_deref(), Some("public.child"));
    // Its remedy names the other finding's.
    let other = problem(&found, "session_replication_role").remedy.expect("a remedy");
    carry_out(&other, &db).await;
    gone(&findings(&replica).await, "foreign_key");
}

/// Threat 3: under a superuser, what somebody else puts on a table runs with every right.
#[tokio::test]
async fn who_could_have_a_superuser_run_something_is_named() {
    let server = server(&[]).await;
    let db = server.new_database().await;
    db.execute(
        "CREATE ROLE mallory; CREATE TABLE owned (id int PRIMARY KEY); ALTER TABLE owned OWNER TO mallory; \
         CREATE TABLE triggered (id int PRIMARY KEY); GRANT TRIGGER ON triggered TO mallory; \
         CREATE TABLE everybodys (id int PRIMARY KEY); GRANT TRIGGER ON everybodys TO PUBLIC; GRANT CREATE ON SCHEMA public TO PUBLIC, mallory",
    )
    .await;
    let replica = replica_config(db.connect_as_superuser());
    let found: Vec<_> = findings(&replica).await.into_iter().filter(|f| f.check == "superuser").collect();
    let about: Vec<_> = found.iter().map(|f| f.object.as_deref().unwrap_or_default()).collect();
    assert_eq!(about, ["public.everybodys", "public.owned", "public.triggered", "public", "public"], "{found:#?}");
    for finding in &found {
        assert_eq!(finding.severity, Severity::Warning, "{finding:#?}");
        carry_out(finding.remedy.as_ref().expect("a remedy"), &db).await;
    }
    gone(&findings(&replica).await, "superuser");
    // A role that is no superuser gives away no more than itself.
    db.execute("GRANT CREATE ON SCHEMA public TO mallory").await;
    problem(&findings(&replica).await, "superuser");
    gone(&findings(&replica_config(plain_role(&db, "poor").await)).await, "superuser");
}

#[tokio::test]
async fn a_ledger_that_somebody_else_owns() {
    let server = server(&[]).await;
    let db = server.new_database().await;
    db.execute("CREATE ROLE mallory; CREATE SCHEMA millstream AUTHORIZATION mallory").await;
    problem(&findings(&replica_config(db.connect())).await, "ledger_owner");
    let replica = replica_config(db.connect_as_superuser());
    assert_eq!(mends(&replica, &db, "ledger_owner").await.severity, Severity::Error);
    let mut connection = db.connection().await;
    millstream::replica::postgres::ledger::migrate(&mut connection).await.unwrap();
    gone(&findings(&replica).await, "ledger_owner");
    db.execute("ALTER SCHEMA millstream OWNER TO mallory").await;
    assert_eq!(mends(&replica, &db, "ledger_owner").await.severity, Severity::Warning);
    // Its own, for a role of no other rights.
    let poor = plain_role(&db, "poor").await;
    db.execute("DROP SCHEMA millstream CASCADE; CREATE SCHEMA millstream AUTHORIZATION poor").await;
    gone(&findings(&replica_config(poor)).await, "ledger_owner");
}
