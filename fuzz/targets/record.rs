//! A record's frame as it stands in a queue, and payloads of every kind behind a frame whose checksum holds.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use millstream::event::record::{decode_frame, encode_frame};
use millstream::event::{Body, Epoch, Nonce, Record, RecordHeader, RecordKind, RecordNumber, StreamId};

const KINDS: [RecordKind; 9] = [
    RecordKind::Fence,
    RecordKind::Genesis,
    RecordKind::SlotStart,
    RecordKind::History,
    RecordKind::Schema,
    RecordKind::Transactions,
    RecordKind::Part,
    RecordKind::Progress,
    RecordKind::Message,
];

fuzz_target!(|bytes: &[u8]| {
    let raw = Bytes::copy_from_slice(bytes);
    let Ok((header, payload)) = decode_frame(raw.clone()) else {
        // The checksum stops nearly everything; mend it, so that what lies behind is reached.
        return mended(raw);
    };
    check(header, &payload);
});

fn mended(raw: Bytes) {
    let header_bytes = encode_frame(&sample(), &[]);
    if raw.len() < 2 {
        return;
    }
    let mut header = sample();
    header.kind = KINDS[usize::from(raw[0]) % KINDS.len()];
    let frame = encode_frame(&header, &raw[1..]);
    assert!(frame.len() >= header_bytes.len());
    let (header, payload) = decode_frame(frame).expect("what was encoded decodes");
    check(header, &payload);
}

fn check(header: RecordHeader, payload: &Bytes) {
    let Ok(record) = Record::from_frame(header, payload.clone()) else { return };
    if let Body::Transactions(batch) = &record.body {
        for transaction in batch.iter() {
            let Ok(transaction) = transaction else { break };
            transaction.changes().for_each(drop);
        }
    }
    let again = Record::decode(record.encode()).expect("what was decoded encodes");
    assert_eq!(again, record);
}

fn sample() -> RecordHeader {
    RecordHeader {
        kind: RecordKind::Progress,
        stream: StreamId(1),
        number: RecordNumber(9),
        epoch: Epoch(1),
        nonce: Nonce(1),
        base: RecordNumber(3),
        bytes_before: 0,
        changes_before: 0,
        written_at_us: 0,
    }
}
