//! Writing a source transaction to quarantine, in the replica transaction that moves the ledger past it; and how an applier comes to do so.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use bytes::BytesMut;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection};

use super::keys::{Key, Rows, key_columns, rows_of};
use super::refusal::{self, Order, Refusal};
use super::{Touched, is_refusal};
use crate::apply::first_copy::Schemas;
use crate::apply::merge::Batch;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::{Change, SchemaId, TableSchema, TransactionHeader, write_change};
use crate::failpoint;
use crate::halt::HaltCode;
use crate::replica::postgres::errors::{SHORT_WAIT, within};
use crate::replica::postgres::ledger::{self, CopyState};
use crate::replica::postgres::plan::table;
use crate::replica::postgres::replica::PostgresReplica;
use crate::replica::postgres::tables::Table;
use crate::replica::postgres::write::STATEMENT_WAIT;
use crate::replica::{Replica as _, Step};

/// Past so many keys of one table in one transaction, every row of the table counts as changed.
pub const MAX_KEYS: usize = 10_000;
/// Pieces are cut behind the change that fills them.
const PIECE_BYTES: usize = 1 << 20;
/// A change that is larger is not kept: PostgreSQL takes no value of a gigabyte, and a hexadecimal one is twice as long.
const MAX_CHANGE_BYTES: usize = 256 << 20;

/// A transaction on its way to quarantine.
pub(in crate::replica::postgres) struct Keeper {
    name: String,
    ordinal: i64,
    piece: i32,
    buffer: BytesMut,
    scratch: BytesMut,
    changes: u64,
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

/// SQL of a table's columns as they are kept, by SQL of its number: one that was dropped and added again, or changed its type, is another.
pub(super) fn columns_of(relation: &str) -> String {
    format!(
        "ARRAY(SELECT a.attnum || ' ' || a.attname || ' ' || pg_catalog.format_type(a.atttypid, a.atttypmod) FROM pg_catalog.pg_attribute a \
         WHERE a.attrelid = {relation} AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' ORDER BY a.attnum)"
    )
}

impl Keeper {
    /// Makes the account, in the replica transaction that the connection is in, which holds the ledger's row and has not moved it. What it says of the
    /// refusal is what was noted.
    ///
    /// # Errors
    /// The server's.
    async fn begin(
        connection: &mut PgConnection,
        name: &str,
        header: &TransactionHeader,
        refused: (HaltCode, &str),
    ) -> Result<Self> {
        let query = sqlx::query_scalar(
            "INSERT INTO millstream.quarantine (replica, ordinal, position, after_position, xid, committed_at, code, message) \
             SELECT $1, (SELECT coalesce(max(ordinal), 0) + 1 FROM millstream.quarantine WHERE replica = $1), $2, r.position, $3, \
               timestamptz 'epoch' + $4 * interval '1 microsecond', coalesce(f.code, $5), coalesce(f.message, $6) \
             FROM millstream.replica r LEFT JOIN millstream.refused f ON f.replica = r.name AND f.position = $2 WHERE r.name = $1 RETURNING ordinal",
        )
        .bind(name)
        .bind(header.position.to_string())
        .bind(header.xid.0.cast_signed())
        .bind(header.commit_time_us)
        .bind(refused.0.as_str())
        .bind(refused.1);
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

    async fn put(&mut self, connection: &mut PgConnection, change: &Change) -> Result<()> {
        let before = self.buffer.len();
        write_change(change, &mut self.buffer, &mut self.scratch);
        let length = self.buffer.len() - before;
        if length > MAX_CHANGE_BYTES {
            let message = format!(
                "change {} has {length} bytes, and one of more than 256 MiB cannot be kept in quarantine",
                self.changes + 1
            );
            return Err(Error::halt(HaltCode::ReplicaConstraint, message));
        }
        self.changes += 1;
        self.bytes += length as u64;
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

    /// Notes the rows that a change is about; its tables are there.
    fn note(&mut self, change: &Change, table: &Table) {
        let Some(kept) = self.tables.get_mut(&table.schema.source_oid) else { return };
        kept.changes += 1;
        if kept.key_columns != key_columns(table) {
            kept.whole = Some("its key changed".to_owned());
        }
        if kept.whole.is_some() {
            return;
        }
        match rows_of(change, table) {
            Rows::All(why) => kept.whole = Some(why.to_owned()),
            Rows::Keys(keys) => kept.keys.extend(keys),
        }
        if kept.keys.len() > MAX_KEYS {
            kept.whole = Some(format!("more than {MAX_KEYS} rows of it were changed"));
        }
    }

    /// Writes what is known at the end.
    async fn finish(mut self, connection: &mut PgConnection) -> Result<()> {
        self.flush(connection).await?;
        for (number, kept) in &self.tables {
            let query = sqlx::query(
                "INSERT INTO millstream.quarantined_table (replica, ordinal, source_oid, table_schema, table_name, changes, key_columns, whole, replica_columns) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            )
            .bind(&self.name)
            .bind(self.ordinal)
            .bind(i64::from(*number))
            .bind(&kept.schema)
            .bind(&kept.name)
            .bind(kept.changes.cast_signed())
            .bind(&kept.key_columns)
            .bind(&kept.whole)
            .bind(&kept.replica_columns);
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

impl PostgresReplica {
    /// None of some changes, whose tables are fitted, is of a row in quarantine.
    ///
    /// # Errors
    /// A halt with `quarantined_key`; the server's.
    pub(in crate::replica::postgres) async fn check_quarantine(&mut self, changes: &[Change]) -> Result<()> {
        if self.retrying {
            return Ok(());
        }
        if self.touched.is_none() {
            self.touched = Some(Touched::load(&mut self.connection, &self.name).await?);
        }
        if self.touched.as_ref().is_none_or(|touched| touched.is_empty() || touched.check(changes, &self.tables).is_ok()) {
            return Ok(());
        }
        // A command may have taken some of it away.
        let touched = self.touched.insert(Touched::load(&mut self.connection, &self.name).await?);
        touched.check(changes, &self.tables)
    }

    /// One transaction of a batch was refused, and rolled back. Keeps it where that was ordered, and notes it where not.
    ///
    /// # Errors
    /// The refusal, where it is not kept.
    pub(in crate::replica::postgres) async fn refused(
        &mut self,
        batch: &Batch,
        index: usize,
        schemas: &Schemas,
        error: Error,
    ) -> Result<()> {
        if !is_refusal(&error) || self.is_added() {
            return Err(error);
        }
        match self.keep_or_note(batch, index, schemas, &error).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(error),
            Err(other) => Err(unkept(error, &other)),
        }
    }

    async fn keep_or_note(&mut self, batch: &Batch, index: usize, schemas: &Schemas, error: &Error) -> Result<bool> {
        self.roll_back().await?;
        self.forget_tables();
        let header = &batch.marks[index].header;
        let changes = &batch.changes[batch.changes_of(index, index + 1)];
        let cannot = self.cannot_be_kept(changes, schemas).await?;
        let name = self.name.clone();
        if cannot.is_none() && refusal::order(&mut self.connection, &name, header).await? != Order::None {
            let Some(step) = batch.step(index, index + 1) else { return Ok(false) };
            let Err(other) = self.keep_one(header, changes, schemas, &step, error).await else { return Ok(true) };
            self.roll_back().await?;
            if is_refusal(&other) {
                let note =
                    Refusal { header, code: code(error), message: error.to_string(), cannot_be_kept: Some(other.message()) };
                refusal::note(&mut self.connection, &name, &note).await?;
            }
            return Err(other);
        }
        let note = Refusal { header, code: code(error), message: error.to_string(), cannot_be_kept: cannot.as_deref() };
        refusal::note(&mut self.connection, &name, &note).await?;
        Ok(false)
    }

    async fn keep_one(
        &mut self,
        header: &TransactionHeader,
        changes: &[Change],
        schemas: &Schemas,
        step: &Step,
        why: &Error,
    ) -> Result<()> {
        self.begin_plainly().await?;
        ledger::hold_epoch_alone(&mut self.connection, &self.name, self.epoch).await?;
        let mut keeper = Keeper::begin(&mut self.connection, &self.name, header, (code(why), &why.to_string())).await?;
        self.keep_changes(&mut keeper, changes, schemas).await?;
        self.end_keeping(keeper, header, step).await
    }

    /// In place of applying them.
    pub(in crate::replica::postgres) async fn keep_changes(
        &mut self,
        keeper: &mut Keeper,
        changes: &[Change],
        schemas: &Schemas,
    ) -> Result<()> {
        if let Some(why) = self.cannot_be_kept(changes, schemas).await? {
            return Err(Error::halt(HaltCode::ReplicaConstraint, why));
        }
        for change in &*self.kept(changes) {
            let ids = tables_of(change);
            // What applies to nothing.
            if ids.is_empty() {
                continue;
            }
            for &id in ids {
                let table = Arc::clone(table(&self.tables, id)?);
                if let Entry::Vacant(place) = keeper.tables.entry(table.schema.source_oid) {
                    place.insert(first_of(&mut self.connection, &table).await?);
                }
                keeper.versions.entry(id).or_insert_with(|| Arc::clone(&table.schema));
                keeper.note(change, &table);
            }
            keeper.put(&mut self.connection, change).await?;
        }
        Ok(())
    }

    /// Moves the ledger past the transaction and commits.
    pub(in crate::replica::postgres) async fn end_keeping(
        &mut self,
        keeper: Keeper,
        header: &TransactionHeader,
        step: &Step,
    ) -> Result<()> {
        let changes = keeper.changes;
        keeper.finish(&mut self.connection).await?;
        ledger::step(&mut self.connection, &self.name, self.epoch, step, SHORT_WAIT).await?;
        failpoint::hit("quarantine.keeping")?;
        self.commit().await?;
        failpoint::hit("quarantine.kept")?;
        self.touched = None;
        tracing::warn!(replica = self.name, position = %header.position, changes, "a transaction is kept in quarantine, as it was ordered, and not applied");
        Ok(())
    }

    /// Why a transaction with such changes is not kept. Where it can be, its tables are fitted.
    async fn cannot_be_kept(&mut self, changes: &[Change], schemas: &Schemas) -> Result<Option<String>> {
        // Before it is made its rows may not fit.
        if changes.iter().any(|change| matches!(change, Change::Schema { .. })) {
            return Ok(Some(
                "it changes the schema as well, which later transactions need: it cannot be kept in quarantine".to_owned(),
            ));
        }
        self.prepare(changes, schemas).await?;
        for change in changes {
            for table in tables_of(change).iter().filter_map(|id| self.tables.get(id)) {
                if self.copies(table) {
                    return Ok(Some(format!(
                        "the copy of {} is not complete: it cannot be kept in quarantine",
                        table.schema.table
                    )));
                }
            }
        }
        Ok(None)
    }

    /// A table of this row is not live.
    fn copies(&self, table: &Table) -> bool {
        let of = |number: Option<u32>| number == Some(table.schema.source_oid);
        self.members
            .values()
            .any(|member| of(member.source_oid) && matches!(member.state, CopyState::Copying | CopyState::CatchingUp))
    }

    /// A huge transaction was ordered to be kept, and was refused again since.
    pub(in crate::replica::postgres) async fn keeps_large(&mut self, header: &TransactionHeader) -> Result<Option<Keeper>> {
        if self.is_added() || refusal::order(&mut self.connection, &self.name, header).await? != Order::Confirmed {
            return Ok(None);
        }
        Keeper::begin(&mut self.connection, &self.name, header, (HaltCode::ReplicaConstraint, "")).await.map(Some)
    }

    /// A huge transaction was refused at a piece, or as it was committed, or cannot be kept. What comes next must begin it anew.
    pub(in crate::replica::postgres) async fn refused_large(
        &mut self,
        header: &TransactionHeader,
        keeping: bool,
        error: Error,
    ) -> Error {
        if !is_refusal(&error) || self.is_added() {
            return error;
        }
        match self.confirm_or_note(header, keeping, &error).await {
            Ok(true) => Error::new(
                ErrorKind::Busy,
                "a transaction that is to be kept in quarantine was refused again; it is read once more, to be kept",
            ),
            Ok(false) => error,
            Err(other) => unkept(error, &other),
        }
    }

    async fn confirm_or_note(&mut self, header: &TransactionHeader, keeping: bool, error: &Error) -> Result<bool> {
        self.roll_back().await?;
        self.forget_tables();
        let name = self.name.clone();
        if !keeping && refusal::order(&mut self.connection, &name, header).await? != Order::None {
            refusal::confirm(&mut self.connection, &name, header).await?;
            return Ok(true);
        }
        let cannot_be_kept = keeping.then(|| error.message());
        let note = Refusal { header, code: code(error), message: error.to_string(), cannot_be_kept };
        refusal::note(&mut self.connection, &name, &note).await?;
        Ok(false)
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

fn code(error: &Error) -> HaltCode {
    if let ErrorKind::Halt(code) = error.kind() { code } else { HaltCode::ReplicaConstraint }
}

/// A refusal that could not be kept, or not be noted.
fn unkept(error: Error, other: &Error) -> Error {
    match other.kind() {
        ErrorKind::Connection | ErrorKind::Fenced | ErrorKind::Busy => {
            tracing::warn!(error = %other, "what the replica refused could not be noted, or kept as it was ordered; tried again");
            error
        }
        _ => error.context(format!("not kept in quarantine ({other})")),
    }
}
