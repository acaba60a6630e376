//! The records of the corpus, made by today's code.

use std::path::Path;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use millstream::event::{
    Body, Cell, Change, Column, Epoch, Fence, Genesis, History, Identity, Lsn, Message, Nonce, OldImage, Part, Position,
    Progress, Record, RecordHeader, RecordKind, RecordNumber, Row, SchemaId, SlotStart, StreamId, TableName, TableSchema,
    TransactionBatch, TransactionHeader, Xid, write_change, write_transaction,
};
use millstream::queue::embedded::{EmbeddedQueue, Options};
use millstream::queue::{Queue, Ticket};

/// Names and bytes.
pub fn all() -> Vec<(&'static str, Vec<u8>)> {
    let mut all = sound();
    let progress = record(8, progress()).to_vec();
    let changed = |at: usize, value: u8| {
        let mut bytes = progress.clone();
        bytes[at] = value;
        resealed(bytes)
    };
    let unknown_change = transactions_of(&[0x02, 0x63, 0x00]);
    let said = Change::Schema {
        content: Bytes::from_static(
            br#"{"kind":"dropped","relation":16384,"tag":"DROP TABLE","before":{"name":"t"},"after":null,"note":null}"#,
        ),
    };
    let (mut schema_change, mut scratch) = (BytesMut::new(), BytesMut::new());
    write_change(&said, &mut schema_change, &mut scratch);
    all.extend([
        ("too_new_version", changed(2, 2)),
        ("too_new_kind", changed(3, 200)),
        ("too_new_flags", changed(4, 1)),
        ("too_new_position", changed(80, 2)),
        ("too_new_change", record(9, unknown_change).to_vec()),
        ("schema_change", record(11, transactions_of(&schema_change)).to_vec()),
        ("longer_header", longer_header(&progress)),
        ("corrupt_payload", {
            let mut bytes = progress.clone();
            bytes[85] ^= 1;
            bytes
        }),
        ("malformed_base_behind_record", {
            let mut bytes = progress.clone();
            bytes[40] = 99;
            resealed(bytes)
        }),
    ]);
    all
}

fn sound() -> Vec<(&'static str, Vec<u8>)> {
    let stream = change_stream();
    let part = |index: u32, last: bool, bytes: Bytes| {
        Body::Part(Part { header: header(1), index, last, change_count: 8, total_bytes: stream.len() as u64, bytes })
    };
    let cut = stream.len() / 2 + 3;
    let bodies = [
        ("genesis", 1, Body::Genesis(Genesis { source: "orders".into(), history: history() })),
        ("slot_start", 2, Body::SlotStart(SlotStart { position: position(0x0000_0016_B374_D848) })),
        ("history", 3, Body::History(history())),
        ("schema", 4, Body::Schema(schema())),
        ("transactions", 5, transactions()),
        ("part_first", 6, part(0, false, stream.slice(..cut))),
        ("part_last", 7, part(1, true, stream.slice(cut..))),
        ("progress", 8, progress()),
        (
            "message",
            9,
            Body::Message(Message {
                lsn: Lsn(0xFFFF_FFFF_0000_0001),
                prefix: "audit".into(),
                content: Bytes::from_static(&[0, 159, 146, 150]),
            }),
        ),
        ("empty_batch_of_a_table_without_columns", 10, transactions_of(&[0x03, 0x01, 0x07, 0x00])),
    ];
    let fence = Fence { epoch: Epoch(3), nonce: Nonce(u64::MAX), holder: "db1.example:4711".into(), version: "0.1.0".into() };
    let fence_header =
        RecordHeader { kind: RecordKind::Fence, number: RecordNumber(0), base: RecordNumber(0), ..record_header(0) };
    let mut all = vec![("fence", Record { header: fence_header, body: Body::Fence(fence) }.encode().to_vec())];
    all.extend(bodies.into_iter().map(|(name, number, body)| (name, record(number, body).to_vec())));
    all
}

fn record_header(number: u64) -> RecordHeader {
    RecordHeader {
        kind: RecordKind::Progress,
        stream: StreamId(0x8877_6655_4433_2211),
        number: RecordNumber(number),
        epoch: Epoch(3),
        nonce: Nonce(u64::MAX),
        base: RecordNumber(1),
        bytes_before: number * 1000,
        changes_before: number * 10,
        written_at_us: 1_795_478_400_000_000,
    }
}

fn record(number: u64, body: Body) -> Bytes {
    let header = RecordHeader { kind: body.kind(), ..record_header(number) };
    Record { header, body }.encode()
}

fn position(lsn: u64) -> Position {
    Position::Lsn(Lsn(lsn))
}

fn header(n: u64) -> TransactionHeader {
    TransactionHeader {
        xid: Xid(0x0000_0001_0000_02D0 + n),
        position: position(0x16_B374_D900 + n * 0x100),
        commit_lsn: Lsn(0x16_B374_D8D0 + n * 0x100),
        commit_time_us: 1_795_478_399_123_456,
        origin: (n == 1).then(|| "from_elsewhere".to_owned()),
    }
}

fn history() -> History {
    History {
        system_identifier: 7_300_000_000_000_000_001,
        timeline: 3,
        lineage: vec![(1, 0x0150_0000), (2, 0x16_0000_00A0)],
        database: "shop".into(),
        slot: "millstream_orders_5f3a".into(),
    }
}

fn schema() -> TableSchema {
    let column = |name: &str, type_name: &str, type_oid: u32, type_modifier: i32, key: bool| Column {
        name: name.into(),
        type_name: type_name.into(),
        type_oid,
        type_modifier,
        identity: key,
        primary_key: key,
    };
    TableSchema {
        id: SchemaId(7),
        table: TableName::new("public", "Möbel \"groß\""),
        source_oid: 16_384,
        identity: Identity::Default,
        columns: vec![
            column("id", "pg_catalog.int8", 20, -1, true),
            column("name", "pg_catalog.varchar", 1043, 104, false),
            column("mood", "public.mood", 16_390, -1, false),
            column("tags", "pg_catalog._text", 1009, -1, false),
        ],
    }
}

fn row(cells: [Cell<'_>; 4]) -> Row {
    cells.into_iter().collect()
}

/// Every kind of change, image and cell.
fn changes() -> Vec<Change> {
    let table = SchemaId(7);
    let long = "x".repeat(126);
    let value = |text: &'static str| Cell::Value(text.as_bytes());
    let new = row([value("1"), value("Stuhl"), Cell::Null, value("{rot,\"a b\"}")]);
    let key = row([value("1"), Cell::Null, Cell::Null, Cell::Null]);
    let changed = row([value("300"), Cell::Value(long.as_bytes()), value(""), Cell::Unchanged]);
    vec![
        Change::Insert { table, new: new.clone() },
        Change::Update { table, old: None, new: changed.clone() },
        Change::Update { table, old: Some(OldImage::Key(key.clone())), new: changed.clone() },
        Change::Update { table, old: Some(OldImage::Full(new.clone())), new: changed },
        Change::Delete { table, old: OldImage::Key(key) },
        Change::Delete { table, old: OldImage::Full(new) },
        Change::Truncate { tables: vec![table, SchemaId(300)], cascade: true, restart_identity: false },
        Change::Message { prefix: "cache".into(), content: Bytes::from_static(b"flush") },
    ]
}

fn change_stream() -> Bytes {
    let (mut stream, mut scratch) = (BytesMut::new(), BytesMut::new());
    changes().iter().for_each(|change| write_change(change, &mut stream, &mut scratch));
    stream.freeze()
}

fn transactions() -> Body {
    let mut bytes = BytesMut::new();
    write_transaction(&header(0), 8, &change_stream(), &mut bytes);
    write_transaction(&header(1), 0, &[], &mut bytes);
    Body::Transactions(TransactionBatch { bytes: bytes.freeze() })
}

/// One transaction with this change stream.
fn transactions_of(stream: &[u8]) -> Body {
    let mut bytes = BytesMut::new();
    write_transaction(&header(2), 1, stream, &mut bytes);
    Body::Transactions(TransactionBatch { bytes: bytes.freeze() })
}

fn progress() -> Body {
    Body::Progress(Progress { position: position(0x17_0000_0000), source_time_us: 1_795_478_400_000_001, heartbeat: true })
}

/// Writes the checksum anew, as a later version would have.
fn resealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let header = usize::from(u16::from_le_bytes([bytes[6], bytes[7]]));
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..header - 4]), &bytes[header..]);
    bytes[header - 4..header].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn longer_header(record: &[u8]) -> Vec<u8> {
    let mut bytes = record[..76].to_vec();
    bytes.extend_from_slice(b"a later field...");
    bytes.extend_from_slice(&[0; 4]);
    bytes[6] = 96;
    bytes.extend_from_slice(&record[80..]);
    resealed(bytes)
}

/// A queue folder with two segments, trimmed into the first.
pub fn write_queue(folder: &Path) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let options = Options { segment_bytes: 1200, ..Options::default() };
        let queue: Arc<dyn Queue> = EmbeddedQueue::open_with(folder, options).unwrap();
        queue.create("main").await.unwrap();
        let mut writer = queue.writer("main").await.unwrap();
        for (_, bytes) in sound() {
            let ticket = writer.append(bytes.into()).await.unwrap();
            writer.durable_past(Ticket(ticket.0 - 1)).await.unwrap();
        }
        queue.trim("main", millstream::event::QueueOffset(1)).await.unwrap();
        queue.registry_put("main", "writer/3", Some(Bytes::from_static(br#"{"epoch":3,"base_offset":1}"#))).await.unwrap();
        drop(writer);
        // The next writer waits for the first to end.
        drop(queue.writer("main").await.unwrap());
        let bounds = queue.bounds("main").await.unwrap().unwrap();
        let mut reader = queue.reader("main", bounds.start).await.unwrap();
        let records = reader.read(1 << 20, std::time::Duration::from_secs(5)).await.unwrap();
        let found: Vec<_> = records
            .iter()
            .map(|r| serde_json::json!({"offset": r.offset.0, "record": super::describe::outcome(Record::decode(r.bytes.clone()))}))
            .collect();
        let described = serde_json::json!({
            "start": bounds.start.0,
            "end": bounds.end.0,
            "records": found,
            "registry": {"writer/3": "{\"epoch\":3,\"base_offset\":1}"},
        });
        std::fs::write(folder.join("main.json"), serde_json::to_string_pretty(&described).unwrap() + "\n").unwrap();
    });
    for lock in ["writer.lock", "registry.lock"] {
        std::fs::remove_file(folder.join("main").join(lock)).unwrap();
    }
}
