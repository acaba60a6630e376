//! What a source must have: logical WAL, room for a slot and a sender, the right to replicate and to read.

use std::time::Duration;

use sqlx::{PgConnection, Row};

use super::connect::{connect, hba_line};
use super::finding::{Findings, Place, Remedy, Side};
use super::schema_changes;
use super::server::{self, ServerFacts};
use super::source_tables;
use super::standbys;
use crate::capture::{publication_name, slot_name_pattern};
use crate::config::{ByteSize, SourceConfig};
use crate::error::{Error, Result};
use crate::postgres::sql::{self, quote_ident as quote};
use crate::postgres::{Mode, PgClient, ServerError};
use crate::preflight::init::publication::altered;
use crate::preflight::init::{Blueprint, Resolved, resolve};
use crate::preflight::tables::{TablePatterns, exactly};

/// A transaction older than this is named: making a slot, and the first copy, wait for it.
const LONG_TRANSACTION: Duration = Duration::from_secs(60);

/// Checks a source.
pub async fn check(source: &SourceConfig) -> (Findings, Option<ServerFacts>) {
    check_with(source, LONG_TRANSACTION).await
}

/// Checks a source; transactions older than a limit are named.
pub async fn check_with(source: &SourceConfig, long_transaction: Duration) -> (Findings, Option<ServerFacts>) {
    let mut findings = Findings::new(Side::Source, &source.name).at(&source.connect);
    let Some(mut connection) = connect(&mut findings, &source.connect).await else {
        return (findings, None);
    };
    match look(&mut findings, source, long_transaction, &mut connection).await {
        Ok(facts) => (findings, Some(facts)),
        Err(error) => {
            findings.unknown("catalog", error.to_string(), "the rest could not be looked at", None);
            (findings, None)
        }
    }
}

fn sql_error(error: sqlx::Error) -> Error {
    sql::classify(error, sql::Side::Source)
}

async fn look(
    findings: &mut Findings,
    source: &SourceConfig,
    long_transaction: Duration,
    connection: &mut PgConnection,
) -> Result<ServerFacts> {
    let facts = server::facts(findings, connection).await.map_err(sql_error)?;
    server::pooler(findings, &source.connect).await?;
    encoding(findings, &facts);
    wal_level(findings, connection).await.map_err(sql_error)?;
    room(findings, source, connection).await.map_err(sql_error)?;
    publication(findings, source, connection).await?;
    replication_right(findings, source, connection, &facts).await.map_err(sql_error)?;
    retention(findings, source, connection).await.map_err(sql_error)?;
    create_right(findings, connection, &facts).await.map_err(sql_error)?;
    standbys::check(findings, connection, &facts).await.map_err(sql_error)?;
    long_transactions(findings, long_transaction, connection).await.map_err(sql_error)?;
    let patterns = TablePatterns::parse(&source.tables)?;
    schema_changes::check(findings, source, &patterns, connection).await?;
    let resolved = resolve(connection, &patterns).await?;
    source_tables::check(findings, source, &resolved, connection, &facts).await.map_err(sql_error)?;
    blueprint(findings, &source.name, connection, &resolved).await?;
    Ok(facts)
}

/// Reads the tables as `init` does, for the replicas' checks. What `init` would refuse to carry (a column of another table's row type) is a finding.
async fn blueprint(findings: &mut Findings, source: &str, connection: &mut PgConnection, resolved: &Resolved) -> Result<()> {
    let blueprint = Blueprint::read(connection, resolved).await?;
    for (table, reason) in &blueprint.refused {
        let remedy =
            Remedy::at(Place::Configuration, format!("source.{source}.tables: add {:?}", format!("!{}", exactly(table))));
        findings.error("types", reason, "its rows have no shape that a replica could be given", Some(remedy));
        findings.about(table.to_string());
    }
    findings.keep_blueprint(blueprint);
    Ok(())
}

fn encoding(findings: &mut Findings, facts: &ServerFacts) {
    if facts.encoding == "SQL_ASCII" {
        let why = "bytes that are not UTF-8 stop the stream when they come";
        findings.warn(
            "encoding",
            "the database's encoding is SQL_ASCII",
            why,
            Some(Remedy::at(Place::Person, "dump and restore it into a UTF8 database")),
        );
    } else {
        findings.ok("encoding", facts.encoding.clone());
    }
}

/// Which managed service it is, by settings that only it has.
async fn managed(connection: &mut PgConnection) -> sqlx::Result<Option<&'static str>> {
    let names: Vec<String> = sqlx::query_scalar(
        "SELECT name FROM pg_settings WHERE name IN ('rds.extensions', 'cloudsql.logical_decoding', 'azure.extensions')",
    )
    .fetch_all(connection)
    .await?;
    Ok(names.first().map(|name| match name.as_str() {
        "rds.extensions" => "rds",
        "cloudsql.logical_decoding" => "cloudsql",
        _ => "azure",
    }))
}

async fn wal_level(findings: &mut Findings, connection: &mut PgConnection) -> sqlx::Result<()> {
    let level: String = sqlx::query_scalar("SELECT current_setting('wal_level')").fetch_one(&mut *connection).await?;
    if level == "logical" {
        findings.ok("wal_level", "logical");
        return Ok(());
    }
    let remedy = match managed(connection).await? {
        Some("rds") => Remedy::at(Place::Person, "set rds.logical_replication = 1 in the parameter group").and_restart(),
        Some("cloudsql") => {
            Remedy::at(Place::Shell, "gcloud sql instances patch INSTANCE --database-flags=cloudsql.logical_decoding=on")
                .and_restart()
        }
        Some(_) => Remedy::at(
            Place::Shell,
            "az postgres flexible-server parameter set --name wal_level --value logical -g GROUP -s SERVER",
        )
        .and_restart(),
        None => Remedy::sql(Side::Source, "ALTER SYSTEM SET wal_level = 'logical'").and_restart(),
    };
    findings.error("wal_level", format!("wal_level is {level}"), "without logical WAL there is nothing to capture", Some(remedy));
    Ok(())
}

/// What a publication that has begun leaves out is in no log.
async fn publication(findings: &mut Findings, source: &SourceConfig, connection: &mut PgConnection) -> Result<()> {
    let name = publication_name(&source.name);
    let begun =
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_replication_slots WHERE slot_name ~ $1 AND database = current_database())";
    let begun = sqlx::query_scalar::<_, bool>(begun).bind(slot_name_pattern(&source.name)).fetch_one(&mut *connection).await;
    if !begun.map_err(sql_error)? {
        return Ok(());
    }
    let mut altered = altered(connection, &name).await?;
    // It may be written into the mark as well.
    altered.sort();
    altered.dedup();
    if altered.is_empty() {
        findings.ok("publication", format!("{name} leaves nothing out"));
        return Ok(());
    }
    findings.keep_altered();
    findings.error(
        "publication",
        format!("publication {name} was altered: {}", altered.join("; ")),
        "what it left out is in no log, and replicas miss it also when it is put back: every table is to be copied again",
        Some(copy_again(&source.name)),
    );
    Ok(())
}

/// Every table of a source.
pub(super) fn copy_again(source: &str) -> Remedy {
    Remedy::at(Place::Shell, format!("millstream teardown --source {source}  # with the daemon stopped"))
        .then(format!("millstream init --source {source}"))
}

async fn room(findings: &mut Findings, source: &SourceConfig, connection: &mut PgConnection) -> sqlx::Result<()> {
    let row = sqlx::query(
        "SELECT current_setting('max_replication_slots')::int8, (SELECT count(*) FROM pg_replication_slots), \
         current_setting('max_wal_senders')::int8, (SELECT count(*) FROM pg_stat_replication), \
         (SELECT count(*) FROM pg_replication_slots WHERE slot_name ~ $1), EXISTS (SELECT FROM pg_publication WHERE pubname = $2)",
    )
    .bind(slot_name_pattern(&source.name))
    .bind(publication_name(&source.name))
    .fetch_one(connection)
    .await?;
    let (slots, slots_used, senders, senders_used, ours): (i64, i64, i64, i64, i64) =
        (row.get(0), row.get(1), row.get(2), row.get(3), row.get(4));
    let begun: bool = row.get(5);
    if ours == 0 && slots_used >= slots {
        let remedy = Remedy::sql(Side::Source, format!("ALTER SYSTEM SET max_replication_slots = {}", slots + 4)).and_restart();
        findings.error(
            "replication_slots",
            format!("all {slots} replication slots are taken"),
            "a stream needs one of its own",
            Some(remedy),
        );
    } else {
        findings.ok("replication_slots", format!("{} of {slots} free", slots - slots_used));
    }
    if ours == 0 && senders_used >= senders {
        let remedy = Remedy::sql(Side::Source, format!("ALTER SYSTEM SET max_wal_senders = {}", senders + 4)).and_restart();
        findings.error(
            "wal_senders",
            format!("all {senders} WAL senders are busy"),
            "a stream needs one of its own",
            Some(remedy),
        );
    } else {
        findings.ok("wal_senders", format!("{} of {senders} free", senders - senders_used));
    }
    if ours == 0 && begun {
        let remedy = Remedy::at(
            Place::Person,
            "if `millstream init` was interrupted, run it again; otherwise the slot was dropped: see `millstream explain slot_missing`",
        );
        let what = format!("publication {} is there, and no slot of this source", publication_name(&source.name));
        findings.error("slot", what, "what was not read before the slot went is lost to the replicas", Some(remedy));
    }
    Ok(())
}

async fn replication_right(
    findings: &mut Findings,
    source: &SourceConfig,
    connection: &mut PgConnection,
    facts: &ServerFacts,
) -> sqlx::Result<()> {
    let row = sqlx::query(
        "SELECT rolreplication OR rolsuper, \
         EXISTS (SELECT FROM pg_roles r WHERE r.rolname = 'rds_replication' AND pg_has_role(current_user, r.oid, 'member')) \
         FROM pg_roles WHERE rolname = current_user",
    )
    .fetch_one(&mut *connection)
    .await?;
    let (attribute, rds_member): (bool, bool) = (row.get(0), row.get(1));
    if !attribute && !rds_member {
        let statement = replication_grant(connection, facts).await?;
        findings.error(
            "replication_right",
            format!("role {} may not replicate", facts.role),
            "the slot is read over a replication connection",
            Some(Remedy::sql(Side::Source, statement)),
        );
        return Ok(());
    }
    match PgClient::connect(&source.connect, Mode::Replication, sql::Side::Source).await {
        Ok(_) => findings.ok("replication_right", format!("role {} may replicate", facts.role)),
        Err(error) => {
            let remedy = replication_refused(source, facts, &error).await;
            let what = format!("a replication connection is refused: {error}");
            findings.error("replication_right", what, "the slot is read over one", Some(remedy));
        }
    }
    Ok(())
}

/// What lets a role replicate. A managed service has no superuser; each has a role of its own that may grant it, by which it is known here.
async fn replication_grant(connection: &mut PgConnection, facts: &ServerFacts) -> sqlx::Result<String> {
    let known: Vec<String> = sqlx::query_scalar(
        "SELECT rolname::text FROM pg_roles WHERE rolname IN ('rds_replication', 'cloudsqlsuperuser', 'azure_pg_admin')",
    )
    .fetch_all(connection)
    .await?;
    let role = quote(&facts.role);
    let has = |name: &str| known.iter().any(|known| known == name);
    Ok(if has("rds_replication") {
        format!("GRANT rds_replication TO {role}")
    } else if has("cloudsqlsuperuser") {
        format!("ALTER ROLE {role} REPLICATION  -- as a member of cloudsqlsuperuser")
    } else if has("azure_pg_admin") {
        format!("ALTER ROLE {role} REPLICATION  -- as the server's administrator")
    } else {
        format!("ALTER ROLE {role} REPLICATION")
    })
}

/// What lets a replication connection in that the server refused although the role seemed to have the right.
async fn replication_refused(source: &SourceConfig, facts: &ServerFacts, error: &Error) -> Remedy {
    match ServerError::find(error).map(|server| server.sqlstate.as_str()) {
        // insufficient_privilege: a member of rds_replication where that is a role like any other.
        Some("42501") => Remedy::sql(Side::Source, format!("ALTER ROLE {} REPLICATION", quote(&facts.role))),
        Some("28000") => Remedy::at(Place::SourceHba, hba_line(&source.connect).await),
        _ => Remedy::at(
            Place::Person,
            "name the server itself in url (no pooler), and see that pg_hba.conf has no line that refuses this role",
        ),
    }
}

async fn retention(findings: &mut Findings, source: &SourceConfig, connection: &mut PgConnection) -> sqlx::Result<()> {
    let megabytes: i64 = sqlx::query_scalar("SELECT setting::int8 FROM pg_settings WHERE name = 'max_slot_wal_keep_size'")
        .fetch_one(&mut *connection)
        .await?;
    let budget = i64::try_from(source.retain_max_bytes >> 20).unwrap_or(i64::MAX);
    if megabytes >= 0 && megabytes < budget {
        let remedy =
            Remedy::sql(Side::Source, format!("ALTER SYSTEM SET max_slot_wal_keep_size = '{budget}MB'")).then(server::RELOAD);
        // PostgreSQL's MB is 1024 kB, and its kB 1024 bytes (PostgreSQL documentation, "Parameter Names and Values").
        let kept = ByteSize(megabytes.unsigned_abs() << 20);
        let what = format!("max_slot_wal_keep_size is {kept}, below retain_max_bytes ({})", ByteSize(source.retain_max_bytes));
        findings.warn(
            "retention",
            what,
            "the server invalidates the slot before Millstream's own budget ends; then everything is copied again",
            Some(remedy),
        );
        return Ok(());
    }
    let retained: Option<i64> = sqlx::query_scalar(RETAINED).bind(slot_name_pattern(&source.name)).fetch_one(connection).await?;
    let retained = retained.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0);
    let (held, limit) = (ByteSize(retained), ByteSize(source.retain_max_bytes));
    if retained > source.retain_max_bytes {
        let remedy = Remedy::at(Place::Person, "start the daemon, or mend what stops it: `millstream status` names it");
        let what = format!("the slot retains {held}, more than retain_max_bytes ({limit})");
        findings.warn(
            "retention",
            what,
            "the source's disk fills until the stream is read again, or the slot is dropped",
            Some(remedy),
        );
    } else {
        findings.ok("retention", format!("the slot retains {held} and may retain {limit} (retain_max_bytes)"));
    }
    Ok(())
}

const RETAINED: &str = "SELECT (max(pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() ELSE pg_current_wal_lsn() END, \
     restart_lsn)))::int8 FROM pg_replication_slots WHERE slot_name ~ $1";

async fn create_right(findings: &mut Findings, connection: &mut PgConnection, facts: &ServerFacts) -> sqlx::Result<()> {
    let may: bool =
        sqlx::query_scalar("SELECT has_database_privilege(current_database(), 'CREATE')").fetch_one(connection).await?;
    if may {
        findings.ok("publication_right", "may create a publication");
    } else {
        let statement = format!("GRANT CREATE ON DATABASE {} TO {}", quote(&facts.database), quote(&facts.role));
        findings.error(
            "publication_right",
            format!("role {} may not create a publication", facts.role),
            "init makes one",
            Some(Remedy::sql(Side::Source, statement)),
        );
    }
    Ok(())
}

async fn long_transactions(findings: &mut Findings, limit: Duration, connection: &mut PgConnection) -> sqlx::Result<()> {
    let rows = sqlx::query(
        "SELECT pid, extract(epoch FROM clock_timestamp() - xact_start)::int8, coalesce(usename::text, ''), left(regexp_replace(query, '\\s+', ' ', 'g'), 60) \
         FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() AND xact_start < clock_timestamp() - make_interval(secs => $1) ORDER BY xact_start",
    )
    .bind(limit.as_secs_f64())
    .fetch_all(&mut *connection)
    .await?;
    let hidden: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND xact_start IS NULL AND pid <> pg_backend_pid()",
    )
    .fetch_one(&mut *connection)
    .await?;
    let sees_all: bool =
        sqlx::query_scalar("SELECT pg_has_role('pg_read_all_stats', 'USAGE')").fetch_one(&mut *connection).await?;
    if !sees_all {
        let role: String = sqlx::query_scalar("SELECT current_user::text").fetch_one(&mut *connection).await?;
        let what = match hidden {
            0 => format!("role {role} may not see other roles' transactions"),
            n => format!("{n} transactions of other roles are in progress, and role {role} may not see their age and statement"),
        };
        let why = "making the slot and the first copy wait for every transaction in progress, and nobody could be named; nor is a standby without a \
             slot seen";
        let grant = format!("GRANT pg_read_all_stats TO {}", quote(&role));
        findings.warn("sees_transactions", what, why, Some(Remedy::sql(Side::Source, grant)));
    }
    for row in &rows {
        let (pid, age, user, query): (i32, i64, String, String) = (row.get(0), row.get(1), row.get(2), row.get(3));
        let remedy = Remedy::sql(Side::Source, format!("SELECT pg_terminate_backend({pid})"));
        findings.warn(
            "long_transaction",
            format!("pid {pid} of {user} is {age} s into a transaction: {query}"),
            "making the slot and the first copy wait until it ends",
            Some(remedy),
        );
    }
    let prepared: Vec<(String, i64)> =
        sqlx::query_as("SELECT gid::text, extract(epoch FROM clock_timestamp() - prepared)::int8 FROM pg_prepared_xacts WHERE prepared < clock_timestamp() - make_interval(secs => $1)")
            .bind(limit.as_secs_f64())
            .fetch_all(connection)
            .await?;
    for (gid, age) in &prepared {
        let remedy = Remedy::sql(Side::Source, format!("ROLLBACK PREPARED '{}'", gid.replace('\'', "''")));
        findings.warn(
            "long_transaction",
            format!("prepared transaction {gid} is {age} s old"),
            "making the slot and the first copy wait until it ends; COMMIT PREPARED if it is meant to stay",
            Some(remedy),
        );
    }
    if rows.is_empty() && prepared.is_empty() {
        findings.ok("long_transaction", format!("none over {} s", limit.as_secs()));
    }
    Ok(())
}
