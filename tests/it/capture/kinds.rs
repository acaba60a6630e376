//! Every kind of change comes through as the source made it.

use millstream::capture::CaptureState;
use millstream::event::Identity;

use super::rig::Rig;
use crate::support::postgres;

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_change_is_in_the_log_as_the_source_made_it() {
    let server = postgres::shared().await;
    let rig = Rig::new(
        server,
        "CREATE TABLE keyed (id int PRIMARY KEY, v text, wide text);
         ALTER TABLE keyed ALTER wide SET STORAGE EXTERNAL;
         CREATE TABLE whole (a int, b text); ALTER TABLE whole REPLICA IDENTITY FULL;
         CREATE TABLE wholekeyed (a int, b text, PRIMARY KEY (a)); ALTER TABLE wholekeyed REPLICA IDENTITY FULL;
         CREATE TABLE indexed (a int NOT NULL, b text, c int NOT NULL); CREATE UNIQUE INDEX byc ON indexed (c);
         ALTER TABLE indexed REPLICA IDENTITY USING INDEX byc;
         CREATE TABLE generated (id int PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) STORED);
         CREATE TYPE mood AS ENUM ('sad', 'glad'); CREATE DOMAIN short AS varchar(10);
         CREATE TABLE typed (id int PRIMARY KEY, m mood, d short, a int[], n numeric(10,2));
         CREATE TABLE parted (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
         CREATE TABLE part_low PARTITION OF parted FOR VALUES FROM (0) TO (100);
         CREATE TABLE part_high PARTITION OF parted FOR VALUES FROM (100) TO (200);
         CREATE TABLE \"odd \"\"name;--\" (\"the \"\"id\" int PRIMARY KEY);
         CREATE SCHEMA millstream; CREATE TABLE millstream.own (id int PRIMARY KEY)",
    )
    .await;
    let capture = rig.start();
    capture.reaches(CaptureState::Streaming).await;
    rig.db
        .execute(
            "INSERT INTO keyed VALUES (1, 'a', repeat('x', 5000)), (2, NULL, NULL);
             UPDATE keyed SET v = 'b' WHERE id = 1;
             UPDATE keyed SET id = 3 WHERE id = 2;
             DELETE FROM keyed WHERE id = 3;
             INSERT INTO whole VALUES (1, 'eq'), (1, 'eq'); UPDATE whole SET b = 'x' WHERE ctid = '(0,1)'; DELETE FROM whole WHERE b = 'eq';
             INSERT INTO wholekeyed VALUES (1, 'k');
             INSERT INTO indexed VALUES (1, 'i', 10); UPDATE indexed SET c = 11; DELETE FROM indexed;
             INSERT INTO generated VALUES (1, 21);
             INSERT INTO typed VALUES (1, 'glad', 'dom', '{1,NULL,3}', 1.50);
             INSERT INTO parted VALUES (1, 'low'), (150, 'high'); UPDATE parted SET id = 151 WHERE id = 1;
             INSERT INTO \"odd \"\"name;--\" VALUES (7);
             INSERT INTO millstream.own VALUES (1);
             TRUNCATE keyed, whole RESTART IDENTITY CASCADE; TRUNCATE part_high;
             SELECT pg_logical_emit_message(true, 'app', 'inside'), pg_logical_emit_message(false, 'app', 'outside')",
        )
        .await;
    let log = rig.log_after_marker().await;
    assert_eq!(
        log.changes(),
        [
            "+keyed (id=1,v=a,wide=<5000 bytes>)",
            "+keyed (id=2,v=NULL,wide=NULL)",
            "~keyed (id=1,v=b,wide=unchanged)",
            "~keyed key(id=2) -> (id=3,v=NULL,wide=NULL)",
            "-keyed key(id=3)",
            "+whole (a=1,b=eq)",
            "+whole (a=1,b=eq)",
            "~whole old(a=1,b=eq) -> (a=1,b=x)",
            "-whole old(a=1,b=eq)",
            "+wholekeyed (a=1,b=k)",
            "+indexed (a=1,b=i,c=10)",
            "~indexed key(c=10) -> (a=1,b=i,c=11)",
            "-indexed key(c=11)",
            "+generated (id=1,n=21)",
            "+typed (id=1,m=glad,d=dom,a={1,NULL,3},n=1.50)",
            "+part_low (id=1,v=low)",
            "+part_high (id=150,v=high)",
            "-part_low key(id=1)",
            "+part_high (id=151,v=low)",
            "+odd \"name;-- (the \"id=7)",
            "0keyed,whole cascade=true restart=true",
            "0part_high cascade=false restart=false",
            "!app:inside",
        ]
    );
    assert_eq!(log.messages, ["app:outside"]);
    let schema = |name: &str| log.schemas.iter().rfind(|s| s.table.name == name).unwrap();
    let keys = |name: &str| schema(name).columns.iter().map(|c| c.primary_key).collect::<Vec<_>>();
    assert_eq!(keys("wholekeyed"), [true, false]);
    assert_eq!(schema("wholekeyed").identity, Identity::Full);
    assert_eq!(keys("whole"), [false, false]);
    assert_eq!(keys("generated"), [true, false]);
    assert_eq!(schema("indexed").identity, Identity::Index);
    let types: Vec<_> = schema("typed").columns.iter().map(|c| c.type_name.as_str()).collect();
    assert_eq!(
        types,
        ["pg_catalog.int4", "public.mood", "pg_catalog.varchar", "pg_catalog._int4", "pg_catalog.numeric"],
        "a domain travels as its base type, as pgoutput has it"
    );
    let source_xid: u64 = rig.db.value("SELECT (pg_current_xact_id()::text::int8 - 1)::text").await.parse().unwrap();
    assert!(log.transactions.iter().all(|t| t.xid <= source_xid && t.xid + 1000 > source_xid), "64-bit xids");
    capture.stop().await;
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_table_gets_a_new_version_before_its_first_use_and_capture_goes_on() {
    let server = postgres::shared().await;
    let rig = Rig::new(server, "CREATE TABLE t (id int PRIMARY KEY, v text)").await;
    let capture = rig.start();
    rig.db.execute("INSERT INTO t VALUES (1, 'a')").await;
    rig.db.execute("ALTER TABLE t ADD COLUMN n int DEFAULT 5").await;
    rig.db.execute("INSERT INTO t VALUES (2, 'b')").await;
    rig.db.execute("ALTER TABLE t DROP COLUMN v").await;
    rig.db.execute("BEGIN; INSERT INTO t VALUES (3); ALTER TABLE t RENAME n TO m; INSERT INTO t VALUES (4); COMMIT").await;
    let log = rig.log_after_marker().await;
    let expected = ["+t (id=1,v=a)", "+t (id=2,v=b,n=5)", "+t (id=3,n=5)", "+t (id=4,m=5)"];
    assert_eq!(log.changes(), expected);
    let versions = log.schemas.iter().map(|s| s.id.0).collect::<std::collections::BTreeSet<_>>();
    assert!(versions.len() >= 4, "{versions:?}");
    // A new connection repeats what is in force and makes nothing new.
    capture.stop().await;
    let capture = rig.start();
    rig.db.execute("INSERT INTO t VALUES (5)").await;
    let again = rig.log_after_marker().await;
    assert_eq!(again.changes().last(), Some(&"+t (id=5,m=5)"));
    let after = again.schemas.iter().map(|s| s.id.0).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(after, versions);
    capture.stop().await;
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_under_a_replication_origin_says_so() {
    let server = postgres::shared().await;
    let rig = Rig::new(server, "CREATE TABLE t (id int PRIMARY KEY)").await;
    let capture = rig.start();
    rig.db
        .execute(
            "SELECT pg_replication_origin_create('elsewhere'); SELECT pg_replication_origin_session_setup('elsewhere');
             INSERT INTO t VALUES (1); SELECT pg_replication_origin_session_reset(); SELECT pg_replication_origin_drop('elsewhere')",
        )
        .await;
    rig.db.execute("INSERT INTO t VALUES (2)").await;
    let log = rig.log_after_marker().await;
    let origins: Vec<_> = log.transactions.iter().map(|t| t.origin.as_deref()).collect();
    assert_eq!(log.changes(), ["+t (id=1)", "+t (id=2)"]);
    assert!(origins[1].is_none(), "{origins:?}");
    capture.stop().await;
    rig.end().await;
}
