//! Writing changes straight from decoded cells, with no [`super::Row`] between: what capture does for every change.

use bytes::{BufMut, BytesMut};

use super::change::{DELETE, INSERT, MESSAGE, OLD_FULL, OLD_KEY, OLD_NONE, SCHEMA, TRUNCATE, UPDATE};
use super::schema::SchemaId;
use super::value::{Cell, put_cell};
use super::wire;

/// An old image that is still a sequence of cells.
#[derive(Clone, Copy, Debug)]
pub enum OldCells<C> {
    /// None came.
    None,
    /// Only identity columns mean something.
    Key(C),
    /// The whole row.
    Full(C),
}

/// Encodes one change after another into its own buffer; [`ChangeEncoder::bytes`] is the last one as it stands in a change
/// stream: varint length, then the change.
#[derive(Debug, Default)]
pub struct ChangeEncoder {
    /// Ten bytes of room for the length, then the change.
    buffer: BytesMut,
    start: usize,
}

/// Room kept before a change for its length: the longest varint.
const ROOM: usize = 10;

impl ChangeEncoder {
    /// The change encoded last, with its length before it.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    /// A row came.
    pub fn insert<'a, C: ExactSizeIterator<Item = Cell<'a>>>(&mut self, table: SchemaId, new: C) -> &[u8] {
        let out = self.begin(INSERT);
        wire::put_varint(out, u64::from(table.0));
        put_row(out, new);
        self.end()
    }

    /// A row changed.
    pub fn update<'a, C: ExactSizeIterator<Item = Cell<'a>>>(&mut self, table: SchemaId, old: OldCells<C>, new: C) -> &[u8] {
        let out = self.begin(UPDATE);
        wire::put_varint(out, u64::from(table.0));
        put_old(out, old);
        put_row(out, new);
        self.end()
    }

    /// A row went. A delete has an old image; [`OldCells::None`] makes a change that no reader accepts.
    pub fn delete<'a, C: ExactSizeIterator<Item = Cell<'a>>>(&mut self, table: SchemaId, old: OldCells<C>) -> &[u8] {
        let out = self.begin(DELETE);
        wire::put_varint(out, u64::from(table.0));
        put_old(out, old);
        self.end()
    }

    /// Tables were emptied together.
    pub fn truncate(&mut self, tables: &[SchemaId], cascade: bool, restart_identity: bool) -> &[u8] {
        let out = self.begin(TRUNCATE);
        out.put_u8(u8::from(cascade) | u8::from(restart_identity) << 1);
        wire::put_varint(out, tables.len() as u64);
        tables.iter().for_each(|table| wire::put_varint(out, u64::from(table.0)));
        self.end()
    }

    /// A transactional message of an application.
    pub fn message(&mut self, prefix: &str, content: &[u8]) -> &[u8] {
        let out = self.begin(MESSAGE);
        wire::put_text(out, prefix);
        out.put_slice(content);
        self.end()
    }

    /// The source's own word on a change of its schema.
    pub fn schema(&mut self, content: &[u8]) -> &[u8] {
        let out = self.begin(SCHEMA);
        out.put_slice(content);
        self.end()
    }

    fn begin(&mut self, kind: u8) -> &mut BytesMut {
        // A huge change must not pin its memory for ever.
        if self.buffer.capacity() > 4 << 20 {
            self.buffer = BytesMut::new();
        }
        self.buffer.clear();
        self.buffer.put_bytes(0, ROOM);
        self.buffer.put_u8(kind);
        &mut self.buffer
    }

    fn end(&mut self) -> &[u8] {
        let mut length = (self.buffer.len() - ROOM) as u64;
        let mut prefix = [0_u8; ROOM];
        let mut used = 0;
        loop {
            let low = (length & 0x7F) as u8;
            length >>= 7;
            prefix[used] = if length == 0 { low } else { low | 0x80 };
            used += 1;
            if length == 0 {
                break;
            }
        }
        self.start = ROOM - used;
        self.buffer[self.start..ROOM].copy_from_slice(&prefix[..used]);
        self.bytes()
    }
}

fn put_row<'a, C: ExactSizeIterator<Item = Cell<'a>>>(out: &mut BytesMut, cells: C) {
    wire::put_varint(out, cells.len() as u64);
    cells.for_each(|cell| put_cell(out, cell));
}

fn put_old<'a, C: ExactSizeIterator<Item = Cell<'a>>>(out: &mut BytesMut, old: OldCells<C>) {
    match old {
        OldCells::None => out.put_u8(OLD_NONE),
        OldCells::Key(cells) => {
            out.put_u8(OLD_KEY);
            put_row(out, cells);
        }
        OldCells::Full(cells) => {
            out.put_u8(OLD_FULL);
            put_row(out, cells);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Change, OldImage, Row, write_change};
    use bytes::Bytes;

    #[test]
    fn writes_what_the_owned_changes_write() {
        let long = vec![b'x'; 70_000];
        let cells = [Cell::Null, Cell::Unchanged, Cell::Value(b"abc"), Cell::Value(&long)];
        let row: Row = cells.into_iter().collect();
        let table = SchemaId(300);
        let mut encoder = ChangeEncoder::default();
        let check = |change: Change, bytes: &[u8]| {
            let mut out = BytesMut::new();
            write_change(&change, &mut out, &mut BytesMut::new());
            assert_eq!(out, bytes, "{change:?}");
        };
        check(Change::Insert { table, new: row.clone() }, encoder.insert(table, cells.into_iter()));
        for (old, image) in [
            (None, OldCells::None),
            (Some(OldImage::Key(row.clone())), OldCells::Key(row.iter())),
            (Some(OldImage::Full(row.clone())), OldCells::Full(row.iter())),
        ] {
            check(Change::Update { table, old, new: row.clone() }, encoder.update(table, image, row.iter()));
        }
        check(Change::Delete { table, old: OldImage::Full(row.clone()) }, encoder.delete(table, OldCells::Full(row.iter())));
        let tables = vec![SchemaId(1), SchemaId(2000)];
        let truncate = Change::Truncate { tables: tables.clone(), cascade: true, restart_identity: false };
        check(truncate, encoder.truncate(&tables, true, false));
        let message = Change::Message { prefix: "p".into(), content: Bytes::from_static(b"c") };
        check(message, encoder.message("p", b"c"));
        check(Change::Schema { content: Bytes::from_static(b"{}") }, encoder.schema(b"{}"));
    }
}
