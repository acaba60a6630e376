//! The source's side of a first copy: what a table is, how it is cut into chunks, and how a chunk is read.
//!
//! Invariant: a chunk's rows are those that its snapshot sees, and every transaction that the snapshot sees is durable at the source before the
//! chunk counts: a crash cannot take it back and give its id out again.
//!
//! ```text
//!  BEGIN REPEATABLE READ READ ONLY
//!  LOCK TABLE … ACCESS SHARE            before the snapshot: no TRUNCATE or ALTER between snapshot and rows
//!  pg_current_snapshot(), insert LSN    the snapshot; everything it sees committed below that LSN
//!  the table's definition               still the one that the copy began with?
//!  COPY (SELECT …) TO STDOUT
//!  wait: flush LSN ≥ insert LSN         synchronous_commit=off: seen before it is durable
//!  COMMIT
//! ```
//!
//! PostgreSQL's visibility order is not its commit-LSN order, so chunks are told from changes by transaction ids alone
//! ([`Snapshot::sees`]); LSNs only say from when on every transaction that some snapshot sees must have come by.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use tokio::time::sleep;

use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::{Column, Identity, Lsn, SchemaId, TableName, TableSchema, Xid};
use crate::halt::HaltCode;
use crate::postgres::{CopyOut, Mode, PgClient, Side, SimpleRow, quote_ident, quote_literal, quote_table};

/// `pg_snapshot` in 64-bit top-level transaction ids (PostgreSQL documentation, "pg_snapshot Components").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Every transaction below has ended.
    pub xmin: Xid,
    /// No transaction from here on has ended.
    pub xmax: Xid,
    /// Those between that are in progress, ascending.
    pub in_progress: Vec<Xid>,
}

impl Snapshot {
    /// True when a transaction that committed is in the snapshot.
    #[must_use]
    pub fn sees(&self, xid: Xid) -> bool {
        xid < self.xmin || (xid < self.xmax && self.in_progress.binary_search(&xid).is_err())
    }
}

impl FromStr for Snapshot {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || Error::new(ErrorKind::Malformed, format!("'{text}' is not a snapshot"));
        let number = |part: &str| part.parse().map(Xid).map_err(|_| bad());
        let mut parts = text.splitn(3, ':');
        let (Some(xmin), Some(xmax), Some(list)) = (parts.next(), parts.next(), parts.next()) else { return Err(bad()) };
        let mut in_progress = list.split(',').filter(|p| !p.is_empty()).map(number).collect::<Result<Vec<_>>>()?;
        in_progress.sort_unstable();
        Ok(Self { xmin: number(xmin)?, xmax: number(xmax)?, in_progress })
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list: Vec<String> = self.in_progress.iter().map(ToString::to_string).collect();
        write!(f, "{}:{}:{}", self.xmin, self.xmax, list.join(","))
    }
}

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

/// How rows travel in a COPY.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyFormat {
    /// Any type, between any versions.
    Text,
    /// Types whose binary form is the same in every version and on every server, on both sides alike. Less work for both servers.
    Binary,
}

/// Built-in types (src/include/catalog/pg_type.dat) whose binary form holds no OID and has not changed since PostgreSQL 14: bool, bytea, int8, int2, int4,
/// text, json, cidr, float4, float8, inet, bpchar, varchar, date, time, timestamp, timestamptz, interval, timetz, numeric, uuid, jsonb.
const SAME_EVERYWHERE: &[u32] =
    &[16, 17, 20, 21, 23, 25, 114, 650, 700, 701, 869, 1042, 1043, 1082, 1083, 1114, 1184, 1186, 1266, 1700, 2950, 3802];

impl CopyFormat {
    /// For columns of these types at the source, each with its type on the other side.
    #[must_use]
    pub fn between(mut types: impl Iterator<Item = (u32, Option<u32>)>) -> Self {
        let same = |(here, there): (u32, Option<u32>)| there == Some(here) && SAME_EVERYWHERE.contains(&here);
        if types.all(same) { Self::Binary } else { Self::Text }
    }

    /// What a COPY statement says of it.
    #[must_use]
    pub fn option(self) -> &'static str {
        match self {
            Self::Text => "",
            Self::Binary => " (FORMAT binary)",
        }
    }
}

/// A piece of a table's key range. Bounds are keys as text, in the key's order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyRange {
    /// First key; `None` from the beginning.
    pub lower: Option<Vec<String>>,
    /// First key behind it; `None` to the end. Equal to `lower`: that key alone.
    pub upper: Option<Vec<String>>,
}

impl KeyRange {
    /// True when the range is one key.
    #[must_use]
    pub fn is_single_key(&self) -> bool {
        self.lower.is_some() && self.lower == self.upper
    }

    /// The condition, for a WHERE of the source or of a replica that holds one key.
    #[must_use]
    pub fn condition(&self, key: &[KeyColumn]) -> String {
        let columns = key.iter().map(|k| quote_ident(&k.name)).collect::<Vec<_>>().join(", ");
        let bound = |values: &[String]| {
            let cast = |(value, k): (&String, &KeyColumn)| format!("{}::{}", quote_literal(value), k.type_text);
            values.iter().zip(key).map(cast).collect::<Vec<_>>().join(", ")
        };
        let compare = |operator: &str, values: &[String]| match key.len() {
            1 => format!("{columns} {operator} {}", bound(values)),
            _ => format!("({columns}) {operator} ({})", bound(values)),
        };
        match (&self.lower, &self.upper) {
            (Some(lower), _) if self.is_single_key() => compare("=", lower),
            (Some(lower), Some(upper)) => format!("{} AND {}", compare(">=", lower), compare("<", upper)),
            (Some(lower), None) => compare(">=", lower),
            (None, Some(upper)) => compare("<", upper),
            (None, None) => "true".to_owned(),
        }
    }
}

/// How a table is to be copied.
#[derive(Clone, Debug)]
pub struct TablePlan {
    /// What it is.
    pub shape: TableShape,
    /// Its chunks, in key order, without gap or overlap.
    pub chunks: Vec<KeyRange>,
    /// Rows that it is believed to have.
    pub estimated_rows: u64,
    /// Bytes that it has on disk.
    pub estimated_bytes: u64,
}

/// When a chunk was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkMoment {
    /// What it sees.
    pub snapshot: Snapshot,
    /// Everything that it sees committed before this place.
    pub insert_lsn: Lsn,
}

/// No table is cut into more pieces.
const MAX_CHUNKS: u64 = 10_000;
/// Keys sampled for each chunk's bound.
const SAMPLES_PER_CHUNK: u64 = 50;
/// Up to this many rows every key is looked at.
const SAMPLE_ALL_ROWS: u64 = 100_000;
/// Width of a row where the server has no statistics.
const ASSUMED_ROW_BYTES: u64 = 100;
const PAGE_BYTES: u64 = 8192;
/// A page of WAL begins with a header of at most this size; no record ends inside it.
const WAL_HEADER_BYTES: u64 = 40;
/// Sampling a large table may take long.
const PLAN_WAIT: Duration = Duration::from_secs(600);
/// Between two looks at the flush position.
const FLUSH_LOOK: Duration = Duration::from_millis(20);
/// Longest wait for a lock behind somebody's ALTER TABLE.
const LOCK_WAIT: Duration = Duration::from_secs(3600);

/// A connection that reads tables.
#[derive(Debug)]
pub struct TableReader {
    client: PgClient,
}

impl TableReader {
    /// Connects.
    ///
    /// # Errors
    /// Those of connecting.
    pub async fn connect(to: &crate::config::PgConnect) -> Result<Self> {
        let client = PgClient::connect_with(to, Mode::Sql, Side::Source, &[("application_name", "millstream copy")]).await?;
        Ok(Self { client })
    }

    /// The present snapshot.
    ///
    /// # Errors
    /// The server's.
    pub async fn current_snapshot(&mut self) -> Result<Snapshot> {
        let rows = self.client.simple_query("SELECT pg_catalog.pg_current_snapshot() AS s").await?;
        one(&rows)?.text("s")?.parse()
    }

    /// A snapshot in which every transaction shows that has an id by now.
    ///
    /// A snapshot alone ends behind the last transaction that *ended*: newer ones in progress lie beyond its xmax and are not listed. So an id is
    /// taken first, and given back by committing.
    ///
    /// # Errors
    /// The server's.
    pub async fn barrier_snapshot(&mut self) -> Result<Snapshot> {
        self.client.simple_query("SELECT pg_catalog.pg_current_xact_id()").await?;
        self.current_snapshot().await
    }

    /// Cuts a table into chunks of about `chunk_rows` rows.
    ///
    /// # Errors
    /// As [`Self::shape`].
    pub async fn plan(&mut self, table: &TableName, chunk_rows: u64) -> Result<TablePlan> {
        let shape = self.shape(table).await?;
        let sql = format!(
            "SELECT greatest(reltuples, 0)::int8 AS rows, relpages AS pages, pg_catalog.pg_relation_size(oid) AS bytes, \
                    pg_catalog.pg_table_size(oid) AS whole FROM pg_catalog.pg_class WHERE oid = {}",
            shape.schema.source_oid
        );
        let rows = self.client.simple_query(&sql).await?;
        let row = one(&rows)?;
        let (tuples, pages, bytes): (u64, u64, u64) = (row.parse("rows")?, row.parse("pages")?, row.parse("bytes")?);
        let estimated_rows = match (tuples, pages) {
            (1.., 1..) => tuples.saturating_mul((bytes / PAGE_BYTES).max(1)) / pages,
            _ => bytes / ASSUMED_ROW_BYTES,
        };
        let estimated_bytes = row.parse("whole")?;
        let count = estimated_rows.div_ceil(chunk_rows.max(1)).clamp(1, MAX_CHUNKS);
        let bounds = if count > 1 && !shape.key.is_empty() {
            self.bounds(table, &shape, count, estimated_rows).await?
        } else {
            Vec::new()
        };
        let lower = std::iter::once(None).chain(bounds.iter().cloned().map(Some));
        let upper = bounds.iter().cloned().map(Some).chain(std::iter::once(None));
        let chunks = lower.zip(upper).map(|(lower, upper)| KeyRange { lower, upper }).collect();
        Ok(TablePlan { shape, chunks, estimated_rows, estimated_bytes })
    }

    /// Keys that part a sample of the table into equal pieces. Distinct, because a key is.
    async fn bounds(&mut self, table: &TableName, shape: &TableShape, count: u64, rows: u64) -> Result<Vec<Vec<String>>> {
        let columns = shape.key.iter().map(|k| quote_ident(&k.name)).collect::<Vec<_>>().join(", ");
        let wanted = (count * SAMPLES_PER_CHUNK).min(10 * SAMPLE_ALL_ROWS);
        let sample = if rows <= SAMPLE_ALL_ROWS || wanted >= rows {
            String::new()
        } else {
            format!(" TABLESAMPLE SYSTEM ({:.6})", wanted as f64 * 100.0 / rows as f64)
        };
        let sql = format!(
            "SELECT {columns} FROM (SELECT {columns}, row_number() OVER (ORDER BY {columns}) AS \"millstream n\", \
                    count(*) OVER () AS \"millstream total\" FROM ONLY {}{sample}) s \
             WHERE \"millstream n\" > 1 AND (\"millstream n\" - 1) * {count} / \"millstream total\" <> (\"millstream n\" - 2) * {count} / \"millstream total\" \
             ORDER BY \"millstream n\"",
            quote_table(table)
        );
        let found = self.client.simple_query_within(&sql, PLAN_WAIT).await?;
        let key = |row: &SimpleRow| (0..shape.key.len()).map(|i| row.get(i).map(str::to_owned)).collect::<Option<Vec<_>>>();
        let null = || Error::new(ErrorKind::Unexpected, format!("a key of {table} is NULL"));
        found.iter().map(|row| key(row).ok_or_else(null)).collect()
    }

    /// What a table is now; inside a transaction, at its snapshot.
    ///
    /// # Errors
    /// The server's; a halt with `source_misconfigured` when there is no such table.
    pub async fn shape(&mut self, table: &TableName) -> Result<TableShape> {
        let sql = SHAPE.replace("$schema", &quote_literal(&table.schema)).replace("$table", &quote_literal(&table.name));
        let rows = self.client.simple_query(&sql).await?;
        let first = rows.first().ok_or_else(|| {
            Error::halt(HaltCode::SourceMisconfigured, format!("the source has no table {table}, whose copy has begun"))
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

    /// Begins a chunk: lock, snapshot, and the table as the snapshot sees it.
    ///
    /// # Errors
    /// The server's; as [`Self::shape`].
    pub async fn begin(&mut self, table: &TableName) -> Result<(ChunkMoment, TableShape)> {
        self.client.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        let lock = format!("LOCK TABLE ONLY {} IN ACCESS SHARE MODE", quote_table(table));
        self.client.simple_query_within(&lock, LOCK_WAIT).await.at(|| format!("table {table}"))?;
        let sql = "SELECT pg_catalog.pg_current_snapshot() AS s, pg_catalog.pg_current_wal_insert_lsn() AS l";
        let rows = self.client.simple_query(sql).await?;
        let row = one(&rows)?;
        let insert_lsn = at_record_end(row.text("l")?.parse()?);
        let moment = ChunkMoment { snapshot: row.text("s")?.parse()?, insert_lsn };
        Ok((moment, self.shape(table).await?))
    }

    /// The rows of a range, in COPY's text format, columns in the shape's order.
    ///
    /// # Errors
    /// The server's.
    pub async fn rows(&mut self, shape: &TableShape, range: &KeyRange, format: CopyFormat) -> Result<CopyOut<'_>> {
        if range.lower.is_some() || range.upper.is_some() {
            // Without statistics the planner would read the whole table once for each chunk.
            self.client.execute("SET LOCAL enable_seqscan = off").await?;
        }
        let sql = format!(
            "COPY (SELECT {} FROM ONLY {} WHERE {}) TO STDOUT{}",
            shape.column_list(),
            quote_table(&shape.schema.table),
            range.condition(&shape.key),
            format.option()
        );
        self.client.copy_out(&sql).await
    }

    /// Ends a chunk once everything that its snapshot sees is durable at the source.
    ///
    /// # Errors
    /// The server's.
    pub async fn finish(&mut self, moment: &ChunkMoment) -> Result<()> {
        loop {
            let rows = self.client.simple_query("SELECT pg_catalog.pg_current_wal_flush_lsn() AS l").await?;
            if one(&rows)?.text("l")?.parse::<Lsn>()? >= moment.insert_lsn {
                break;
            }
            sleep(FLUSH_LOOK).await;
        }
        self.client.execute("COMMIT").await.map(drop)
    }

    /// Gives a transaction up.
    ///
    /// # Errors
    /// The server's.
    pub async fn abandon(&mut self) -> Result<()> {
        self.client.execute("ROLLBACK").await.map(drop)
    }
}

/// An insert position right behind a page's header is the same place as the page's beginning, which is where the record before ended.
#[must_use]
pub fn at_record_end(lsn: Lsn) -> Lsn {
    let inside = lsn.0 % PAGE_BYTES;
    if inside <= WAL_HEADER_BYTES { Lsn(lsn.0 - inside) } else { lsn }
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

fn one(rows: &[SimpleRow]) -> Result<&SimpleRow> {
    rows.first().ok_or_else(|| Error::new(ErrorKind::Malformed, "the source answered a query with no row"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_travel_in_binary_only_where_their_types_are_the_same_everywhere() {
        let between = |types: &[(u32, Option<u32>)]| CopyFormat::between(types.iter().copied());
        assert_eq!(between(&[(20, Some(20)), (25, Some(25)), (1700, Some(1700))]), CopyFormat::Binary);
        // int4 into int8; an enum; an array, whose form holds its element's OID; a column that is not there.
        for odd in [(23, Some(20)), (16_400, Some(16_400)), (1007, Some(1007)), (25, None)] {
            assert_eq!(between(&[(20, Some(20)), odd]), CopyFormat::Text, "{odd:?}");
        }
    }

    #[test]
    fn a_snapshot_sees_what_had_ended() {
        let snapshot: Snapshot = "10:20:12,15".parse().unwrap();
        let seen: Vec<u64> = (8..22).filter(|x| snapshot.sees(Xid(*x))).collect();
        assert_eq!(seen, [8, 9, 10, 11, 13, 14, 16, 17, 18, 19]);
        assert_eq!(snapshot.to_string(), "10:20:12,15");
        let empty: Snapshot = "10:10:".parse().unwrap();
        assert!(empty.sees(Xid(9)) && !empty.sees(Xid(10)));
        assert!("10:20".parse::<Snapshot>().is_err() && "a:b:c".parse::<Snapshot>().is_err());
    }

    #[test]
    fn ranges_become_conditions_that_an_index_can_use() {
        let column = |name: &str, type_text: &str| KeyColumn {
            index: 0,
            name: name.into(),
            type_text: type_text.into(),
            collation: None,
            native: None,
        };
        let key = [column("a", "integer"), column("b\"", "text")];
        let bound = |a: &str, b: &str| Some(vec![a.to_owned(), b.to_owned()]);
        let range = KeyRange { lower: bound("1", "x'y"), upper: None };
        assert_eq!(range.condition(&key), "(\"a\", \"b\"\"\") >= ('1'::integer, 'x''y'::text)");
        let range = KeyRange { lower: bound("1", "x"), upper: bound("1", "x") };
        assert!(range.is_single_key());
        assert_eq!(range.condition(&key), "(\"a\", \"b\"\"\") = ('1'::integer, 'x'::text)");
        let range = KeyRange { lower: Some(vec!["1".into()]), upper: Some(vec!["5".into()]) };
        assert_eq!(range.condition(&key[..1]), "\"a\" >= '1'::integer AND \"a\" < '5'::integer");
        assert_eq!(KeyRange::default().condition(&key), "true");
    }

    #[test]
    fn a_place_behind_a_page_header_is_where_the_last_record_ended() {
        assert_eq!(at_record_end(Lsn(0x2018)), Lsn(0x2000));
        assert_eq!(at_record_end(Lsn(0x2028)), Lsn(0x2000));
        assert_eq!(at_record_end(Lsn(0x2029)), Lsn(0x2029));
    }
}
