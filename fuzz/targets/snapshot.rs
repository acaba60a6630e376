//! The text of a source's snapshot, as the ledger gives it back: what is read says the same when it is written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use millstream::capture::snapshot::Snapshot;
use millstream::event::Xid;

fuzz_target!(|input: (&str, u64)| {
    let (text, xid) = input;
    let Ok(snapshot) = text.parse::<Snapshot>() else { return };
    let again: Snapshot = snapshot.to_string().parse().expect("its own text");
    assert_eq!(again, snapshot);
    assert_eq!(again.sees(Xid(xid)), snapshot.sees(Xid(xid)));
});
