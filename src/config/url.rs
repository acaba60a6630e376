//! PostgreSQL connection URLs, as libpq reads them (PostgreSQL documentation, "Connection URIs").

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use secrecy::{ExposeSecret as _, SecretString};

use super::secret;

/// How to reach a PostgreSQL server, from a libpq URL and the secrets beside it.
#[derive(Clone, Debug)]
pub struct PgConnect {
    /// Where it listens.
    pub host: PgHost,
    /// Port, also part of a Unix socket's name.
    pub port: u16,
    /// Role.
    pub user: String,
    /// Database.
    pub database: String,
    /// Password, if one is needed.
    pub password: Option<SecretString>,
    /// The file that it was read from, read again for every connection: passwords are changed while the daemon runs.
    pub password_file: Option<PathBuf>,
    /// Why that file could not be read, where it was let pass ([`super::Config::load_to_check`]).
    pub unread: Option<String>,
    /// TLS, as libpq's `sslmode`. `verify-full` by default off loopback, `prefer` on it, ignored on a Unix socket.
    pub tls: TlsMode,
    /// `sslrootcert`: certificates to trust instead of the system's.
    pub root_certificate: Option<PathBuf>,
    /// `sslcert` and `sslkey`.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
    /// `connect_timeout`.
    pub connect_timeout: Duration,
}

impl PgConnect {
    /// Which database of which server: `host:port/database`, or the socket's file in place of host and port.
    #[must_use]
    pub fn address(&self) -> String {
        match &self.host {
            PgHost::Tcp(host) => format!("{host}:{}/{}", self.port, self.database),
            PgHost::Unix(folder) => format!("{}/.s.PGSQL.{}/{}", folder.display(), self.port, self.database),
        }
    }

    /// The password as it is now: from its file, or as it was read at the start where that can no longer be read.
    #[must_use]
    pub fn password_now(&self) -> Option<SecretString> {
        self.password_file.as_deref().and_then(|path| secret::read(path).ok()).or_else(|| self.password.clone())
    }
}

/// Where a PostgreSQL server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PgHost {
    /// Name or address.
    Tcp(String),
    /// Folder of the socket.
    Unix(PathBuf),
}

impl PgHost {
    /// True for a Unix socket, `localhost` and loopback addresses.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Tcp(host) => host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback()),
        }
    }
}

impl fmt::Display for PgHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host) => f.write_str(host),
            Self::Unix(folder) => folder.display().fmt(f),
        }
    }
}

impl fmt::Display for PgConnect {
    /// For people: `user@host:port/database`, without secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}:{}/{}", self.user, self.host, self.port, self.database)
    }
}

/// libpq's `sslmode` (PostgreSQL documentation, "SSL Mode Descriptions").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsMode {
    /// Never.
    Disable,
    /// When the server offers it, unverified.
    Prefer,
    /// Always, unverified.
    Require,
    /// Always, chain verified.
    VerifyCa,
    /// Always, chain and host name verified.
    VerifyFull,
}

impl TlsMode {
    /// As libpq writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }
}

const PARAMETERS: &str = "host, port, user, password, dbname, sslmode, sslrootcert, sslcert, sslkey, connect_timeout";
const ESCAPE: &str = "special characters in a password are written as %XX: '@' is %40, '/' is %2F, '#' is %23";
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Parts of a URL while it is read; parameters win over the authority, as in libpq.
#[derive(Default)]
struct Parts {
    host: Option<String>,
    port: Option<u16>,
    user: Option<String>,
    password: Option<SecretString>,
    database: Option<String>,
    tls: Option<TlsMode>,
    root: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    timeout: Option<Duration>,
}

/// Reads a URL. Errors are sentences without any part of the URL that could be a secret.
pub(super) fn parse(text: &SecretString) -> Result<PgConnect, String> {
    let text = text.expose_secret();
    if !(text.starts_with("postgres://") || text.starts_with("postgresql://")) {
        return Err("a PostgreSQL URL begins with postgres://, as in postgres://millstream@db1/shop".to_owned());
    }
    let (_, rest) = text.split_once("://").unwrap_or_default();
    if rest.contains('#') {
        return Err(format!("a '#' in the URL; {ESCAPE}"));
    }
    let (before, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = before.split_once('/').unwrap_or((before, ""));
    let mut parts = Parts::default();
    parts.authority(authority)?;
    parts.database = Some(decode(database)?).filter(|name| !name.is_empty());
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').ok_or_else(|| "a parameter without '='".to_owned())?;
        parts.set(&decode(name)?, decode(value)?)?;
    }
    parts.finish()
}

fn decode(text: &str) -> Result<String, String> {
    percent_decode_str(text)
        .decode_utf8()
        .map(|text| text.into_owned())
        .map_err(|_| "a %XX sequence that is not UTF-8".to_owned())
}

/// True when a URL, well formed or not, seems to hold a password.
pub(super) fn holds_password(text: &str) -> bool {
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    let (before, query) = rest.split_once('?').unwrap_or((rest, ""));
    let user = before.rsplit_once('@').map_or("", |(user, _)| user);
    user.contains(':') || query.split('&').any(|pair| pair.starts_with("password="))
}

impl Parts {
    /// `user:password@host:port`, each of it optional.
    fn authority(&mut self, authority: &str) -> Result<(), String> {
        let (user, place) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = user.split_once(':').map_or((user, None), |(user, password)| (user, Some(password)));
        if place.contains(',') {
            return Err("several hosts in one URL are not supported; name the primary, or an address that follows it".to_owned());
        }
        let after_bracket = place.rfind(']').map_or(0, |i| i + 1);
        let (host, port) = match place[after_bracket..].rfind(':') {
            Some(colon) => (&place[..after_bracket + colon], Some(&place[after_bracket + colon + 1..])),
            None => (place, None),
        };
        if let Some(port) = port.filter(|port| !port.is_empty()) {
            // What stands here may be the rest of a password with an unescaped '/' or '?' in it: it is not repeated.
            self.port = Some(port.parse().map_err(|_| format!("what follows the host is not a port number; {ESCAPE}"))?);
        }
        self.host = Some(decode(host)?).filter(|host| !host.is_empty());
        self.user = Some(decode(user)?).filter(|user| !user.is_empty());
        self.password = password.map(decode).transpose()?.filter(|p| !p.is_empty()).map(SecretString::from);
        Ok(())
    }

    fn set(&mut self, name: &str, value: String) -> Result<(), String> {
        match name {
            "host" | "hostaddr" => self.host = Some(value),
            "port" => self.port = Some(value.parse().map_err(|_| format!("port '{value}' is not a port number"))?),
            "user" => self.user = Some(value),
            "password" => self.password = Some(SecretString::from(value)),
            "dbname" => self.database = Some(value),
            "sslmode" => self.tls = Some(tls_mode(&value)?),
            "sslrootcert" if value == "system" => self.root = None,
            "sslrootcert" => self.root = Some(PathBuf::from(value)),
            "sslcert" => self.certificate = Some(PathBuf::from(value)),
            "sslkey" => self.key = Some(PathBuf::from(value)),
            "connect_timeout" => {
                let seconds = value.parse::<u64>().ok().filter(|seconds| (1..=3600).contains(seconds));
                let seconds =
                    seconds.ok_or_else(|| format!("connect_timeout '{value}' is not a number of seconds from 1 to 3600"))?;
                self.timeout = Some(Duration::from_secs(seconds));
            }
            other => return Err(format!("unknown parameter '{other}'; Millstream takes {PARAMETERS}")),
        }
        Ok(())
    }

    fn finish(self) -> Result<PgConnect, String> {
        let host = self.host.ok_or("no host; write postgres://user@host/database, or ?host=/run/postgresql for a socket")?;
        let host = if host.starts_with('/') {
            PgHost::Unix(PathBuf::from(host))
        } else {
            PgHost::Tcp(host.trim_start_matches('[').trim_end_matches(']').to_owned())
        };
        let user = self.user.ok_or("no user; write postgres://user@host/database")?;
        let database = self.database.ok_or("no database; write postgres://user@host/database")?;
        let client_certificate = match (self.certificate, self.key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (Some(_), None) => return Err("sslcert needs sslkey beside it".to_owned()),
            (None, Some(_)) => return Err("sslkey needs sslcert beside it".to_owned()),
        };
        let default_tls = if host.is_local() { TlsMode::Prefer } else { TlsMode::VerifyFull };
        Ok(PgConnect {
            tls: self.tls.unwrap_or(default_tls),
            host,
            port: self.port.unwrap_or(5432),
            user,
            database,
            password: self.password,
            password_file: None,
            unread: None,
            root_certificate: self.root,
            client_certificate,
            connect_timeout: self.timeout.unwrap_or(DEFAULT_CONNECT_TIMEOUT),
        })
    }
}

fn tls_mode(text: &str) -> Result<TlsMode, String> {
    let modes = [TlsMode::Disable, TlsMode::Prefer, TlsMode::Require, TlsMode::VerifyCa, TlsMode::VerifyFull];
    modes.into_iter().find(|mode| mode.as_str() == text).ok_or_else(|| {
        let names = modes.map(TlsMode::as_str).join(", ");
        format!("sslmode '{text}' is not one of {names}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<PgConnect, String> {
        parse(&SecretString::from(text))
    }

    #[test]
    fn a_plain_url_verifies_the_server() {
        let connect = read("postgres://millstream@db1/shop").expect("a good URL");
        assert_eq!(connect.to_string(), "millstream@db1:5432/shop");
        assert_eq!(connect.tls, TlsMode::VerifyFull);
        assert_eq!(read("postgres://m@127.0.0.1/s").expect("good").tls, TlsMode::Prefer);
        assert_eq!(read("postgres://m@[::1]:5433/s").expect("good").host, PgHost::Tcp("::1".into()));
    }

    #[test]
    fn everything_is_percent_decoded_and_sockets_work() {
        let connect = read("postgresql://us%40er:p%2F%40ss@/d%20b?host=%2Frun%2Fpg&port=6000&connect_timeout=3").expect("good");
        assert_eq!((connect.user.as_str(), connect.database.as_str(), connect.port), ("us@er", "d b", 6000));
        assert_eq!(connect.host, PgHost::Unix("/run/pg".into()));
        assert_eq!(connect.password.as_ref().map(|p| p.expose_secret()), Some("p/@ss"));
        assert_eq!(connect.connect_timeout, Duration::from_secs(3));
        assert!(!format!("{connect:?}").contains("p/@ss"));
        assert_eq!(read("postgres://m@%2Frun%2Fpg/s").expect("good").host, PgHost::Unix("/run/pg".into()));
        assert_eq!(read("postgres:///s?host=/run/pg&user=m").expect("good").user, "m");
    }

    #[test]
    fn what_cannot_work_is_refused_without_repeating_the_password() {
        for (text, says) in [
            ("mysql://m:hunter2@db/s", "postgres://"),
            ("postgres://m:hunter2@db/s?sslmod=require", "unknown parameter 'sslmod'"),
            ("postgres://m:hunter2@db/s?sslmode=allow", "sslmode 'allow'"),
            ("postgres://m:hunter2@h1:1,h2:2/s", "several hosts"),
            ("postgres://m:hunter2@db:99999/s", "port number"),
            ("postgres://m:hunter2/x@db/s", "port number"),
            ("postgres://m:hunter2@db/s?connect_timeout=0", "connect_timeout"),
            ("postgres://m:hunter2@db/s?sslcert=/a", "sslkey"),
            ("postgres://db/s", "no user"),
            ("postgres://m:hunter2@db", "no database"),
            ("postgres://m:hunter2@/s", "no host"),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.contains(says), "{text}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
