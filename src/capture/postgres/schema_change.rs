//! What the source says of its own schema changes: rows of `millstream.schema_change`, written by its event triggers
//! (`migrations/source_postgres`), as the JSON that the log holds.

use super::decode::{Relation, TupleData};
use super::relations::OUR_SCHEMA;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Cell;

const TABLE: &str = "schema_change";
/// The columns that travel, as the log's JSON names them, in its order.
const COLUMNS: [&str; 6] = ["kind", "relation", "tag", "before", "after", "note"];
/// Of those, the ones whose text is JSON as it stands: a number, or `jsonb`.
const RAW: [&str; 3] = ["relation", "before", "after"];

/// Where each of the columns stands in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SchemaChangeColumns([usize; COLUMNS.len()]);

impl SchemaChangeColumns {
    /// `None` for another table.
    #[must_use]
    pub fn of(relation: &Relation<'_>) -> Option<Self> {
        if (relation.namespace, relation.name) != (OUR_SCHEMA, TABLE) {
            return None;
        }
        let mut places = [0; COLUMNS.len()];
        for (place, name) in places.iter_mut().zip(COLUMNS) {
            *place = relation.columns.into_iter().position(|column| column.name == name)?;
        }
        Some(Self(places))
    }
}

/// A row as the log's JSON.
///
/// # Errors
/// [`ErrorKind::Malformed`] for a row that is not as the table is.
pub fn content(columns: SchemaChangeColumns, row: TupleData<'_>) -> Result<Vec<u8>> {
    let malformed = |what: &str| Error::new(ErrorKind::Malformed, format!("a row of {OUR_SCHEMA}.{TABLE}: {what}"));
    let cells: Vec<Cell<'_>> = row.cells().collect();
    let mut out = Vec::with_capacity(row.byte_len() + 80);
    for (index, (place, name)) in columns.0.into_iter().zip(COLUMNS).enumerate() {
        out.extend_from_slice(if index == 0 { b"{\"" } else { b",\"" });
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b"\":");
        match cells.get(place) {
            Some(Cell::Null) => out.extend_from_slice(b"null"),
            Some(Cell::Value(text)) if RAW.contains(&name) => out.extend_from_slice(text),
            Some(Cell::Value(text)) => {
                let text = std::str::from_utf8(text).map_err(|_| malformed("not UTF-8"))?;
                serde_json::to_writer(&mut out, text).map_err(|_| malformed("not text"))?;
            }
            _ => return Err(malformed(&format!("no value of {name}"))),
        }
    }
    out.push(b'}');
    Ok(out)
}
