//! A large transaction's change stream, cut anywhere: the same changes come out, or the same refusal.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use millstream::event::{Change, ChangeReader};

fuzz_target!(|input: (u16, &[u8])| {
    let (cut, bytes) = input;
    let whole = read(std::iter::once(Bytes::copy_from_slice(bytes)));
    let size = usize::from(cut).max(1);
    let pieces = read(bytes.chunks(size).map(Bytes::copy_from_slice));
    assert_eq!(whole.0, pieces.0, "cut every {size} bytes");
    assert_eq!(whole.1, pieces.1, "cut every {size} bytes");
});

/// The changes, and whether the stream ended well.
fn read(pieces: impl Iterator<Item = Bytes>) -> (Vec<Change>, bool) {
    let mut reader = ChangeReader::default();
    let mut changes = Vec::new();
    for piece in pieces {
        reader.push(piece);
        loop {
            match reader.next_change() {
                Ok(Some(change)) => changes.push(change),
                Ok(None) => break,
                Err(_) => return (changes, false),
            }
        }
    }
    (changes, reader.finish().is_ok())
}
