//! The source's catalog, as far as `init` needs it: which tables there are, and what they are made of.
//!
//! Definitions are taken as PostgreSQL itself prints them (`format_type`, `pg_get_expr`, `pg_get_constraintdef`,
//! `pg_get_indexdef`). The connection's `search_path` is empty, so every name in them is written in full.

use std::collections::BTreeMap;

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use crate::error::{Error, ErrorKind, Result};
use crate::event::TableName;
use crate::postgres::sql::{Side, classify};
use crate::preflight::tables::TablePatterns;

/// A table of the source, before anything is decided about it.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// `pg_class.oid`.
    pub oid: u32,
    /// Its name.
    pub name: TableName,
    kind: Kind,
    unlogged: bool,
    has_columns: bool,
    extension: Option<String>,
    identity: IdentityState,
    /// Partitioned tables above it, nearest first.
    pub ancestors: Vec<(u32, TableName)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Table,
    Partitioned,
    Foreign,
    View,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IdentityState {
    Usable,
    NoKey,
    Nothing,
    IndexGone,
    Deferrable,
}

/// What the patterns of a source come to.
#[derive(Clone, Debug, Default)]
pub struct Resolved {
    /// Tables to publish, by name: ordinary tables and leaves of partitioned ones.
    pub tables: Vec<Candidate>,
    /// Tables that match and must not be published as they are, with the way out.
    pub refused: Vec<(TableName, String)>,
    /// Tables that match and cannot be replicated, with the reason.
    pub left_out: Vec<(TableName, &'static str)>,
    /// Every table, view and partitioned table that there is.
    names: Vec<TableName>,
}

impl Resolved {
    /// Patterns that include tables and match none, whatever later ones say.
    pub fn idle_patterns<'p>(&self, patterns: &'p [String]) -> impl Iterator<Item = &'p str> {
        let idle = |text: &&str| {
            TablePatterns::parse(&[*text]).is_ok_and(|pattern| !self.names.iter().any(|name| pattern.matches(name)))
        };
        patterns.iter().map(String::as_str).filter(|text| !text.starts_with('!')).filter(idle)
    }
}

/// Resolves patterns against the catalog. A leaf of a partitioned table that no pattern names follows its nearest ancestor that one does.
///
/// # Errors
/// The server's.
pub async fn resolve(source: &mut PgConnection, patterns: &TablePatterns) -> Result<Resolved> {
    let mut resolved = Resolved::default();
    let candidates = candidates(source).await?;
    resolved.names = candidates.iter().map(|candidate| candidate.name.clone()).collect();
    for candidate in candidates {
        let named = std::iter::once(&candidate.name).chain(candidate.ancestors.iter().map(|(_, name)| name));
        if named.filter_map(|name| patterns.verdict(name)).next() != Some(true) {
            continue;
        }
        let reason = match (candidate.kind, candidate.unlogged, &candidate.extension) {
            // Its rows are its leaves' rows.
            (Kind::Partitioned, ..) => continue,
            (Kind::View, ..) => Some("it is a view"),
            (Kind::Foreign, ..) => Some("it is a foreign table: its rows are not in this server's WAL"),
            (_, true, _) => Some("it is unlogged: its rows are not in the WAL"),
            (.., Some(_)) => Some("it belongs to an extension"),
            _ if !candidate.has_columns => Some("it has no column whose values are published"),
            _ => None,
        };
        match reason {
            // A pattern such as `public.*` is not meant to name views.
            Some("it is a view") => {}
            Some(reason) => resolved.left_out.push((candidate.name, reason)),
            None => match identity_remedy(&candidate) {
                Some(remedy) => resolved.refused.push((candidate.name, remedy)),
                None => resolved.tables.push(candidate),
            },
        }
    }
    Ok(resolved)
}

/// Publishing a table's updates without a replica identity makes the application's UPDATE and DELETE fail (I7).
fn identity_remedy(table: &Candidate) -> Option<String> {
    use crate::postgres::sql::quote_table;
    let name = quote_table(&table.name);
    let full = format!("ALTER TABLE {name} REPLICA IDENTITY FULL;");
    match table.identity {
        IdentityState::Usable => None,
        IdentityState::NoKey => {
            Some(format!("it has no primary key, so its updates and deletes could not be published; give it one, or: {full}"))
        }
        IdentityState::Nothing => Some(format!(
            "its replica identity is NOTHING, so its updates and deletes could not be published: ALTER TABLE {name} REPLICA IDENTITY DEFAULT; (or FULL without a primary key)"
        )),
        IdentityState::IndexGone => Some(format!(
            "the index of its replica identity is gone: ALTER TABLE {name} REPLICA IDENTITY DEFAULT; (or FULL without a primary key)"
        )),
        IdentityState::Deferrable => Some(format!("its primary key is deferrable, which is no replica identity: {full}")),
    }
}

const CANDIDATES: &str = "SELECT c.oid::int8, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence = 'u', c.relreplident::text, \
       i.indisprimary IS NOT NULL, coalesce(i.indimmediate, true), \
       EXISTS (SELECT 1 FROM pg_catalog.pg_index x WHERE x.indrelid = c.oid AND x.indisreplident AND x.indisvalid), \
       (SELECT e.extname::text FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid \
        WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e' LIMIT 1), \
       ARRAY(SELECT a.relid::oid::int8 FROM pg_catalog.pg_partition_ancestors(c.oid) WITH ORDINALITY a(relid, n) WHERE a.relid <> c.oid ORDER BY a.n), \
       EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '') \
     FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
     LEFT JOIN pg_catalog.pg_index i ON i.indrelid = c.oid AND i.indisprimary AND i.indisvalid \
     WHERE c.relkind IN ('r', 'p', 'f', 'v', 'm') AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'millstream') \
       AND c.relpersistence <> 't' AND n.nspname !~ '^pg_(toast|temp)' \
     ORDER BY n.nspname, c.relname";

async fn candidates(source: &mut PgConnection) -> Result<Vec<Candidate>> {
    let rows = sqlx::query(CANDIDATES).fetch_all(source).await.map_err(|e| classify(e, Side::Source))?;
    let mut found = Vec::with_capacity(rows.len());
    let mut ancestors: Vec<Vec<i64>> = Vec::with_capacity(rows.len());
    for row in &rows {
        let kind = match get::<String>(row, 3)?.as_str() {
            "r" => Kind::Table,
            "p" => Kind::Partitioned,
            "f" => Kind::Foreign,
            _ => Kind::View,
        };
        let (has_key, immediate, index): (bool, bool, bool) = (get(row, 6)?, get(row, 7)?, get(row, 8)?);
        let identity = match get::<String>(row, 5)?.as_str() {
            "n" => IdentityState::Nothing,
            "i" if !index => IdentityState::IndexGone,
            "d" if !has_key => IdentityState::NoKey,
            "d" if !immediate => IdentityState::Deferrable,
            _ => IdentityState::Usable,
        };
        found.push(Candidate {
            oid: oid(row, 0)?,
            name: TableName::new(get::<String>(row, 1)?, get::<String>(row, 2)?),
            kind,
            unlogged: get(row, 4)?,
            has_columns: get(row, 11)?,
            extension: get(row, 9)?,
            identity,
            ancestors: Vec::new(),
        });
        ancestors.push(get(row, 10)?);
    }
    let names: BTreeMap<u32, TableName> = found.iter().map(|c| (c.oid, c.name.clone())).collect();
    for (candidate, above) in found.iter_mut().zip(ancestors) {
        let above = above.into_iter().filter_map(|oid| u32::try_from(oid).ok());
        candidate.ancestors = above.filter_map(|oid| names.get(&oid).map(|name| (oid, name.clone()))).collect();
    }
    Ok(found)
}

/// A column value, with an error that names the place when the server's answer has another shape.
pub(crate) fn get<'r, T>(row: &'r PgRow, index: usize) -> Result<T>
where
    T: sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    row.try_get(index).map_err(|e| Error::new(ErrorKind::Unexpected, format!("column {index} of a catalog query")).with_source(e))
}

/// An oid that the query cast to `int8`.
pub(crate) fn oid(row: &PgRow, index: usize) -> Result<u32> {
    u32::try_from(get::<i64>(row, index)?).map_err(|_| Error::new(ErrorKind::Unexpected, "an oid beyond 32 bits"))
}
