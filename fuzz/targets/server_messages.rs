//! The frames of PostgreSQL's protocol, before anything is trusted.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use millstream::postgres::frame::{Frame, data_row, row_description};

fuzz_target!(|bytes: &[u8]| {
    drop((row_description(bytes), data_row(bytes)));
    let mut buffer = BytesMut::from(bytes);
    let mut before = buffer.len();
    while let Ok(Some(frame)) = Frame::split(&mut buffer, 1 << 16) {
        drop(frame.unexpected("fuzzing").to_string());
        assert!(buffer.len() < before, "a frame takes bytes");
        before = buffer.len();
    }
});
