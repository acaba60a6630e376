//! What each captured table must have: a replica identity, the rights to read it, types that a replica can have.

use std::collections::BTreeSet;

use sqlx::{PgConnection, Row};

use super::finding::{Findings, Place, Remedy, Side};
use super::server::ServerFacts;
use crate::config::{ByteSize, SourceConfig};
use crate::event::TableName;
use crate::postgres::sql::quote_ident as quote;
use crate::preflight::counted;
use crate::preflight::init::Resolved;

/// Copy speed assumed for the estimate of a table that must be read in one go, bytes per second.
const ASSUMED_COPY_BYTES_PER_SECOND: i64 = 30 << 20;

/// What the catalog says of one table.
struct Candidate {
    schema: String,
    name: String,
    identity: String,
    has_primary_key: bool,
    identity_index_ok: bool,
    unlogged: bool,
    may_select: bool,
    schema_usage: bool,
    owned: bool,
    /// Owning role, and whether it is a superuser.
    owner: (String, bool),
    hidden_rows: bool,
    bytes: i64,
    deferrable_key: Option<String>,
}

impl Candidate {
    fn sql_name(&self) -> String {
        format!("{}.{}", quote(&self.schema), quote(&self.name))
    }
}

/// Ordinary tables and leaves of partitioned ones. `pg_index.indimmediate` is false for a deferrable constraint's index, which
/// cannot be a replica identity (PostgreSQL source, relcache.c, `RelationGetIndexList`).
const CANDIDATES: &str = "\
SELECT n.nspname::text, c.relname::text, c.relreplident::text, \
 EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND i.indimmediate AND i.indisvalid), \
 EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisreplident AND i.indisvalid), \
 c.relpersistence = 'u', has_table_privilege(c.oid, 'SELECT'), has_schema_privilege(n.oid, 'USAGE'), \
 pg_has_role(c.relowner, 'USAGE'), \
 c.relrowsecurity AND NOT (SELECT rolbypassrls OR rolsuper FROM pg_roles WHERE rolname = current_user) \
  AND (c.relforcerowsecurity OR NOT pg_has_role(c.relowner, 'USAGE')), \
 pg_table_size(c.oid), \
 (SELECT i.indexrelid::regclass::text FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND NOT i.indimmediate), \
 pg_get_userbyid(c.relowner)::text, (SELECT rolsuper FROM pg_roles r WHERE r.oid = c.relowner) \
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'millstream') \
ORDER BY 1, 2";

/// Checks every table that the source's patterns pick, as `init` picks them.
pub(super) async fn check(
    findings: &mut Findings,
    source: &SourceConfig,
    resolved: &Resolved,
    connection: &mut PgConnection,
    facts: &ServerFacts,
) -> sqlx::Result<()> {
    let names: BTreeSet<&TableName> =
        resolved.tables.iter().map(|t| &t.name).chain(resolved.refused.iter().map(|(name, _)| name)).collect();
    let unlogged: BTreeSet<&TableName> = resolved.left_out.iter().map(|(name, _)| name).collect();
    let mut picked = Vec::new();
    for row in sqlx::query(CANDIDATES).fetch_all(&mut *connection).await? {
        let table = Candidate {
            schema: row.get(0),
            name: row.get(1),
            identity: row.get(2),
            has_primary_key: row.get(3),
            identity_index_ok: row.get(4),
            unlogged: row.get(5),
            may_select: row.get(6),
            schema_usage: row.get(7),
            owned: row.get(8),
            owner: (row.get(12), row.get(13)),
            hidden_rows: row.get(9),
            bytes: row.get(10),
            deferrable_key: row.get(11),
        };
        let name = TableName::new(&table.schema, &table.name);
        if names.contains(&name) || (table.unlogged && unlogged.contains(&name)) {
            picked.push(table);
        }
    }
    if picked.is_empty() {
        let remedy = Remedy::at(
            Place::Configuration,
            format!("source.{}.tables: name tables that exist, as \"schema.table\" or \"schema.*\"", source.name),
        );
        findings.error("tables", format!("no table matches {:?}", source.tables), "there is nothing to replicate", Some(remedy));
        return Ok(());
    }
    for pattern in resolved.idle_patterns(&source.tables) {
        let remedy = Remedy::at(Place::Configuration, format!("source.{}.tables: mend or remove {pattern:?}", source.name));
        findings.warn(
            "pattern",
            format!("pattern {pattern:?} matches no table"),
            "a table that was meant may be missing",
            Some(remedy),
        );
    }
    let before = findings.problems();
    judge_sequences(findings, &picked, connection, facts).await?;
    for table in &picked {
        judge_identity(findings, table);
        judge_rights(findings, table, facts);
    }
    if findings.problems() == before {
        let bytes = ByteSize(picked.iter().map(|t| t.bytes.unsigned_abs()).sum());
        findings.ok("tables", format!("{}, {bytes}, each with a key and readable", counted(picked.len(), "table")));
    }
    Ok(())
}

/// Sequences that a column's default takes numbers from, or that belong to a column, and that this role may not read. What belongs to a table belongs
/// to its owner too; the others need not.
const UNREADABLE: &str = "\
SELECT DISTINCT t.nspname::text, c.relname::text, n.nspname::text, s.relname::text, has_schema_privilege(n.oid, 'USAGE') \
FROM (SELECT d.refobjid AS tab, d.objid AS seq FROM pg_depend d WHERE d.classid = 'pg_class'::regclass \
       AND d.refclassid = 'pg_class'::regclass AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i') \
      UNION SELECT f.adrelid, d.refobjid FROM pg_attrdef f JOIN pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid \
       AND d.refclassid = 'pg_class'::regclass) u \
JOIN pg_class s ON s.oid = u.seq AND s.relkind = 'S' JOIN pg_namespace n ON n.oid = s.relnamespace \
CROSS JOIN LATERAL (SELECT u.tab UNION SELECT l.relid FROM pg_partition_tree(u.tab) l WHERE l.isleaf) l(relid) \
JOIN pg_class c ON c.oid = l.relid JOIN pg_namespace t ON t.oid = c.relnamespace \
WHERE NOT (has_schema_privilege(n.oid, 'USAGE') AND has_sequence_privilege(s.oid, 'SELECT')) ORDER BY 1, 2, 3, 4";

async fn judge_sequences(
    findings: &mut Findings,
    picked: &[Candidate],
    connection: &mut PgConnection,
    facts: &ServerFacts,
) -> sqlx::Result<()> {
    let mut named = BTreeSet::new();
    for row in sqlx::query(UNREADABLE).fetch_all(&mut *connection).await? {
        let (table_schema, table, schema, name): (String, String, String, String) =
            (row.get(0), row.get(1), row.get(2), row.get(3));
        let captured = picked.iter().any(|candidate| candidate.schema == table_schema && candidate.name == table);
        if !captured || !named.insert((schema.clone(), name.clone())) {
            continue;
        }
        let role = quote(&facts.role);
        let select = format!("GRANT SELECT ON SEQUENCE {}.{} TO {role}", quote(&schema), quote(&name));
        let remedy = if row.get(4) {
            Remedy::sql(Side::Source, select)
        } else {
            Remedy::sql(Side::Source, format!("GRANT USAGE ON SCHEMA {} TO {role}", quote(&schema))).then(select)
        };
        findings.warn(
            "sequence_right",
            format!("role {} may not read this sequence, which gives {table_schema}.{table} its numbers", facts.role),
            "it is not carried: on the replica it stays where init made it",
            Some(remedy),
        );
        findings.about(format!("{schema}.{name}"));
    }
    Ok(())
}

fn judge_identity(findings: &mut Findings, table: &Candidate) {
    let name = format!("{}.{}", table.schema, table.name);
    if table.unlogged {
        let remedy = Remedy::sql(Side::Source, format!("ALTER TABLE {} SET LOGGED", table.sql_name()));
        findings.warn("unlogged", "the table is unlogged: its changes are not in the WAL", "it is not captured", Some(remedy));
        findings.about(name);
        return;
    }
    let usable = match table.identity.as_str() {
        "d" => table.has_primary_key,
        "i" => table.identity_index_ok,
        "f" => true,
        _ => false,
    };
    if !usable {
        let (what, statement) = match &table.deferrable_key {
            Some(key) => {
                (format!("its primary key {key} is deferrable and cannot be its replica identity"), "REPLICA IDENTITY FULL")
            }
            None if table.has_primary_key => ("its replica identity is not usable".to_owned(), "REPLICA IDENTITY DEFAULT"),
            None => ("it has no primary key and no replica identity".to_owned(), "REPLICA IDENTITY FULL"),
        };
        let remedy = Remedy::sql(Side::Source, format!("ALTER TABLE {} {statement}", table.sql_name()));
        findings.error(
            "replica_identity",
            what,
            "publishing it would make the application's UPDATE and DELETE fail, so it is refused",
            Some(remedy),
        );
        findings.about(name);
    } else if table.identity == "f" && !table.has_primary_key {
        let seconds = table.bytes / ASSUMED_COPY_BYTES_PER_SECOND;
        let what = format!("it has no key; rows are matched whole, and it is copied under one snapshot (about {seconds} s)");
        let remedy =
            Remedy::at(Place::Person, format!("if its rows have a key: ALTER TABLE {} ADD PRIMARY KEY (…)", table.sql_name()));
        findings.warn(
            "no_key",
            what,
            "an update or delete searches the whole table on the replica; a long snapshot holds back vacuum",
            Some(remedy),
        );
        findings.about(name);
    }
}

fn judge_rights(findings: &mut Findings, table: &Candidate, facts: &ServerFacts) {
    let name = format!("{}.{}", table.schema, table.name);
    let role = quote(&facts.role);
    if !table.schema_usage {
        let remedy = Remedy::sql(Side::Source, format!("GRANT USAGE ON SCHEMA {} TO {role}", quote(&table.schema)));
        findings.error(
            "schema_right",
            format!("role {} may not look into schema {}", facts.role, table.schema),
            "the first copy reads the tables in it",
            Some(remedy),
        );
        findings.about(name.clone());
    }
    if !table.may_select {
        let remedy = Remedy::sql(Side::Source, format!("GRANT SELECT ON {} TO {role}", table.sql_name()));
        findings.error("select_right", format!("role {} may not read it", facts.role), "the first copy reads it", Some(remedy));
        findings.about(name.clone());
    }
    if !table.owned && !facts.superuser {
        let remedy = Remedy::sql(Side::Source, own(&table.sql_name(), &table.owner, &facts.role));
        let why = "PostgreSQL lets only a table's owner, or a member of the owning role, publish it";
        findings.error("owner", format!("role {} does not own it", facts.role), why, Some(remedy));
        findings.about(name.clone());
    }
    if table.hidden_rows {
        let remedy = Remedy::sql(Side::Source, format!("ALTER ROLE {role} BYPASSRLS"));
        findings.error(
            "row_security",
            "row security would hide rows from the first copy",
            "the replica would lack them",
            Some(remedy),
        );
        findings.about(name);
    }
}

/// Makes a role an owner of a table beside its owner, who keeps it: the application may be that owner. A superuser needs no table, and
/// membership in one would be too much.
pub(super) fn own(table: &str, owner: &(String, bool), role: &str) -> String {
    let (name, superuser) = owner;
    let role = quote(role);
    if *superuser { format!("ALTER TABLE {table} OWNER TO {role}") } else { format!("GRANT {} TO {role}", quote(name)) }
}
