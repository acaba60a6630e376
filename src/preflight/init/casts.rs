//! Which types turn into which without being told to.

use std::collections::BTreeMap;

use sqlx::PgConnection;

use super::catalog::get;
use crate::error::Result;
use crate::postgres::sql::{Side, classify};

/// Every type is assigned to these by its text, and they are cast to every type by it (PostgreSQL documentation, "CREATE CAST": automatic I/O
/// conversion casts).
const TEXTS: [&str; 4] = ["text", "character varying", "bpchar", "name"];

/// The casts that a server has, by the types' names without length, precision and scale; true: also on assignment.
#[derive(Clone, Debug, Default)]
pub struct Casts(BTreeMap<(String, String), bool>);

impl Casts {
    /// Reads them.
    ///
    /// # Errors
    /// The server's.
    pub async fn read(connection: &mut PgConnection) -> Result<Self> {
        let rows = sqlx::query(
            "SELECT pg_catalog.format_type(castsource, -1), pg_catalog.format_type(casttarget, -1), castcontext IN ('a', 'i') FROM pg_catalog.pg_cast",
        )
        .fetch_all(connection)
        .await
        .map_err(|e| classify(e, Side::Replica))?;
        rows.iter().map(|row| Ok(((get(row, 0)?, get(row, 1)?), get(row, 2)?))).collect::<Result<_>>().map(Self)
    }

    /// The cast that turns a value of one type into another, where assignment does not.
    #[must_use]
    pub fn explicit(&self, from: &str, to: &str) -> Option<String> {
        // Arrays turn into each other as their elements do.
        let (one, other, array) = match (from.strip_suffix("[]"), to.strip_suffix("[]")) {
            (Some(one), Some(other)) => (one, other, "[]"),
            _ => (from, to, ""),
        };
        if one == other || TEXTS.contains(&other) {
            return None;
        }
        match self.0.get(&(one.to_owned(), other.to_owned())) {
            Some(true) => None,
            None if !TEXTS.contains(&one) => Some(format!("::text{array}::{to}")),
            Some(false) | None => Some(format!("::{to}")),
        }
    }
}
