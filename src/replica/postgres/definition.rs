//! Whether the tables that were written to are the ones that were meant.
//!
//! Statements go by names, and somebody may rename, replace or alter a table of the replica at any moment, under a session that has
//! read its catalog. What a transaction wrote to stays as it is until the transaction ends: its ROW EXCLUSIVE lock keeps every ALTER,
//! DROP and RENAME out. So one look behind the writes and before COMMIT is enough: where each name still means the relation that was
//! fitted, defined as it was then, the rows went there; where it does not, everything is rolled back and read anew.
//!
//! A schema is not locked by those who use what is in it: one that is renamed away and back around one statement is not seen. Its row's `xmin` would tell, and
//! every GRANT on the schema as well: a huge transaction would begin anew with each. For the same reason no other row's `xmin` counts, but what was read of it.
//!
//! Rejected: reading definitions again after some minutes (rows went into another table until then); a look before the writes with
//! LOCK TABLE (it says nothing of schemas, and takes locks in another order than statements do); the server's own invalidations,
//! which no client sees.

use sqlx::{AssertSqlSafe, PgConnection};

use super::errors::{SHORT_WAIT, within};
use super::plan::{Tables, Work, table};
use super::tables::Table;
use crate::apply::runs::Ordered;
use crate::error::{Error, ErrorKind, Result};

/// SQL of a number that another definition of table `c` in schema `n` does not have: columns, unique indexes, triggers (and with them foreign
/// keys, on both sides), row-level security.
///
/// What a transaction of ours does by itself leaves it alone (TRUNCATE gives `pg_class` new values and may touch `pg_index`), and what others may do beside
/// it: statistics, grants, defaults, indexes that are being built.
pub(super) const DEFINITION: &str = "pg_catalog.hashtextextended(ROW(n.oid, c.relkind, c.relrowsecurity, c.relforcerowsecurity, \
    ARRAY(SELECT ROW(a.attnum, a.attname, a.atttypid, a.atttypmod, a.attnotnull, a.atthasdef, a.attidentity, a.attgenerated, a.attcollation, \
                     a.attisdropped)::text \
          FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 ORDER BY a.attnum), \
    ARRAY(SELECT ROW(i.indexrelid, i.indimmediate)::text FROM pg_catalog.pg_index i \
          WHERE i.indrelid = c.oid AND (i.indisunique OR i.indisexclusion) AND i.indisready ORDER BY i.indexrelid), \
    ARRAY(SELECT ROW(t.oid, t.tgenabled, t.tgtype)::text FROM pg_catalog.pg_trigger t WHERE t.tgrelid = c.oid ORDER BY t.oid))::text COLLATE \"C\", 0)";

/// After the work was carried out, in its transaction: every table of it is what it was fitted to. Prepared once; takes the server about 0.1 ms for each
/// table.
///
/// # Errors
/// [`ErrorKind::Busy`] when one is not: the transaction must be rolled back, and its tables read anew; the server's.
pub(super) async fn still_meant(connection: &mut PgConnection, work: &[Work<'_>], tables: &Tables) -> Result<()> {
    let touched = touched(work, tables)?;
    if touched.is_empty() {
        return Ok(());
    }
    let sql = format!(
        "SELECT u.n FROM unnest($1, $2, $3, $4) WITH ORDINALITY u(s, t, o, d, n) WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_class c \
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.oid = u.o::oid AND c.relname = u.t AND n.nspname = u.s AND {DEFINITION} = u.d) ORDER BY u.n LIMIT 1"
    );
    let query = sqlx::query_scalar::<_, i64>(AssertSqlSafe(sql))
        .bind(touched.iter().map(|table| table.place.schema.as_str()).collect::<Vec<_>>())
        .bind(touched.iter().map(|table| table.place.name.as_str()).collect::<Vec<_>>())
        .bind(touched.iter().map(|table| table.relation).collect::<Vec<_>>())
        .bind(touched.iter().map(|table| table.definition).collect::<Vec<_>>());
    let other = within(SHORT_WAIT, "looking at what was written to", query.fetch_optional(connection)).await?;
    let Some(table) = other.and_then(|n| touched.get(usize::try_from(n - 1).ok()?)) else { return Ok(()) };
    let message =
        format!("table {} was renamed, replaced or altered on the replica while it was written to; it is read anew", table.place);
    Err(Error::new(ErrorKind::Busy, message))
}

/// Each table once.
fn touched<'t>(work: &'t [Work<'_>], tables: &'t Tables) -> Result<Vec<&'t Table>> {
    let mut touched: Vec<&Table> = Vec::new();
    let mut known = std::collections::HashSet::new();
    let mut last = None;
    for item in work {
        let ids = match item {
            Work::Net(table, _) => std::slice::from_ref(&table.schema.id),
            Work::Ordered(Ordered::Run(run)) => std::slice::from_ref(&run.table),
            Work::Ordered(Ordered::Truncate { tables, .. }) => tables,
        };
        for &id in ids.iter().filter(|id| last != Some(**id)) {
            let table = table(tables, id)?;
            if known.insert(table.relation) {
                touched.push(table);
            }
        }
        last = ids.last().copied();
    }
    Ok(touched)
}
