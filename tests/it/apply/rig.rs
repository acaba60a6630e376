//! A log written by hand into an embedded queue, an applier that runs on it, and the replica that it writes to.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use millstream::apply::{Applier, ApplyState, ApplyStatus, FirstCopy, run_apply};
use millstream::config::ReplicaConfig;
use millstream::event::{
    Body, Cell, Change, Column, Epoch, Fence, Genesis, History, Identity, Lsn, Nonce, OldImage, Part, Position, Progress, Record,
    RecordHeader, RecordNumber, Row, SchemaId, SlotStart, StreamId, TableName, TableSchema, TransactionBatch, TransactionHeader,
    Xid, write_change, write_transaction,
};
use millstream::queue::embedded::EmbeddedQueue;
use millstream::queue::{Queue, QueueWriter, Ticket};
use millstream::replica::postgres::{PostgresTarget, ledger};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::files::Folder;
use crate::support::postgres::{PgDatabase, shared};
use crate::support::wait::eventually;

pub const STREAM: StreamId = StreamId(0xFEED_F00D_FEED_F00D);
pub const WAIT: Duration = Duration::from_secs(30);

/// A cell that the source did not send.
pub const SAME: Cell<'static> = Cell::Unchanged;
pub const NULL: Cell<'static> = Cell::Null;

pub fn v(text: &str) -> Cell<'_> {
    Cell::Value(text.as_bytes())
}

pub fn row(cells: &[Cell<'_>]) -> Row {
    cells.iter().copied().collect()
}

pub fn insert(table: &TableSchema, cells: &[Cell<'_>]) -> Change {
    Change::Insert { table: table.id, new: row(cells) }
}

pub fn update(table: &TableSchema, cells: &[Cell<'_>]) -> Change {
    Change::Update { table: table.id, old: None, new: row(cells) }
}

/// An update of a key, or of a table with REPLICA IDENTITY FULL.
pub fn update_from(table: &TableSchema, old: &[Cell<'_>], cells: &[Cell<'_>]) -> Change {
    Change::Update { table: table.id, old: Some(image(table, old)), new: row(cells) }
}

pub fn delete(table: &TableSchema, old: &[Cell<'_>]) -> Change {
    Change::Delete { table: table.id, old: image(table, old) }
}

fn image(table: &TableSchema, old: &[Cell<'_>]) -> OldImage {
    if table.identity == Identity::Full { OldImage::Full(row(old)) } else { OldImage::Key(row(old)) }
}

pub fn history() -> History {
    History { system_identifier: 7, timeline: 1, lineage: Vec::new(), database: "shop".into(), slot: "millstream_shop_1".into() }
}

/// Writes records as a capture would.
pub struct LogWriter {
    writer: Box<dyn QueueWriter>,
    epoch: u64,
    number: u64,
    bytes: u64,
    changes: u64,
    lsn: u64,
    last: Ticket,
    schemas: u32,
}

impl LogWriter {
    /// Changes of the whole stream.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Bytes of the whole stream.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    async fn open(queue: &Arc<dyn Queue>) -> Self {
        queue.create("shop").await.unwrap();
        let writer = queue.writer("shop").await.unwrap();
        let mut log = Self { writer, epoch: 0, number: 0, bytes: 0, changes: 0, lsn: 1000, last: Ticket(0), schemas: 0 };
        log.fence().await;
        log.append(Body::Genesis(Genesis { source: "shop".into(), history: history() }), 0).await;
        log.append(Body::SlotStart(SlotStart { position: log.position() }), 0).await;
        log
    }

    pub fn position(&self) -> Position {
        Position::Lsn(Lsn(self.lsn))
    }

    pub async fn fence(&mut self) {
        self.epoch += 1;
        let fence = Fence { epoch: Epoch(self.epoch), nonce: Nonce(5), holder: "test".into(), version: "0".into() };
        self.append(Body::Fence(fence), 0).await;
    }

    pub async fn append(&mut self, body: Body, changes: u64) {
        let fence = matches!(body, Body::Fence(_));
        if !fence {
            self.number += 1;
        }
        let header = RecordHeader {
            kind: body.kind(),
            stream: STREAM,
            number: RecordNumber(if fence { 0 } else { self.number }),
            epoch: Epoch(self.epoch),
            nonce: Nonce(5),
            base: RecordNumber(u64::from(!fence)),
            bytes_before: self.bytes,
            changes_before: self.changes,
            written_at_us: 1,
        };
        let bytes = Record { header, body }.encode();
        self.bytes += bytes.len() as u64;
        self.changes += changes;
        self.last = self.writer.append(bytes).await.unwrap();
    }

    /// Waits until everything is durable, so that readers see it.
    pub async fn flush(&mut self) {
        let mut seen = Ticket(0);
        while seen < self.last {
            seen = self.writer.durable_past(seen).await.unwrap().ticket;
        }
    }

    /// Announces a version of a table.
    pub async fn schema(&mut self, mut schema: TableSchema) -> TableSchema {
        self.schemas += 1;
        schema.id = SchemaId(self.schemas);
        self.append(Body::Schema(schema.clone()), 0).await;
        schema
    }

    pub fn next_header(&mut self) -> TransactionHeader {
        self.lsn += 100;
        TransactionHeader {
            xid: Xid(self.lsn),
            position: Position::Lsn(Lsn(self.lsn)),
            commit_lsn: Lsn(self.lsn - 10),
            commit_time_us: 1_700_000_000_000_000 + i64::try_from(self.lsn).unwrap(),
            origin: None,
        }
    }

    /// Transactions in one record.
    pub async fn transactions(&mut self, transactions: &[Vec<Change>]) -> Position {
        let (mut payload, mut scratch) = (BytesMut::new(), BytesMut::new());
        let mut count = 0;
        for changes in transactions {
            let header = self.next_header();
            let mut stream = BytesMut::new();
            changes.iter().for_each(|change| write_change(change, &mut stream, &mut scratch));
            count += changes.len() as u64;
            write_transaction(&header, changes.len() as u64, &stream, &mut payload);
        }
        self.append(Body::Transactions(TransactionBatch { bytes: payload.freeze() }), count).await;
        self.flush().await;
        self.position()
    }

    pub async fn transaction(&mut self, changes: Vec<Change>) -> Position {
        self.transactions(&[changes]).await
    }

    /// One transaction in parts of some bytes; only so many of them.
    pub async fn parts(&mut self, changes: &[Change], part_bytes: usize, at_most: usize) -> Position {
        let header = self.next_header();
        let (mut stream, mut scratch) = (BytesMut::new(), BytesMut::new());
        changes.iter().for_each(|change| write_change(change, &mut stream, &mut scratch));
        let stream = stream.freeze();
        let count = stream.len().div_ceil(part_bytes);
        for index in 0..count.min(at_most) {
            let part = Part {
                header: header.clone(),
                index: u32::try_from(index).unwrap(),
                last: index + 1 == count,
                change_count: changes.len() as u64,
                total_bytes: stream.len() as u64,
                bytes: stream.slice(index * part_bytes..((index + 1) * part_bytes).min(stream.len())),
            };
            self.append(Body::Part(part), 0).await;
        }
        self.flush().await;
        self.position()
    }

    pub async fn progress(&mut self, source_time_us: i64) -> Position {
        self.lsn += 10;
        let body = Progress { position: self.position(), source_time_us, heartbeat: true };
        self.append(Body::Progress(body), 0).await;
        self.flush().await;
        self.position()
    }

    /// The writer died here and another took over: record numbers of unfinished parts are used again.
    pub async fn take_over(&mut self, unfinished_parts: u64) {
        self.fence().await;
        self.number -= unfinished_parts;
    }
}

/// The replica, the log, and the applier between them.
pub struct Rig {
    pub replica: PgDatabase<'static>,
    pub queue: Arc<dyn Queue>,
    pub log: LogWriter,
    pub config: ReplicaConfig,
    pub first_copy: Option<Arc<dyn FirstCopy>>,
    pub status: watch::Receiver<ApplyStatus>,
    running: Option<(CancellationToken, JoinHandle<()>)>,
    _folder: Folder,
}

impl Rig {
    /// A replica with some tables, live, and a log at its beginning.
    pub async fn new(ddl: &str) -> Self {
        let replica = shared().await.new_database().await;
        replica.execute(ddl).await;
        let folder = Folder::new("queue");
        let queue: Arc<dyn Queue> = EmbeddedQueue::open(folder.path()).unwrap();
        let log = LogWriter::open(&queue).await;
        let mut connection = replica.connection().await;
        ledger::migrate(&mut connection).await.unwrap();
        ledger::create(&mut connection, "reports", "shop", STREAM, &history(), None).await.unwrap();
        let config = ReplicaConfig {
            name: "reports".into(),
            source: "shop".into(),
            connect: replica.connect(),
            merge_max_bytes: 8 << 20,
            merge_max_changes: 20_000,
            sequences_interval: Duration::ZERO,
        };
        let rig = Self {
            replica,
            queue,
            log,
            config,
            first_copy: None,
            status: watch::channel(ApplyStatus::default()).1,
            running: None,
            _folder: folder,
        };
        rig.adopt_tables().await;
        rig
    }

    /// From now on the applier is an ordinary role with every right on the tables that are there, and none to set
    /// `session_replication_role`. Gives the role's name.
    pub async fn as_ordinary_role(&mut self) -> String {
        let role = format!("applier_{}", self.replica.name);
        self.replica
            .execute(&format!(
                "CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA millstream, public TO {role};
                 GRANT ALL ON ALL TABLES IN SCHEMA millstream, public TO {role}"
            ))
            .await;
        self.config.connect.user.clone_from(&role);
        role
    }

    /// Every table of the replica becomes a live one.
    pub async fn adopt_tables(&self) {
        self.replica
            .execute(
                "INSERT INTO millstream.copied_table (replica, table_schema, table_name, state)
                 SELECT 'reports', n.nspname, c.relname, 'live' FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                 WHERE c.relkind IN ('r', 'p') AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'millstream')
                   AND n.nspname NOT LIKE 'pg_toast%' ON CONFLICT DO NOTHING",
            )
            .await;
    }

    /// A version as the source would describe it, when its table is like the replica's, announced in the log.
    pub async fn table(&mut self, name: &str) -> TableSchema {
        self.table_in("public", name, Identity::Default).await
    }

    pub async fn full(&mut self, name: &str) -> TableSchema {
        self.table_in("public", name, Identity::Full).await
    }

    pub async fn table_in(&mut self, schema: &str, name: &str, identity: Identity) -> TableSchema {
        let described = self.describe(schema, name, identity).await;
        self.log.schema(described).await
    }

    pub async fn describe(&self, schema: &str, name: &str, identity: Identity) -> TableSchema {
        let quoted = |text: &str| format!("'{}'", text.replace('\'', "''"));
        let sql = format!(
            "SELECT a.attname, tn.nspname || '.' || t.typname, t.oid, a.atttypmod, c.oid,
                coalesce(a.attnum = ANY (i.indkey), false)
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
             JOIN pg_type t ON t.oid = a.atttypid JOIN pg_namespace tn ON tn.oid = t.typnamespace
             LEFT JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary
             WHERE n.nspname = {} AND c.relname = {} ORDER BY a.attnum",
            quoted(schema),
            quoted(name)
        );
        let rows = self.replica.query(&sql).await.unwrap();
        assert!(!rows.is_empty(), "no table {schema}.{name}");
        let text = |row: &Vec<Option<String>>, at: usize| row[at].clone().unwrap();
        let columns = rows
            .iter()
            .map(|row| Column {
                name: text(row, 0),
                type_name: text(row, 1),
                type_oid: text(row, 2).parse().unwrap(),
                type_modifier: text(row, 3).parse().unwrap(),
                identity: identity == Identity::Full || text(row, 5) == "t",
                primary_key: text(row, 5) == "t",
            })
            .collect();
        let source_oid = text(&rows[0], 4).parse().unwrap();
        TableSchema { id: SchemaId(0), table: TableName::new(schema, name), source_oid, identity, columns }
    }

    pub fn target(&self) -> PostgresTarget {
        PostgresTarget::new(self.config.clone())
    }

    /// Starts the applier.
    pub fn start(&mut self) {
        assert!(self.running.is_none(), "it runs already");
        let (sender, receiver) = watch::channel(ApplyStatus::default());
        self.status = receiver;
        let cancel = CancellationToken::new();
        let target = Arc::new(self.target());
        let applier = Applier::new(self.config.clone(), target, Arc::clone(&self.queue), self.first_copy.clone());
        self.running = Some((cancel.clone(), tokio::spawn(run_apply(applier, cancel, sender))));
    }

    /// Ends it as a daemon would.
    pub async fn stop(&mut self) {
        let (cancel, task) = self.running.take().expect("it runs");
        cancel.cancel();
        tokio::time::timeout(WAIT, task).await.expect("it ends in time").unwrap();
    }

    /// Drops it at whatever it is doing.
    pub fn kill(&mut self) {
        let (_, task) = self.running.take().expect("it runs");
        task.abort();
    }

    /// Waits until the ledger has a position.
    #[track_caller]
    pub fn applied(&self, position: Position) -> impl Future<Output = ()> {
        let status = self.status.clone();
        eventually("the position to be applied", WAIT, async move || {
            let found = self.replica.query("SELECT position FROM millstream.replica").await.map_err(|e| e.to_string())?;
            let found = found[0][0].clone().map(|text| text.parse::<Position>().unwrap());
            if found >= Some(position) { Ok(()) } else { Err(format!("{found:?} of {position:?}, {:?}", *status.borrow())) }
        })
    }

    /// Waits for a halt and gives its message.
    #[track_caller]
    pub fn halted(&self, code: &str) -> impl Future<Output = String> {
        let status = self.status.clone();
        let code = code.to_owned();
        eventually("a halt", WAIT, async move || {
            let status = status.borrow().clone();
            match (status.state, status.halt) {
                (ApplyState::Halted, Some(found)) if found.as_str() == code => Ok(status.error.unwrap_or_default()),
                _ => Err(status),
            }
        })
    }

    /// Applies what is in the log and ends.
    pub async fn drain(&mut self, position: Position) {
        self.start();
        self.applied(position).await;
        self.stop().await;
    }

    /// Rows as text, `|` between columns, `~` for NULL, one per line.
    pub async fn rows(&self, sql: &str) -> String {
        let rows = self.replica.query(sql).await.unwrap_or_else(|e| panic!("{e}\n{sql}"));
        let cell = |cell: &Option<String>| cell.clone().unwrap_or_else(|| "~".into());
        rows.iter().map(|row| row.iter().map(cell).collect::<Vec<_>>().join("|")).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some((_, task)) = &self.running {
            task.abort();
        }
    }
}
