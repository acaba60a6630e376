//! Extensions and user-defined types of the source that a replica's tables need, in the order in which they can be made.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::PgConnection;

use super::catalog::{get, oid};
use crate::error::Result;
use crate::postgres::sql::{Side, classify, quote_ident, quote_literal};

/// A type to make on a replica.
#[derive(Clone, Debug)]
pub struct TypeDefinition {
    /// Its schema.
    pub schema: String,
    /// Its quoted, qualified name.
    pub quoted: String,
    /// The statement that makes it.
    pub statement: String,
    /// An enum's labels in order, to be compared where the type is there already.
    pub labels: Option<Vec<String>>,
}

/// An extension to make on a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    /// Its name.
    pub name: String,
    /// Its schema.
    pub schema: String,
    /// What needs it: `type public.citext`, `index public.words_idx`.
    pub needed_by: String,
}

impl Extension {
    /// The statement that makes it, with those that it needs itself.
    #[must_use]
    pub fn statement(&self) -> String {
        format!("CREATE EXTENSION IF NOT EXISTS {} SCHEMA {} CASCADE", quote_ident(&self.name), quote_ident(&self.schema))
    }
}

#[derive(Debug)]
struct Raw {
    schema: String,
    name: String,
    kind: String,
    element: u32,
    /// An array of `element`, which its element's type brings with it. `point` and its like have elements and are none.
    is_array: bool,
    base: u32,
    relation: u32,
    relation_kind: Option<String>,
    extension: Option<(String, String)>,
    base_text: Option<String>,
    not_null: bool,
    default: Option<String>,
    collation: Option<String>,
    subtype: u32,
    subtype_text: Option<String>,
}

/// What columns need.
#[derive(Clone, Debug, Default)]
pub struct Needed {
    /// User-defined types, dependencies first.
    pub types: Vec<TypeDefinition>,
    /// Extensions, by name, that bring types.
    pub extensions: BTreeMap<String, Extension>,
    /// Types of columns that no replica can be given, and why.
    pub refused: BTreeMap<u32, String>,
}

/// Reads the types that columns of these types need.
///
/// # Errors
/// The server's.
pub async fn needed(source: &mut PgConnection, column_types: &BTreeSet<u32>) -> Result<Needed> {
    let mut raw: BTreeMap<u32, Raw> = BTreeMap::new();
    let mut depends: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    let mut asked = BTreeSet::new();
    let mut ask: Vec<u32> = column_types.iter().copied().collect();
    while !ask.is_empty() {
        let mut next = BTreeSet::new();
        for (id, one) in read(source, &ask).await? {
            let mut on: Vec<u32> = [one.element, one.base, one.subtype].into_iter().filter(|o| *o != 0).collect();
            if one.relation != 0 && one.extension.is_none() {
                on.extend(attributes(source, one.relation).await?.iter().map(|a| a.type_oid));
            }
            next.extend(on.iter().copied());
            depends.insert(id, on);
            raw.insert(id, one);
        }
        asked.extend(ask);
        ask = next.difference(&asked).copied().collect();
    }
    let mut order = Vec::new();
    let mut seen = BTreeSet::new();
    for id in raw.keys() {
        visit(*id, &depends, &raw, &mut seen, &mut order);
    }
    let mut found = Needed::default();
    for id in order {
        // What a refused type stands on comes before it.
        let below = depends[&id].iter().find_map(|on| found.refused.get(on)).cloned();
        match below.or_else(|| refusal(&raw[&id])) {
            Some(reason) => drop(found.refused.insert(id, reason)),
            None => match &raw[&id].extension {
                Some((name, schema)) => {
                    let needed_by = format!("type {}.{}", raw[&id].schema, raw[&id].name);
                    let extension = || Extension { name: name.clone(), schema: schema.clone(), needed_by };
                    found.extensions.entry(name.clone()).or_insert_with(extension);
                }
                None => found.types.extend(define(source, id, &raw[&id]).await?),
            },
        }
    }
    Ok(found)
}

/// What indexes, constraints, defaults and generated columns stand on: operator classes, operators, functions, access methods.
const OF_EXPRESSIONS: &str = "WITH parts AS ( \
     SELECT 'pg_catalog.pg_class'::regclass::oid AS class, i.indexrelid AS id, 'index ' || i.indexrelid::regclass::text AS what \
       FROM pg_catalog.pg_index i WHERE i.indrelid::int8 = ANY($1) \
     UNION ALL SELECT 'pg_catalog.pg_attrdef'::regclass, d.oid, 'a default of ' || d.adrelid::regclass::text \
       FROM pg_catalog.pg_attrdef d WHERE d.adrelid::int8 = ANY($1) \
     UNION ALL SELECT 'pg_catalog.pg_constraint'::regclass, k.oid, 'a constraint of ' || k.conrelid::regclass::text \
       FROM pg_catalog.pg_constraint k WHERE k.conrelid::int8 = ANY($1)) \
   SELECT DISTINCT ON (e.extname) e.extname::text, n.nspname::text, p.what FROM parts p \
     JOIN pg_catalog.pg_depend d ON d.classid = p.class AND d.objid = p.id \
     JOIN pg_catalog.pg_depend x ON x.classid = d.refclassid AND x.objid = d.refobjid AND x.deptype = 'e' \
     JOIN pg_catalog.pg_extension e ON e.oid = x.refobjid JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace \
     ORDER BY e.extname, p.what";

/// Adds the extensions that tables need for something else than their columns' types.
///
/// # Errors
/// The server's.
pub async fn of_expressions(
    source: &mut PgConnection,
    tables: &[u32],
    extensions: &mut BTreeMap<String, Extension>,
) -> Result<()> {
    let tables: Vec<i64> = tables.iter().map(|oid| i64::from(*oid)).collect();
    let rows = sqlx::query(OF_EXPRESSIONS).bind(tables).fetch_all(source).await.map_err(|e| classify(e, Side::Source))?;
    for row in &rows {
        let extension = Extension { name: get(row, 0)?, schema: get(row, 1)?, needed_by: get(row, 2)? };
        extensions.entry(extension.name.clone()).or_insert(extension);
    }
    Ok(())
}

/// Why `init` cannot make a type.
fn refusal(raw: &Raw) -> Option<String> {
    let quoted = format!("{}.{}", quote_ident(&raw.schema), quote_ident(&raw.name));
    match raw.kind.as_str() {
        _ if raw.extension.is_some() => None,
        "c" if raw.relation_kind.as_deref() != Some("c") => {
            Some(format!("a column has the row type of table {quoted}, which init makes on no replica"))
        }
        "b" if !raw.is_array => {
            Some(format!("type {quoted} is written in C and belongs to no extension, so init cannot make it on a replica"))
        }
        _ => None,
    }
}

fn visit(id: u32, depends: &BTreeMap<u32, Vec<u32>>, raw: &BTreeMap<u32, Raw>, seen: &mut BTreeSet<u32>, order: &mut Vec<u32>) {
    if !raw.contains_key(&id) || !seen.insert(id) {
        return;
    }
    for on in depends.get(&id).into_iter().flatten() {
        visit(*on, depends, raw, seen, order);
    }
    order.push(id);
}

async fn read(source: &mut PgConnection, oids: &[u32]) -> Result<Vec<(u32, Raw)>> {
    let oids: Vec<i64> = oids.iter().map(|o| i64::from(*o)).collect();
    let rows = sqlx::query(
        "SELECT t.oid::int8, n.nspname::text, t.typname::text, t.typtype::text, \
                CASE WHEN t.typtype = 'b' AND t.typsubscript IS DISTINCT FROM 'pg_catalog.array_subscript_handler'::regproc THEN 0 \
                     ELSE t.typelem::int8 END, t.typbasetype::int8, \
                t.typrelid::int8, c.relkind::text, e.extname::text, en.nspname::text, \
                CASE WHEN t.typtype = 'd' THEN pg_catalog.format_type(t.typbasetype, t.typtypmod) END, t.typnotnull, t.typdefault, \
                (SELECT pg_catalog.quote_ident(cn.nspname) || '.' || pg_catalog.quote_ident(co.collname) FROM pg_catalog.pg_collation co \
                 JOIN pg_catalog.pg_namespace cn ON cn.oid = co.collnamespace JOIN pg_catalog.pg_type b ON b.oid = t.typbasetype \
                 WHERE co.oid = t.typcollation AND t.typcollation <> b.typcollation), \
                coalesce(r.rngsubtype, 0)::int8, pg_catalog.format_type(r.rngsubtype, NULL) \
         FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace \
         LEFT JOIN pg_catalog.pg_class c ON c.oid = t.typrelid \
         LEFT JOIN pg_catalog.pg_range r ON r.rngtypid = t.oid \
         LEFT JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_type'::regclass AND d.objid = t.oid AND d.deptype = 'e' \
         LEFT JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid \
         LEFT JOIN pg_catalog.pg_namespace en ON en.oid = e.extnamespace \
         WHERE t.oid::int8 = ANY($1) AND n.nspname NOT IN ('pg_catalog', 'information_schema')",
    )
    .bind(oids)
    .fetch_all(source)
    .await
    .map_err(|e| classify(e, Side::Source))?;
    rows.iter()
        .map(|row| {
            let extension: Option<String> = get(row, 8)?;
            let extension_schema: Option<String> = get(row, 9)?;
            let raw = Raw {
                schema: get(row, 1)?,
                name: get(row, 2)?,
                kind: get(row, 3)?,
                element: oid(row, 4)?,
                is_array: oid(row, 4)? != 0,
                base: oid(row, 5)?,
                relation: oid(row, 6)?,
                relation_kind: get(row, 7)?,
                extension: extension.zip(extension_schema),
                base_text: get(row, 10)?,
                not_null: get(row, 11)?,
                default: get(row, 12)?,
                collation: get(row, 13)?,
                subtype: oid(row, 14)?,
                subtype_text: get(row, 15)?,
            };
            Ok((oid(row, 0)?, raw))
        })
        .collect()
}

struct Attribute {
    name: String,
    type_text: String,
    type_oid: u32,
}

async fn attributes(source: &mut PgConnection, relation: u32) -> Result<Vec<Attribute>> {
    let rows = sqlx::query(
        "SELECT attname::text, pg_catalog.format_type(atttypid, atttypmod), atttypid::int8 FROM pg_catalog.pg_attribute \
         WHERE attrelid::int8 = $1 AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
    )
    .bind(i64::from(relation))
    .fetch_all(source)
    .await
    .map_err(|e| classify(e, Side::Source))?;
    rows.iter().map(|r| Ok(Attribute { name: get(r, 0)?, type_text: get(r, 1)?, type_oid: oid(r, 2)? })).collect()
}

async fn texts(source: &mut PgConnection, sql: &'static str, id: u32) -> Result<Vec<String>> {
    sqlx::query_scalar(sql).bind(i64::from(id)).fetch_all(source).await.map_err(|e| classify(e, Side::Source))
}

async fn define(source: &mut PgConnection, id: u32, raw: &Raw) -> Result<Option<TypeDefinition>> {
    let quoted = format!("{}.{}", quote_ident(&raw.schema), quote_ident(&raw.name));
    let simple =
        |statement: String| TypeDefinition { schema: raw.schema.clone(), quoted: quoted.clone(), statement, labels: None };
    Ok(match raw.kind.as_str() {
        "e" => {
            let sql = "SELECT enumlabel::text FROM pg_catalog.pg_enum WHERE enumtypid::int8 = $1 ORDER BY enumsortorder";
            let labels = texts(source, sql, id).await?;
            let list = labels.iter().map(|l| quote_literal(l)).collect::<Vec<_>>().join(", ");
            Some(TypeDefinition { labels: Some(labels), ..simple(format!("CREATE TYPE {quoted} AS ENUM ({list})")) })
        }
        "d" => Some(simple(domain(source, id, raw, &quoted).await?)),
        "c" => {
            let list = attributes(source, raw.relation).await?;
            let list = list.iter().map(|a| format!("{} {}", quote_ident(&a.name), a.type_text)).collect::<Vec<_>>();
            Some(simple(format!("CREATE TYPE {quoted} AS ({})", list.join(", "))))
        }
        "r" => raw.subtype_text.as_ref().map(|subtype| simple(format!("CREATE TYPE {quoted} AS RANGE (subtype = {subtype})"))),
        // Arrays and multiranges come with their element and range.
        _ => None,
    })
}

async fn domain(source: &mut PgConnection, id: u32, raw: &Raw, quoted: &str) -> Result<String> {
    let sql = "SELECT 'CONSTRAINT ' || pg_catalog.quote_ident(conname) || ' ' || pg_catalog.pg_get_constraintdef(oid) \
               FROM pg_catalog.pg_constraint WHERE contypid::int8 = $1 AND contype = 'c' ORDER BY conname";
    let mut statement = format!("CREATE DOMAIN {quoted} AS {}", raw.base_text.as_deref().unwrap_or_default());
    if let Some(collation) = &raw.collation {
        statement += &format!(" COLLATE {collation}");
    }
    if let Some(default) = &raw.default {
        statement += &format!(" DEFAULT {default}");
    }
    if raw.not_null {
        statement += " NOT NULL";
    }
    for constraint in texts(source, sql, id).await? {
        statement += &format!(" {constraint}");
    }
    Ok(statement)
}

/// An enum's labels in order; `None` where there is no such type.
///
/// # Errors
/// The server's.
pub async fn labels(connection: &mut PgConnection, side: Side, quoted: &str) -> Result<Option<Vec<String>>> {
    let sql = "SELECT ARRAY(SELECT enumlabel::text FROM pg_catalog.pg_enum WHERE enumtypid = t.id ORDER BY enumsortorder) \
               FROM (SELECT pg_catalog.to_regtype($1)::oid) t (id) WHERE t.id IS NOT NULL";
    sqlx::query_scalar(sql).bind(quoted).fetch_optional(connection).await.map_err(|e| classify(e, side))
}

/// The statement that adds a label at its place among `all`. Those before it are there, or added before it.
#[must_use]
pub fn add_label(quoted: &str, all: &[String], label: &str) -> String {
    let before = all.iter().position(|other| other == label).and_then(|at| at.checked_sub(1)).map(|at| &all[at]);
    // The first of all goes to the end: order is a convenience on a replica, and which label is first there is not known here.
    let place = before.map(|before| format!(" AFTER {}", quote_literal(before))).unwrap_or_default();
    format!("ALTER TYPE {quoted} ADD VALUE {}{place}", quote_literal(label))
}
