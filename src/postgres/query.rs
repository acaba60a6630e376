//! Simple queries: text in, rows of text out. Also the only queries that a replication connection takes.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use postgres_protocol::message::frontend;
use tokio::time::timeout;

use super::auth::put;
use super::client::PgClient;
use super::frame::{Payload, data_row, row_description};
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint::deadline;

/// How long a statement of [`PgClient::simple_query`] may take. One that may take longer says so.
pub const STATEMENT_WAIT: Duration = Duration::from_secs(60);

/// A row of text values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SimpleRow {
    columns: Arc<[String]>,
    values: Vec<Option<String>>,
}

impl SimpleRow {
    /// Names in order.
    #[must_use]
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// By place; `None` for NULL and beyond the end.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<&str> {
        self.values.get(index)?.as_deref()
    }

    /// By name; `None` for NULL.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`] when there is no such column.
    pub fn optional(&self, name: &str) -> Result<Option<&str>> {
        let index = self.columns.iter().position(|column| column == name);
        index.map(|index| self.get(index)).ok_or_else(|| self.bad(name, "is missing"))
    }

    /// By name, not NULL.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`] when there is no such column or it is NULL.
    pub fn text(&self, name: &str) -> Result<&str> {
        self.optional(name)?.ok_or_else(|| self.bad(name, "is NULL"))
    }

    /// By name, not NULL, parsed.
    ///
    /// # Errors
    /// As [`Self::text`], and when it does not parse.
    pub fn parse<T: FromStr>(&self, name: &str) -> Result<T> {
        self.text(name)?.parse().map_err(|_| self.bad(name, "is not what it should be"))
    }

    /// By name, not NULL: `t` or `f`.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn bool(&self, name: &str) -> Result<bool> {
        match self.text(name)? {
            "t" => Ok(true),
            "f" => Ok(false),
            _ => Err(self.bad(name, "is not a boolean")),
        }
    }

    fn bad(&self, name: &str, what: &str) -> Error {
        Error::new(ErrorKind::Malformed, format!("column '{name}' of the server's answer {what}"))
    }
}

impl PgClient {
    /// Runs statements and gives the rows of all of them. At most [`STATEMENT_WAIT`].
    ///
    /// When the future is dropped, or the time is over, the next call on this client first reads what is left of the answer.
    ///
    /// # Errors
    /// The server's; [`ErrorKind::Connection`].
    pub async fn simple_query(&mut self, sql: &str) -> Result<Vec<SimpleRow>> {
        self.simple_query_within(sql, deadline(STATEMENT_WAIT)).await
    }

    /// The same with a time of its own.
    ///
    /// # Errors
    /// As [`Self::simple_query`].
    pub async fn simple_query_within(&mut self, sql: &str, wait: Duration) -> Result<Vec<SimpleRow>> {
        timeout(wait, self.run(sql)).await.map_err(|_| overdue(wait))?.map(|(rows, _)| rows)
    }

    /// Runs statements and gives the number of rows that the last one touched.
    ///
    /// # Errors
    /// As [`Self::simple_query`].
    pub async fn execute(&mut self, sql: &str) -> Result<u64> {
        timeout(deadline(STATEMENT_WAIT), self.run(sql))
            .await
            .map_err(|_| overdue(deadline(STATEMENT_WAIT)))?
            .map(|(_, touched)| touched)
    }

    async fn run(&mut self, sql: &str) -> Result<(Vec<SimpleRow>, u64)> {
        self.settle().await?;
        put(&mut self.connection, |out| frontend::query(sql, out))?;
        self.unanswered += 1;
        // Sent by the first read, which also finds what a server that takes nothing any more has said before.
        let mut rows = Vec::new();
        let mut columns: Arc<[String]> = Arc::default();
        let mut touched = 0;
        loop {
            let frame = match self.connection.receive().await {
                Ok(frame) => frame,
                Err(error) => return Err(self.after_error(error).await),
            };
            match frame.tag {
                b'T' => columns = row_description(&frame.payload)?.into(),
                b'D' => rows.push(SimpleRow { columns: Arc::clone(&columns), values: data_row(&frame.payload)? }),
                b'C' => touched = rows_touched(&frame.payload)?,
                // EmptyQueryResponse
                b'I' => {}
                b'Z' => {
                    self.ready(&frame)?;
                    return Ok((rows, touched));
                }
                _ => return Err(frame.unexpected("a query was answered")),
            }
        }
    }
}

/// The number at the end of a command tag (`INSERT 0 5`, `UPDATE 3`); 0 when there is none.
pub(super) fn rows_touched(payload: &[u8]) -> Result<u64> {
    let tag = Payload::new(payload).text()?;
    Ok(tag.rsplit(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0))
}

fn overdue(wait: Duration) -> Error {
    Error::new(ErrorKind::Connection, format!("the server did not answer within {wait:?}"))
}
