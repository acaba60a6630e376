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

mod format;
mod moment;
mod range;
mod shape;

use std::time::Duration;

use tokio::time::sleep;

pub use format::CopyFormat;
pub use moment::{ChunkMoment, Snapshot};
pub use range::KeyRange;
pub use shape::{KeyColumn, NativeOrder, TableShape};

use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::{Lsn, TableName};
use crate::postgres::{CopyOut, Mode, PgClient, Side, SimpleRow, quote_ident, quote_table};

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
        shape::read(&mut self.client, table).await
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

fn one(rows: &[SimpleRow]) -> Result<&SimpleRow> {
    rows.first().ok_or_else(|| Error::new(ErrorKind::Malformed, "the source answered a query with no row"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_behind_a_page_header_is_where_the_last_record_ended() {
        assert_eq!(at_record_end(Lsn(0x2018)), Lsn(0x2000));
        assert_eq!(at_record_end(Lsn(0x2028)), Lsn(0x2000));
        assert_eq!(at_record_end(Lsn(0x2029)), Lsn(0x2029));
    }
}
