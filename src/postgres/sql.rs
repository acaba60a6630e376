//! Ordinary SQL connections: one way to open them, one way to quote names, one table from SQLSTATE to kind of failure.
//!
//! Every connection of ours speaks the log's canonical text (ISO dates, UTC, `extra_float_digits=3`, hex bytea) and has an
//! empty `search_path`, so that every name is written in full and no schema of somebody else's can stand in front.

use std::time::Duration;

use secrecy::ExposeSecret;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection};

use crate::config::{PgConnect, PgHost, TlsMode};
use crate::error::{Error, ErrorKind, Result};
use crate::event::TableName;
use crate::halt::HaltCode;

/// Which side of a pair a connection belongs to: the same refusal means different codes there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The captured database.
    Source,
    /// The database applied to.
    Replica,
}

/// Settings of every SQL connection.
pub const SESSION_SETTINGS: &str = "SET search_path = ''; SET datestyle = 'ISO, YMD'; SET intervalstyle = 'postgres'; \
     SET extra_float_digits = 3; SET bytea_output = 'hex'; SET timezone = 'UTC'; SET client_encoding = 'UTF8'; \
     SET standard_conforming_strings = on; SET lock_timeout = 0; SET statement_timeout = 0; \
     SET idle_in_transaction_session_timeout = 0";

/// A name in double quotes, for SQL.
#[must_use]
pub fn quote_ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text in single quotes, for SQL that takes no parameters.
#[must_use]
pub fn quote_literal(text: &str) -> String {
    let body = text.replace('\'', "''");
    if body.contains('\\') { format!(" E'{}'", body.replace('\\', "\\\\")) } else { format!("'{body}'") }
}

/// A table's full name, quoted, for SQL.
#[must_use]
pub fn quote_table(table: &TableName) -> String {
    format!("{}.{}", quote_ident(&table.schema), quote_ident(&table.name))
}

/// sqlx's options for a configured server.
#[must_use]
pub fn options(connect: &PgConnect, application_name: &str) -> PgConnectOptions {
    let mut options = PgConnectOptions::new_without_pgpass()
        .port(connect.port)
        .username(&connect.user)
        .database(&connect.database)
        .application_name(application_name)
        .extra_float_digits(3)
        .ssl_mode(match connect.tls {
            TlsMode::Disable => PgSslMode::Disable,
            TlsMode::Prefer => PgSslMode::Prefer,
            TlsMode::Require => PgSslMode::Require,
            TlsMode::VerifyCa => PgSslMode::VerifyCa,
            TlsMode::VerifyFull => PgSslMode::VerifyFull,
        });
    options = match &connect.host {
        PgHost::Tcp(host) => options.host(host),
        PgHost::Unix(folder) => options.socket(folder).ssl_mode(PgSslMode::Disable),
    };
    if let Some(password) = &connect.password {
        options = options.password(password.expose_secret());
    }
    if let Some(file) = &connect.root_certificate {
        options = options.ssl_root_cert(file);
    }
    if let Some((certificate, key)) = &connect.client_certificate {
        options = options.ssl_client_cert(certificate).ssl_client_key(key);
    }
    options.disable_statement_logging()
}

/// Opens a connection with [`SESSION_SETTINGS`].
///
/// # Errors
/// As [`classify`], with the server's address as the place; [`ErrorKind::Connection`] past `connect_timeout`.
pub async fn connect(connect: &PgConnect, side: Side, application_name: &str) -> Result<PgConnection> {
    let place = || match &connect.host {
        PgHost::Tcp(host) => format!("{host}:{}/{}", connect.port, connect.database),
        PgHost::Unix(folder) => format!("{}/.s.PGSQL.{}, database {}", folder.display(), connect.port, connect.database),
    };
    let limit = connect.connect_timeout.max(Duration::from_secs(1));
    let open = async {
        let mut connection = PgConnection::connect_with(&options(connect, application_name)).await?;
        connection.execute(AssertSqlSafe(SESSION_SETTINGS)).await?;
        Ok(connection)
    };
    match tokio::time::timeout(limit, open).await {
        Ok(result) => result.map_err(|error| classify(error, side).context(place())),
        Err(_) => {
            let message = format!("no answer within {} s", limit.as_secs());
            Err(Error::new(ErrorKind::Connection, message).context(place()))
        }
    }
}

/// The kind of a failure, by SQLSTATE (PostgreSQL documentation, "PostgreSQL Error Codes").
#[must_use]
pub fn classify(error: sqlx::Error, side: Side) -> Error {
    let message = match &error {
        sqlx::Error::Database(cause) => {
            let hint = cause
                .try_downcast_ref::<sqlx::postgres::PgDatabaseError>()
                .and_then(sqlx::postgres::PgDatabaseError::hint)
                .map(|hint| format!(" ({hint})"))
                .unwrap_or_default();
            format!("{}{hint} [{}]", cause.message(), cause.code().unwrap_or_default())
        }
        other => other.to_string(),
    };
    let kind = match &error {
        sqlx::Error::Database(cause) => kind_of_sqlstate(cause.code().as_deref().unwrap_or_default(), side),
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => {
            ErrorKind::Connection
        }
        sqlx::Error::Configuration(_) => ErrorKind::Config,
        sqlx::Error::Tls(_) => denied(side),
        sqlx::Error::Protocol(_) => ErrorKind::Malformed,
        _ => ErrorKind::Unexpected,
    };
    Error::new(kind, message).with_source(error)
}

/// What a SQLSTATE means on one side.
#[must_use]
pub fn kind_of_sqlstate(code: &str, side: Side) -> ErrorKind {
    match code {
        "57P01" | "57P02" | "57P03" | "57P05" => return ErrorKind::Connection,
        "40001" | "40P01" | "55P03" | "57014" => return ErrorKind::Busy,
        "53100" => return ErrorKind::NoSpace,
        "55006" => return ErrorKind::Held,
        "42501" | "3D000" => return denied(side),
        _ => {}
    }
    match (code.get(..2).unwrap_or_default(), side) {
        ("08", _) => ErrorKind::Connection,
        ("53", _) => ErrorKind::Busy,
        ("28", _) => denied(side),
        ("58", _) => ErrorKind::Io,
        ("XX", _) => ErrorKind::Unexpected,
        ("23" | "44", Side::Replica) => ErrorKind::Halt(HaltCode::ReplicaConstraint),
        ("22" | "42" | "3F", Side::Replica) => ErrorKind::Halt(HaltCode::SchemaMismatch),
        ("42" | "3F" | "55", Side::Source) => ErrorKind::Halt(HaltCode::SourceMisconfigured),
        _ => ErrorKind::Unexpected,
    }
}

fn denied(side: Side) -> ErrorKind {
    ErrorKind::Halt(match side {
        Side::Source => HaltCode::SourceDenied,
        Side::Replica => HaltCode::ReplicaDenied,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_texts_are_quoted_whatever_they_hold() {
        assert_eq!(quote_ident("a\"b;--"), "\"a\"\"b;--\"");
        assert_eq!(quote_literal("it's"), "'it''s'");
        assert_eq!(quote_literal("a\\'b"), " E'a\\\\''b'");
        assert_eq!(quote_table(&TableName::new("S", "t\n")), "\"S\".\"t\n\"");
    }

    #[test]
    fn the_same_refusal_has_a_code_of_its_own_on_each_side() {
        assert_eq!(kind_of_sqlstate("42501", Side::Source), ErrorKind::Halt(HaltCode::SourceDenied));
        assert_eq!(kind_of_sqlstate("42501", Side::Replica), ErrorKind::Halt(HaltCode::ReplicaDenied));
        assert_eq!(kind_of_sqlstate("57P01", Side::Source), ErrorKind::Connection);
        assert_eq!(kind_of_sqlstate("40P01", Side::Replica), ErrorKind::Busy);
    }
}
