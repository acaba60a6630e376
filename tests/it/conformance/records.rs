//! Makes the records that a capture would append.

use bytes::{Bytes, BytesMut};
use millstream::event::{
    Body, Epoch, Fence, Lsn, Nonce, Part, Position, Progress, Record, RecordHeader, RecordKind, RecordNumber, SchemaId, StreamId,
    TableName, TableSchema, TransactionBatch, TransactionHeader, Xid, write_transaction,
};

/// A writer's state: what the next record's header says.
#[derive(Clone, Debug)]
pub struct Scribe {
    pub header: RecordHeader,
}

impl Scribe {
    /// Of a new stream.
    pub fn new(stream: u64) -> Self {
        let header = RecordHeader {
            kind: RecordKind::Progress,
            stream: StreamId(stream),
            number: RecordNumber(1),
            epoch: Epoch(0),
            nonce: Nonce(0),
            base: RecordNumber(1),
            bytes_before: 0,
            changes_before: 0,
            written_at_us: 1_700_000_000_000_000,
        };
        Self { header }
    }

    /// Claims the stream; goes on with this fence's records.
    pub fn fence(&mut self, epoch: u64, nonce: u64) -> Bytes {
        (self.header.epoch, self.header.nonce) = (Epoch(epoch), Nonce(nonce));
        let fence = Fence { epoch: Epoch(epoch), nonce: Nonce(nonce), holder: "a test".into(), version: "0".into() };
        let header = RecordHeader { kind: RecordKind::Fence, number: RecordNumber(0), base: RecordNumber(0), ..self.header };
        Record { header, body: Body::Fence(fence) }.encode()
    }

    /// The next record.
    pub fn record(&mut self, body: Body) -> Bytes {
        self.header.kind = body.kind();
        let bytes = Record { header: self.header, body }.encode();
        self.header.number = self.header.number.next();
        self.header.bytes_before += bytes.len() as u64;
        bytes
    }

    /// A schema.
    pub fn schema(&mut self, id: u32) -> Bytes {
        self.record(Body::Schema(TableSchema {
            id: SchemaId(id),
            table: TableName::new("public", format!("t{id}")),
            source_oid: 10_000 + id,
            identity: millstream::event::Identity::Default,
            columns: Vec::new(),
        }))
    }

    /// An idle stream's progress.
    pub fn progress(&mut self, lsn: u64) -> Bytes {
        self.record(Body::Progress(Progress { position: position(lsn), source_time_us: 0, heartbeat: true }))
    }

    /// A batch of empty transactions that end at these positions.
    pub fn transactions(&mut self, lsns: &[u64]) -> Bytes {
        let mut bytes = BytesMut::new();
        lsns.iter().for_each(|lsn| write_transaction(&transaction(*lsn), 0, &[], &mut bytes));
        self.record(Body::Transactions(TransactionBatch { bytes: bytes.freeze() }))
    }

    /// A piece of a large transaction.
    pub fn part(&mut self, lsn: u64, index: u32, last: bool) -> Bytes {
        let bytes = Bytes::from_static(b"piece");
        self.record(Body::Part(Part { header: transaction(lsn), index, last, change_count: 1, total_bytes: 10, bytes }))
    }
}

/// An LSN as a position.
pub fn position(lsn: u64) -> Position {
    Position::Lsn(Lsn(lsn))
}

fn transaction(lsn: u64) -> TransactionHeader {
    TransactionHeader {
        xid: Xid(lsn),
        position: position(lsn),
        commit_lsn: Lsn(lsn.saturating_sub(1)),
        commit_time_us: 0,
        origin: None,
    }
}
