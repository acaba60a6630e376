//! Before changes are planned: their tables' versions fitted to the replica, and how they must be written.

use std::borrow::Cow;
use std::sync::Arc;

use super::catalog::{self, Catalog};
use super::ledger;
use super::members::Place;
use super::plan::Style;
use super::replica::PostgresReplica;
use super::tables::Table;
use crate::apply::first_copy::Schemas;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Change, SchemaId, TableName};

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
                if last != Some(id) && !self.tables.contains_key(&id) {
                    self.fit(id, schemas).await?;
                }
                last = Some(id);
            }
        }
        Ok(())
    }

    async fn fit(&mut self, id: SchemaId, schemas: &Schemas) -> Result<()> {
        let schema = schemas.get(&id).ok_or_else(|| {
            Error::new(ErrorKind::Malformed, format!("a change of table version {}, which no record before it has", id.0))
        })?;
        // What another version was fitted to may be long ago.
        self.catalogs.remove(&schema.table);
        let Some(Place { name, identity }) = self.place(schema).await? else {
            self.dropped.insert(id);
            return Ok(());
        };
        self.dropped.remove(&id);
        let catalog = self.catalog_of(&name).await?.ok_or_else(|| catalog::missing(&name))?;
        if identity.as_ref() != Some(&catalog.identity) {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("table {name} was renamed on the replica just now; it is read anew"),
            ));
        }
        self.tables.insert(id, Arc::new(Table::fit(schema, &name, &catalog)?));
        Ok(())
    }

    /// What the replica has under a name.
    pub(super) async fn catalog_of(&mut self, name: &TableName) -> Result<Option<Arc<Catalog>>> {
        if let Some(catalog) = self.catalogs.get(name) {
            return Ok(Some(Arc::clone(catalog)));
        }
        let Some(catalog) = catalog::read(&mut self.connection, name).await? else { return Ok(None) };
        let catalog = Arc::new(catalog);
        self.catalogs.insert(name.clone(), Arc::clone(&catalog));
        Ok(Some(catalog))
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
