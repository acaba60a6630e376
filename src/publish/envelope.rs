//! Debezium's envelope (Debezium documentation, "PostgreSQL connector", "Data change events"), one JSON object a change.
//!
//! ```text
//! {"before":…,"after":…,"source":{…},"op":"c","ts_ms":…,"transaction":{…}}
//! ```
//!
//! Where it says more or less than Debezium's, and why:
//!
//! - Old images hold the columns that the source sent (the key, under REPLICA IDENTITY DEFAULT) and no others: a `null` for
//!   a column that is not known would be a lie.
//! - An UPDATE that changes its key is one `u` with the old key in `before`, not a `d` and a `c`.
//! - `source.lsn` is the commit record's, as a number, the same for every change of a transaction; `source.position` is the
//!   transaction's end as text, which `millstream log tail --from` takes.
//! - A schema change is an event of its own with `op` `s`: `schema_change` holds the source's words, which Debezium has only for MySQL.
//! - Integers, oids and booleans are JSON's own; every other type is a string in PostgreSQL's text form.

use serde::ser::{Serialize, SerializeMap, SerializeStruct, Serializer};

use crate::event::{Cell, Change, Column, OldImage, Row, TableSchema, TransactionHeader};

/// Stands for a value that the source did not send because the UPDATE did not touch it (TOAST).
pub const UNAVAILABLE: &str = "__debezium_unavailable_value";

/// Where a change comes from.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// Name of the source, Debezium's `topic.prefix`.
    pub name: &'a str,
    /// Database.
    pub database: &'a str,
    /// The change's transaction.
    pub transaction: &'a TransactionHeader,
    /// Place of the change in its transaction, from 1.
    pub order: u64,
    /// When the log was written, milliseconds since 1970-01-01 UTC.
    pub written_ms: i64,
}

/// What happened.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// To a row, or to a whole table.
    Row {
        /// The table's version.
        schema: &'a TableSchema,
        /// An insert, update or delete; a truncate of this table.
        change: &'a Change,
    },
    /// A logical message.
    Message {
        /// Who it is for.
        prefix: &'a str,
        /// What it says.
        content: &'a [u8],
    },
    /// The source's word on a change of its schema.
    SchemaChange {
        /// JSON.
        content: &'a [u8],
    },
}

/// One event, ready to be written.
#[derive(Clone, Copy, Debug)]
pub struct Envelope<'a> {
    /// Where from.
    pub origin: Origin<'a>,
    /// What.
    pub event: Event<'a>,
}

impl Envelope<'_> {
    /// Debezium's letter: create, update, delete, truncate, message.
    #[must_use]
    pub fn op(&self) -> &'static str {
        match self.event {
            Event::Message { .. } => "m",
            Event::SchemaChange { .. } => "s",
            Event::Row { change, .. } => match change {
                Change::Insert { .. } => "c",
                Change::Update { .. } => "u",
                Change::Delete { .. } => "d",
                Change::Truncate { .. } => "t",
                Change::Message { .. } => "m",
                Change::Schema { .. } => "s",
            },
        }
    }
}

impl Serialize for Envelope<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_struct("Envelope", 6)?;
        match self.event {
            Event::Row { schema, change } => {
                let (before, after) = images(schema, change);
                object.serialize_field("before", &before)?;
                object.serialize_field("after", &after)?;
            }
            Event::Message { prefix, content } => {
                object.serialize_field("message", &Logical { prefix, content: base64(content) })?;
            }
            Event::SchemaChange { content } => {
                let said: serde_json::Value = serde_json::from_slice(content).map_err(serde::ser::Error::custom)?;
                object.serialize_field("schema_change", &said)?;
            }
        }
        object.serialize_field("source", &Source { origin: &self.origin, event: &self.event })?;
        object.serialize_field("op", self.op())?;
        object.serialize_field("ts_ms", &self.origin.written_ms)?;
        object.serialize_field("transaction", &Block { origin: &self.origin })?;
        object.end()
    }
}

fn images<'a>(schema: &'a TableSchema, change: &'a Change) -> (Option<Image<'a>>, Option<Image<'a>>) {
    let whole = |row| Some(Image { schema, row, key_only: false });
    let old = |old: &'a OldImage| match old {
        OldImage::Full(row) => whole(row),
        OldImage::Key(row) => Some(Image { schema, row, key_only: true }),
    };
    match change {
        Change::Insert { new, .. } => (None, whole(new)),
        Change::Update { old: before, new, .. } => (before.as_ref().and_then(old), whole(new)),
        Change::Delete { old: before, .. } => (old(before), None),
        Change::Truncate { .. } | Change::Message { .. } | Change::Schema { .. } => (None, None),
    }
}

/// A row with its columns' names.
struct Image<'a> {
    schema: &'a TableSchema,
    row: &'a Row,
    key_only: bool,
}

impl Serialize for Image<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_map(None)?;
        for (column, cell) in self.schema.columns.iter().zip(self.row) {
            if !self.key_only || column.identity {
                object.serialize_entry(&column.name, &Value { column, cell })?;
            }
        }
        object.end()
    }
}

struct Value<'a> {
    column: &'a Column,
    cell: Cell<'a>,
}

/// `pg_type.oid` of the types that JSON has (PostgreSQL, `pg_type.dat`).
const BOOL: u32 = 16;
const INTEGERS: [u32; 4] = [20, 21, 23, 26];

impl Serialize for Value<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = match self.cell {
            Cell::Null => return serializer.serialize_none(),
            Cell::Unchanged => return serializer.serialize_str(UNAVAILABLE),
            Cell::Value(bytes) => String::from_utf8_lossy(bytes),
        };
        match (self.column.type_oid, text.as_ref()) {
            (BOOL, "t") => serializer.serialize_bool(true),
            (BOOL, "f") => serializer.serialize_bool(false),
            (oid, text) if INTEGERS.contains(&oid) => match text.parse::<i64>() {
                Ok(number) => serializer.serialize_i64(number),
                Err(_) => serializer.serialize_str(text),
            },
            (_, text) => serializer.serialize_str(text),
        }
    }
}

struct Logical<'a> {
    prefix: &'a str,
    content: String,
}

impl Serialize for Logical<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_struct("Message", 2)?;
        object.serialize_field("prefix", self.prefix)?;
        object.serialize_field("content", &self.content)?;
        object.end()
    }
}

struct Source<'a> {
    origin: &'a Origin<'a>,
    event: &'a Event<'a>,
}

impl Serialize for Source<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Origin { name, database, transaction, .. } = self.origin;
        let (schema, table) = match self.event {
            Event::Row { schema, .. } => (schema.table.schema.as_str(), schema.table.name.as_str()),
            Event::Message { .. } | Event::SchemaChange { .. } => ("", ""),
        };
        let mut object = serializer.serialize_struct("Source", 12)?;
        object.serialize_field("version", env!("CARGO_PKG_VERSION"))?;
        object.serialize_field("connector", "postgresql")?;
        object.serialize_field("name", name)?;
        object.serialize_field("ts_ms", &transaction.commit_time_us.div_euclid(1000))?;
        object.serialize_field("ts_us", &transaction.commit_time_us)?;
        object.serialize_field("snapshot", "false")?;
        object.serialize_field("db", database)?;
        object.serialize_field("schema", schema)?;
        object.serialize_field("table", table)?;
        object.serialize_field("txId", &transaction.xid.0)?;
        object.serialize_field("lsn", &transaction.commit_lsn.0)?;
        object.serialize_field("position", &transaction.position)?;
        if let Some(origin) = &transaction.origin {
            object.serialize_field("origin", origin)?;
        }
        object.end()
    }
}

struct Block<'a> {
    origin: &'a Origin<'a>,
}

impl Serialize for Block<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let transaction = self.origin.transaction;
        let mut object = serializer.serialize_struct("Transaction", 2)?;
        object.serialize_field("id", &format!("{}:{}", transaction.xid, transaction.commit_lsn.0))?;
        object.serialize_field("total_order", &self.origin.order)?;
        object.end()
    }
}

/// RFC 4648, section 4: logical messages may hold any bytes.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0_u32, |group, &byte| group << 8 | u32::from(byte)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let sextet = (group >> (18 - 6 * i)) & 0x3F;
            out.push(if i <= chunk.len() { char::from(ALPHABET[sextet as usize]) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Identity, Lsn, Position, SchemaId, TableName, Xid};

    fn schema() -> TableSchema {
        let column = |name: &str, type_oid, identity| Column {
            name: name.to_owned(),
            type_name: String::new(),
            type_oid,
            type_modifier: -1,
            identity,
            primary_key: identity,
        };
        TableSchema {
            id: SchemaId(1),
            table: TableName::new("public", "orders"),
            source_oid: 1,
            identity: Identity::Default,
            columns: vec![
                column("id", 20, true),
                column("paid", 16, false),
                column("note", 25, false),
                column("price", 1700, false),
            ],
        }
    }

    fn row(cells: [Option<&str>; 4]) -> Row {
        cells
            .iter()
            .map(|cell| match cell {
                None => Cell::Null,
                Some("~") => Cell::Unchanged,
                Some(text) => Cell::Value(text.as_bytes()),
            })
            .collect()
    }

    fn json(change: &Change) -> String {
        let schema = schema();
        let transaction = TransactionHeader {
            xid: Xid(777),
            position: Position::Lsn(Lsn(0x1_0000_0100)),
            commit_lsn: Lsn(0x1_0000_00F0),
            commit_time_us: 1_700_000_000_123_456,
            origin: None,
        };
        let origin =
            Origin { name: "shop", database: "shopdb", transaction: &transaction, order: 3, written_ms: 1_700_000_000_200 };
        let event = match change {
            Change::Message { prefix, content } => Event::Message { prefix, content },
            Change::Schema { content } => Event::SchemaChange { content },
            change => Event::Row { schema: &schema, change },
        };
        serde_json::to_string(&Envelope { origin, event }).expect("JSON")
    }

    const SOURCE: &str = concat!(
        r#""source":{"version":""#,
        env!("CARGO_PKG_VERSION"),
        r#"","connector":"postgresql","name":"shop","ts_ms":1700000000123,"ts_us":1700000000123456,"snapshot":"false","db":"shopdb","#
    );

    #[test]
    fn an_insert_is_debeziums_create() {
        let shown = json(&Change::Insert { table: SchemaId(1), new: row([Some("42"), Some("t"), None, Some("9.50")]) });
        let rest = r#""schema":"public","table":"orders","txId":777,"lsn":4294967536,"position":"1/100"},"op":"c","ts_ms":1700000000200,"transaction":{"id":"777:4294967536","total_order":3}}"#;
        assert_eq!(
            shown,
            format!(r#"{{"before":null,"after":{{"id":42,"paid":true,"note":null,"price":"9.50"}},{SOURCE}{rest}"#)
        );
    }

    #[test]
    fn what_was_not_sent_is_named_and_keys_stand_alone() {
        let old = Some(OldImage::Key(row([Some("41"), None, None, None])));
        let shown = json(&Change::Update { table: SchemaId(1), old, new: row([Some("42"), Some("f"), Some("~"), Some("NaN")]) });
        let images = r#"{"before":{"id":41},"after":{"id":42,"paid":false,"note":"__debezium_unavailable_value","price":"NaN"},"#;
        assert!(shown.starts_with(images), "{shown}");
        let shown = json(&Change::Delete { table: SchemaId(1), old: OldImage::Key(row([Some("42"), None, None, None])) });
        assert!(shown.starts_with(r#"{"before":{"id":42},"after":null,"#), "{shown}");
    }

    #[test]
    fn a_schema_change_is_what_the_source_said() {
        let shown = json(&Change::Schema { content: bytes::Bytes::from_static(br#"{"kind":"dropped","after":null}"#) });
        assert!(
            shown.starts_with(r#"{"schema_change":{"after":null,"kind":"dropped"},"#) && shown.contains(r#""op":"s""#),
            "{shown}"
        );
    }

    #[test]
    fn messages_are_base64() {
        let content = bytes::Bytes::from_static(b"hi\xFF!");
        let shown = json(&Change::Message { prefix: "app".to_owned(), content });
        assert!(shown.starts_with(r#"{"message":{"prefix":"app","content":"aGn/IQ=="},"#), "{shown}");
        assert_eq!([base64(b""), base64(b"f"), base64(b"fo"), base64(b"foo")], ["", "Zg==", "Zm8=", "Zm9v"]);
    }
}
