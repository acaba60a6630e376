//! Change streams, whole and cut.

use std::time::Instant;

use bytes::{Bytes, BytesMut};
use proptest::collection::vec;
use proptest::prelude::*;

use super::arbitrary::{batch, bytes, change, stream};
use crate::error::{Error, ErrorKind};
use crate::event::{Cell, Change, ChangeReader, Row, SchemaId, TransactionBatch, write_change};

fn read(pieces: impl IntoIterator<Item = Bytes>) -> Result<Vec<Change>, Error> {
    let mut reader = ChangeReader::default();
    let mut found = Vec::new();
    for piece in pieces {
        reader.push(piece);
        while let Some(change) = reader.next_change()? {
            found.push(change);
        }
    }
    reader.finish()?;
    Ok(found)
}

fn expected_errors(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Malformed | ErrorKind::TooNew)
}

proptest! {
    #[test]
    fn a_stream_cut_anywhere_reads_the_same(changes in vec(change(), 0..8), cuts in vec(any::<prop::sample::Index>(), 0..12)) {
        let whole = stream(&changes);
        let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(whole.len() + 1)).chain([0, whole.len()]).collect();
        places.sort_unstable();
        let pieces = places.windows(2).map(|pair| whole.slice(pair[0]..pair[1]));
        prop_assert_eq!(read(pieces).unwrap(), changes.clone());
        let bytes = (0..whole.len()).map(|at| whole.slice(at..=at));
        prop_assert_eq!(read(bytes).unwrap(), changes);
    }

    #[test]
    fn a_stream_that_ends_early_is_malformed(changes in vec(change(), 1..4), end: prop::sample::Index) {
        let whole = stream(&changes);
        let cut = whole.slice(..end.index(whole.len()));
        match read([cut.clone()]) {
            // Cut between two changes: the count, which the record holds, tells.
            Ok(found) => prop_assert_eq!(&found[..], &changes[..found.len()]),
            Err(error) => prop_assert_eq!(error.kind(), ErrorKind::Malformed),
        }
    }

    #[test]
    fn random_bytes_are_no_panic(noise in bytes(400), cut: prop::sample::Index) {
        let at = cut.index(noise.len() + 1);
        if let Err(error) = read([noise.slice(..at), noise.slice(at..)]) {
            prop_assert!(expected_errors(&error), "{}", error);
        }
        for transaction in (TransactionBatch { bytes: noise }).iter() {
            match transaction {
                Ok(transaction) => transaction.changes().filter_map(Result::err).for_each(|error| assert!(expected_errors(&error))),
                Err(error) => prop_assert!(expected_errors(&error), "{}", error),
            }
        }
    }

    #[test]
    fn a_flipped_byte_in_a_batch_is_no_panic(batch in batch(), place: prop::sample::Index, flip in 1..=255_u8) {
        let mut damaged = batch.bytes.to_vec();
        if !damaged.is_empty() {
            let at = place.index(damaged.len());
            damaged[at] ^= flip;
        }
        for transaction in (TransactionBatch { bytes: damaged.into() }).iter().flatten() {
            for change in transaction.changes() {
                match change {
                    // Every row that was read can be walked.
                    Ok(Change::Insert { new, .. }) => prop_assert_eq!(new.iter().count(), new.len()),
                    Ok(_) => {}
                    Err(error) => prop_assert!(expected_errors(&error), "{}", error),
                }
            }
        }
    }
}

#[test]
fn a_length_that_is_not_there_allocates_nothing() {
    // A change of 4 GiB, announced by five bytes.
    let mut reader = ChangeReader::default();
    reader.push(Bytes::from_static(&[0x80, 0x80, 0x80, 0x80, 0x10, 1]));
    assert!(matches!(reader.next_change(), Ok(None)));
    assert_eq!(reader.pending_bytes(), 6);
    // One beyond what is allowed, and one that is no number.
    for bad in [&[0x81, 0x80, 0x80, 0x80, 0x10][..], &[0xFF; 10][..], &[0][..]] {
        assert_eq!(read([Bytes::copy_from_slice(bad)]).unwrap_err().kind(), ErrorKind::Malformed);
    }
    // A truncate of 2^60 tables, a row of 65535 cells that are not there.
    for bad in [&[4, 0, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10][..], &[1, 7, 0xFF, 0xFF, 3][..]] {
        let mut framed = vec![bad.len() as u8];
        framed.extend_from_slice(bad);
        assert_eq!(read([Bytes::from(framed)]).unwrap_err().kind(), ErrorKind::Malformed);
    }
}

#[test]
fn a_huge_change_in_small_pieces_costs_linear_time() {
    let value = vec![b'x'; 64 << 20];
    let row: Row = [Cell::Value(&value)].into_iter().collect();
    let (mut whole, mut scratch) = (BytesMut::new(), BytesMut::new());
    write_change(&Change::Insert { table: SchemaId(1), new: row }, &mut whole, &mut scratch);
    let whole = whole.freeze();
    let pieces = whole.chunks(1000).map(Bytes::copy_from_slice).collect::<Vec<_>>();
    let began = Instant::now();
    assert_eq!(read(pieces).unwrap().len(), 1);
    // Quadratic copying moves 2 TB here; linear 64 MiB a few times.
    assert!(began.elapsed().as_secs() < 20, "{:?}", began.elapsed());
}
