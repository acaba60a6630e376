//! How cells travel to PostgreSQL: whole columns as one `text[]` parameter each, single values as `text`, or COPY's text format.
//!
//! Values are only ever parameters or COPY data, never SQL (threat 2). Their text is the source's own output; the replica's
//! input functions read it again.

use sqlx::Type;
use sqlx::encode::{Encode, IsNull};
use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArgumentBuffer, PgTypeInfo, Postgres};

use crate::apply::rows::RowSet;
use crate::event::Cell;

/// `text` and `text[]` (src/include/catalog/pg_type.dat).
const TEXT: u32 = 25;
const TEXT_ARRAY: u32 = 1009;

/// One cell of each of some rows, as an array parameter. Written straight into the message.
pub struct TextColumn<'r, 'a> {
    /// The rows.
    pub rows: &'r RowSet<'a>,
    /// Which of them.
    pub pick: &'r [u32],
    /// Which cell.
    pub cell: usize,
    /// A mask tells of cells that are unchanged; they are NULL here.
    pub masked: bool,
}

/// Says of each of some rows whether a cell is known, as an array parameter.
pub struct Mask<'r, 'a> {
    /// The rows.
    pub rows: &'r RowSet<'a>,
    /// Which of them.
    pub pick: &'r [u32],
    /// Which cell.
    pub cell: usize,
}

impl Type<Postgres> for Mask<'_, '_> {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(Oid(TEXT_ARRAY))
    }
}

impl<'q> Encode<'q, Postgres> for Mask<'_, '_> {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        let known = self.pick.iter().map(|&index| self.rows.row(index)[self.cell] != Cell::Unchanged);
        put_array(buffer, known.map(|known| Cell::Value(if known { b"t" } else { b"f" })))
    }
}

impl Type<Postgres> for TextColumn<'_, '_> {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(Oid(TEXT_ARRAY))
    }
}

impl<'q> Encode<'q, Postgres> for TextColumn<'_, '_> {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        let cells = self.pick.iter().map(|&index| self.rows.row(index)[self.cell]);
        put_array(buffer, cells.map(|cell| if self.masked && cell == Cell::Unchanged { Cell::Null } else { cell }))
    }
}

/// The binary form of an array (src/backend/utils/adt/arrayfuncs.c, `array_recv`): dimensions, a NULL flag, the element type, length, lower
/// bound, then each element with its length.
fn put_array<'a>(buffer: &mut PgArgumentBuffer, cells: impl ExactSizeIterator<Item = Cell<'a>>) -> Result<IsNull, BoxDynError> {
    buffer.extend_from_slice(&1_i32.to_be_bytes());
    buffer.extend_from_slice(&1_i32.to_be_bytes());
    buffer.extend_from_slice(&TEXT.to_be_bytes());
    buffer.extend_from_slice(&i32::try_from(cells.len())?.to_be_bytes());
    buffer.extend_from_slice(&1_i32.to_be_bytes());
    for cell in cells {
        match cell {
            Cell::Null => buffer.extend_from_slice(&(-1_i32).to_be_bytes()),
            Cell::Value(value) => {
                buffer.extend_from_slice(&i32::try_from(value.len())?.to_be_bytes());
                buffer.extend_from_slice(value);
            }
            Cell::Unchanged => return Err("an unchanged cell among values to write".into()),
        }
    }
    Ok(IsNull::No)
}

/// One cell as a parameter.
pub struct TextValue<'a>(pub Cell<'a>);

impl Type<Postgres> for TextValue<'_> {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(Oid(TEXT))
    }
}

impl<'q> Encode<'q, Postgres> for TextValue<'_> {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        match self.0 {
            Cell::Null => Ok(IsNull::Yes),
            Cell::Value(value) => {
                buffer.extend_from_slice(value);
                Ok(IsNull::No)
            }
            Cell::Unchanged => Err("an unchanged cell among values to write".into()),
        }
    }
}

/// Appends a row in COPY's text format (PostgreSQL documentation, COPY, "Text Format").
pub fn push_copy_row<'a>(out: &mut Vec<u8>, cells: impl Iterator<Item = Cell<'a>>) {
    for (index, cell) in cells.enumerate() {
        if index > 0 {
            out.push(b'\t');
        }
        match cell {
            Cell::Value(value) => push_escaped(out, value),
            Cell::Null | Cell::Unchanged => out.extend_from_slice(b"\\N"),
        }
    }
    out.push(b'\n');
}

fn push_escaped(out: &mut Vec<u8>, value: &[u8]) {
    let special = |byte: &u8| matches!(byte, b'\\' | b'\t' | b'\n' | b'\r');
    let mut rest = value;
    while let Some(at) = rest.iter().position(special) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(match rest[at] {
            b'\t' => b"\\t",
            b'\n' => b"\\n",
            b'\r' => b"\\r",
            _ => b"\\\\",
        });
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn copy_text_escapes_what_separates() {
        let mut out = Vec::new();
        let cells = [Cell::Value(b"a\tb\\N\r\n"), Cell::Null, Cell::Value(b""), Cell::Value(b"\\N")];
        push_copy_row(&mut out, cells.into_iter());
        assert_eq!(out, b"a\\tb\\\\N\\r\\n\t\\N\t\t\\\\N\n");
    }

    /// A cell as the server reads it: the null string first, then what a backslash stands before.
    fn read(raw: &[u8]) -> Option<Vec<u8>> {
        let mut bytes = raw.iter();
        let mut value = Vec::new();
        while let Some(byte) = bytes.next() {
            value.push(match (byte, raw) {
                (_, b"\\N") => return None,
                (b'\\', _) => match bytes.next() {
                    Some(b't') => b'\t',
                    Some(b'n') => b'\n',
                    Some(b'r') => b'\r',
                    Some(b'\\') => b'\\',
                    other => panic!("an escape that is none: {other:?}"),
                },
                (other, _) => *other,
            });
        }
        Some(value)
    }

    proptest! {
        /// Threat 2. What separates rows and cells is never inside one, so that splitting alone gives them back.
        #[test]
        fn a_row_of_any_bytes_is_read_back_as_it_was(
            rows in vec(vec(proptest::option::of(vec(prop_oneof![any::<u8>(), proptest::sample::select(&b"\\\t\n\rN."[..])], 0..12)), 1..5), 0..5),
        ) {
            let mut out = Vec::new();
            for row in &rows {
                push_copy_row(&mut out, row.iter().map(|cell| cell.as_deref().map_or(Cell::Null, Cell::Value)));
            }
            prop_assert!(!out.contains(&b'\r'));
            let mut lines: Vec<&[u8]> = out.split(|byte| *byte == b'\n').collect();
            prop_assert_eq!(lines.pop(), Some(&b""[..]), "behind the last newline");
            let found: Vec<Vec<_>> = lines.into_iter().map(|line| line.split(|byte| *byte == b'\t').map(read).collect()).collect();
            prop_assert_eq!(found, rows);
        }
    }
}
