//! What capture asks the source's catalog by SQL. Believed only where it agrees with the stream, because the catalog answers for
//! now and the stream for then.

use std::collections::HashMap;
use std::time::Duration;

use crate::config::PgConnect;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::{Lsn, TableName, Xid};
use crate::postgres::{Mode, PgClient, Side, SimpleRow};

/// A catalog query that takes longer means that the server is in trouble.
const QUERY_WAIT: Duration = Duration::from_secs(20);

/// A column as the catalog has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogColumn {
    /// Unquoted name.
    pub name: String,
    /// `pg_type.oid`
    pub type_oid: u32,
    /// Part of the primary key.
    pub primary_key: bool,
}

/// A table as the catalog has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogTable {
    /// Its name.
    pub table: TableName,
    /// Columns in order, without dropped ones.
    pub columns: Vec<CatalogColumn>,
}

/// A connection for such questions.
#[derive(Debug)]
pub struct Catalog {
    client: PgClient,
    types: HashMap<u32, String>,
}

/// The server's major version, from what it said at connect.
///
/// # Errors
/// [`ErrorKind::Malformed`] when it is not a number.
pub fn major_version(client: &PgClient) -> Result<u32> {
    let text = client.parameter("server_version").unwrap_or_default();
    let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().map_err(|_| Error::new(ErrorKind::Malformed, format!("the server's version '{text}' is not understood")))
}

impl Catalog {
    /// Connects, and reads the names of the built-in types: the stream names only the others.
    ///
    /// # Errors
    /// Those of the server.
    pub async fn connect(to: &PgConnect, application_name: &str) -> Result<Self> {
        let settings = [("application_name", application_name)];
        let mut client = PgClient::connect_with(to, Mode::Sql, Side::Source, &settings).await?;
        let sql = "SELECT t.oid::int8 AS oid, t.typname FROM pg_catalog.pg_type t \
                   JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace WHERE n.nspname = 'pg_catalog'";
        let mut types = HashMap::new();
        for row in client.simple_query_within(sql, QUERY_WAIT).await? {
            types.insert(row.parse("oid")?, format!("pg_catalog.{}", row.text("typname")?));
        }
        Ok(Self { client, types })
    }

    /// The connection, for other questions.
    pub fn client(&mut self) -> &mut PgClient {
        &mut self.client
    }

    /// A built-in type's qualified name.
    #[must_use]
    pub fn built_in_type(&self, oid: u32) -> Option<&str> {
        self.types.get(&oid).map(String::as_str)
    }

    /// A transaction id that is about to be given out: the reference by which 32-bit ids are widened.
    ///
    /// # Errors
    /// Those of the server.
    pub async fn next_xid(&mut self) -> Result<Xid> {
        let sql = "SELECT pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot()) AS xmax";
        one(self.client.simple_query_within(sql, QUERY_WAIT).await?)?.parse("xmax").map(Xid)
    }

    /// How far the server's log is flushed; on a standby, replayed.
    ///
    /// # Errors
    /// Those of the server.
    pub async fn flushed_lsn(&mut self) -> Result<Lsn> {
        let sql = "SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() \
                   ELSE pg_catalog.pg_current_wal_flush_lsn() END AS lsn";
        one(self.client.simple_query_within(sql, QUERY_WAIT).await?)?.parse("lsn")
    }

    /// A table by its oid; `None` when it is there no longer.
    ///
    /// # Errors
    /// Those of the server.
    pub async fn table(&mut self, oid: u32) -> Result<Option<CatalogTable>> {
        // indkey counts from 0 and ends with the columns of INCLUDE, which are no part of the key.
        let sql = format!(
            "SELECT n.nspname, c.relname, a.attname, a.atttypid::int8 AS type, \
                    coalesce(a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]), false) AS key \
             FROM pg_catalog.pg_class c \
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
             LEFT JOIN pg_catalog.pg_index i ON i.indrelid = c.oid AND i.indisprimary \
             WHERE c.oid = {oid} ORDER BY a.attnum"
        );
        let rows =
            self.client.simple_query_within(&sql, QUERY_WAIT).await.at(|| format!("the catalog's entry of table {oid}"))?;
        let Some(first) = rows.first() else { return Ok(None) };
        let table = TableName::new(first.text("nspname")?, first.text("relname")?);
        let column = |row: &SimpleRow| {
            Ok(CatalogColumn {
                name: row.text("attname")?.to_owned(),
                type_oid: row.parse("type")?,
                primary_key: row.bool("key")?,
            })
        };
        Ok(Some(CatalogTable { table, columns: rows.iter().map(column).collect::<Result<_>>()? }))
    }
}

/// The only row of an answer.
///
/// # Errors
/// [`ErrorKind::Malformed`] when there is none.
pub(in crate::capture) fn one(rows: Vec<SimpleRow>) -> Result<SimpleRow> {
    rows.into_iter().next().ok_or_else(|| Error::new(ErrorKind::Malformed, "the server's answer has no row"))
}

/// Widens 32-bit transaction ids. Within half of the number space around the newest one known the answer is unambiguous,
/// and PostgreSQL lets none grow older than that.
#[derive(Clone, Copy, Debug)]
pub struct XidClock {
    newest: u64,
}

impl XidClock {
    /// From an id of the source that is near.
    #[must_use]
    pub fn new(reference: Xid) -> Self {
        Self { newest: reference.0 }
    }

    /// The 64-bit id.
    pub fn widen(&mut self, short: u32) -> Xid {
        #[expect(clippy::cast_possible_truncation, reason = "the low half is what is meant")]
        let distance = short.wrapping_sub(self.newest as u32).cast_signed();
        let wide = self.newest.saturating_add_signed(i64::from(distance));
        self.newest = self.newest.max(wide);
        Xid(wide)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_widened_around_the_newest_over_the_wrap() {
        let mut clock = XidClock::new(Xid(0x1_0000_0010));
        assert_eq!(clock.widen(0x0F), Xid(0x1_0000_000F));
        assert_eq!(clock.widen(0xFFFF_FFF0), Xid(0xFFFF_FFF0), "older, from before the wrap");
        assert_eq!(clock.widen(0x20), Xid(0x1_0000_0020));
        let mut clock = XidClock::new(Xid(0xFFFF_FFFE));
        assert_eq!(clock.widen(0x05), Xid(0x1_0000_0005), "newer, behind the wrap");
    }
}
