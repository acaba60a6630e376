//! Threats 4, 5 and 13: with the rights that the documentation says and no more, with passwords, at the most talkative log level; and
//! no password and no row's value in anything that Millstream writes.

use super::Lane;
use crate::support::daemon::{Site, pair_configuration};
use crate::support::postgres::{PgServer, ROLE};
use crate::support::workload::{Plan, Workload};
use crate::support::workload_ops::SCHEMA;

const SOURCE_PASSWORD: &str = "canary-of-the-source-7f3";
const REPLICA_PASSWORD: &str = "canary-of-the-replica-91c";
const VALUE: &str = "canary-in-a-row-55a";
const HBA: &str =
    "local all postgres trust\nhost all all 127.0.0.1/32 scram-sha-256\nhost replication all 127.0.0.1/32 scram-sha-256\n";

#[tokio::test(flavor = "multi_thread")]
async fn the_first_pair_works_as_documented_and_tells_no_secret() {
    let (source_server, replica_server) =
        tokio::join!(PgServer::builder().hba(HBA).start(), PgServer::builder().replica().hba(HBA).start());
    for server in [&source_server, &replica_server] {
        server.database("postgres").execute(&format!("DROP OWNED BY {ROLE}; DROP ROLE {ROLE}")).await;
    }
    let [on_source, on_replica] = documented();
    let source = prepare_source(&source_server, &on_source).await;
    let (as_superuser, create) = on_replica;
    let postgres = replica_server.database("postgres");
    let newer = postgres.value("SELECT (current_setting('server_version_num')::int >= 150000)::text").await == "true";
    // What the text says is for 15 and later.
    let as_superuser: String =
        as_superuser.lines().filter(|line| newer || !line.contains("ON PARAMETER")).map(|line| format!("{line}\n")).collect();
    postgres.execute(&as_superuser).await;
    postgres.execute(&create).await;
    let replica = replica_server.database("shop");

    let url = |port: u16| format!("postgres://millstream@127.0.0.1:{port}/shop?sslmode=disable");
    let configuration = pair_configuration(&url(source_server.port()), &url(replica_server.port()), "embedded:{folder}/queue");
    let configuration = configuration.replacen("tables =", "password_file = \"{folder}/shop.pw\"\ntables =", 1).replacen(
        "source = \"shop\"",
        "source = \"shop\"\npassword_file = \"{folder}/reports.pw\"",
        1,
    );
    let site = Site::new(&configuration).with_env("RUST_LOG", "trace");
    crate::support::files::write_private(&site.folder().join("shop.pw"), &format!("{SOURCE_PASSWORD}\n"));
    crate::support::files::write_private(&site.folder().join("reports.pw"), REPLICA_PASSWORD);

    let mut said = String::new();
    for command in [&["check"][..], &["init"], &["init"], &["check"]] {
        let outcome = site.run(command).await;
        assert_eq!(outcome.code, Some(0), "{command:?}\n{}\n{}", outcome.stdout, outcome.stderr);
        said += &(outcome.stdout + &outcome.stderr);
    }
    let lane = Lane { source, replica, site };
    let daemon = lane.start().await;
    let workload = Workload::start(&source_server.options("shop"), &Plan::default());
    lane.source.execute(&format!("INSERT INTO item (id, name) VALUES (100000, '{VALUE}')")).await;
    lane.source.execute(&format!("UPDATE item SET name = '{VALUE} again', data = '\"{VALUE}\"' WHERE id = 100000")).await;
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    workload.stop().await;
    lane.equal().await;

    // A conflict and a constraint are where values would slip into messages.
    lane.replica
        .execute(
            "DELETE FROM item WHERE id = 100000; ALTER TABLE seat ADD CONSTRAINT tight CHECK (note <> 'canary-in-a-row-55a')",
        )
        .await;
    lane.source.execute(&format!("UPDATE item SET name = '{VALUE}' WHERE id = 100000")).await;
    lane.halted(&["replica_conflict"]).await;
    said += &everything(&lane.site, daemon.pid()).await;
    lane.replica.execute(&format!("INSERT INTO item (id, name, data) VALUES (100000, '{VALUE} again', '\"{VALUE}\"')")).await;
    lane.source.execute(&format!("UPDATE seat SET note = '{VALUE}' WHERE id = 1")).await;
    lane.halted(&["replica_constraint"]).await;
    said += &everything(&lane.site, daemon.pid()).await;
    daemon.kill();

    // Wrong passwords.
    crate::support::files::write_private(&lane.site.folder().join("shop.pw"), "canary-of-the-source-7f3-but-wrong");
    let daemon = lane.site.start();
    lane.halted(&["source_denied"]).await;
    said += &everything(&lane.site, daemon.pid()).await;
    let outcome = lane.site.run(&["check"]).await;
    assert_eq!(outcome.code, Some(1), "{}{}", outcome.stdout, outcome.stderr);
    said += &(outcome.stdout + &outcome.stderr);
    said += &lane.site.all_logs();

    assert!(said.len() > 5_000, "there was something to look through: {} bytes", said.len());
    for secret in [SOURCE_PASSWORD, REPLICA_PASSWORD, VALUE] {
        assert!(!said.contains(secret), "{secret} is told:\n{}", super::around(&said, secret));
    }
}

/// What others can see of a running daemon.
async fn everything(site: &Site, pid: i32) -> String {
    let mut said = String::new();
    for path in ["/status", "/metrics", "/readyz", "/healthz"] {
        said += &site.get(path).await.map(|(_, body)| body).unwrap_or_default();
    }
    let status = site.run(&["status"]).await;
    said += &(status.stdout + &status.stderr);
    for file in ["cmdline", "environ"] {
        said += &String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/{file}")).expect("/proc"));
    }
    said
}

async fn prepare_source<'s>(
    server: &'s PgServer,
    (as_superuser, grants): &(String, String),
) -> crate::support::postgres::PgDatabase<'s> {
    let postgres = server.database("postgres");
    postgres.execute("CREATE ROLE shop_owner").await;
    postgres.execute("CREATE DATABASE shop OWNER shop_owner").await;
    postgres.execute(as_superuser).await;
    postgres.execute(grants).await;
    let source = server.database("shop");
    source.execute(&format!("ALTER SCHEMA public OWNER TO shop_owner; SET ROLE shop_owner; {SCHEMA}; RESET ROLE")).await;
    source
}

/// The SQL blocks of `docs/first-pair.md`, for source and replica: roles, and what comes after them.
fn documented() -> [(String, String); 2] {
    let text = include_str!("../../../docs/first-pair.md");
    let blocks: Vec<String> =
        text.split("```sql\n").skip(1).filter_map(|rest| rest.split("```").next()).map(str::to_owned).collect();
    let [source, replica] = <[String; 2]>::try_from(blocks).expect("two SQL blocks in docs/first-pair.md");
    let source = source.replace("ALTER SYSTEM SET wal_level = 'logical';\n", "").replace("choose one", SOURCE_PASSWORD);
    let replica = replica.replace("choose another", REPLICA_PASSWORD);
    let cut = |text: &str, at: &str| {
        let (before, after) = text.split_once(at).unwrap_or_else(|| panic!("no '{at}' in docs/first-pair.md"));
        (before.to_owned(), format!("{at}{after}"))
    };
    // CREATE DATABASE must stand alone.
    let (role, rest) = cut(&replica, "CREATE DATABASE");
    let (create, grants) = rest.split_once(";\n").expect("a statement");
    [cut(&source, "GRANT CREATE"), (format!("{role}{grants}"), create.to_owned())]
}
