//! Findings about a source.

use millstream::config::{PgConnect, PgHost, SourceConfig};
use millstream::preflight::check::{Finding, Place, Severity, check_source, check_source_with};
use sqlx::Executor;

use super::{carry_out, gone, plain_role, problem, server, source_config};
use crate::support::postgres::{self, PgDatabase};
use crate::support::template::major_version;
use crate::support::wait::{LONG, until};

async fn findings(source: &SourceConfig) -> Vec<Finding> {
    check_source(source).await.0.into_list()
}

/// Provokes nothing itself: looks, mends, looks again.
async fn mends(source: &SourceConfig, database: &PgDatabase<'_>, check: &str) -> Finding {
    let found = problem(&findings(source).await, check);
    assert!(!found.why.is_empty(), "{check} does not say why it matters");
    carry_out(found.remedy.as_ref().unwrap_or_else(|| panic!("{check} has no remedy")), database).await;
    gone(&findings(source).await, check);
    found
}

#[tokio::test]
async fn a_good_source_has_nothing_wrong() {
    let db = postgres::shared().await.new_database().await;
    db.execute("CREATE TABLE t (id int PRIMARY KEY)").await;
    let all = findings(&source_config(db.connect())).await;
    let wrong: Vec<_> = all.iter().filter(|f| f.severity == Severity::Error || f.severity == Severity::Unknown).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn wal_level_and_its_restart() {
    let server = server(&[("wal_level", "replica")]).await;
    let db = server.new_database().await;
    let found = mends(&source_config(db.connect()), &db, "wal_level").await;
    assert_eq!(found.severity, Severity::Error);
}

#[tokio::test]
async fn slots_senders_retention_and_fsync_of_a_cramped_server() {
    let server = server(&[("max_replication_slots", "1"), ("max_slot_wal_keep_size", "64MB")]).await;
    let db = server.new_database().await;
    db.value("SELECT pg_create_physical_replication_slot('somebody_else')::text").await;
    let source = source_config(db.connect());
    mends(&source, &db, "replication_slots").await;
    let found = mends(&source, &db, "retention").await;
    assert_eq!(found.what, "max_slot_wal_keep_size is 64 MiB, below retain_max_bytes (50 GiB)");
    mends(&source, &db, "fsync").await;
}

#[tokio::test]
async fn a_slot_that_is_gone_and_one_that_retains_more_than_it_may() {
    let server = server(&[]).await;
    let db = server.new_database().await;
    db.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION millstream_shop FOR TABLE t").await;
    let source = SourceConfig { retain_max_bytes: 20 << 20, ..source_config(db.connect()) };
    let found = problem(&findings(&source).await, "slot");
    assert!(found.severity == Severity::Error && found.remedy.is_some(), "{found:?}");
    db.value("SELECT pg_create_logical_replication_slot('millstream_shop_00000001', 'pgoutput')::text").await;
    gone(&findings(&source).await, "slot");
    gone(&findings(&source).await, "retention");
    for _ in 0..3 {
        db.value("SELECT pg_switch_wal() FROM (SELECT pg_logical_emit_message(false, 'x', 'x')) m").await;
    }
    let found = problem(&findings(&source).await, "retention");
    assert!(found.severity == Severity::Warning && found.what.contains("MiB"), "{found:?}");
    // What it may restart from moves with the records of running transactions that checkpoints write.
    until("the slot to let go", LONG, async || {
        db.execute("CHECKPOINT").await;
        db.value("SELECT end_lsn FROM pg_replication_slot_advance('millstream_shop_00000001', pg_current_wal_lsn())").await;
        findings(&source).await.iter().any(|f| f.check == "retention" && f.severity == Severity::Ok)
    })
    .await;
    gone(&findings(&source).await, "retention");
}

#[tokio::test]
async fn a_wrong_password_and_a_missing_hba_line() {
    let server = server(&[]).await;
    let db = server.new_database().await;
    let role = plain_role(&db, "stranger").await;
    server.set_hba("local all postgres trust");
    let source = source_config(PgConnect { host: PgHost::Tcp("127.0.0.1".into()), password: Some("right".into()), ..role });
    let found = problem(
        &crate::support::wait::eventually("the new rules", crate::support::wait::LONG, async || {
            let all = findings(&source).await;
            if all.iter().any(|f| f.check == "connect" && f.what.contains("pg_hba")) { Ok(all) } else { Err(all) }
        })
        .await,
        "connect",
    );
    carry_out(found.remedy.as_ref().expect("a remedy"), &server.database("postgres")).await;
    let refused = crate::support::wait::eventually("the line to be read", crate::support::wait::LONG, async || {
        let all = findings(&source).await;
        if all.iter().any(|f| f.what.contains("password")) { Ok(all) } else { Err(all) }
    })
    .await;
    let remedy = problem(&refused, "connect").remedy.expect("a remedy");
    // The printed statement leaves the password itself to the reader.
    let statement = remedy.steps[0].replace("…the one in password_file…", "right");
    server.database("postgres").execute(&statement).await;
    gone(&findings(&source).await, "connect");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unknown_and_not_wrong() {
    let db = postgres::shared().await.new_database().await;
    let nowhere = PgConnect { port: 1, host: PgHost::Tcp("127.0.0.1".into()), ..db.connect() };
    let found = problem(&findings(&source_config(nowhere)).await, "connect");
    assert_eq!(found.severity, Severity::Unknown);
}

#[tokio::test]
async fn rights_of_a_role_that_may_nothing() {
    let server = server(&[]).await;
    let db = server.new_database().await;
    db.execute("CREATE SCHEMA hidden; CREATE TABLE hidden.t (id int PRIMARY KEY)").await;
    let mut source = source_config(plain_role(&db, "poor").await);
    source.tables = vec!["hidden.*".into()];
    for check in ["replication_right", "publication_right", "schema_right", "select_right"] {
        assert_eq!(mends(&source, &db, check).await.severity, Severity::Error);
    }
    // Row security before ownership, because owners are exempt.
    db.execute("ALTER TABLE hidden.t ENABLE ROW LEVEL SECURITY").await;
    mends(&source, &db, "row_security").await;
    db.execute("GRANT CREATE ON SCHEMA hidden TO poor").await;
    mends(&source, &db, "owner").await;
    db.execute(
        "CREATE SCHEMA other; CREATE SEQUENCE other.numbers; ALTER TABLE hidden.t ALTER id SET DEFAULT nextval('other.numbers')",
    )
    .await;
    assert_eq!(mends(&source, &db, "sequence_right").await.object.as_deref(), Some("other.numbers"));
}

#[tokio::test]
async fn tables_whose_updates_would_fail_once_published() {
    let db = postgres::shared().await.new_database().await;
    let cases = [
        "CREATE TABLE bare (a int)",
        "CREATE TABLE deferred (id int PRIMARY KEY DEFERRABLE)",
        "CREATE TABLE nothing (id int PRIMARY KEY); ALTER TABLE nothing REPLICA IDENTITY NOTHING",
        "CREATE TABLE \"odd \"\"name;--\" (a int)",
    ];
    for case in cases {
        db.execute(case).await;
        let found = mends(&source_config(db.connect()), &db, "replica_identity").await;
        assert_eq!(found.severity, Severity::Error, "{case}");
    }
}

#[tokio::test]
async fn a_table_without_a_key_and_an_unlogged_one_are_named() {
    let db = postgres::shared().await.new_database().await;
    db.execute(
        "CREATE TABLE heap (a int); ALTER TABLE heap REPLICA IDENTITY FULL; CREATE UNLOGGED TABLE fast (id int PRIMARY KEY)",
    )
    .await;
    let source = source_config(db.connect());
    assert_eq!(problem(&findings(&source).await, "no_key").object.as_deref(), Some("public.heap"));
    assert_eq!(mends(&source, &db, "unlogged").await.object.as_deref(), Some("public.fast"));
}

#[tokio::test]
async fn a_pattern_that_matches_nothing() {
    let db = postgres::shared().await.new_database().await;
    db.execute("CREATE TABLE t (id int PRIMARY KEY)").await;
    let mut source = source_config(db.connect());
    source.tables = vec!["public.*".into(), "pubic.t".into(), "!public.scratch_*".into()];
    let found = problem(&findings(&source).await, "pattern");
    assert!(found.severity == Severity::Warning && found.what.contains("pubic.t"), "{found:?}");
    source.tables.remove(1);
    gone(&findings(&source).await, "pattern");
}

#[tokio::test]
async fn no_table_at_all() {
    let db = postgres::shared().await.new_database().await;
    let found = problem(&findings(&source_config(db.connect())).await, "tables");
    assert_eq!(found.severity, Severity::Error);
}

#[tokio::test]
async fn long_transactions_are_named_with_what_ends_them() {
    let server = server(&[]).await;
    let db = server.new_database().await;
    db.execute("CREATE TABLE t (id int PRIMARY KEY)").await;
    let mut writer = db.connection().await;
    writer.execute("BEGIN; INSERT INTO t VALUES (1)").await.expect("a transaction");
    let mut prepared = db.connection().await;
    prepared.execute("BEGIN; INSERT INTO t VALUES (2); PREPARE TRANSACTION 'left ''over'").await.expect("a prepared transaction");
    let source = source_config(db.connect());
    gone(&findings(&source).await, "long_transaction");
    let look = async || check_source_with(&source, std::time::Duration::ZERO).await.0.into_list();
    for _ in 0..2 {
        let found = problem(&look().await, "long_transaction");
        carry_out(found.remedy.as_ref().expect("a remedy"), &db).await;
    }
    crate::support::wait::until("both to be gone", crate::support::wait::LONG, async || {
        !look().await.iter().any(|f| f.check == "long_transaction" && f.severity != Severity::Ok)
    })
    .await;
}

#[tokio::test]
async fn wal_senders_that_are_all_busy() {
    let server = server(&[("max_wal_senders", "1")]).await;
    let db = server.new_database().await;
    let source = source_config(db.connect());
    let somebody = millstream::postgres::PgClient::connect(
        &db.connect(),
        millstream::postgres::Mode::Replication,
        millstream::postgres::sql::Side::Source,
    )
    .await
    .expect("the only walsender");
    // The remedy ends with a restart, which ends that one too: it is a larger number that is asked for afterwards.
    let found = mends(&source, &db, "wal_senders").await;
    assert_eq!(found.severity, Severity::Error);
    assert_eq!(server.database("postgres").value("SHOW max_wal_senders").await, "5");
    drop(somebody);
}

#[tokio::test]
async fn a_table_without_a_key_is_given_one_as_printed() {
    let db = postgres::shared().await.new_database().await;
    db.execute("CREATE TABLE heap (a int, b int); ALTER TABLE heap REPLICA IDENTITY FULL").await;
    let source = source_config(db.connect());
    let found = problem(&findings(&source).await, "no_key");
    // Which columns are the key is for a person to know.
    let statement = found.remedy.expect("a remedy").steps[0].replace("(…)", "(a, b)");
    db.execute(statement.split_once(": ").expect("a statement").1).await;
    gone(&findings(&source).await, "no_key");
}

#[tokio::test]
async fn a_database_that_is_not_there_a_standby_and_an_encoding_that_is_none() {
    let server = server(&[]).await;
    let db = server.new_database().await;
    db.execute("CREATE TABLE t (id int PRIMARY KEY)").await;
    let wrong = PgConnect { database: "no_such".into(), ..db.connect() };
    let found = problem(&findings(&source_config(wrong)).await, "connect");
    assert!(found.what.contains("no_such") && found.severity == Severity::Error, "{found:?}");
    // The remedy: another name in the url.
    gone(&findings(&source_config(db.connect())).await, "connect");

    server.database("postgres").execute("CREATE DATABASE ascii ENCODING 'SQL_ASCII' TEMPLATE template0 LOCALE 'C'").await;
    let ascii = PgConnect { database: "ascii".into(), ..db.connect() };
    assert_eq!(problem(&findings(&source_config(ascii)).await, "encoding").severity, Severity::Warning);
    gone(&findings(&source_config(db.connect())).await, "encoding");

    std::fs::write(server.data().join("standby.signal"), "").expect("standby.signal");
    server.stop().await;
    server.restart().await;
    let found = problem(&findings(&source_config(db.connect())).await, "primary");
    assert_eq!(found.severity, Severity::Error);
    // The remedy: a url that names a primary; here the server becomes one.
    server.database("postgres").value("SELECT pg_promote()::text").await;
    gone(&findings(&source_config(db.connect())).await, "primary");
}

#[tokio::test]
async fn connections_that_are_all_taken() {
    let server = server(&[("max_connections", "5"), ("superuser_reserved_connections", "0"), ("max_wal_senders", "2")]).await;
    let db = server.new_database().await;
    db.execute("CREATE TABLE t (id int PRIMARY KEY)").await;
    let source = source_config(db.connect());
    let mut taken = Vec::new();
    while let Ok(connection) = crate::support::sql::connect(&server.options(&db.name)).await {
        taken.push(connection);
    }
    let found = problem(&findings(&source).await, "connect");
    assert_eq!(found.severity, Severity::Error);
    let remedy = found.remedy.expect("a remedy");
    assert!(remedy.restart);
    // Whoever carries it out has a session already.
    crate::support::sql::query(taken.last_mut().expect("a session"), &remedy.steps[0]).await.expect("the statement");
    drop(taken);
    server.stop().await;
    server.restart().await;
    gone(&findings(&source).await, "connect");
}

/// PostgreSQL hides age and statement of other roles' transactions: `check` said that there was none.
#[tokio::test]
async fn a_role_that_cannot_see_whom_it_would_wait_for() {
    let db = postgres::shared().await.new_database().await;
    db.execute("CREATE TABLE t (id int PRIMARY KEY)").await;
    let source = source_config(plain_role(&db, &format!("blind_{:08x}", rand::random::<u32>())).await);
    let mut busy = db.connection().await;
    busy.execute("BEGIN; INSERT INTO t VALUES (1)").await.unwrap();
    let look = async || check_source_with(&source, std::time::Duration::ZERO).await.0.into_list();
    let found = problem(&look().await, "sees_transactions");
    assert!(found.what.contains("transactions of other roles are in progress"), "{found:?}");
    carry_out(&found.remedy.expect("a remedy"), &db).await;
    gone(&look().await, "sees_transactions");
    assert!(problem(&look().await, "long_transaction").what.contains("INSERT INTO t"));
}

#[tokio::test]
async fn a_standby_that_would_not_have_the_slot_or_the_changes() {
    let server = server(&[]).await;
    let db = server.new_database().await;
    db.execute("CREATE TABLE t (id int PRIMARY KEY)").await;
    let source = source_config(db.connect());
    db.execute("SELECT pg_create_physical_replication_slot('one')").await;
    gone(&findings(&source).await, "failover");
    let standby = server.cold_standby_with("primary_slot_name = 'one'\n").await;
    let streams = "SELECT count(*)::text FROM pg_replication_slots WHERE active";
    until("the standby to stream", LONG, async || db.value(streams).await == "1").await;
    let found = problem(&findings(&source).await, "failover");
    assert_eq!(found.severity, Severity::Warning);
    // A role that may not see what senders do knows a standby by its slot.
    let blind = source_config(plain_role(&db, "blind").await);
    assert_eq!(problem(&findings(&blind).await, "failover").severity, Severity::Warning);
    let remedy = found.remedy.expect("a remedy");
    let setting = async |wanted: &str| {
        let shown = "SELECT coalesce(current_setting('synchronized_standby_slots', true), '')";
        until("the setting", LONG, async || db.value(shown).await == wanted).await;
    };
    if major_version() >= 17 {
        carry_out(&remedy, &db).await;
        setting("one").await;
        gone(&findings(&source).await, "failover");
        standby.stop().await;
        until("the standby to be gone", LONG, async || db.value(streams).await == "0").await;
        let found = problem(&findings(&source).await, "failover");
        assert_eq!(found.severity, Severity::Error);
        carry_out(&found.remedy.expect("a remedy"), &db).await;
        setting("").await;
    } else {
        // The remedy is a newer PostgreSQL, or a cluster manager that carries the slot.
        assert_eq!(remedy.place, Place::Person);
        standby.stop().await;
        until("the standby to be gone", LONG, async || db.value(streams).await == "0").await;
    }
    gone(&findings(&source).await, "failover");
}

/// Without pg_read_all_stats every sender's state is hidden: the role's own, about to end, was taken for a standby.
#[tokio::test]
async fn a_sender_whose_state_is_hidden_is_no_standby() {
    let server = server(&[]).await;
    let db = server.new_database().await;
    db.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE ROLE blind LOGIN REPLICATION; GRANT SELECT ON t TO blind").await;
    let source = source_config(PgConnect { user: "blind".into(), ..db.connect() });
    let side = millstream::postgres::Side::Source;
    let own =
        millstream::postgres::PgClient::connect(&source.connect, millstream::postgres::Mode::Replication, side).await.unwrap();
    let senders = "SELECT count(*) FROM pg_stat_replication";
    assert_eq!(db.value(senders).await, "1");
    gone(&findings(&source).await, "failover");
    assert_eq!(db.value(senders).await, "1", "it was there all the while");
    drop(own);
}

#[tokio::test]
async fn a_pooler_that_stands_between() {
    let db = postgres::shared().await.new_database().await;
    db.execute("CREATE TABLE t (id int PRIMARY KEY)").await;
    let source = source_config(PgConnect { host: PgHost::Tcp("127.0.0.1".into()), ..db.connect() });
    gone(&findings(&source).await, "pooler");
    let pooler = Pooler::start(db.server.port()).await;
    let pooled = source_config(PgConnect { port: pooler.0, host: PgHost::Tcp("127.0.0.1".into()), ..db.connect() });
    assert_eq!(problem(&findings(&pooled).await, "pooler").severity, Severity::Error);
    // The remedy: the server's own address.
    gone(&findings(&source).await, "pooler");
}

/// Like a pooler, it answers with a backend key of its own.
struct Pooler(u16);

impl Pooler {
    async fn start(server: u16) -> Self {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let Ok(mut backend) = tokio::net::TcpStream::connect(("127.0.0.1", server)).await else { return };
                tokio::spawn(async move {
                    let (mut from_client, mut to_client) = client.split();
                    let (mut from_backend, mut to_backend) = backend.split();
                    let answers = async {
                        let mut piece = vec![0; 16 << 10];
                        loop {
                            let length = from_backend.read(&mut piece).await?;
                            if length == 0 {
                                return std::io::Result::Ok(());
                            }
                            // BackendKeyData: 'K', length 12, process id, key (PostgreSQL documentation, "Message Formats").
                            let key = piece[..length].windows(5).position(|window| window == b"K\0\0\0\x0c");
                            if let Some(at) = key.filter(|at| at + 9 <= length) {
                                piece[at + 5..at + 9].copy_from_slice(&77_i32.to_be_bytes());
                            }
                            to_client.write_all(&piece[..length]).await?;
                        }
                    };
                    drop(tokio::join!(tokio::io::copy(&mut from_client, &mut to_backend), answers));
                });
            }
        });
        Self(port)
    }
}

/// PostgreSQL says of a wrong password and of a missing role the same; only the password was blamed.
#[tokio::test]
async fn a_role_that_is_not_there_and_a_password_that_nobody_configured() {
    let server = server(&[]).await;
    let db = server.new_database().await;
    let admin = server.database("postgres");
    db.execute("CREATE ROLE no_login; CREATE ROLE keyed LOGIN REPLICATION PASSWORD 'right'").await;
    let trusted = |user: &str| source_config(PgConnect { user: user.into(), ..db.connect() });
    let keyed = |user: &str, password: Option<&str>| {
        source_config(PgConnect { user: user.into(), password: password.map(Into::into), ..db.connect_tcp() })
    };
    // Without a password the server says plainly that there is no such role, and means pg_hba.conf by the same SQLSTATE.
    let found = problem(&findings(&trusted("nobody_here")).await, "connect");
    assert!(found.severity == Severity::Error && found.what.contains("nobody_here"), "{found:?}");
    let [create, alter] = &*found.remedy.expect("a remedy").steps else { panic!("two ways") };
    assert!(
        create.starts_with(r#"CREATE ROLE "nobody_here" LOGIN REPLICATION"#)
            && alter.starts_with(r#"ALTER ROLE "nobody_here" LOGIN"#)
    );
    admin.execute(create).await;
    gone(&findings(&trusted("nobody_here")).await, "connect");
    admin.execute(&problem(&findings(&trusted("no_login")).await, "connect").remedy.expect("a remedy").steps[1]).await;
    gone(&findings(&trusted("no_login")).await, "connect");

    server.set_hba("local all postgres trust\nhost all all 127.0.0.1/32 scram-sha-256");
    let asked = crate::support::wait::eventually("the new rules", crate::support::wait::LONG, async || {
        let all = findings(&keyed("keyed", None)).await;
        if all.iter().any(|f| f.check == "connect" && f.severity == Severity::Error) { Ok(all) } else { Err(all) }
    })
    .await;
    let found = problem(&asked, "connect");
    assert_eq!(found.what, "the server asks for the password of role keyed, and none is configured");
    let ways = found.remedy.expect("a remedy").steps.join("\n");
    for way in ["source.shop.password_file = ", "MILLSTREAM__SOURCE__SHOP__PASSWORD", "systemd credential source.shop.password"] {
        assert!(ways.contains(way), "'{way}' is not in {ways}");
    }
    gone(&findings(&keyed("keyed", Some("right"))).await, "connect");
    let error =
        millstream::postgres::sql::connect(&keyed("keyed", None).connect, millstream::postgres::Side::Source, "test").await;
    let said = error.expect_err("no password").to_string();
    assert!(said.contains("none is configured: name a file with password_file"), "{said}");

    let found = problem(&findings(&keyed("missing", Some("right"))).await, "connect");
    assert!(found.what.contains("or there is no such role: PostgreSQL does not say which"), "{found:?}");
    let steps = found.remedy.expect("a remedy").steps;
    assert!(steps[0].starts_with(r#"ALTER ROLE "missing" PASSWORD"#), "{steps:?}");
    admin.execute(&steps[1].replace("…the one in password_file…", "right")).await;
    gone(&findings(&keyed("missing", Some("right"))).await, "connect");
}

/// Another program at the port was "malformed", to be reported.
#[tokio::test]
async fn what_is_not_postgresql_is_said_to_be_so() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut asked = [0; 8];
            drop(client.read_exact(&mut asked).await);
            drop(client.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await);
            // Until the other side has read it: a reset would take it away.
            drop(client.read(&mut asked).await);
        }
    });
    let db = postgres::shared().await.new_database().await;
    for tls in [millstream::config::TlsMode::Prefer, millstream::config::TlsMode::Disable] {
        let wrong = PgConnect { port, tls, ..db.connect_tcp() };
        let found = problem(&findings(&source_config(wrong.clone())).await, "connect");
        assert_eq!(found.severity, Severity::Error, "{tls:?}: {found:?}");
        assert!(found.what.contains(&format!("what answers at 127.0.0.1:{port} is not PostgreSQL")), "{tls:?}: {found:?}");
        assert_eq!(found.remedy.expect("a remedy").steps, ["source.shop.url: host and port of the PostgreSQL server"]);
        let side = millstream::postgres::Side::Source;
        let ours = millstream::postgres::PgClient::connect(&wrong, millstream::postgres::Mode::Replication, side).await.map(drop);
        let theirs = millstream::postgres::sql::connect(&wrong, side, "test").await.map(drop);
        for error in [ours, theirs] {
            let error = error.expect_err("not PostgreSQL");
            assert!(error.to_string().contains("is not PostgreSQL: put host and port"), "{tls:?}: {error}");
            assert_eq!(error.kind(), millstream::ErrorKind::Config, "{tls:?}");
        }
    }
    // The remedy: the right port.
    db.execute("CREATE TABLE t (id int PRIMARY KEY)").await;
    gone(&findings(&source_config(db.connect_tcp())).await, "connect");
}

/// Managed services have no superuser; each is known by the role that grants the right there.
#[tokio::test]
async fn the_right_to_replicate_on_managed_services() {
    let server = server(&[]).await;
    let db = server.new_database().await;
    db.execute("CREATE TABLE t (id int PRIMARY KEY)").await;
    let source = source_config(plain_role(&db, "poor").await);
    let statement = async || problem(&findings(&source).await, "replication_right").remedy.expect("a remedy").steps[0].clone();
    assert_eq!(statement().await, r#"ALTER ROLE "poor" REPLICATION"#);
    db.execute("CREATE ROLE azure_pg_admin").await;
    assert_eq!(statement().await, r#"ALTER ROLE "poor" REPLICATION  -- as the server's administrator"#);
    db.execute("DROP ROLE azure_pg_admin; CREATE ROLE cloudsqlsuperuser").await;
    assert_eq!(statement().await, r#"ALTER ROLE "poor" REPLICATION  -- as a member of cloudsqlsuperuser"#);
    mends(&source, &db, "replication_right").await;
    db.execute("ALTER ROLE poor NOREPLICATION; DROP ROLE cloudsqlsuperuser; CREATE ROLE rds_replication").await;
    let grant = statement().await;
    assert_eq!(grant, r#"GRANT rds_replication TO "poor""#);
    db.execute(&grant).await;
    // Here that is a role like any other, and the connection itself is refused: what lets it in is printed for that too.
    let refused = problem(&findings(&source).await, "replication_right");
    assert!(refused.what.starts_with("a replication connection is refused"), "{refused:?}");
    mends(&source, &db, "replication_right").await;
}
