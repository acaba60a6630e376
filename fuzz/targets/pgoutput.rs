//! What a source's walsender may send: never a panic, and what decodes can be walked and written down as it is.
#![no_main]

use libfuzzer_sys::fuzz_target;
use millstream::capture::postgres::decode::{PgOutput, TupleData, decode};
use millstream::event::Row;

// The first byte says whether the message stands in a streamed block, so that seeds are plain messages behind it.
fuzz_target!(|input: &[u8]| {
    let Some((&in_stream, bytes)) = input.split_first() else { return };
    match decode(bytes, in_stream & 1 == 1) {
        Ok(PgOutput::Insert { new, .. }) => check(new),
        Ok(PgOutput::Update { old, new, .. }) => {
            check(new);
            old.into_iter().for_each(|old| check(old.tuple()));
        }
        Ok(PgOutput::Delete { old, .. }) => check(old.tuple()),
        Ok(PgOutput::Relation(relation)) => assert_eq!(relation.columns.count(), relation.columns.count_columns()),
        Ok(PgOutput::Truncate { relations, .. }) => assert_eq!(relations.count(), relations.len()),
        Ok(_) | Err(_) => {}
    }
});

/// What the log holds of a row is what the source said.
fn check(tuple: TupleData<'_>) {
    assert_eq!(tuple.cells().count(), tuple.len());
    let row: Row = tuple.cells().collect();
    assert!(row.iter().eq(tuple.cells()));
}
