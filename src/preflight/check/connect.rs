//! Reaching a server, and why it lets nobody in.

use std::net::SocketAddr;

use sqlx::PgConnection;

use super::finding::{Findings, Place, Remedy, Side};
use super::server::sql_side;
use crate::config::{PgConnect, PgHost, TlsMode};
use crate::postgres::sql::{self, quote_ident as quote};
use crate::postgres::{Refusal, ServerError};

/// Stands for a password in what is printed.
const PASSWORD: &str = "'…the one in password_file…'";
const WITHOUT_IT: &str = "nothing works without it";

/// Connects and says why not.
///
/// # Errors
/// None: what fails is a finding. `None` means that nothing else can be looked at.
pub async fn connect(findings: &mut Findings, target: &PgConnect) -> Option<PgConnection> {
    if let Some(unread) = &target.unread {
        let way = format!(
            "put the password of role {} into that file, readable for the daemon's user (mode 0640, owner root, group millstream), or name another \
             in {}.password_file",
            target.user,
            table(findings)
        );
        let why = format!("{WITHOUT_IT}: but for `millstream check`, no command and no daemon starts with this configuration");
        findings.error("connect", unread.clone(), why, Some(Remedy::at(Place::Person, way)));
        return None;
    }
    match sql::connect(target, sql_side(findings), "millstream check").await {
        Ok(connection) => {
            findings.ok("connect", format!("{} as {}", target.address(), target.user));
            Some(connection)
        }
        Err(error) => {
            match (Refusal::find(&error), ServerError::find(&error)) {
                (Some(refusal), _) => refused(findings, target, refusal),
                (None, Some(said)) => said_no(findings, target, said).await,
                (None, None) => unreachable(findings, target, error.message()),
            }
            None
        }
    }
}

/// `source.shop` or `replica.reports`: the table of the configuration.
fn table(findings: &Findings) -> String {
    let side = if findings.side() == Side::Replica { "replica" } else { "source" };
    format!("{side}.{}", findings.name())
}

fn refused(findings: &mut Findings, target: &PgConnect, refusal: &Refusal) {
    let said = refusal.say(target);
    let table = table(findings);
    match refusal {
        Refusal::NotPostgres => {
            let remedy = Remedy::at(Place::Configuration, format!("{table}.url: host and port of the PostgreSQL server"));
            findings.error("connect", said, WITHOUT_IT, Some(remedy));
        }
        Refusal::NoTls => {
            let on = "on that server: ssl = on in postgresql.conf, with ssl_cert_file and ssl_key_file, and a reload";
            let remedy = Remedy::at(Place::Person, on)
                .then(format!("or, on a network that you trust, in {table}.url: ?sslmode=disable (or prefer)"));
            findings.error("connect", said, WITHOUT_IT, Some(remedy));
        }
        Refusal::TooOld(_) => {
            let remedy = Remedy::at(Place::Person, "upgrade that server (pg_upgrade), or name another one in url");
            findings.error("version", said, "its sessions do not know the settings that Millstream's need", Some(remedy));
        }
        Refusal::NoPassword => {
            let variable = table.to_uppercase().replace('.', "__");
            let remedy =
                Remedy::at(Place::Configuration, format!("{table}.password_file = \"/etc/millstream/{}.pw\"", findings.name()))
                    .then(format!("or the environment: MILLSTREAM__{variable}__PASSWORD"))
                    .then(format!(
                        "or a systemd credential {table}.password, which only the unit gets: for a command run by hand see"
                    ))
                    .then("docs/configuration.md, \"Secrets\"");
            let what = format!("the server asks for the password of role {}, and none is configured", target.user);
            findings.error("connect", what, WITHOUT_IT, Some(remedy));
        }
        Refusal::RoleOrPassword => {
            let role = quote(&target.user);
            let remedy =
                Remedy::sql(findings.side(), format!("ALTER ROLE {role} PASSWORD {PASSWORD}  -- where the role is there"))
                    .then(format!("CREATE ROLE {role} {} PASSWORD {PASSWORD}  -- where it is not", attributes(findings)));
            findings.error("connect", said, WITHOUT_IT, Some(remedy));
        }
    }
}

/// What a role of ours is made with.
fn attributes(findings: &Findings) -> &'static str {
    if findings.side() == Side::Replica { "LOGIN" } else { "LOGIN REPLICATION" }
}

/// SQLSTATEs from PostgreSQL documentation, Appendix A.
async fn said_no(findings: &mut Findings, target: &PgConnect, server: &ServerError) {
    let said = server.message.clone();
    let admin = "only a superuser of that server can do this";
    let role = quote(&target.user);
    match (server.sqlstate.as_str(), server.routine.as_deref()) {
        // No such role, or one that may not log in (PostgreSQL source, miscinit.c); a missing line has the same SQLSTATE and another routine.
        ("28000", Some("InitializeSessionUserId")) => {
            let remedy =
                Remedy::sql(findings.side(), format!("CREATE ROLE {role} {}  -- where it is not there", attributes(findings)))
                    .then(format!("ALTER ROLE {role} LOGIN  -- where it is"));
            findings.error("connect", said, WITHOUT_IT, Some(remedy));
        }
        ("28000", _) => {
            let place = if findings.side() == Side::Replica { Place::ReplicaHba } else { Place::SourceHba };
            let why = format!("the server lets this role in only by a line of its pg_hba.conf; {admin}");
            findings.error("connect", said, why, Some(Remedy::at(place, hba_line(target).await)));
        }
        ("3D000", _) => findings.error(
            "connect",
            format!("there is no database {}", target.database),
            "the url names it",
            Some(Remedy::at(Place::Configuration, "url: name an existing database".to_owned())),
        ),
        ("53300", _) => findings.error(
            "connect",
            said,
            "Millstream needs about six connections to a source and three to a replica",
            Some(Remedy::sql(findings.side(), "ALTER SYSTEM SET max_connections = 200").and_restart()),
        ),
        ("57P03", _) => findings.unknown("connect", said, "the server is starting, stopping or recovering", None),
        _ => unreachable(findings, target, &said),
    }
}

fn unreachable(findings: &mut Findings, target: &PgConnect, said: &str) {
    findings.unknown(
        "connect",
        format!("cannot reach {}: {said}", target.address()),
        "nothing else could be looked at",
        Some(Remedy::at(
            Place::Person,
            "see that the server runs, that host and port in url are right, and that no firewall is between",
        )),
    );
}

/// The line that lets us in: with the address that the server sees us under, as far as this host knows it.
pub(super) async fn hba_line(target: &PgConnect) -> String {
    let (database, role) = (quote(&target.database), quote(&target.user));
    match &target.host {
        PgHost::Unix(_) => format!("local   {database}   {role}   scram-sha-256"),
        PgHost::Tcp(host) => {
            let local = tokio::net::TcpStream::connect((host.as_str(), target.port)).await.and_then(|s| s.local_addr());
            let address = local.map_or_else(|_| "ADDRESS-OF-THIS-HOST/32".to_owned(), address_mask);
            let kind = if matches!(target.tls, TlsMode::Disable | TlsMode::Prefer) { "host" } else { "hostssl" };
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
