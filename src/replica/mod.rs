//! What a database engine needs to be a replica: writing batches, the ledger, its errors.
//!
//! Invariant (I3, I8): whatever a [`Replica`] commits, it commits together with the ledger's step, under the apply epoch that it
//! claimed. What a failed call has done is told by the ledger alone: the applier drops the session, claims the replica
//! again, and goes on from what it finds there. A COMMIT whose answer was lost needs nothing more than that: the claim waits
//! for the row lock of a transaction that is still ending.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::apply::first_copy::Schemas;
use crate::apply::merge::Batch;
use crate::error::Result;
use crate::event::{ApplyEpoch, Change, History, StreamId, TransactionHeader};
use crate::queue::log::Cursor;

pub mod postgres;

/// The ledger's row of one replica.
#[derive(Clone, Debug)]
pub struct ReplicaRow {
    /// The replica's name.
    pub name: String,
    /// Its source's name.
    pub source: String,
    /// The stream it reads.
    pub stream: StreamId,
    /// The source's identity.
    pub history: History,
    /// Up to where the log is applied; `None` for nothing yet.
    pub cursor: Option<Cursor>,
    /// The applier in force.
    pub apply_epoch: ApplyEpoch,
    /// The source's clock at the cursor.
    pub source_time_us: Option<i64>,
    /// Source transactions applied.
    pub transactions: u64,
    /// Changes applied.
    pub changes: u64,
}

/// What one replica transaction adds to the ledger.
#[derive(Clone, Debug)]
pub struct Step {
    /// The new place in the log.
    pub cursor: Cursor,
    /// The source's clock there, when the log says.
    pub source_time_us: Option<i64>,
    /// Source transactions in it.
    pub transactions: u64,
    /// Changes in it.
    pub changes: u64,
    /// The source's identity, when the log says that it went on.
    pub history: Option<History>,
}

/// How a batch came to be applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Source transactions of the batch that are committed, from its first on.
    pub transactions: usize,
    /// Replica transactions that it took.
    pub commits: u64,
    /// True when it was refused as a whole and went in by pieces.
    pub replayed: bool,
}

/// A database that can be applied to: one for each configured replica.
#[async_trait]
pub trait ReplicaTarget: Send + Sync + 'static {
    /// The same database under another row of the ledger.
    fn named(&self, row: &str) -> Arc<dyn ReplicaTarget>;

    /// Connects, takes the lock, raises the apply epoch, reads the ledger.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Held`] when another applier has it; a halt with `not_initialized` without a ledger.
    async fn claim(&self) -> Result<(Box<dyn Replica>, ReplicaRow)>;
}

/// Between two signs of life of an applier that waits.
pub const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Waits for something else, with signs of life meanwhile.
///
/// # Errors
/// The work's, and those of [`Replica::keep_alive`].
pub async fn kept_alive<T>(replica: &mut dyn Replica, work: impl Future<Output = Result<T>> + Send) -> Result<T> {
    tokio::pin!(work);
    loop {
        match tokio::time::timeout(KEEP_ALIVE, &mut work).await {
            Ok(done) => return done,
            Err(_) => replica.keep_alive().await?,
        }
    }
}

/// A claimed replica: one session.
#[async_trait]
pub trait Replica: Send {
    /// Applies whole transactions and moves the ledger, in one replica transaction; in several, each with its own step and in
    /// commit order, when as a whole it was refused.
    ///
    /// # Errors
    /// A halt with `replica_conflict`, `replica_constraint`, `schema_mismatch` or `quarantined_key` at the transaction that cannot be applied, with
    /// everything before it committed and counted in `applied`. One that was ordered to be kept in quarantine counts as applied. [`crate::ErrorKind::Fenced`] when a newer applier took over.
    async fn apply(&mut self, batch: &Batch, schemas: &Schemas, applied: &mut Applied) -> Result<()>;

    /// Moves the ledger alone.
    ///
    /// # Errors
    /// As [`Self::apply`].
    async fn advance(&mut self, step: &Step) -> Result<()>;

    /// Opens the replica transaction of a huge source transaction.
    ///
    /// # Errors
    /// As [`Self::apply`].
    async fn begin_large(&mut self, header: &Arc<TransactionHeader>) -> Result<()>;

    /// Applies a piece of it.
    ///
    /// # Errors
    /// As [`Self::apply`]; the transaction is rolled back.
    async fn apply_piece(&mut self, changes: &[Change], schemas: &Schemas) -> Result<()>;

    /// Commits it with its step.
    ///
    /// # Errors
    /// As [`Self::apply`].
    async fn commit_large(&mut self, step: &Step) -> Result<()>;

    /// Rolls it back: its parts are void.
    ///
    /// # Errors
    /// The connection's.
    async fn roll_back_large(&mut self) -> Result<()>;

    /// Takes the tables of another row of the ledger, which stands at exactly the same place, under its own, and deletes that row: one replica
    /// transaction.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Busy`] when it stands elsewhere; the server's. Nothing is changed then, and the replica can be applied to.
    async fn take_in(&mut self, added: &str) -> Result<()>;

    /// Shows that this applier lives while it has nothing to write: called every [`KEEP_ALIVE`], outside of replica transactions. One that does not
    /// is taken for the orphan of a daemon that is gone, and another takes over.
    ///
    /// # Errors
    /// The connection's.
    async fn keep_alive(&mut self) -> Result<()>;

    /// Forgets what it knows of tables: their definitions may have changed.
    fn forget_tables(&mut self);
}
