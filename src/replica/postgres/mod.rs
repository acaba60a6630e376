//! A PostgreSQL replica.
//!
//! One session per applier: it holds the replica's advisory lock, has raised the apply epoch, and runs with
//! `session_replication_role = replica` where the role may. Legal progression of a replica transaction:
//!
//! ```text
//! BEGIN ─► ledger step (row lock, epoch checked, I8) ─► rows ─► still the tables that were meant? ─► COMMIT
//!             │ 0 rows: fenced                │ refused            │ no
//!             ▼                               ▼                    └► session ends, tables are read anew
//!          session ends                    ROLLBACK ─► the same in halves, committing what goes in
//!                                                      ─► one transaction row by row: names the culprit, halts
//!                                                         (given up past statement_timeout: as it was, with more time)
//! ```
//!
//! Nothing in memory matters to correctness: the ledger tells what is applied. Table definitions are cached, and read again
//! after any failure and whenever `definition` finds another one behind the writes.
//!
//! `session_replication_role = replica` switches deferrable unique constraints off (duplicates are stored in silence), so a
//! replica transaction that touches a table with one runs under `origin`, with constraints deferred, in the source's order.
//!
//! Rejected: `ON CONFLICT DO UPDATE`: it hides conflicts, and on a table with a second unique key it may hit another row.

use std::sync::Arc;

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, Executor, PgConnection};

use self::errors::{SHORT_WAIT, within};
use self::replica::PostgresReplica;
use super::{Replica, ReplicaRow, ReplicaTarget};
use crate::config::ReplicaConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::sql::{self, Side};

pub mod added;
pub mod blame;
pub mod catalog;
mod ddl;
mod definition;
pub mod errors;
pub mod ledger;
pub mod lock;
pub(crate) mod members;
pub mod modifier;
pub mod plan;
mod prepare;
pub mod quarantine;
mod replica;
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
/// Ends a statement whose client is gone. PostgreSQL 14 and later, not on every platform: a refusal means nothing.
pub(crate) const CHECK_CLIENT: &str = "SET client_connection_check_interval = '5s'";

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
    fn named(&self, row: &str) -> Arc<dyn ReplicaTarget> {
        Arc::new(Self { config: ReplicaConfig { name: row.to_owned(), ..self.config.clone() } })
    }

    async fn claim(&self) -> Result<(Box<dyn Replica>, ReplicaRow)> {
        let name = &self.config.name;
        let mut connection = sql::connect(&self.config.connect, Side::Replica, &format!("millstream apply {name}")).await?;
        set_up(&mut connection, name).await?;
        lock::acquire(&mut connection, name).await?;
        let row = ledger::raise_epoch(&mut connection, name).await?;
        ledger::recognise(&mut connection, name, row.apply_epoch).await?;
        let replica_role = take_replica_role(&mut connection).await?;
        let replica = PostgresReplica::new(connection, &row, replica_role);
        Ok((Box::new(replica), row))
    }
}

/// Makes a session an applier's.
async fn set_up(connection: &mut PgConnection, name: &str) -> Result<()> {
    within(SHORT_WAIT, "setting up the session", connection.execute(AssertSqlSafe(APPLIER_SETTINGS))).await?;
    if let Err(error) = within(SHORT_WAIT, "setting up the session", connection.execute(CHECK_CLIENT)).await {
        if error.kind() == ErrorKind::Connection {
            return Err(error);
        }
        tracing::debug!(replica = name, %error, "the replica does not look after clients that are gone");
    }
    Ok(())
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
