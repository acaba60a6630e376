//! `millstream table recopy`: asks the daemon, through the replica's ledger, to copy a live table again.
//!
//! The word is a row's column, so it outlives daemon and server, and whoever applies to the replica finds it within a second. What would make
//! the copy impossible, or the others halt on its way, is refused before.

use sqlx::{Connection, Executor, PgConnection};

use crate::config::ReplicaConfig;
use crate::error::{Error, Result};
use crate::event::TableName;
use crate::postgres::sql::{Side, classify, connect, quote_table};
use crate::replica::postgres::ledger::{self, CopyState, added};
use crate::replica::postgres::{added as rows, errors, lock};

const APPLICATION: &str = "millstream table";
/// Tables named where there may be many.
const SHOWN: usize = 5;

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is in the ledger now.
    Asked {
        /// What it waits for, where that is not the next second.
        note: Option<String>,
    },
    /// It cannot be: why, and what to do.
    Refused(String),
}

/// Asks.
///
/// # Errors
/// The server's; a halt with `not_initialized` without a ledger, [`crate::ErrorKind::Busy`] for that of an older Millstream.
pub async fn ask(config: &ReplicaConfig, table: &TableName) -> Result<Verdict> {
    let name = &config.name;
    let mut replica = connect(&config.connect, Side::Replica, APPLICATION).await?;
    ledger::load(&mut replica, name).await?;
    ledger::is_of_this_version(&mut replica).await?;
    let may_switch = may_switch_roles(&mut replica).await?;
    let mut transaction = replica.begin().await.map_err(fail)?;
    if let Some(why) = refusal(&mut transaction, name, table).await? {
        return Ok(Verdict::Refused(why));
    }
    if let Some(why) = foreign_keys(&mut transaction, name, table, may_switch).await? {
        return Ok(Verdict::Refused(why));
    }
    sqlx::query(
        "UPDATE millstream.copied_table SET recopy_asked_at = clock_timestamp() WHERE replica = $1 AND table_schema = $2 AND table_name = $3",
    )
    .bind(name)
    .bind(&table.schema)
    .bind(&table.name)
    .execute(&mut *transaction)
    .await
    .map_err(fail)?;
    transaction.commit().await.map_err(fail)?;
    let note = if !rows::rows(&mut replica, name).await?.live {
        Some("it begins when the first copy of other tables is complete".to_owned())
    } else if lock::holder(&mut replica, name).await?.is_none() {
        Some("nobody applies to this replica at the moment (paused, between two attempts of a halt, or no daemon); it begins once somebody does".to_owned())
    } else {
        None
    };
    Ok(Verdict::Asked { note })
}

/// Why a table cannot be copied again; what the ledger has of it is held to the transaction's end.
async fn refusal(transaction: &mut PgConnection, name: &str, table: &TableName) -> Result<Option<String>> {
    let row = sqlx::query_as::<_, (String, bool, bool, Option<String>, bool)>(
        "SELECT state, replica <> $1, live_after_lsn IS NOT NULL, recopy_asked_at::timestamptz(0)::text, pg_catalog.to_regclass($5) IS NOT NULL \
         FROM millstream.copied_table WHERE replica IN ($1, $2) AND table_schema = $3 AND table_name = $4 FOR UPDATE",
    )
    .bind(name)
    .bind(added(name))
    .bind(&table.schema)
    .bind(&table.name)
    .bind(quote_table(table));
    let Some((state, apart, leaves, asked_at, there)) = row.fetch_optional(&mut *transaction).await.map_err(fail)? else {
        return unknown(transaction, name, table).await.map(Some);
    };
    let state = CopyState::parse(&state)?;
    Ok(if state == CopyState::Leaving || (state == CopyState::Live && leaves) {
        Some(format!("{table} is leaving replica {name}: the source's tables do not name it any more"))
    } else if apart || state != CopyState::Live {
        Some(format!("{table} is being copied already; `millstream status` shows how far it is"))
    } else if let Some(when) = asked_at {
        Some(format!("{table} is to be copied again already: somebody asked for it at {when}"))
    } else if !there {
        Some(format!("the replica has no table {table}; create it there as the source has it, then ask again"))
    } else {
        None
    })
}

/// A table that the ledger does not have.
async fn unknown(transaction: &mut PgConnection, name: &str, table: &TableName) -> Result<String> {
    let known = |sql: &'static str| sqlx::query_scalar::<_, String>(sql).bind(name).bind(added(name));
    let leaves = known(
        "SELECT t.table_schema || '.' || t.table_name FROM millstream.copied_table t JOIN pg_catalog.pg_partition_tree(pg_catalog.to_regclass($3)) p \
           ON p.relid = pg_catalog.to_regclass(pg_catalog.format('%I.%I', t.table_schema, t.table_name)) \
         WHERE t.replica IN ($1, $2) ORDER BY 1",
    )
    .bind(quote_table(table));
    let leaves = leaves.fetch_all(&mut *transaction).await.map_err(fail)?;
    if !leaves.is_empty() {
        return Ok(format!("{table} is partitioned, and its partitions are copied one by one: {}", listed(&leaves)));
    }
    let all = known("SELECT table_schema || '.' || table_name FROM millstream.copied_table WHERE replica IN ($1, $2) ORDER BY 1");
    let all = all.fetch_all(&mut *transaction).await.map_err(fail)?;
    Ok(format!("replica {name} has no table {table}; its tables are {}", listed(&all)))
}

fn listed(names: &[String]) -> String {
    let more = names.len().saturating_sub(SHOWN);
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}

/// While a table is copied again its rows and those of the others are of different moments: where foreign keys between them are enforced, the others
/// halt.
async fn foreign_keys(transaction: &mut PgConnection, name: &str, table: &TableName, may_switch: bool) -> Result<Option<String>> {
    let keys = sqlx::query_as::<_, (String, String)>(
        "WITH RECURSIVE key AS ( \
           SELECT k.oid, k.conparentid FROM pg_catalog.pg_constraint k WHERE k.contype = 'f' AND pg_catalog.to_regclass($1) IN (k.conrelid, k.confrelid) \
           UNION SELECT k.oid, k.conparentid FROM key JOIN pg_catalog.pg_constraint k ON k.oid = key.conparentid) \
         SELECT pg_catalog.format('ALTER TABLE %s DROP CONSTRAINT %I', k.conrelid::pg_catalog.regclass, k.conname), \
           pg_catalog.format('ALTER TABLE %s ADD CONSTRAINT %I %s', k.conrelid::pg_catalog.regclass, k.conname, pg_catalog.pg_get_constraintdef(k.oid)) \
         FROM key JOIN pg_catalog.pg_constraint k ON k.oid = key.oid WHERE key.conparentid = 0 ORDER BY 1",
    )
    .bind(quote_table(table))
    .fetch_all(&mut *transaction)
    .await
    .map_err(fail)?;
    if keys.is_empty() {
        return Ok(None);
    }
    let deferrable = "SELECT EXISTS (SELECT FROM millstream.copied_table t JOIN pg_catalog.pg_index i \
         ON i.indrelid = pg_catalog.to_regclass(pg_catalog.format('%I.%I', t.table_schema, t.table_name)) \
         WHERE t.replica IN ($1, $2) AND NOT i.indimmediate)";
    let deferrable =
        sqlx::query_scalar(deferrable).bind(name).bind(added(name)).fetch_one(&mut *transaction).await.map_err(fail)?;
    let why = match (may_switch, deferrable) {
        (false, _) => "this role may not set session_replication_role",
        (true, true) => "tables with deferrable keys are written under the ordinary role",
        (true, false) => return Ok(None),
    };
    let (drop, add): (Vec<_>, Vec<_>) = keys.into_iter().unzip();
    Ok(Some(format!(
        "foreign keys of {table}, or to it, are enforced on this replica ({why}), and while it is copied again its rows are older than those of the \
         other tables. Drop them there ({};), ask again, and add them once it is live ({};)",
        drop.join("; "),
        add.join("; ")
    )))
}

/// Whether triggers and foreign keys can be kept from firing.
async fn may_switch_roles(replica: &mut PgConnection) -> Result<bool> {
    replica.execute("BEGIN").await.map_err(fail)?;
    let set = replica.execute("SET LOCAL session_replication_role = replica").await;
    replica.execute("ROLLBACK").await.map_err(fail)?;
    match set {
        Ok(_) => Ok(true),
        Err(error) if errors::sqlstate(&error) == Some("42501") => Ok(false),
        Err(error) => Err(fail(error)),
    }
}

fn fail(error: sqlx::Error) -> Error {
    classify(error, Side::Replica)
}
