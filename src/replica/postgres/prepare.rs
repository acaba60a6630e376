//! Before changes are planned: their tables' versions fitted to the replica, and how they must be written.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::errors::{SHORT_WAIT, within};
use super::ledger::CopyState;
use super::plan::Style;
use super::replica::PostgresReplica;
use super::tables::Table;
use super::{catalog, ledger};
use crate::apply::first_copy::Schemas;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Change, SchemaId, TableName, TableSchema};
use crate::halt::HaltCode;
use crate::postgres::sql::{quote_ident, quote_table};

/// Definitions of tables are read again after this long.
const CATALOG_AGE: Duration = Duration::from_mins(5);

/// How a set of tables must be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mode {
    /// Under the ordinary role, constraints deferred, because of a deferrable constraint.
    pub(super) origin: bool,
    /// Foreign keys and triggers fire.
    pub(super) enforced: bool,
    pub(super) style: Style,
}

impl PostgresReplica {
    /// Fits every table version that changes use.
    pub(super) async fn prepare(&mut self, changes: &[Change], schemas: &Schemas) -> Result<()> {
        let mut last = None;
        for change in changes {
            let ids: &[SchemaId] = match change {
                Change::Insert { table, .. } | Change::Update { table, .. } | Change::Delete { table, .. } => {
                    std::slice::from_ref(table)
                }
                Change::Truncate { tables, .. } => tables,
                Change::Message { .. } | Change::Schema { .. } => &[],
            };
            for &id in ids {
                if last != Some(id) && !self.is_fresh(id) {
                    self.fit(id, schemas).await?;
                }
                last = Some(id);
            }
        }
        Ok(())
    }

    fn is_fresh(&self, id: SchemaId) -> bool {
        let fresh =
            |table: &Arc<Table>| self.catalogs.get(&table.schema.table).is_some_and(|(read, _)| read.elapsed() < CATALOG_AGE);
        self.tables.get(&id).is_some_and(fresh)
    }

    async fn fit(&mut self, id: SchemaId, schemas: &Schemas) -> Result<()> {
        let schema = schemas.get(&id).ok_or_else(|| {
            Error::new(ErrorKind::Malformed, format!("a change of table version {}, which no record before it has", id.0))
        })?;
        if matches!(self.members.get(&schema.table), None | Some(CopyState::Pending | CopyState::Leaving)) {
            self.read_members().await?;
        }
        let state = self.members.get(&schema.table);
        // What a row of added tables does not have is the other row's to apply, or to halt at.
        if matches!(state, Some(CopyState::Leaving | CopyState::Apart)) || (state.is_none() && self.is_added()) {
            self.dropped.insert(id);
            return Ok(());
        }
        self.dropped.remove(&id);
        if self.members.get(&schema.table) == Some(&CopyState::Pending) {
            let message = format!("table {} has come to the replica and is to be copied first", schema.table);
            return Err(Error::new(ErrorKind::Busy, message));
        }
        if !self.members.contains_key(&schema.table) {
            self.follow_rename(schema, schemas).await?;
        }
        if !self.members.contains_key(&schema.table) {
            let message = format!(
                "table {} is in the log but not among the tables of replica '{}'; run `millstream init` to copy it, or exclude it \
                 from the source's tables",
                schema.table, self.name
            );
            return Err(Error::halt(HaltCode::SchemaMismatch, message));
        }
        let known = self.catalogs.get(&schema.table).filter(|(read, _)| read.elapsed() < CATALOG_AGE);
        let catalog = if let Some((_, catalog)) = known {
            Arc::clone(catalog)
        } else {
            let catalog = Arc::new(catalog::read(&mut self.connection, &schema.table).await?);
            self.catalogs.insert(schema.table.clone(), (Instant::now(), Arc::clone(&catalog)));
            // Every version of the table is fitted again.
            self.tables.retain(|_, table| table.schema.table != schema.table);
            catalog
        };
        self.tables.insert(id, Arc::new(Table::fit(schema, &catalog)?));
        Ok(())
    }

    /// A table that the source knows under another name than before is followed once it has that name here; until then it is said how to give it.
    async fn follow_rename(&mut self, schema: &TableSchema, schemas: &Schemas) -> Result<()> {
        let live = |old: &&Arc<TableSchema>| self.members.get(&old.table) == Some(&CopyState::Live);
        let same = schemas.values().filter(|old| old.source_oid == schema.source_oid && old.id < schema.id);
        let Some(from) = same.filter(live).max_by_key(|old| old.id).map(|old| old.table.clone()) else { return Ok(()) };
        let to = &schema.table;
        let query = sqlx::query_as("SELECT pg_catalog.to_regclass($1) IS NOT NULL, pg_catalog.to_regclass($2) IS NOT NULL")
            .bind(quote_table(&from))
            .bind(quote_table(to));
        let looking = within(SHORT_WAIT, "looking for a table", query.fetch_one(&mut self.connection));
        if let (false, true) = looking.await? {
            self.rename_in_ledger(&from, to).await?;
            return self.read_members().await;
        }
        let mut statements = String::new();
        if from.schema != to.schema {
            statements += &format!("ALTER TABLE {} SET SCHEMA {}; ", quote_table(&from), quote_ident(&to.schema));
        }
        if from.name != to.name {
            let moved = quote_table(&TableName::new(&to.schema, &from.name));
            statements += &format!("ALTER TABLE {moved} RENAME TO {}; ", quote_ident(&to.name));
        }
        let message =
            format!("table {from} is {to} on the source now; run there what was run on the source: {}", statements.trim_end());
        Err(Error::halt(HaltCode::SchemaMismatch, message))
    }

    /// Changes without those that are dropped. Made anew only where there are such.
    pub(super) fn kept<'c>(&self, changes: &'c [Change]) -> Cow<'c, [Change]> {
        let dropped = |id: &SchemaId| self.dropped.contains(id);
        let touched = |change: &Change| match change {
            Change::Insert { table, .. } | Change::Update { table, .. } | Change::Delete { table, .. } => dropped(table),
            Change::Truncate { tables, .. } => tables.iter().any(dropped),
            Change::Message { .. } | Change::Schema { .. } => false,
        };
        if self.dropped.is_empty() || !changes.iter().any(touched) {
            return Cow::Borrowed(changes);
        }
        let keep = |change: &Change| match change {
            Change::Truncate { tables, cascade, restart_identity } => {
                let tables: Vec<_> = tables.iter().copied().filter(|table| !dropped(table)).collect();
                let (cascade, restart_identity) = (*cascade, *restart_identity);
                (!tables.is_empty()).then_some(Change::Truncate { tables, cascade, restart_identity })
            }
            change => (!touched(change)).then(|| change.clone()),
        };
        Cow::Owned(changes.iter().filter_map(keep).collect())
    }

    /// True for the row that tables added to a live replica are kept under.
    pub(super) fn is_added(&self) -> bool {
        ledger::whole(&self.name) != self.name
    }

    pub(super) async fn read_members(&mut self) -> Result<()> {
        let tables = ledger::members(&mut self.connection, &self.name).await?;
        self.members = tables.into_iter().collect();
        Ok(())
    }

    /// How changes must be written; `under_origin` when their transaction runs so already.
    pub(super) fn mode(&self, changes: &[Change], under_origin: bool) -> Mode {
        let mut used: Vec<&Arc<Table>> = Vec::new();
        let mut last = None;
        for change in changes {
            if let Change::Insert { table, .. } | Change::Update { table, .. } | Change::Delete { table, .. } = change
                && last != Some(*table)
            {
                last = Some(*table);
                if let Some(table) = self.tables.get(table)
                    && !used.iter().any(|known| Arc::ptr_eq(known, table))
                {
                    used.push(table);
                }
            }
        }
        let origin = under_origin || (self.replica_role && used.iter().any(|table| table.deferrable));
        let enforced = origin || !self.replica_role;
        let style = if enforced && used.iter().any(|table| table.entangled) { Style::Ordered } else { Style::Net };
        Mode { origin, enforced, style }
    }
}
