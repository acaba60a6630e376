//! Whom a replica's tables are open to: what others put on a table runs with the rights of the role that writes it (threat 3).

use std::collections::BTreeSet;

use sqlx::{PgConnection, Row};

use super::finding::{Findings, Remedy, Side};
use super::replica::Picks;
use super::server::ServerFacts;
use crate::event::TableName;
use crate::postgres::sql::quote_ident as quote;
use crate::preflight::init::{Blueprint, LEDGER_OWNER};

/// Schema, table, its owner when that is no superuser, and others who may put triggers on it; `public` is everybody.
const TABLES: &str = "\
SELECT n.nspname::text, c.relname::text, \
 (SELECT rolname::text FROM pg_catalog.pg_roles WHERE oid = c.relowner AND NOT rolsuper), \
 ARRAY(SELECT coalesce(r.rolname::text, 'public') FROM pg_catalog.aclexplode(c.relacl) a LEFT JOIN pg_catalog.pg_roles r ON r.oid = a.grantee \
   WHERE a.privilege_type = 'TRIGGER' AND a.grantee <> c.relowner AND r.rolsuper IS NOT TRUE ORDER BY 1) \
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'millstream') \
ORDER BY 1, 2";

/// Schema, and who but superusers may make tables in it. That of `public` is PostgreSQL's name for the database's owner.
const SCHEMAS: &str = "\
SELECT n.nspname::text, ARRAY(SELECT coalesce(r.rolname::text, 'public') \
  FROM pg_catalog.aclexplode(coalesce(n.nspacl, pg_catalog.acldefault('n', n.nspowner))) a LEFT JOIN pg_catalog.pg_roles r ON r.oid = a.grantee \
  WHERE a.privilege_type = 'CREATE' AND r.rolsuper IS NOT TRUE AND (r.rolname IS DISTINCT FROM 'pg_database_owner' \
    OR (SELECT NOT o.rolsuper FROM pg_catalog.pg_database d JOIN pg_catalog.pg_roles o ON o.oid = d.datdba WHERE d.datname = pg_catalog.current_database())) \
  ORDER BY 1) \
FROM pg_catalog.pg_namespace n WHERE n.nspname = ANY ($1) ORDER BY 1";

const WHY: &str = "triggers, index expressions, defaults and domains of a table run with the rights of the role that writes it: who may make them gains a \
     superuser's; or let url name a role that is none";

/// Looks at the ledger's owner, and under a superuser at everybody who could have it run something.
pub(super) async fn check(
    findings: &mut Findings,
    connection: &mut PgConnection,
    picks: &Picks<'_>,
    blueprint: Option<&Blueprint>,
    facts: &ServerFacts,
    initialized: bool,
) -> sqlx::Result<()> {
    ledger(findings, connection, facts, initialized).await?;
    if !facts.superuser {
        return Ok(());
    }
    let before = findings.problems();
    let role = quote(&facts.role);
    let mut schemas: BTreeSet<String> =
        blueprint.iter().flat_map(|b| &b.tables).map(|table| table.table.schema.clone()).collect();
    for row in sqlx::query(TABLES).fetch_all(&mut *connection).await? {
        let (schema, name): (String, String) = (row.get(0), row.get(1));
        if !picks.matches(&TableName::new(&schema, &name)) {
            continue;
        }
        let table = format!("{}.{}", quote(&schema), quote(&name));
        if let Some(owner) = row.get::<Option<String>, _>(2) {
            let statement = format!("ALTER TABLE {table} OWNER TO {role}");
            warn(findings, facts, &format!("role {owner} owns the table"), statement, format!("{schema}.{name}"));
        }
        for other in row.get::<Vec<String>, _>(3) {
            let statement = format!("REVOKE TRIGGER ON {table} FROM {}", grantee(&other));
            warn(findings, facts, &format!("{} may put triggers on it", called(&other)), statement, format!("{schema}.{name}"));
        }
        schemas.insert(schema);
    }
    let schemas: Vec<String> = schemas.into_iter().collect();
    for row in sqlx::query(SCHEMAS).bind(schemas).fetch_all(connection).await? {
        let schema: String = row.get(0);
        for other in row.get::<Vec<String>, _>(1) {
            let statement = format!("REVOKE CREATE ON SCHEMA {} FROM {}", quote(&schema), grantee(&other));
            let what = format!("{} may make a table in the schema before init does", called(&other));
            warn(findings, facts, &what, statement, schema.clone());
        }
    }
    if findings.problems() == before {
        findings.ok("superuser", format!("role {} is one, and nobody else may put anything on the tables", facts.role));
    }
    Ok(())
}

fn warn(findings: &mut Findings, facts: &ServerFacts, what: &str, statement: String, object: String) {
    let what = format!("changes are applied by superuser {}, and {what}", facts.role);
    findings.warn("superuser", what, WHY, Some(Remedy::sql(Side::Replica, statement)));
    findings.about(object);
}

fn called(role: &str) -> String {
    if role == "public" { "everybody".to_owned() } else { format!("role {role}") }
}

/// A role of that name cannot be.
fn grantee(role: &str) -> String {
    if role == "public" { "PUBLIC".to_owned() } else { quote(role) }
}

/// The owner of schema `millstream` can take the ledger away and put another in its place.
async fn ledger(
    findings: &mut Findings,
    connection: &mut PgConnection,
    facts: &ServerFacts,
    initialized: bool,
) -> sqlx::Result<()> {
    let owner: Option<String> = sqlx::query_scalar(LEDGER_OWNER).fetch_optional(connection).await?;
    let Some(owner) = owner else { return Ok(()) };
    let why = "who owns it decides what the ledger says and what runs when it is written";
    let what = format!("schema millstream, or something in it, belongs to role {owner}");
    if initialized {
        let statement = format!("ALTER SCHEMA millstream OWNER TO {}", quote(&facts.role));
        findings.warn("ledger_owner", what, why, Some(Remedy::sql(Side::Replica, statement)));
    } else {
        let what = format!("{what}, and init has not made it");
        let statement = "DROP SCHEMA millstream CASCADE";
        findings.error("ledger_owner", what, why, Some(Remedy::sql(Side::Replica, statement)));
    }
    Ok(())
}
