//! Which chunk a key belongs to.
//!
//! Keys of integers, uuids, bytea and text under "C" are compared here. Every other order is the source's own (collations differ
//! between servers and versions), so the source is asked, for many keys at once.

use std::cmp::Ordering;

use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, PgConnection, Postgres};

use super::wait::within;
use crate::capture::snapshot::{KeyColumn, NativeOrder, TableShape};
use crate::config::SourceConfig;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::{Cell, Row, TableName};
use crate::postgres::sql::{Side, classify, connect};

/// A key: values as text, in the key's order.
pub(super) type Key = Vec<String>;

/// The bounds between a table's chunks: chunk `n` begins at bound `n - 1`.
#[derive(Clone, Debug)]
pub(super) enum Bounds {
    /// One chunk.
    None,
    /// Compared here.
    Native(Vec<Vec<NativeValue>>, Vec<NativeOrder>),
    /// Compared by the source: the bounds, and the query without its parameters.
    Asked(Vec<Key>, String),
}

/// A key's part, ready to compare.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum NativeValue {
    Integer(i64),
    Bytes(Box<[u8]>),
}

fn native(value: &str, order: NativeOrder) -> Result<NativeValue> {
    match order {
        NativeOrder::Bytes => Ok(NativeValue::Bytes(value.as_bytes().into())),
        NativeOrder::Integer => value
            .parse()
            .map(NativeValue::Integer)
            .map_err(|_| Error::new(ErrorKind::Malformed, "a key that is not the integer that its column holds")),
    }
}

fn natives(key: &[String], orders: &[NativeOrder]) -> Result<Vec<NativeValue>> {
    key.iter().zip(orders).map(|(value, order)| native(value, *order)).collect()
}

impl Bounds {
    /// From the lower bounds of all chunks but the first.
    pub(super) fn new(key: &[KeyColumn], bounds: Vec<Key>) -> Result<Self> {
        if bounds.is_empty() {
            return Ok(Self::None);
        }
        let orders: Option<Vec<NativeOrder>> = key.iter().map(|k| k.native).collect();
        match orders {
            Some(orders) => {
                let bounds: Vec<_> = bounds.iter().map(|b| natives(b, &orders)).collect::<Result<_>>()?;
                if bounds.windows(2).any(|pair| pair[0].cmp(&pair[1]) != Ordering::Less) {
                    return Err(Error::new(
                        ErrorKind::Unexpected,
                        "a chunk's bounds are not in the order that they are compared by",
                    ));
                }
                Ok(Self::Native(bounds, orders))
            }
            None => Ok(Self::Asked(bounds, question(key))),
        }
    }

    /// The chunk of a key, where that needs no asking.
    pub(super) fn find(&self, key: &[String]) -> Result<Option<usize>> {
        match self {
            Self::None => Ok(Some(0)),
            Self::Native(bounds, orders) => {
                let key = natives(key, orders)?;
                Ok(Some(bounds.partition_point(|bound| *bound <= key)))
            }
            Self::Asked(..) => Ok(None),
        }
    }
}

/// Counts, for each key, the bounds at or below it.
fn question(key: &[KeyColumn]) -> String {
    let collate = |k: &KeyColumn| k.collation.as_ref().map(|c| format!(" COLLATE {c}")).unwrap_or_default();
    let names = |prefix: &str| (0..key.len()).map(|i| format!("{prefix}{i}")).collect::<Vec<_>>().join(", ");
    let arrays = |first: usize| (0..key.len()).map(|i| format!("${}::text[]", first + i)).collect::<Vec<_>>().join(", ");
    let casts = |prefix: &str| {
        let cast = |(i, k): (usize, &KeyColumn)| format!("{prefix}{i}::{}{} AS {prefix}{i}", k.type_text, collate(k));
        key.iter().enumerate().map(cast).collect::<Vec<_>>().join(", ")
    };
    format!(
        "WITH bounds AS MATERIALIZED (SELECT {} FROM unnest({}) u({})), \
              keys AS MATERIALIZED (SELECT n, {} FROM unnest({}) WITH ORDINALITY u({}, n)) \
         SELECT (SELECT count(*) FROM bounds WHERE ({}) <= ({})) FROM keys ORDER BY n",
        casts("b"),
        arrays(1),
        names("b"),
        casts("k"),
        arrays(1 + key.len()),
        names("k"),
        names("b"),
        names("k"),
    )
}

/// The source, asked about the order of keys.
pub(super) struct Oracle {
    source: SourceConfig,
    connection: Option<PgConnection>,
}

impl Oracle {
    pub(super) fn new(source: SourceConfig) -> Self {
        Self { source, connection: None }
    }

    /// The chunks of keys, in their order.
    pub(super) async fn ask(&mut self, table: &TableName, bounds: &[Key], question: &str, keys: &[Key]) -> Result<Vec<usize>> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(connect(&self.source.connect, Side::Source, super::APPLICATION).await?),
        };
        let width = keys.first().map_or(0, Vec::len);
        let query: Query<'_, Postgres, PgArguments> = sqlx::query(AssertSqlSafe(question));
        let query = bind_columns(bind_columns(query, bounds, width), keys, width);
        let answer = async { query.fetch_all(connection).await.map_err(|e| classify(e, Side::Source)) };
        let found = within("asking for the order of keys", answer).await.at(|| format!("order of keys of {table}"))?;
        let count = |row: &sqlx::postgres::PgRow| {
            let n: i64 = sqlx::Row::try_get(row, 0).map_err(|e| classify(e, Side::Source))?;
            usize::try_from(n).map_err(|_| Error::new(ErrorKind::Malformed, "a negative count"))
        };
        let chunks = found.iter().map(count).collect::<Result<Vec<_>>>()?;
        if chunks.len() == keys.len() { Ok(chunks) } else { Err(Error::new(ErrorKind::Malformed, "the source left keys out")) }
    }
}

fn bind_columns<'q>(mut query: Query<'q, Postgres, PgArguments>, keys: &[Key], width: usize) -> Query<'q, Postgres, PgArguments> {
    for column in 0..width {
        query = query.bind(keys.iter().map(|key| key[column].clone()).collect::<Vec<String>>());
    }
    query
}

/// A row's key. Cells of the key that the new row leaves unchanged are the old row's.
pub(super) fn key_of(shape: &TableShape, row: &Row, old: Option<&Row>) -> Result<Key> {
    let bad = |what: &str| Error::new(ErrorKind::Malformed, format!("a row of {} whose key is {what}", shape.schema.table));
    let mut cells: Vec<Cell<'_>> = row.iter().collect();
    if let Some(old) = old {
        for (cell, before) in cells.iter_mut().zip(old.iter()) {
            if *cell == Cell::Unchanged {
                *cell = before;
            }
        }
    }
    let text = |index: usize| match cells.get(index) {
        Some(Cell::Value(value)) => std::str::from_utf8(value).map(str::to_owned).map_err(|_| bad("not UTF-8")),
        Some(Cell::Null) => Err(bad("NULL")),
        Some(Cell::Unchanged) => Err(bad("not sent")),
        None => Err(bad("beyond its columns")),
    };
    shape.key.iter().map(|k| text(k.index)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(native: Option<NativeOrder>) -> KeyColumn {
        KeyColumn {
            index: 0,
            name: "k".into(),
            type_text: "text".into(),
            collation: Some("pg_catalog.\"de-x-icu\"".into()),
            native,
        }
    }

    fn key(parts: &[&str]) -> Key {
        parts.iter().map(|p| (*p).to_owned()).collect()
    }

    #[test]
    fn integers_are_compared_as_numbers_and_bounds_begin_their_chunk() {
        let bounds = Bounds::new(&[column(Some(NativeOrder::Integer))], vec![key(&["-5"]), key(&["9"]), key(&["10"])]).unwrap();
        let chunk = |k: &str| bounds.find(&key(&[k])).unwrap().unwrap();
        assert_eq!([chunk("-6"), chunk("-5"), chunk("8"), chunk("9"), chunk("10"), chunk("100")], [0, 1, 1, 2, 3, 3]);
        assert!(bounds.find(&key(&["x"])).is_err());
    }

    #[test]
    fn composite_keys_are_compared_part_by_part() {
        let columns = [column(Some(NativeOrder::Integer)), column(Some(NativeOrder::Bytes))];
        let bounds = Bounds::new(&columns, vec![key(&["2", "m"]), key(&["10", "a"])]).unwrap();
        let chunk = |a: &str, b: &str| bounds.find(&key(&[a, b])).unwrap().unwrap();
        assert_eq!([chunk("2", "l"), chunk("2", "m"), chunk("9", "z"), chunk("10", "Z"), chunk("10", "a")], [0, 1, 1, 1, 2]);
    }

    #[test]
    fn an_order_that_is_only_the_sources_is_asked_for() {
        let bounds = Bounds::new(&[column(None)], vec![key(&["m"])]).unwrap();
        assert_eq!(bounds.find(&key(&["a"])).unwrap(), None);
        let Bounds::Asked(_, question) = bounds else { panic!("not asked") };
        assert!(question.contains("b0::text COLLATE pg_catalog.\"de-x-icu\" AS b0"), "{question}");
    }
}
