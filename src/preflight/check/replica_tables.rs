//! The replica's tables: what is in them, what fires on them, what they refuse that the source accepts.

use std::collections::BTreeSet;

use sqlx::{PgConnection, Row};

use super::finding::{Findings, Place, Remedy, Side};
use super::replica::Picks;
use super::server::ServerFacts;
use crate::event::TableName;
use crate::postgres::sql::quote_ident as quote;
use crate::preflight::{counted, emptying};

const TABLES: &str = "\
SELECT c.oid::int8, n.nspname::text, c.relname::text, \
 has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'INSERT') AND has_table_privilege(c.oid, 'UPDATE') \
  AND has_table_privilege(c.oid, 'DELETE') AND has_table_privilege(c.oid, 'TRUNCATE'), \
 c.relrowsecurity AND NOT (SELECT rolbypassrls OR rolsuper FROM pg_roles WHERE rolname = current_user) AND NOT pg_has_role(c.relowner, 'USAGE') \
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'millstream') ORDER BY 2, 3";

/// What is known of the replica by now.
pub(super) struct Context<'a> {
    /// The server and our role there.
    pub(super) facts: &'a ServerFacts,
    /// `session_replication_role` may be set.
    pub(super) replica_role: bool,
    /// `init` has made the ledger: rows in tables are ours.
    pub(super) initialized: bool,
}

struct ReplicaTable {
    oid: i64,
    label: String,
    sql_name: String,
}

/// Checks the tables that the source's patterns pick and that are already here.
pub(super) async fn check(
    findings: &mut Findings,
    connection: &mut PgConnection,
    picks: &Picks<'_>,
    context: &Context<'_>,
) -> sqlx::Result<()> {
    let Context { facts, replica_role, initialized } = *context;
    let before = findings.problems();
    let (mut ours, mut holding) = (BTreeSet::new(), Vec::new());
    for row in sqlx::query(TABLES).fetch_all(&mut *connection).await? {
        let (schema, name): (String, String) = (row.get(1), row.get(2));
        let table_name = TableName::new(&schema, &name);
        if !picks.matches(&table_name) {
            continue;
        }
        ours.insert(table_name.clone());
        let table = ReplicaTable {
            oid: row.get(0),
            label: format!("{schema}.{name}"),
            sql_name: format!("{}.{}", quote(&schema), quote(&name)),
        };
        if !row.get::<bool, _>(3) {
            let statement =
                format!("GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON {} TO {}", table.sql_name, quote(&facts.role));
            findings.error(
                "table_right",
                format!("role {} may not write it", facts.role),
                "changes are applied under this role",
                Some(Remedy::sql(Side::Replica, statement)),
            );
            findings.about(&table.label);
            continue;
        }
        if row.get::<bool, _>(4) {
            let statement = format!("ALTER ROLE {} BYPASSRLS", quote(&facts.role));
            findings.error(
                "row_security",
                "row security would refuse or hide rows",
                "updates would meet no row",
                Some(Remedy::sql(Side::Replica, statement)),
            );
            findings.about(&table.label);
        }
        if !initialized && has_rows(connection, &table).await? {
            holding.push(table_name);
        }
        triggers(findings, connection, &table, replica_role).await?;
        constraints(findings, connection, &table, replica_role).await?;
        if replica_role {
            beside_deferrable_keys(findings, connection, &table).await?;
        }
    }
    if !holding.is_empty() {
        rows_inside(findings, connection, &holding, &ours).await?;
    }
    if findings.problems() == before {
        let text = match ours.len() {
            0 => "none yet; init makes them".to_owned(),
            count => format!("{}, nothing fires or refuses", counted(count, "table")),
        };
        findings.ok("tables", text);
    }
    Ok(())
}

async fn has_rows(connection: &mut PgConnection, table: &ReplicaTable) -> sqlx::Result<bool> {
    let statement = format!("SELECT EXISTS (SELECT FROM {})", table.sql_name);
    sqlx::query_scalar(sqlx::AssertSqlSafe(statement)).fetch_one(connection).await
}

/// All in one finding: foreign keys between the tables would keep each from being emptied alone.
async fn rows_inside(
    findings: &mut Findings,
    connection: &mut PgConnection,
    holding: &[TableName],
    ours: &BTreeSet<TableName>,
) -> sqlx::Result<()> {
    let emptying = emptying::plan(connection, holding, ours).await?;
    let list = |tables: &[TableName]| tables.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let mut why = "init never empties a table and never copies into one with rows; if these are the source's own rows, see `millstream init --adopt`"
        .to_owned();
    if !emptying.along.is_empty() {
        why += &format!(". Named as well, because they refer to these: {}", list(&emptying.along));
    }
    if !emptying.strangers.is_empty() {
        why += &format!(". Foreign keys of tables that are not replicated stand in the way: {}", list(&emptying.strangers));
    }
    let mut steps = emptying.steps.into_iter();
    let first = Remedy::sql(Side::Replica, steps.next().unwrap_or_default());
    let remedy = steps.fold(first, Remedy::then);
    match holding {
        [one] => {
            findings.error("rows_inside", "the table holds rows", why, Some(remedy));
            findings.about(one.to_string());
        }
        many => {
            findings.error(
                "rows_inside",
                format!("{} hold rows: {}", counted(many.len(), "table"), list(many)),
                why,
                Some(remedy),
            );
        }
    }
    Ok(())
}

/// `pg_trigger.tgenabled`: O fires in sessions of role origin, R of role replica, A in both (PostgreSQL documentation, "pg_trigger").
async fn triggers(
    findings: &mut Findings,
    connection: &mut PgConnection,
    table: &ReplicaTable,
    replica_role: bool,
) -> sqlx::Result<()> {
    let rows = sqlx::query(
        "SELECT tgname::text, tgenabled::text FROM pg_trigger WHERE tgrelid = $1::oid AND NOT tgisinternal AND tgenabled <> 'D'",
    )
    .bind(table.oid)
    .fetch_all(connection)
    .await?;
    for row in rows {
        let (name, enabled): (String, String) = (row.get(0), row.get(1));
        let fires = enabled == "A" || enabled == "R" || !replica_role;
        if fires {
            let remedy = Remedy::sql(Side::Replica, format!("ALTER TABLE {} DISABLE TRIGGER {}", table.sql_name, quote(&name)));
            findings.warn(
                "trigger",
                format!("trigger {name} fires on what is applied"),
                "what it writes is not in the source, and runs with the rights of the applying role",
                Some(remedy),
            );
            findings.about(&table.label);
        }
    }
    Ok(())
}

async fn constraints(
    findings: &mut Findings,
    connection: &mut PgConnection,
    table: &ReplicaTable,
    replica_role: bool,
) -> sqlx::Result<()> {
    let rows = sqlx::query(
        "SELECT conname::text, contype::text, condeferrable, (SELECT count(*) FROM pg_trigger t WHERE t.tgrelid = conrelid AND NOT t.tgisinternal AND t.tgenabled <> 'D') \
         FROM pg_constraint WHERE conrelid = $1::oid",
    )
    .bind(table.oid)
    .fetch_all(connection)
    .await?;
    for row in rows {
        let (name, kind, deferrable, user_triggers): (String, String, bool, i64) =
            (row.get(0), row.get(1), row.get(2), row.get(3));
        match kind.as_str() {
            "p" | "u" if deferrable && user_triggers > 0 => {
                let why = "such a table is written with triggers on, because PostgreSQL does not check deferrable keys otherwise";
                let remedy = Remedy::sql(Side::Replica, format!("ALTER TABLE {} DISABLE TRIGGER USER", table.sql_name));
                findings.error("deferrable", format!("key {name} is deferrable and the table has triggers"), why, Some(remedy));
            }
            "f" if !replica_role => {
                let remedy = Remedy::at(Place::Person, "let the role set session_replication_role, as above");
                findings.warn(
                    "foreign_key",
                    format!("foreign key {name} is checked on what is applied"),
                    "a row whose parent is not captured halts the replica",
                    Some(remedy),
                );
            }
            _ => continue,
        }
        findings.about(&table.label);
    }
    Ok(())
}

/// A transaction that touches a table with a deferrable key is written with triggers on, so that the key is checked; foreign keys from and to the table then fire.
async fn beside_deferrable_keys(
    findings: &mut Findings,
    connection: &mut PgConnection,
    table: &ReplicaTable,
) -> sqlx::Result<()> {
    let rows = sqlx::query(
        "SELECT f.conname::text, format('%I.%I', n.nspname, c.relname) FROM pg_constraint f JOIN pg_class c ON c.oid = f.conrelid \
         JOIN pg_namespace n ON n.oid = c.relnamespace WHERE f.contype = 'f' AND f.conparentid = 0 AND $1::oid IN (f.conrelid, f.confrelid) \
         AND EXISTS (SELECT FROM pg_constraint k WHERE k.conrelid = $1::oid AND k.contype IN ('p', 'u', 'x') AND k.condeferrable) ORDER BY 1",
    )
    .bind(table.oid)
    .fetch_all(connection)
    .await?;
    for row in rows {
        let (name, owner): (String, String) = (row.get(0), row.get(1));
        let statement = format!("ALTER TABLE {owner} DROP CONSTRAINT {}", quote(&name));
        findings.warn(
            "deferrable_foreign_key",
            format!("foreign key {name} of {owner} is checked on what is applied, because a key of this table is deferrable"),
            "a row whose parent is not captured halts the replica",
            Some(Remedy::sql(Side::Replica, statement)),
        );
        findings.about(&table.label);
    }
    Ok(())
}
