//! What a replica of a source has to hold, read from the source once for all its replicas.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::PgConnection;

use super::catalog::Resolved;
use super::definition::{self, TableDefinition};
use super::types::{self, Extension, TypeDefinition};
use crate::error::{Error, ErrorKind, Result};
use crate::event::TableName;
use crate::postgres::sql::Side;

/// Tables, their partitioned parents and their types.
#[derive(Clone, Debug, Default)]
pub struct Blueprint {
    /// Tables that are published, by name.
    pub tables: Vec<TableDefinition>,
    /// Partitioned tables above them, topmost first.
    pub parents: Vec<TableDefinition>,
    /// Extensions that they need, by name.
    pub extensions: Vec<Extension>,
    /// User-defined types of their columns, dependencies first.
    pub types: Vec<TypeDefinition>,
    /// Tables with a column that no replica can be given, and why.
    pub refused: Vec<(TableName, String)>,
}

impl Blueprint {
    /// Reads it.
    ///
    /// # Errors
    /// The server's; [`ErrorKind::Busy`] when a table goes away meanwhile.
    pub async fn read(source: &mut PgConnection, resolved: &Resolved) -> Result<Self> {
        let mut order: BTreeMap<u32, usize> = BTreeMap::new();
        for table in &resolved.tables {
            for (depth, (oid, _)) in table.ancestors.iter().rev().enumerate() {
                order.insert(*oid, depth);
            }
        }
        let oids: Vec<u32> = resolved.tables.iter().map(|t| t.oid).chain(order.keys().copied()).collect();
        let mut found = definition::read(source, Side::Source, &oids).await?;
        let mut take = |oid: u32| {
            found.remove(&oid).ok_or_else(|| Error::new(ErrorKind::Busy, "a table was dropped while the catalog was being read"))
        };
        let tables = resolved.tables.iter().map(|t| take(t.oid)).collect::<Result<Vec<_>>>()?;
        let mut above: Vec<(usize, u32)> = order.into_iter().map(|(oid, depth)| (depth, oid)).collect();
        above.sort_unstable();
        let parents = above.into_iter().map(|(_, oid)| take(oid)).collect::<Result<Vec<_>>>()?;
        let used: BTreeSet<u32> = tables.iter().chain(&parents).flat_map(|t| &t.columns).map(|c| c.type_oid).collect();
        let mut needed = types::needed(source, &used).await?;
        types::of_expressions(source, &oids, &mut needed.extensions).await?;
        let reason = |t: &TableDefinition| t.columns.iter().find_map(|c| needed.refused.get(&c.type_oid)).cloned();
        let refused = tables.iter().chain(&parents).filter_map(|t| Some((t.table.clone(), reason(t)?))).collect();
        let extensions = needed.extensions.into_values().collect();
        Ok(Self { tables, parents, extensions, types: needed.types, refused })
    }

    /// Names of the published tables.
    #[must_use]
    pub fn names(&self) -> Vec<TableName> {
        self.tables.iter().map(|t| t.table.clone()).collect()
    }

    /// Parents and tables.
    pub fn all(&self) -> impl Iterator<Item = &TableDefinition> {
        self.parents.iter().chain(&self.tables)
    }
}
