//! What every session of ours sets, whichever client makes it, so that text values mean the same everywhere.

use secrecy::ExposeSecret;
use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use crate::config::{PgConnect, PgHost, TlsMode};

/// Settings of every session. An empty `search_path` leaves only `pg_catalog`: names in our statements are qualified (threat 3).
///
/// The `tcp_*` settings are for the server's side: it notices a dead daemon, and frees its locks, within half a minute.
pub const SETTINGS: &[(&str, &str)] = &[
    ("IntervalStyle", "postgres"),
    ("bytea_output", "hex"),
    ("standard_conforming_strings", "on"),
    ("search_path", ""),
    // Notices, which triggers and functions on the replica may raise with values in them, would reach the log.
    ("client_min_messages", "error"),
    ("lock_timeout", "0"),
    ("statement_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    // A replica whose database or roles are read only by default is so for everybody else.
    ("default_transaction_read_only", "off"),
    // PostgreSQL 14 and later, as is everything that we know (`check`).
    ("idle_session_timeout", "0"),
    ("tcp_keepalives_idle", "10"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_keepalives_count", "3"),
    ("tcp_user_timeout", "25000"),
];

/// Those that sqlx sets by calls of its own, or always.
pub const SETTINGS_OF_SQLX: &[(&str, &str)] =
    &[("DateStyle", "ISO, MDY"), ("client_encoding", "UTF8"), ("TimeZone", "UTC"), ("extra_float_digits", "3")];

/// `application_name` of every session.
pub const APPLICATION_NAME: &str = "millstream";

impl PgConnect {
    /// The same server and session settings for sqlx.
    ///
    /// sqlx adds `sslrootcert` to the system's certificates where our own client trusts it alone, and has no TLS fallback, channel binding or
    /// keepalives of its own.
    #[must_use]
    pub fn sqlx_options(&self) -> PgConnectOptions {
        self.sqlx_options_without_settings().extra_float_digits(3).options(SETTINGS.iter().copied())
    }

    /// The same server with no session settings, for one that may not know them.
    #[must_use]
    pub fn sqlx_options_without_settings(&self) -> PgConnectOptions {
        // An empty password instead of none keeps sqlx from taking PGPASSWORD.
        let password = self.password_now();
        let password = password.as_ref().map_or("", ExposeSecret::expose_secret);
        let mut options = PgConnectOptions::new_without_pgpass()
            .port(self.port)
            .username(&self.user)
            .password(password)
            .database(&self.database)
            .application_name(APPLICATION_NAME);
        options = match &self.host {
            PgHost::Tcp(host) => options.host(host).ssl_mode(self.sqlx_tls()),
            PgHost::Unix(folder) => options.host("localhost").socket(folder).ssl_mode(PgSslMode::Disable),
        };
        if let Some(root) = &self.root_certificate {
            options = options.ssl_root_cert(root);
        }
        if let Some((certificate, key)) = &self.client_certificate {
            options = options.ssl_client_cert(certificate).ssl_client_key(key);
        }
        // sqlx would log statements, and with them values.
        options.disable_statement_logging()
    }

    fn sqlx_tls(&self) -> PgSslMode {
        match self.tls_mode() {
            TlsMode::Disable => PgSslMode::Disable,
            TlsMode::Prefer => PgSslMode::Prefer,
            TlsMode::Require => PgSslMode::Require,
            TlsMode::VerifyCa => PgSslMode::VerifyCa,
            TlsMode::VerifyFull => PgSslMode::VerifyFull,
        }
    }

    /// The mode in force. As in libpq, `require` with a root certificate verifies the chain.
    #[must_use]
    pub fn tls_mode(&self) -> TlsMode {
        match (&self.host, self.tls) {
            (PgHost::Unix(_), _) => TlsMode::Disable,
            (_, TlsMode::Require) if self.root_certificate.is_some() => TlsMode::VerifyCa,
            (_, mode) => mode,
        }
    }

    /// Where it goes, for messages: never with the password.
    #[must_use]
    pub fn place(&self) -> String {
        match &self.host {
            PgHost::Tcp(host) => format!("{}@{host}:{}/{}", self.user, self.port, self.database),
            PgHost::Unix(folder) => format!("{}@{}:{}/{}", self.user, folder.display(), self.port, self.database),
        }
    }
}
