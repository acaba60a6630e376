//! Checks that hold for any PostgreSQL server of ours: reachable, of a known version, nothing in between, clocks, encodings.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sqlx::{Connection, PgConnection, Row};

use super::finding::{Findings, Place, Remedy, Side};
use crate::config::{PgConnect, PgHost};
use crate::error::{Error, Result};
use crate::postgres::sql::{self, quote_ident as quote};
use crate::postgres::{Mode, PgClient};

/// Major versions that the test suite runs on (`make matrix`).
pub const TESTED_MAJORS: &[i32] = &[14, 15, 16, 17, 18];
/// Major versions that the protocol and the catalogs used here exist on.
pub const SUPPORTED_MAJORS: std::ops::RangeInclusive<i32> = 14..=18;
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

/// Connects and says why not.
///
/// # Errors
/// None: what fails is a finding. `None` means that nothing else can be looked at.
pub async fn connect(findings: &mut Findings, target: &PgConnect) -> Option<PgConnection> {
    match PgConnection::connect_with(&sql::options(target, "millstream check")).await {
        Ok(connection) => {
            findings.ok("connect", format!("{} as {}", place(target), target.user));
            Some(connection)
        }
        Err(error) => {
            explain_refusal(findings, target, &error).await;
            None
        }
    }
}

fn place(target: &PgConnect) -> String {
    match &target.host {
        PgHost::Tcp(host) => format!("{host}:{}/{}", target.port, target.database),
        PgHost::Unix(folder) => format!("{}/.s.PGSQL.{}/{}", folder.display(), target.port, target.database),
    }
}

/// SQLSTATEs from PostgreSQL documentation, Appendix A.
async fn explain_refusal(findings: &mut Findings, target: &PgConnect, error: &sqlx::Error) {
    let state = error.as_database_error().and_then(|e| e.code()).map(|c| c.into_owned()).unwrap_or_default();
    let said = Error::new(crate::ErrorKind::Connection, "").with_source(error_text(error)).to_string();
    let said = said.trim_start_matches(": ").to_owned();
    let admin = "only a superuser of that server can do this";
    match state.as_str() {
        "28P01" => findings.error(
            "connect",
            format!("the password of role {} is refused", target.user),
            "nothing works without it",
            Some(Remedy::sql(
                findings.side(),
                format!("ALTER ROLE {} PASSWORD '…the one in password_file…'", quote(&target.user)),
            )),
        ),
        "28000" => {
            let line = hba_line(target).await;
            let place = if findings.side() == Side::Replica { Place::ReplicaHba } else { Place::SourceHba };
            findings.error(
                "connect",
                said,
                format!("the server lets this role in only by a line of its pg_hba.conf; {admin}"),
                Some(Remedy::at(place, line)),
            );
        }
        "3D000" => findings.error(
            "connect",
            format!("there is no database {}", target.database),
            "the url names it",
            Some(Remedy::at(Place::Configuration, "url: name an existing database".to_owned())),
        ),
        "53300" => findings.error(
            "connect",
            said,
            "Millstream needs about six connections to a source and three to a replica",
            Some(Remedy::sql(findings.side(), "ALTER SYSTEM SET max_connections = 200").and_restart()),
        ),
        "57P03" => findings.unknown("connect", said, "the server is starting, stopping or recovering; try again", None),
        _ => findings.unknown(
            "connect",
            format!("cannot reach {}: {said}", place(target)),
            "nothing else could be looked at",
            Some(Remedy::at(
                Place::Person,
                "see that the server runs, that host and port in url are right, and that no firewall is between",
            )),
        ),
    }
}

fn error_text(error: &sqlx::Error) -> String {
    error.as_database_error().map_or_else(|| error.to_string(), |e| e.message().to_owned())
}

/// The line that lets us in: with the address that the server sees us under, as far as this host knows it.
async fn hba_line(target: &PgConnect) -> String {
    let (database, role) = (quote(&target.database), quote(&target.user));
    match &target.host {
        PgHost::Unix(_) => format!("local   {database}   {role}   scram-sha-256"),
        PgHost::Tcp(host) => {
            let local = tokio::net::TcpStream::connect((host.as_str(), target.port)).await.and_then(|s| s.local_addr());
            let address = local.map_or_else(|_| "ADDRESS-OF-THIS-HOST/32".to_owned(), address_mask);
            let kind = if matches!(target.tls, crate::config::TlsMode::Disable | crate::config::TlsMode::Prefer) {
                "host"
            } else {
                "hostssl"
            };
            format!("{kind}   {database}   {role}   {address}   scram-sha-256")
        }
    }
}

fn address_mask(address: SocketAddr) -> String {
    match address {
        SocketAddr::V4(v4) => format!("{}/32", v4.ip()),
        SocketAddr::V6(v6) => format!("{}/128", v6.ip()),
    }
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
         current_setting('default_transaction_read_only') = 'on', current_setting('fsync') = 'on'",
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
    if findings.side() == Side::Replica && row.get::<bool, _>(7) {
        let statement = format!("ALTER DATABASE {} RESET default_transaction_read_only", quote(&facts.database));
        findings.error(
            "read_only",
            "default_transaction_read_only is on",
            "every write would fail",
            Some(Remedy::sql(Side::Replica, statement)),
        );
    }
    if !row.get::<bool, _>(8) {
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
    if !SUPPORTED_MAJORS.contains(&major) {
        let why = "Millstream knows PostgreSQL 14 to 18";
        findings.error("version", format!("PostgreSQL {major}"), why, Some(Remedy::at(Place::Person, "use a supported version")));
    } else if TESTED_MAJORS.contains(&major) {
        findings.ok("version", format!("PostgreSQL {major}"));
    } else {
        let why = format!("this build's tests ran on {TESTED_MAJORS:?} only");
        findings.warn(
            "version",
            format!("PostgreSQL {major}"),
            why,
            Some(Remedy::at(Place::Person, "run the test suite with PG_BIN pointing to this version")),
        );
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

fn sql_side(findings: &Findings) -> sql::Side {
    if findings.side() == Side::Replica { sql::Side::Replica } else { sql::Side::Source }
}
