//! Plain SQL with every value as text, outside Millstream's own code.

use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgRow};
use sqlx::{AssertSqlSafe, Connection, Executor, Row, ValueRef};

/// A row with each value as the server prints it.
pub type TextRow = Vec<Option<String>>;

/// Runs statements over any connection; the last result's rows as text.
pub async fn query<'c, E>(connection: E, sql: &str) -> Result<Vec<TextRow>, sqlx::Error>
where
    E: Executor<'c, Database = sqlx::Postgres>,
{
    // The simple protocol: several statements, text results.
    let rows = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).fetch_all(connection).await?;
    Ok(rows.iter().map(text_row).collect())
}

fn text_row(row: &PgRow) -> TextRow {
    (0..row.len())
        .map(|index| {
            let value = row.try_get_raw(index).expect("a column");
            (!value.is_null()).then(|| value.as_str().expect("text format").to_owned())
        })
        .collect()
}

/// A new connection, with the wish to see it fail.
pub async fn connect(options: &PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
    PgConnection::connect_with(options).await
}

/// Statements that must work.
#[track_caller]
pub fn execute<'a>(pool: &'a PgPool, sql: &'a str) -> impl Future<Output = ()> + 'a {
    let place = std::panic::Location::caller();
    async move {
        if let Err(e) = query(pool, sql).await {
            panic!("{place}: {e}\n{sql}");
        }
    }
}

/// The first value of the first row, which must be there.
#[track_caller]
pub fn value<'a>(pool: &'a PgPool, sql: &'a str) -> impl Future<Output = String> + 'a {
    let place = std::panic::Location::caller();
    async move {
        let rows = query(pool, sql).await.unwrap_or_else(|e| panic!("{place}: {e}\n{sql}"));
        rows.into_iter()
            .next()
            .and_then(|row| row.into_iter().next().flatten())
            .unwrap_or_else(|| panic!("{place}: no value\n{sql}"))
    }
}

/// An identifier in SQL.
pub fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
