//! `millstream init`: makes what a pair needs and is not there, and changes nothing when all is.
//!
//! ```text
//!  resolve tables ─► plan every replica ─► anything refused? stop, nothing was touched
//!    │
//!    ▼
//!  replicas that have a ledger: missing tables, as pending     a change to a new table must find it known
//!    ▼
//!  publication                                                 before the slot: a younger one stops decoding
//!    ▼
//!  first record ─► slot ─► second record                       (I1; killed in between: the slot is made anew)
//!    ▼
//!  replicas without a ledger: ledger, consumer registered at the log's present end, missing tables, as pending
//! ```
//!
//! Each arrow is safe to be killed at: the next run finds what is there and goes on. The copy itself is the applier's work
//! ([`crate::apply`]): it begins with whatever tables the ledger holds as pending.

mod adopt;
mod blueprint;
pub mod casts;
mod catalog;
pub(crate) mod ddl;
pub(crate) mod definition;
mod dry_run;
pub(crate) mod fits;
mod leaving;
pub mod publication;
mod replica;
pub mod slot;
pub mod stream;
pub(crate) mod types;

use std::collections::BTreeMap;
use std::sync::Arc;

use sqlx::PgConnection;

use crate::capture::begin::{Beginning, beginning, publication_name};
use crate::config::{Config, ReplicaConfig, SchemaChanges, SourceConfig};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::TableName;
use crate::failpoint;
use crate::halt::HaltCode;
use crate::postgres::ServerError;
use crate::postgres::sql::{Side, connect};
use crate::preflight::tables::{TablePatterns, exactly};
use crate::preflight::{counted, schema_changes};
use crate::queue::Queue;
use crate::replica::postgres::ledger::{self, CopyState};

pub use adopt::Adopt;
pub use blueprint::Blueprint;
pub use catalog::{Resolved, resolve};
pub use ddl::{Deferred, DeferredKind};
pub use replica::{LEDGER_OWNER, Loading, NewReplica, ReplicaPlan, keys_to_take_off, put_off};
pub use types::Extension;

const APPLICATION: &str = "millstream init";
/// Plans of one run: beside a live replica that carries schema changes, a table may come while it is planned.
const ATTEMPTS: u32 = 5;

/// What to do.
#[derive(Clone, Debug, Default)]
pub struct InitOptions {
    /// Only this source; all when `None`.
    pub source: Option<String>,
    /// Only this replica (and its source); all when `None`. Others that are known come along where the tables published change.
    pub replica: Option<String>,
    /// Say the SQL and do nothing.
    pub dry_run: bool,
    /// Replicas without a ledger hold the rows already.
    pub adopt: Option<Adopt>,
}

/// Something that `init` or `teardown` has to say, as it happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// A statement that a dry run would run at a place (`source shop`, `replica reports`).
    Sql {
        /// Where.
        place: String,
        /// What, without a semicolon.
        statement: String,
    },
    /// Something was made or removed.
    Done(String),
    /// Something takes its time, and why.
    Waiting(String),
    /// Something to know.
    Note(String),
    /// Something stands in the way.
    Refused(String),
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything was there.
    Unchanged,
    /// Something was made (in a dry run: would be).
    Changed,
    /// Something stands in the way. Nothing was done, but for what [`Line::Done`] says (a replica that cannot be adopted).
    Refused,
}

/// Whom to tell.
pub type Report<'a> = &'a mut (dyn FnMut(Line) + Send);

struct Target<'a> {
    config: &'a ReplicaConfig,
    connection: PgConnection,
    /// It has a ledger row of this stream.
    known: bool,
    /// The tables that the ledger has.
    registered: BTreeMap<TableName, CopyState>,
    plan: ReplicaPlan,
}

/// Makes what is missing, source by source.
///
/// # Errors
/// [`ErrorKind::Config`] for names that the configuration does not have, and what arises at source, queue and replicas.
pub async fn init(config: &Config, queue: &Arc<dyn Queue>, options: &InitOptions, report: Report<'_>) -> Result<Outcome> {
    let mut outcome = Outcome::Unchanged;
    for (source, replicas) in select(config, options.source.as_deref(), options.replica.as_deref())? {
        let siblings: Vec<_> =
            config.replicas.values().filter(|r| r.source == source.name && !replicas.iter().any(|s| s.name == r.name)).collect();
        let mut attempts = 1..ATTEMPTS;
        let done = loop {
            match init_source(source, &replicas, &siblings, queue, options, report).await {
                Err(error) if is_overtaken(&error) && attempts.next().is_some() => {}
                done => break done.at(|| format!("source '{}'", source.name))?,
            }
        };
        match done {
            Outcome::Refused => return Ok(Outcome::Refused),
            Outcome::Changed => outcome = Outcome::Changed,
            Outcome::Unchanged => {}
        }
    }
    Ok(outcome)
}

/// Sources and their replicas, narrowed by names.
///
/// # Errors
/// [`ErrorKind::Config`] for a name that is not there.
pub fn select<'a>(
    config: &'a Config,
    source: Option<&str>,
    replica: Option<&str>,
) -> Result<Vec<(&'a SourceConfig, Vec<&'a ReplicaConfig>)>> {
    if let Some(name) = source.filter(|name| !config.sources.contains_key(*name)) {
        return Err(Error::new(ErrorKind::Config, format!("the configuration has no source '{name}'")));
    }
    let only = match replica {
        None => None,
        Some(name) => Some(
            config
                .replicas
                .get(name)
                .ok_or_else(|| Error::new(ErrorKind::Config, format!("the configuration has no replica '{name}'")))?,
        ),
    };
    let wanted = |s: &&SourceConfig| source.is_none_or(|n| n == s.name) && only.is_none_or(|r| r.source == s.name);
    let replicas_of = |s: &SourceConfig| {
        config.replicas.values().filter(|r| r.source == s.name && replica.is_none_or(|n| n == r.name)).collect()
    };
    Ok(config.sources.values().filter(wanted).map(|s| (s, replicas_of(s))).collect())
}

async fn init_source(
    config: &SourceConfig,
    replicas: &[&ReplicaConfig],
    siblings: &[&ReplicaConfig],
    queue: &Arc<dyn Queue>,
    options: &InitOptions,
    report: Report<'_>,
) -> Result<Outcome> {
    let patterns = TablePatterns::parse(&config.tables)?;
    let mut source = connect(&config.connect, Side::Source, APPLICATION).await?;
    let resolved = resolve(&mut source, &patterns).await?;
    for (table, reason) in &resolved.left_out {
        report(Line::Note(format!("{table} is left out: {reason}")));
    }
    let place = format!("source {}, {}", config.name, config.connect.address());
    let mut refused = resolved.refused.iter().map(|(table, remedy)| format!("{place}: {table}: {remedy}")).collect::<Vec<_>>();
    if resolved.tables.is_empty() && refused.is_empty() {
        refused.push(format!("no table matches {:?}", config.tables));
    }
    let blueprint = Blueprint::read(&mut source, &resolved).await?;
    refused.extend(blueprint.refused.iter().map(|(table, reason)| {
        format!("{table}: {reason}: add {:?} to source.{}.tables", format!("!{}", exactly(table)), config.name)
    }));
    let publication = publication_name(&config.name);
    let begun = matches!(beginning(queue, &config.name).await?, Beginning::Begun(_));
    let published = publication::plan(&mut source, &publication, &blueprint.names(), begun).await?;
    let carrying = schema_changes::read(&mut source, &publication, &patterns).await?;
    refused.extend(carrying.cannot_let_go(config, &published.removed));
    let triggers = carrying.statements(config.schema_changes, !published.statements.is_empty());
    if config.schema_changes == SchemaChanges::Carry && !carrying.can_carry() {
        report(Line::Note(format!(
            "schema changes are not carried, a replica halts at one: {}; `millstream check` prints what a superuser may run, \
             schema_changes = \"halt\" says that it is meant so",
            carrying.trouble().unwrap_or_else(|| format!("role {} may not create event triggers", carrying.role))
        )));
    }
    let mut targets = Vec::new();
    // The publication is the source's: a replica that was not asked for would halt at the first change to a table that it does not know.
    let concerned = siblings.iter().filter(|_| !published.added.is_empty() || !published.removed.is_empty());
    for replica in replicas.iter().chain(concerned) {
        let loading = if options.adopt.is_some() { Loading::Adopt } else { Loading::Copy };
        let target = target(replica, queue, config, &blueprint, loading).await.at(|| format!("replica '{}'", replica.name))?;
        if siblings.iter().any(|s| s.name == replica.name) {
            if !target.known {
                continue;
            }
            report(Line::Note(format!("replica {} comes along: the tables that its source publishes change", replica.name)));
        }
        let place = replica.connect.address();
        refused.extend(target.plan.refused.iter().map(|r| format!("replica {}, {place}: {r}", replica.name)));
        for note in &target.plan.notes {
            report(Line::Note(format!("replica {}: {note}", replica.name)));
        }
        targets.push(target);
    }
    refused.extend(targets.iter().flat_map(|t| leaving::still_leaving(t, &published)));
    if !refused.is_empty() {
        refused.into_iter().for_each(|text| report(Line::Refused(text)));
        return Ok(Outcome::Refused);
    }
    if options.dry_run {
        return dry_run::say(config, queue, (&published, &triggers), &mut targets, options.adopt.is_some(), report).await;
    }
    let mut changed = false;
    for target in targets.iter_mut().filter(|t| t.known) {
        changed |= extend(target, report).await.at(|| format!("replica '{}'", target.config.name))?;
    }
    failpoint::hit("init.known_replicas_done")?;
    publish(&mut source, &published.statements, &triggers, report).await?;
    if !published.statements.is_empty() {
        report(Line::Done(format!("publication {publication}: {}", gist(&published.added, &published.removed))));
        changed = true;
    }
    if !triggers.is_empty() {
        report(Line::Done(format!(
            "publication {publication}: {}",
            match config.schema_changes {
                SchemaChanges::Carry => "schema changes are carried, by event triggers in schema millstream",
                SchemaChanges::Halt => "schema changes are not carried any more",
            }
        )));
        changed = true;
    }
    failpoint::hit("init.published")?;
    changed |= stream::ensure(queue, config, report).await?;
    failpoint::hit("init.stream_begun")?;
    for target in targets.iter_mut().filter(|t| t.known) {
        changed |=
            leaving::leave(target, &mut source, &published, report).await.at(|| format!("replica '{}'", target.config.name))?;
    }
    for target in targets.iter_mut().filter(|t| !t.known) {
        let begun = begin_replica(target, queue, config, options.adopt, report).await;
        if !begun.at(|| format!("replica '{}'", target.config.name))? {
            still_standing(&config.name, &target.config.name).into_iter().for_each(|text| report(Line::Note(text)));
            return Ok(Outcome::Refused);
        }
        changed = true;
    }
    Ok(if changed { Outcome::Changed } else { Outcome::Unchanged })
}

/// How long the triggers' memory waits for a table that somebody changes; then once more, because whoever comes behind a waiting lock waits too.
const LOCK_WAIT: &str = "SET LOCAL lock_timeout = '2s'";
const LOCK_ATTEMPTS: u32 = 15;

/// The SQL that a superuser runs on a source, so that its schema changes are carried though the daemon's role may not create event triggers.
///
/// # Errors
/// [`ErrorKind::Config`] for a name that the configuration does not have, and the server's.
pub async fn superuser_sql(config: &Config, source: &str) -> Result<String> {
    let mut out = String::from("-- Nothing to run: what is needed is there.");
    for (source, _) in select(config, Some(source), None)? {
        let mut connection = connect(&source.connect, Side::Source, APPLICATION).await?;
        let state =
            schema_changes::read(&mut connection, &publication_name(&source.name), &TablePatterns::parse(&source.tables)?)
                .await?;
        if state.may_install || state.can_carry() {
            continue;
        }
        let place = source.connect.address();
        out = format!("-- on source {}, {place}, as a superuser\n{};", source.name, state.script());
    }
    Ok(out)
}

/// The publication and what tells of its tables' changes, in one transaction: no change falls between.
async fn publish(source: &mut PgConnection, published: &[String], triggers: &[String], report: Report<'_>) -> Result<()> {
    if triggers.is_empty() {
        return publication::execute(source, Side::Source, published).await;
    }
    let whole = |part: &[String]| part.iter().map(|statement| format!("{statement};\n")).collect::<String>();
    let all = [format!("BEGIN; {LOCK_WAIT};\n{}{}COMMIT", whole(published), whole(triggers))];
    for attempt in 1.. {
        match publication::execute(source, Side::Source, &all).await {
            Err(error) if error.kind() == ErrorKind::Busy && attempt < LOCK_ATTEMPTS => {
                publication::execute(source, Side::Source, &["ROLLBACK".to_owned()]).await?;
                if attempt == 1 {
                    report(Line::Waiting(format!("a published table is being changed or read for long: {error}")));
                }
            }
            done => return done,
        }
    }
    Ok(())
}

async fn target<'a>(
    config: &'a ReplicaConfig,
    queue: &Arc<dyn Queue>,
    source: &SourceConfig,
    blueprint: &Blueprint,
    loading: Loading,
) -> Result<Target<'a>> {
    let mut connection = connect(&config.connect, Side::Replica, APPLICATION).await?;
    let mut registered = BTreeMap::new();
    let mut known = false;
    let mut taken = BTreeMap::new();
    if ledger::exists(&mut connection).await? {
        match ledger::load(&mut connection, &config.name).await {
            Err(error) if error.kind() == ErrorKind::Halt(HaltCode::NotInitialized) => {}
            Err(error) => return Err(error),
            Ok(row) => {
                known = true;
                check_stream(queue, source, &row).await?;
                registered.extend(ledger::tables(&mut connection, &config.name).await?);
            }
        }
        taken.extend(ledger::tables_of_others(&mut connection, &config.name).await?);
    }
    // A replica that is known goes on as it was begun.
    let loading = if known { Loading::Copy } else { loading };
    let mut plan = replica::plan(&mut connection, blueprint, &registered, &taken, loading).await?;
    if !known {
        plan.refused.extend(replica::foreign_ledger(&mut connection).await?);
    }
    Ok(Target { config, connection, known, registered, plan })
}

/// A ledger belongs to one stream; another stream under the same name is another log.
async fn check_stream(queue: &Arc<dyn Queue>, source: &SourceConfig, row: &ledger::ReplicaRow) -> Result<()> {
    let same = match stream::identity(queue, &source.name).await {
        Ok((id, _)) => id == row.stream && row.source == source.name,
        Err(error) if error.kind() == ErrorKind::Halt(HaltCode::NotInitialized) => false,
        Err(error) => return Err(error),
    };
    if same {
        return Ok(());
    }
    let message = format!(
        "the replica's ledger belongs to another stream than the queue holds for source '{}'; if that pair is given up, run `millstream teardown` first",
        source.name
    );
    Err(Error::halt(HaltCode::LedgerDamaged, message))
}

/// New tables of a replica that has a ledger: pending before they are published, so that no change finds them unknown.
async fn extend(target: &mut Target<'_>, report: Report<'_>) -> Result<bool> {
    ledger::migrate(&mut target.connection).await?;
    if target.plan.is_empty() {
        return Ok(false);
    }
    let name = &target.config.name;
    for statement in replica::put_off_for(&mut target.connection, name, &target.plan.gone).await? {
        let place = target.config.connect.address();
        report(Line::Note(format!(
            "replica {name}, {place}: what was put off until its copy had caught up is yours to build: {statement};"
        )));
    }
    replica::carry_out(&mut target.connection, name, &target.plan, None, CopyState::Pending).await?;
    report(Line::Done(format!("replica {name}: {}", of_tables(&target.plan, &target.plan.gone))));
    Ok(true)
}

/// A table was made that was not there when it was planned: its applier made it meanwhile, as the source did.
fn is_overtaken(error: &Error) -> bool {
    let Some(said) = ServerError::find(error) else { return false };
    match said.sqlstate.as_str() {
        // duplicate_table, duplicate_schema, or the same in the catalog's own keys.
        "42P07" | "42P06" => true,
        "23505" => said.table.as_deref().is_some_and(|table| table.starts_with("pg_")),
        _ => false,
    }
}

/// A replica's ledger, its place in the log, its tables. False when it cannot be adopted.
async fn begin_replica(
    target: &mut Target<'_>,
    queue: &Arc<dyn Queue>,
    source: &SourceConfig,
    adopt: Option<Adopt>,
    report: Report<'_>,
) -> Result<bool> {
    let name = &target.config.name;
    let (stream, history) = stream::identity(queue, &source.name).await?;
    let cursor = match adopt {
        None => {
            // First: a replica that may not be written leaves no hold on the queue.
            ledger::migrate(&mut target.connection).await?;
            stream::register(queue, &source.name, name).await?
        }
        Some(adopt) => match adopt::place(queue, source, target.config, &history, &target.plan.tables, adopt, report).await? {
            Ok(cursor) => cursor,
            Err(refused) => {
                refused.into_iter().for_each(|text| report(Line::Refused(format!("replica {name}: {text}"))));
                return Ok(false);
            }
        },
    };
    failpoint::hit("init.registered")?;
    ledger::migrate(&mut target.connection).await?;
    let source_oids = match adopt {
        Some(adopt) => adopt::source_oids(source, &mut target.connection, &target.plan.tables, adopt).await?,
        None => Vec::new(),
    };
    let new = NewReplica { source: &source.name, stream, history: &history, cursor: &cursor, source_oids: &source_oids };
    let state = if adopt.is_some() { CopyState::Live } else { CopyState::Pending };
    if let Err(error) = replica::carry_out(&mut target.connection, name, &target.plan, Some(&new), state).await {
        if error.kind() == ErrorKind::Held
            && let Some(theirs) = ledger::load(&mut target.connection, name).await?.cursor
        {
            // What the queue keeps for this consumer is what its ledger says, and not where the loser stood.
            stream::put_cursor(queue, &source.name, name, &theirs).await?;
        }
        return Err(error);
    }
    let how = if adopt.is_some() { "adopted" } else { "ledger" };
    report(Line::Done(format!("replica {name}: {how}, {}", of_tables(&target.plan, &[]))));
    Ok(true)
}

/// Whether a replica can be adopted is only known once the slot stands: a place in the log before the slot would be none. What is so, then what to do, a line
/// each.
fn still_standing(source: &str, replica: &str) -> [String; 3] {
    [
        format!(
            "replica {replica} was not touched. Publication, stream and slot of source {source} stand, and without a running daemon the slot retains WAL"
        ),
        "once what is refused is mended, run the same command again".to_owned(),
        format!("or, when no other replica of {source} is in use, take them away: millstream teardown --source {source}"),
    ]
}

/// What became of a replica's tables: those of a plan, and those that go.
fn of_tables(plan: &ReplicaPlan, removed: &[TableName]) -> String {
    let made: Vec<TableName> = plan.tables.iter().filter(|table| !plan.there.contains(table)).cloned().collect();
    let new = gist(&made, removed);
    match (plan.there.len(), made.is_empty() && removed.is_empty()) {
        (0, _) => new,
        (n, nothing_else) => {
            let there =
                format!("{} that {} there ({})", counted(n, "table"), if n == 1 { "was" } else { "were" }, list(&plan.there));
            if nothing_else { there } else { format!("{new}, {there}") }
        }
    }
}

fn gist(added: &[TableName], removed: &[TableName]) -> String {
    let added = (!added.is_empty()).then(|| format!("{} ({})", counted(added.len(), "new table"), list(added)));
    let removed =
        (!removed.is_empty()).then(|| format!("{} not replicated any more ({})", counted(removed.len(), "table"), list(removed)));
    let parts: Vec<String> = added.into_iter().chain(removed).collect();
    if parts.is_empty() { "settings".to_owned() } else { parts.join(", ") }
}

fn list(tables: &[TableName]) -> String {
    let names: Vec<String> = tables.iter().take(5).map(ToString::to_string).collect();
    let more = if tables.len() > 5 { ", …" } else { "" };
    format!("{}{more}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_that_were_there_are_not_counted_as_new() {
        let names = |names: &[&str]| names.iter().map(|name| TableName::new("public", *name)).collect::<Vec<_>>();
        let plan = |tables: &[&str], there: &[&str]| ReplicaPlan {
            tables: names(tables),
            there: names(there),
            ..ReplicaPlan::default()
        };
        assert_eq!(of_tables(&plan(&["a"], &[]), &[]), "1 new table (public.a)");
        let both = of_tables(&plan(&["a", "b", "c"], &["b"]), &names(&["d"]));
        assert_eq!(
            both,
            "2 new tables (public.a, public.c), 1 table not replicated any more (public.d), 1 table that was there (public.b)"
        );
        assert_eq!(of_tables(&plan(&["a", "b"], &["a", "b"]), &[]), "2 tables that were there (public.a, public.b)");
        assert_eq!(gist(&[], &[]), "settings");
    }
}
