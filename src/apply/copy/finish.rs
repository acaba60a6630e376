//! The end of a first copy: deferred keys and indexes are built, then every table goes live in one replica transaction.

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row};

use super::progress::{CopyPhase, Meter};
use super::wait::{backend, watched};
use super::{PostgresCopy, connect_replica, shadow, state};
use crate::config::ReplicaConfig;
use crate::error::{Context, Error, Result};
use crate::event::{ApplyEpoch, TableName};
use crate::failpoint;
use crate::postgres::sql::{Side, classify, quote_table};
use crate::replica::postgres::ledger::{CopyState, hold_epoch, identity_of, whole};
use crate::replica::postgres::members::replaced_while_copied;
use crate::replica::postgres::quarantine::ended::cure;

/// What is left to do once the replay has passed the last snapshot.
pub(super) struct Finish {
    replica: ReplicaConfig,
    epoch: ApplyEpoch,
    meter: Meter,
}

impl Finish {
    pub(super) fn new(copy: &PostgresCopy, epoch: ApplyEpoch) -> Self {
        Self { replica: copy.replica.clone(), epoch, meter: copy.meter.clone() }
    }

    /// Does it. Killed in between, it goes on behind the last statement that was committed.
    pub(super) async fn run(&self) -> Result<()> {
        let mut replica = connect_replica(&self.replica).await?;
        let backend = backend(&mut replica).await?;
        watched(&self.replica.connect, backend, self.run_on(replica)).await
    }

    async fn run_on(&self, mut replica: PgConnection) -> Result<()> {
        let tables = state::tables(&mut replica, &self.replica.name).await?;
        self.build(&mut replica).await?;
        failpoint::hit("copy.indexes_built")?;
        for table in tables.iter().filter(|t| t.state == CopyState::CatchingUp) {
            // Without statistics the applier's and the application's first statements would be planned blindly.
            analyze(&mut replica, table.place()).await.at(|| format!("table {}", table.table))?;
        }
        failpoint::hit("copy.going_live")?;
        self.go_live(&mut replica).await?;
        for table in tables.iter().filter(|t| t.shadow.is_some()) {
            analyze(&mut replica, &table.table).await.at(|| format!("table {}", table.table))?;
        }
        if self.is_added() {
            tracing::info!(replica = self.replica.name, tables = tables.len(), "the tables that were added are complete");
            self.meter.phase(CopyPhase::CatchingUp);
        } else {
            tracing::info!(replica = self.replica.name, tables = tables.len(), "the first copy is complete: its tables are live");
            self.meter.phase(CopyPhase::None);
        }
        Ok(())
    }

    fn is_added(&self) -> bool {
        whole(&self.replica.name) != self.replica.name
    }

    async fn build(&self, replica: &mut PgConnection) -> Result<()> {
        let rows = sqlx::query(
            // Not those of tables that a later `init` added and that are not loaded, nor of parents (which the ledger has no row of) of such.
            // Those of tables that are added to others stand on the others' place, and wait for the meeting.
            "SELECT ordinal, table_schema, table_name, statement FROM millstream.deferred_ddl d WHERE replica = $1 AND NOT done \
             AND (kind <> 'foreign_key' OR NOT $2) \
             AND NOT EXISTS (SELECT 1 FROM millstream.copied_table t WHERE t.replica = d.replica AND t.state IN ('pending', 'copying') \
               AND ((t.table_schema, t.table_name) = (d.table_schema, d.table_name) \
                 OR NOT EXISTS (SELECT 1 FROM millstream.copied_table o WHERE o.replica = d.replica \
                   AND (o.table_schema, o.table_name) = (d.table_schema, d.table_name)))) \
             ORDER BY array_position(ARRAY['index', 'unique', 'other', 'foreign_key'], kind), ordinal",
        )
        .bind(&self.replica.name)
        .bind(self.is_added())
        .fetch_all(&mut *replica)
        .await
        .map_err(fail)?;
        let all = rows.len() as u64;
        for (built, row) in rows.iter().enumerate() {
            self.meter.building(built as u64, all);
            let (ordinal, schema, table, statement): (i32, String, String, String) =
                (row.get(0), row.get(1), row.get(2), row.get(3));
            let mut transaction = replica.begin().await.map_err(fail)?;
            hold_epoch(&mut transaction, &self.replica.name, self.epoch).await?;
            let run = transaction.execute(AssertSqlSafe(statement.as_str())).await;
            run.map_err(fail).at(|| format!("table {schema}.{table}, building what was put off: {statement}"))?;
            sqlx::query("UPDATE millstream.deferred_ddl SET done = true WHERE replica = $1 AND ordinal = $2")
                .bind(&self.replica.name)
                .bind(ordinal)
                .execute(&mut *transaction)
                .await
                .map_err(fail)?;
            transaction.commit().await.map_err(fail)?;
        }
        Ok(())
    }

    /// I4: together.
    async fn go_live(&self, replica: &mut PgConnection) -> Result<()> {
        let mut transaction = replica.begin().await.map_err(fail)?;
        hold_epoch(&mut transaction, &self.replica.name, self.epoch).await?;
        let tables = state::tables(&mut transaction, &self.replica.name).await?;
        if let Some(table) = tables.iter().find(|t| t.state == CopyState::CatchingUp && t.replaced) {
            return Err(replaced_while_copied(&table.table));
        }
        for table in tables.iter().filter(|t| t.state == CopyState::CatchingUp) {
            let Some(shadow) = &table.shadow else { continue };
            shadow::put_in_place(&mut transaction, table, shadow)
                .await
                .at(|| format!("table {}, putting what was copied again in its place", table.table))?;
        }
        cure(&mut transaction, &self.replica.name).await?;
        let live = format!(
            "UPDATE millstream.copied_table SET state = 'live', live_at = clock_timestamp(), live_after_lsn = NULL, shadow = NULL, \
               replica_table = CASE WHEN shadow IS NULL THEN replica_table ELSE {} END WHERE replica = $1 AND state = 'catching_up'",
            identity_of("table_schema", "table_name")
        );
        for sql in [
            live.as_str(),
            "DELETE FROM millstream.copy_chunk WHERE replica = $1",
            "DELETE FROM millstream.deferred_ddl WHERE replica = $1 AND done",
        ] {
            let sql = AssertSqlSafe(sql);
            sqlx::query(sql).bind(&self.replica.name).execute(&mut *transaction).await.map_err(fail)?;
        }
        transaction.commit().await.map_err(fail)?;
        if tables.iter().any(|t| t.shadow.is_some()) {
            failpoint::hit("recopy.live")?;
        }
        Ok(())
    }
}

async fn analyze(replica: &mut PgConnection, table: &TableName) -> Result<()> {
    replica.execute(AssertSqlSafe(format!("ANALYZE {}", quote_table(table)))).await.map(drop).map_err(fail)
}

/// Validates foreign keys that were made without reading their tables, when those that were added met the others. Applying goes on: this
/// takes no lock that it needs.
pub(super) async fn validate(replica: &mut PgConnection, name: &str, meter: &Meter) -> Result<()> {
    let rows = sqlx::query(
        "SELECT ordinal, statement FROM millstream.deferred_ddl WHERE replica = $1 AND kind = 'validate' ORDER BY ordinal",
    )
    .bind(name)
    .fetch_all(&mut *replica)
    .await
    .map_err(fail)?;
    let mut outcome = Ok(());
    for (built, row) in rows.iter().enumerate() {
        let (ordinal, statement): (i32, String) = (row.get(0), row.get(1));
        meter.building(built as u64, rows.len() as u64);
        match replica.execute(AssertSqlSafe(statement.as_str())).await {
            Ok(_) => {}
            // Somebody has dropped the key or its table.
            Err(error) if error.as_database_error().and_then(|e| e.code()).is_some_and(|c| c == "42704" || c == "42P01") => {}
            Err(error) => {
                outcome = Err(fail(error)).at(|| statement.clone());
                continue;
            }
        }
        sqlx::query("DELETE FROM millstream.deferred_ddl WHERE replica = $1 AND ordinal = $2")
            .bind(name)
            .bind(ordinal)
            .execute(&mut *replica)
            .await
            .map_err(fail)?;
    }
    if !rows.is_empty() {
        meter.phase(CopyPhase::None);
    }
    outcome
}

fn fail(error: sqlx::Error) -> Error {
    classify(error, Side::Replica)
}
