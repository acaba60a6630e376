//! Reading what is in quarantine, and was: the accounts, and what is kept of one.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use super::keys::Key;
use super::refusal::STANDS;
use crate::apply::first_copy::Schemas;
use crate::apply::quarantine::{Account, KeptState, KeptTable, Look, Quarantine};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::{Change, ChangeReader, FORMAT_VERSION, SchemaId, TableSchema};
use crate::halt::HaltCode;
use crate::replica::postgres::errors::{SHORT_WAIT, within};
use crate::replica::postgres::ledger::get;

/// Keys of one table shown in `status`.
pub const SHOWN_KEYS: i64 = 20;
/// A time as RFC 3339, in UTC.
const RFC3339: &str = "'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'";

/// What a look saw. The next one reads the accounts only where they are others since.
#[derive(Debug, Default)]
pub struct Seen {
    stamp: String,
    quarantine: Arc<Quarantine>,
}

/// The accounts of a replica with so many keys of each table; and whether there is something to do at once.
///
/// # Errors
/// The server's; a halt with `ledger_damaged`.
pub async fn look(connection: &mut PgConnection, name: &str, keys: i64, seen: &mut Seen) -> Result<Look> {
    // Accounts and their parts come and end, and nothing else of them changes.
    let sql = format!(
        "SELECT coalesce((SELECT {STANDS} AND (f.wake OR (f.ordered_at IS NOT NULL AND f.cannot_be_kept IS NULL)) \
           FROM millstream.refused f JOIN millstream.replica r ON r.name = f.replica WHERE f.replica = $1), false), \
         coalesce((SELECT pg_catalog.concat_ws(' ', pg_catalog.count(*), pg_catalog.max(q.kept_at), pg_catalog.max(q.ended_at), (SELECT pg_catalog.concat_ws(' ', \
             pg_catalog.count(t.ended_at), pg_catalog.max(t.ended_at)) FROM millstream.quarantined_table t WHERE t.replica = $1)) \
           FROM millstream.quarantine q WHERE q.replica = $1 HAVING pg_catalog.count(*) > 0), '')"
    );
    let query = sqlx::query_as::<_, (bool, String)>(AssertSqlSafe(sql)).bind(name);
    let (due, stamp) = within(SHORT_WAIT, "looking for what is in quarantine", query.fetch_one(&mut *connection)).await?;
    if stamp != seen.stamp {
        let quarantine = if stamp.is_empty() { Quarantine::default() } else { read(connection, name, keys).await? };
        *seen = Seen { stamp, quarantine: Arc::new(quarantine) };
    }
    Ok(Look { quarantine: Arc::clone(&seen.quarantine), due })
}

/// The accounts of a replica, with so many keys of each table.
///
/// # Errors
/// As [`look`].
pub async fn read(connection: &mut PgConnection, name: &str, keys: i64) -> Result<Quarantine> {
    let time = |column: &str| format!("pg_catalog.to_char({column} AT TIME ZONE 'UTC', {RFC3339})");
    let sql = format!(
        "SELECT ordinal, position, xid, {}, code, message, changes, bytes, state, {}, {}, after_position FROM millstream.quarantine \
         WHERE replica = $1 ORDER BY ordinal",
        time("committed_at"),
        time("kept_at"),
        time("ended_at")
    );
    let query = sqlx::query(AssertSqlSafe(sql)).bind(name);
    let rows = within(SHORT_WAIT, "reading what is in quarantine", query.fetch_all(&mut *connection)).await?;
    let mut tables = tables(connection, name, keys).await?;
    let mut quarantine = Quarantine::default();
    for row in &rows {
        let ordinal: i64 = get(row, 0)?;
        let state: String = get(row, 8)?;
        let state = KeptState::parse(&state).ok_or_else(|| {
            Error::halt(HaltCode::LedgerDamaged, format!("millstream.quarantine has the state '{state}', which is none"))
        })?;
        if state.is_missing() && quarantine.kept + quarantine.cleared == 0 {
            quarantine.whole_through = get(row, 11)?;
        }
        quarantine.kept += u64::from(state == KeptState::Kept);
        quarantine.cleared += u64::from(state == KeptState::Cleared);
        quarantine.transactions.push(Account {
            position: get(row, 1)?,
            xid: get::<i64>(row, 2)?.cast_unsigned(),
            committed_at: get(row, 3)?,
            code: get(row, 4)?,
            reason: get(row, 5)?,
            changes: get::<i64>(row, 6)?.cast_unsigned(),
            bytes: get::<i64>(row, 7)?.cast_unsigned(),
            state,
            kept_at: get(row, 9)?,
            ended_at: get(row, 10)?,
            tables: tables.remove(&ordinal).unwrap_or_default(),
        });
    }
    Ok(quarantine)
}

async fn tables(connection: &mut PgConnection, name: &str, keys: i64) -> Result<HashMap<i64, Vec<KeptTable>>> {
    let sql = format!(
        "SELECT t.ordinal, t.source_oid, t.table_schema || '.' || t.table_name, t.changes, t.key_columns, t.whole, \
           pg_catalog.to_char(t.ended_at AT TIME ZONE 'UTC', {RFC3339}), t.key_count, s.key, t.ended \
         FROM millstream.quarantined_table t LEFT JOIN LATERAL (SELECT k.key FROM millstream.quarantined_key k \
           WHERE (k.replica, k.ordinal, k.source_oid) = (t.replica, t.ordinal, t.source_oid) ORDER BY k.key LIMIT $2) s ON true \
         WHERE t.replica = $1 ORDER BY t.ordinal, 3, t.source_oid, s.key"
    );
    let query = sqlx::query(AssertSqlSafe(sql)).bind(name).bind(keys);
    let rows = within(SHORT_WAIT, "reading what is in quarantine", query.fetch_all(connection)).await?;
    let mut all: HashMap<i64, Vec<KeptTable>> = HashMap::new();
    let mut last = None;
    for row in &rows {
        let of: (i64, i64) = (get(row, 0)?, get(row, 1)?);
        let tables = all.entry(of.0).or_default();
        if last.replace(of) != Some(of) {
            let columns: Vec<String> = get(row, 4)?;
            let (ended, ended_at): (Option<String>, Option<String>) = (get(row, 9)?, get(row, 6)?);
            let at = |how: &str| ended_at.clone().filter(|_| ended.as_deref() == Some(how));
            tables.push(KeptTable {
                table: get(row, 2)?,
                changes: get::<i64>(row, 3)?.cast_unsigned(),
                key_columns: columns
                    .iter()
                    .map(|column| column.rsplit_once(' ').map_or(&**column, |(name, _)| name).to_owned())
                    .collect(),
                keys: Vec::new(),
                key_count: get::<i64>(row, 7)?.cast_unsigned(),
                whole: get(row, 5)?,
                cured_at: at("cured"),
                dropped_at: at("dropped"),
            });
        }
        if let (Some(key), Some(table)) = (get::<Option<Key>>(row, 8)?, tables.last_mut()) {
            table.keys.push(key.iter().map(|value| String::from_utf8_lossy(value).into_owned()).collect());
        }
    }
    Ok(all)
}

/// What is kept of a transaction can be read.
///
/// # Errors
/// [`ErrorKind::TooNew`]
pub(super) fn is_readable(position: &str, format: i16) -> Result<()> {
    if format <= i16::from(FORMAT_VERSION) {
        return Ok(());
    }
    let message =
        format!("the transaction at {position} was kept in record format {format}; this Millstream reads up to {FORMAT_VERSION}");
    Err(Error::new(ErrorKind::TooNew, message))
}

/// The versions that a kept transaction's changes were made under.
///
/// # Errors
/// The server's; a halt with `ledger_damaged`.
pub(super) async fn versions(connection: &mut PgConnection, name: &str, ordinal: i64) -> Result<Schemas> {
    let query = sqlx::query("SELECT version, content FROM millstream.quarantined_version WHERE replica = $1 AND ordinal = $2");
    let query = query.bind(name).bind(ordinal);
    let rows = within(SHORT_WAIT, "reading the versions of tables", query.fetch_all(connection)).await?;
    rows.iter()
        .map(|row| {
            let schema = get::<Json<TableSchema>>(row, 1)?.0;
            Ok((SchemaId(u32::try_from(get::<i64>(row, 0)?).unwrap_or_default()), Arc::new(schema)))
        })
        .collect::<Result<Schemas>>()
        .at(|| "millstream.quarantined_version")
}

/// The changes of one piece of what is kept; `None` behind the last.
///
/// # Errors
/// The server's; [`crate::ErrorKind::Malformed`].
pub(super) async fn piece(connection: &mut PgConnection, name: &str, ordinal: i64, piece: i32) -> Result<Option<Vec<Change>>> {
    let query =
        sqlx::query("SELECT changes FROM millstream.quarantined_piece WHERE replica = $1 AND ordinal = $2 AND piece = $3");
    let query = query.bind(name).bind(ordinal).bind(piece);
    let Some(row) = within(SHORT_WAIT, "reading what is kept", query.fetch_optional(connection)).await? else { return Ok(None) };
    let mut reader = ChangeReader::default();
    reader.push(Bytes::from(row.get::<Vec<u8>, _>(0)));
    let mut changes = Vec::new();
    while let Some(change) = reader.next_change()? {
        changes.push(change);
    }
    reader.finish()?;
    Ok(Some(changes))
}
