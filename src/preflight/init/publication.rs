//! The publication: its tables one by one, never FOR ALL TABLES or IN SCHEMA, so that a table made tomorrow without a key cannot make
//! the application's statements fail (I7).

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{AssertSqlSafe, Executor, PgConnection};

use super::catalog::{get, oid};
use crate::capture::postgres::publication::{CARRIES, OPTIONS, left_out, mark};
use crate::error::{Error, ErrorKind, Result};
use crate::event::TableName;
use crate::postgres::sql::{Side, classify, quote_ident, quote_table};

/// What stands between the publication as it is and as it should be.
#[derive(Clone, Debug, Default)]
pub struct PublicationPlan {
    /// Statements, in order.
    pub statements: Vec<String>,
    /// Tables that come in.
    pub added: Vec<TableName>,
    /// Tables that go.
    pub removed: Vec<TableName>,
}

/// Compares the publication with the tables wanted. `begun`: a stream reads by it.
///
/// # Errors
/// The server's; [`ErrorKind::Config`] when somebody made it FOR ALL TABLES, altered it, or took it away from a stream that reads by it.
pub async fn plan(source: &mut PgConnection, publication: &str, wanted: &[TableName], begun: bool) -> Result<PublicationPlan> {
    let name = quote_ident(publication);
    let refuse = |what: &str| {
        let message = format!(
            "publication {name} was altered: {what}; what it left out is in no log: stop the daemon, and `millstream teardown` before `millstream init`"
        );
        Error::new(ErrorKind::Config, message)
    };
    let current = read(source, publication).await?;
    if begun && current.as_ref().is_none_or(|current| current.all_tables) {
        return Err(refuse(if current.is_none() { "it is not there" } else { "somebody made it FOR ALL TABLES" }));
    }
    let Some(current) = current else {
        let list = wanted.iter().map(only).collect::<Vec<_>>().join(", ");
        let tables = if wanted.is_empty() { String::new() } else { format!(" FOR TABLE {list}") };
        // One text, one transaction: a publication without its mark is one that somebody made.
        let statement = format!("CREATE PUBLICATION {name}{tables} WITH ({OPTIONS});\n{}", mark(publication));
        return Ok(PublicationPlan { statements: vec![statement], added: wanted.to_vec(), removed: Vec::new() });
    };
    if current.all_tables {
        let message =
            format!("publication {name} is FOR ALL TABLES; Millstream lists its tables one by one: DROP PUBLICATION {name};");
        return Err(Error::new(ErrorKind::Config, message));
    }
    if let Some(what) = altered(source, publication).await?.first() {
        return Err(refuse(what));
    }
    let wanted: BTreeSet<_> = wanted.iter().cloned().collect();
    let added: Vec<_> = wanted.difference(&current.tables).cloned().collect();
    let removed: Vec<_> = current.tables.difference(&wanted).cloned().collect();
    let mut statements = Vec::new();
    if !added.is_empty() {
        statements.push(format!("ALTER PUBLICATION {name} ADD TABLE {}", added.iter().map(only).collect::<Vec<_>>().join(", ")));
    }
    if !removed.is_empty() {
        let list = removed.iter().map(quote_table).collect::<Vec<_>>().join(", ");
        statements.push(format!("ALTER PUBLICATION {name} DROP TABLE {list}"));
    }
    if !statements.is_empty() {
        statements = vec![format!("{};\n{}", statements.join(";\n"), mark(publication))];
    }
    Ok(PublicationPlan { statements, added, removed })
}

/// What a publication leaves out or has left out at some time, one text each.
///
/// # Errors
/// The server's.
pub async fn altered(source: &mut PgConnection, publication: &str) -> Result<Vec<String>> {
    let fail = |e| classify(e, Side::Source);
    let version = "SELECT current_setting('server_version_num')::int8 / 10000";
    let major: i64 = sqlx::query_scalar(version).fetch_one(&mut *source).await.map_err(fail)?;
    let carries: bool = sqlx::query_scalar(CARRIES).fetch_one(&mut *source).await.map_err(fail)?;
    let sql = left_out(publication, u32::try_from(major).unwrap_or(0), carries);
    sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(source).await.map_err(fail)
}

/// ONLY: a parent by plain inheritance would bring its children in with it.
fn only(table: &TableName) -> String {
    format!("ONLY {}", quote_table(table))
}

/// A publication as it stands.
#[derive(Clone, Debug)]
pub struct Publication {
    /// FOR ALL TABLES.
    pub all_tables: bool,
    /// Its tables, without our own, which carries schema changes.
    pub tables: BTreeSet<TableName>,
}

/// Reads a publication; `None` when there is none.
///
/// # Errors
/// The server's.
pub async fn read(source: &mut PgConnection, publication: &str) -> Result<Option<Publication>> {
    let head = sqlx::query("SELECT puballtables FROM pg_catalog.pg_publication WHERE pubname = $1")
        .bind(publication)
        .fetch_optional(&mut *source)
        .await
        .map_err(|e| classify(e, Side::Source))?;
    let Some(head) = head else { return Ok(None) };
    let rows = sqlx::query(
        "SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_publication p \
         JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid JOIN pg_catalog.pg_class c ON c.oid = r.prrelid \
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE p.pubname = $1 AND n.nspname <> 'millstream'",
    )
    .bind(publication)
    .fetch_all(source)
    .await
    .map_err(|e| classify(e, Side::Source))?;
    let tables = rows.iter().map(|row| Ok(TableName::new(get::<String>(row, 0)?, get::<String>(row, 1)?)));
    let tables = tables.collect::<Result<_>>()?;
    Ok(Some(Publication { all_tables: get(&head, 0)?, tables }))
}

/// The tables whose changes a publication lets through, by `pg_class.oid`: leaves of partitioned ones, and also what FOR ALL TABLES or IN SCHEMA brings.
///
/// # Errors
/// The server's.
pub async fn captured(source: &mut PgConnection, publication: &str) -> Result<BTreeMap<u32, TableName>> {
    let rows = sqlx::query(
        "SELECT p.relid::int8, n.nspname::text, c.relname::text FROM pg_catalog.pg_get_publication_tables($1) p \
         JOIN pg_catalog.pg_class c ON c.oid = p.relid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace",
    )
    .bind(publication)
    .fetch_all(source)
    .await
    .map_err(|e| classify(e, Side::Source))?;
    rows.iter().map(|row| Ok((oid(row, 0)?, TableName::new(get::<String>(row, 1)?, get::<String>(row, 2)?)))).collect()
}

/// Runs statements one by one, each a transaction of its own.
///
/// # Errors
/// The server's, with the statement's first line as the place.
pub async fn execute(connection: &mut PgConnection, side: Side, statements: &[String]) -> Result<()> {
    for statement in statements {
        let run = connection.execute(AssertSqlSafe(statement.as_str())).await;
        run.map_err(|e| classify(e, side).context(statement.lines().next().unwrap_or_default().to_owned()))?;
    }
    Ok(())
}
