//! What a first copy had put off, and a teardown found not built: keys and indexes that no catalog has any more. Their statements stay on the replica, in
//! one table of schema `millstream`, until the next `init` of these tables takes them over.
//!
//! ```text
//!  ledger's deferred_ddl ── teardown: the ledger goes, in one transaction ──► put_off ── init: ledger, tables, in one transaction ──► deferred_ddl
//! ```
//!
//! A table that is not there any more has nothing to be put back on; one that is made anew comes with what the source has.

use sqlx::{PgConnection, Row};

use super::init::definition::{ConstraintDefinition, TableDefinition};
use super::init::{Deferred, DeferredKind, ReplicaPlan, ddl};
use crate::error::{Error, Result};
use crate::event::TableName;
use crate::postgres::sql::{Side, classify, quote_ident, quote_table};
use crate::replica::postgres::ledger;

const MAKE: &str = "CREATE TABLE IF NOT EXISTS millstream.put_off (ordinal bigint GENERATED ALWAYS AS IDENTITY, table_schema text NOT NULL, table_name text NOT NULL, \
     kind text NOT NULL, statement text NOT NULL); \
     COMMENT ON TABLE millstream.put_off IS 'What a first copy put off and did not come to build. The next millstream init of these tables takes it over; without one, \
     run the statements and drop this table.'";
const THERE: &str = "SELECT EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
     WHERE n.nspname = 'millstream' AND c.relname = 'put_off' AND pg_catalog.has_schema_privilege(n.oid, 'USAGE'))";
const PRIMARY_KEY: &str = " PRIMARY KEY ";

/// Keeps what of a replica's ledger is not built, for tables that are there. In the transaction that takes the ledger away.
///
/// # Errors
/// The server's.
pub(super) async fn keep(replica: &mut PgConnection, name: &str) -> Result<Vec<String>> {
    let left = "FROM millstream.deferred_ddl d WHERE d.replica IN ($1, $2) AND NOT d.done \
         AND pg_catalog.to_regclass(pg_catalog.format('%I.%I', d.table_schema, d.table_name)) IS NOT NULL";
    let some: bool = sqlx::query_scalar(sqlx::AssertSqlSafe(format!("SELECT EXISTS (SELECT {left})")))
        .bind(name)
        .bind(ledger::added(name))
        .fetch_one(&mut *replica)
        .await
        .map_err(fail)?;
    if !some {
        return Ok(Vec::new());
    }
    sqlx::raw_sql(MAKE).execute(&mut *replica).await.map_err(fail)?;
    let keep = format!(
        "INSERT INTO millstream.put_off (table_schema, table_name, kind, statement) SELECT d.table_schema, d.table_name, d.kind, d.statement {left} \
         AND NOT EXISTS (SELECT FROM millstream.put_off p WHERE p.statement = d.statement) ORDER BY d.replica, d.ordinal RETURNING statement"
    );
    sqlx::query_scalar(sqlx::AssertSqlSafe(keep)).bind(name).bind(ledger::added(name)).fetch_all(replica).await.map_err(fail)
}

/// Statements that are kept, by anybody's teardown.
///
/// # Errors
/// The server's.
pub(crate) async fn read(replica: &mut PgConnection) -> Result<Vec<Deferred>> {
    let there: bool = sqlx::query_scalar(THERE).fetch_one(&mut *replica).await.map_err(fail)?;
    if !there {
        return Ok(Vec::new());
    }
    let rows = sqlx::query("SELECT table_schema, table_name, kind, statement FROM millstream.put_off ORDER BY ordinal")
        .fetch_all(replica)
        .await
        .map_err(fail)?;
    let deferred = |row: &sqlx::postgres::PgRow| Deferred {
        kind: DeferredKind::parse(row.get(2)),
        table: TableName::new(row.get::<String, _>(0), row.get::<String, _>(1)),
        statement: row.get(3),
    };
    Ok(rows.iter().map(deferred).collect())
}

/// The table as it is once its own primary key is back.
pub(crate) fn with_key(found: &TableDefinition, kept: &[Deferred]) -> TableDefinition {
    let mut found = found.clone();
    if let Some((statement, columns)) = key_of(&found, kept) {
        let text = format!("{}{columns}", PRIMARY_KEY.trim_start());
        let name = statement.split(PRIMARY_KEY).next().unwrap_or_default().to_owned();
        let key = ConstraintDefinition { name, kind: 'p', text, from_parent: false, finds_rows: true, refers_to: None };
        found.constraints.push(key);
    }
    found
}

/// The kept statement of a primary key that the table lacks, and what the key is over.
fn key_of<'a>(found: &TableDefinition, kept: &'a [Deferred]) -> Option<(&'a str, &'a str)> {
    let lacks = found.constraints.iter().all(|key| key.kind != 'p');
    let key = kept.iter().find(|later| lacks && later.table == found.table && later.kind == DeferredKind::Key)?;
    key.statement.rsplit_once(PRIMARY_KEY).map(|(_, columns)| (key.statement.as_str(), columns))
}

/// Takes over what is kept of a table that is empty: its primary key comes back at once, for the copy to take off again; the rest is built when the copy
/// has caught up, as it was going to be. What somebody has built meanwhile is there already.
pub(crate) fn take_over(found: &TableDefinition, kept: &[Deferred], plan: &mut ReplicaPlan) {
    plan.statements.extend(key_of(found, kept).map(|(statement, _)| statement.to_owned()));
    let (there, _) = ddl::deferred(found, |_| true);
    let mine = || kept.iter().filter(|later| later.table == found.table);
    let rest = mine().filter(|later| !matches!(later.kind, DeferredKind::Key | DeferredKind::Validate));
    plan.deferred.extend(rest.filter(|later| there.iter().all(|t| t.statement != later.statement)).cloned());
    // Made without reading the table, and not read since: made whole this time.
    for key in found.constraints.iter().filter(|key| key.kind == 'f') {
        let validate = format!("ALTER TABLE {} VALIDATE CONSTRAINT {}", quote_table(&found.table), quote_ident(&key.name));
        if mine().any(|later| later.kind == DeferredKind::Validate && later.statement == validate) {
            let made =
                format!("ALTER TABLE {} ADD CONSTRAINT {} {}", quote_table(&found.table), quote_ident(&key.name), key.text);
            for later in plan.deferred.iter_mut().filter(|later| later.statement == made) {
                later.statement = made.trim_end_matches(" NOT VALID").to_owned();
            }
        }
    }
}

/// Forgets what was taken over, or is no longer to be put back on anything. In the transaction that writes the ledger.
///
/// # Errors
/// The server's.
pub(crate) async fn forget(replica: &mut PgConnection, tables: &[TableName]) -> Result<(), sqlx::Error> {
    let there: bool = sqlx::query_scalar(THERE).fetch_one(&mut *replica).await?;
    if !there {
        return Ok(());
    }
    let (schemas, names): (Vec<&str>, Vec<&str>) = tables.iter().map(|t| (t.schema.as_str(), t.name.as_str())).unzip();
    sqlx::query(
        "DELETE FROM millstream.put_off p USING unnest($1::text[], $2::text[]) u(s, t) WHERE p.table_schema = u.s AND p.table_name = u.t",
    )
    .bind(schemas)
    .bind(names)
    .execute(&mut *replica)
    .await?;
    let left: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM millstream.put_off)").fetch_one(&mut *replica).await?;
    if !left {
        sqlx::query("DROP TABLE millstream.put_off").execute(replica).await?;
    }
    Ok(())
}

fn fail(error: sqlx::Error) -> Error {
    classify(error, Side::Replica)
}
