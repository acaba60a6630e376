//! How an applier comes to keep a transaction: it checks what it writes, and what to do with what the replica refused.

use super::keep::{Keeper, tables_of};
use super::refusal::{self, Keepable, Order, Refusal};
use super::{Touched, is_refusal};
use crate::apply::first_copy::Schemas;
use crate::apply::merge::Batch;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Change, TransactionHeader};
use crate::failpoint;
use crate::halt::HaltCode;
use crate::replica::postgres::errors::SHORT_WAIT;
use crate::replica::postgres::ledger::{self, CopyState};
use crate::replica::postgres::plan::table;
use crate::replica::postgres::replica::PostgresReplica;
use crate::replica::postgres::tables::Table;
use crate::replica::{Replica as _, Step};

/// A change that is larger is not kept: PostgreSQL takes no value of a gigabyte, and a hexadecimal one is twice as long.
const MAX_CHANGE_BYTES: usize = 256 << 20;

impl PostgresReplica {
    /// None of some changes, whose tables are fitted, is of a row in quarantine. `under_origin`: their transaction runs so already.
    ///
    /// # Errors
    /// A halt with `quarantined_key`; the server's.
    pub(in crate::replica::postgres) async fn check_quarantine(&mut self, changes: &[Change], under_origin: bool) -> Result<()> {
        if self.retrying {
            return Ok(());
        }
        if self.touched.is_none() {
            self.touched = Some(Touched::load(&mut self.connection, &self.name).await?);
        }
        if self.touched.as_ref().is_none_or(Touched::is_empty) {
            return Ok(());
        }
        let enforced = self.mode(changes, under_origin).enforced;
        if self.touched.as_ref().is_none_or(|touched| touched.check(changes, &self.tables, enforced).is_ok()) {
            return Ok(());
        }
        // A command may have taken some of it away.
        let touched = self.touched.insert(Touched::load(&mut self.connection, &self.name).await?);
        touched.check(changes, &self.tables, enforced)
    }

    /// One transaction of a batch was refused, and rolled back. Keeps it where that was ordered, and notes it where not.
    ///
    /// # Errors
    /// The refusal, where it is not kept.
    pub(in crate::replica::postgres) async fn refused(
        &mut self,
        batch: &Batch,
        index: usize,
        schemas: &Schemas,
        error: Error,
    ) -> Result<()> {
        if !is_refusal(&error) || self.is_added() {
            return Err(error);
        }
        match self.keep_or_note(batch, index, schemas, &error).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(error),
            Err(other) => Err(unkept(error, other)),
        }
    }

    async fn keep_or_note(&mut self, batch: &Batch, index: usize, schemas: &Schemas, error: &Error) -> Result<bool> {
        self.roll_back().await?;
        self.forget_tables();
        let header = &batch.marks[index].header;
        let changes = &batch.changes[batch.changes_of(index, index + 1)];
        let cannot = self.cannot_be_kept(changes, schemas).await?;
        let name = self.name.clone();
        if cannot.is_none() && refusal::order(&mut self.connection, &name, header).await? != Order::None {
            let Some(step) = batch.step(index, index + 1) else { return Ok(false) };
            let Err(other) = self.keep_one(header, changes, schemas, &step).await else { return Ok(true) };
            self.roll_back().await?;
            if is_refusal(&other) {
                let keepable = Keepable::No(other.message());
                let note = Refusal { header, code: code(error), message: error.to_string(), keepable };
                refusal::note(&mut self.connection, &name, &note).await?;
            }
            return Err(other);
        }
        let keepable = cannot.as_deref().map_or(Keepable::Yes, Keepable::No);
        let note = Refusal { header, code: code(error), message: error.to_string(), keepable };
        refusal::note(&mut self.connection, &name, &note).await?;
        Ok(false)
    }

    async fn keep_one(&mut self, header: &TransactionHeader, changes: &[Change], schemas: &Schemas, step: &Step) -> Result<()> {
        self.begin_plainly().await?;
        ledger::hold_epoch_alone(&mut self.connection, &self.name, self.epoch).await?;
        let mut keeper = Keeper::begin(&mut self.connection, &self.name, header).await?;
        self.keep_changes(&mut keeper, changes, schemas).await?;
        self.end_keeping(keeper, header, step).await
    }

    /// In place of applying them.
    pub(in crate::replica::postgres) async fn keep_changes(
        &mut self,
        keeper: &mut Keeper,
        changes: &[Change],
        schemas: &Schemas,
    ) -> Result<()> {
        if let Some(why) = self.cannot_be_kept(changes, schemas).await? {
            return Err(Error::halt(HaltCode::ReplicaConstraint, why));
        }
        for change in &*self.kept(changes) {
            let ids = tables_of(change);
            // What applies to nothing.
            if ids.is_empty() {
                continue;
            }
            for &id in ids {
                keeper.note(&mut self.connection, change, table(&self.tables, id)?).await?;
            }
            keeper.put(&mut self.connection, change).await?;
        }
        Ok(())
    }

    /// Moves the ledger past the transaction and commits.
    pub(in crate::replica::postgres) async fn end_keeping(
        &mut self,
        keeper: Keeper,
        header: &TransactionHeader,
        step: &Step,
    ) -> Result<()> {
        let changes = keeper.changes;
        keeper.finish(&mut self.connection).await?;
        ledger::step(&mut self.connection, &self.name, self.epoch, step, SHORT_WAIT).await?;
        failpoint::hit("quarantine.keeping")?;
        self.commit().await?;
        failpoint::hit("quarantine.kept")?;
        self.touched = None;
        tracing::warn!(replica = self.name, position = %header.position, changes, "a transaction is kept in quarantine, as it was ordered, and not applied");
        Ok(())
    }

    /// Why a transaction with such changes is not kept. Where it can be, its tables are fitted.
    async fn cannot_be_kept(&mut self, changes: &[Change], schemas: &Schemas) -> Result<Option<String>> {
        // Before it is made its rows may not fit.
        if changes.iter().any(|change| matches!(change, Change::Schema { .. })) {
            return Ok(Some(
                "it changes the schema as well, which later transactions need: it cannot be kept in quarantine".to_owned(),
            ));
        }
        self.prepare(changes, schemas).await?;
        for (index, change) in changes.iter().enumerate() {
            if bytes_of(change) > MAX_CHANGE_BYTES {
                return Ok(Some(format!("change {} has more than 256 MiB: it cannot be kept in quarantine", index + 1)));
            }
            for table in tables_of(change).iter().filter_map(|id| self.tables.get(id)) {
                if self.copies(table) {
                    return Ok(Some(format!(
                        "the copy of {} is not complete: it cannot be kept in quarantine",
                        table.schema.table
                    )));
                }
            }
        }
        Ok(None)
    }

    /// A table of this row is not live.
    fn copies(&self, table: &Table) -> bool {
        let of = |number: Option<u32>| number == Some(table.schema.source_oid);
        self.members
            .values()
            .any(|member| of(member.source_oid) && matches!(member.state, CopyState::Copying | CopyState::CatchingUp))
    }

    /// A huge transaction was ordered to be kept, and was refused again since.
    pub(in crate::replica::postgres) async fn keeps_large(&mut self, header: &TransactionHeader) -> Result<Option<Keeper>> {
        if self.is_added() || refusal::order(&mut self.connection, &self.name, header).await? != Order::Confirmed {
            return Ok(None);
        }
        Keeper::begin(&mut self.connection, &self.name, header).await.map(Some)
    }

    /// A huge transaction was refused at a piece, or as it was committed, or cannot be kept. What comes next must begin it anew.
    pub(in crate::replica::postgres) async fn refused_large(
        &mut self,
        header: &TransactionHeader,
        keeping: bool,
        error: Error,
    ) -> Error {
        if !is_refusal(&error) || self.is_added() {
            return error;
        }
        match self.confirm_or_note(header, keeping, &error).await {
            Ok(true) => Error::new(
                ErrorKind::Busy,
                "a transaction that is to be kept in quarantine was refused again; it is read once more, to be kept",
            ),
            Ok(false) => error,
            Err(other) => unkept(error, other),
        }
    }

    async fn confirm_or_note(&mut self, header: &TransactionHeader, keeping: bool, error: &Error) -> Result<bool> {
        self.roll_back().await?;
        self.forget_tables();
        let name = self.name.clone();
        if !keeping && refusal::order(&mut self.connection, &name, header).await? != Order::None {
            refusal::confirm(&mut self.connection, &name, header).await?;
            return Ok(true);
        }
        let keepable = if keeping { Keepable::No(error.message()) } else { Keepable::Unknown };
        let note = Refusal { header, code: code(error), message: error.to_string(), keepable };
        refusal::note(&mut self.connection, &name, &note).await?;
        Ok(false)
    }
}

/// About as many as it has in the log.
fn bytes_of(change: &Change) -> usize {
    match change {
        Change::Insert { new, .. } => new.byte_len(),
        Change::Update { old, new, .. } => old.as_ref().map_or(0, |old| old.row().byte_len()) + new.byte_len(),
        Change::Delete { old, .. } => old.row().byte_len(),
        Change::Truncate { .. } | Change::Message { .. } | Change::Schema { .. } => 0,
    }
}

fn code(error: &Error) -> HaltCode {
    if let ErrorKind::Halt(code) = error.kind() { code } else { HaltCode::ReplicaConstraint }
}

/// A refusal that could not be kept, or not be noted. What ends the session is no halt: the refusal is found again.
fn unkept(error: Error, other: Error) -> Error {
    match other.kind() {
        ErrorKind::Connection | ErrorKind::Fenced => other.context("keeping or noting what the replica refused"),
        ErrorKind::Busy => {
            tracing::warn!(error = %other, "what the replica refused could not be noted, or kept as it was ordered; tried again");
            error
        }
        _ => error.context(format!("not kept in quarantine ({other})")),
    }
}
