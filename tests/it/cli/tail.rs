//! `millstream log tail` over a log that this test writes itself, in an embedded queue and in Kafka; and over what a source's own messages become.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use millstream::event::{
    Body, Cell, Change, Column, Epoch, Fence, Genesis, History, Identity, Lsn, Nonce, Part, Position, Progress, QueueOffset,
    Record, RecordHeader, RecordKind, RecordNumber, Row, SchemaId, SlotStart, StreamId, TableName, TableSchema, TransactionBatch,
    TransactionHeader, Xid, write_change, write_transaction,
};
use millstream::queue::embedded::EmbeddedQueue;
use millstream::queue::kafka::KafkaQueue;
use millstream::queue::{Queue, QueueWriter, Ticket};

use super::NOWHERE;
use crate::support::daemon::Site;
use crate::support::kafka;
use crate::support::postgres::{shared, shared_replica};
use crate::support::process::Process;
use crate::support::wait::{LONG, until};

/// Writes a log as capture does.
struct Author {
    writer: Box<dyn QueueWriter>,
    epoch: u64,
    number: u64,
    tickets: u64,
    /// Record number that records name as their base.
    base: u64,
    /// Where the last record lies.
    last: QueueOffset,
}

impl Author {
    async fn new(site: &Site) -> Self {
        Self::over(EmbeddedQueue::open(&site.folder().join("queue")).unwrap()).await
    }

    async fn over(queue: Arc<dyn Queue>) -> Self {
        queue.create("shop").await.unwrap();
        let writer = queue.writer("shop").await.unwrap();
        let mut author = Self { writer, epoch: 0, number: 0, tickets: 0, base: 1, last: QueueOffset(0) };
        author.fence().await;
        let history =
            History { system_identifier: 1, timeline: 1, lineage: Vec::new(), database: "shop".into(), slot: "s".into() };
        author.give(Body::Genesis(Genesis { source: "shop".into(), history })).await;
        author.give(Body::SlotStart(SlotStart { position: Position::Lsn(Lsn(0x10)) })).await;
        author.give(Body::Schema(schema(1, "orders"))).await;
        author.give(Body::Schema(schema(2, "notes"))).await;
        author
    }

    async fn fence(&mut self) {
        self.epoch += 1;
        let fence = Fence { epoch: Epoch(self.epoch), nonce: Nonce(self.epoch), holder: "test".into(), version: "0".into() };
        self.append(0, 0, Body::Fence(fence)).await;
    }

    async fn give(&mut self, body: Body) {
        self.number += 1;
        self.append(self.number, self.base, body).await;
    }

    async fn append(&mut self, number: u64, base: u64, body: Body) {
        let header = RecordHeader {
            kind: body.kind(),
            stream: StreamId(7),
            number: RecordNumber(number),
            epoch: Epoch(self.epoch),
            nonce: Nonce(self.epoch),
            base: RecordNumber(base),
            bytes_before: 0,
            changes_before: 0,
            written_at_us: 1_700_000_000_000_000,
        };
        assert!(number > 0 || header.kind == RecordKind::Fence);
        self.writer.append(Record { header, body }.encode()).await.unwrap();
        self.tickets += 1;
        let durable = self.writer.durable_past(Ticket(self.tickets - 1)).await.unwrap();
        assert_eq!(durable.ticket, Ticket(self.tickets));
        self.last = durable.offset;
    }

    /// Everything that a reader needs to begin here; gives the place.
    async fn new_base(&mut self) -> QueueOffset {
        self.give(Body::Schema(schema(1, "orders"))).await;
        let (offset, number) = (self.last, self.number);
        self.give(Body::Schema(schema(2, "notes"))).await;
        self.base = number;
        offset
    }

    async fn transaction(&mut self, lsn: u64, changes: &[Change]) {
        let mut bytes = BytesMut::new();
        write_transaction(&header(lsn), changes.len() as u64, &stream(changes), &mut bytes);
        self.give(Body::Transactions(TransactionBatch { bytes: bytes.freeze() })).await;
    }

    async fn part(&mut self, lsn: u64, index: u32, last: bool, bytes: &[u8]) {
        let part = Part {
            header: header(lsn),
            index,
            last,
            change_count: 2,
            total_bytes: 0,
            bytes: bytes::Bytes::copy_from_slice(bytes),
        };
        self.give(Body::Part(part)).await;
    }
}

fn header(lsn: u64) -> TransactionHeader {
    TransactionHeader {
        xid: Xid(lsn),
        position: Position::Lsn(Lsn(lsn)),
        commit_lsn: Lsn(lsn - 1),
        commit_time_us: 1_600_000_000_000_000 + i64::try_from(lsn).unwrap() * 1_000_000,
        origin: None,
    }
}

fn stream(changes: &[Change]) -> BytesMut {
    let (mut out, mut scratch) = (BytesMut::new(), BytesMut::new());
    changes.iter().for_each(|change| write_change(change, &mut out, &mut scratch));
    out
}

fn schema(id: u32, name: &str) -> TableSchema {
    let column = |name: &str, type_oid, key| Column {
        name: name.into(),
        type_name: String::new(),
        type_oid,
        type_modifier: -1,
        identity: key,
        primary_key: key,
    };
    let columns = vec![column("id", 23, true), column("text", 25, false)];
    TableSchema { id: SchemaId(id), table: TableName::new("public", name), source_oid: id, identity: Identity::Default, columns }
}

fn insert(table: u32, id: &str) -> Change {
    let new: Row = [Cell::Value(id.as_bytes()), Cell::Value(b"x")].into_iter().collect();
    Change::Insert { table: SchemaId(table), new }
}

async fn ids(site: &Site, more: &[&str]) -> Vec<i64> {
    let out = site.must(&[&["log", "tail", "shop", "--no-follow"], more].concat()).await;
    let objects = out.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    objects.map(|object| object["after"]["id"].as_i64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn places_filters_and_limits_choose_what_is_shown() {
    let site = Site::new(NOWHERE);
    let mut author = Author::new(&site).await;
    author.transaction(0x100, &[insert(1, "1"), insert(2, "2")]).await;
    author.transaction(0x200, &[insert(1, "3")]).await;
    let progress = Progress { position: Position::Lsn(Lsn(0x280)), source_time_us: 0, heartbeat: true };
    author.give(Body::Progress(progress)).await;
    author.transaction(0x300, &[insert(2, "4")]).await;

    let none: [i64; 0] = [];
    assert_eq!(ids(&site, &["--from", "beginning"]).await, [1, 2, 3, 4]);
    assert_eq!(ids(&site, &["--from", "0/100"]).await, [3, 4]);
    assert_eq!(ids(&site, &["--from", "0/2FF"]).await, [4]);
    assert_eq!(ids(&site, &["--from", "now"]).await, none);
    // 1,600,000,000 s and 0x200 s.
    assert_eq!(ids(&site, &["--from", "2020-09-13T12:35:12Z"]).await, [3, 4]);
    assert_eq!(ids(&site, &["--from", "beginning", "--table", "public.orders"]).await, [1, 3]);
    assert_eq!(ids(&site, &["--from", "beginning", "--table", "public.*", "--table", "!public.orders"]).await, [2, 4]);
    assert_eq!(ids(&site, &["--from", "beginning", "--key", "id=3"]).await, [3]);
    assert_eq!(ids(&site, &["--from", "beginning", "--key", "2", "--key", "text=x"]).await, [2]);
    assert_eq!(ids(&site, &["--from", "beginning", "--limit", "3"]).await, [1, 2, 3]);
    let limited = site.must(&["log", "tail", "shop", "--from", "beginning", "--limit", "1"]).await;
    assert_eq!(limited.lines().count(), 1, "the limit ends it without --no-follow");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_transaction_is_shown_once_and_not_when_a_fence_voids_its_parts() {
    let site = Site::new(NOWHERE);
    let mut author = Author::new(&site).await;
    let changes = stream(&[insert(1, "1"), insert(1, "2")]);
    let (first, second) = changes.split_at(5);
    author.part(0x100, 0, false, first).await;
    author.fence().await;
    author.number -= 1;
    author.part(0x100, 0, false, first).await;
    author.part(0x100, 1, true, second).await;
    assert_eq!(ids(&site, &["--from", "beginning"]).await, [1, 2]);
    assert_eq!(ids(&site, &["--from", "beginning", "--limit", "1"]).await, [1]);
    assert_eq!(ids(&site, &["--from", "0/100"]).await, [0_i64; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_said() {
    let site = Site::new(NOWHERE);
    let outcome = site.run(&["log", "tail", "shop"]).await;
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    let init = format!("millstream -c {} init", site.configuration().display());
    assert!(outcome.stderr.contains(&init), "{}", outcome.stderr);
    let outcome = site.run(&["log", "tail", "shpo"]).await;
    assert_eq!(outcome.code, Some(78));
    assert!(outcome.stderr.contains("it has shop"), "{}", outcome.stderr);
    let outcome = site.run(&["log", "tail", "shop", "--from", "yesterday"]).await;
    assert_eq!(outcome.code, Some(2));
    assert!(outcome.stderr.contains("16/B374D848"), "{}", outcome.stderr);
}

/// A log that is kept small was called lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_was_trimmed_is_said_with_where_the_log_begins_and_not_called_a_loss() {
    let site = Site::new(NOWHERE);
    let mut author = Author::new(&site).await;
    author.transaction(0x100, &[insert(1, "1")]).await;
    author.transaction(0x200, &[insert(1, "2")]).await;
    let base = author.new_base().await;
    author.transaction(0x300, &[insert(1, "3")]).await;
    assert_eq!(ids(&site, &["--from", "0/100"]).await, [2, 3]);
    EmbeddedQueue::open(&site.folder().join("queue")).unwrap().trim("shop", base).await.unwrap();
    let outcome = site.run(&["log", "tail", "shop", "--no-follow", "--from", "0/100"]).await;
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    let says = &outcome.stderr;
    assert!(
        says.contains("the log begins at about 0/300 of 2020-") && says.contains("now: what came before was trimmed"),
        "{says}"
    );
    assert!(!says.contains("queue_lost") && outcome.stdout.is_empty(), "{outcome:?}");
    // The same from a time; one that the log still holds is no complaint.
    let from_time = site.run(&["log", "tail", "shop", "--no-follow", "--from", "2001-01-01T00:00:00Z"]).await;
    assert_eq!((from_time.code, &from_time.stderr), (Some(1), says), "{from_time:?}");
    let command =
        says.trim_end().rsplit_once(&format!("millstream -c {} log tail ", site.configuration().display())).expect("a command").1;
    let words: Vec<&str> = ["log", "tail", "--no-follow"].into_iter().chain(command.split(' ')).collect();
    assert!(site.must(&words).await.contains("\"id\":3"));
    assert_eq!(ids(&site, &["--from", "0/300"]).await, [0_i64; 0]);
}

async fn shown(site: &Site, more: &[&str]) -> Vec<serde_json::Value> {
    let out = site.must(&[&["log", "tail", "shop", "--no-follow"], more].concat()).await;
    out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// `log tail --follow` in the background, and what it has printed.
struct Follower {
    process: Process,
    out: std::path::PathBuf,
}

impl Follower {
    fn start(site: &Site, name: &str, more: &[&str]) -> Self {
        let out = site.folder().join(name);
        let mut command = site.command(&[&["log", "tail", "shop", "--follow"], more].concat());
        command.stdout(fs::File::create(&out).unwrap());
        Self { process: Process::spawn(command).unwrap(), out }
    }

    fn ids(&self) -> Vec<i64> {
        let text = fs::read_to_string(&self.out).unwrap();
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let objects = whole.map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        objects.map(|object| object["after"]["id"].as_i64().unwrap()).collect()
    }

    async fn shows(&self, ids: &[i64]) {
        until(&format!("{ids:?} to be shown"), LONG, async || self.ids().len() >= ids.len()).await;
        assert_eq!(self.ids(), ids);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn from_kafka_it_reads_by_position_time_and_table_and_follows() {
    let broker = kafka::shared().await;
    let settings = broker.settings("tail");
    let section = format!(
        "\n[queue.kafka]\nreplication_factor = {}\ntopic_prefix = \"{}\"\n",
        settings.replication_factor, settings.topic_prefix
    );
    let embedded = "url = \"embedded:{folder}/queue\"";
    assert!(NOWHERE.contains(embedded));
    let queue = format!("url = \"kafka://{}\"\nmax_bytes = \"1GiB\"", broker.brokers());
    let spill = "tables = [\"public.*\"]\nspill_dir = \"{folder}/spill\"";
    let configuration = NOWHERE.replace(embedded, &queue).replacen("tables = [\"public.*\"]", spill, 1);
    let site = Site::new(&(configuration + &section));
    let mut author = Author::over(KafkaQueue::open(settings).unwrap()).await;
    author.transaction(0x100, &[insert(1, "1"), insert(2, "2")]).await;
    author.transaction(0x200, &[insert(1, "3")]).await;
    author.transaction(0x300, &[insert(2, "4")]).await;

    let none: [i64; 0] = [];
    assert_eq!(ids(&site, &["--from", "beginning"]).await, [1, 2, 3, 4]);
    assert_eq!(ids(&site, &["--from", "0/100"]).await, [3, 4]);
    assert_eq!(ids(&site, &["--from", "0/300"]).await, none);
    assert_eq!(ids(&site, &["--from", "now"]).await, none);
    // 1,600,000,000 s and 0x200 s.
    assert_eq!(ids(&site, &["--from", "2020-09-13T12:35:12Z"]).await, [3, 4]);
    assert_eq!(ids(&site, &["--from", "2020-09-13T12:35:13Z"]).await, [4]);
    assert_eq!(ids(&site, &["--from", "beginning", "--table", "public.orders"]).await, [1, 3]);
    assert_eq!(ids(&site, &["--from", "0/100", "--table", "public.*", "--table", "!public.orders"]).await, [4]);

    let all = Follower::start(&site, "all", &["--from", "0/100", "--limit", "4"]);
    let orders = Follower::start(&site, "orders", &["--from", "2020-09-13T12:35:12Z", "--table", "public.orders"]);
    all.shows(&[3, 4]).await;
    orders.shows(&[3]).await;
    // Both stand at the end now, and wait.
    assert!(all.process.exited().is_none() && orders.process.exited().is_none());
    author.transaction(0x400, &[insert(2, "5"), insert(1, "6")]).await;
    all.shows(&[3, 4, 5, 6]).await;
    orders.shows(&[3, 6]).await;
    assert_eq!(all.process.wait(LONG).await.and_then(|status| status.code()), Some(0), "the limit ends it");
    assert!(orders.process.exited().is_none(), "without a limit it waits for more");
}

/// The source's own words for whoever reads the log; they belong to no table.
#[tokio::test(flavor = "multi_thread")]
async fn logical_messages_are_shown_in_their_place() {
    let (source, replica) = (shared().await.new_database().await, shared_replica().await.new_database().await);
    source.execute("CREATE TABLE orders (id int PRIMARY KEY, paid bool)").await;
    let site = Site::pair(&source, &replica);
    site.must(&["init"]).await;
    let daemon = site.start();
    site.ready(Duration::from_secs(60)).await;
    source
        .execute(
            "BEGIN; INSERT INTO orders VALUES (1, true); SELECT pg_logical_emit_message(true, 'app', 'inside'); INSERT INTO orders VALUES (2, true); COMMIT",
        )
        .await;
    source.execute("SELECT pg_logical_emit_message(false, 'app', '\\x00ff'::bytea)").await;
    // With a transaction that is given up one kind goes, the other was said at once.
    source
        .execute("BEGIN; SELECT pg_logical_emit_message(true, 'app', 'taken back'), pg_logical_emit_message(false, 'app', 'said'); ROLLBACK")
        .await;
    source.execute("INSERT INTO orders VALUES (3, true)").await;
    until("the last row", LONG, async || replica.value("SELECT count(*) FROM orders").await == "3").await;
    assert_eq!(daemon.terminate().await.code(), Some(0));

    let lines = shown(&site, &["--from", "beginning"]).await;
    let told: Vec<String> = lines
        .iter()
        .map(|line| match line["op"].as_str().unwrap() {
            "m" => format!("{}: {}", line["message"]["prefix"].as_str().unwrap(), line["message"]["content"].as_str().unwrap()),
            op => format!("{op} {}", line["after"]["id"]),
        })
        .collect();
    // base64 of 'inside', of two bytes that are no text, of 'said'.
    assert_eq!(told, ["c 1", "app: aW5zaWRl", "c 2", "app: AP8=", "app: c2FpZA==", "c 3"]);
    let inside = &lines[1];
    assert_eq!(
        (&inside["transaction"]["total_order"], &inside["source"]["position"]),
        (&2.into(), &lines[0]["source"]["position"])
    );
    assert_eq!(inside["source"]["table"], "");
    assert_eq!((&inside["before"], &inside["after"]), (&serde_json::Value::Null, &serde_json::Value::Null));
    // Outside of a transaction it has a place of its own, between those of its neighbours.
    let lsn = |line: &serde_json::Value| line["source"]["lsn"].as_u64().unwrap();
    assert!(lsn(&lines[2]) < lsn(&lines[3]) && lsn(&lines[3]) < lsn(&lines[4]) && lsn(&lines[4]) < lsn(&lines[5]), "{lines:#?}");
    assert_eq!(lines[3]["source"]["txId"], 0, "of no transaction");
    let behind = shown(&site, &["--from", lines[3]["source"]["position"].as_str().unwrap()]).await;
    assert_eq!(behind, lines[4..]);
    let rows = shown(&site, &["--from", "beginning", "--table", "public.orders"]).await;
    assert_eq!(rows, [&lines[0], &lines[2], &lines[5]].map(Clone::clone));
}
