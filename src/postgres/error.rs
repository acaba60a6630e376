//! Errors of a PostgreSQL server, kept whole, from our own client and from sqlx.

use std::fmt;

use sqlx::postgres::{PgDatabaseError, PgSeverity};

use super::frame::Fields;
use super::sqlstate::{Side, kind_of_sqlstate, quotes_values};
use crate::error::{Error, ErrorKind, Result};

/// What a server said in an `ErrorResponse` (PostgreSQL documentation, "Error and Notice Message Fields").
///
/// Shown are severity, message, SQLSTATE and hint, and the detail where it cannot hold a row's values: those belong in no log. Everything else is
/// for code to look at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerError {
    /// `ERROR`, `FATAL`, `PANIC`; not localized.
    pub severity: String,
    /// Five characters.
    pub sqlstate: String,
    /// The primary message.
    pub message: String,
    /// Secondary message; may hold values of rows.
    pub detail: Option<String>,
    /// What the server would do about it.
    pub hint: Option<String>,
    /// Call stack or line of COPY; may hold values of rows.
    pub context: Option<String>,
    /// Schema of the object concerned.
    pub schema: Option<String>,
    /// Table concerned.
    pub table: Option<String>,
    /// Column concerned.
    pub column: Option<String>,
    /// Constraint concerned.
    pub constraint: Option<String>,
    /// Routine of the server's source that said it.
    pub routine: Option<String>,
}

impl ServerError {
    /// Reads the fields of an `ErrorResponse` or `NoticeResponse`.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`] when they are cut.
    pub fn parse(payload: &[u8]) -> Result<Self> {
        let mut error = Self::default();
        for field in Fields::new(payload) {
            let (tag, value) = field?;
            let value = String::from_utf8_lossy(value).into_owned();
            match tag {
                b'V' => error.severity = value,
                // Before 9.6 there is only the localized one.
                b'S' if error.severity.is_empty() => error.severity = value,
                b'C' => error.sqlstate = value,
                b'M' => error.message = value,
                b'D' => error.detail = Some(value),
                b'H' => error.hint = Some(value),
                b'W' => error.context = Some(value),
                b's' => error.schema = Some(value),
                b't' => error.table = Some(value),
                b'c' => error.column = Some(value),
                b'n' => error.constraint = Some(value),
                b'R' => error.routine = Some(value),
                _ => {}
            }
        }
        Ok(error)
    }

    /// Millstream's error with this one inside, classified by its SQLSTATE.
    #[must_use]
    pub fn into_error(self, side: Side) -> Error {
        let kind = kind_of_sqlstate(&self.sqlstate, side);
        Error::new(kind, format!("{} said {self}", side.as_str())).with_source(self)
    }

    /// The server's error inside one of ours, if that is what it was.
    #[must_use]
    pub fn find(error: &Error) -> Option<&Self> {
        let mut cause = std::error::Error::source(error);
        while let Some(inner) = cause {
            if let Some(found) = inner.downcast_ref::<Self>() {
                return Some(found);
            }
            cause = inner.source();
        }
        None
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: ", self.severity, self.sqlstate)?;
        match self.sqlstate.get(..2) {
            Some("22") => f.write_str(&without_quoted(&self.message))?,
            // RAISE, external routines: what a trigger says of a row.
            Some("P0" | "38" | "39") => {
                f.write_str("a function raised an exception (its message may quote the row and is left out)")?
            }
            _ => f.write_str(&self.message)?,
        }
        if let Some(detail) = self.detail.as_ref().filter(|_| !quotes_values(&self.sqlstate)) {
            write!(f, " ({detail})")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, " [{hint}]")?;
        }
        for (what, name) in [("table", &self.table), ("column", &self.column), ("constraint", &self.constraint)] {
            if let Some(name) = name {
                write!(f, ", {what} {name}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for ServerError {}

/// Data exceptions quote the value (`invalid input syntax for type integer: "…"`): everything from the first quote to the last goes.
fn without_quoted(message: &str) -> String {
    match (message.find('"'), message.rfind('"')) {
        (Some(first), Some(last)) if first < last => format!("{}…{}", &message[..first], &message[last + 1..]),
        (Some(first), _) => format!("{}…", &message[..first]),
        _ => message.to_owned(),
    }
}

/// Millstream's error from sqlx's, classified by the same table. The server's own error is kept as [`ServerError`].
#[must_use]
pub fn from_sqlx(error: sqlx::Error, side: Side) -> Error {
    let kind = match error {
        sqlx::Error::Database(inner) => return from_database(inner, side),
        // As our own client says it: a certificate that does not pass now will not pass later, unlike a network.
        sqlx::Error::Io(inner) if is_of_a_certificate(&inner) => {
            return Error::new(ErrorKind::Config, "TLS with the server failed (see sslmode and sslrootcert)")
                .with_source(inner)
                .context(format!("connection to the {}", side.as_str()));
        }
        // Of a socket all of it is the connection's: a name that is not found has no kind of its own.
        sqlx::Error::Io(inner) => {
            return Error::new(ErrorKind::Connection, inner.to_string())
                .with_source(inner)
                .context(format!("connection to the {}", side.as_str()));
        }
        sqlx::Error::Migrate(inner) => match *inner {
            sqlx::migrate::MigrateError::Execute(inner) | sqlx::migrate::MigrateError::ExecuteMigration(inner, _) => {
                return from_sqlx(inner, side);
            }
            other => return Error::new(ErrorKind::Unexpected, "a migration failed").with_source(other),
        },
        sqlx::Error::Configuration(_) | sqlx::Error::Tls(_) => ErrorKind::Config,
        sqlx::Error::PoolTimedOut => ErrorKind::Busy,
        sqlx::Error::WorkerCrashed | sqlx::Error::BeginFailed => ErrorKind::Connection,
        sqlx::Error::PoolClosed => ErrorKind::Cancelled,
        sqlx::Error::Protocol(_) => ErrorKind::Malformed,
        _ => ErrorKind::Unexpected,
    };
    Error::new(kind, format!("{}: {error}", side.as_str())).with_source(error)
}

/// rustls puts its errors inside of I/O errors. Of them only those that a handshake alone can have: others are damage on the way.
fn is_of_a_certificate(error: &std::io::Error) -> bool {
    use rustls::Error as Tls;
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Tls>());
    inner.is_some_and(|inner| {
        matches!(
            inner,
            Tls::InvalidCertificate(_) | Tls::NoCertificatesPresented | Tls::UnsupportedNameType | Tls::PeerIncompatible(_)
        )
    })
}

fn from_database(error: Box<dyn sqlx::error::DatabaseError>, side: Side) -> Error {
    let Some(inner) = error.try_downcast_ref::<PgDatabaseError>() else {
        return Error::new(ErrorKind::Unexpected, "an error of another database than PostgreSQL").with_source(error);
    };
    let text = |value: Option<&str>| value.map(str::to_owned);
    ServerError {
        severity: severity(inner.severity()).to_owned(),
        sqlstate: inner.code().to_owned(),
        message: inner.message().to_owned(),
        detail: text(inner.detail()),
        hint: text(inner.hint()),
        context: text(inner.r#where()),
        schema: text(inner.schema()),
        table: text(inner.table()),
        column: text(inner.column()),
        constraint: text(inner.constraint()),
        routine: text(inner.routine()),
    }
    .into_error(side)
}

fn severity(severity: PgSeverity) -> &'static str {
    match severity {
        PgSeverity::Panic => "PANIC",
        PgSeverity::Fatal => "FATAL",
        PgSeverity::Error => "ERROR",
        PgSeverity::Warning => "WARNING",
        PgSeverity::Notice => "NOTICE",
        PgSeverity::Debug => "DEBUG",
        PgSeverity::Info => "INFO",
        PgSeverity::Log => "LOG",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::halt::HaltCode;

    fn response(fields: &[(u8, &str)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (tag, value) in fields {
            bytes.push(*tag);
            bytes.extend_from_slice(value.as_bytes());
            bytes.push(0);
        }
        bytes.push(0);
        bytes
    }

    #[test]
    fn keeps_every_field_and_shows_no_values() {
        let bytes = response(&[
            (b'S', "FEHLER"),
            (b'V', "ERROR"),
            (b'C', "23505"),
            (b'M', "duplicate key value violates unique constraint \"t_pkey\""),
            (b'D', "Key (id)=(secret) already exists."),
            (b't', "t"),
            (b'n', "t_pkey"),
        ]);
        let error = ServerError::parse(&bytes).unwrap().into_error(Side::Replica);
        assert_eq!(error.kind(), ErrorKind::Halt(HaltCode::ReplicaConstraint));
        assert!(!error.to_string().contains("secret"), "{error}");
        assert!(error.to_string().contains("t_pkey"), "{error}");
        let inside = ServerError::find(&error).unwrap();
        assert_eq!(inside.severity, "ERROR");
        assert_eq!(inside.detail.as_deref(), Some("Key (id)=(secret) already exists."));
    }

    #[test]
    fn data_exceptions_lose_the_quoted_value() {
        let bytes =
            response(&[(b'V', "ERROR"), (b'C', "22P02"), (b'M', "invalid input syntax for type integer: \"a \"secret\" b\"")]);
        let shown = ServerError::parse(&bytes).unwrap().to_string();
        assert_eq!(shown, "ERROR 22P02: invalid input syntax for type integer: …");
    }

    #[test]
    fn cut_fields_are_malformed() {
        assert_eq!(ServerError::parse(b"Mno end").unwrap_err().kind(), ErrorKind::Malformed);
    }
}
