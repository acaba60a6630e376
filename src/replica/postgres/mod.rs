//! A PostgreSQL replica.
//!
//! One session per applier: it holds the replica's advisory lock, has raised the apply epoch, and runs with
//! `session_replication_role = replica` where the role may. Legal progression of a replica transaction:
//!
//! ```text
//! BEGIN ─► ledger step (row lock, epoch checked, I8) ─► rows ─► COMMIT
//!             │ 0 rows: fenced                │ refused
//!             ▼                               ▼
//!          session ends                    ROLLBACK ─► the same in halves, committing what goes in
//!                                                      ─► one transaction row by row: names the culprit, halts
//! ```
//!
//! Nothing in memory matters to correctness: the ledger tells what is applied. Table definitions are cached and read again
//! after any failure and after some minutes.
//!
//! `session_replication_role = replica` switches deferrable unique constraints off (duplicates are stored in silence), so a
//! replica transaction that touches a table with one runs under `origin`, with constraints deferred, in the source's order.
//!
//! Rejected: `ON CONFLICT DO UPDATE`: it hides conflicts, and on a table with a second unique key it may hit another row.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, Executor, PgConnection};

use self::errors::{SHORT_WAIT, within};
use self::ledger::CopyState;
use self::plan::{Style, Tables, Work};
use self::tables::{Catalog, Table};
use self::write::{STATEMENT_WAIT, Writer};
use super::{Applied, Replica, ReplicaRow, ReplicaTarget, Step};
use crate::apply::first_copy::Schemas;
use crate::apply::merge::Batch;
use crate::config::ReplicaConfig;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::{ApplyEpoch, Change, SchemaId, TableName, TransactionHeader};
use crate::failpoint;
use crate::halt::HaltCode;
use crate::postgres::sql::{self, Side};

pub mod blame;
pub mod errors;
pub mod ledger;
pub mod lock;
pub mod plan;
pub mod statement;
pub mod tables;
pub mod values;
pub mod write;

/// Session settings of an applier, on top of those of every connection: dead peers are noticed and their locks freed within seconds,
/// no wait is without end, one plan per statement whatever the batch's size.
const APPLIER_SETTINGS: &str = "SET synchronous_commit = on; SET default_transaction_isolation = 'read committed'; \
    SET lock_timeout = '10s'; SET statement_timeout = '120s'; SET idle_in_transaction_session_timeout = '15s'; \
    SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3; SET tcp_user_timeout = 20000; \
    SET plan_cache_mode = force_generic_plan; SET jit = off; SET xmloption = content; SET lc_monetary = 'C'; \
    SET check_function_bodies = off; SET row_security = on";
/// Definitions of tables are read again after this long.
const CATALOG_AGE: Duration = Duration::from_mins(5);
/// Batches for which tables with a second unique key go in order, after one went in only by pieces.
const CAREFUL_BATCHES: u32 = 50;

/// A configured PostgreSQL replica.
#[derive(Clone, Debug)]
pub struct PostgresTarget {
    config: ReplicaConfig,
}

impl PostgresTarget {
    /// From its configuration.
    #[must_use]
    pub fn new(config: ReplicaConfig) -> Self {
        Self { config }
    }
}

#[async_trait]
impl ReplicaTarget for PostgresTarget {
    async fn claim(&self) -> Result<(Box<dyn Replica>, ReplicaRow)> {
        let name = &self.config.name;
        let mut connection = sql::connect(&self.config.connect, Side::Replica, &format!("millstream apply {name}")).await?;
        within(SHORT_WAIT, "setting up the session", connection.execute(AssertSqlSafe(APPLIER_SETTINGS))).await?;
        lock::acquire(&mut connection, name).await?;
        let row = ledger::raise_epoch(&mut connection, name).await?;
        let replica_role = take_replica_role(&mut connection).await?;
        let mut replica = PostgresReplica {
            connection,
            name: name.clone(),
            epoch: row.apply_epoch,
            replica_role,
            catalogs: HashMap::new(),
            tables: Tables::default(),
            members: HashMap::new(),
            careful: 0,
            large: None,
        };
        replica.read_members().await?;
        Ok((Box::new(replica), row))
    }
}

/// True when triggers and foreign keys do not fire for this session. The role needs SUPERUSER, or from PostgreSQL 15 on
/// `GRANT SET ON PARAMETER session_replication_role`.
async fn take_replica_role(connection: &mut PgConnection) -> Result<bool> {
    let set = connection.execute("SET session_replication_role = replica");
    match tokio::time::timeout(SHORT_WAIT, set).await {
        Ok(Ok(_)) => Ok(true),
        Ok(Err(error)) if errors::sqlstate(&error) == Some("42501") => Ok(false),
        Ok(Err(error)) => Err(errors::classify(error)),
        Err(_) => Err(Error::new(ErrorKind::Connection, "no answer to SET session_replication_role")),
    }
}

/// A claimed PostgreSQL replica.
struct PostgresReplica {
    connection: PgConnection,
    name: String,
    epoch: ApplyEpoch,
    /// Triggers and foreign keys do not fire.
    replica_role: bool,
    catalogs: HashMap<TableName, (Instant, Arc<Catalog>)>,
    tables: Tables,
    /// Tables that the ledger knows.
    members: HashMap<TableName, CopyState>,
    careful: u32,
    large: Option<Large>,
}

/// The open replica transaction of a huge source transaction.
struct Large {
    header: Arc<TransactionHeader>,
    /// Runs under the ordinary role, constraints deferred.
    origin: bool,
    changes: u64,
}

/// How a set of tables must be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mode {
    /// Under the ordinary role, constraints deferred, because of a deferrable constraint.
    origin: bool,
    /// Foreign keys and triggers fire.
    enforced: bool,
    style: Style,
}

#[async_trait]
impl Replica for PostgresReplica {
    async fn apply(&mut self, batch: &Batch, schemas: &Schemas) -> Result<Applied> {
        self.careful = self.careful.saturating_sub(1);
        let mut applied = Applied::default();
        // Ranges of transactions still to apply, the next one last.
        let mut ranges = vec![(0, batch.marks.len())];
        while let Some((from, to)) = ranges.pop() {
            let error = match self.apply_range(batch, from, to, schemas, None).await {
                Ok(()) => {
                    applied.commits += 1;
                    continue;
                }
                Err(error) => error,
            };
            if !worth_splitting(&error) {
                return Err(blame::at_marks(error, &batch.marks[from..to]));
            }
            applied.replayed = true;
            self.roll_back().await?;
            if to - from > 1 {
                let middle = from + (to - from) / 2;
                ranges.extend([(middle, to), (from, middle)]);
            } else {
                let culprit = self.apply_range(batch, from, to, schemas, Some(Style::OneByOne)).await;
                culprit.map_err(|error| blame::at_marks(error, &batch.marks[from..to]))?;
                applied.commits += 1;
            }
        }
        if applied.replayed {
            self.careful = CAREFUL_BATCHES;
        }
        Ok(applied)
    }

    async fn advance(&mut self, step: &Step) -> Result<()> {
        ledger::step(&mut self.connection, &self.name, self.epoch, step, SHORT_WAIT).await
    }

    async fn begin_large(&mut self, header: &Arc<TransactionHeader>) -> Result<()> {
        begin(&mut self.connection, false).await?;
        ledger::hold_epoch_alone(&mut self.connection, &self.name, self.epoch).await?;
        self.large = Some(Large { header: Arc::clone(header), origin: false, changes: 0 });
        Ok(())
    }

    async fn apply_piece(&mut self, changes: &[Change], schemas: &Schemas) -> Result<()> {
        let Some(header) = self.large.as_ref().map(|large| Arc::clone(&large.header)) else {
            return Err(Error::new(ErrorKind::Unexpected, "a piece of a transaction that was not begun"));
        };
        self.piece(changes, schemas).await.map_err(|error| blame::at_transaction(error, &header))
    }

    async fn commit_large(&mut self, step: &Step) -> Result<()> {
        ledger::step(&mut self.connection, &self.name, self.epoch, step, SHORT_WAIT).await?;
        self.commit().await?;
        self.large = None;
        Ok(())
    }

    async fn roll_back_large(&mut self) -> Result<()> {
        self.large = None;
        self.roll_back().await
    }

    fn forget_tables(&mut self) {
        self.catalogs.clear();
        self.tables.clear();
        self.members.clear();
    }
}

/// The rows were refused, or a table does not fit: other transactions of the batch may go in without them.
fn worth_splitting(error: &Error) -> bool {
    errors::concerns_rows(error) || error.kind() == ErrorKind::Halt(HaltCode::SchemaMismatch)
}

impl PostgresReplica {
    /// Applies some transactions of a batch in one replica transaction.
    async fn apply_range(
        &mut self,
        batch: &Batch,
        from: usize,
        to: usize,
        schemas: &Schemas,
        style: Option<Style>,
    ) -> Result<()> {
        let changes = &batch.changes[batch.changes_of(from, to)];
        let Some(step) = batch.step(from, to) else { return Ok(()) };
        self.prepare(changes, schemas).await?;
        let mut mode = self.mode(changes, false);
        mode.style = style.unwrap_or(mode.style);
        let work = plan::plan(changes, &self.tables, mode.style)?;
        begin(&mut self.connection, mode.origin).await?;
        ledger::step(&mut self.connection, &self.name, self.epoch, &step, SHORT_WAIT).await?;
        failpoint::hit("apply.ledger_moved")?;
        carry_out(&mut self.connection, &work, &self.tables, mode).await?;
        drop(work);
        self.commit().await
    }

    async fn piece(&mut self, changes: &[Change], schemas: &Schemas) -> Result<()> {
        self.prepare(changes, schemas).await?;
        let (origin, before) = self.large.as_ref().map_or((false, 0), |large| (large.origin, large.changes));
        let mode = self.mode(changes, origin);
        if mode.origin && !origin {
            within(SHORT_WAIT, "switching roles", self.connection.execute(AssertSqlSafe(UNDER_ORIGIN))).await?;
        }
        within(SHORT_WAIT, "setting a savepoint", self.connection.execute("SAVEPOINT piece")).await?;
        let work = plan::plan(changes, &self.tables, mode.style)?;
        match carry_out(&mut self.connection, &work, &self.tables, mode).await {
            Err(error) if errors::concerns_rows(&error) => {
                drop(work);
                within(SHORT_WAIT, "going back", self.connection.execute("ROLLBACK TO SAVEPOINT piece")).await?;
                let mode = Mode { style: Style::OneByOne, ..mode };
                let work = plan::plan(changes, &self.tables, mode.style)?;
                carry_out(&mut self.connection, &work, &self.tables, mode)
                    .await
                    .at(|| format!("piece behind change {before}"))?;
            }
            done => done?,
        }
        failpoint::hit("apply.piece")?;
        within(SHORT_WAIT, "ending a savepoint", self.connection.execute("RELEASE SAVEPOINT piece")).await?;
        if let Some(large) = &mut self.large {
            large.origin = mode.origin;
            large.changes += changes.len() as u64;
        }
        Ok(())
    }

    /// Fits every table version that changes use.
    async fn prepare(&mut self, changes: &[Change], schemas: &Schemas) -> Result<()> {
        let mut last = None;
        for change in changes {
            let ids: &[SchemaId] = match change {
                Change::Insert { table, .. } | Change::Update { table, .. } | Change::Delete { table, .. } => {
                    std::slice::from_ref(table)
                }
                Change::Truncate { tables, .. } => tables,
                Change::Message { .. } => &[],
            };
            for &id in ids {
                if last != Some(id) && !self.is_fresh(id) {
                    self.fit(id, schemas).await?;
                }
                last = Some(id);
            }
        }
        Ok(())
    }

    fn is_fresh(&self, id: SchemaId) -> bool {
        let fresh =
            |table: &Arc<Table>| self.catalogs.get(&table.schema.table).is_some_and(|(read, _)| read.elapsed() < CATALOG_AGE);
        self.tables.get(&id).is_some_and(fresh)
    }

    async fn fit(&mut self, id: SchemaId, schemas: &Schemas) -> Result<()> {
        let schema = schemas.get(&id).ok_or_else(|| {
            Error::new(ErrorKind::Malformed, format!("a change of table version {}, which no record before it has", id.0))
        })?;
        if matches!(self.members.get(&schema.table), None | Some(CopyState::Pending)) {
            self.read_members().await?;
        }
        if self.members.get(&schema.table) == Some(&CopyState::Pending) {
            let message = format!("table {} has come to the replica and is to be copied first", schema.table);
            return Err(Error::new(ErrorKind::Busy, message));
        }
        if !self.members.contains_key(&schema.table) {
            let message = format!(
                "table {} is in the log but not among the tables of replica '{}'; run `millstream init` to copy it, or exclude it \
                 from the source's tables",
                schema.table, self.name
            );
            return Err(Error::halt(HaltCode::SchemaMismatch, message));
        }
        let known = self.catalogs.get(&schema.table).filter(|(read, _)| read.elapsed() < CATALOG_AGE);
        let catalog = if let Some((_, catalog)) = known {
            Arc::clone(catalog)
        } else {
            let catalog = Arc::new(tables::read(&mut self.connection, &schema.table).await?);
            self.catalogs.insert(schema.table.clone(), (Instant::now(), Arc::clone(&catalog)));
            // Every version of the table is fitted again.
            self.tables.retain(|_, table| table.schema.table != schema.table);
            catalog
        };
        self.tables.insert(id, Arc::new(Table::fit(schema, &catalog)?));
        Ok(())
    }

    async fn read_members(&mut self) -> Result<()> {
        let tables = ledger::tables(&mut self.connection, &self.name).await?;
        self.members = tables.into_iter().collect();
        Ok(())
    }

    fn mode(&self, changes: &[Change], under_origin: bool) -> Mode {
        let mut used: Vec<&Arc<Table>> = Vec::new();
        let mut last = None;
        for change in changes {
            if let Change::Insert { table, .. } | Change::Update { table, .. } | Change::Delete { table, .. } = change
                && last != Some(*table)
            {
                last = Some(*table);
                if let Some(table) = self.tables.get(table)
                    && !used.iter().any(|known| Arc::ptr_eq(known, table))
                {
                    used.push(table);
                }
            }
        }
        let origin = under_origin || (self.replica_role && used.iter().any(|table| table.deferrable));
        let enforced = origin || !self.replica_role;
        let style = match (enforced && used.iter().any(|table| table.entangled), self.careful) {
            (true, _) => Style::Ordered,
            (false, 0) => Style::Net,
            (false, _) => Style::Careful,
        };
        Mode { origin, enforced, style }
    }

    async fn commit(&mut self) -> Result<()> {
        failpoint::hit("apply.before_commit")?;
        within(STATEMENT_WAIT, "COMMIT", self.connection.execute("COMMIT")).await.map(drop)
    }

    async fn roll_back(&mut self) -> Result<()> {
        within(SHORT_WAIT, "ROLLBACK", self.connection.execute("ROLLBACK")).await.map(drop)
    }
}

/// For the rest of the transaction: constraints that the replica role would switch off are checked at COMMIT.
const UNDER_ORIGIN: &str = "SET LOCAL session_replication_role = origin; SET CONSTRAINTS ALL DEFERRED";

async fn begin(connection: &mut PgConnection, origin: bool) -> Result<()> {
    let sql = if origin { format!("BEGIN; {UNDER_ORIGIN}") } else { "BEGIN".to_owned() };
    within(SHORT_WAIT, "BEGIN", connection.execute(AssertSqlSafe(sql))).await.map(drop)
}

async fn carry_out(connection: &mut PgConnection, work: &[Work<'_>], tables: &Tables, mode: Mode) -> Result<()> {
    let one_by_one = mode.style == Style::OneByOne;
    let mut writer = Writer { connection, enforced: mode.enforced, one_by_one };
    for item in work {
        writer
            .work(item, tables)
            .await
            .map_err(|error| if one_by_one { blame::at_change(error, item, tables) } else { error })?;
    }
    Ok(())
}
