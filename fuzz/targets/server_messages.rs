//! The frames of PostgreSQL's protocol, in pieces of any size, and the payloads that are read, before anything is trusted.
#![no_main]

use bytes::{Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;
use millstream::capture::postgres::stream::StreamMessage;
use millstream::postgres::ServerError;
use millstream::postgres::frame::{Frame, data_row, row_description};

fuzz_target!(|input: (u8, &[u8])| {
    let (piece, bytes) = input;
    drop((row_description(bytes), data_row(bytes), StreamMessage::decode(Bytes::copy_from_slice(bytes))));
    drop(ServerError::parse(bytes).map(|error| error.to_string()));
    let mut buffer = BytesMut::new();
    let mut taken = 0;
    for piece in bytes.chunks(usize::from(piece).max(1)) {
        buffer.extend_from_slice(piece);
        loop {
            match Frame::split(&mut buffer, 1 << 16) {
                Ok(Some(frame)) => taken += frame.payload.len() + 5,
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
    assert_eq!(taken + buffer.len(), bytes.len(), "no byte is lost between frames");
});
