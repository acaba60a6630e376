//! `check`: every finding is provoked on a real server, its remedy is carried out as printed, and the finding vanishes.

mod live_tables;
mod queue;
mod registry;
mod replica;
mod replica_fit;
mod source;

use std::time::Duration;

use millstream::config::{OnRetainLimit, PgConnect, ReplicaConfig, SchemaChanges, SourceConfig};
use millstream::preflight::check::{Finding, Place, Remedy, Severity};

use crate::support::postgres::{PgDatabase, PgServer};

/// A source named `shop` reached in a given way.
fn source_config(connect: PgConnect) -> SourceConfig {
    SourceConfig {
        name: "shop".into(),
        connect,
        tables: vec!["public.*".into()],
        schema_changes: SchemaChanges::default(),
        retain_max_bytes: 50 << 30,
        retain_max_age: Duration::from_secs(7 * 86_400),
        on_retain_limit: OnRetainLimit::Alarm,
        memory_bytes: 64 << 20,
        spill_max_bytes: 1 << 30,
        spill_dir: std::env::temp_dir(),
        heartbeat_interval: Duration::from_secs(1),
        copy_workers: 1,
        copy_max_bytes_per_second: None,
        copy_chunk_rows: 100_000,
    }
}

/// A replica named `reports` reached in a given way.
fn replica_config(connect: PgConnect) -> ReplicaConfig {
    ReplicaConfig {
        name: "reports".into(),
        source: "shop".into(),
        connect,
        merge_max_bytes: 8 << 20,
        merge_max_changes: 10_000,
        sequences_interval: std::time::Duration::ZERO,
    }
}

/// The one finding of a check that is not fine; panics with everything that was found when it is not there.
fn problem(findings: &[Finding], check: &str) -> Finding {
    let found = findings.iter().find(|f| f.check == check && f.severity != Severity::Ok);
    found.unwrap_or_else(|| panic!("no finding {check} in {findings:#?}")).clone()
}

/// Panics when a check still has something to say.
fn gone(findings: &[Finding], check: &str) {
    let left: Vec<_> = findings.iter().filter(|f| f.check == check && f.severity != Severity::Ok).collect();
    assert!(left.is_empty(), "still there after its remedy: {left:#?}");
    assert!(!findings.is_empty(), "nothing was looked at");
}

/// Carries a remedy out as printed: SQL as superuser in the finding's database, `pg_hba.conf` lines in front of all others.
async fn carry_out(remedy: &Remedy, database: &PgDatabase<'_>) {
    for step in &remedy.steps {
        match remedy.place {
            Place::SourceSql | Place::ReplicaSql => {
                database.execute(step).await;
            }
            Place::SourceHba | Place::ReplicaHba => database.server.prepend_hba(step),
            other => panic!("a remedy at {other:?} is not for a test to carry out: {step}"),
        }
    }
    if remedy.restart {
        database.server.stop().await;
        database.server.restart().await;
    }
}

/// A role that may log in and nothing else, and how it connects.
async fn plain_role(database: &PgDatabase<'_>, name: &str) -> PgConnect {
    database.execute(&format!("CREATE ROLE {name} LOGIN")).await;
    PgConnect { user: name.into(), ..database.connect() }
}

/// A server on its own, since these tests restart it or change what all databases share.
async fn server(settings: &[(&str, &str)]) -> PgServer {
    settings.iter().fold(PgServer::builder(), |builder, (name, value)| builder.set(name, value)).start().await
}
