//! Primary keys of tables that are loaded in many chunks: taken off before the first chunk, built once when the last is loaded, before the
//! replay needs them to find rows. Sorting once costs a third of what keeping the index in order row by row does.
//!
//! Chunks do not overlap and a key lies in one chunk, so the key holds when it is built, whatever moments the chunks are of.
//!
//! ```text
//!  plan stored, key taken off, its statement in the ledger   (one replica transaction)
//!  chunks …
//!  key built, its statement out of the ledger                (one replica transaction, each table)
//! ```
//!
//! A table that is restarted in between keeps its key off; one that is restarted later loses it again with its next plan.

use futures::{StreamExt, TryStreamExt};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row};

use super::wait::{backend, watched};
use super::{PostgresCopy, connect_replica};
use crate::error::{Context, Result};
use crate::event::{ApplyEpoch, TableName};
use crate::failpoint;
use crate::postgres::sql::{Side, classify, quote_ident, quote_table};
use crate::preflight::init::{self, Deferred, DeferredKind};
use crate::replica::postgres::ledger::hold_epoch;

/// The primary key of a table, when it can be taken off and put back as it was: ours to change, of an ordinary table alone, nothing built on it, and nothing
/// about it that its definition does not say.
const KEY: &str = "SELECT k.conname::text, pg_catalog.pg_get_constraintdef(k.oid) FROM pg_catalog.pg_constraint k \
    JOIN pg_catalog.pg_class c ON c.oid = k.conrelid JOIN pg_catalog.pg_class i ON i.oid = k.conindid \
    JOIN pg_catalog.pg_index x ON x.indexrelid = i.oid \
    WHERE c.oid = pg_catalog.to_regclass($1) AND k.contype = 'p' AND c.relkind = 'r' AND NOT c.relispartition \
      AND pg_catalog.pg_has_role(c.relowner, 'USAGE') AND pg_catalog.has_schema_privilege(c.relnamespace, 'CREATE') AND c.relreplident <> 'i' AND NOT x.indisclustered \
      AND i.reloptions IS NULL AND i.reltablespace = 0 \
      AND NOT EXISTS (SELECT FROM pg_catalog.pg_inherits h WHERE c.oid IN (h.inhrelid, h.inhparent)) \
      AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint f WHERE f.contype = 'f' AND f.confrelid = c.oid) \
      AND NOT EXISTS (SELECT FROM pg_catalog.pg_publication_rel p WHERE p.prrelid = c.oid) \
      AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.deptype = 'n' AND d.refobjid IN (k.oid, i.oid)) \
      AND NOT EXISTS (SELECT FROM pg_catalog.pg_description d WHERE d.objoid IN (k.oid, i.oid))";

/// Takes a table's key off, in the transaction that stores its plan.
///
/// # Errors
/// The server's.
pub(super) async fn take_off(transaction: &mut PgConnection, name: &str, table: &TableName) -> Result<()> {
    let quoted = quote_table(table);
    let Some(row) = sqlx::query(KEY).bind(&quoted).fetch_optional(&mut *transaction).await.map_err(fail)? else { return Ok(()) };
    let (key, definition): (String, String) = (row.get(0), row.get(1));
    let key = quote_ident(&key);
    transaction.execute(AssertSqlSafe(format!("ALTER TABLE {quoted} DROP CONSTRAINT {key}"))).await.map_err(fail)?;
    let statement = format!("ALTER TABLE {quoted} ADD CONSTRAINT {key} {definition}");
    let later = Deferred { kind: DeferredKind::Key, table: table.clone(), statement };
    init::put_off(transaction, name, &[later]).await.map_err(fail)
}

/// Builds every key that was taken off. Every chunk of their tables is loaded.
///
/// # Errors
/// The server's; what is built already stays.
pub(super) async fn build_all(copy: &PostgresCopy, replica: &mut PgConnection, epoch: ApplyEpoch) -> Result<()> {
    let rows = sqlx::query(
        "SELECT ordinal, statement FROM millstream.deferred_ddl WHERE replica = $1 AND kind = 'key' ORDER BY ordinal",
    )
    .bind(&copy.replica.name)
    .fetch_all(replica)
    .await
    .map_err(fail)?;
    let keys: Vec<(i32, String)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    let all = keys.len() as u64;
    if all == 0 {
        return Ok(());
    }
    copy.meter.building(0, all);
    let builds = keys.into_iter().map(|(ordinal, statement)| build(copy, epoch, ordinal, statement));
    let mut builds = futures::stream::iter(builds).buffer_unordered(copy.source.copy_workers.max(1));
    let mut built = 0;
    while builds.try_next().await?.is_some() {
        built += 1;
        copy.meter.building(built, all);
    }
    Ok(())
}

async fn build(copy: &PostgresCopy, epoch: ApplyEpoch, ordinal: i32, statement: String) -> Result<()> {
    let name = &copy.replica.name;
    let mut replica = connect_replica(&copy.replica).await?;
    let backend = backend(&mut replica).await?;
    let work = async move {
        let mut transaction = replica.begin().await.map_err(fail)?;
        hold_epoch(&mut transaction, name, epoch).await?;
        let run = transaction.execute(AssertSqlSafe(statement.as_str())).await;
        run.map_err(fail).at(|| format!("building what was put off: {statement}"))?;
        sqlx::query("DELETE FROM millstream.deferred_ddl WHERE replica = $1 AND ordinal = $2")
            .bind(name)
            .bind(ordinal)
            .execute(&mut *transaction)
            .await
            .map_err(fail)?;
        failpoint::hit("copy.finishing_key")?;
        transaction.commit().await.map_err(fail)
    };
    watched(&copy.replica.connect, backend, work).await
}

fn fail(error: sqlx::Error) -> crate::error::Error {
    classify(error, Side::Replica)
}
