//! Carries work out, and checks the row count of every statement: a row that is not there, or there twice, is a conflict (I5).

use std::collections::HashMap;
use std::time::Duration;

use sqlx::postgres::{PgArguments, PgConnection, PgDatabaseError};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Executor, Postgres};

use super::errors::{self, SHORT_WAIT, within};
use super::plan::{Tables, Work, table};
use super::statement::{self, Statement};
use super::tables::Table;
use super::values::{Mask, TextColumn, TextValue, push_copy_row};
use crate::apply::compact::Net;
use crate::apply::rows::RowSet;
use crate::apply::runs::{Ordered, Run, RunKind};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Cell, SchemaId};
use crate::halt::HaltCode;

/// The server's `statement_timeout` for batches ends a statement before this deadline ends the connection.
pub const STATEMENT_WAIT: Duration = Duration::from_secs(125);
/// The same for a transaction that a batch's time is not enough for.
pub const PATIENT_WAIT: Duration = Duration::from_secs(30 * 60 + 5);
/// Inserts of at least this many rows go by COPY (it costs two round trips and a third of the server's time per row).
const COPY_ROWS: usize = 32;
/// A set statement takes at most this many rows and about as many bytes of values.
const SET_ROWS: usize = 20_000;
const SET_BYTES: usize = 16 << 20;
/// COPY data is handed on in pieces of this size.
const COPY_BYTES: usize = 256 << 10;

/// Writes to one connection, inside a replica transaction.
pub struct Writer<'c> {
    /// The connection.
    pub connection: &'c mut PgConnection,
    /// Foreign keys are enforced, so rows may be gone by a cascade before their own delete comes.
    pub enforced: bool,
    /// Row by row: what cannot be done by a set statement is tried in other ways.
    pub one_by_one: bool,
    /// How long one statement may take.
    pub limit: Duration,
    /// What was learned of tables whose unique values move.
    pub moving: &'c mut Moving,
}

/// Tables with a second unique key whose rows lately took each other's values, and for how many more batches that is expected.
#[derive(Debug, Default)]
pub struct Moving(HashMap<SchemaId, u32, foldhash::fast::RandomState>);

impl Moving {
    /// Batches for which a table's updates are taken apart at once, after one could not be done in place.
    const BATCHES: u32 = 50;

    fn expects(&mut self, table: SchemaId) -> bool {
        let Some(left) = self.0.get_mut(&table) else { return false };
        *left -= 1;
        if *left == 0 {
            self.0.remove(&table);
        }
        true
    }

    fn learn(&mut self, table: SchemaId) {
        self.0.insert(table, Self::BATCHES);
    }
}

impl Writer<'_> {
    /// Does one thing.
    ///
    /// # Errors
    /// Conflicts, constraints, the connection's.
    pub async fn work(&mut self, work: &Work<'_>, tables: &Tables) -> Result<()> {
        match work {
            Work::Net(table, net) => self.net(table, net).await,
            Work::Ordered(Ordered::Run(run)) => self.run(table(tables, run.table)?, run).await,
            Work::Ordered(Ordered::Truncate { tables: ids, restart_identity, .. }) => {
                let truncated = ids.iter().map(|id| table(tables, *id)).collect::<Result<Vec<_>>>()?;
                if !self.enforced && self.is_held_by_the_other_row(&truncated).await? {
                    // The other row's part comes in its turn. (A sequence that would begin again has not moved: nothing here takes from it.)
                    for table in truncated {
                        let delete = self.connection.execute(AssertSqlSafe(format!("DELETE FROM {}", table.alone())));
                        errors::within(self.limit, "emptying", delete).await?;
                    }
                    return Ok(());
                }
                let sql = statement::truncate(truncated.iter().map(|table| &***table), *restart_identity);
                let query = sqlx::query(AssertSqlSafe(sql)).persistent(false).execute(&mut *self.connection);
                errors::within(self.limit, "truncating", query).await.map(drop)
            }
        }
    }

    /// PostgreSQL refuses to truncate a table that a foreign key refers to from outside of the statement. True when all that refer to some tables
    /// so are under the replica's other row of the ledger, because they are copied beside the others, or the others beside them.
    async fn is_held_by_the_other_row(&mut self, truncated: &[&std::sync::Arc<Table>]) -> Result<bool> {
        let names: Vec<&str> = truncated.iter().map(|table| table.name.as_str()).collect();
        let query = sqlx::query_scalar::<_, Option<bool>>(
            "SELECT pg_catalog.bool_and(EXISTS (SELECT FROM millstream.copied_table t JOIN millstream.copied_table r ON t.replica <> r.replica \
               AND pg_catalog.split_part(t.replica, '#', 1) = pg_catalog.split_part(r.replica, '#', 1) \
               WHERE pg_catalog.to_regclass(pg_catalog.format('%I.%I', t.table_schema, t.table_name)) = k.conrelid \
                 AND pg_catalog.to_regclass(pg_catalog.format('%I.%I', r.table_schema, r.table_name)) = k.confrelid)) \
             FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_class c ON c.oid = k.conrelid AND c.relkind <> 'p' \
             WHERE k.contype = 'f' AND k.confrelid = ANY($1::text[]::regclass[]) AND k.conrelid <> ALL($1::text[]::regclass[])",
        );
        let held = query.bind(names).fetch_one(&mut *self.connection);
        errors::within(SHORT_WAIT, "looking who refers to a table", held).await.map(|held| held == Some(true))
    }

    async fn net(&mut self, table: &Table, net: &Net<'_>) -> Result<()> {
        self.delete(table, &net.rows, &net.deletes).await?;
        self.updates(table, net).await?;
        self.insert(table, &net.rows, &net.inserts).await
    }

    /// In place where that can be done. Where unique values move from row to row it cannot, and nothing in the log tells
    /// beforehand (an update carries no old values): tried under a savepoint, then taken apart.
    async fn updates(&mut self, table: &Table, net: &Net<'_>) -> Result<()> {
        let mut all: Vec<u32> = net.updates.iter().flat_map(|group| group.rows.iter().copied()).collect();
        all.sort_unstable();
        let apart = table.second_unique && all.len() > 1 && cut(&net.rows, &all).nth(1).is_none();
        if !apart {
            return self.updates_in_place(table, net).await;
        }
        if !self.moving.expects(table.schema.id) {
            within(SHORT_WAIT, "setting a savepoint", self.connection.execute("SAVEPOINT updates")).await?;
            match self.updates_in_place(table, net).await {
                Err(error) if errors::concerns_rows(&error) => {}
                Err(error) => return Err(error),
                Ok(()) => {
                    let release = self.connection.execute("RELEASE SAVEPOINT updates");
                    return within(SHORT_WAIT, "ending a savepoint", release).await.map(drop);
                }
            }
            within(SHORT_WAIT, "going back", self.connection.execute("ROLLBACK TO SAVEPOINT updates; RELEASE SAVEPOINT updates"))
                .await?;
            self.moving.learn(table.schema.id);
        }
        let partial: Vec<usize> = (0..table.columns.len())
            .filter(|&column| all.iter().any(|&row| net.rows.row(row)[column] == Cell::Unchanged))
            .collect();
        self.set_statement(table, &statement::remake_together(table, &partial), &net.rows, &all, "update", false).await
    }

    async fn updates_in_place(&mut self, table: &Table, net: &Net<'_>) -> Result<()> {
        for group in &net.updates {
            self.update(table, &net.rows, &group.rows, &group.set).await?;
        }
        Ok(())
    }

    async fn run(&mut self, table: &Table, run: &Run<'_>) -> Result<()> {
        let all: Vec<u32> = (0..run.rows.len() as u32).collect();
        match &run.kind {
            RunKind::Insert => self.insert(table, &run.rows, &all).await,
            RunKind::Delete if table.rules.keyed => self.delete(table, &run.rows, &all).await,
            RunKind::Update { set, rekey } if table.rules.keyed => self.update_in_order(table, run, &all, set, *rekey).await,
            RunKind::Delete => self.one_of_equal(table, &run.rows, &all, None).await,
            RunKind::Update { set, .. } => self.one_of_equal(table, &run.rows, &all, Some(set)).await,
        }
    }

    async fn update_in_order(&mut self, table: &Table, run: &Run<'_>, all: &[u32], set: &[usize], rekey: bool) -> Result<()> {
        let fixed = set.iter().any(|&index| table.columns[index].identity_always);
        if rekey && fixed {
            let statement = statement::remake(table, set);
            return self.set_statement(table, &statement, &run.rows, all, "update", false).await;
        }
        match self.update(table, &run.rows, all, set).await {
            // An identity column that cannot be set has changed: make the row anew.
            Err(error) if fixed && self.one_by_one && error.kind() == ErrorKind::Halt(HaltCode::ReplicaConflict) => {
                let statement = statement::remake(table, set);
                self.set_statement(table, &statement, &run.rows, all, "update", false).await
            }
            done => done,
        }
    }

    async fn insert(&mut self, table: &Table, rows: &RowSet<'_>, pick: &[u32]) -> Result<()> {
        if pick.is_empty() {
            return Ok(());
        }
        if table.columns.iter().all(|column| !column.written) {
            return self.insert_defaults(table, pick.len()).await;
        }
        if pick.len() >= COPY_ROWS && !table.row_security {
            return self.copy(table, rows, pick).await;
        }
        self.set_statement(table, &statement::insert(table), rows, pick, "insert", false).await
    }

    async fn insert_defaults(&mut self, table: &Table, count: usize) -> Result<()> {
        let sql = format!("INSERT INTO {} SELECT FROM pg_catalog.generate_series(1, {count})", table.name);
        let done = self.execute(table, sqlx::query(AssertSqlSafe(sql)).persistent(false)).await?;
        expect(table, "insert", count, done)
    }

    async fn copy(&mut self, table: &Table, rows: &RowSet<'_>, pick: &[u32]) -> Result<()> {
        let Statement { sql, cells, .. } = statement::copy(table);
        let send = async {
            let mut copy = self.connection.copy_in_raw(&sql).await?;
            let mut buffer = Vec::with_capacity(COPY_BYTES + 4096);
            for &index in pick {
                let row = rows.row(index);
                push_copy_row(&mut buffer, cells.iter().map(|&cell| row[cell]));
                if buffer.len() >= COPY_BYTES {
                    copy.send(buffer.as_slice()).await?;
                    buffer.clear();
                }
            }
            copy.send(buffer.as_slice()).await?;
            copy.finish().await
        };
        let done = deadline(table, self.limit, send).await?;
        expect(table, "insert", pick.len(), done)
    }

    async fn delete(&mut self, table: &Table, rows: &RowSet<'_>, pick: &[u32]) -> Result<()> {
        let cascaded = self.enforced && table.cascades;
        self.set_statement(table, &statement::delete(table), rows, pick, "delete", cascaded).await
    }

    async fn update(&mut self, table: &Table, rows: &RowSet<'_>, pick: &[u32], set: &[usize]) -> Result<()> {
        match statement::update(table, set) {
            Some(statement) => self.set_statement(table, &statement, rows, pick, "update", false).await,
            None => Ok(()),
        }
    }

    async fn set_statement(
        &mut self,
        table: &Table,
        statement: &Statement,
        rows: &RowSet<'_>,
        pick: &[u32],
        what: &str,
        fewer: bool,
    ) -> Result<()> {
        for pick in cut(rows, pick) {
            let mut query = sqlx::query(AssertSqlSafe(statement.sql.clone()));
            let masked = !statement.masks.is_empty();
            for &cell in &statement.cells {
                query = query.bind(TextColumn { rows, pick, cell, masked });
            }
            for &cell in &statement.masks {
                query = query.bind(Mask { rows, pick, cell });
            }
            let done = self.execute(table, query).await?;
            if !(fewer && done <= pick.len() as u64) {
                expect(table, what, pick.len(), done)?;
            }
        }
        Ok(())
    }

    async fn one_of_equal(&mut self, table: &Table, rows: &RowSet<'_>, pick: &[u32], set: Option<&[usize]>) -> Result<()> {
        for &index in pick {
            let (row, finders) = (rows.row(index), rows.finders(index));
            let (statement, what) = match set {
                None => (Some(statement::delete_one(table, finders)), "delete"),
                Some(set) => (statement::update_one(table, set, finders), "update"),
            };
            let Some(statement) = statement else { continue };
            let mut query = sqlx::query(AssertSqlSafe(statement.sql));
            for cell in statement.cells {
                query = query.bind(TextValue(row[cell]));
            }
            let done = self.execute(table, query).await?;
            expect(table, what, 1, done)?;
        }
        Ok(())
    }

    async fn execute(&mut self, table: &Table, query: Query<'_, Postgres, PgArguments>) -> Result<u64> {
        let run = query.execute(&mut *self.connection);
        deadline(table, self.limit, async { run.await.map(|done| done.rows_affected()) }).await
    }
}

async fn deadline(table: &Table, limit: Duration, work: impl Future<Output = Result<u64, sqlx::Error>>) -> Result<u64> {
    match tokio::time::timeout(limit, work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(refused(table, error)),
        Err(_) => {
            let message = format!("the replica did not answer within {} s", limit.as_secs());
            Err(Error::new(ErrorKind::Connection, message).context(format!("table {}", table.schema.table)))
        }
    }
}

/// A key that is there already is somebody else's row, not a constraint that the source does not have.
fn refused(table: &Table, error: sqlx::Error) -> Error {
    let server = error.as_database_error().and_then(|error| error.try_downcast_ref::<PgDatabaseError>());
    let taken = server.filter(|error| error.code() == "23505").and_then(PgDatabaseError::constraint);
    if taken.is_some_and(|name| table.key_indexes.iter().any(|index| index == name)) {
        let message = "a row to insert is already there";
        return Error::halt(HaltCode::ReplicaConflict, message).context(format!("table {}", table.schema.table));
    }
    errors::classify(error).context(format!("table {}", table.schema.table))
}

fn expect(table: &Table, what: &str, expected: usize, done: u64) -> Result<()> {
    if done == expected as u64 {
        return Ok(());
    }
    let message = match expected {
        1 if done == 0 => format!("the row to {what} is not there"),
        1 => format!("{done} rows have the key of one row to {what}"),
        _ => format!("{expected} rows to {what}, {done} found"),
    };
    Err(Error::halt(HaltCode::ReplicaConflict, message).context(format!("table {}", table.schema.table)))
}

/// Cuts rows so that one statement's parameters stay bounded.
fn cut<'p>(rows: &RowSet<'_>, pick: &'p [u32]) -> impl Iterator<Item = &'p [u32]> {
    let mut rest = pick;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let mut count = 0;
        for &index in rest.iter().take(SET_ROWS) {
            bytes +=
                rows.row(index).iter().map(|cell| if let Cell::Value(value) = cell { value.len() } else { 0 }).sum::<usize>();
            count += 1;
            if bytes >= SET_BYTES {
                break;
            }
        }
        let (now, later) = rest.split_at(count);
        rest = later;
        (!now.is_empty()).then_some(now)
    })
}
