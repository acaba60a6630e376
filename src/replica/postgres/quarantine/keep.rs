//! Writing a source transaction to quarantine, in the replica transaction that moves the ledger past it.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use bytes::BytesMut;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection};

use super::keys::{Key, Rows, key_columns, rows_of};
use crate::error::{Context, Result};
use crate::event::{Change, FORMAT_VERSION, SchemaId, TableSchema, TransactionHeader, write_change};
use crate::replica::postgres::errors::{SHORT_WAIT, within};
use crate::replica::postgres::tables::Table;
use crate::replica::postgres::write::STATEMENT_WAIT;

/// Past so many keys of one table in one transaction, every row of the table counts as changed.
pub const MAX_KEYS: usize = 10_000;
/// Pieces are cut behind the change that fills them.
const PIECE_BYTES: usize = 1 << 20;

/// A transaction on its way to quarantine.
pub(in crate::replica::postgres) struct Keeper {
    name: String,
    ordinal: i64,
    piece: i32,
    buffer: BytesMut,
    scratch: BytesMut,
    pub(super) changes: u64,
    bytes: u64,
    tables: BTreeMap<u32, Kept>,
    versions: BTreeMap<SchemaId, Arc<TableSchema>>,
}

/// What of a table is kept.
struct Kept {
    schema: String,
    name: String,
    changes: u64,
    key_columns: Vec<String>,
    whole: Option<String>,
    keys: HashSet<Key>,
    replica_columns: Vec<String>,
}

impl Kept {
    fn note(&mut self, change: &Change, table: &Table) {
        self.changes += 1;
        if self.key_columns != key_columns(table) {
            self.whole = Some("its key changed".to_owned());
        }
        if self.whole.is_some() {
            return;
        }
        match rows_of(change, table) {
            Rows::All(why) => self.whole = Some(why.to_owned()),
            Rows::Keys(keys) => self.keys.extend(keys),
        }
        if self.keys.len() > MAX_KEYS {
            self.whole = Some(format!("more than {MAX_KEYS} rows of it were changed"));
        }
    }
}

/// SQL of a table's columns as they are kept, by SQL of its number: one that was dropped and added again, or changed its type, is another.
pub(super) fn columns_of(relation: &str) -> String {
    format!(
        "ARRAY(SELECT a.attnum || ' ' || a.attname || ' ' || pg_catalog.format_type(a.atttypid, a.atttypmod) FROM pg_catalog.pg_attribute a \
         WHERE a.attrelid = {relation} AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' ORDER BY a.attnum)"
    )
}

impl Keeper {
    /// Makes the account of a transaction that was ordered to be kept, in the replica transaction that the connection is in, which holds the ledger's row
    /// and has not moved it. What it says of the refusal is what was noted, which the replica's encoding has.
    ///
    /// # Errors
    /// The server's.
    pub(super) async fn begin(connection: &mut PgConnection, name: &str, header: &TransactionHeader) -> Result<Self> {
        let query = sqlx::query_scalar(
            "INSERT INTO millstream.quarantine (replica, ordinal, position, after_position, xid, committed_at, code, message, format) \
             SELECT $1, (SELECT coalesce(max(ordinal), 0) + 1 FROM millstream.quarantine WHERE replica = $1), $2, r.position, $3, \
               timestamptz 'epoch' + $4 * interval '1 microsecond', f.code, f.message, $5 \
             FROM millstream.replica r JOIN millstream.refused f ON f.replica = r.name AND f.position = $2 WHERE r.name = $1 RETURNING ordinal",
        )
        .bind(name)
        .bind(header.position.to_string())
        .bind(header.xid.0.cast_signed())
        .bind(header.commit_time_us)
        .bind(i16::from(FORMAT_VERSION));
        let ordinal = within(SHORT_WAIT, "making the account of a transaction", query.fetch_one(connection)).await?;
        Ok(Self {
            name: name.to_owned(),
            ordinal,
            piece: 0,
            buffer: BytesMut::new(),
            scratch: BytesMut::new(),
            changes: 0,
            bytes: 0,
            tables: BTreeMap::new(),
            versions: BTreeMap::new(),
        })
    }

    /// Keeps a change.
    ///
    /// # Errors
    /// The server's.
    pub(super) async fn put(&mut self, connection: &mut PgConnection, change: &Change) -> Result<()> {
        let before = self.buffer.len();
        write_change(change, &mut self.buffer, &mut self.scratch);
        self.changes += 1;
        self.bytes += (self.buffer.len() - before) as u64;
        if self.buffer.len() >= PIECE_BYTES { self.flush(connection).await } else { Ok(()) }
    }

    async fn flush(&mut self, connection: &mut PgConnection) -> Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = self.buffer.split().freeze();
        let query =
            sqlx::query("INSERT INTO millstream.quarantined_piece (replica, ordinal, piece, changes) VALUES ($1, $2, $3, $4)");
        let query = query.bind(&self.name).bind(self.ordinal).bind(self.piece).bind(&piece[..]);
        within(STATEMENT_WAIT, "keeping changes", query.execute(connection)).await?;
        self.piece += 1;
        Ok(())
    }

    /// Notes the rows of a table that a change is about.
    ///
    /// # Errors
    /// The server's.
    pub(super) async fn note(&mut self, connection: &mut PgConnection, change: &Change, table: &Table) -> Result<()> {
        let kept = match self.tables.entry(table.schema.source_oid) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => place.insert(first_of(connection, table).await?),
        };
        self.versions.entry(table.schema.id).or_insert_with(|| Arc::clone(&table.schema));
        kept.note(change, table);
        Ok(())
    }

    /// Writes what is known at the end.
    ///
    /// # Errors
    /// The server's.
    pub(super) async fn finish(mut self, connection: &mut PgConnection) -> Result<()> {
        self.flush(connection).await?;
        for (number, kept) in &self.tables {
            let query = sqlx::query(
                "INSERT INTO millstream.quarantined_table (replica, ordinal, source_oid, table_schema, table_name, changes, key_columns, whole, replica_columns, key_count) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
            )
            .bind(&self.name)
            .bind(self.ordinal)
            .bind(i64::from(*number))
            .bind(&kept.schema)
            .bind(&kept.name)
            .bind(kept.changes.cast_signed())
            .bind(&kept.key_columns)
            .bind(&kept.whole)
            .bind(&kept.replica_columns)
            .bind(if kept.whole.is_none() { kept.keys.len() as i64 } else { 0 });
            within(SHORT_WAIT, "keeping a table's account", query.execute(&mut *connection)).await?;
            if kept.whole.is_none() {
                self.put_keys(connection, *number, kept).await?;
            }
        }
        for (version, schema) in &self.versions {
            let query = sqlx::query(
                "INSERT INTO millstream.quarantined_version (replica, ordinal, version, content) VALUES ($1, $2, $3, $4)",
            );
            let query = query.bind(&self.name).bind(self.ordinal).bind(i64::from(version.0)).bind(Json(&**schema));
            within(SHORT_WAIT, "keeping a table's version", query.execute(&mut *connection)).await?;
        }
        let end = sqlx::query("UPDATE millstream.quarantine SET changes = $3, bytes = $4 WHERE replica = $1 AND ordinal = $2");
        let end = end.bind(&self.name).bind(self.ordinal).bind(self.changes.cast_signed()).bind(self.bytes.cast_signed());
        within(SHORT_WAIT, "ending the account", end.execute(&mut *connection)).await?;
        let over = sqlx::query("DELETE FROM millstream.refused WHERE replica = $1").bind(&self.name);
        within(SHORT_WAIT, "ending the order", over.execute(connection)).await.map(drop)
    }

    async fn put_keys(&self, connection: &mut PgConnection, number: u32, kept: &Kept) -> Result<()> {
        let columns = kept.key_columns.len();
        let (names, arrays): (Vec<_>, Vec<_>) = (0..columns).map(|n| (format!("k{n}"), format!("${}::bytea[]", n + 4))).unzip();
        let sql = format!(
            "INSERT INTO millstream.quarantined_key (replica, ordinal, source_oid, key) SELECT $1, $2, $3, ARRAY[{0}] FROM unnest({1}) u({0})",
            names.join(", "),
            arrays.join(", ")
        );
        let keys: Vec<&Key> = kept.keys.iter().collect();
        let mut query =
            sqlx::query(AssertSqlSafe(sql)).persistent(false).bind(&self.name).bind(self.ordinal).bind(i64::from(number));
        for nth in 0..columns {
            query = query.bind(keys.iter().map(|key| key[nth].as_slice()).collect::<Vec<&[u8]>>());
        }
        within(STATEMENT_WAIT, "keeping keys", query.execute(connection)).await.map(drop)
    }
}

/// The versions of tables that a change is of.
pub(super) fn tables_of(change: &Change) -> &[SchemaId] {
    match change {
        Change::Insert { table, .. } | Change::Update { table, .. } | Change::Delete { table, .. } => std::slice::from_ref(table),
        Change::Truncate { tables, .. } => tables,
        Change::Message { .. } | Change::Schema { .. } => &[],
    }
}

/// A table's account at its first change.
async fn first_of(connection: &mut PgConnection, table: &Table) -> Result<Kept> {
    let sql = format!("SELECT {}", columns_of("$1::oid"));
    let query = sqlx::query_scalar(AssertSqlSafe(sql)).bind(table.relation);
    let replica_columns = within(SHORT_WAIT, "reading a table's columns", query.fetch_one(connection))
        .await
        .at(|| format!("table {}", table.place))?;
    Ok(Kept {
        schema: table.schema.table.schema.clone(),
        name: table.schema.table.name.clone(),
        changes: 0,
        key_columns: key_columns(table),
        whole: None,
        keys: HashSet::new(),
        replica_columns,
    })
}
