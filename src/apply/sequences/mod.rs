//! Sequences, which logical decoding does not carry: read at the source and set on the replica at intervals, beside the log (I4 names the exception).
//!
//! A value that is read now is at or past every number that the replica's rows hold, for these are older. So a sequence that was carried may leave
//! numbers out and never gives one out again, but for those that the source gave out after the last look: a switch-over carries once more, when nobody
//! writes ([`carry`], `millstream sequences`).
//!
//! # What is set
//!
//! A replica's sequence is set where the source's is ahead of it, and where the source's own was moved back since the last look (`RESTART`, a cycle).
//! One that is ahead of a source that stood still stays, and one that has gone on since it was looked at: applications may have begun to write on the
//! replica.
//!
//! Rejected: *a record in the log* (anybody may write a logical message, and the value would be older than the rows behind it).

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{Connection, Executor, PgConnection, Row};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::status::{ApplyState, ApplyStatus};
use crate::config::{PgConnect, ReplicaConfig, SourceConfig};
use crate::error::{Error, ErrorKind, Result};
use crate::event::TableName;
use crate::postgres::sql::{Side, classify, connect, quote_literal, quote_table};
use crate::preflight::init::slot;
use crate::replica::postgres::ledger;
use crate::telemetry::{Repeating, Say};

mod listed;

pub use listed::{Listed, list};

/// One look at both sides and what it sets may take so long.
const DEADLINE: Duration = Duration::from_secs(30);
/// Sequences that one statement reads, or sets.
const AT_ONCE: usize = 200;
const APPLICATION: &str = "millstream sequences";

/// Where a sequence stands: the row of the sequence itself (PostgreSQL documentation, "CREATE SEQUENCE", Notes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value {
    /// `last_value`.
    pub last: i64,
    /// `is_called`: the last value was given out.
    pub called: bool,
}

impl Value {
    /// Whether this is further in the sequence's direction.
    fn is_ahead_of(self, other: Self, ascends: bool) -> bool {
        let (mine, theirs) = if ascends { (self.last, other.last) } else { (other.last, self.last) };
        mine > theirs || (mine == theirs && self.called && !other.called)
    }
}

/// What became of a sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It was set to this.
    Set(Value),
    /// It stands there already.
    Same(Value),
    /// The replica's is further, and the source's did not move back: it stays.
    Ahead(Value),
    /// Why it was not carried.
    Left(String),
}

/// What the last looks came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Sequences that stand where the source's do, or further.
    pub count: usize,
    /// When, microseconds since 1970-01-01 UTC.
    pub at_us: Option<i64>,
    /// Those that could not be carried: name and reason.
    pub left: Vec<(String, String)>,
    /// Why the last look came to nothing.
    pub error: Option<String>,
}

/// Carries the sequences of one replica at its interval, while its tables are live, until cancelled.
///
/// # Errors
/// None; the type is that of a task.
pub async fn run(
    source: SourceConfig,
    replica: ReplicaConfig,
    mut status: watch::Receiver<ApplyStatus>,
    out: watch::Sender<Carried>,
    cancel: CancellationToken,
) -> Result<()> {
    let mut seen = HashMap::new();
    let warnings = Repeating::default();
    loop {
        let look = async {
            // The sender lives as long as the daemon's work.
            drop(status.wait_for(|status| status.state == ApplyState::Live).await);
            let looked = tokio::time::timeout(DEADLINE, carry(&source, &replica, &mut seen));
            tokio::select! {
                looked = looked => tell(&replica.name, looked.unwrap_or_else(|_| Err(late())), &out, &warnings),
                // Paused or halted: the replica is left alone.
                _ = status.wait_for(|status| status.state != ApplyState::Live) => return,
            }
            tokio::time::sleep(replica.sequences_interval).await;
        };
        if cancel.run_until_cancelled(look).await.is_none() {
            return Ok(());
        }
    }
}

fn late() -> Error {
    Error::new(ErrorKind::Connection, format!("no answer within {} s", DEADLINE.as_secs()))
}

fn tell(replica: &str, looked: Result<Vec<(TableName, Fate)>>, out: &watch::Sender<Carried>, warnings: &Repeating) {
    let fates = match looked {
        Ok(fates) => fates,
        Err(error) => {
            if warnings.failed("sequences", &error.to_string()) != Say::Nothing {
                tracing::warn!(replica, %error, "sequences were not carried");
            }
            out.send_modify(|carried| carried.error = Some(error.to_string()));
            return;
        }
    };
    let mut left = Vec::new();
    for (name, fate) in &fates {
        match fate {
            Fate::Set(value) => tracing::debug!(replica, sequence = %name, last_value = value.last, "sequence set"),
            Fate::Left(why) => left.push((name.to_string(), why.clone())),
            Fate::Same(_) | Fate::Ahead(_) => {}
        }
    }
    match left.first() {
        Some((sequence, why)) if warnings.failed("sequences", why) != Say::Nothing => {
            tracing::warn!(replica, sequence, why, count = left.len(), "sequences were not carried");
        }
        Some(_) => {}
        None => drop(warnings.recovered("sequences")),
    }
    let at_us = Some(jiff::Timestamp::now().as_microsecond());
    out.send_replace(Carried { count: fates.len() - left.len(), at_us, left, error: None });
}

/// Looks at both sides once and sets what is to be set. `seen` is what the source had at the last look.
///
/// # Errors
/// Those of the servers; [`ErrorKind::Config`] when the source is another cluster than the one that the replica was copied from.
pub async fn carry(
    source: &SourceConfig,
    replica: &ReplicaConfig,
    seen: &mut HashMap<TableName, Value>,
) -> Result<Vec<(TableName, Fate)>> {
    let mut from = session(&source.connect, Side::Source).await?;
    let mut to = session(&replica.connect, Side::Replica).await?;
    is_of_the_replica(source, &mut from, &mut to, &replica.name).await?;
    let listed = list(&mut from, &source.name).await?;
    let readable: Vec<&TableName> = listed.iter().filter(|listed| listed.readable).map(|listed| &listed.name).collect();
    let theirs = values(&mut from, Side::Source, &readable).await?;
    let rights = rights(&mut to, &readable).await?;
    let writable: Vec<&TableName> = readable.into_iter().filter(|name| rights.get(*name) == Some(&true)).collect();
    let ours = values(&mut to, Side::Replica, &writable).await?;
    let mut moves = Vec::new();
    let mut fates = BTreeMap::new();
    for Listed { name, ascends, readable, .. } in &listed {
        let fate = match (theirs.get(name), rights.get(name), ours.get(name)) {
            (None, ..) if *readable => Fate::Left("somebody has it locked at the source".to_owned()),
            (None, ..) => {
                Fate::Left("the capturing role may not read it at the source (`millstream check` has the GRANT)".to_owned())
            }
            (_, None, _) => Fate::Left("the replica has no sequence of this name".to_owned()),
            (_, Some(false), _) => Fate::Left("the replica's role may not set it: it wants SELECT and UPDATE on it".to_owned()),
            (_, _, None) => Fate::Left("somebody has it locked on the replica".to_owned()),
            (Some(value), _, Some(present)) => {
                let moved_back = seen.get(name).is_some_and(|before| before.is_ahead_of(*value, *ascends));
                if value != present && (value.is_ahead_of(*present, *ascends) || moved_back) {
                    moves.push(Move { name, from: *present, to: *value });
                    continue;
                }
                if value == present { Fate::Same(*value) } else { Fate::Ahead(*present) }
            }
        };
        fates.insert(name, fate);
    }
    for chunk in moves.chunks(AT_ONCE) {
        fates.extend(set(&mut to, chunk).await?);
    }
    for (name, value) in theirs.iter().filter(|(name, _)| fates.get(name).is_some_and(|fate| !matches!(fate, Fate::Left(_)))) {
        seen.insert(name.clone(), *value);
    }
    // What was read and set stands; a connection that does not end well changes nothing.
    drop(from.close().await);
    drop(to.close().await);
    Ok(fates.into_iter().map(|(name, fate)| (name.clone(), fate)).collect())
}

/// One that waits for nobody long: TRUNCATE … RESTART IDENTITY keeps a sequence locked to its transaction's end, and who gives up waiting leaves the
/// server's process behind.
async fn session(to: &PgConnect, side: Side) -> Result<PgConnection> {
    let mut connection = connect(to, side, APPLICATION).await?;
    let limits = connection.execute("SET lock_timeout = '200ms'; SET statement_timeout = '20s'").await;
    limits.map_err(|error| classify(error, side))?;
    Ok(connection)
}

/// Numbers of another cluster mean nothing to this replica.
async fn is_of_the_replica(source: &SourceConfig, from: &mut PgConnection, to: &mut PgConnection, name: &str) -> Result<()> {
    let ours = ledger::load(to, name).await?.history.system_identifier;
    let asked =
        sqlx::query_scalar::<_, i64>("SELECT system_identifier FROM pg_catalog.pg_control_system()").fetch_one(from).await;
    let theirs = match asked {
        Ok(identifier) => identifier.cast_unsigned(),
        // Some servers let nobody ask that way.
        Err(sqlx::Error::Database(_)) => slot::history(source, String::new()).await?.system_identifier,
        Err(error) => return Err(classify(error, Side::Source)),
    };
    if theirs == ours {
        return Ok(());
    }
    let message = format!("the source is cluster {theirs}, and the replica is copied from cluster {ours}");
    Err(Error::new(ErrorKind::Config, message))
}

/// Where sequences stand; one that somebody has locked is left out.
async fn values(connection: &mut PgConnection, side: Side, names: &[&TableName]) -> Result<HashMap<TableName, Value>> {
    let mut values = HashMap::with_capacity(names.len());
    for chunk in names.chunks(AT_ONCE) {
        match read(connection, chunk).await {
            Ok(read) => values.extend(read),
            Err(sqlx::Error::Database(_)) => {
                for name in chunk {
                    match read(connection, std::slice::from_ref(name)).await {
                        Ok(read) => values.extend(read),
                        // Locked, or dropped meanwhile.
                        Err(sqlx::Error::Database(_)) => {}
                        Err(error) => return Err(classify(error, side)),
                    }
                }
            }
            Err(error) => return Err(classify(error, side)),
        }
    }
    Ok(values)
}

async fn read(connection: &mut PgConnection, names: &[&TableName]) -> sqlx::Result<Vec<(TableName, Value)>> {
    let one =
        |(index, name): (usize, &&TableName)| format!("SELECT {index}, last_value::int8, is_called FROM {}", quote_table(name));
    let sql = names.iter().enumerate().map(one).collect::<Vec<_>>().join(" UNION ALL ");
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).persistent(false).fetch_all(connection).await?;
    let value = |row: &PgRow| {
        let index = usize::try_from(row.get::<i32, _>(0)).ok()?;
        Some(((*names.get(index)?).clone(), Value { last: row.get(1), called: row.get(2) }))
    };
    Ok(rows.iter().filter_map(value).collect())
}

/// Those of the sequences that the replica has, and whether they may be read and set.
async fn rights(connection: &mut PgConnection, names: &[&TableName]) -> Result<HashMap<TableName, bool>> {
    let (schemas, names): (Vec<&str>, Vec<&str>) = names.iter().map(|name| (name.schema.as_str(), name.name.as_str())).unzip();
    let query = sqlx::query(
        "SELECT n.nspname::text, c.relname::text, pg_catalog.has_schema_privilege(n.oid, 'USAGE') \
         AND pg_catalog.has_sequence_privilege(c.oid, 'SELECT') AND pg_catalog.has_sequence_privilege(c.oid, 'UPDATE') \
         FROM unnest($1::text[], $2::text[]) w(schema, name) JOIN pg_catalog.pg_namespace n ON n.nspname = w.schema \
         JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.name AND c.relkind = 'S'",
    );
    let rows = query.bind(schemas).bind(names).fetch_all(connection).await.map_err(|error| classify(error, Side::Replica))?;
    Ok(rows.iter().map(|row| (TableName::new(row.get::<String, _>(0), row.get::<String, _>(1)), row.get(2))).collect())
}

/// A sequence to set.
#[derive(Clone, Copy)]
struct Move<'n> {
    name: &'n TableName,
    /// Where it stands on the replica: one that has gone on since then is left to who uses it.
    from: Value,
    to: Value,
}

impl Move<'_> {
    fn sql(&self, index: usize) -> String {
        let (from, name) = (quote_table(self.name), quote_literal(&quote_table(self.name)));
        let (Value { last, called }, before) = (self.to, self.from);
        format!(
            "SELECT {index} FROM (SELECT pg_catalog.setval({name}, {last}, {called}) FROM {from} WHERE last_value = {} AND is_called = {}) s",
            before.last, before.called
        )
    }
}

/// Sets some together, and each alone where one is refused: that its bounds are others, or that somebody has it locked, concerns no other.
async fn set<'n>(connection: &mut PgConnection, moves: &[Move<'n>]) -> Result<Vec<(&'n TableName, Fate)>> {
    let sql = moves.iter().enumerate().map(|(index, one)| one.sql(index)).collect::<Vec<_>>().join(" UNION ALL ");
    let refused = match sqlx::query(sqlx::AssertSqlSafe(sql)).persistent(false).fetch_all(&mut *connection).await {
        Ok(rows) if rows.len() == moves.len() => return Ok(moves.iter().map(|one| (one.name, Fate::Set(one.to))).collect()),
        Ok(_) => None,
        Err(sqlx::Error::Database(error)) => Some(error.message().to_owned()),
        Err(error) => return Err(classify(error, Side::Replica)),
    };
    if let ([one], Some(why)) = (moves, refused) {
        return Ok(vec![(one.name, Fate::Left(why))]);
    }
    // Some are set: what each came to is asked.
    let mut fates = Vec::new();
    for one in moves {
        let now = values(connection, Side::Replica, &[one.name]).await?.remove(one.name);
        match now {
            Some(now) if now == one.to => fates.push((one.name, Fate::Set(now))),
            Some(now) if now == one.from && moves.len() > 1 => {
                fates.extend(Box::pin(set(connection, std::slice::from_ref(one))).await?)
            }
            Some(now) => fates.push((one.name, Fate::Ahead(now))),
            None => fates.push((one.name, Fate::Left("somebody has it locked on the replica".to_owned()))),
        }
    }
    Ok(fates)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(last: i64, called: bool) -> Value {
        Value { last, called }
    }

    #[test]
    fn a_sequence_is_ahead_in_its_own_direction() {
        assert!(value(5, true).is_ahead_of(value(4, true), true));
        assert!(!value(5, true).is_ahead_of(value(4, true), false));
        assert!(value(-2, true).is_ahead_of(value(-1, true), false));
        assert!(value(1, true).is_ahead_of(value(1, false), true), "its first number was given out");
        assert!(!value(1, false).is_ahead_of(value(1, true), true));
        assert!(!value(1, true).is_ahead_of(value(1, true), true));
    }
}
