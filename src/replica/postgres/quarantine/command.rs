//! What `millstream quarantine` does: each order is a change of the replica's ledger, whether a daemon applies to the replica or none does.

use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use super::account;
use super::refusal::{STANDS, wake};
use super::retry::{self, Retried};
use crate::apply::first_copy::Schemas;
use crate::apply::quarantine::{Account, KeptState, Quarantine};
use crate::config::ReplicaConfig;
use crate::error::{Error, Result};
use crate::event::{Change, Position};
use crate::postgres::sql::{Side, classify, connect};
use crate::replica::postgres::errors::{SHORT_WAIT, within};
use crate::replica::postgres::ledger::{self, get};
use crate::replica::postgres::replica::PostgresReplica;
use crate::replica::postgres::{set_up, take_replica_role};

const APPLICATION: &str = "millstream quarantine";
/// A daemon that works does what was ordered within a second or two.
const WAIT: Duration = Duration::from_secs(6);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Keys of one table that `show` reads.
const ALL_KEYS: i64 = 20_000;

/// What became of an order to keep a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Added {
    /// It is kept.
    Kept(Box<Account>),
    /// The replica took it after all.
    Applied,
    /// The order stands, and nobody has done it yet.
    Ordered,
    /// It cannot be: why, and what to do.
    Refused(String),
}

/// What became of what is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// It is done: of which transactions, with how many changes.
    Done(Vec<(String, u64)>),
    /// It cannot be: why, and what to do. Nothing was changed.
    Refused(String),
}

/// Is given changes, and the versions of tables that they were made under.
pub type Each<'a> = &'a mut (dyn FnMut(&[Change], &Schemas) -> Result<()> + Send);

async fn open(config: &ReplicaConfig) -> Result<PgConnection> {
    let mut replica = connect(&config.connect, Side::Replica, APPLICATION).await?;
    ledger::load(&mut replica, &config.name).await?;
    ledger::is_of_this_version(&mut replica).await?;
    Ok(replica)
}

/// Orders a transaction to be kept, and waits a while for it.
///
/// # Errors
/// The server's; a halt with `not_initialized` without a ledger, [`crate::ErrorKind::Busy`] for that of an older Millstream.
pub async fn add(config: &ReplicaConfig, position: Position) -> Result<Added> {
    let (name, mut replica) = (&config.name, open(config).await?);
    let wanted = position.to_string();
    if let Some(account) = account(&mut replica, name, &wanted).await? {
        return Ok(Added::Refused(format!(
            "the transaction at {wanted} was kept at {} ({})",
            account.kept_at,
            account.state.as_str()
        )));
    }
    if let Some(why) = order(&mut replica, name, &wanted).await? {
        return Ok(Added::Refused(why));
    }
    let began = Instant::now();
    loop {
        if let Some(account) = account(&mut replica, name, &wanted).await? {
            return Ok(Added::Kept(Box::new(account)));
        }
        if !stands(&mut replica, name, &wanted).await? {
            // Kept and its order gone between two looks.
            return Ok(account(&mut replica, name, &wanted)
                .await?
                .map_or(Added::Applied, |account| Added::Kept(Box::new(account))));
        }
        if let Some(why) = unkeepable(&mut replica, name, &wanted).await? {
            return Ok(Added::Refused(why));
        }
        if began.elapsed() > WAIT {
            return Ok(Added::Ordered);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn account(replica: &mut PgConnection, name: &str, position: &str) -> Result<Option<Account>> {
    let quarantine = account::read(replica, name, account::SHOWN_KEYS).await?;
    Ok(quarantine.transactions.into_iter().find(|account| account.position == position))
}

/// Writes the order; why not, where it is refused.
async fn order(replica: &mut PgConnection, name: &str, wanted: &str) -> Result<Option<String>> {
    let mut transaction = replica.begin().await.map_err(fail)?;
    let sql = format!(
        "SELECT f.position, f.cannot_be_kept FROM millstream.refused f JOIN millstream.replica r ON r.name = f.replica \
         WHERE f.replica = $1 AND {STANDS} FOR UPDATE OF f"
    );
    let found = sqlx::query_as::<_, (String, Option<String>)>(AssertSqlSafe(sql)).bind(name);
    let found = found.fetch_optional(&mut *transaction).await.map_err(fail)?;
    let why = match found {
        None => Some(format!(
            "replica {name} does not stand at a transaction whose rows it refused: only such a halt (replica_conflict, replica_constraint, quarantined_key) has one, \
             and not while its tables are being copied; `millstream status` says how it is"
        )),
        Some((position, _)) if position != wanted => Some(format!(
            "replica {name} stands at the transaction at {position}, not at {wanted}; only the one that it refuses can be kept"
        )),
        Some((_, Some(cannot))) => Some(cannot),
        Some(_) => None,
    };
    if why.is_some() {
        return Ok(why);
    }
    let order = "UPDATE millstream.refused SET ordered_at = coalesce(ordered_at, clock_timestamp()) WHERE replica = $1";
    sqlx::query(order).bind(name).execute(&mut *transaction).await.map_err(fail)?;
    transaction.commit().await.map_err(fail)?;
    Ok(None)
}

/// The replica has not passed the transaction.
async fn stands(replica: &mut PgConnection, name: &str, position: &str) -> Result<bool> {
    let sql = format!(
        "SELECT EXISTS (SELECT FROM millstream.refused f JOIN millstream.replica r ON r.name = f.replica \
         WHERE f.replica = $1 AND f.position = $2 AND {STANDS})"
    );
    let query = sqlx::query_scalar(AssertSqlSafe(sql)).bind(name).bind(position);
    within(SHORT_WAIT, "looking for the order", query.fetch_one(replica)).await
}

/// Why it cannot be kept, which only shows when it is tried.
async fn unkeepable(replica: &mut PgConnection, name: &str, position: &str) -> Result<Option<String>> {
    let query = sqlx::query_scalar::<_, Option<String>>(
        "SELECT cannot_be_kept FROM millstream.refused WHERE replica = $1 AND position = $2",
    );
    let query = query.bind(name).bind(position);
    Ok(within(SHORT_WAIT, "looking for the order", query.fetch_optional(replica)).await?.flatten())
}

/// Every account.
///
/// # Errors
/// As [`add`].
pub async fn list(config: &ReplicaConfig) -> Result<Quarantine> {
    account::read(&mut open(config).await?, &config.name, account::SHOWN_KEYS).await
}

/// One account with all its keys, and what is kept, as they are at one moment.
pub struct Shown {
    /// The account.
    pub account: Account,
    /// In a transaction.
    replica: PgConnection,
    name: String,
}

impl Shown {
    /// The changes, piece by piece; none where they are kept no more.
    ///
    /// # Errors
    /// As [`add`]; those of `each`; [`crate::ErrorKind::TooNew`] where a later version kept them.
    pub async fn changes(&mut self, each: Each<'_>) -> Result<()> {
        if self.account.state != KeptState::Kept {
            return Ok(());
        }
        let Self { account, replica, name } = self;
        let query = sqlx::query("SELECT ordinal, format FROM millstream.quarantine WHERE replica = $1 AND position = $2");
        let query = query.bind(&*name).bind(&account.position);
        let row = within(SHORT_WAIT, "looking for a transaction", query.fetch_one(&mut *replica)).await?;
        let ordinal: i64 = get(&row, 0)?;
        account::is_readable(&account.position, get(&row, 1)?)?;
        let schemas = account::versions(replica, name, ordinal).await?;
        let mut number = 0;
        while let Some(changes) = account::piece(replica, name, ordinal, number).await? {
            each(&changes, &schemas)?;
            number += 1;
        }
        Ok(())
    }
}

/// The account of one transaction; `None` where there is none.
///
/// # Errors
/// As [`add`].
pub async fn show(config: &ReplicaConfig, position: Position) -> Result<Option<Shown>> {
    let (name, mut replica) = (config.name.clone(), open(config).await?);
    let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
    within(SHORT_WAIT, "BEGIN", replica.execute(begin)).await?;
    let wanted = position.to_string();
    let quarantine = account::read(&mut replica, &name, ALL_KEYS).await?;
    let account = quarantine.transactions.into_iter().find(|account| account.position == wanted);
    Ok(account.map(|account| Shown { account, replica, name }))
}

/// Applies everything that is kept, in one replica transaction.
///
/// # Errors
/// As [`add`]; [`crate::ErrorKind::Busy`] while the daemon writes for long; [`crate::ErrorKind::TooNew`] where a later version kept them.
pub async fn retry(config: &ReplicaConfig) -> Result<Done> {
    let mut replica = open(config).await?;
    set_up(&mut replica, &config.name).await?;
    let row = ledger::load(&mut replica, &config.name).await?;
    let replica_role = take_replica_role(&mut replica).await?;
    let mut replica = PostgresReplica::new(replica, &row, replica_role);
    Ok(match retry::retry(&mut replica).await? {
        Retried::Applied(applied) => Done::Done(applied),
        Retried::Refused(why) => Done::Refused(why),
    })
}

/// Drops what is kept of a transaction.
///
/// # Errors
/// As [`add`].
pub async fn clear(config: &ReplicaConfig, position: Position) -> Result<Done> {
    let (name, mut replica) = (&config.name, open(config).await?);
    let wanted = position.to_string();
    let mut transaction = replica.begin().await.map_err(fail)?;
    // The applier's transactions go before or after it, whole.
    ledger::hold(&mut transaction, name).await?;
    let found = sqlx::query_as::<_, (i64, String, i64)>(
        "SELECT ordinal, state, changes FROM millstream.quarantine WHERE replica = $1 AND position = $2 FOR UPDATE",
    );
    let found = found.bind(name).bind(&wanted).fetch_optional(&mut *transaction).await.map_err(fail)?;
    let Some((ordinal, state, changes)) = found else {
        return Ok(Done::Refused(format!(
            "replica {name} has no transaction at {wanted} in quarantine; `millstream quarantine list {name}` names them"
        )));
    };
    if state != KeptState::Kept.as_str() {
        return Ok(Done::Refused(format!("nothing is kept of the transaction at {wanted}: it is {state}")));
    }
    for sql in [
        "DELETE FROM millstream.quarantined_piece WHERE replica = $1 AND ordinal = $2",
        "UPDATE millstream.quarantine SET state = 'cleared', ended_at = clock_timestamp() WHERE replica = $1 AND ordinal = $2",
    ] {
        let query = sqlx::query(sql).bind(name).bind(ordinal);
        within(SHORT_WAIT, "dropping what is kept", query.execute(&mut *transaction)).await?;
    }
    wake(&mut transaction, name).await?;
    transaction.commit().await.map_err(fail)?;
    Ok(Done::Done(vec![(wanted, changes.cast_unsigned())]))
}

fn fail(error: sqlx::Error) -> Error {
    classify(error, Side::Replica)
}
