//! The reading rules over records in any order, with any epoch: never a panic, and numbers come out contiguous.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use millstream::event::record::encode_frame;
use millstream::event::{
    Body, Epoch, Fence, Lsn, Nonce, Position, Progress, QueueOffset, RecordHeader, RecordKind, RecordNumber, StreamId,
};
use millstream::queue::StoredRecord;
use millstream::queue::log::{Entry, FenceFilter};

fuzz_target!(|steps: Vec<(u8, u8, u8, u8)>| {
    let mut filter = FenceFilter::new();
    let mut last: Option<u64> = None;
    for (at, (kind, number, epoch, nonce)) in steps.into_iter().take(200).enumerate() {
        let (epoch, nonce) = (Epoch(u64::from(epoch % 5)), Nonce(u64::from(nonce % 3)));
        let body = if kind % 4 == 0 {
            Body::Fence(Fence { epoch, nonce, holder: String::new(), version: String::new() })
        } else {
            Body::Progress(Progress { position: Position::Lsn(Lsn(at as u64)), source_time_us: 0, heartbeat: false })
        };
        let is_fence = body.kind() == RecordKind::Fence;
        let header = RecordHeader {
            kind: body.kind(),
            stream: StreamId(1),
            number: RecordNumber(if is_fence { 0 } else { u64::from(number) }),
            epoch,
            nonce,
            base: RecordNumber(u64::from(!is_fence)),
            bytes_before: 0,
            changes_before: 0,
            written_at_us: 0,
        };
        let mut payload = bytes::BytesMut::new();
        body.encode(&mut payload);
        let bytes: Bytes = encode_frame(&header, &payload);
        let mut out = Vec::new();
        if filter.judge(StoredRecord { offset: QueueOffset(at as u64), bytes }, &mut out).is_err() {
            return;
        }
        for entry in out {
            let Entry::Record(record) = entry else { continue };
            let number = record.record.header.number.0;
            if number == 0 {
                continue;
            }
            assert!(last.is_none_or(|last| number == last + 1), "after {last:?} came {number}");
            last = Some(number);
        }
    }
});
