//! The queue of the schedules: stored records, and the oracle's verdict on each, made when it was appended.

use bytes::Bytes;

use crate::event::{Body, Epoch, Nonce, QueueOffset, Record, RecordHeader};
use crate::queue::StoredRecord;

/// splitmix64
pub fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A record and what the oracle says of it.
pub struct Judged {
    pub offset: QueueOffset,
    pub bytes: Bytes,
    pub body: Body,
    pub valid: bool,
}

/// One stream.
#[derive(Default)]
pub struct Stream {
    pub records: Vec<Judged>,
    /// Records before this index were trimmed.
    pub start: usize,
    in_force: Option<(Epoch, Nonce)>,
    next_offset: u64,
}

impl Stream {
    /// Appends, as a queue does: whoever it is. True when the oracle finds it valid.
    pub fn append(&mut self, random_state: &mut u64, header: RecordHeader, body: Body) -> QueueOffset {
        self.next_offset += 1 + random(random_state) % 3;
        let offset = QueueOffset(self.next_offset);
        let valid = match &body {
            Body::Fence(fence) => {
                let wins = self.in_force.is_none_or(|(epoch, _)| fence.epoch > epoch);
                if wins {
                    self.in_force = Some((fence.epoch, fence.nonce));
                    self.void_open_parts();
                }
                wins
            }
            _ => self.in_force == Some((header.epoch, header.nonce)),
        };
        let bytes = Record { header, body: body.clone() }.encode();
        self.records.push(Judged { offset, bytes, body, valid });
        offset
    }

    /// The parts at the end of what is valid, when the last of them is not there.
    fn void_open_parts(&mut self) {
        for record in self.records.iter_mut().rev() {
            match &record.body {
                Body::Part(part) if record.valid && part.last => return,
                Body::Part(_) => record.valid = false,
                Body::Fence(_) => {}
                _ if record.valid => return,
                _ => {}
            }
        }
    }

    pub fn end(&self) -> QueueOffset {
        QueueOffset(self.next_offset + 1)
    }

    /// What a reader gets that begins at an offset.
    pub fn from(&self, offset: QueueOffset) -> impl Iterator<Item = StoredRecord> + '_ {
        let index = self.records.partition_point(|r| r.offset < offset);
        assert!(index >= self.start, "the place was trimmed");
        self.records[index..].iter().map(|r| StoredRecord { offset: r.offset, bytes: r.bytes.clone() })
    }

    pub fn first(&self) -> QueueOffset {
        self.records.get(self.start).map_or(self.end(), |r| r.offset)
    }

    /// Positions of all transactions that are valid and whole, from an offset on, with the schema that each needs.
    pub fn transactions(&self, from: QueueOffset) -> Vec<(u64, u64)> {
        let mut found = Vec::new();
        for record in self.records.iter().filter(|r| r.valid && r.offset >= from) {
            match &record.body {
                Body::Transactions(batch) => {
                    found.extend(batch.iter().map(|t| t.unwrap().header).map(|h| (lsn(h.position), h.xid.0)));
                }
                Body::Part(part) if part.last => found.push((lsn(part.header.position), part.header.xid.0)),
                _ => {}
            }
        }
        found
    }
}

pub fn lsn(position: crate::event::Position) -> u64 {
    position.lsn().unwrap().0
}
