//! What a table is for a copy: its columns, as the log writes them, and what finds a row.

use crate::error::{Error, ErrorKind, Result};
use crate::event::{Column, Identity, SchemaId, TableName, TableSchema};
use crate::halt::HaltCode;
use crate::postgres::{PgClient, SimpleRow, quote_ident, quote_literal};

/// How keys of a column are compared without asking the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NativeOrder {
    /// As numbers.
    Integer,
    /// As bytes: uuid, bytea in hex, text under the collation "C".
    Bytes,
}

/// A column that chunks are cut by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyColumn {
    /// Its place among the table's columns.
    pub index: usize,
    /// Name.
    pub name: String,
    /// Type as `format_type` prints it.
    pub type_text: String,
    /// Quoted collation, where it has one.
    pub collation: Option<String>,
    /// How to compare here; `None`: only the source can.
    pub native: Option<NativeOrder>,
}

/// What a table is for a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableShape {
    /// As the log writes it; its version's name is 0.
    pub schema: TableSchema,
    /// What finds a row, in the key's order. Empty: the table is one chunk.
    pub key: Vec<KeyColumn>,
}

impl TableShape {
    /// True when rows under a version of the log mean the same as those that were copied.
    #[must_use]
    pub fn fits(&self, version: &TableSchema) -> bool {
        let mine = &self.schema;
        let same = |a: &Column, b: &Column| {
            a.name == b.name && a.type_oid == b.type_oid && a.type_modifier == b.type_modifier && a.identity == b.identity
        };
        mine.source_oid == version.source_oid
            && mine.identity == version.identity
            && mine.columns.len() == version.columns.len()
            && mine.columns.iter().zip(&version.columns).all(|(a, b)| same(a, b))
    }

    /// The columns, quoted and separated by commas.
    #[must_use]
    pub fn column_list(&self) -> String {
        self.schema.columns.iter().map(|c| quote_ident(&c.name)).collect::<Vec<_>>().join(", ")
    }
}

/// What a table is now; inside a transaction, at its snapshot.
///
/// # Errors
/// The server's; a halt with `source_misconfigured` when there is no such table.
pub(super) async fn read(client: &mut PgClient, table: &TableName) -> Result<TableShape> {
    let sql = SHAPE.replace("$schema", &quote_literal(&table.schema)).replace("$table", &quote_literal(&table.name));
    let rows = client.simple_query(&sql).await?;
    let first = rows.first().ok_or_else(|| {
        Error::halt(
            HaltCode::SourceMisconfigured,
            format!(
                "the source has no table {table}, whose copy has begun; if it was renamed or dropped there, run `millstream init`"
            ),
        )
    })?;
    let identity = match first.text("identity")? {
        "f" => Identity::Full,
        "i" => Identity::Index,
        "n" => Identity::Nothing,
        _ => Identity::Default,
    };
    let mut columns = Vec::with_capacity(rows.len());
    let mut key: Vec<(u32, KeyColumn)> = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        let primary_key = row.optional("primary_at")?.is_some();
        let place = if identity == Identity::Index { "index_at" } else { "primary_at" };
        if let Some(at) = row.optional(place)?.filter(|_| identity != Identity::Nothing) {
            let at = at.parse().map_err(|_| Error::new(ErrorKind::Malformed, "a key column's place"))?;
            key.push((at, key_column(row, index)?));
        }
        columns.push(Column {
            name: row.text("name")?.to_owned(),
            type_name: row.text("type_name")?.to_owned(),
            type_oid: row.parse("type_oid")?,
            type_modifier: row.parse("type_modifier")?,
            identity: match identity {
                Identity::Full => true,
                Identity::Nothing => false,
                Identity::Default | Identity::Index => row.optional(place)?.is_some(),
            },
            primary_key,
        });
    }
    key.sort_by_key(|(at, _)| *at);
    let schema = TableSchema { id: SchemaId(0), table: table.clone(), source_oid: first.parse("oid")?, identity, columns };
    Ok(TableShape { schema, key: key.into_iter().map(|(_, column)| column).collect() })
}

fn key_column(row: &SimpleRow, index: usize) -> Result<KeyColumn> {
    let bytewise = row.bool("bytewise")?;
    // pg_type.oid of built-in types is fixed (pg_type.dat).
    let native = match row.parse::<u32>("type_oid")? {
        20 | 21 | 23 | 26 => Some(NativeOrder::Integer),
        17 | 2950 => Some(NativeOrder::Bytes),
        25 | 1043 if bytewise => Some(NativeOrder::Bytes),
        _ => None,
    };
    Ok(KeyColumn {
        index,
        name: row.text("name")?.to_owned(),
        type_text: row.text("type_text")?.to_owned(),
        collation: row.optional("collation")?.map(str::to_owned),
        native,
    })
}

const SHAPE: &str = "SELECT c.oid, c.relreplident AS identity, a.attname AS name, a.atttypid AS type_oid, a.atttypmod AS type_modifier, \
       tn.nspname || '.' || t.typname AS type_name, pg_catalog.format_type(a.atttypid, a.atttypmod) AS type_text, \
       (SELECT k.n FROM unnest(p.indkey::int2[]) WITH ORDINALITY k(att, n) WHERE k.att = a.attnum AND k.n <= p.indnkeyatts) AS primary_at, \
       (SELECT k.n FROM unnest(r.indkey::int2[]) WITH ORDINALITY k(att, n) WHERE k.att = a.attnum AND k.n <= r.indnkeyatts) AS index_at, \
       CASE WHEN a.attcollation <> 0 THEN pg_catalog.quote_ident(cn.nspname) || '.' || pg_catalog.quote_ident(co.collname) END AS collation, \
       coalesce(co.collname IN ('C', 'POSIX') AND cn.nspname = 'pg_catalog' OR co.oid = 100 AND d.datcollate IN ('C', 'POSIX') \
         AND coalesce(pg_catalog.to_jsonb(d) ->> 'datlocprovider', 'c') = 'c', false) AS bytewise \
     FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
     JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' \
     JOIN pg_catalog.pg_type t ON t.oid = a.atttypid JOIN pg_catalog.pg_namespace tn ON tn.oid = t.typnamespace \
     JOIN pg_catalog.pg_database d ON d.datname = pg_catalog.current_database() \
     LEFT JOIN pg_catalog.pg_index p ON p.indrelid = c.oid AND p.indisprimary AND p.indisvalid \
     LEFT JOIN pg_catalog.pg_index r ON r.indrelid = c.oid AND r.indisreplident AND r.indisvalid \
     LEFT JOIN pg_catalog.pg_collation co ON co.oid = a.attcollation LEFT JOIN pg_catalog.pg_namespace cn ON cn.oid = co.collnamespace \
     WHERE n.nspname = $schema AND c.relname = $table ORDER BY a.attnum";
