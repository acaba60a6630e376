//! Rows in COPY's text format, as a replica gets them: whatever is in a value, the server reads the same cells, and no more rows than were written (threat 2).
#![no_main]

use libfuzzer_sys::fuzz_target;
use millstream::event::Cell;
use millstream::replica::postgres::values::push_copy_row;

fuzz_target!(|rows: Vec<Vec<Option<Vec<u8>>>>| {
    // A row has a column; without one the format cannot say it.
    let rows: Vec<_> = rows.into_iter().filter(|row| !row.is_empty()).collect();
    let mut out = Vec::new();
    for row in &rows {
        push_copy_row(&mut out, row.iter().map(|cell| cell.as_deref().map_or(Cell::Null, Cell::Value)));
    }
    assert_eq!(read(&out), rows);
});

/// As PostgreSQL's `CopyReadLineText` and `CopyReadAttributesText` do (src/backend/commands/copyfromparse.c): lines end at a bare newline; a carriage return
/// that is bare would be an error; `\.` alone ends the data.
fn read(data: &[u8]) -> Vec<Vec<Option<Vec<u8>>>> {
    let mut rows = Vec::new();
    let mut row = Vec::new();
    let mut raw = Vec::new();
    let mut bytes = data.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\r' => panic!("a bare carriage return"),
            b'\\' => raw.extend([b'\\', bytes.next().expect("something behind a backslash")]),
            b'\t' => row.push(cell(&std::mem::take(&mut raw))),
            b'\n' => {
                assert!(!(row.is_empty() && raw == b"\\."), "an end of the data");
                row.push(cell(&std::mem::take(&mut raw)));
                rows.push(std::mem::take(&mut row));
            }
            other => raw.push(other),
        }
    }
    assert!(row.is_empty() && raw.is_empty(), "the last line has an end");
    rows
}

/// The null string is looked for before anything is unescaped.
fn cell(raw: &[u8]) -> Option<Vec<u8>> {
    if raw == b"\\N" {
        return None;
    }
    let mut value = Vec::new();
    let mut bytes = raw.iter().copied();
    while let Some(byte) = bytes.next() {
        value.push(match byte {
            b'\\' => match bytes.next().expect("something behind a backslash") {
                b't' => b'\t',
                b'n' => b'\n',
                b'r' => b'\r',
                b'b' => 8,
                b'f' => 12,
                b'v' => 11,
                digit @ (b'0'..=b'7' | b'x') => panic!("an escape that was not written: {digit}"),
                other => other,
            },
            other => other,
        });
    }
    Some(value)
}
