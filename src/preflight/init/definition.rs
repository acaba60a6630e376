//! What the source's tables are made of: columns, keys, constraints, indexes, sequences, partitioning.

use std::collections::BTreeMap;

use sqlx::PgConnection;
use sqlx::postgres::PgRow;

use super::catalog::{get, oid};
use crate::error::Result;
use crate::event::TableName;
use crate::postgres::sql::{Side, classify};

/// A table's definition as its server has it.
#[derive(Clone, Debug)]
pub struct TableDefinition {
    /// Its name.
    pub table: TableName,
    /// `PARTITION BY` of a partitioned table.
    pub partition_key: Option<String>,
    /// Parent and bound of a partition.
    pub partition_of: Option<(TableName, String)>,
    /// Parents by plain inheritance.
    pub inherits: Vec<TableName>,
    /// `pg_class.relreplident`.
    pub identity: char,
    /// Columns in order.
    pub columns: Vec<ColumnDefinition>,
    /// Table constraints.
    pub constraints: Vec<ConstraintDefinition>,
    /// Indexes that no constraint owns.
    pub indexes: Vec<IndexDefinition>,
    /// Sequences behind defaults and identity columns.
    pub sequences: Vec<SequenceDefinition>,
}

/// One column.
#[derive(Clone, Debug)]
pub struct ColumnDefinition {
    /// Name.
    pub name: String,
    /// Type as `format_type` prints it.
    pub type_text: String,
    /// `pg_type.oid`.
    pub type_oid: u32,
    /// The type without length, precision and scale, and of a domain the one below it: what casts are made between.
    pub base_text: String,
    /// NOT NULL.
    pub not_null: bool,
    /// Default, or the expression of a generated column.
    pub expression: Option<String>,
    /// `a`lways or `d`efault for an identity column.
    pub identity: Option<char>,
    /// `s`tored or `v`irtual for a generated column.
    pub generated: Option<char>,
    /// Quoted collation when it is not the type's own.
    pub collation: Option<String>,
}

/// One constraint.
#[derive(Clone, Debug)]
pub struct ConstraintDefinition {
    /// Name.
    pub name: String,
    /// `pg_constraint.contype`.
    pub kind: char,
    /// As `pg_get_constraintdef` prints it.
    pub text: String,
    /// It follows from the parent's.
    pub from_parent: bool,
    /// It is, or its index is, the replica identity (or the primary key where that is what finds a row).
    pub finds_rows: bool,
    /// Table that a foreign key refers to.
    pub refers_to: Option<TableName>,
}

/// One index.
#[derive(Clone, Debug)]
pub struct IndexDefinition {
    /// Name, unquoted.
    pub name: String,
    /// As `pg_get_indexdef` prints it, on the whole partition tree.
    pub text: String,
    /// Unique.
    pub unique: bool,
    /// It follows from the parent's.
    pub from_parent: bool,
    /// It is the replica identity.
    pub finds_rows: bool,
}

/// One sequence.
#[derive(Clone, Debug)]
pub struct SequenceDefinition {
    /// Its name.
    pub name: TableName,
    /// Column that it serves.
    pub column: String,
    /// `a` owned (serial), `i` internal (identity), `n` merely used.
    pub dependency: char,
    /// Type and options, as CREATE SEQUENCE takes them.
    pub options: String,
    /// Type, for CREATE SEQUENCE AS.
    pub type_text: String,
}

impl TableDefinition {
    /// Columns that travel: all but generated ones.
    pub fn travelling(&self) -> impl Iterator<Item = &ColumnDefinition> {
        self.columns.iter().filter(|c| c.generated.is_none())
    }
}

/// Reads definitions of tables by oid, on either side. Keeps no order.
///
/// # Errors
/// The server's.
pub async fn read(connection: &mut PgConnection, side: Side, oids: &[u32]) -> Result<BTreeMap<u32, TableDefinition>> {
    let wanted: Vec<i64> = oids.iter().map(|o| i64::from(*o)).collect();
    let mut tables = BTreeMap::new();
    for row in rows(connection, side, TABLES, &wanted).await? {
        let parent = |s: usize| -> Result<Option<TableName>> {
            Ok(get::<Option<String>>(&row, s)?.zip(get::<Option<String>>(&row, s + 1)?).map(|(a, b)| TableName::new(a, b)))
        };
        let (schemas, names): (Vec<String>, Vec<String>) = (get(&row, 8)?, get(&row, 9)?);
        let definition = TableDefinition {
            table: TableName::new(get::<String>(&row, 1)?, get::<String>(&row, 2)?),
            partition_key: get(&row, 3)?,
            partition_of: parent(4)?.zip(get::<Option<String>>(&row, 6)?),
            inherits: schemas.into_iter().zip(names).map(|(s, n)| TableName::new(s, n)).collect(),
            identity: letter(&row, 7)?.unwrap_or('d'),
            columns: Vec::new(),
            constraints: Vec::new(),
            indexes: Vec::new(),
            sequences: Vec::new(),
        };
        tables.insert(oid(&row, 0)?, definition);
    }
    for row in rows(connection, side, COLUMNS, &wanted).await? {
        if let Some(table) = tables.get_mut(&oid(&row, 0)?) {
            table.columns.push(column(&row)?);
        }
    }
    for row in rows(connection, side, CONSTRAINTS, &wanted).await? {
        if let Some(table) = tables.get_mut(&oid(&row, 0)?) {
            let constraint = constraint(&row, table.identity)?;
            table.constraints.push(constraint);
        }
    }
    for row in rows(connection, side, INDEXES, &wanted).await? {
        if let Some(table) = tables.get_mut(&oid(&row, 0)?) {
            table.indexes.push(index(&row)?);
        }
    }
    for row in rows(connection, side, SEQUENCES, &wanted).await? {
        if let Some(table) = tables.get_mut(&oid(&row, 0)?) {
            table.sequences.push(sequence(&row)?);
        }
    }
    Ok(tables)
}

async fn rows(connection: &mut PgConnection, side: Side, sql: &'static str, oids: &[i64]) -> Result<Vec<PgRow>> {
    sqlx::query(sql).bind(oids).fetch_all(connection).await.map_err(|e| classify(e, side))
}

/// The first letter of a `"char"` column; the empty one is none.
fn letter(row: &PgRow, index: usize) -> Result<Option<char>> {
    Ok(get::<Option<String>>(row, index)?.and_then(|text| text.chars().next()).filter(|c| *c != '\0'))
}

const TABLES: &str = "SELECT c.oid::int8, n.nspname::text, c.relname::text, \
       CASE WHEN c.relkind = 'p' THEN pg_catalog.pg_get_partkeydef(c.oid) END, \
       pn.nspname::text, p.relname::text, pg_catalog.pg_get_expr(c.relpartbound, c.oid), c.relreplident::text, \
       ARRAY(SELECT hn.nspname::text FROM pg_catalog.pg_inherits h JOIN pg_catalog.pg_class hc ON hc.oid = h.inhparent \
             JOIN pg_catalog.pg_namespace hn ON hn.oid = hc.relnamespace WHERE h.inhrelid = c.oid AND NOT c.relispartition ORDER BY h.inhseqno), \
       ARRAY(SELECT hc.relname::text FROM pg_catalog.pg_inherits h JOIN pg_catalog.pg_class hc ON hc.oid = h.inhparent \
             WHERE h.inhrelid = c.oid AND NOT c.relispartition ORDER BY h.inhseqno) \
     FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
     LEFT JOIN pg_catalog.pg_inherits i ON i.inhrelid = c.oid AND c.relispartition \
     LEFT JOIN pg_catalog.pg_class p ON p.oid = i.inhparent \
     LEFT JOIN pg_catalog.pg_namespace pn ON pn.oid = p.relnamespace \
     WHERE c.oid::int8 = ANY($1)";

const COLUMNS: &str = "SELECT a.attrelid::int8, a.attname::text, pg_catalog.format_type(a.atttypid, a.atttypmod), a.atttypid::int8, a.attnotnull, \
       pg_catalog.pg_get_expr(d.adbin, d.adrelid), a.attidentity::text, a.attgenerated::text, \
       CASE WHEN a.attcollation <> t.typcollation THEN pg_catalog.quote_ident(cn.nspname) || '.' || pg_catalog.quote_ident(co.collname) END, \
       pg_catalog.format_type(CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.oid END, -1) \
     FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid \
     LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum \
     LEFT JOIN pg_catalog.pg_collation co ON co.oid = a.attcollation \
     LEFT JOIN pg_catalog.pg_namespace cn ON cn.oid = co.collnamespace \
     WHERE a.attrelid::int8 = ANY($1) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attrelid, a.attnum";

fn column(row: &PgRow) -> Result<ColumnDefinition> {
    Ok(ColumnDefinition {
        name: get(row, 1)?,
        type_text: get(row, 2)?,
        type_oid: oid(row, 3)?,
        not_null: get(row, 4)?,
        expression: get(row, 5)?,
        identity: letter(row, 6)?,
        generated: letter(row, 7)?,
        collation: get(row, 8)?,
        base_text: get(row, 9)?,
    })
}

const CONSTRAINTS: &str = "SELECT k.conrelid::int8, k.conname::text, k.contype::text, pg_catalog.pg_get_constraintdef(k.oid), k.conparentid <> 0, \
       coalesce(i.indisreplident, false), rn.nspname::text, rc.relname::text \
     FROM pg_catalog.pg_constraint k \
     LEFT JOIN pg_catalog.pg_index i ON i.indexrelid = k.conindid AND k.contype IN ('p', 'u') \
     LEFT JOIN pg_catalog.pg_class rc ON rc.oid = k.confrelid \
     LEFT JOIN pg_catalog.pg_namespace rn ON rn.oid = rc.relnamespace \
     WHERE k.conrelid::int8 = ANY($1) AND k.contype IN ('p', 'u', 'c', 'x', 'f') ORDER BY k.conrelid, k.contype, k.conname";

fn constraint(row: &PgRow, identity: char) -> Result<ConstraintDefinition> {
    let kind = letter(row, 2)?.unwrap_or('c');
    let is_identity_index: bool = get(row, 5)?;
    let refers = get::<Option<String>>(row, 6)?.zip(get::<Option<String>>(row, 7)?);
    Ok(ConstraintDefinition {
        name: get(row, 1)?,
        kind,
        text: get(row, 3)?,
        from_parent: get(row, 4)?,
        finds_rows: if identity == 'i' { is_identity_index } else { kind == 'p' },
        refers_to: refers.map(|(schema, name)| TableName::new(schema, name)),
    })
}

const INDEXES: &str = "SELECT i.indrelid::int8, c.relname::text, \
       CASE WHEN c.relkind = 'I' THEN pg_catalog.replace(pg_catalog.pg_get_indexdef(c.oid), \
            'INDEX ' || pg_catalog.quote_ident(c.relname) || ' ON ONLY ', 'INDEX ' || pg_catalog.quote_ident(c.relname) || ' ON ') \
            ELSE pg_catalog.pg_get_indexdef(c.oid) END, \
       i.indisunique, EXISTS (SELECT 1 FROM pg_catalog.pg_inherits h WHERE h.inhrelid = c.oid), i.indisreplident \
     FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid \
     WHERE i.indrelid::int8 = ANY($1) AND i.indisvalid \
       AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_constraint k WHERE k.conindid = c.oid AND k.contype IN ('p', 'u', 'x')) \
     ORDER BY i.indrelid, c.relname";

fn index(row: &PgRow) -> Result<IndexDefinition> {
    Ok(IndexDefinition {
        name: get(row, 1)?,
        text: get(row, 2)?,
        unique: get(row, 3)?,
        from_parent: get(row, 4)?,
        finds_rows: get(row, 5)?,
    })
}

const SEQUENCES: &str = "WITH used AS ( \
         SELECT d.refobjid AS tab, d.refobjsubid::int AS col, d.objid AS seq, d.deptype::text AS how \
         FROM pg_catalog.pg_depend d \
         WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjsubid > 0 \
           AND d.deptype IN ('a', 'i') AND d.refobjid::int8 = ANY($1) \
         UNION \
         SELECT f.adrelid, f.adnum::int, d.refobjid, 'n' \
         FROM pg_catalog.pg_attrdef f JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_attrdef'::regclass AND d.objid = f.oid \
           AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid <> f.adrelid \
         WHERE f.adrelid::int8 = ANY($1)) \
     SELECT u.tab::int8, n.nspname::text, c.relname::text, a.attname::text, min(u.how), \
       pg_catalog.format(' INCREMENT BY %s MINVALUE %s MAXVALUE %s START WITH %s CACHE %s%s', \
         s.seqincrement, s.seqmin, s.seqmax, s.seqstart, s.seqcache, CASE WHEN s.seqcycle THEN ' CYCLE' ELSE '' END), \
       pg_catalog.format_type(s.seqtypid, NULL) \
     FROM used u JOIN pg_catalog.pg_class c ON c.oid = u.seq AND c.relkind = 'S' \
     JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
     JOIN pg_catalog.pg_sequence s ON s.seqrelid = c.oid \
     JOIN pg_catalog.pg_attribute a ON a.attrelid = u.tab AND a.attnum = u.col \
     GROUP BY u.tab, n.nspname, c.relname, a.attname, s.seqincrement, s.seqmin, s.seqmax, s.seqstart, s.seqcache, s.seqcycle, s.seqtypid \
     ORDER BY u.tab, c.relname";

fn sequence(row: &PgRow) -> Result<SequenceDefinition> {
    Ok(SequenceDefinition {
        name: TableName::new(get::<String>(row, 1)?, get::<String>(row, 2)?),
        column: get(row, 3)?,
        // 'a' < 'i' < 'n': the strongest tie wins.
        dependency: letter(row, 4)?.unwrap_or('n'),
        options: get(row, 5)?,
        type_text: get(row, 6)?,
    })
}
