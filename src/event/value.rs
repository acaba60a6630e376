//! Rows as the log holds them: a slice of encoded cells, read in place.
//!
//! A cell is a varint `v` and bytes: 0 is NULL, 1 is *unchanged* (a TOAST value that the source did not send because the
//! UPDATE did not touch it), otherwise a value of `v - 2` bytes follows. Values are the source's canonical text
//! (PostgreSQL: the type's output function under `DateStyle=ISO`, `IntervalStyle=postgres`, `extra_float_digits=3`, `bytea_output=hex`, UTF-8).

use bytes::{BufMut, Bytes, BytesMut};

use super::wire::{self, Input};
use crate::error::Result;

/// One cell of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cell<'a> {
    /// SQL NULL.
    Null,
    /// Not sent by the source, because unchanged. Never NULL.
    Unchanged,
    /// The value's canonical text.
    Value(&'a [u8]),
}

/// A row: encoded cells, shared with the record that they came in. Made only by [`RowBuilder`] and by decoding, so every
/// row that exists is well formed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Row {
    columns: u16,
    cells: Bytes,
}

impl Row {
    /// Number of cells.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::from(self.columns)
    }

    /// True for a row of a table without columns.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.columns == 0
    }

    /// Encoded size in bytes.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        self.cells.len()
    }

    /// The cells in column order.
    #[must_use]
    pub fn iter(&self) -> Cells<'_> {
        Cells { rest: &self.cells, left: self.columns }
    }

    /// Reads a row: varint count of cells, then the cells.
    pub(super) fn decode(input: &mut Input) -> Result<Self> {
        let columns = u16::try_from(input.varint()?).map_err(|_| input.malformed("a row of more than 65535 cells"))?;
        let start = input.clone();
        for _ in 0..columns {
            match input.varint()? {
                0 | 1 => {}
                n => input.skip(n - 2)?,
            }
        }
        Ok(Self { columns, cells: start.slice_to(input) })
    }

    pub(super) fn encode(&self, out: &mut BytesMut) {
        wire::put_varint(out, u64::from(self.columns));
        out.put_slice(&self.cells);
    }
}

impl<'a> IntoIterator for &'a Row {
    type Item = Cell<'a>;
    type IntoIter = Cells<'a>;

    fn into_iter(self) -> Cells<'a> {
        self.iter()
    }
}

/// Iterator over a row's cells.
#[derive(Clone, Debug)]
pub struct Cells<'a> {
    rest: &'a [u8],
    left: u16,
}

impl<'a> Iterator for Cells<'a> {
    type Item = Cell<'a>;

    fn next(&mut self) -> Option<Cell<'a>> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        let (tag, used) = wire::split_varint(self.rest)?;
        let rest = &self.rest[used..];
        let length = usize::try_from(tag.saturating_sub(2)).ok()?;
        let (value, rest) = rest.split_at_checked(length)?;
        self.rest = rest;
        Some(match tag {
            0 => Cell::Null,
            1 => Cell::Unchanged,
            _ => Cell::Value(value),
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (usize::from(self.left), Some(usize::from(self.left)))
    }
}

impl ExactSizeIterator for Cells<'_> {}

/// Builds rows into one growing buffer, so that a batch costs few allocations.
#[derive(Debug, Default)]
pub struct RowBuilder {
    cells: BytesMut,
    columns: u16,
}

impl RowBuilder {
    /// Appends a cell to the row in hand.
    pub fn push(&mut self, cell: Cell<'_>) {
        self.columns += 1;
        put_cell(&mut self.cells, cell);
    }

    /// Ends the row in hand.
    pub fn finish(&mut self) -> Row {
        Row { columns: std::mem::take(&mut self.columns), cells: self.cells.split().freeze() }
    }
}

impl<'a> FromIterator<Cell<'a>> for Row {
    fn from_iter<T: IntoIterator<Item = Cell<'a>>>(cells: T) -> Self {
        let mut builder = RowBuilder::default();
        cells.into_iter().for_each(|cell| builder.push(cell));
        builder.finish()
    }
}

/// Appends one encoded cell; capture uses it to write rows straight into a record.
pub fn put_cell(out: &mut BytesMut, cell: Cell<'_>) {
    match cell {
        Cell::Null => wire::put_varint(out, 0),
        Cell::Unchanged => wire::put_varint(out, 1),
        Cell::Value(value) => {
            wire::put_varint(out, value.len() as u64 + 2);
            out.put_slice(value);
        }
    }
}
