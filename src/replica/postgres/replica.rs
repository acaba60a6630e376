//! The claimed replica: replica transactions from BEGIN to COMMIT, and what happens when one is refused.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, Executor, PgConnection};

use super::catalog::Catalog;
use super::errors::{SHORT_WAIT, within};
use super::members::Members;
use super::plan::{Style, Tables, Work};
use super::prepare::Mode;
use super::quarantine::{Keeper, Touched};
use super::write::{Moving, PATIENT_WAIT, STATEMENT_WAIT, Writer};
use super::{added, blame, definition, errors, ledger, plan};
use crate::apply::first_copy::Schemas;
use crate::apply::merge::Batch;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::{ApplyEpoch, Change, SchemaId, TableName, TransactionHeader};
use crate::failpoint;
use crate::halt::HaltCode;
use crate::replica::{Applied, Replica, ReplicaRow, Step};

/// A claimed PostgreSQL replica.
pub(super) struct PostgresReplica {
    pub(super) connection: PgConnection,
    pub(super) name: String,
    /// The source's configured name.
    pub(super) source: String,
    pub(super) epoch: ApplyEpoch,
    /// Triggers and foreign keys do not fire.
    pub(super) replica_role: bool,
    pub(super) catalogs: HashMap<TableName, Arc<Catalog>>,
    pub(super) tables: Tables,
    /// Tables that the ledger knows.
    pub(super) members: Members,
    /// Versions of tables whose changes are dropped: they leave before they were ever live, or are under the replica's other row.
    pub(super) dropped: HashSet<SchemaId>,
    /// Rows whose changes are in quarantine; `None` before that was read.
    pub(super) touched: Option<Touched>,
    /// What is in quarantine is applied: its own rows are not in its way.
    pub(super) retrying: bool,
    moving: Moving,
    large: Option<Large>,
}

/// The open replica transaction of a huge source transaction.
struct Large {
    header: Arc<TransactionHeader>,
    /// Runs under the ordinary role, constraints deferred.
    origin: bool,
    changes: u64,
    /// It is kept in quarantine instead of being applied.
    keeper: Option<Keeper>,
}

#[async_trait]
impl Replica for PostgresReplica {
    async fn apply(&mut self, batch: &Batch, schemas: &Schemas, applied: &mut Applied) -> Result<()> {
        // Ranges of transactions still to apply, the next one last.
        let mut ranges = batch.ranges();
        while let Some((from, to)) = ranges.pop() {
            let error = match self.apply_range(batch, from, to, schemas, Way::Usual).await {
                Ok(()) => {
                    applied.commits += 1;
                    applied.transactions = to;
                    continue;
                }
                Err(error) => error,
            };
            let canceled = errors::is_canceled(&error);
            if !canceled && !worth_splitting(&error) {
                return Err(blame::at_marks(error, &batch.marks[from..to]));
            }
            applied.replayed = true;
            self.roll_back().await?;
            // It may have been another table that refused them.
            self.forget_tables();
            if to - from > 1 {
                let middle = from + (to - from) / 2;
                ranges.extend([(middle, to), (from, middle)]);
            } else {
                let way = if canceled { Way::Patient } else { Way::OneByOne };
                if let Err(culprit) = self.apply_range(batch, from, to, schemas, way).await.map_err(too_long) {
                    self.refused(batch, from, schemas, blame::at_marks(culprit, &batch.marks[from..to])).await?;
                }
                applied.commits += 1;
                applied.transactions = to;
            }
        }
        Ok(())
    }

    async fn advance(&mut self, step: &Step) -> Result<()> {
        ledger::step(&mut self.connection, &self.name, self.epoch, step, SHORT_WAIT).await
    }

    async fn begin_large(&mut self, header: &Arc<TransactionHeader>) -> Result<()> {
        begin(&mut self.connection, false, self.replica_role).await?;
        ledger::hold_epoch_alone(&mut self.connection, &self.name, self.epoch).await?;
        let keeper = self.keeps_large(header).await?;
        self.large = Some(Large { header: Arc::clone(header), origin: false, changes: 0, keeper });
        Ok(())
    }

    async fn apply_piece(&mut self, changes: &[Change], schemas: &Schemas) -> Result<()> {
        let Some(mut large) = self.large.take() else {
            return Err(Error::new(ErrorKind::Unexpected, "a piece of a transaction that was not begun"));
        };
        if let Some(keeper) = &mut large.keeper {
            if let Err(error) = self.keep_changes(keeper, changes, schemas).await {
                let error = blame::at_transaction(error, &large.header);
                return Err(self.refused_large(&large.header, true, error).await);
            }
            self.large = Some(large);
            return Ok(());
        }
        let header = Arc::clone(&large.header);
        self.large = Some(large);
        let Err(error) = self.piece(changes, schemas).await else { return Ok(()) };
        Err(self.refused_large(&header, false, blame::at_transaction(error, &header)).await)
    }

    async fn commit_large(&mut self, step: &Step) -> Result<()> {
        let Some(large) = self.large.take() else {
            return Err(Error::new(ErrorKind::Unexpected, "the end of a transaction that was not begun"));
        };
        if let Some(keeper) = large.keeper {
            return self.end_keeping(keeper, &large.header, step).await;
        }
        ledger::step(&mut self.connection, &self.name, self.epoch, step, SHORT_WAIT).await?;
        let Err(error) = self.commit().await else { return Ok(()) };
        Err(self.refused_large(&large.header, false, error).await)
    }

    async fn roll_back_large(&mut self) -> Result<()> {
        self.large = None;
        // What was noted of tables is rolled back as well.
        self.forget_tables();
        self.roll_back().await
    }

    async fn take_in(&mut self, added: &str) -> Result<()> {
        match added::take_in(&mut self.connection, &self.name, added, self.epoch).await {
            Ok(()) => {
                self.forget_tables();
                Ok(())
            }
            Err(error) => {
                self.roll_back().await?;
                Err(error)
            }
        }
    }

    async fn keep_alive(&mut self) -> Result<()> {
        within(SHORT_WAIT, "showing a sign of life", self.connection.execute("SELECT 1")).await.map(drop)
    }

    fn forget_tables(&mut self) {
        self.catalogs.clear();
        self.tables.clear();
        self.members.clear();
        self.dropped.clear();
        self.touched = None;
    }
}

/// The rows were refused, or a table does not fit: other transactions of the batch may go in without them.
fn worth_splitting(error: &Error) -> bool {
    errors::concerns_rows(error) || matches!(error.kind(), ErrorKind::Halt(HaltCode::SchemaMismatch | HaltCode::QuarantinedKey))
}

/// How some transactions are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Usual,
    /// Row by row: names the culprit.
    OneByOne,
    /// With time for a statement that a batch has not.
    Patient,
}

/// One transaction's statement was given up even so. Trying again for ever would mend nothing.
fn too_long(error: Error) -> Error {
    if !errors::is_canceled(&error) {
        return error;
    }
    error.with_kind(ErrorKind::Halt(HaltCode::ReplicaConstraint)).context(
        "the replica gave a statement of one transaction up (statement_timeout, here 30 min); look for a missing index on the table's key, \
         a slow trigger, or a pg_cancel_backend",
    )
}

impl PostgresReplica {
    /// On a session that holds the lock and has raised the epoch.
    pub(super) fn new(connection: PgConnection, row: &ReplicaRow, replica_role: bool) -> Self {
        Self {
            connection,
            name: row.name.clone(),
            source: row.source.clone(),
            epoch: row.apply_epoch,
            replica_role,
            catalogs: HashMap::new(),
            tables: Tables::default(),
            members: Members::new(),
            dropped: HashSet::new(),
            touched: None,
            retrying: false,
            moving: Moving::default(),
            large: None,
        }
    }

    /// Applies some transactions of a batch in one replica transaction.
    async fn apply_range(&mut self, batch: &Batch, from: usize, to: usize, schemas: &Schemas, way: Way) -> Result<()> {
        let changes = &batch.changes[batch.changes_of(from, to)];
        let Some(step) = batch.step(from, to) else { return Ok(()) };
        if batch.changes_schema(from, to) {
            return self.apply_with_ddl(changes, &step, schemas, way).await;
        }
        self.prepare(changes, schemas).await?;
        let changes = &*self.kept(changes);
        self.check_quarantine(changes, false).await?;
        let mut mode = self.mode(changes, false);
        if way == Way::OneByOne {
            mode.style = Style::OneByOne;
        }
        let work = plan::plan(changes, &self.tables, mode.style)?;
        begin(&mut self.connection, mode.origin, self.replica_role).await?;
        ledger::step(&mut self.connection, &self.name, self.epoch, &step, SHORT_WAIT).await?;
        failpoint::hit("apply.ledger_moved")?;
        if way == Way::Patient {
            within(SHORT_WAIT, "allowing more time", self.connection.execute(PATIENT)).await?;
        }
        carry_out(&mut self.connection, &mut self.moving, &work, &self.tables, mode, way).await?;
        drop(work);
        self.commit().await
    }

    /// Applies one transaction that changes the schema: what stands before a schema change in it, the change, what stands behind it.
    async fn apply_with_ddl(&mut self, changes: &[Change], step: &Step, schemas: &Schemas, way: Way) -> Result<()> {
        begin(&mut self.connection, false, self.replica_role).await?;
        ledger::step(&mut self.connection, &self.name, self.epoch, step, SHORT_WAIT).await?;
        failpoint::hit("apply.ledger_moved")?;
        let mut origin = false;
        for section in sections(changes) {
            if let [Change::Schema { content }] = section {
                self.carry(content, origin || !self.replica_role).await?;
                continue;
            }
            self.prepare(section, schemas).await?;
            let rows = &*self.kept(section);
            self.check_quarantine(rows, origin).await?;
            let mut mode = self.mode(rows, origin);
            if way == Way::OneByOne {
                mode.style = Style::OneByOne;
            }
            if mode.origin && !origin {
                within(SHORT_WAIT, "switching roles", self.connection.execute(AssertSqlSafe(UNDER_ORIGIN))).await?;
                origin = true;
            }
            if way == Way::Patient {
                within(SHORT_WAIT, "allowing more time", self.connection.execute(PATIENT)).await?;
            }
            let work = plan::plan(rows, &self.tables, mode.style)?;
            carry_out(&mut self.connection, &mut self.moving, &work, &self.tables, mode, way).await?;
        }
        self.commit().await
    }

    /// Writes some changes in a transaction that is open, begun with [`Self::begin_retry`] or as a huge one.
    pub(super) async fn piece(&mut self, changes: &[Change], schemas: &Schemas) -> Result<()> {
        for section in sections(changes) {
            if let [Change::Schema { content }] = section {
                let origin = self.large.as_ref().is_some_and(|large| large.origin);
                self.carry(content, origin || !self.replica_role).await?;
                if let Some(large) = &mut self.large {
                    large.changes += 1;
                }
            } else {
                self.piece_of_rows(section, schemas).await?;
            }
        }
        Ok(())
    }

    async fn piece_of_rows(&mut self, changes: &[Change], schemas: &Schemas) -> Result<()> {
        self.prepare(changes, schemas).await?;
        let seen = changes.len() as u64;
        let changes = &*self.kept(changes);
        let (origin, before) = self.large.as_ref().map_or((false, 0), |large| (large.origin, large.changes));
        self.check_quarantine(changes, origin).await?;
        let mut mode = self.mode(changes, origin);
        self.under_origin(mode, origin).await?;
        within(SHORT_WAIT, "setting a savepoint", self.connection.execute("SAVEPOINT piece")).await?;
        let work = plan::plan(changes, &self.tables, mode.style)?;
        let mut patient = false;
        match carry_out(&mut self.connection, &mut self.moving, &work, &self.tables, mode, Way::Usual).await {
            Err(error) if errors::concerns_rows(&error) || errors::is_canceled(&error) => {
                drop(work);
                within(SHORT_WAIT, "going back", self.connection.execute("ROLLBACK TO SAVEPOINT piece")).await?;
                self.forget_tables();
                self.prepare(changes, schemas).await?;
                let before_it = mode.origin;
                mode = self.mode(changes, before_it);
                self.under_origin(mode, before_it).await?;
                let way = if errors::is_canceled(&error) {
                    within(SHORT_WAIT, "allowing more time", self.connection.execute(PATIENT)).await?;
                    patient = true;
                    Way::Patient
                } else {
                    mode.style = Style::OneByOne;
                    Way::OneByOne
                };
                let work = plan::plan(changes, &self.tables, mode.style)?;
                carry_out(&mut self.connection, &mut self.moving, &work, &self.tables, mode, way)
                    .await
                    .map_err(too_long)
                    .at(|| format!("piece behind change {before}"))?;
            }
            done => done?,
        }
        if patient {
            // The client waits no longer than this for the next piece.
            within(SHORT_WAIT, "allowing the usual time", self.connection.execute(USUAL_TIME)).await?;
        }
        failpoint::hit("apply.piece")?;
        within(SHORT_WAIT, "ending a savepoint", self.connection.execute("RELEASE SAVEPOINT piece")).await?;
        if let Some(large) = &mut self.large {
            large.origin = mode.origin;
            large.changes += seen;
        }
        Ok(())
    }

    /// For the rest of the transaction, where the mode asks for it and it is not so already.
    async fn under_origin(&mut self, mode: Mode, already: bool) -> Result<()> {
        if mode.origin && !already {
            within(SHORT_WAIT, "switching roles", self.connection.execute(AssertSqlSafe(UNDER_ORIGIN))).await?;
        }
        Ok(())
    }

    /// Opens a replica transaction in which pieces of what was kept are applied; what they are of is said with each source transaction.
    pub(super) async fn begin_retry(&mut self, header: &Arc<TransactionHeader>) -> Result<()> {
        self.begin_plainly().await?;
        self.epoch = ledger::hold(&mut self.connection, &self.name).await?;
        self.large = Some(Large { header: Arc::clone(header), origin: false, changes: 0, keeper: None });
        self.retrying = true;
        Ok(())
    }

    pub(super) async fn begin_plainly(&mut self) -> Result<()> {
        begin(&mut self.connection, false, self.replica_role).await
    }

    pub(super) async fn commit(&mut self) -> Result<()> {
        failpoint::hit("apply.before_commit")?;
        within(STATEMENT_WAIT, "COMMIT", self.connection.execute("COMMIT")).await.map(drop)
    }

    pub(super) async fn roll_back(&mut self) -> Result<()> {
        within(SHORT_WAIT, "ROLLBACK", self.connection.execute("ROLLBACK")).await.map(drop)
    }
}

/// Changes cut before and behind every schema change.
fn sections(changes: &[Change]) -> impl Iterator<Item = &[Change]> {
    changes.chunk_by(|a, b| !matches!(a, Change::Schema { .. }) && !matches!(b, Change::Schema { .. }))
}

/// For the rest of the transaction; the client's own deadline is a little later.
const PATIENT: &str = "SET LOCAL statement_timeout = '30min'";
/// As for every other statement of an applier.
const USUAL_TIME: &str = "SET LOCAL statement_timeout = '120s'";
/// For the rest of the transaction: constraints that the replica role would switch off are checked at COMMIT.
const UNDER_ORIGIN: &str = "SET LOCAL session_replication_role = origin; SET CONSTRAINTS ALL DEFERRED";
/// Foreign keys are enforced: those that the source could put off to its COMMIT are put off here as well.
const DEFERRED: &str = "SET CONSTRAINTS ALL DEFERRED";

async fn begin(connection: &mut PgConnection, origin: bool, replica_role: bool) -> Result<()> {
    let sql = match (origin, replica_role) {
        (true, _) => format!("BEGIN; {UNDER_ORIGIN}"),
        (false, true) => "BEGIN".to_owned(),
        (false, false) => format!("BEGIN; {DEFERRED}"),
    };
    within(SHORT_WAIT, "BEGIN", connection.execute(AssertSqlSafe(sql))).await.map(drop)
}

/// Writes, and makes sure that it was the tables that were meant.
async fn carry_out(
    connection: &mut PgConnection,
    moving: &mut Moving,
    work: &[Work<'_>],
    tables: &Tables,
    mode: Mode,
    way: Way,
) -> Result<()> {
    let one_by_one = mode.style == Style::OneByOne;
    let limit = if way == Way::Patient { PATIENT_WAIT } else { STATEMENT_WAIT };
    let mut writer = Writer { connection, enforced: mode.enforced, one_by_one, limit, moving };
    for item in work {
        writer
            .work(item, tables)
            .await
            .map_err(|error| if one_by_one { blame::at_change(error, item, tables) } else { error })?;
    }
    definition::still_meant(writer.connection, work, tables).await
}
