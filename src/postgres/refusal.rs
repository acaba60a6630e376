//! Why no session came about, where the first error does not say it: another program at the port, a server too old for the settings of our sessions, no
//! password configured, a role that may not be there.

use std::fmt;
use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::error::ServerError;
use super::sqlstate::Side;
use super::tls::SSL_REQUEST;
use crate::config::{PgConnect, PgHost};
use crate::error::{Error, ErrorKind};

/// The first major version that takes every setting of our sessions ([`super::session::SETTINGS`]).
pub const OLDEST_MAJOR: i32 = 14;
/// Whoever speaks PostgreSQL answers an `SSLRequest` at once.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// What was found out about a server that gave no session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// What answers is not PostgreSQL.
    NotPostgres,
    /// A server before 14: its version, such as `13.22`.
    TooOld(String),
    /// It asks for a password, and none is configured.
    NoPassword,
    /// Role or password: the server does not say which.
    RoleOrPassword,
    /// It offers no TLS, and `sslmode` asks for it.
    NoTls,
}

impl Refusal {
    /// What was found out, if an error came of it.
    #[must_use]
    pub fn find(error: &Error) -> Option<&Self> {
        let mut cause = std::error::Error::source(error);
        while let Some(inner) = cause {
            if let Some(found) = inner.downcast_ref::<Cause>() {
                return Some(&found.refusal);
            }
            cause = inner.source();
        }
        None
    }

    /// The sentence, for a server at a place.
    #[must_use]
    pub fn say(&self, to: &PgConnect) -> String {
        let role = &to.user;
        match self {
            Self::NotPostgres => {
                format!("what answers at {} is not PostgreSQL: put host and port of the PostgreSQL server into url", address(to))
            }
            Self::TooOld(version) => format!("PostgreSQL {OLDEST_MAJOR} or later is needed; this server is {version}"),
            Self::NoPassword => format!(
                "the server asks for the password of role '{role}', and none is configured: name a file with password_file, set MILLSTREAM__…__PASSWORD, \
                 or pass a systemd credential (which only the unit gets, not a command that is run by hand)"
            ),
            Self::NoTls => format!(
                "the server at {} offers no TLS (ssl=off, or something between strips it), and sslmode asks for it",
                address(to)
            ),
            Self::RoleOrPassword => {
                format!("the password of role '{role}' is refused, or there is no such role: PostgreSQL does not say which")
            }
        }
    }
}

/// What was found out, as the cause of an error, and behind it what the server said where that is worth reading as well.
#[derive(Debug)]
struct Cause {
    refusal: Refusal,
    server: Option<ServerError>,
}

impl fmt::Display for Cause {
    /// Words that [`Refusal::say`] has, so that they are not said twice.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.refusal {
            Refusal::NotPostgres | Refusal::TooOld(_) => "PostgreSQL",
            Refusal::NoPassword | Refusal::RoleOrPassword => "password",
            Refusal::NoTls => "TLS",
        })
    }
}

impl std::error::Error for Cause {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.server.as_ref().map(|server| server as _)
    }
}

/// The error for a password that is asked for and not configured.
pub(super) fn no_password(to: &PgConnect, side: Side) -> Error {
    told(side.denied(), to, Refusal::NoPassword, None)
}

fn told(kind: ErrorKind, to: &PgConnect, refusal: Refusal, server: Option<ServerError>) -> Error {
    Error::new(kind, refusal.say(to)).with_source(Cause { refusal, server })
}

/// The error of a connection that was not made, told better where more can be found out.
pub(super) async fn explain(error: Error, to: &PgConnect) -> Error {
    let state = ServerError::find(&error).map(|server| server.sqlstate.as_str());
    let (kind, refusal) = match state {
        // undefined_object, at the start of a session: a setting that the server does not know.
        Some("42704") => match version(to).await {
            Some(number) if number / 10_000 < OLDEST_MAJOR => (ErrorKind::Config, Refusal::TooOld(shown(number))),
            _ => return error,
        },
        // invalid_password
        Some("28P01") if to.password.is_none() => (error.kind(), Refusal::NoPassword),
        Some("28P01") => (error.kind(), Refusal::RoleOrPassword),
        None if offers_no_tls(&error) => (ErrorKind::Config, Refusal::NoTls),
        // Whoever understands nothing may also just close.
        None if matches!(error.kind(), ErrorKind::Malformed | ErrorKind::Connection) && !speaks_postgres(to).await => {
            (ErrorKind::Config, Refusal::NotPostgres)
        }
        _ => return error,
    };
    tracing::debug!(%error, "a session was refused");
    // An unknown setting, or bytes of another protocol, would only distract.
    let server = ServerError::find(&error).filter(|_| refusal == Refusal::RoleOrPassword).cloned();
    told(kind, to, refusal, server)
}

/// sqlx has no other sign of it than its words.
fn offers_no_tls(error: &Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<sqlx::Error>());
    matches!(cause, Some(sqlx::Error::Tls(inner)) if inner.to_string().contains("does not support TLS"))
}

/// `server_version_num`, over a session without our settings.
async fn version(to: &PgConnect) -> Option<i32> {
    let plain = to.sqlx_options_without_settings();
    let connecting = PgConnection::connect_with(&plain);
    let mut connection = tokio::time::timeout(to.connect_timeout.max(ANSWER_WITHIN), connecting).await.ok()?.ok()?;
    let number = sqlx::query_scalar("SELECT pg_catalog.current_setting('server_version_num')::int4");
    number.fetch_one(&mut connection).await.ok()
}

/// From `server_version_num`: since 10 the major version times 10000 and the minor one (PostgreSQL documentation, "Preset Options").
fn shown(number: i32) -> String {
    if number >= 100_000 {
        format!("{}.{}", number / 10_000, number % 10_000)
    } else {
        format!("{}.{}.{}", number / 10_000, number / 100 % 100, number % 100)
    }
}

/// Asks what answers for TLS: PostgreSQL says `S` or `N`, or `E` before an error (PostgreSQL documentation, "SSL Session Encryption"). True also when there is no
/// answer to judge by.
async fn speaks_postgres(to: &PgConnect) -> bool {
    let PgHost::Tcp(host) = &to.host else { return true };
    let ask = async {
        let mut stream = TcpStream::connect((host.as_str(), to.port)).await?;
        stream.write_all(&SSL_REQUEST).await?;
        stream.read_u8().await
    };
    !matches!(tokio::time::timeout(ANSWER_WITHIN, ask).await, Ok(Ok(answer)) if !matches!(answer, b'S' | b'N' | b'E'))
}

fn address(to: &PgConnect) -> String {
    match &to.host {
        PgHost::Tcp(host) => format!("{host}:{}", to.port),
        PgHost::Unix(folder) => format!("{}/.s.PGSQL.{}", folder.display(), to.port),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_shown_as_people_know_them() {
        assert_eq!([130_022, 90_624].map(shown), ["13.22", "9.6.24"]);
    }
}
