//! A replica beside its source: the rights that `init` needs to make what is missing, and what of the tables that are there
//! refuses rows that the source accepts.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sqlx::{PgConnection, Row};

use super::drift;
use super::finding::{Findings, Place, Remedy, Side};
use super::live_tables::copy_misfit_again;
use super::server::ServerFacts;
use super::source_tables::own;
use crate::error::Result;
use crate::event::TableName;
use crate::postgres::sql::{self, classify, quote_ident as quote, quote_table};
use crate::preflight::counted;
use crate::preflight::init::Blueprint;
use crate::preflight::init::casts::Casts;
use crate::preflight::init::ddl::take_off;
use crate::preflight::init::definition::{self, TableDefinition};
use crate::preflight::init::fits::{Misfit, misfits};
use crate::preflight::init::types;

/// What the replica has under a name.
struct Here {
    oid: u32,
    owned: bool,
    /// Foreign keys may refer to it, or to all columns of one of its keys.
    may_refer: bool,
    /// Owning role, and whether it is a superuser.
    owner: (String, bool),
}

/// How a replica stands.
pub(super) struct State<'a> {
    /// `init` has been here, so keys have been taken off already and the ledger's tables are known.
    pub(super) initialized: bool,
    /// Tables whose copy is complete.
    pub(super) live: &'a BTreeSet<TableName>,
    /// Tables that the ledger has; `init` makes only others.
    pub(super) known: &'a BTreeSet<TableName>,
    /// The source's schema changes are carried.
    pub(super) carries: bool,
    /// It is so far behind that the source's catalog may be ahead of what has been carried.
    pub(super) behind: Option<Duration>,
}

/// Compares.
pub(super) async fn check(
    findings: &mut Findings,
    connection: &mut PgConnection,
    blueprint: &Blueprint,
    facts: &ServerFacts,
    state: &State<'_>,
) -> Result<()> {
    let initialized = state.initialized;
    let here = relations(connection).await?;
    let building = if initialized { put_off(connection, false).await? } else { BTreeSet::new() };
    schemas(findings, connection, blueprint, &here, facts, state, &building).await?;
    references(findings, blueprint, &here, facts, initialized, &building);
    let late = state.behind.filter(|_| state.carries);
    let oids: Vec<u32> = blueprint.tables.iter().filter_map(|t| here.get(&t.table)).map(|h| h.oid).collect();
    labels(findings, connection, blueprint, late).await?;
    if initialized {
        partitions(findings, connection, blueprint, &here, late).await?;
    }
    let definitions = definition::read(connection, sql::Side::Replica, &oids).await?;
    let mut missing_types = BTreeMap::new();
    for wanted in &blueprint.types {
        if types::labels(connection, sql::Side::Replica, &wanted.quoted).await?.is_none() {
            missing_types.insert(wanted.quoted.as_str(), wanted.statement.as_str());
        }
    }
    let loading = if initialized { put_off(connection, true).await? } else { BTreeSet::new() };
    let casts = Casts::read(connection).await?;
    for source in &blueprint.tables {
        let Some((there, theirs)) = here.get(&source.table).and_then(|h| Some((h, definitions.get(&h.oid)?))) else { continue };
        if !there.owned {
            let said = !initialized && owner(findings, theirs, &there.owner, facts);
            if state.carries && !said {
                changes_nothing(findings, &source.table, &there.owner, facts);
            }
        }
        if !loading.contains(&source.table) {
            let misfits = misfits(source, theirs, &casts);
            misfit(findings, &source.table, &misfits, &missing_types, state.live.contains(&source.table), late);
        }
        generated(findings, source, theirs);
        refusals(findings, source, theirs);
    }
    if initialized {
        let mut building = building;
        building.extend(not_live(connection).await?);
        let oids = blueprint.all().filter_map(|t| Some((&t.table, here.get(&t.table)?.oid))).collect();
        drift::check(findings, connection, blueprint, &oids, &building, late).await?;
    }
    Ok(())
}

/// A difference between the source's catalog and the replica's matters for a reason; where the replica is late, the source's may be ahead of the log.
pub(super) fn why(reason: &str, late: Option<Duration>) -> String {
    late.map_or_else(
        || reason.to_owned(),
        |behind| {
            format!(
                "{reason}; the replica is {} s behind, and what the source has may still come with the log: make it by hand only where the replica has \
                 halted for it (`millstream status`), or it stands in the way of what comes",
                behind.as_secs()
            )
        },
    )
}

/// A difference that is wrong, unless the replica is late.
fn differs(
    findings: &mut Findings,
    check: &'static str,
    what: impl Into<String>,
    reason: &str,
    remedy: Option<Remedy>,
    late: Option<Duration>,
) {
    match late {
        None => findings.error(check, what, reason, remedy),
        Some(_) => findings.warn(check, what, why(reason, late), remedy),
    }
}

/// Enums that are here and lack a label.
async fn labels(
    findings: &mut Findings,
    connection: &mut PgConnection,
    blueprint: &Blueprint,
    late: Option<Duration>,
) -> Result<()> {
    for (wanted, labels) in blueprint.types.iter().filter_map(|t| Some((t, t.labels.as_ref()?))) {
        let Some(there) = types::labels(connection, sql::Side::Replica, &wanted.quoted).await? else { continue };
        let missing: Vec<&String> = labels.iter().filter(|label| !there.contains(label)).collect();
        let mut statements = missing.iter().map(|label| types::add_label(&wanted.quoted, labels, label));
        let Some(first) = statements.next() else { continue };
        let what =
            format!("type {} lacks label {}", wanted.quoted, missing.iter().map(|l| l.as_str()).collect::<Vec<_>>().join(", "));
        let remedy = statements.fold(Remedy::sql(Side::Replica, first), Remedy::then);
        differs(findings, "enum", what, "a row that holds it halts the replica with replica_constraint", Some(remedy), late);
        findings.about(wanted.quoted.clone());
    }
    Ok(())
}

const PARTITIONS: &str = "SELECT cn.nspname::text, c.relname::text, pn.nspname::text, p.relname::text FROM pg_catalog.pg_inherits i \
     JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid JOIN pg_catalog.pg_namespace cn ON cn.oid = c.relnamespace \
     JOIN pg_catalog.pg_class p ON p.oid = i.inhparent JOIN pg_catalog.pg_namespace pn ON pn.oid = p.relnamespace \
     WHERE p.relkind = 'p' AND c.relkind IN ('r', 'p') ORDER BY 1, 2";

/// Rows travel by leaves, and ATTACH, DETACH and DROP of one in no change: nothing halts, and who reads the parent here reads something else.
async fn partitions(
    findings: &mut Findings,
    connection: &mut PgConnection,
    blueprint: &Blueprint,
    relations: &BTreeMap<TableName, Here>,
    late: Option<Duration>,
) -> Result<()> {
    let rows = sqlx::query(PARTITIONS).fetch_all(connection).await.map_err(|e| classify(e, sql::Side::Replica))?;
    let name = |row: &sqlx::postgres::PgRow, at: usize| TableName::new(row.get::<String, _>(at), row.get::<String, _>(at + 1));
    let here: BTreeMap<TableName, TableName> = rows.iter().map(|row| (name(row, 0), name(row, 2))).collect();
    let at_source = |leaf: &TableName| blueprint.all().find(|t| t.table == *leaf)?.partition_of.as_ref();
    let is_known = |parent: &TableName| blueprint.parents.iter().any(|p| p.table == *parent);
    let why = why("who reads the partitioned table on the replica reads other rows than on the source", late);
    for (leaf, parent) in
        here.iter().filter(|(leaf, parent)| is_known(parent) && at_source(leaf).is_none_or(|(p, _)| p != *parent))
    {
        let statement = format!("ALTER TABLE {} DETACH PARTITION {}", quote_table(parent), quote_table(leaf));
        let what = format!("{leaf} is a partition of {parent} here and none of its captured ones at the source");
        findings.warn("partition", what, why.as_str(), Some(Remedy::sql(Side::Replica, statement)));
        findings.about(leaf.to_string());
    }
    let there = |table: &TableName| relations.contains_key(table);
    let loose = blueprint.all().filter(|t| there(&t.table) && !here.contains_key(&t.table));
    for (leaf, (parent, bound)) in loose.filter_map(|t| Some((&t.table, t.partition_of.as_ref()?))).filter(|(_, (p, _))| there(p))
    {
        let statement = format!("ALTER TABLE {} ATTACH PARTITION {} {bound}", quote_table(parent), quote_table(leaf));
        findings.warn(
            "partition",
            format!("{leaf} is no partition of {parent} here"),
            why.as_str(),
            Some(Remedy::sql(Side::Replica, statement)),
        );
        findings.about(leaf.to_string());
    }
    Ok(())
}

/// Tables that are being copied, again or for the first time.
async fn not_live(connection: &mut PgConnection) -> Result<Vec<TableName>> {
    let query = sqlx::query_as("SELECT table_schema, table_name FROM millstream.copied_table WHERE state <> 'live'");
    let rows: Vec<(String, String)> = query.fetch_all(connection).await.map_err(|e| classify(e, sql::Side::Replica))?;
    Ok(rows.into_iter().map(|(schema, name)| TableName::new(schema, name)).collect())
}

/// Tables of which something is built when they are loaded; `keys`: those whose primary key is off until then.
async fn put_off(connection: &mut PgConnection, keys: bool) -> Result<BTreeSet<TableName>> {
    let rows =
        sqlx::query("SELECT table_schema, table_name FROM millstream.deferred_ddl WHERE NOT done AND (kind = 'key' OR NOT $1)")
            .bind(keys)
            .fetch_all(connection)
            .await
            .map_err(|e| classify(e, sql::Side::Replica))?;
    Ok(rows.iter().map(|row| TableName::new(row.get::<String, _>(0), row.get::<String, _>(1))).collect())
}

async fn relations(connection: &mut PgConnection) -> Result<BTreeMap<TableName, Here>> {
    let rows = sqlx::query(
        "SELECT n.nspname::text, c.relname::text, c.oid::int8, pg_catalog.pg_has_role(c.relowner, 'USAGE'), pg_catalog.pg_get_userbyid(c.relowner)::text, \
         (SELECT r.rolsuper FROM pg_catalog.pg_roles r WHERE r.oid = c.relowner), pg_catalog.has_table_privilege(c.oid, 'REFERENCES') \
         OR EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisunique AND (SELECT bool_and(pg_catalog.has_column_privilege( \
            c.oid, k.attnum, 'REFERENCES')) FROM unnest(i.indkey[:i.indnkeyatts - 1]) k (attnum) WHERE k.attnum > 0)) FROM pg_catalog.pg_class c \
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p')",
    )
    .fetch_all(connection)
    .await
    .map_err(|e| classify(e, sql::Side::Replica))?;
    let named = |row: &sqlx::postgres::PgRow| {
        let oid = u32::try_from(row.get::<i64, _>(2)).unwrap_or_default();
        (
            TableName::new(row.get::<String, _>(0), row.get::<String, _>(1)),
            Here { oid, owned: row.get(3), owner: (row.get(4), row.get(5)), may_refer: row.get(6) },
        )
    };
    Ok(rows.iter().map(named).collect())
}

/// Schemas that `init` makes something in, or that hold tables to write.
async fn schemas(
    findings: &mut Findings,
    connection: &mut PgConnection,
    blueprint: &Blueprint,
    here: &BTreeMap<TableName, Here>,
    facts: &ServerFacts,
    state: &State<'_>,
    building: &BTreeSet<TableName>,
) -> Result<()> {
    let initialized = state.initialized;
    let missing = || blueprint.all().filter(|t| !here.contains_key(&t.table) && !state.known.contains(&t.table));
    let used: BTreeSet<&str> = blueprint.all().map(|t| t.table.schema.as_str()).collect();
    let mut made_in: BTreeSet<&str> = missing()
        .flat_map(|t| std::iter::once(&t.table).chain(t.sequences.iter().map(|s| &s.name)))
        .map(|n| n.schema.as_str())
        .collect();
    if !made_in.is_empty() {
        made_in.extend(blueprint.types.iter().map(|t| t.schema.as_str()));
    }
    // A key that is built again makes an index, for which its table's schema is asked.
    for table in blueprint.tables.iter().filter(|t| here.contains_key(&t.table)) {
        if !initialized || building.contains(&table.table) {
            made_in.insert(&table.table.schema);
        }
    }
    let before = findings.problems();
    for schema in used.union(&made_in).filter(|schema| **schema != "pg_catalog") {
        let row = sqlx::query(
            "SELECT pg_catalog.has_schema_privilege(n.oid, 'USAGE'), pg_catalog.has_schema_privilege(n.oid, 'CREATE'), \
             pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE') \
             FROM (SELECT $1::text AS name) w LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = w.name",
        )
        .bind(schema)
        .fetch_one(&mut *connection)
        .await
        .map_err(|e| classify(e, sql::Side::Replica))?;
        let (usage, create, create_schema): (Option<bool>, Option<bool>, bool) = (row.get(0), row.get(1), row.get(2));
        let role = quote(&facts.role);
        let (what, statement) = match (usage, create) {
            (None, _) if create_schema => continue,
            (None, _) => {
                let what = format!("schema {schema} is not here, and role {} may not make it", facts.role);
                (what, format!("CREATE SCHEMA {} AUTHORIZATION {role}", quote(schema)))
            }
            (Some(usage), create) => {
                let wants_create = made_in.contains(schema) && create == Some(false);
                match (!usage, wants_create) {
                    (false, false) => continue,
                    (_, true) => {
                        let what = format!("role {} may not make tables and indexes in schema {schema}", facts.role);
                        (what, format!("GRANT USAGE, CREATE ON SCHEMA {} TO {role}", quote(schema)))
                    }
                    (true, false) => {
                        let what = format!("role {} may not look into schema {schema}", facts.role);
                        (what, format!("GRANT USAGE ON SCHEMA {} TO {role}", quote(schema)))
                    }
                }
            }
        };
        let why = "init makes the missing tables, types and sequences in it, the copy builds keys and indexes, and changes are applied to tables in it";
        findings.error("schema_right", what, why, Some(Remedy::sql(Side::Replica, statement)));
        findings.about(*schema);
    }
    if findings.problems() == before {
        findings.ok(
            "schema_right",
            match missing().count() {
                0 => "the role may use every schema with tables".to_owned(),
                count => format!("{} to be made by init, in schemas where the role may", counted(count, "table")),
            },
        );
    }
    Ok(())
}

/// Foreign keys are made by this role, and the tables that they refer to may be somebody else's.
fn references(
    findings: &mut Findings,
    blueprint: &Blueprint,
    here: &BTreeMap<TableName, Here>,
    facts: &ServerFacts,
    initialized: bool,
    building: &BTreeSet<TableName>,
) {
    let to_make = blueprint.tables.iter().filter(|t| !initialized || !here.contains_key(&t.table) || building.contains(&t.table));
    let targets: BTreeSet<&TableName> = to_make.flat_map(|t| t.constraints.iter().filter_map(|k| k.refers_to.as_ref())).collect();
    for table in targets.into_iter().filter(|table| here.get(table).is_some_and(|there| !there.may_refer)) {
        let statement = format!("GRANT REFERENCES ON {} TO {}", quote_table(table), quote(&facts.role));
        let why = "a replicated table has a foreign key to it, which is built when the copy has caught up";
        let what = format!("role {} may not make foreign keys to it", facts.role);
        findings.error("table_right", what, why, Some(Remedy::sql(Side::Replica, statement)));
        findings.about(table.to_string());
    }
}

/// What the log carries only an owner may do.
fn changes_nothing(findings: &mut Findings, table: &TableName, owner: &(String, bool), facts: &ServerFacts) {
    let what = format!("role {} does not own it, and cannot change it as the source changes", facts.role);
    let why = "the replica halts with schema_change_refused at a schema change of the table";
    let statement = own(&quote_table(table), owner, &facts.role);
    findings.warn("table_owner", what, why, Some(Remedy::sql(Side::Replica, statement)));
    findings.about(table.to_string());
}

/// `init` takes second unique keys and foreign keys off for the copy and puts them back: only an owner may. True when that is said.
fn owner(findings: &mut Findings, table: &TableDefinition, owner: &(String, bool), facts: &ServerFacts) -> bool {
    let ([foreign, unique], _) = take_off(table);
    if foreign.is_empty() && unique.is_empty() {
        return false;
    }
    let statement = own(&quote_table(&table.table), owner, &facts.role);
    let why = "its second unique keys and foreign keys are taken off while it is copied and put back, which only an owner may";
    findings.error(
        "table_owner",
        format!("role {} does not own it", facts.role),
        why,
        Some(Remedy::sql(Side::Replica, statement)),
    );
    findings.about(table.table.to_string());
    true
}

/// What `init` refuses, in its own words. `live`: the table's rows are replicated.
fn misfit(
    findings: &mut Findings,
    table: &TableName,
    misfits: &[Misfit],
    missing_types: &BTreeMap<&str, &str>,
    live: bool,
    late: Option<Duration>,
) {
    for misfit in misfits {
        let what = misfit.what.as_str();
        let needs = |step: &String| missing_types.iter().find(|(name, _)| mentions(step, name)).map(|(_, make)| *make);
        let types = misfit.steps.iter().filter_map(needs).map(str::to_owned);
        let mut steps = types.chain(misfit.steps.iter().cloned());
        let mut reason = "init refuses the table, and a row that does not fit halts the replica";
        let remedy = match &misfit.if_renamed {
            _ if live && misfit.row_by_row => {
                reason = "a row that does not fit halts the replica, and what a sequence gave each row at the source only a copy brings";
                copy_misfit_again(table)
            }
            Some(rename) => {
                let new = steps.collect::<Vec<_>>().join("; ");
                Remedy::at(Place::Person, format!("{rename} if it was renamed; only if it is a new column: {new}"))
            }
            None => {
                let first = Remedy::sql(Side::Replica, steps.next().unwrap_or_default());
                steps.fold(first, Remedy::then).by_the_owner()
            }
        };
        differs(findings, "table_fit", what, reason, Some(remedy), late);
        findings.about(table.to_string());
    }
}

/// True when a statement has a type's name, and not only as a part of another.
fn mentions(statement: &str, name: &str) -> bool {
    // `format_type` quotes a name only where it must be.
    let (statement, name) = (statement.replace('"', ""), name.replace('"', ""));
    let goes_on = |c: char| c.is_alphanumeric() || matches!(c, '_' | '$');
    let alone = |at: usize| {
        let (before, behind) = (&statement[..at], &statement[at + name.len()..]);
        !before.ends_with(|c| goes_on(c) || c == '.') && !behind.starts_with(goes_on)
    };
    statement.match_indices(&name).any(|(at, _)| alone(at))
}

/// Generated columns travel in no change, so nothing halts where the replica lacks one.
fn generated(findings: &mut Findings, source: &TableDefinition, replica: &TableDefinition) {
    let missing =
        source.columns.iter().filter(|c| c.generated.is_some() && replica.columns.iter().all(|there| there.name != c.name));
    for column in missing {
        let Some(expression) = &column.expression else { continue };
        let kept = if column.generated == Some('v') { "VIRTUAL" } else { "STORED" };
        let statement = format!(
            "ALTER TABLE {} ADD COLUMN {} {} GENERATED ALWAYS AS ({expression}) {kept}",
            quote_table(&replica.table),
            quote(&column.name),
            column.type_text
        );
        let what = format!("generated column {} is missing", column.name);
        findings.warn(
            "generated_column",
            what,
            "who reads it on the replica does not find it",
            Some(Remedy::sql(Side::Replica, statement)),
        );
        findings.about(source.table.to_string());
    }
}

/// Constraints that the source does not have: it accepts what they refuse.
fn refusals(findings: &mut Findings, source: &TableDefinition, replica: &TableDefinition) {
    let name = quote_table(&replica.table);
    let drop = |constraint: &str| format!("ALTER TABLE {name} DROP CONSTRAINT {}", quote(constraint));
    let mut found = Vec::new();
    let checks: BTreeSet<&str> = source.constraints.iter().filter(|k| k.kind == 'c').map(|k| checked(&k.text)).collect();
    for check in replica.constraints.iter().filter(|k| k.kind == 'c' && !checks.contains(checked(&k.text))) {
        found.push(("check_constraint", format!("check constraint {}", check.name), drop(&check.name)));
    }
    let exclusions: BTreeSet<&str> = source.constraints.iter().filter(|k| k.kind == 'x').map(|k| k.text.as_str()).collect();
    for exclusion in replica.constraints.iter().filter(|k| k.kind == 'x' && !exclusions.contains(k.text.as_str())) {
        found.push(("exclusion", format!("exclusion constraint {}", exclusion.name), drop(&exclusion.name)));
    }
    let keys: BTreeSet<String> = unique_keys(source).map(|(_, key, _)| key).collect();
    for (key_name, key, is_constraint) in unique_keys(replica).filter(|(_, key, _)| !keys.contains(key)) {
        let index = format!("DROP INDEX {}.{}", quote(&replica.table.schema), quote(key_name));
        found.push(("unique_key", format!("unique key {key_name} ({key})"), if is_constraint { drop(key_name) } else { index }));
    }
    for (check, what, statement) in found {
        let why = "a row that the source accepts and this refuses halts the replica with replica_constraint";
        findings.warn(check, format!("{what}, which the source does not have"), why, Some(Remedy::sql(Side::Replica, statement)));
        findings.about(source.table.to_string());
    }
}

fn checked(text: &str) -> &str {
    text.strip_suffix(" NOT VALID").unwrap_or(text)
}

/// Names of unique keys and what each covers, written alike for constraints and for indexes; and whether a constraint owns it.
fn unique_keys(table: &TableDefinition) -> impl Iterator<Item = (&str, String, bool)> {
    let constraints = table.constraints.iter().filter(|k| matches!(k.kind, 'p' | 'u')).map(|k| {
        let text = k.text.split(" DEFERRABLE").next().unwrap_or(&k.text);
        let columns = text.strip_prefix("PRIMARY KEY ").or_else(|| text.strip_prefix("UNIQUE ")).unwrap_or(text);
        (k.name.as_str(), format!("btree {columns}"), true)
    });
    let indexes = table.indexes.iter().filter(|i| i.unique).map(|i| {
        let columns = i.text.split_once(" USING ").map_or(i.text.as_str(), |(_, columns)| columns);
        (i.name.as_str(), columns.to_owned(), false)
    });
    constraints.chain(indexes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_is_not_taken_for_one_whose_name_begins_with_its_own() {
        assert!(mentions(
            "ALTER TABLE \"public\".\"t\" ALTER COLUMN \"m\" TYPE public.mood USING \"m\"::public.mood",
            "\"public\".\"mood\""
        ));
        assert!(mentions("ADD COLUMN \"m\" public.\"Mood\"[]", "\"public\".\"Mood\""));
        for other in ["public.mood_old", "public.moods", "unpublic.mood", "x.public.mood"] {
            assert!(!mentions(&format!("ADD COLUMN \"m\" {other}"), "\"public\".\"mood\""), "{other}");
        }
    }
}
