//! The repeated things inside messages: cells of a row, columns of a relation, tables of a truncate. Each is walked and checked once when its message is
//! decoded, so that iterating needs no errors.

use super::input::Input;
use super::message::ColumnDefinition;
use crate::error::Result;
use crate::event::Cell;

/// A row's cells, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TupleData<'a> {
    columns: u16,
    bytes: &'a [u8],
}

impl<'a> TupleData<'a> {
    /// Reads and checks one: `Int16` cells, each a kind, and for a text its length and bytes.
    pub(super) fn read(input: &mut Input<'a>) -> Result<Self> {
        let columns = input.u16()?;
        let start = input.rest();
        for _ in 0..columns {
            match input.u8()? {
                b't' => {
                    let length = input.u32()?;
                    input.take(length as usize)?;
                }
                b'n' | b'u' => {}
                b'b' => return Err(input.malformed("a binary value, which was not asked for")),
                other => return Err(input.malformed(&format!("a cell of unknown kind '{}'", other.escape_ascii()))),
            }
        }
        Ok(TupleData { columns, bytes: &start[..start.len() - input.rest().len()] })
    }

    /// Number of cells.
    #[must_use]
    pub fn len(self) -> usize {
        usize::from(self.columns)
    }

    /// True for a row of a table without columns.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.columns == 0
    }

    /// Size on the wire.
    #[must_use]
    pub fn byte_len(self) -> usize {
        self.bytes.len()
    }

    /// The cells in column order.
    #[must_use]
    pub fn cells(self) -> TupleCells<'a> {
        TupleCells { rest: self.bytes, left: self.columns }
    }
}

impl<'a> IntoIterator for TupleData<'a> {
    type Item = Cell<'a>;
    type IntoIter = TupleCells<'a>;

    fn into_iter(self) -> TupleCells<'a> {
        self.cells()
    }
}

/// Iterator over a row's cells.
#[derive(Clone, Debug)]
pub struct TupleCells<'a> {
    rest: &'a [u8],
    left: u16,
}

impl<'a> Iterator for TupleCells<'a> {
    type Item = Cell<'a>;

    // The bytes were checked when the message was decoded; `None` for what cannot be is only a second net.
    fn next(&mut self) -> Option<Cell<'a>> {
        self.left = self.left.checked_sub(1)?;
        let (&tag, rest) = self.rest.split_first()?;
        self.rest = rest;
        match tag {
            b'n' => Some(Cell::Null),
            b'u' => Some(Cell::Unchanged),
            _ => {
                let (length, rest) = self.rest.split_first_chunk()?;
                let (value, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
                self.rest = rest;
                Some(Cell::Value(value))
            }
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (usize::from(self.left), Some(usize::from(self.left)))
    }
}

impl ExactSizeIterator for TupleCells<'_> {}

/// A relation's columns, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns<'a> {
    bytes: &'a [u8],
    left: u16,
}

impl<'a> Columns<'a> {
    /// Reads and checks them: `Int16` columns.
    pub(super) fn read(input: &mut Input<'a>) -> Result<Self> {
        let left = input.u16()?;
        let start = input.rest();
        for _ in 0..left {
            column(input)?;
        }
        Ok(Self { bytes: &start[..start.len() - input.rest().len()], left })
    }

    /// Number of columns.
    #[must_use]
    pub fn count_columns(&self) -> usize {
        usize::from(self.left)
    }
}

impl<'a> Iterator for Columns<'a> {
    type Item = ColumnDefinition<'a>;

    fn next(&mut self) -> Option<ColumnDefinition<'a>> {
        self.left = self.left.checked_sub(1)?;
        let mut input = Input::new(self.bytes);
        let column = column(&mut input).ok()?;
        self.bytes = input.rest();
        Some(column)
    }
}

/// A list of `pg_class.oid`, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Oids<'a>(&'a [u8]);

impl<'a> Oids<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }
}

impl Iterator for Oids<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let (oid, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*oid))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.0.len() / 4, Some(self.0.len() / 4))
    }
}

impl ExactSizeIterator for Oids<'_> {}

fn column<'a>(input: &mut Input<'a>) -> Result<ColumnDefinition<'a>> {
    Ok(ColumnDefinition {
        key: input.flag()?,
        name: input.text()?,
        type_oid: input.u32()?,
        type_modifier: input.u32()?.cast_signed(),
    })
}
