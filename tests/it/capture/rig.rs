//! A source being captured into an embedded queue, and its log as text.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use millstream::capture::postgres::publication::mark;
use millstream::capture::postgres::slot;
use millstream::capture::{
    CaptureState, CaptureStatus, begin_stream, new_slot_name, publication_name, record_slot_start, run_capture,
};
use millstream::config::{OnRetainLimit, SchemaChanges, SourceConfig};
use millstream::event::{Body, Cell, Change, ChangeReader, Genesis, History, OldImage, Position, Row, SchemaId, TableSchema};
use millstream::halt::HaltCode;
use millstream::pause::Gate;
use millstream::postgres::{Mode, PgClient, Side};
use millstream::queue::embedded::EmbeddedQueue;
use millstream::queue::log::{Entry, LogReader, Start};
use millstream::queue::{CONSUMER_PREFIX, ConsumerProgress, Queue};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::files::Folder;
use crate::support::postgres::{PgDatabase, PgServer};
use crate::support::wait::{LONG, eventually};

/// A consumer that is registered from the start.
pub const KEEPER: &str = "keeper";

/// One source and its queue.
pub struct Rig<'s> {
    pub db: PgDatabase<'s>,
    pub folder: Folder,
    pub queue: Arc<dyn Queue>,
    pub source: SourceConfig,
    pub queue_max_bytes: u64,
    pub slot: String,
}

/// A capture that runs in this process.
pub struct Capture {
    pub status: watch::Receiver<CaptureStatus>,
    cancel: CancellationToken,
    task: JoinHandle<millstream::Result<()>>,
}

/// A transaction of the log, its changes as text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub xid: u64,
    pub changes: Vec<String>,
    pub parts: u32,
    pub origin: Option<String>,
    pub position: Option<Position>,
}

/// The valid log.
#[derive(Clone, Debug, Default)]
pub struct Log {
    pub transactions: Vec<Seen>,
    pub schemas: Vec<TableSchema>,
    pub histories: Vec<History>,
    pub messages: Vec<String>,
    pub heartbeats: usize,
    pub position: Option<Position>,
    pub epochs: Vec<u64>,
}

impl Log {
    /// Every change, one after the other.
    pub fn changes(&self) -> Vec<&str> {
        self.transactions.iter().flat_map(|t| t.changes.iter().map(String::as_str)).collect()
    }
}

impl<'s> Rig<'s> {
    /// With tables made by `ddl`, all of `public` published.
    pub async fn new(server: &'s PgServer, ddl: &str) -> Self {
        let db = server.new_database().await;
        Self::in_database(db, ddl).await
    }

    pub async fn in_database(db: PgDatabase<'s>, ddl: &str) -> Self {
        let folder = Folder::new("cap");
        let queue: Arc<dyn Queue> = EmbeddedQueue::open(&folder.path().join("queue")).unwrap();
        let source = SourceConfig {
            name: "shop".into(),
            connect: db.connect(),
            tables: vec!["public.*".into()],
            schema_changes: SchemaChanges::default(),
            retain_max_bytes: 1 << 40,
            retain_max_age: Duration::from_secs(7 * 86_400),
            on_retain_limit: OnRetainLimit::Alarm,
            memory_bytes: 4 << 20,
            spill_max_bytes: 1 << 30,
            spill_dir: folder.path().join("spill"),
            heartbeat_interval: Duration::from_millis(300),
            copy_workers: 1,
            copy_max_bytes_per_second: None,
            copy_chunk_rows: 1000,
        };
        db.execute(ddl).await;
        let publish = format!(
            "DO $$ DECLARE list text; BEGIN SELECT string_agg(format('%I.%I', schemaname, tablename), ', ') INTO list FROM pg_tables \
             WHERE schemaname IN ('public', 'millstream') AND tablename NOT LIKE 'unpublished%'; \
             EXECUTE format('CREATE PUBLICATION {} FOR TABLE %s WITH (publish_via_partition_root = false)', list); END $$",
            publication_name("shop")
        );
        db.execute(&format!("{publish}; {}", mark(&publication_name("shop")))).await;
        let rig = Self { db, folder, queue, source, queue_max_bytes: 1 << 40, slot: new_slot_name("shop") };
        rig.begin().await;
        // Without a consumer a new writer trims what lies before its base.
        rig.register(KEEPER).await;
        rig
    }

    async fn begin(&self) {
        let mut replication = PgClient::connect(&self.source.connect, Mode::Replication, Side::Source).await.unwrap();
        let server = slot::identify(&mut replication).await.unwrap();
        let lineage = slot::lineage(&mut replication, server.timeline).await.unwrap();
        let history = History {
            system_identifier: server.system_identifier,
            timeline: server.timeline,
            lineage,
            database: self.db.name.clone(),
            slot: self.slot.clone(),
        };
        begin_stream(&self.queue, "shop", Genesis { source: "shop".into(), history }).await.unwrap();
        let start = self.create_slot().await;
        record_slot_start(&self.queue, "shop", &self.slot, start).await.unwrap();
    }

    pub async fn create_slot(&self) -> Position {
        let mut one = self.client().await;
        let mut two = self.client().await;
        Position::Lsn(slot::create(&mut one, &mut two, &self.slot, |_| {}).await.unwrap())
    }

    pub async fn client(&self) -> PgClient {
        PgClient::connect(&self.db.connect(), Mode::Sql, Side::Source).await.unwrap()
    }

    /// Starts a capture over this rig's queue handle.
    pub fn start(&self) -> Capture {
        self.start_with(self.source.clone(), Arc::clone(&self.queue))
    }

    pub fn start_with(&self, source: SourceConfig, queue: Arc<dyn Queue>) -> Capture {
        self.spawn(source, queue, Gate::always_open())
    }

    /// One that may be paused.
    pub fn start_behind(&self, gate: Arc<Gate>) -> Capture {
        self.spawn(self.source.clone(), Arc::clone(&self.queue), gate)
    }

    fn spawn(&self, source: SourceConfig, queue: Arc<dyn Queue>, gate: Arc<Gate>) -> Capture {
        let (sender, status) = watch::channel(CaptureStatus::default());
        let cancel = CancellationToken::new();
        let task = tokio::spawn(run_capture(source, self.queue_max_bytes, queue, gate, cancel.clone(), sender));
        Capture { status, cancel, task }
    }

    /// A transaction that the log must come to, then the log.
    pub async fn log_after_marker(&self) -> Log {
        let position = self.db.value("SELECT pg_current_wal_insert_lsn()::text").await;
        let wanted: Position = position.parse().unwrap();
        eventually("the log to come past the source's present end", LONG, async || {
            let log = self.log().await;
            if log.position >= Some(wanted) { Ok(log) } else { Err((log.position, wanted)) }
        })
        .await
    }

    /// The log up to its present end.
    pub async fn log(&self) -> Log {
        let mut reader = LogReader::open(&self.queue, "shop", Start::First).await.unwrap();
        let mut log = Log::default();
        let mut tables: HashMap<SchemaId, TableSchema> = HashMap::new();
        let mut open: Option<(Seen, ChangeReader)> = None;
        loop {
            let entries = reader.read(1 << 20, Duration::from_millis(100)).await.unwrap();
            if entries.is_empty() {
                return log;
            }
            for entry in entries {
                let Entry::Record(record) = entry else {
                    open = None;
                    continue;
                };
                match record.record.body {
                    Body::Fence(fence) => log.epochs.push(fence.epoch.0),
                    Body::Genesis(_) => {}
                    Body::SlotStart(start) => log.position = Some(start.position),
                    Body::History(history) => log.histories.push(history),
                    Body::Schema(schema) => {
                        tables.insert(schema.id, schema.clone());
                        log.schemas.push(schema);
                    }
                    Body::Transactions(batch) => {
                        for transaction in batch.iter() {
                            let transaction = transaction.unwrap();
                            let changes: Vec<String> =
                                transaction.changes().map(|change| render(&change.unwrap(), &tables)).collect();
                            assert_eq!(changes.len() as u64, transaction.change_count);
                            let header = transaction.header;
                            log.note(Seen {
                                xid: header.xid.0,
                                changes,
                                parts: 0,
                                origin: header.origin,
                                position: Some(header.position),
                            });
                        }
                    }
                    Body::Part(part) => {
                        let (seen, reader) = open.get_or_insert_with(|| {
                            let seen = Seen { xid: part.header.xid.0, position: Some(part.header.position), ..Seen::default() };
                            (seen, ChangeReader::default())
                        });
                        seen.parts += 1;
                        reader.push(part.bytes);
                        while let Some(change) = reader.next_change().unwrap() {
                            seen.changes.push(render(&change, &tables));
                        }
                        if part.last {
                            reader.finish().unwrap();
                            assert_eq!(seen.changes.len() as u64, part.change_count);
                            let (seen, _) = open.take().unwrap();
                            log.note(seen);
                        }
                    }
                    Body::Progress(progress) => {
                        log.heartbeats += usize::from(progress.heartbeat);
                        assert!(log.position <= Some(progress.position), "positions grow");
                        log.position = Some(progress.position);
                    }
                    Body::Message(message) => {
                        log.messages.push(format!("{}:{}", message.prefix, String::from_utf8_lossy(&message.content)));
                    }
                }
            }
        }
    }

    /// Registers a consumer that has read nothing behind the present end.
    pub async fn register(&self, name: &str) {
        let bounds = self.queue.bounds("shop").await.unwrap().unwrap();
        let mut reader = LogReader::open(&self.queue, "shop", Start::First).await.unwrap();
        let mut last = None;
        loop {
            let entries = reader.read(1 << 20, Duration::from_millis(100)).await.unwrap();
            if entries.is_empty() {
                break;
            }
            for entry in entries {
                // A fence has no number and is nobody's place.
                if let Entry::Record(record) = entry
                    && !matches!(record.record.body, Body::Fence(_))
                {
                    last = Some(record);
                }
            }
        }
        let header = last.unwrap().record.header;
        let progress = ConsumerProgress {
            keep_from: bounds.start,
            number: header.number,
            position: None,
            bytes_so_far: header.bytes_before,
            changes_so_far: header.changes_before,
            at_us: 0,
        };
        let value = serde_json::to_vec(&progress).unwrap();
        self.queue.registry_put("shop", &format!("{CONSUMER_PREFIX}{name}"), Some(value.into())).await.unwrap();
    }

    /// Ends what the server would keep.
    pub async fn end(self) {
        let mut client = self.client().await;
        slot::drop(&mut client, &self.slot).await.unwrap();
    }
}

impl Log {
    fn note(&mut self, seen: Seen) {
        assert!(self.position < seen.position, "transactions come once, in order of their positions");
        self.position = seen.position;
        self.transactions.push(seen);
    }
}

impl Capture {
    pub async fn reaches(&self, state: CaptureState) -> CaptureStatus {
        let mut status = self.status.clone();
        let found = tokio::time::timeout(LONG, status.wait_for(|s| s.state == state)).await;
        match found {
            Ok(found) => found.unwrap().clone(),
            Err(_) => panic!("never {state:?}: {:?}", *self.status.borrow()),
        }
    }

    pub async fn halts(&self) -> (HaltCode, String) {
        let status = self.reaches(CaptureState::Halted).await;
        (status.halt.unwrap(), status.error.unwrap())
    }

    /// Ends in order.
    pub async fn stop(self) {
        self.cancel.cancel();
        self.task.await.unwrap().unwrap();
    }

    /// Ends as a killed process would: nothing more is sent or written.
    pub async fn kill(self) {
        self.task.abort();
        drop(self.task.await);
    }
}

fn render(change: &Change, tables: &HashMap<SchemaId, TableSchema>) -> String {
    let name = |id: &SchemaId| tables[id].table.name.clone();
    match change {
        Change::Insert { table, new } => format!("+{} {}", name(table), row(new, &tables[table], false)),
        Change::Update { table, old, new } => {
            let old = old.as_ref().map(|old| format!("{} -> ", image(old, &tables[table]))).unwrap_or_default();
            format!("~{} {old}{}", name(table), row(new, &tables[table], false))
        }
        Change::Delete { table, old } => format!("-{} {}", name(table), image(old, &tables[table])),
        Change::Truncate { tables: list, cascade, restart_identity } => {
            let mut names: Vec<String> = list.iter().map(name).collect();
            names.sort();
            format!("0{} cascade={cascade} restart={restart_identity}", names.join(","))
        }
        Change::Schema { content } => format!("${}", String::from_utf8_lossy(content)),
        Change::Message { prefix, content } => format!("!{prefix}:{}", String::from_utf8_lossy(content)),
    }
}

fn image(old: &OldImage, table: &TableSchema) -> String {
    match old {
        OldImage::Key(key) => format!("key{}", row(key, table, true)),
        OldImage::Full(full) => format!("old{}", row(full, table, false)),
    }
}

fn row(row: &Row, table: &TableSchema, key: bool) -> String {
    assert_eq!(row.len(), table.columns.len());
    let cells = row.iter().zip(&table.columns).filter(|(_, column)| !key || column.identity);
    let cells = cells.map(|(cell, column)| match cell {
        Cell::Null => format!("{}=NULL", column.name),
        Cell::Unchanged => format!("{}=unchanged", column.name),
        Cell::Value(value) if value.len() > 60 => format!("{}=<{} bytes>", column.name, value.len()),
        Cell::Value(value) => format!("{}={}", column.name, String::from_utf8_lossy(value)),
    });
    format!("({})", cells.collect::<Vec<_>>().join(","))
}
