//! Plain SQL connections by sqlx, with the session settings that every connection of ours has.

use std::future::Future;
use std::time::Duration;

use secrecy::ExposeSecret;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions, Connection, PgConnection};

use super::errors;
use crate::config::{PgConnect, PgHost, TlsMode};
use crate::error::{Error, ErrorKind, Result};

/// No statement outside of a batch or a copy may take longer.
pub const SHORT_WAIT: Duration = Duration::from_secs(30);

/// Settings of every session: canonical text values, nothing resolved by path, dead peers noticed within seconds.
const SESSION: &[(&str, &str)] = &[
    ("search_path", ""),
    ("DateStyle", "ISO, YMD"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("bytea_output", "hex"),
    ("extra_float_digits", "3"),
    ("xmloption", "content"),
    ("default_transaction_isolation", "read\\ committed"),
    ("default_transaction_read_only", "off"),
    ("synchronous_commit", "on"),
    ("client_min_messages", "warning"),
    ("tcp_keepalives_idle", "10"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_keepalives_count", "3"),
    ("tcp_user_timeout", "20000"),
];

/// Options for sqlx from our own, without anything of libpq's environment that we did not ask for.
#[must_use]
pub fn options(target: &PgConnect, application_name: &str) -> PgConnectOptions {
    let mut options = PgConnectOptions::new_without_pgpass()
        .port(target.port)
        .username(&target.user)
        .database(&target.database)
        .application_name(application_name)
        .extra_float_digits(None)
        .statement_cache_capacity(1000)
        .options(SESSION.iter().copied())
        .disable_statement_logging();
    options = match &target.host {
        PgHost::Tcp(host) => options.host(host).ssl_mode(match target.tls {
            TlsMode::Disable => PgSslMode::Disable,
            TlsMode::Prefer => PgSslMode::Prefer,
            TlsMode::Require => PgSslMode::Require,
            TlsMode::VerifyCa => PgSslMode::VerifyCa,
            TlsMode::VerifyFull => PgSslMode::VerifyFull,
        }),
        PgHost::Unix(folder) => options.socket(folder).ssl_mode(PgSslMode::Disable),
    };
    if let Some(password) = &target.password {
        options = options.password(password.expose_secret());
    }
    if let Some(root) = &target.root_certificate {
        options = options.ssl_root_cert(root);
    }
    if let Some((certificate, key)) = &target.client_certificate {
        options = options.ssl_client_cert(certificate).ssl_client_key(key);
    }
    options
}

/// Connects, within the configured time.
///
/// # Errors
/// [`ErrorKind::Connection`], or a halt when the server refuses the role.
pub async fn connect(target: &PgConnect, application_name: &str) -> Result<PgConnection> {
    let options = options(target, application_name);
    within(target.connect_timeout, "connecting", PgConnection::connect_with(&options)).await
}

/// Runs one wait of sqlx's with a deadline. After a timeout the connection is in an unknown state and must be dropped.
///
/// # Errors
/// The server's, classified; [`ErrorKind::Connection`] past the deadline.
pub async fn within<T>(limit: Duration, what: &str, work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T> {
    match tokio::time::timeout(limit, work).await {
        Ok(done) => done.map_err(errors::classify),
        Err(_) => Err(Error::new(ErrorKind::Connection, format!("{what}: no answer within {} s", limit.as_secs()))),
    }
}
