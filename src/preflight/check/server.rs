//! Checks that hold for any PostgreSQL server of ours: of a known version, nothing in between, clocks, encodings.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sqlx::{PgConnection, Row};

use super::finding::{Findings, Place, Remedy, Side};
use crate::config::PgConnect;
use crate::error::Result;
use crate::postgres::sql;
use crate::postgres::{Mode, OLDEST_MAJOR, PgClient};

/// Major versions that the test suite runs on (`make matrix`).
pub const TESTED_MAJORS: std::ops::RangeInclusive<i32> = OLDEST_MAJOR..=18;
/// Clocks further apart than this are named.
const CLOCK_TOLERANCE: Duration = Duration::from_millis(500);

/// Has the server read its configuration again.
pub(super) const RELOAD: &str = "SELECT pg_reload_conf()";

/// What a server says of itself.
#[derive(Clone, Debug)]
pub struct ServerFacts {
    /// `server_version_num` / 10000.
    pub major: i32,
    /// Role that we are.
    pub role: String,
    /// That role's attributes.
    pub superuser: bool,
    /// `server_encoding`.
    pub encoding: String,
    /// `system_identifier`, when it may be read.
    pub system_identifier: Option<i64>,
    /// Database.
    pub database: String,
}

/// Reads what the server says of itself, and judges version, standby, encoding and clock.
///
/// # Errors
/// When the catalog cannot be read.
pub async fn facts(findings: &mut Findings, connection: &mut PgConnection) -> sqlx::Result<ServerFacts> {
    let before = SystemTime::now();
    let row = sqlx::query(
        "SELECT current_setting('server_version_num')::int4, current_user::text, \
         (SELECT rolsuper FROM pg_roles WHERE rolname = current_user), current_setting('server_encoding'), \
         pg_is_in_recovery(), current_database()::text, (extract(epoch FROM clock_timestamp()) * 1000000)::int8, \
         current_setting('fsync') = 'on'",
    )
    .fetch_one(&mut *connection)
    .await?;
    let number: i32 = row.get(0);
    let facts = ServerFacts {
        major: number / 10000,
        role: row.get(1),
        superuser: row.get::<Option<bool>, _>(2).unwrap_or(false),
        encoding: row.get(3),
        system_identifier: sqlx::query_scalar("SELECT system_identifier FROM pg_control_system()")
            .fetch_one(&mut *connection)
            .await
            .ok(),
        database: row.get(5),
    };
    version(findings, facts.major);
    if row.get::<bool, _>(4) {
        let why = if findings.side() == Side::Source {
            "heartbeats, the publication and the slot's failover need a primary"
        } else {
            "a standby takes no writes"
        };
        findings.error(
            "primary",
            "the server is a standby in recovery",
            why,
            Some(Remedy::at(Place::Configuration, "url: name the primary")),
        );
    }
    if !row.get::<bool, _>(7) {
        let remedy = Remedy::sql(findings.side(), "ALTER SYSTEM SET fsync = 'on'").then(RELOAD);
        findings.warn(
            "fsync",
            "fsync is off",
            "a crash of that host loses or corrupts what was committed, and the two sides part for good",
            Some(remedy),
        );
    }
    clock(findings, row.get(6), before);
    Ok(facts)
}

fn version(findings: &mut Findings, major: i32) {
    let what = format!("PostgreSQL {major}");
    if TESTED_MAJORS.contains(&major) {
        findings.ok("version", what);
    } else if major < *TESTED_MAJORS.start() {
        let remedy = Remedy::at(Place::Person, format!("upgrade it to PostgreSQL {OLDEST_MAJOR} or later"));
        findings.error("version", what, "its replication protocol lacks what Millstream needs", Some(remedy));
    } else {
        let why = format!("this build's tests ran on {} to {} only", TESTED_MAJORS.start(), TESTED_MAJORS.end());
        let remedy =
            Remedy::at(Place::Person, "use a newer Millstream, or run its test suite with PG_BIN pointing to this version");
        findings.warn("version", what, why, Some(remedy));
    }
}

fn clock(findings: &mut Findings, server_us: i64, before: SystemTime) {
    let after = SystemTime::now();
    let micros = |t: SystemTime| i64::try_from(t.duration_since(UNIX_EPOCH).unwrap_or_default().as_micros()).unwrap_or(i64::MAX);
    // The server looked at its clock somewhere between.
    let off = if server_us < micros(before) { micros(before) - server_us } else { (server_us - micros(after)).max(0) };
    if Duration::from_micros(off.unsigned_abs()) > CLOCK_TOLERANCE {
        let what = format!("its clock and this host's are {:.1} s apart", off as f64 / 1e6);
        let remedy = Remedy::at(Place::Person, "let both hosts keep time with the same NTP servers (chronyc tracking shows it)");
        findings.warn("clock", what, "lag in seconds is wrong by that much; correctness is not touched", Some(remedy));
    } else {
        findings.ok("clock", "agrees with this host's");
    }
}

/// A pooler answers with a backend key of its own, and hands every statement to whichever server session is free.
///
/// # Errors
/// When the connection breaks.
pub async fn pooler(findings: &mut Findings, target: &PgConnect) -> Result<()> {
    let mut client = PgClient::connect(target, Mode::Sql, sql_side(findings)).await?;
    let rows = client.simple_query("SELECT pg_backend_pid()").await?;
    let real = rows.first().and_then(|row| row.get(0)).and_then(|text| text.parse::<i32>().ok());
    if real == Some(client.backend_pid()) {
        return Ok(());
    }
    findings.error(
        "pooler",
        "a connection pooler stands between",
        "replication, advisory locks and session settings need a session of their own",
        Some(Remedy::at(Place::Configuration, "url: name the PostgreSQL server itself, not pgbouncer or its like")),
    );
    Ok(())
}

pub(super) fn sql_side(findings: &Findings) -> sql::Side {
    if findings.side() == Side::Replica { sql::Side::Replica } else { sql::Side::Source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::check::{Finding, Severity};

    fn one(look: impl FnOnce(&mut Findings)) -> Finding {
        let mut findings = Findings::new(Side::Source, "shop");
        look(&mut findings);
        findings.into_list().pop().expect("a finding")
    }

    #[test]
    fn clocks_that_part_are_named_with_by_how_much() {
        let now = SystemTime::now();
        let micros = |t: SystemTime| i64::try_from(t.duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap();
        let at = |seconds: i64| one(|findings| clock(findings, micros(now) + seconds * 1_000_000, now));
        assert_eq!(at(0).severity, Severity::Ok);
        let late = at(-90);
        assert_eq!((late.severity, late.what.as_str()), (Severity::Warning, "its clock and this host's are 90.0 s apart"));
        assert!(late.remedy.expect("a remedy").steps[0].contains("chronyc tracking"));
        assert_eq!(at(3600).severity, Severity::Warning);
    }

    #[test]
    fn versions_are_told_apart() {
        let of = |major| one(|findings| version(findings, major)).severity;
        assert_eq!([13, 14, 15, 18, 19].map(of), [Severity::Error, Severity::Ok, Severity::Ok, Severity::Ok, Severity::Warning]);
    }
}
