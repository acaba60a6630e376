//! Records, whole and damaged.

use bytes::Bytes;
use proptest::prelude::*;

use super::arbitrary::{bytes, record};
use crate::error::ErrorKind;
use crate::event::record::{HEADER_BYTES, RecordHeader, encode_frame};
use crate::event::{Body, Progress, Record, RecordNumber};

/// Writes the checksum anew, as a writer of another version would have.
fn resealed(mut bytes: Vec<u8>) -> Bytes {
    let header = usize::from(u16::from_le_bytes([bytes[6], bytes[7]]));
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..header - 4]), &bytes[header..]);
    bytes[header - 4..header].copy_from_slice(&crc.to_le_bytes());
    bytes.into()
}

proptest! {
    #[test]
    fn what_was_written_is_read(record in record()) {
        prop_assert_eq!(Record::decode(record.encode()).unwrap(), record);
    }

    #[test]
    fn a_flipped_bit_anywhere_is_corrupt(record in record(), place: prop::sample::Index, bit in 0..8_u32) {
        let mut bytes = record.encode().to_vec();
        let at = place.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert_eq!(Record::decode(bytes.into()).unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn a_cut_record_is_corrupt(record in record(), end: prop::sample::Index) {
        let bytes = record.encode();
        let cut = bytes.slice(..end.index(bytes.len()));
        prop_assert_eq!(Record::decode(cut).unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn random_payloads_are_no_panic(record in record(), payload in bytes(300), kind in 0..12_u8) {
        let mut bytes = encode_frame(&record.header, &payload).to_vec();
        bytes[3] = kind;
        if let Err(error) = Record::decode(resealed(bytes)) {
            prop_assert!(matches!(error.kind(), ErrorKind::Malformed | ErrorKind::TooNew), "{}", error);
        }
    }

    #[test]
    fn a_longer_header_of_a_later_writer_is_read(record in record(), more in bytes(40)) {
        let whole = record.encode();
        let mut bytes = whole[..HEADER_BYTES - 4].to_vec();
        bytes.extend_from_slice(&more);
        bytes.extend_from_slice(&[0; 4]);
        let header = bytes.len() as u16;
        bytes[6..8].copy_from_slice(&header.to_le_bytes());
        bytes.extend_from_slice(&whole[HEADER_BYTES..]);
        prop_assert_eq!(Record::decode(resealed(bytes)).unwrap(), record);
    }
}

fn some_record() -> Record {
    let body = Body::Progress(Progress { position: super::arbitrary_position(), source_time_us: 5, heartbeat: true });
    let header = RecordHeader {
        kind: body.kind(),
        stream: crate::event::StreamId(1),
        number: RecordNumber(7),
        epoch: crate::event::Epoch(2),
        nonce: crate::event::Nonce(3),
        base: RecordNumber(4),
        bytes_before: 5,
        changes_before: 6,
        written_at_us: 7,
    };
    Record { header, body }
}

#[test]
fn what_a_later_version_brings_is_too_new_and_not_corrupt() {
    let good = some_record().encode().to_vec();
    let change = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        Record::decode(resealed(bytes)).unwrap_err().kind()
    };
    assert_eq!(change(2, 2), ErrorKind::TooNew, "version");
    assert_eq!(change(3, 10), ErrorKind::TooNew, "kind");
    assert_eq!(change(4, 1), ErrorKind::TooNew, "flags");
    assert_eq!(change(HEADER_BYTES, 2), ErrorKind::TooNew, "kind of position");
    assert_eq!(change(2, 0), ErrorKind::Malformed, "there is no version 0");
}

#[test]
fn headers_that_cannot_be_are_malformed() {
    let decode = |change: fn(&mut RecordHeader)| {
        let mut record = some_record();
        change(&mut record.header);
        Record::decode(record.encode()).unwrap_err().kind()
    };
    assert_eq!(decode(|h| h.number = RecordNumber(0)), ErrorKind::Malformed);
    assert_eq!(decode(|h| h.base = RecordNumber(0)), ErrorKind::Malformed);
    assert_eq!(decode(|h| h.base = RecordNumber(8)), ErrorKind::Malformed, "a base behind the record");
}
