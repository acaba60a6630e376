//! Tables of kept transactions whose part is over before the rest: copied again since, or gone.
//!
//! Whoever ends a part ends the account with its last one, in the same transaction.

use sqlx::PgConnection;

use crate::error::Result;
use crate::replica::postgres::errors::{SHORT_WAIT, within};
use crate::replica::postgres::ledger::{added, whole};

/// In the transaction that makes tables live whose copy is complete: they have what any transaction in quarantine did to them. `row` is the ledger's row
/// that they are under.
///
/// # Errors
/// The server's.
pub(crate) async fn cure(transaction: &mut PgConnection, row: &str) -> Result<()> {
    let tables = "UPDATE millstream.quarantined_table t SET ended = 'cured', ended_at = clock_timestamp() FROM millstream.copied_table c \
         WHERE c.replica = $1 AND c.state = 'catching_up' AND t.replica = $2 AND t.ended IS NULL AND (t.source_oid = c.source_oid \
           OR ((t.table_schema, t.table_name) = (c.table_schema, c.table_name) AND NOT EXISTS (SELECT FROM millstream.copied_table o \
             WHERE o.source_oid = t.source_oid AND o.replica IN ($1, $2))))";
    let query = sqlx::query(tables).bind(row).bind(whole(row));
    within(SHORT_WAIT, "noting what was copied again", query.execute(&mut *transaction)).await?;
    end_accounts(transaction, whole(row)).await
}

/// In the transaction in which the ledger forgets a table, and before what is kept is applied: nobody sees any more what a transaction did to tables that
/// the replica does not have. One whose copy has not begun has no number, and is not gone. `row` is any of the replica's rows.
///
/// # Errors
/// The server's.
pub(crate) async fn forget_gone(transaction: &mut PgConnection, row: &str) -> Result<()> {
    let tables = "UPDATE millstream.quarantined_table t SET ended = 'dropped', ended_at = clock_timestamp() FROM millstream.quarantine q \
         WHERE q.replica = $1 AND (t.replica, t.ordinal) = (q.replica, q.ordinal) AND q.state IN ('kept', 'cleared') AND t.ended IS NULL \
           AND NOT EXISTS (SELECT FROM millstream.copied_table c WHERE c.replica IN ($1, $2) AND (c.source_oid = t.source_oid OR (c.source_oid IS NULL \
             AND (c.state <> 'live' OR (c.table_schema, c.table_name) = (t.table_schema, t.table_name)))))";
    let query = sqlx::query(tables).bind(whole(row)).bind(added(whole(row)));
    let gone = within(SHORT_WAIT, "noting which tables are gone", query.execute(&mut *transaction)).await?;
    if gone.rows_affected() == 0 { Ok(()) } else { end_accounts(transaction, whole(row)).await }
}

async fn end_accounts(transaction: &mut PgConnection, name: &str) -> Result<()> {
    for sql in [
        "UPDATE millstream.quarantine q SET ended_at = clock_timestamp(), state = CASE WHEN EXISTS (SELECT FROM millstream.quarantined_table t \
           WHERE (t.replica, t.ordinal) = (q.replica, q.ordinal) AND t.ended = 'cured') THEN 'cured' ELSE 'dropped' END \
         WHERE q.replica = $1 AND q.state IN ('kept', 'cleared') \
           AND NOT EXISTS (SELECT FROM millstream.quarantined_table t WHERE (t.replica, t.ordinal) = (q.replica, q.ordinal) AND t.ended IS NULL)",
        "DELETE FROM millstream.quarantined_piece p USING millstream.quarantine q \
         WHERE (p.replica, p.ordinal) = (q.replica, q.ordinal) AND q.replica = $1 AND q.state IN ('cured', 'dropped')",
    ] {
        let query = sqlx::query(sql).bind(name);
        within(SHORT_WAIT, "ending the accounts", query.execute(&mut *transaction)).await?;
    }
    Ok(())
}
