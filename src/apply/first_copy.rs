//! Where a first copy and the replay of the log behind it meet (DESIGN decision 5: capture first, snapshot by visibility).
//!
//! ```text
//!  applier:  lock ─► raise epoch ─► FirstCopy::prepare ─────────────► read the log behind the cursor
//!                                     loads the chunks                   each transaction ─► CatchUp::admit
//!                                     (pending ► copying ► catching_up)  each commit ──────► CatchUp::committed
//!                                                                           builds deferred keys, tables live ─► done
//! ```

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::copy::CopyProgress;
use super::quarantine::Look;
use super::status::ApplyStatus;
use crate::error::{Error, Result};
use crate::event::{ApplyEpoch, Change, Position, SchemaId, TableSchema, TransactionHeader};

/// The table versions known at a place in the log.
pub type Schemas = HashMap<SchemaId, Arc<TableSchema>>;

/// Brings a replica's tables from nothing to where the log can be replayed over them.
#[async_trait]
pub trait FirstCopy: Send + Sync + 'static {
    /// True when the ledger has tables whose copy has not begun, or is to begin again: a later `init` added them, or somebody asked for it. The applier
    /// starts over then, so that [`Self::prepare`] loads them.
    ///
    /// # Errors
    /// Those of the replica.
    async fn wanted(&self) -> Result<bool>;

    /// True when somebody asked for a live table to be copied again: it may be what a halt is about.
    ///
    /// # Errors
    /// Those of the replica.
    async fn is_asked_again(&self) -> Result<bool>;

    /// What the replica has in quarantine, and whether what it stands at is to be tried at once.
    ///
    /// # Errors
    /// Those of the replica.
    async fn quarantine(&self) -> Result<Look>;

    /// The replica is paused: no connection to it is kept.
    async fn rest(&self) {}

    /// What loads tables that are added while the others are live. It shares this one's progress, and goes slowly while the others are late.
    fn of_added(&self, others: watch::Receiver<ApplyStatus>) -> Arc<dyn FirstCopy>;

    /// Whether the ledger has a row of added tables.
    ///
    /// # Errors
    /// Those of the replica.
    async fn is_apart(&self) -> Result<bool>;

    /// True when tables are [`Self::wanted`] and others are live, which need not wait for them.
    ///
    /// # Errors
    /// As [`Self::wanted`].
    async fn may_set_apart(&self) -> Result<bool>;

    /// Gives the tables that are wanted a row of their own in the ledger, at the place of the replica's row.
    ///
    /// # Errors
    /// Those of the replica.
    async fn set_apart(&self, epoch: ApplyEpoch) -> Result<()>;

    /// Does what was put off until the tables that were added had met the others; `met` when they just have. What cannot be done is tried again at
    /// the next start.
    ///
    /// # Errors
    /// Those of the replica.
    async fn validate(&self, met: bool) -> Result<()>;

    /// How far it is.
    fn progress(&self) -> watch::Receiver<CopyProgress>;

    /// True when the next [`Self::prepare`] begins with what the replay has found: no failure, so nothing to wait for.
    fn has_work(&self) -> bool {
        false
    }

    /// Loads every chunk that is not loaded yet. Called by the applier that holds the replica's lock and apply epoch, before it
    /// reads the log; called again after every reconnection. Each of its replica transactions must hold the epoch
    /// (`ledger::hold_epoch`).
    ///
    /// Gives what the replay needs until the tables are live; `None` when all are.
    ///
    /// # Errors
    /// As any work against source and replica; the applier retries or halts by them.
    async fn prepare(&self, epoch: ApplyEpoch, cancel: &CancellationToken) -> Result<Option<Box<dyn CatchUp>>>;
}

/// Stands between log and replica until the tables of a first copy are live.
#[async_trait]
pub trait CatchUp: Send {
    /// What of a transaction's changes (all of them, or of a huge transaction some thousands at a time) is to be applied, in order.
    ///
    /// # Errors
    /// As any work against source and replica.
    async fn admit(&mut self, transaction: &TransactionHeader, schemas: &Schemas, changes: Vec<Change>) -> Result<Vec<Change>>;

    /// What was admitted last cannot be applied before [`FirstCopy::prepare`] has done something: what came before it is applied, it is
    /// dropped and read again, and the session ends with this error. Asked after each unit of the log, at the end of a huge transaction.
    fn interruption(&mut self) -> Option<Error>;

    /// Everything up to a position is committed on the replica; no replica transaction is open. Does what is left to do there and
    /// gives true when every table is live; it is then asked no more.
    ///
    /// # Errors
    /// As any work against source and replica.
    async fn committed(&mut self, position: Position) -> Result<bool>;
}
