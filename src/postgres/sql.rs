//! Ordinary SQL connections through sqlx.

use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};

pub use super::error::from_sqlx as classify;
pub use super::quote::{quote_ident, quote_literal, quote_table};
use super::refusal;
pub use super::sqlstate::{Side, kind_of_sqlstate};
use super::tuning;
use crate::config::{PgConnect, PgHost};
use crate::error::{Error, ErrorKind, Result};

/// sqlx's options for a configured server, with a name for `pg_stat_activity`.
#[must_use]
pub fn options(connect: &PgConnect, application_name: &str) -> PgConnectOptions {
    connect.sqlx_options().application_name(application_name)
}

/// Opens a connection; its session is set up by [`super::session`].
///
/// # Errors
/// As [`classify`], told better where [`super::Refusal`] knows more, with the server's address as the place; [`ErrorKind::Connection`] past
/// `connect_timeout`.
pub async fn connect(connect: &PgConnect, side: Side, application_name: &str) -> Result<PgConnection> {
    let limit = connect.connect_timeout.max(Duration::from_secs(1));
    match tokio::time::timeout(limit, PgConnection::connect_with(&options(connect, application_name))).await {
        Ok(Ok(connection)) => {
            if let PgHost::Tcp(_) = connect.host {
                tuning::tune_those_to(connect.port);
            }
            Ok(connection)
        }
        Ok(Err(error)) => Err(refusal::explain(classify(error, side), connect).await.context(connect.place())),
        Err(_) => {
            let message = format!("no answer within {} s; is it PostgreSQL that listens there?", limit.as_secs());
            Err(Error::new(ErrorKind::Connection, message).context(connect.place()))
        }
    }
}
