//! Our own PostgreSQL client against real servers: authentication, TLS, queries and COPY, the replication stream.

mod auth;
mod copy;
mod query;
mod stream;
mod tls;
mod tls_proxy;

use millstream::config::{PgConnect, PgHost, TlsMode};
use millstream::postgres::{Mode, PgClient, Side};

use crate::support::postgres::PgServer;

/// A SQL session with a source.
async fn sql(to: &PgConnect) -> millstream::Result<PgClient> {
    PgClient::connect(to, Mode::Sql, Side::Source).await
}

/// The one value of a query.
async fn value(client: &mut PgClient, query: &str) -> String {
    client.simple_query(query).await.unwrap()[0].get(0).unwrap().to_owned()
}

/// A role over TCP, by password.
fn role(server: &PgServer, user: &str, password: Option<&str>, tls: TlsMode) -> PgConnect {
    PgConnect {
        host: PgHost::Tcp("127.0.0.1".into()),
        user: user.into(),
        password: password.map(Into::into),
        tls,
        ..server.database("postgres").connect()
    }
}
