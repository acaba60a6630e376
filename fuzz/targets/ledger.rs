//! What is read back from a replica's ledger and a stream's registry: JSON that others could have written.
#![no_main]

use std::collections::BTreeMap;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use millstream::capture::recover::WriterHint;
use millstream::event::Epoch;
use millstream::queue::ConsumerProgress;
use millstream::queue::log::Cursor;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(cursor) = serde_json::from_slice::<Cursor>(bytes) {
        let text = serde_json::to_vec(&cursor).expect("a cursor as JSON");
        assert_eq!(serde_json::from_slice::<Cursor>(&text).expect("its own JSON"), cursor);
    }
    if let Ok(progress) = serde_json::from_slice::<ConsumerProgress>(bytes) {
        let text = serde_json::to_vec(&progress).expect("progress as JSON");
        assert_eq!(serde_json::from_slice::<ConsumerProgress>(&text).expect("its own JSON"), progress);
    }
    let entry = |value: Vec<u8>| BTreeMap::from([(WriterHint::key(Epoch(1)), Bytes::from(value))]);
    if let Ok(hint) = WriterHint::newest(&entry(bytes.to_vec())) {
        let hint = hint.expect("the one entry");
        let text = serde_json::to_vec(&hint).expect("a hint as JSON");
        assert_eq!(WriterHint::newest(&entry(text)).expect("its own JSON"), Some(hint));
    }
});
