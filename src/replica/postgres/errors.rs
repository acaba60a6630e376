//! sqlx's errors as the applier says them; what a SQLSTATE means is in [`crate::postgres::sqlstate`].
//!
//! Messages of data errors may quote values (`invalid input syntax for type integer: "…"`, `Key (email)=(…)`), and values never
//! go into logs: of those only code, table, column, type and constraint are kept.

use std::fmt::Write as _;
use std::future::Future;
use std::time::Duration;

use sqlx::postgres::PgDatabaseError;

use crate::error::{Error, ErrorKind, Result};
use crate::failpoint::deadline;
use crate::halt::HaltCode;
use crate::postgres::sqlstate::{Side, kind_of_sqlstate, quotes_values};

/// No statement outside of a batch or a copy may take longer.
pub const SHORT_WAIT: Duration = Duration::from_secs(30);

/// Runs one wait of sqlx's with a deadline. After a timeout the connection is in an unknown state and must be dropped.
///
/// # Errors
/// The server's, classified; [`ErrorKind::Connection`] past the deadline.
pub async fn within<T>(limit: Duration, what: &str, work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T> {
    let limit = deadline(limit);
    match tokio::time::timeout(limit, work).await {
        Ok(done) => done.map_err(classify),
        Err(_) => Err(Error::new(ErrorKind::Connection, format!("{what}: no answer within {} s", limit.as_secs()))),
    }
}

/// Our error from sqlx's.
#[must_use]
pub fn classify(error: sqlx::Error) -> Error {
    match error {
        sqlx::Error::Database(database) => match database.try_downcast::<PgDatabaseError>() {
            Ok(error) => from_server(&error),
            Err(other) => Error::new(ErrorKind::Unexpected, other.message().to_owned()),
        },
        sqlx::Error::Io(io) => Error::new(ErrorKind::Connection, "the connection to PostgreSQL failed").with_source(io),
        sqlx::Error::Tls(tls) => Error::new(ErrorKind::Connection, "TLS with PostgreSQL failed").with_source(tls),
        sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => {
            Error::new(ErrorKind::Connection, "the connection to PostgreSQL is gone").with_source(error)
        }
        sqlx::Error::Configuration(cause) => {
            Error::new(ErrorKind::Config, "the connection's settings cannot be used").with_source(cause)
        }
        other => Error::new(ErrorKind::Unexpected, "PostgreSQL answered in an unexpected way").with_source(other),
    }
}

/// The SQLSTATE of a server's error.
#[must_use]
pub fn sqlstate(error: &sqlx::Error) -> Option<&str> {
    error.as_database_error().and_then(|e| e.try_downcast_ref::<PgDatabaseError>()).map(PgDatabaseError::code)
}

/// True when the server refused the rows themselves, not the way they came: worth replaying one transaction at a time.
#[must_use]
pub fn concerns_rows(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Halt(HaltCode::ReplicaConstraint | HaltCode::ReplicaConflict))
}

/// Marks what the server canceled: past `statement_timeout`, or by somebody's `pg_cancel_backend`.
#[derive(Debug)]
struct Canceled;

impl std::fmt::Display for Canceled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SQLSTATE 57014")
    }
}

impl std::error::Error for Canceled {}

/// True when the server gave a statement up before its end.
#[must_use]
pub fn is_canceled(error: &Error) -> bool {
    std::error::Error::source(error).is_some_and(|cause| cause.is::<Canceled>())
}

fn from_server(error: &PgDatabaseError) -> Error {
    if error.code() == "57014" {
        return Error::new(ErrorKind::Busy, describe(error)).with_source(Canceled);
    }
    // undefined_table; whatever language the server speaks, it quotes the name.
    if error.code() == "42P01" && error.message().contains("\"millstream.") {
        return Error::halt(HaltCode::LedgerDamaged, describe(error));
    }
    Error::new(kind_of_sqlstate(error.code(), Side::Replica), describe(error))
}

fn describe(error: &PgDatabaseError) -> String {
    let code = error.code();
    let mut text =
        if quotes_values(code) { format!("PostgreSQL refused a row ({})", meaning(code)) } else { error.message().to_owned() };
    let parts = [
        ("table", error.table().map(|t| format!("{}.{t}", error.schema().unwrap_or_default()))),
        ("column", error.column().map(str::to_owned)),
        ("type", error.data_type().map(str::to_owned)),
        ("constraint", error.constraint().map(str::to_owned)),
    ];
    for (what, name) in parts {
        if let Some(name) = name {
            let _infallible = write!(text, ", {what} {name}");
        }
    }
    let _infallible = write!(text, " (SQLSTATE {code})");
    text
}

fn meaning(code: &str) -> &'static str {
    match code {
        "23502" => "NOT NULL violated",
        "23503" => "foreign key violated",
        "23505" => "unique key violated",
        "23514" => "CHECK violated",
        "23P01" => "exclusion constraint violated",
        "22001" => "value too long",
        "22003" => "number out of range",
        "22P02" => "value not of the column's type",
        "22021" => "bytes not of the database's encoding",
        "P0001" => "exception in a trigger",
        _ if code.starts_with("23") => "constraint violated",
        _ if code.starts_with("P0") => "error in a trigger or function",
        _ => "value refused",
    }
}
