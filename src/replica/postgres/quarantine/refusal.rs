//! The source transaction that a replica stands at, because it refuses it: noted at each halt, and what was ordered about it.

use sqlx::PgConnection;

use crate::error::Result;
use crate::event::TransactionHeader;
use crate::halt::HaltCode;
use crate::replica::postgres::errors::{SHORT_WAIT, within};

/// SQL of whether the replica still stands there: it has applied nothing since. `f` is `millstream.refused`, `r` its replica's row.
pub(super) const STANDS: &str = "f.transactions = r.transactions";

/// A transaction that was refused.
pub(super) struct Refusal<'a> {
    pub(super) header: &'a TransactionHeader,
    pub(super) code: HaltCode,
    pub(super) message: String,
    pub(super) keepable: Keepable<'a>,
}

/// Whether it can be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keepable<'a> {
    /// Its end was not seen: what was known of it holds.
    Unknown,
    /// All of it was seen.
    Yes,
    /// Why not.
    No(&'a str),
}

/// Notes it. An order about the same transaction stays, unless it cannot be kept.
///
/// # Errors
/// The server's.
pub(super) async fn note(connection: &mut PgConnection, name: &str, refusal: &Refusal<'_>) -> Result<()> {
    let plain = put(connection, name, refusal, &refusal.message).await;
    if plain.is_ok() || refusal.message.is_ascii() {
        return plain;
    }
    // Of a key that the replica's encoding does not have.
    put(connection, name, refusal, &refusal.message.escape_default().to_string()).await
}

async fn put(connection: &mut PgConnection, name: &str, refusal: &Refusal<'_>, message: &str) -> Result<()> {
    let query = sqlx::query(
        "INSERT INTO millstream.refused AS f (replica, position, transactions, code, message, cannot_be_kept) \
         SELECT $1, $2, transactions, $3, $4, $5 FROM millstream.replica WHERE name = $1 \
         ON CONFLICT (replica) DO UPDATE SET position = excluded.position, transactions = excluded.transactions, code = excluded.code, \
           message = excluded.message, wake = false, confirmed = false, refused_at = clock_timestamp(), \
           cannot_be_kept = CASE WHEN $6 AND f.position = excluded.position THEN f.cannot_be_kept ELSE excluded.cannot_be_kept END, \
           ordered_at = CASE WHEN f.position = excluded.position AND excluded.cannot_be_kept IS NULL AND f.cannot_be_kept IS NULL \
             THEN f.ordered_at END",
    )
    .bind(name)
    .bind(refusal.header.position.to_string())
    .bind(refusal.code.as_str())
    .bind(message)
    .bind(if let Keepable::No(why) = refusal.keepable { Some(why) } else { None })
    .bind(refusal.keepable == Keepable::Unknown);
    within(SHORT_WAIT, "noting what the replica refused", query.execute(connection)).await.map(drop)
}

/// What was ordered about the transaction that a replica stands at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Nothing.
    None,
    /// To keep it, should it be refused again.
    Keep,
    /// It was refused again.
    Confirmed,
}

/// Reads that.
///
/// # Errors
/// The server's.
pub(super) async fn order(connection: &mut PgConnection, name: &str, header: &TransactionHeader) -> Result<Order> {
    let sql = format!(
        "SELECT f.confirmed FROM millstream.refused f JOIN millstream.replica r ON r.name = f.replica WHERE f.replica = $1 AND f.position = $2 \
         AND {STANDS} AND f.ordered_at IS NOT NULL AND f.cannot_be_kept IS NULL"
    );
    let query = sqlx::query_scalar::<_, bool>(sqlx::AssertSqlSafe(sql)).bind(name).bind(header.position.to_string());
    let found = within(SHORT_WAIT, "looking for an order about it", query.fetch_optional(connection)).await?;
    Ok(match found {
        None => Order::None,
        Some(false) => Order::Keep,
        Some(true) => Order::Confirmed,
    })
}

/// It is kept as it is read the next time.
///
/// # Errors
/// The server's.
pub(super) async fn confirm(connection: &mut PgConnection, name: &str, header: &TransactionHeader) -> Result<()> {
    let query = sqlx::query("UPDATE millstream.refused SET confirmed = true WHERE replica = $1 AND position = $2");
    let query = query.bind(name).bind(header.position.to_string());
    within(SHORT_WAIT, "confirming the order", query.execute(connection)).await.map(drop)
}

/// What the replica stands at is tried at once.
///
/// # Errors
/// The server's.
pub(super) async fn wake(connection: &mut PgConnection, name: &str) -> Result<()> {
    let query = sqlx::query("UPDATE millstream.refused SET wake = true WHERE replica = $1").bind(name);
    within(SHORT_WAIT, "having it tried again", query.execute(connection)).await.map(drop)
}
