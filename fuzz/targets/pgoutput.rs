//! What a source's walsender may send: never a panic, and what decodes can be walked.
#![no_main]

use libfuzzer_sys::fuzz_target;
use millstream::capture::postgres::decode::{OldTuple, PgOutput, decode};

fuzz_target!(|input: (bool, &[u8])| {
    let (in_stream, bytes) = input;
    match decode(bytes, in_stream) {
        Ok(PgOutput::Insert { new, .. }) => assert_eq!(new.cells().count(), new.len()),
        Ok(PgOutput::Update { old, new, .. }) => {
            let old = old.map(OldTuple::tuple);
            assert_eq!(
                new.cells().count() + old.map_or(0, |old| old.cells().count()),
                new.len() + old.map_or(0, |old| old.len())
            );
        }
        Ok(PgOutput::Delete { old, .. }) => assert_eq!(old.tuple().cells().count(), old.tuple().len()),
        Ok(_) | Err(_) => {}
    }
});
