//! `millstream teardown`: takes away what `init` made, whatever of it is there. The replica's tables and their rows stay.
//!
//! The slot goes first: it is what can hurt the source (I7). The stream in the queue goes last, and only when the slot is
//! gone: it is the record of the slot's name. What cannot be reached is said, with what remains there; the next run takes it away.
//! Beside a daemon that still works on it nothing is taken away (`running.rs`): it would halt in the middle of its work.

use std::sync::Arc;

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use super::init::{Line, Outcome, Report, select, slot};
use super::running::{self, Daemons};
use super::{counted, put_off, schema_changes};
use crate::capture::begin::{Beginning, beginning, publication_name};
use crate::config::{Config, ReplicaConfig, SourceConfig};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::TableName;
use crate::failpoint;
use crate::halt::HaltCode;
use crate::pause::Who;
use crate::postgres::sql::{Side, classify, connect, quote_ident, quote_table};
use crate::queue::{CONSUMER_PREFIX, Queue};
use crate::replica::postgres::ledger;

const APPLICATION: &str = "millstream teardown";

/// What to take away.
#[derive(Clone, Debug, Default)]
pub struct TeardownOptions {
    /// Only this source and its replicas; all when `None`.
    pub source: Option<String>,
    /// Only this replica: its source, stream and slot stay for the others.
    pub replica: Option<String>,
    /// Only the place in the queue of a replica that the configuration no longer has. Needs no database.
    pub consumer: Option<String>,
}

/// Says what a teardown would take away.
///
/// # Errors
/// [`crate::ErrorKind::Config`] for names that the configuration does not have.
pub fn describe(config: &Config, options: &TeardownOptions) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    if let Some(name) = &options.consumer {
        for source in unconfigured(config, options, name)? {
            lines.push(format!(
                "consumer {name} of source {}: its place in the queue; what it has not read may be dropped",
                source.name
            ));
        }
        return Ok(lines);
    }
    for (source, replicas) in select(config, options.source.as_deref(), options.replica.as_deref())? {
        if options.replica.is_none() {
            lines.push(format!("source {}: its slot, its publication, and its whole stream in the queue", source.name));
        }
        lines.extend(
            replicas.iter().map(|r| format!("replica {}: its ledger and its place in the queue (its tables stay)", r.name)),
        );
    }
    Ok(lines)
}

/// Nobody works on what is to be taken away, and with the embedded queue nobody can begin to while this lives.
pub struct Quiet(#[expect(dead_code, reason = "held, not read")] Option<Daemons>);

/// Looks for daemons that work on it, before anybody is asked whether they mean it. `None` when there is one, reported as refused.
///
/// # Errors
/// As [`describe`]; those of the queue's folder.
pub async fn look(config: &Config, options: &TeardownOptions, report: Report<'_>) -> Result<Option<Quiet>> {
    if options.consumer.is_some() {
        return Ok(Some(Quiet(None)));
    }
    let selected = select(config, options.source.as_deref(), options.replica.as_deref())?;
    match running::look(config, &selected, options.replica.is_none()).await? {
        Daemons::Working(who) => {
            let stop = match &options.replica {
                Some(name) => format!(
                    "`millstream pause {name}` first, or stop that daemon (systemctl stop millstream), and run teardown again; nothing was changed"
                ),
                None => {
                    "stop that daemon first (systemctl stop millstream) and run teardown again; nothing was changed".to_owned()
                }
            };
            who.into_iter().for_each(|who| report(Line::Refused(format!("{who}: {stop}"))));
            Ok(None)
        }
        quiet @ Daemons::None(_) => Ok(Some(Quiet(Some(quiet)))),
    }
}

/// Takes it away.
///
/// # Errors
/// As [`describe`]; that of a part that could not be reached or did not let go, once everything else is gone.
pub async fn teardown(
    config: &Config,
    queue: &Arc<dyn Queue>,
    options: &TeardownOptions,
    quiet: Quiet,
    report: Report<'_>,
) -> Result<Outcome> {
    let mut outcome = Outcome::Unchanged;
    let mut note = |done: Outcome| {
        if done != Outcome::Unchanged {
            outcome = done;
        }
    };
    if let Some(name) = &options.consumer {
        for source in unconfigured(config, options, name)? {
            note(clear_consumer(queue, &source.name, name, report).await?);
        }
        return Ok(outcome);
    }
    let whole = options.replica.is_none();
    let selected = select(config, options.source.as_deref(), options.replica.as_deref())?;
    let mut remains: Option<ErrorKind> = None;
    // Of several, one that waiting does not mend says more.
    let mut left = |kind: ErrorKind| {
        if matches!(remains, None | Some(ErrorKind::Connection)) {
            remains = Some(kind);
        }
    };
    for (source, replicas) in selected {
        let mut free = whole;
        if whole {
            match clear_source(source, queue, report).await {
                Ok(done) => note(done),
                Err(error) => {
                    free = false;
                    let publication = publication_name(&source.name);
                    report(Line::Refused(format!(
                        "source {}: {error}; its slot {publication}_… and publication {publication} may remain there, and hold back WAL. A stream of it in \
                         the queue is kept, as the record of the slot's name: run teardown again",
                        source.name
                    )));
                    left(error.kind());
                }
            }
            failpoint::hit("teardown.source_cleared")?;
        }
        for replica in replicas {
            match clear_replica(replica, report).await {
                Ok(done) => note(done),
                Err(error) => {
                    report(Line::Refused(format!(
                        "replica {}: {error}; its ledger, schema millstream, remains there: run teardown again, or DROP SCHEMA millstream CASCADE",
                        replica.name
                    )));
                    left(error.kind());
                    // Its place, and a pause, stay with its ledger.
                    continue;
                }
            }
            failpoint::hit("teardown.replica_cleared")?;
            if !whole {
                note(clear_registration(queue, &source.name, &replica.name, report).await?);
                note(clear_registration(queue, &source.name, &ledger::added(&replica.name), report).await?);
            }
        }
        if free {
            note(clear_stream(queue, &source.name, report).await?);
        }
    }
    drop(quiet);
    match remains {
        None => Ok(outcome),
        Some(kind) => Err(Error::new(kind, "not everything was taken away; what remains is said above")),
    }
}

/// The sources whose queue may hold a consumer that the configuration no longer has.
fn unconfigured<'a>(config: &'a Config, options: &TeardownOptions, name: &str) -> Result<Vec<&'a SourceConfig>> {
    let sources: Vec<_> = select(config, options.source.as_deref(), None)?.into_iter().map(|(source, _)| source).collect();
    match config.replicas.get(ledger::whole(name)).filter(|replica| sources.iter().any(|source| source.name == replica.source)) {
        None => Ok(sources),
        // Its ledger would go on naming a place that the queue no longer keeps.
        Some(_) => {
            let message = format!(
                "replica '{0}' is configured: `millstream teardown --replica {0}` takes its ledger away as well",
                ledger::whole(name)
            );
            Err(Error::new(ErrorKind::Config, message))
        }
    }
}

async fn clear_consumer(queue: &Arc<dyn Queue>, stream: &str, consumer: &str, report: Report<'_>) -> Result<Outcome> {
    let done = clear_registration(queue, stream, consumer, report).await?;
    if done == Outcome::Changed {
        report(Line::Note(format!(
            "a ledger of {consumer} stays where it is: DROP SCHEMA millstream CASCADE in that database, when no other replica is kept there. A daemon that \
             still applies it, by another configuration, registers it again"
        )));
    }
    Ok(done)
}

async fn clear_source(config: &SourceConfig, queue: &Arc<dyn Queue>, report: Report<'_>) -> Result<Outcome> {
    let mut source = connect(&config.connect, Side::Source, APPLICATION).await?;
    let mut slots = slot::of_source(&mut source, &config.name).await?;
    // The queue's own word, when it can be read; a broken queue must not keep the slot standing.
    match beginning(queue, &config.name).await {
        Ok(Beginning::Begun(history)) => slots.push(history.slot),
        Ok(Beginning::SlotPending(genesis)) => slots.push(genesis.history.slot),
        Ok(Beginning::Nothing) => {}
        Err(error) => report(Line::Note(format!("stream {}: {error}", config.name))),
    }
    slots.sort();
    slots.dedup();
    let mut outcome = Outcome::Unchanged;
    for name in slots {
        if slot::drop_slot(&mut source, &name).await? {
            report(Line::Done(format!("source {}: dropped slot {name}", config.name)));
            outcome = Outcome::Changed;
        }
    }
    let publication = publication_name(&config.name);
    // Before the publication: only its owner may withdraw it. A failure keeps the publication, so that the next run finds both.
    let withdrawn = schema_changes::withdraw(&mut source, &publication).await;
    if withdrawn.map_err(|error| of_somebody_else(error, &publication))? {
        report(Line::Done(format!(
            "source {}: its schema changes are not carried any more; where a superuser installed that, `millstream init --source {} --superuser-sql` \
             prints it for the next time",
            config.name, config.name
        )));
        outcome = Outcome::Changed;
    }
    if super::init::publication::read(&mut source, &publication).await?.is_some() {
        let whole = whole_rows(&mut source, &publication).await?;
        let dropped = run(&mut source, Side::Source, format!("DROP PUBLICATION {}", quote_ident(&publication))).await;
        dropped.map_err(|error| of_somebody_else(error, &publication))?;
        report(Line::Done(format!("source {}: dropped publication {publication}", config.name)));
        if !whole.is_empty() {
            report(Line::Note(format!("source {}, {}: {}", config.name, config.connect.address(), still_whole(&whole))));
        }
        outcome = Outcome::Changed;
    }
    Ok(outcome)
}

/// Published tables that hand over whole old rows, but for those that another publication has: without it the application's UPDATE might fail there.
async fn whole_rows(source: &mut PgConnection, publication: &str) -> Result<Vec<TableName>> {
    let sql = "SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_publication p \
         JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid JOIN pg_catalog.pg_class c ON c.oid = r.prrelid \
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE p.pubname = $1 AND c.relreplident = 'f' AND n.nspname <> 'millstream' \
           AND NOT EXISTS (SELECT FROM pg_catalog.pg_publication_tables t WHERE t.pubname <> $1 AND (t.schemaname, t.tablename) IN ( \
             SELECT an.nspname, a.relname FROM pg_catalog.pg_class a JOIN pg_catalog.pg_namespace an ON an.oid = a.relnamespace \
             WHERE a.oid = c.oid OR a.oid IN (SELECT p.relid::oid FROM pg_catalog.pg_partition_ancestors(c.oid) p))) ORDER BY 1, 2";
    let rows: Vec<(String, String)> =
        sqlx::query_as(sql).bind(publication).fetch_all(source).await.map_err(|e| classify(e, Side::Source))?;
    Ok(rows.into_iter().map(|(schema, name)| TableName::new(schema, name)).collect())
}

/// Who set it is not known: the event triggers do where a table loses its key, and `check` asks for it where there is none.
fn still_whole(tables: &[TableName]) -> String {
    let statements: Vec<String> =
        tables.iter().map(|table| format!("ALTER TABLE ONLY {} REPLICA IDENTITY DEFAULT;", quote_table(table))).collect();
    format!(
        "REPLICA IDENTITY FULL stays on {}, whether the event triggers set it as the key was dropped or somebody else did; \
         where nothing else needs whole old rows, there as the owner: {}",
        counted(tables.len(), "table"),
        statements.join(" ")
    )
}

/// Only its owner may drop a publication that somebody made anew.
fn of_somebody_else(error: Error, publication: &str) -> Error {
    if error.kind() != ErrorKind::Halt(HaltCode::SourceDenied) {
        return error;
    }
    let way = format!(
        "if publication {publication} is somebody else's, have its owner or a superuser run DROP PUBLICATION {}; then run this again",
        quote_ident(publication)
    );
    error.context(way)
}

async fn clear_replica(config: &ReplicaConfig, report: Report<'_>) -> Result<Outcome> {
    let mut replica = connect(&config.connect, Side::Replica, APPLICATION).await?;
    if !ledger::exists(&mut replica).await? {
        return Ok(Outcome::Unchanged);
    }
    let fail = |e| classify(e, Side::Replica);
    let mut transaction = replica.begin().await.map_err(fail)?;
    let kept = put_off::keep(&mut transaction, &config.name).await?;
    let gone = sqlx::query("DELETE FROM millstream.replica WHERE name IN ($1, $2)")
        .bind(&config.name)
        .bind(ledger::added(&config.name))
        .execute(&mut *transaction)
        .await
        .map_err(fail)?;
    let left: i64 =
        sqlx::query_scalar("SELECT count(*) FROM millstream.replica").fetch_one(&mut *transaction).await.map_err(fail)?;
    if left == 0 {
        let removal = ledger::removal(&mut transaction).await?;
        run(&mut transaction, Side::Replica, removal).await?;
    }
    transaction.commit().await.map_err(fail)?;
    let (name, place) = (&config.name, config.connect.address());
    for statement in &kept {
        report(Line::Note(format!("replica {name}, {place}: put off until the copy was complete, and not built: {statement};")));
    }
    if !kept.is_empty() {
        report(Line::Note(format!(
            "replica {name}: the next init of these tables takes that over from table millstream.put_off, which stays; if there will be none, \
             run the statements, then DROP TABLE millstream.put_off"
        )));
    }
    if gone.rows_affected() == 0 && left > 0 {
        return Ok(Outcome::Unchanged);
    }
    report(Line::Done(format!("replica {}: dropped its ledger; its tables stay as they are", config.name)));
    Ok(Outcome::Changed)
}

/// A pause goes with the place: who comes again under the name begins anew.
async fn clear_registration(queue: &Arc<dyn Queue>, stream: &str, consumer: &str, report: Report<'_>) -> Result<Outcome> {
    if queue.bounds(stream).await?.is_none() {
        return Ok(Outcome::Unchanged);
    }
    let (key, pause) = (format!("{CONSUMER_PREFIX}{consumer}"), Who::Replica(consumer.to_owned()).key());
    let registry = queue.registry(stream).await?;
    if registry.contains_key(&pause) {
        queue.registry_put(stream, &pause, None).await.at(|| format!("stream '{stream}'"))?;
    }
    if !registry.contains_key(&key) {
        return Ok(Outcome::Unchanged);
    }
    queue.registry_put(stream, &key, None).await.at(|| format!("stream '{stream}'"))?;
    report(Line::Done(format!("replica {consumer}: its place in the queue is given up")));
    Ok(Outcome::Changed)
}

async fn clear_stream(queue: &Arc<dyn Queue>, stream: &str, report: Report<'_>) -> Result<Outcome> {
    if queue.bounds(stream).await?.is_none() {
        return Ok(Outcome::Unchanged);
    }
    queue.destroy(stream).await.at(|| format!("stream '{stream}'"))?;
    report(Line::Done(format!("stream {stream}: removed from the queue")));
    Ok(Outcome::Changed)
}

async fn run(connection: &mut PgConnection, side: Side, sql: String) -> Result<()> {
    connection.execute(AssertSqlSafe(sql)).await.map(drop).map_err(|e| classify(e, side))
}
