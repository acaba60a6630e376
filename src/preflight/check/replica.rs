//! What a replica must have: the rights to write, tables that take every row the source has, and nothing that fires on its own.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sqlx::PgConnection;

use super::connect::connect;
use super::finding::{Findings, Place, Remedy, Side};
use super::server::{self, ServerFacts};
use super::{replica_fit, replica_tables, trust};
use crate::config::{ReplicaConfig, SourceConfig};
use crate::error::{Error, Result};
use crate::event::TableName;
use crate::postgres::sql::{self, quote_ident as quote};
use crate::preflight::init::{Blueprint, Extension};
use crate::preflight::tables::{TablePatterns, exactly};
use crate::replica::postgres::ledger;

/// A replica that is so little behind, beside what passes between two heartbeats, has every schema change that its source's catalog shows.
const UP_TO_DATE: Duration = Duration::from_secs(10);

/// What the source's checks leave for a replica to answer.
pub struct SourceSide<'a> {
    /// The source's facts, when it could be reached.
    pub facts: Option<&'a ServerFacts>,
    /// Its table patterns.
    pub tables: &'a [String],
    /// What a replica has to hold, when the source's catalog could be read.
    pub blueprint: Option<&'a Blueprint>,
    /// Its schema changes are carried.
    pub carries: bool,
    /// Tables of its publication by their numbers there, when there is one.
    pub published: Option<&'a BTreeMap<u32, TableName>>,
    /// On a source at rest the time that is told comes so seldom.
    pub heartbeat: Duration,
}

impl<'a> SourceSide<'a> {
    /// From what was found at a source.
    #[must_use]
    pub fn of(source: &'a SourceConfig, facts: Option<&'a ServerFacts>, found: &'a Findings) -> Self {
        // What became of single tables of an altered one no longer matters: all are copied again.
        let published = found.published().filter(|_| !found.has_error("publication"));
        let (blueprint, carries) = (found.blueprint(), found.carries());
        Self { facts, tables: &source.tables, blueprint, carries, published, heartbeat: source.heartbeat_interval }
    }
}

/// Checks a replica.
pub async fn check(replica: &ReplicaConfig, source: &SourceSide<'_>) -> Findings {
    let mut findings = Findings::new(Side::Replica, &replica.name);
    let Some(mut connection) = connect(&mut findings, &replica.connect).await else {
        return findings;
    };
    if let Err(error) = look(&mut findings, replica, source, &mut connection).await {
        findings.unknown("catalog", error.to_string(), "the rest could not be looked at", None);
    }
    findings
}

fn sql_error(error: sqlx::Error) -> Error {
    sql::classify(error, sql::Side::Replica)
}

async fn look(
    findings: &mut Findings,
    replica: &ReplicaConfig,
    source: &SourceSide<'_>,
    connection: &mut PgConnection,
) -> Result<()> {
    let facts = server::facts(findings, connection).await.map_err(sql_error)?;
    server::pooler(findings, &replica.connect).await?;
    same_database(findings, source, &facts);
    encoding(findings, source, &facts);
    let initialized = ledger::exists(connection).await?;
    ledger_right(findings, connection, &facts, initialized).await.map_err(sql_error)?;
    let replica_role = replication_role(findings, connection, &facts).await.map_err(sql_error)?;
    let behind = if initialized { behind(connection, &replica.name, source.heartbeat).await.map_err(sql_error)? } else { None };
    let picks = Picks::of(source)?;
    if let (true, Some(published)) = (initialized, source.published) {
        captured(findings, connection, &replica.name, published, &picks, behind).await?;
    }
    extensions(findings, connection, source).await.map_err(sql_error)?;
    let context = replica_tables::Context { facts: &facts, replica_role, initialized };
    replica_tables::check(findings, connection, &picks, &context).await.map_err(sql_error)?;
    trust::check(findings, connection, &picks, source.blueprint, &facts, initialized).await.map_err(sql_error)?;
    match source.blueprint {
        Some(blueprint) => {
            let state = replica_fit::State { initialized, carries: source.carries, behind };
            replica_fit::check(findings, connection, blueprint, &facts, &state).await
        }
        None => Ok(()),
    }
}

/// A live table that the source publishes no more, because it was dropped and made anew there, stays as it is for ever.
async fn captured(
    findings: &mut Findings,
    connection: &mut PgConnection,
    name: &str,
    published: &BTreeMap<u32, TableName>,
    picks: &Picks<'_>,
    behind: Option<Duration>,
) -> Result<()> {
    // A ledger that the daemon has not upgraded yet has no such column.
    let sql = "SELECT table_schema, table_name, to_jsonb(t) ->> 'source_oid' FROM millstream.copied_table t \
         WHERE replica = $1 AND state = 'live' AND live_after_lsn IS NULL ORDER BY 1, 2";
    let live: Vec<(String, String, Option<String>)> =
        sqlx::query_as(sql).bind(name).fetch_all(connection).await.map_err(sql_error)?;
    let names: BTreeSet<&TableName> = published.values().collect();
    for (schema, name, oid) in live {
        let table = TableName::new(schema, name);
        // The ledger's name of a table follows a renaming at its next change: the number tells.
        let is_captured = match oid.and_then(|oid| oid.parse().ok()) {
            Some(oid) => published.contains_key(&oid),
            None => names.contains(&table),
        };
        if !is_captured {
            not_captured(findings, &table, picks.patterns.matches(&table) || picks.matches(&table), behind);
        }
    }
    Ok(())
}

fn not_captured(findings: &mut Findings, table: &TableName, wanted: bool, behind: Option<Duration>) {
    let what = "it is live here, and the source's publication has it no more";
    let why = "its changes are in no log: what is here grows old";
    match behind {
        Some(behind) => {
            let why =
                format!("{why}; the replica is {} s behind, and what became of it may still come with the log", behind.as_secs());
            let step = "mend what holds the replica up (`millstream status`), and check again once it has caught up";
            findings.warn("captured", what, why, Some(Remedy::at(Place::Person, step)));
        }
        None if !wanted => {
            let what = "it is live here, and the source's tables have it no more";
            findings.warn("captured", what, why, Some(Remedy::at(Place::Shell, "millstream init")));
        }
        None => {
            let first = format!(
                "add {:?} to the source's tables, then `millstream init` until it has left, then empty or drop it here",
                format!("!{}", exactly(table))
            );
            let remedy = Remedy::at(Place::Person, first)
                .then("take that out again, and `millstream init` copies it, where the source still has it");
            findings.error("captured", what, why, Some(remedy));
        }
    }
    findings.about(table.to_string());
}

/// How far a replica is behind, by the source's clock against its own, where that is more than a breath.
async fn behind(connection: &mut PgConnection, name: &str, heartbeat: Duration) -> sqlx::Result<Option<Duration>> {
    let sql = "SELECT (extract(epoch FROM pg_catalog.clock_timestamp()) * 1000000)::int8 - source_time_us FROM millstream.replica WHERE name = $1";
    let late = sqlx::query_scalar::<_, Option<i64>>(sql).bind(name).fetch_optional(connection).await?.flatten();
    Ok(late.and_then(|us| u64::try_from(us).ok()).map(Duration::from_micros).filter(|late| *late > UP_TO_DATE + heartbeat))
}

/// The tables of a replica that its source's are applied to, as far as the source could be asked.
pub(super) struct Picks<'a> {
    patterns: TablePatterns,
    /// A leaf follows the partitioned table above it, and a table of the replica's own may have a name that the patterns match: the source's catalog tells.
    known: Option<BTreeSet<&'a TableName>>,
}

impl<'a> Picks<'a> {
    fn of(source: &SourceSide<'a>) -> Result<Self> {
        let all =
            |blueprint: &'a Blueprint| blueprint.tables.iter().chain(&blueprint.parents).map(|table| &table.table).collect();
        let known = source.blueprint.map(all);
        Ok(Self { patterns: TablePatterns::parse(source.tables)?, known })
    }

    pub(super) fn matches(&self, table: &TableName) -> bool {
        self.known.as_ref().map_or_else(|| self.patterns.matches(table), |known| known.contains(table))
    }
}

fn same_database(findings: &mut Findings, source: &SourceSide<'_>, facts: &ServerFacts) {
    let same = source.facts.is_some_and(|s| {
        s.system_identifier.is_some() && s.system_identifier == facts.system_identifier && s.database == facts.database
    });
    if same {
        let remedy = Remedy::at(Place::Configuration, "url: name another database");
        findings.error(
            "same_database",
            "source and replica are the same database",
            "every change would be applied to itself",
            Some(remedy),
        );
    }
}

fn encoding(findings: &mut Findings, source: &SourceSide<'_>, facts: &ServerFacts) {
    match source.facts.map(|s| s.encoding.as_str()) {
        Some(theirs) if theirs != facts.encoding && facts.encoding != "UTF8" => {
            let why = "a character that the replica's encoding lacks halts the replica";
            let remedy = Remedy::at(
                Place::Person,
                format!("CREATE DATABASE {} ENCODING 'UTF8' TEMPLATE template0", quote(&facts.database)),
            );
            findings.warn("encoding", format!("{} here, {theirs} on the source", facts.encoding), why, Some(remedy));
        }
        _ => findings.ok("encoding", facts.encoding.clone()),
    }
}

async fn ledger_right(
    findings: &mut Findings,
    connection: &mut PgConnection,
    facts: &ServerFacts,
    initialized: bool,
) -> sqlx::Result<()> {
    let may: bool =
        sqlx::query_scalar("SELECT has_database_privilege(current_database(), 'CREATE')").fetch_one(connection).await?;
    if may || initialized {
        findings.ok("ledger_right", if initialized { "the ledger is there" } else { "may make the ledger's schema" });
    } else {
        let statement = format!("GRANT CREATE ON DATABASE {} TO {}", quote(&facts.database), quote(&facts.role));
        findings.error(
            "ledger_right",
            format!("role {} may not create schema millstream", facts.role),
            "the ledger lives in it",
            Some(Remedy::sql(Side::Replica, statement)),
        );
    }
    Ok(())
}

/// True when applying may switch the replica's own triggers and foreign keys off.
async fn replication_role(findings: &mut Findings, connection: &mut PgConnection, facts: &ServerFacts) -> sqlx::Result<bool> {
    let attempt = sqlx::query("SET session_replication_role = replica").execute(&mut *connection).await;
    if attempt.is_ok() {
        sqlx::query("RESET session_replication_role").execute(connection).await?;
        findings.ok("session_replication_role", "may be set to replica");
        return Ok(true);
    }
    let remedy = if facts.major >= 15 {
        Remedy::sql(Side::Replica, format!("GRANT SET ON PARAMETER session_replication_role TO {}", quote(&facts.role)))
    } else {
        Remedy::sql(Side::Replica, format!("ALTER ROLE {} SUPERUSER", quote(&facts.role)))
    };
    let why = "triggers and foreign keys of the replica fire; changes are applied one after the other in the source's order, which is slower";
    findings.warn("session_replication_role", format!("role {} may not set it", facts.role), why, Some(remedy));
    Ok(false)
}

/// Extensions that are here or may be made by this role, and those that the server has the files of (PostgreSQL documentation, "CREATE EXTENSION":
/// a trusted one takes only CREATE on the database).
const EXTENSIONS: &str = "SELECT a.name::text, a.installed_version IS NOT NULL OR (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) \
       OR has_database_privilege(current_database(), 'CREATE') AND EXISTS (SELECT FROM pg_available_extension_versions v \
          WHERE v.name = a.name AND v.version = a.default_version AND (v.trusted OR NOT v.superuser)) \
     FROM pg_available_extensions a WHERE a.name = ANY($1)";

async fn extensions(findings: &mut Findings, connection: &mut PgConnection, source: &SourceSide<'_>) -> sqlx::Result<()> {
    let needed: Vec<&Extension> = source.blueprint.iter().flat_map(|blueprint| &blueprint.extensions).collect();
    let names: Vec<&str> = needed.iter().map(|extension| extension.name.as_str()).collect();
    let known: Vec<(String, bool)> = sqlx::query_as(EXTENSIONS).bind(names).fetch_all(connection).await?;
    for extension in needed {
        let make = extension.statement();
        let (what, remedy) = match known.iter().find(|(name, _)| *name == extension.name) {
            Some((_, true)) => continue,
            Some(_) => ("which is not here and which this role may not make", Remedy::sql(Side::Replica, make)),
            None => {
                let install = "install its files on the replica's server (a package such as postgresql-contrib)";
                ("whose files are not on this server", Remedy::at(Place::Person, install).then(make))
            }
        };
        let what = format!("{} needs extension {}, {what}", extension.needed_by, extension.name);
        findings.error("extension", what, "its tables cannot be made as the source has them", Some(remedy));
        findings.about(extension.name.clone());
    }
    Ok(())
}
