//! What there is to copy: looked for every second, and where something is not as it was.

use sqlx::PgConnection;

use super::wait::within;
use super::{APPLICATION, PostgresCopy, state};
use crate::error::Result;
use crate::event::TableName;
use crate::postgres::sql::{Side, classify, connect, quote_table};
use crate::replica::postgres::added;
use crate::replica::postgres::ledger::{self, CopyState};

impl PostgresCopy {
    /// A connection to look with, kept from the last time.
    pub(super) async fn take_look(&self) -> Result<PgConnection> {
        match self.looking.lock().await.take() {
            Some(replica) => Ok(replica),
            None => connect(&self.replica.connect, Side::Replica, APPLICATION).await,
        }
    }

    /// Tables whose copy has not begun, and where the others are live, those to be copied again.
    pub(super) async fn look_for_work(&self) -> Result<Vec<TableName>> {
        let mut replica = self.take_look().await?;
        let name = &self.replica.name;
        let pending = state::tables(&mut replica, name).await?.into_iter().filter(|t| t.state == CopyState::Pending);
        let mut waiting: Vec<TableName> = pending.map(|t| t.table).collect();
        if added::rows(&mut replica, name).await?.live {
            waiting.extend(added::asked_again(&mut replica, name).await?);
        }
        *self.looking.lock().await = Some(replica);
        Ok(waiting)
    }

    /// The source has dropped a table that is copied beside live ones: those drop it here, where they come to that in the log.
    pub(super) async fn misses_a_table(&self) -> bool {
        let look = async {
            let mut replica = connect(&self.replica.connect, Side::Replica, APPLICATION).await?;
            let mut source = connect(&self.source.connect, Side::Source, APPLICATION).await?;
            for table in state::tables(&mut replica, &self.replica.name).await? {
                let there = sqlx::query_scalar("SELECT pg_catalog.to_regclass($1) IS NOT NULL").bind(quote_table(&table.table));
                if !there.fetch_one(&mut source).await.map_err(|e| classify(e, Side::Source))? {
                    return Ok(true);
                }
            }
            Ok(false)
        };
        ledger::whole(&self.replica.name) != self.replica.name
            && within("looking for a table that is gone", look).await.unwrap_or(false)
    }

    pub(super) async fn none_is_pending(&self) -> Result<bool> {
        within("looking for tables to copy", async {
            let mut replica = connect(&self.replica.connect, Side::Replica, APPLICATION).await?;
            let tables = state::tables(&mut replica, &self.replica.name).await?;
            Ok(tables.iter().all(|t| t.state != CopyState::Pending))
        })
        .await
    }

    pub(super) async fn rows(&self) -> Result<added::Rows> {
        let look = async {
            let mut replica = connect(&self.replica.connect, Side::Replica, APPLICATION).await?;
            added::rows(&mut replica, &self.replica.name).await
        };
        within("looking at the ledger's rows", look).await
    }
}
