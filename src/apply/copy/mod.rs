//! The first copy of a PostgreSQL replica's tables: chunks straight from the source, then the log replayed over them.
//!
//! # Invariant
//!
//! For every key of a copied table, the replica holds what that key's chunk snapshot saw, changed by exactly the log's
//! transactions that the snapshot does not see, in commit order. A key's writers wait for each other, so those that a snapshot
//! sees are the first ones of the log's order: no insert meets a row and no update misses one.
//!
//! # Progression of a table (`millstream.copied_table.state`, durable)
//!
//! ```text
//!  pending ──plan──► copying ──last chunk──► catching_up ──past the last snapshot, keys and indexes built──► live
//!     ▲                │  definition changed,    │  definition changed, or a TRUNCATE
//!     │                │  table replaced         │  that only some chunks see, or another timeline (a failover),
//!     └────────────────┴──── emptied ────────────┘  or the replica's table replaced (that one is left alone)
//! ```
//!
//! A chunk is stored in the same replica transaction as its rows, so a kill repeats at most the chunks that were in flight. The plan
//! is stored before the first chunk. Tables become live together, in one replica transaction.
//!
//! # Order that matters
//!
//! 1. The consumer's place in the log (its ledger's cursor) stands before anything here begins, and does not move until every chunk is loaded.
//! 2. The publication holds the tables; then one snapshot is taken, and no chunk is read before every transaction in
//!    progress in it has ended: a commit can be in the log, before the cursor, and not yet be visible; and what a transaction
//!    wrote before its table was published never comes.
//! 3. Chunks ([`crate::capture::snapshot`]), into tables without their primary keys where those can be built afterwards (`key`).
//! 4. The replay, from the cursor, through `replay::Replay`.
//! 5. At the first commit at or past the highest insert LSN that was read after any chunk's snapshot, every transaction that any
//!    snapshot sees has come by, so the tables are at one commit boundary: deferred keys are built, the tables go live.
//!
//! Worked: chunk A is read at snapshot 100:103:101, chunk B later at 105:105:. Transaction 101 moves a row from A's range to B's.
//! A does not see it, B does. Replay of 101: the old half is A's and not seen, the row is deleted; the new half is B's and seen, dropped.
//!
//! Tables added to a replica that is live are copied by the same steps under a ledger row of their own, beside the others ([`crate::apply::added`]); so are live
//! tables that are copied again, whose rows are collected in a table beside them (`shadow`).
//!
//! Rejected: *LSN watermarks* (visibility order is not LSN order; rows are lost). *Emptying only the chunks that do not
//! see a TRUNCATE*: their ranges would be judged by the replica's collations.

mod finish;
mod key;
mod keys;
mod load;
mod look;
mod progress;
mod replay;
pub(crate) mod shadow;
mod state;
mod wait;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, Executor, PgConnection};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::apply::quarantine::Look;
use crate::apply::{ApplyStatus, CatchUp, FirstCopy};
use crate::capture::begin::publication_name;
use crate::capture::heartbeat;
use crate::capture::snapshot::TableReader;
use crate::config::{ReplicaConfig, SourceConfig};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::{ApplyEpoch, TableName, Xid};
use crate::failpoint;
use crate::halt::HaltCode;
use crate::postgres::sql::{Side, classify, connect};
use crate::preflight::init::{publication, slot};
use crate::replica::postgres::CHECK_CLIENT;
use crate::replica::postgres::added;
use crate::replica::postgres::ledger::{self, CopyState};
use crate::replica::postgres::quarantine::account;

use progress::Meter;
pub use progress::{CopyPhase, CopyProgress};
use state::CopyTable;
use wait::{backend, watched, within};

const APPLICATION: &str = "millstream copy";
/// Between two looks at transactions that are waited for.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Copies the tables of one replica.
pub struct PostgresCopy {
    source: SourceConfig,
    replica: ReplicaConfig,
    /// What the replay found that cannot be done while a replica transaction may be open. Lost in a crash, and then found again.
    todo: Arc<Mutex<Vec<Todo>>>,
    meter: Meter,
    /// Looks for tables to copy, every second.
    looking: tokio::sync::Mutex<Option<PgConnection>>,
    /// What the last look saw of quarantine.
    seen: tokio::sync::Mutex<account::Seen>,
}

/// Work for between two replays.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Todo {
    /// A table's copy begins again.
    Restart { table: TableName, why: String },
    /// A key is read again, now that a transaction is visible: as a chunk of its own.
    Reread { table: TableName, key: Vec<String>, after: Xid },
}

impl PostgresCopy {
    /// For one pair. The receiver tells how far it is.
    #[must_use]
    pub fn new(source: SourceConfig, replica: ReplicaConfig) -> (Arc<Self>, watch::Receiver<CopyProgress>) {
        let (meter, receiver) = Meter::new(source.copy_max_bytes_per_second);
        (
            Arc::new(Self {
                source,
                replica,
                todo: Arc::default(),
                meter,
                looking: tokio::sync::Mutex::default(),
                seen: tokio::sync::Mutex::default(),
            }),
            receiver,
        )
    }

    async fn replica(&self) -> Result<PgConnection> {
        connect_replica(&self.replica).await
    }

    /// Tables that are not live, each looked at again: a definition that changed meanwhile sends it back to `pending`.
    async fn tables(
        &self,
        replica: &mut PgConnection,
        reader: &mut TableReader,
        epoch: ApplyEpoch,
        timeline: u32,
    ) -> Result<Vec<CopyTable>> {
        let name = &self.replica.name;
        let mut tables = state::tables(replica, name).await?;
        for table in tables.iter_mut().filter(|t| t.state != CopyState::Pending && t.replaced) {
            self.restart(replica, epoch, &table.table, "its table on the replica was replaced").await?;
            *table = table.clone().pending();
        }
        if state::finishing(replica, name).await? {
            return Ok(tables);
        }
        for table in tables.iter_mut().filter(|t| t.state != CopyState::Pending) {
            if table.began_elsewhere(timeline) {
                let why = format!("the source is on timeline {timeline}, and may lack what was read from the server before it");
                self.restart(replica, epoch, &table.table, &why).await?;
                *table = table.clone().pending();
                continue;
            }
            let now = reader.shape(&table.table).await?;
            if table.began_as(&now) {
                table.shape = Some(now);
            } else {
                self.restart(replica, epoch, &table.table, "its definition at the source has changed").await?;
                *table = table.clone().pending();
            }
        }
        Ok(tables)
    }

    async fn restart(&self, replica: &mut PgConnection, epoch: ApplyEpoch, table: &TableName, why: &str) -> Result<()> {
        tracing::warn!(replica = self.replica.name, %table, why, "the table's first copy starts again");
        state::restart(replica, &self.replica.name, epoch, table).await.at(|| format!("table {table}"))
    }

    /// What the last replay left.
    async fn settle(&self, replica: &mut PgConnection, reader: &mut TableReader, epoch: ApplyEpoch) -> Result<()> {
        let left = std::mem::take(&mut *self.todo.lock().unwrap_or_else(PoisonError::into_inner));
        for todo in &left {
            if let Todo::Restart { table, why } = todo {
                self.restart(replica, epoch, table, why).await?;
            }
        }
        let restarted = |name: &TableName| left.iter().any(|t| matches!(t, Todo::Restart { table, .. } if table == name));
        for todo in &left {
            match todo {
                Todo::Reread { table, key, after } if !restarted(table) => {
                    self.wait_visible(reader, *after).await?;
                    load::reread(&self.replica.name, replica, reader, epoch, table, key).await?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A commit can be in the log before it is visible.
    async fn wait_visible(&self, reader: &mut TableReader, xid: Xid) -> Result<()> {
        while !reader.current_snapshot().await?.sees(xid) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    async fn published(&self, source: &mut PgConnection) -> Result<BTreeSet<TableName>> {
        let name = publication_name(&self.source.name);
        let found = within("reading the publication", publication::read(source, &name)).await?;
        Ok(found.map(|p| p.tables).unwrap_or_default())
    }

    /// Leaves tables out that an `init` has written into the ledger and not yet published: it may have been killed in between, which is no reason to
    /// stop the others.
    async fn only_published(&self, source: &mut PgConnection, tables: Vec<CopyTable>) -> Result<Vec<CopyTable>> {
        let published = self.published(source).await?;
        let (ours, others): (Vec<_>, Vec<_>) = tables.into_iter().partition(|t| published.contains(&t.table));
        for table in others {
            let (name, table, state) = (publication_name(&self.source.name), table.table, table.state);
            if state != CopyState::Pending {
                let message =
                    format!("table {table} is being copied and publication {name} does not have it; run `millstream init` again");
                return Err(Error::halt(HaltCode::SourceMisconfigured, message));
            }
            let replica = &self.replica.name;
            tracing::warn!(replica, %table, "is to be copied and not published yet; run `millstream init` again if it has ended");
        }
        Ok(ours)
    }

    /// Whom the copy is read from. Positions and transaction ids of another cluster mean nothing here.
    async fn timeline(&self, replica: &mut PgConnection) -> Result<u32> {
        let ours = ledger::load(replica, &self.replica.name).await?.history;
        let theirs = within("asking who the source is", slot::history(&self.source, String::new())).await?;
        if theirs.system_identifier == ours.system_identifier {
            return Ok(theirs.timeline);
        }
        let message = format!(
            "the source is cluster {}, and the replica is copied from cluster {}",
            theirs.system_identifier, ours.system_identifier
        );
        Err(Error::halt(HaltCode::HistoryChanged, message))
    }

    /// Waits until every transaction that is in progress now has ended (order 2 above).
    async fn barrier(&self, source: &mut PgConnection, reader: &mut TableReader) -> Result<()> {
        let first = reader.barrier_snapshot().await?;
        loop {
            let now = reader.current_snapshot().await?;
            let left: Vec<i64> = first.in_progress.iter().filter(|x| !now.sees(**x)).map(|x| x.0.cast_signed()).collect();
            if left.is_empty() {
                self.meter.waiting_for(None);
                return Ok(());
            }
            let blockers = slot::blockers(source, Some(&left), 0);
            let named = within("asking who is waited for", blockers).await?.into_iter().next();
            self.meter.waiting_for(named.map(|blocker| blocker.to_string()));
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn plan(
        &self,
        replica: &mut PgConnection,
        source: &mut PgConnection,
        reader: &mut TableReader,
        epoch: ApplyEpoch,
        tables: &[CopyTable],
        timeline: u32,
    ) -> Result<()> {
        let pending: Vec<&TableName> = tables.iter().filter(|t| t.state == CopyState::Pending).map(|t| &t.table).collect();
        if pending.is_empty() {
            return Ok(());
        }
        self.meter.phase(CopyPhase::Waiting);
        self.barrier(source, reader).await?;
        self.meter.phase(CopyPhase::Planning);
        for table in pending {
            let plan = reader.plan(table, self.source.copy_chunk_rows).await.at(|| format!("table {table}"))?;
            state::store_plan(replica, &self.replica.name, epoch, &plan, timeline).await.at(|| format!("table {table}"))?;
        }
        Ok(())
    }

    /// The replay ends at a commit behind the last snapshot: on a source at rest that would be the next heartbeat.
    async fn nudge(&self, source: &mut PgConnection) {
        // A standby takes none, and then the stream's own progress has to do.
        let sql = format!("SET LOCAL synchronous_commit = local; {}", heartbeat::statement());
        let beat = async { source.execute(AssertSqlSafe(sql)).await.map_err(|e| classify(e, Side::Source)) };
        if let Err(error) = within("writing a heartbeat", beat).await {
            tracing::debug!(%error, "no heartbeat at the end of a copy");
        }
    }

    async fn load(
        &self,
        mut replica: PgConnection,
        epoch: ApplyEpoch,
        cancel: &CancellationToken,
    ) -> Result<Option<Box<dyn CatchUp>>> {
        let name = &self.replica.name;
        shadow::sweep(&mut replica).await?;
        let tables = state::tables(&mut replica, name).await?;
        if tables.is_empty() {
            self.meter.phase(CopyPhase::None);
            return Ok(None);
        }
        self.meter.again(tables.iter().filter(|t| t.shadow.is_some()).map(|t| t.table.to_string()).collect());
        failpoint::hit("copy.registered")?;
        let mut source = connect(&self.source.connect, Side::Source, APPLICATION).await?;
        let mut reader = TableReader::connect(&self.source.connect).await?;
        self.settle(&mut replica, &mut reader, epoch).await?;
        loop {
            let timeline = self.timeline(&mut replica).await?;
            let tables = self.tables(&mut replica, &mut reader, epoch, timeline).await?;
            let tables = self.only_published(&mut source, tables).await?;
            if tables.is_empty() {
                self.meter.phase(CopyPhase::None);
                return Ok(None);
            }
            self.plan(&mut replica, &mut source, &mut reader, epoch, &tables, timeline).await?;
            let changed = load::load_all(self, epoch, cancel, &mut replica).await?;
            for table in &changed {
                self.restart(&mut replica, epoch, table, "its definition at the source has changed").await?;
            }
            // A failover while the chunks were read: of which server each of them is, nobody knows.
            if changed.is_empty() && self.timeline(&mut replica).await? == timeline {
                break;
            }
        }
        tokio::select! {
            () = cancel.cancelled() => return Err(Error::new(ErrorKind::Cancelled, "asked to end")),
            built = key::build_all(self, &mut replica, epoch) => built?,
        }
        tokio::select! {
            () = cancel.cancelled() => return Err(Error::new(ErrorKind::Cancelled, "asked to end")),
            built = shadow::build_keys(self, &mut replica, epoch) => built?,
        }
        state::all_loaded(&mut replica, name, epoch).await?;
        self.nudge(&mut source).await;
        let finishing = state::finishing(&mut replica, name).await?;
        let mut tables = Vec::new();
        for mut table in state::tables(&mut replica, name).await?.into_iter().filter(|t| t.state != CopyState::Pending) {
            let shape = reader.shape(&table.table).await?;
            if !finishing && !table.began_as(&shape) {
                let message = format!("the definition of {} has just changed", table.table);
                return Err(Error::new(ErrorKind::Busy, message));
            }
            table.shape = Some(shape);
            tables.push((state::chunks(&mut replica, name, &table.table).await?, table));
        }
        self.meter.phase(CopyPhase::CatchingUp);
        let replay = replay::Replay::new(self, epoch, tables)?;
        tracing::info!(replica = name, until = %replay.target(), "every chunk is loaded; the log is replayed over them");
        Ok(Some(Box::new(replay)))
    }
}

#[async_trait]
impl FirstCopy for PostgresCopy {
    async fn wanted(&self) -> Result<bool> {
        let look = async {
            let waiting = self.look_for_work().await?;
            if waiting.is_empty() {
                return Ok(false);
            }
            let mut source = connect(&self.source.connect, Side::Source, APPLICATION).await?;
            let published = self.published(&mut source).await?;
            Ok(waiting.iter().any(|table| published.contains(table)))
        };
        within("looking for tables to copy", look).await
    }

    async fn rest(&self) {
        self.looking.lock().await.take();
    }

    async fn is_asked_again(&self) -> Result<bool> {
        within("looking for tables to copy again", async {
            let mut replica = self.take_look().await?;
            let asked = added::asked_again(&mut replica, &self.replica.name).await?;
            *self.looking.lock().await = Some(replica);
            Ok(!asked.is_empty())
        })
        .await
    }

    async fn quarantine(&self) -> Result<Look> {
        within("looking for what is in quarantine", async {
            let mut replica = self.take_look().await?;
            let found =
                account::look(&mut replica, &self.replica.name, account::SHOWN_KEYS, &mut *self.seen.lock().await).await?;
            *self.looking.lock().await = Some(replica);
            Ok(found)
        })
        .await
    }

    fn of_added(&self, others: watch::Receiver<ApplyStatus>) -> Arc<dyn FirstCopy> {
        let mut replica = self.replica.clone();
        replica.name = ledger::added(&self.replica.name);
        let (source, meter) = (self.source.clone(), self.meter.behind(others));
        Arc::new(Self {
            source,
            replica,
            todo: Arc::default(),
            meter,
            looking: tokio::sync::Mutex::default(),
            seen: tokio::sync::Mutex::default(),
        })
    }

    async fn is_apart(&self) -> Result<bool> {
        Ok(self.rows().await?.apart)
    }

    async fn may_set_apart(&self) -> Result<bool> {
        if !self.rows().await?.live {
            return Ok(false);
        }
        match self.wanted().await {
            // Where only live tables wait for it, the log can be applied without the source.
            Err(error) if self.none_is_pending().await? => {
                tracing::warn!(replica = self.replica.name, %error, "tables that are to be copied again wait for the source");
                Ok(false)
            }
            found => found,
        }
    }

    async fn set_apart(&self, epoch: ApplyEpoch) -> Result<()> {
        let look = async {
            let mut replica = connect(&self.replica.connect, Side::Replica, APPLICATION).await?;
            let mut source = connect(&self.source.connect, Side::Source, APPLICATION).await?;
            let published = self.published(&mut source).await?;
            let pending = state::tables(&mut replica, &self.replica.name).await?;
            let pending = pending.into_iter().filter(|t| t.state == CopyState::Pending).map(|t| t.table);
            let again = added::asked_again(&mut replica, &self.replica.name).await?;
            let tables: Vec<TableName> = pending.chain(again).filter(|table| published.contains(table)).collect();
            added::set_apart(&mut replica, &self.replica.name, epoch, &tables).await
        };
        within("setting tables apart", look).await
    }

    async fn validate(&self, met: bool) -> Result<()> {
        if met {
            self.meter.phase(CopyPhase::None);
        }
        let mut replica = self.replica().await?;
        shadow::sweep(&mut replica).await?;
        finish::validate(&mut replica, &self.replica.name, &self.meter).await
    }

    fn progress(&self) -> watch::Receiver<CopyProgress> {
        self.meter.progress()
    }

    fn has_work(&self) -> bool {
        !self.todo.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    async fn prepare(&self, epoch: ApplyEpoch, cancel: &CancellationToken) -> Result<Option<Box<dyn CatchUp>>> {
        let mut replica = self.replica().await?;
        let backend = backend(&mut replica).await?;
        let loaded = watched(&self.replica.connect, backend, self.load(replica, epoch, cancel)).await;
        let of_source = ErrorKind::Halt(HaltCode::SourceMisconfigured);
        match loaded {
            Err(error) if error.kind() == of_source && self.misses_a_table().await => Err(error.with_kind(ErrorKind::Busy)),
            loaded => loaded,
        }
    }
}

/// A loader may wait this long for the source between two statements of its replica transaction. Its transactions hold the ledger's row
/// (I8): one whose daemon is gone, behind a proxy that keeps its connection, must not hold it for ever.
const IDLE_LIMIT: &str = "SET idle_in_transaction_session_timeout = '5min'";

/// Opens a connection to the replica on which, where the role may, triggers and foreign keys do not fire. Its work ends soon after its client:
/// an index build that goes on alone would hold the ledger's row, and with it the next applier, to its end.
async fn connect_replica(config: &ReplicaConfig) -> Result<PgConnection> {
    let mut connection = connect(&config.connect, Side::Replica, APPLICATION).await?;
    let set_up = async {
        connection.execute(IDLE_LIMIT).await.map_err(|e| classify(e, Side::Replica))?;
        match connection.execute(CHECK_CLIENT).await {
            // Before PostgreSQL 14, and on some platforms, there is no such setting.
            Ok(_) | Err(sqlx::Error::Database(_)) => {}
            Err(e) => return Err(classify(e, Side::Replica)),
        }
        match connection.execute("SET session_replication_role = replica").await {
            Ok(_) => Ok(()),
            Err(e) if e.as_database_error().and_then(|d| d.code()).is_some_and(|code| code == "42501") => Ok(()),
            Err(e) => Err(classify(e, Side::Replica)),
        }
    };
    within("setting up the session", set_up).await?;
    Ok(connection)
}
