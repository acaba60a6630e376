//! A replica's side: what is missing there is planned first, refused as a whole if anything stands in the way, then made in one
//! transaction together with the ledger's rows.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::blueprint::Blueprint;
use super::casts::Casts;
use super::catalog::{get, oid};
use super::ddl::{self, Deferred};
use super::definition::{self, TableDefinition};
use super::fits::misfits;
use super::publication::execute;
use super::types::{self, Extension, TypeDefinition};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{History, StreamId, TableName};
use crate::postgres::sql::{Side, classify, quote_ident, quote_table};
use crate::preflight::{emptying, put_off};
use crate::queue::log::Cursor;
use crate::replica::postgres::ledger::{self, CopyState};

/// Tables named where there may be many.
const SHOWN: usize = 5;

/// What is to be done on one replica.
#[derive(Clone, Debug, Default)]
pub struct ReplicaPlan {
    /// Statements, in order, for one transaction.
    pub statements: Vec<String>,
    /// Statements for when the copy has caught up, in order.
    pub deferred: Vec<Deferred>,
    /// Tables that the ledger does not know yet.
    pub tables: Vec<TableName>,
    /// Those of them that the replica has already.
    pub there: Vec<TableName>,
    /// Tables of the ledger that are not wanted any more and were never live: from now on what comes of them is dropped.
    pub gone: Vec<TableName>,
    /// Those, and live ones that are not wanted any more: the ledger has them until the last change to them is passed.
    pub leaving: Vec<TableName>,
    /// What stands in the way.
    pub refused: Vec<String>,
    /// What its operator should know.
    pub notes: Vec<String>,
}

impl ReplicaPlan {
    /// True when there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.statements.is_empty() && self.deferred.is_empty() && self.tables.is_empty() && self.gone.is_empty()
    }
}

/// The owner of schema `millstream`, or of a relation in it, when that is somebody whom this role need not trust: no superuser, and not itself or (for
/// who is no superuser) a role that it belongs to.
pub const LEDGER_OWNER: &str = "\
SELECT r.rolname::text FROM (SELECT nspowner AS owner FROM pg_catalog.pg_namespace WHERE nspname = 'millstream' \
  UNION SELECT c.relowner FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'millstream') o \
JOIN pg_catalog.pg_roles r ON r.oid = o.owner JOIN pg_catalog.pg_roles me ON me.rolname = current_user \
WHERE NOT r.rolsuper AND r.oid <> me.oid AND (me.rolsuper OR NOT pg_catalog.pg_has_role(r.oid, 'USAGE')) ORDER BY 1 LIMIT 1";

/// A schema of the ledger's name that somebody else made: its tables could have triggers that run as whoever writes the ledger.
///
/// # Errors
/// The server's.
pub async fn foreign_ledger(replica: &mut PgConnection) -> Result<Option<String>> {
    let owner: Option<String> =
        sqlx::query_scalar(LEDGER_OWNER).fetch_optional(replica).await.map_err(|e| classify(e, Side::Replica))?;
    Ok(owner.map(|owner| {
        format!(
            "schema millstream is there, and it or something in it belongs to role {owner}, who would decide what runs when the ledger is written: look at what \
             is in it, then DROP SCHEMA millstream CASCADE; and run init again"
        )
    }))
}

/// How tables come to the replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loading {
    /// By a first copy: they must be empty.
    Copy,
    /// They are there already.
    Adopt,
}

/// Compares a replica with the blueprint. `registered` are the tables that its ledger knows: those are the applier's, not ours.
///
/// # Errors
/// The server's.
pub async fn plan(
    replica: &mut PgConnection,
    blueprint: &Blueprint,
    registered: &BTreeMap<TableName, CopyState>,
    taken: &BTreeMap<TableName, String>,
    loading: Loading,
) -> Result<ReplicaPlan> {
    let mut plan = ReplicaPlan::default();
    let existing = tables(replica).await?;
    let fresh: Vec<&TableDefinition> = blueprint.tables.iter().filter(|t| !registered.contains_key(&t.table)).collect();
    let wanted: BTreeSet<&TableName> = blueprint.tables.iter().map(|t| &t.table).collect();
    plan.tables = fresh.iter().map(|t| t.table.clone()).collect();
    for (name, state) in registered.iter().filter(|(name, _)| !wanted.contains(name)) {
        plan.leaving.push(name.clone());
        if !matches!(state, CopyState::Live | CopyState::Leaving) {
            plan.gone.push(name.clone());
        }
    }
    for (name, _) in registered.iter().filter(|(name, state)| **state == CopyState::Leaving && wanted.contains(name)) {
        plan.refused.push(format!(
            "{name} is leaving, and changes to it are dropped: take it out of the source's tables, run `millstream init` until it has left, empty it on \
             the replica, then put it back"
        ));
    }
    let both: Vec<String> =
        fresh.iter().filter_map(|t| Some(format!("{} of '{}'", t.table, taken.get(&t.table)?))).take(SHOWN).collect();
    if !both.is_empty() {
        plan.refused.push(format!(
            "tables here belong to another replica in this database ({}); each replica of a source needs a database of its own: look at its url",
            both.join(", ")
        ));
    }
    if fresh.is_empty() || !both.is_empty() {
        return Ok(plan);
    }
    let here: Vec<u32> = fresh.iter().filter_map(|t| existing.get(&t.table).copied()).collect();
    let here = definition::read(replica, Side::Replica, &here).await?;
    let here: BTreeMap<&TableName, &TableDefinition> = here.values().map(|t| (&t.table, t)).collect();
    plan.there = here.keys().map(|&name| name.clone()).collect();
    let casts = Casts::read(replica).await?;
    let kept = put_off::read(replica).await?;
    let (mut drops, mut holding) = ([Vec::new(), Vec::new()], Vec::new());
    for table in &fresh {
        match here.get(&table.table) {
            Some(found) => {
                let whole = put_off::with_key(found, if loading == Loading::Copy { &kept } else { &[] });
                plan.refused
                    .extend(misfits(table, &whole, &casts).into_iter().map(|misfit| format!("{}: {misfit}", table.table)));
                if loading == Loading::Copy {
                    take_off(found, &mut drops, &mut plan);
                    put_off::take_over(found, &kept, &mut plan);
                }
                if loading == Loading::Copy && has_rows(replica, &table.table).await? {
                    holding.push(table.table.clone());
                }
            }
            None if loading == Loading::Adopt => {
                plan.refused.push(format!("{}: the replica does not have it, and --adopt copies nothing", table.table));
            }
            None => {}
        }
    }
    if !holding.is_empty() {
        // Not tables that are replicated already, whatever refers to whom.
        let ours = fresh.iter().map(|t| t.table.clone()).collect();
        plan.refused.push(rows_inside(replica, &holding, &ours).await?);
    }
    if loading == Loading::Copy {
        let missing: Vec<&TableDefinition> = fresh.into_iter().filter(|t| !here.contains_key(&t.table)).collect();
        make_missing(replica, blueprint, &existing, &missing, &mut plan).await?;
        plan.statements.extend(drops.into_iter().flatten());
        plan.deferred.sort_by_key(|d| d.kind);
    } else {
        let mine = kept.iter().filter(|later| here.contains_key(&later.table));
        plan.notes.extend(mine.map(|later| format!("a copy that was given up did not come to build: {};", later.statement)));
    }
    Ok(plan)
}

/// Statements that some tables' copies would have ended with and that have not run: on a table that was there before `init`, keys that it took off.
///
/// # Errors
/// The server's.
pub async fn put_off_for(replica: &mut PgConnection, name: &str, tables: &[TableName]) -> Result<Vec<String>> {
    let (schemas, names): (Vec<&str>, Vec<&str>) = tables.iter().map(|t| (t.schema.as_str(), t.name.as_str())).unzip();
    sqlx::query_scalar(
        "SELECT d.statement FROM millstream.deferred_ddl d JOIN unnest($2::text[], $3::text[]) u(s, t) \
         ON d.table_schema = u.s AND d.table_name = u.t WHERE d.replica IN ($1, $4) AND NOT d.done ORDER BY d.ordinal",
    )
    .bind(name)
    .bind(schemas)
    .bind(names)
    .bind(ledger::added(name))
    .fetch_all(replica)
    .await
    .map_err(|e| classify(e, Side::Replica))
}

/// The statements that take off what of a replica's table may be broken while it is copied, and what is to be built later instead.
///
/// # Errors
/// The server's.
pub async fn keys_to_take_off(replica: &mut PgConnection, table: &TableName) -> Result<(Vec<String>, Vec<Deferred>)> {
    let Some(id) = tables(replica).await?.get(table).copied() else { return Ok((Vec::new(), Vec::new())) };
    let found = definition::read(replica, Side::Replica, &[id]).await?;
    let taken_off = found.values().next().map(ddl::take_off);
    Ok(taken_off.map(|(drops, later)| (drops.into_iter().flatten().collect(), later)).unwrap_or_default())
}

async fn tables(replica: &mut PgConnection) -> Result<BTreeMap<TableName, u32>> {
    let rows = sqlx::query(
        "SELECT c.oid::int8, n.nspname::text, c.relname::text FROM pg_catalog.pg_class c \
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p', 'f', 'v', 'm')",
    )
    .fetch_all(replica)
    .await
    .map_err(|e| classify(e, Side::Replica))?;
    rows.iter().map(|r| Ok((TableName::new(get::<String>(r, 1)?, get::<String>(r, 2)?), oid(r, 0)?))).collect()
}

fn take_off(found: &TableDefinition, drops: &mut [Vec<String>; 2], plan: &mut ReplicaPlan) {
    let (taken_off, later) = ddl::take_off(found);
    for (all, mine) in drops.iter_mut().zip(taken_off) {
        all.extend(mine);
    }
    plan.deferred.extend(later);
}

async fn rows_inside(replica: &mut PgConnection, holding: &[TableName], ours: &BTreeSet<TableName>) -> Result<String> {
    let emptying = emptying::plan(replica, holding, ours).await.map_err(|e| classify(e, Side::Replica))?;
    let names = holding.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let (what, it) =
        if holding.len() == 1 { ("the replica's table holds rows", "it") } else { ("the replica's tables hold rows", "them") };
    Ok(format!(
        "{names}: {what}, and they are never emptied or copied into. Empty {it} yourself ({};), leave {it} out of the source's tables, \
         or see `millstream init --adopt`",
        emptying.steps.join("; ")
    ))
}

async fn has_rows(replica: &mut PgConnection, table: &TableName) -> Result<bool> {
    let sql = format!("SELECT EXISTS (SELECT 1 FROM ONLY {})", quote_table(table));
    sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(replica).await.map_err(|e| classify(e, Side::Replica))
}

async fn make_missing(
    replica: &mut PgConnection,
    blueprint: &Blueprint,
    existing: &BTreeMap<TableName, u32>,
    missing: &[&TableDefinition],
    plan: &mut ReplicaPlan,
) -> Result<()> {
    let mut parents = BTreeSet::new();
    for table in missing {
        let mut above = table.partition_of.as_ref();
        while let Some((parent, _)) = above {
            parents.insert(parent.clone());
            above = blueprint.parents.iter().find(|p| p.table == *parent).and_then(|p| p.partition_of.as_ref());
        }
    }
    let new_parents = blueprint.parents.iter().filter(|p| parents.contains(&p.table) && !existing.contains_key(&p.table));
    let new: Vec<&TableDefinition> = new_parents.chain(missing.iter().copied()).collect();
    let schemas = names(replica, "SELECT nspname::text FROM pg_catalog.pg_namespace").await?;
    let needed: BTreeSet<&String> = new
        .iter()
        .flat_map(|t| std::iter::once(&t.table.schema).chain(t.sequences.iter().map(|s| &s.name.schema)))
        .chain(blueprint.types.iter().map(|t| &t.schema))
        .chain(blueprint.extensions.iter().map(|e| &e.schema))
        .filter(|schema| !schemas.contains(*schema) && *schema != "pg_catalog")
        .collect();
    plan.statements.extend(needed.into_iter().map(|schema| format!("CREATE SCHEMA {}", quote_ident(schema))));
    let extensions = names(replica, "SELECT extname::text FROM pg_catalog.pg_extension").await?;
    let absent = blueprint.extensions.iter().filter(|e| !extensions.contains(&e.name));
    plan.statements.extend(absent.map(Extension::statement));
    for wanted in &blueprint.types {
        make_type(replica, wanted, plan).await?;
    }
    let known = |name: &TableName| existing.contains_key(name) || blueprint.all().any(|t| t.table == *name);
    let mut sequences: Vec<String> = new.iter().flat_map(|t| ddl::create_sequences(t)).collect();
    sequences.sort();
    sequences.dedup();
    plan.statements.extend(sequences);
    plan.statements.extend(new.iter().flat_map(|t| ddl::create_table(t)));
    plan.statements.extend(new.iter().flat_map(|t| ddl::attach(t, known)));
    plan.statements.extend(new.iter().flat_map(|t| ddl::own_sequences(t)));
    for table in new {
        let (later, left_out) = ddl::deferred(table, known);
        plan.deferred.extend(later);
        plan.notes.extend(left_out);
    }
    Ok(())
}

async fn names(replica: &mut PgConnection, sql: &'static str) -> Result<BTreeSet<String>> {
    let names: Vec<String> = sqlx::query_scalar(sql).fetch_all(replica).await.map_err(|e| classify(e, Side::Replica))?;
    Ok(names.into_iter().collect())
}

async fn make_type(replica: &mut PgConnection, wanted: &TypeDefinition, plan: &mut ReplicaPlan) -> Result<()> {
    let found: bool = sqlx::query_scalar("SELECT pg_catalog.to_regtype($1) IS NOT NULL")
        .bind(&wanted.quoted)
        .fetch_one(&mut *replica)
        .await
        .map_err(|e| classify(e, Side::Replica))?;
    if !found {
        plan.statements.push(wanted.statement.clone());
        return Ok(());
    }
    if let (Some(labels), Some(theirs)) = (&wanted.labels, types::labels(replica, Side::Replica, &wanted.quoted).await?) {
        for label in labels.iter().filter(|label| !theirs.contains(label)) {
            plan.refused.push(format!(
                "type {} lacks a label: {};",
                wanted.quoted,
                types::add_label(&wanted.quoted, labels, label)
            ));
        }
    }
    Ok(())
}

/// The ledger row of a replica that is new.
#[derive(Clone, Debug)]
pub struct NewReplica<'a> {
    /// Its source's name.
    pub source: &'a str,
    /// The stream.
    pub stream: StreamId,
    /// The source's identity.
    pub history: &'a History,
    /// Place in the log from which it will be brought up to date.
    pub cursor: &'a Cursor,
    /// The source's number of each of the plan's tables, of an adopted replica.
    pub source_oids: &'a [Option<i64>],
}

/// Makes what a plan says, and the ledger's rows for it, in one transaction.
///
/// # Errors
/// The server's.
pub async fn carry_out(
    replica: &mut PgConnection,
    name: &str,
    plan: &ReplicaPlan,
    new: Option<&NewReplica<'_>>,
    state: CopyState,
) -> Result<()> {
    let mut transaction = replica.begin().await.map_err(|e| classify(e, Side::Replica))?;
    // First: who comes second waits here, and finds the tables made as well.
    if let Some(row) = new
        && !ledger::create(&mut transaction, name, row.source, row.stream, row.history, Some(row.cursor)).await?
    {
        let message =
            format!("another init has made the ledger of replica '{name}' meanwhile; run init again to see what is left to do");
        return Err(Error::new(ErrorKind::Held, message));
    }
    execute(&mut transaction, Side::Replica, &plan.statements).await?;
    let source_oids = new.map_or(&[][..], |row| row.source_oids);
    write_tables(&mut transaction, name, plan, state, source_oids).await.map_err(|e| classify(e, Side::Replica))?;
    transaction.commit().await.map_err(|e| classify(e, Side::Replica))
}

async fn write_tables(
    replica: &mut PgConnection,
    name: &str,
    plan: &ReplicaPlan,
    state: CopyState,
    source_oids: &[Option<i64>],
) -> Result<(), sqlx::Error> {
    let (schemas, tables): (Vec<&str>, Vec<&str>) = plan.tables.iter().map(|t| (t.schema.as_str(), t.name.as_str())).unzip();
    sqlx::query(AssertSqlSafe(format!(
        "INSERT INTO millstream.copied_table (replica, table_schema, table_name, state, copy_group, live_at, replica_table, source_oid) \
         SELECT $1, s, t, $4, coalesce((SELECT max(copy_group) + 1 FROM millstream.copied_table WHERE replica = $1), 0), \
                CASE WHEN $4 = 'live' THEN clock_timestamp() END, {}, oid \
         FROM unnest($2::text[], $3::text[], $5::bigint[]) u(s, t, oid) WHERE s IS NOT NULL ON CONFLICT DO NOTHING",
        ledger::identity_of("s", "t")
    )))
    .bind(name)
    .bind(schemas)
    .bind(tables)
    .bind(state.as_str())
    .bind(source_oids)
    .execute(&mut *replica)
    .await?;
    let (schemas, tables): (Vec<&str>, Vec<&str>) = plan.gone.iter().map(|t| (t.schema.as_str(), t.name.as_str())).unzip();
    sqlx::query(
        "WITH gone AS (DELETE FROM millstream.copy_chunk c USING unnest($2::text[], $3::text[]) u(s, t) \
           WHERE c.replica IN ($1, $4) AND c.table_schema = u.s AND c.table_name = u.t) \
         UPDATE millstream.copied_table c SET state = 'leaving', live_after_lsn = NULL FROM unnest($2::text[], $3::text[]) u(s, t) \
         WHERE c.replica IN ($1, $4) AND c.table_schema = u.s AND c.table_name = u.t AND c.state <> 'live'",
    )
    .bind(name)
    .bind(schemas)
    .bind(tables)
    .bind(ledger::added(name))
    .execute(&mut *replica)
    .await?;
    sqlx::query(
        "DELETE FROM millstream.deferred_ddl d WHERE d.replica IN ($1, $4) AND (d.table_schema, d.table_name) IN (SELECT s, t FROM unnest($2::text[], $3::text[]) u(s, t))",
    )
    .bind(name)
    .bind(plan.gone.iter().map(|t| t.schema.as_str()).collect::<Vec<_>>())
    .bind(plan.gone.iter().map(|t| t.name.as_str()).collect::<Vec<_>>())
    .bind(ledger::added(name))
    .execute(&mut *replica)
    .await?;
    if state == CopyState::Pending {
        put_off::forget(&mut *replica, &plan.tables).await?;
    }
    put_off(replica, name, &plan.deferred).await
}

/// Notes what is built when the copy has caught up.
///
/// # Errors
/// The server's.
pub async fn put_off(replica: &mut PgConnection, name: &str, later: &[Deferred]) -> Result<(), sqlx::Error> {
    for deferred in later {
        sqlx::query(
            "INSERT INTO millstream.deferred_ddl (replica, ordinal, table_schema, table_name, kind, statement) \
             SELECT $1, coalesce(max(ordinal), 0) + 1, $2, $3, $4, $5 FROM millstream.deferred_ddl WHERE replica = $1",
        )
        .bind(name)
        .bind(&deferred.table.schema)
        .bind(&deferred.table.name)
        .bind(deferred.kind.as_str())
        .bind(&deferred.statement)
        .execute(&mut *replica)
        .await?;
    }
    Ok(())
}
