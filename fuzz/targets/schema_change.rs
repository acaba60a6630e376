//! What the log says of a source's schema changes: JSON of any kind is read or refused, and the difference of two tables is worked out without a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use millstream::apply::ddl::{SchemaChange, diff, label_changes};

fuzz_target!(|bytes: &[u8]| {
    let Ok(change) = SchemaChange::parse(bytes) else { return };
    if let (Ok(Some(before)), Ok(Some(after))) = (change.before(), change.after()) {
        drop(diff(&before, &after));
        assert!(diff(&after, &after).is_empty());
    }
    if let Ok(labels) = change.labels() {
        drop(label_changes(&[], &labels.labels));
    }
});
