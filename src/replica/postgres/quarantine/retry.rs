//! `retry`: what is kept is applied, oldest first, in one replica transaction; or nothing of it.

use std::collections::HashSet;
use std::sync::Arc;

use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use super::{account, ended, is_refusal, refusal};
use crate::apply::first_copy::Schemas;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::{Change, Lsn, Position, SchemaId, TransactionHeader, Xid};
use crate::failpoint;
use crate::halt::HaltCode;
use crate::replica::postgres::blame;
use crate::replica::postgres::errors::{SHORT_WAIT, within};
use crate::replica::postgres::ledger::{added, get};
use crate::replica::postgres::quarantine::keep::columns_of;
use crate::replica::postgres::replica::PostgresReplica;

/// What came of it.
pub(super) enum Retried {
    /// They are applied: positions and changes.
    Applied(Vec<(String, u64)>),
    /// It cannot be: why, and what to do. Nothing is changed.
    Refused(String),
}

/// One transaction that is kept.
struct Entry {
    ordinal: i64,
    header: Arc<TransactionHeader>,
    changes: u64,
    /// The source's numbers of its tables that were copied again since, or are gone.
    over: HashSet<u32>,
}

/// Applies what is kept, on a session of its own.
///
/// # Errors
/// The server's, but for refused rows.
pub(super) async fn retry(replica: &mut PostgresReplica) -> Result<Retried> {
    let done = within_transaction(replica).await;
    match done {
        Ok(Retried::Applied(applied)) => Ok(Retried::Applied(applied)),
        Ok(refused) => replica.roll_back().await.map(|()| refused),
        Err(error) if is_refusal(&error) || error.kind() == ErrorKind::Halt(HaltCode::SchemaMismatch) => {
            replica.roll_back().await?;
            Ok(Retried::Refused(error.to_string()))
        }
        Err(error) => Err(error),
    }
}

async fn within_transaction(replica: &mut PostgresReplica) -> Result<Retried> {
    let nobody =
        TransactionHeader { xid: Xid(0), position: Position::Lsn(Lsn(0)), commit_lsn: Lsn(0), commit_time_us: 0, origin: None };
    replica.begin_retry(&Arc::new(nobody)).await?;
    let name = replica.name.clone();
    ended::forget_gone(&mut replica.connection, &name).await?;
    let entries = entries(&mut replica.connection, &name).await?;
    if let Some(why) = obstacle(&mut replica.connection, &name).await? {
        return Ok(Retried::Refused(why));
    }
    let mut applied = Vec::new();
    for entry in &entries {
        let changes = apply(replica, entry).await.map_err(|error| blame::at_transaction(error, &entry.header))?;
        applied.push((entry.header.position.to_string(), changes));
    }
    for sql in [
        "DELETE FROM millstream.quarantined_piece p USING millstream.quarantine q \
         WHERE (p.replica, p.ordinal) = (q.replica, q.ordinal) AND q.replica = $1 AND q.state = 'kept'",
        "UPDATE millstream.quarantine SET state = 'applied', ended_at = clock_timestamp() WHERE replica = $1 AND state = 'kept'",
    ] {
        let query = sqlx::query(sql).bind(&name);
        within(SHORT_WAIT, "ending the accounts", query.execute(&mut replica.connection)).await?;
    }
    refusal::wake(&mut replica.connection, &name).await?;
    failpoint::hit("quarantine.retrying")?;
    replica.commit().await?;
    failpoint::hit("quarantine.retried")?;
    Ok(Retried::Applied(applied))
}

/// What is kept, held to the end of the transaction.
async fn entries(connection: &mut PgConnection, name: &str) -> Result<Vec<Entry>> {
    let query = sqlx::query(
        "SELECT q.ordinal, q.position, q.xid, q.changes, ARRAY(SELECT t.source_oid FROM millstream.quarantined_table t \
           WHERE (t.replica, t.ordinal) = (q.replica, q.ordinal) AND t.ended IS NOT NULL), q.format \
         FROM millstream.quarantine q WHERE q.replica = $1 AND q.state = 'kept' ORDER BY q.ordinal FOR UPDATE OF q",
    )
    .bind(name);
    let rows = within(SHORT_WAIT, "reading what is kept", query.fetch_all(connection)).await?;
    rows.iter()
        .map(|row| {
            let position: Position = get::<String>(row, 1)?.parse()?;
            account::is_readable(&position.to_string(), get(row, 5)?)?;
            let xid = Xid(get::<i64>(row, 2)?.cast_unsigned());
            let header = TransactionHeader { xid, position, commit_lsn: position.lsn()?, commit_time_us: 0, origin: None };
            let over = get::<Vec<i64>>(row, 4)?.into_iter().filter_map(|number| u32::try_from(number).ok()).collect();
            Ok(Entry { ordinal: get(row, 0)?, header: Arc::new(header), changes: get::<i64>(row, 3)?.cast_unsigned(), over })
        })
        .collect::<Result<_>>()
        .at(|| "millstream.quarantine")
}

/// Why it would be wrong to apply what is kept.
async fn obstacle(connection: &mut PgConnection, name: &str) -> Result<Option<String>> {
    // Two entries share rows where a key is in both, or where keys cannot be compared.
    let shared = "SELECT q.position, c.position, coalesce((SELECT m.table_schema || '.' || m.table_name FROM millstream.copied_table m \
           WHERE m.replica = kt.replica AND m.source_oid = kt.source_oid LIMIT 1), kt.table_schema || '.' || kt.table_name) FROM millstream.quarantine q \
         JOIN millstream.quarantined_table kt USING (replica, ordinal) \
         JOIN millstream.quarantined_table ct ON ct.replica = kt.replica AND ct.source_oid = kt.source_oid AND ct.ordinal > kt.ordinal \
         JOIN millstream.quarantine c ON (c.replica, c.ordinal) = (ct.replica, ct.ordinal) \
         WHERE q.replica = $1 AND q.state = 'kept' AND c.state = 'cleared' AND kt.ended IS NULL AND ct.ended IS NULL \
           AND (kt.whole IS NOT NULL OR ct.whole IS NOT NULL OR kt.key_columns <> ct.key_columns OR EXISTS ( \
             SELECT FROM millstream.quarantined_key a JOIN millstream.quarantined_key b ON a.key = b.key \
             WHERE (a.replica, a.ordinal, a.source_oid) = (kt.replica, kt.ordinal, kt.source_oid) \
               AND (b.replica, b.ordinal, b.source_oid) = (ct.replica, ct.ordinal, ct.source_oid))) ORDER BY q.ordinal LIMIT 1";
    let query = sqlx::query(shared).bind(name);
    if let Some(row) = within(SHORT_WAIT, "comparing what is kept", query.fetch_optional(&mut *connection)).await? {
        let (kept, cleared, table): (String, String, String) = (get(&row, 0)?, get(&row, 1)?, get(&row, 2)?);
        return Ok(Some(format!(
            "the transaction at {kept} changes rows of {table} that a later one changes too ({cleared}), and that one was cleared; applied now it would undo \
             what stands there for it: `millstream table recopy {name} {table}`, or clear {kept} as well"
        )));
    }
    let sql = format!(
        "SELECT coalesce(c.table_schema || '.' || c.table_name, t.table_schema || '.' || t.table_name), c.replica IS NOT DISTINCT FROM $1 AND coalesce(c.state = 'live', false), \
           t.replica_columns IS NOT DISTINCT FROM {} \
         FROM millstream.quarantined_table t JOIN millstream.quarantine q USING (replica, ordinal) \
         LEFT JOIN millstream.copied_table c ON c.replica IN ($1, $2) AND (c.source_oid = t.source_oid \
           OR (c.source_oid IS NULL AND (c.table_schema, c.table_name) = (t.table_schema, t.table_name))) \
         WHERE q.replica = $1 AND q.state = 'kept' AND t.ended IS NULL ORDER BY q.ordinal, 1",
        columns_of("pg_catalog.to_regclass(pg_catalog.format('%I.%I', c.table_schema, c.table_name))")
    );
    let query = sqlx::query(AssertSqlSafe(sql)).bind(name).bind(added(name));
    for row in within(SHORT_WAIT, "looking at the tables of what is kept", query.fetch_all(connection)).await? {
        let table: String = row.get(0);
        let (live, same): (bool, bool) = (get(&row, 1)?, get(&row, 2)?);
        if !live {
            return Ok(Some(format!(
                "{table} is being copied, and has its part once it is live (`millstream status`); try again then"
            )));
        }
        if !same {
            return Ok(Some(format!(
                "the columns of {table} are others than they were when the transaction was kept, and what they were filled with is not in it: \
                 `millstream table recopy {name} {table}`"
            )));
        }
    }
    Ok(None)
}

/// Gives how many changes were applied.
async fn apply(replica: &mut PostgresReplica, entry: &Entry) -> Result<u64> {
    let name = replica.name.clone();
    let schemas = account::versions(&mut replica.connection, &name, entry.ordinal).await?;
    let (mut applied, mut found, mut number) = (0, 0, 0);
    while let Some(changes) = account::piece(&mut replica.connection, &name, entry.ordinal, number).await? {
        found += changes.len() as u64;
        let changes = standing(changes, &entry.over, &schemas);
        replica.piece(&changes, &schemas).await?;
        applied += changes.len() as u64;
        number += 1;
    }
    if found != entry.changes {
        let message = format!(
            "millstream.quarantined_piece has {found} changes of the transaction, and its account says {}",
            entry.changes
        );
        return Err(Error::halt(HaltCode::LedgerDamaged, message));
    }
    Ok(applied)
}

/// Without those of tables that were copied again since, or are gone.
fn standing(changes: Vec<Change>, over: &HashSet<u32>, schemas: &Schemas) -> Vec<Change> {
    if over.is_empty() {
        return changes;
    }
    let is_over = |id: &SchemaId| schemas.get(id).is_some_and(|schema| over.contains(&schema.source_oid));
    let keep = |change: Change| match change {
        Change::Insert { table, .. } | Change::Update { table, .. } | Change::Delete { table, .. } if is_over(&table) => None,
        Change::Truncate { mut tables, cascade, restart_identity } => {
            tables.retain(|table| !is_over(table));
            (!tables.is_empty()).then_some(Change::Truncate { tables, cascade, restart_identity })
        }
        change => Some(change),
    };
    changes.into_iter().filter_map(keep).collect()
}
