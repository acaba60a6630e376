//! Which table of the replica a table of the log is.
//!
//! Names move. `t` becomes `t_old` and `t_new` becomes `t`, on the source and by hand on the replica, and rows that went by the name alone would go into
//! another table in silence (I3). So the ledger keeps both servers' numbers of a table beside its name. What the log says of a table, by its number there:
//!
//! | the ledger has the number | the replica's table | then |
//! |---|---|---|
//! | under the same name | has it | its changes are written |
//! | | was renamed by hand, before the log says so | they are written to it all the same |
//! | | was renamed, and one that is nobody's has the name | a halt: renamed too early, or rebuilt |
//! | | is gone, and one that is nobody's has the name | a halt, until somebody says that it was rebuilt with every row; while it is copied, its copy starts again |
//! | | of a ledger that was restored elsewhere | its changes are written to what has the name |
//! | under another name | has the new name | the ledger follows; whose name it was there goes by what it is called on the replica, and is forgotten where it is gone |
//! | | has not | a halt that says how |
//! | not, and another under the name | | a halt: the table was made anew and has to be copied |
//! | not, and none under the name | | the number is taken |
//! | of a table that is copied again | | its changes are written to what its rows are collected in ([`ledger::Member::collected_in`]) |
//!
//! What the source's event triggers say moves names and numbers in the ledger in its place, so that none of this halts there.
//!
//! Statements go by names. What is renamed under a session that writes is found behind the writes and before their COMMIT ([`super::definition`]), and
//! looked at here again.

use std::collections::HashMap;

use sqlx::{AssertSqlSafe, Executor, PgConnection};

use super::catalog;
use super::errors::{SHORT_WAIT, within};
use super::ledger::{self, CopyState, IDENTITY, Member};
use super::replica::PostgresReplica;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{TableName, TableSchema};
use crate::halt::HaltCode;
use crate::postgres::sql::{quote_ident, quote_literal, quote_table};

/// The tables of a replica, as the ledger names them.
pub(super) type Members = HashMap<TableName, Member>;

/// Where a table of the ledger is on the replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Now {
    /// Under this name.
    Named(TableName),
    /// Dropped there.
    Gone,
    /// The ledger was restored elsewhere, or never had its number.
    Unknown,
}

/// Where a version's changes are written to.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// What it is called on the replica.
    pub(super) name: TableName,
    /// Which table it is.
    pub(super) identity: Option<String>,
}

impl PostgresReplica {
    pub(super) async fn read_members(&mut self) -> Result<()> {
        let tables = ledger::members(&mut self.connection, &self.name).await?;
        self.members = tables.into_iter().collect();
        Ok(())
    }

    /// The replica's table that a version's changes are written to. `None` where they are dropped: the table leaves, or a row of added tables leaves it to the
    /// other row.
    ///
    /// # Errors
    /// A halt with `schema_mismatch` that says what to do; [`ErrorKind::Busy`] for a table that is to be copied first.
    pub(super) async fn place(&mut self, schema: &TableSchema) -> Result<Option<Place>> {
        let Some(known_as) = self.known_as(schema).await? else { return Ok(None) };
        let Some(member) = self.members.get(&known_as).cloned() else { return Ok(None) };
        if let Some(shadow) = member.collected_in() {
            let there = self.catalog_of(shadow).await?.map(|catalog| catalog.identity.clone());
            let place = there.map(|identity| Place { name: shadow.clone(), identity: Some(identity) });
            return place.map(Some).ok_or_else(|| replaced_while_copied(&known_as));
        }
        if self.retrying {
            return self.place_of_kept(known_as, &member).await.map(Some);
        }
        let name = &schema.table;
        let here = self.catalog_of(name).await?.map(|catalog| catalog.identity.clone());
        if known_as == *name && here.is_some() && (here == member.replica_table) {
            self.keep(schema, here.as_deref()).await?;
            return Ok(Some(Place { name: name.clone(), identity: here }));
        }
        let is_others =
            self.members.iter().any(|(other, m)| *other != known_as && m.replica_table.is_some() && m.replica_table == here);
        let followed = member.named_by.is_some_and(|version| schema.id < version);
        match (self.now(&member).await?, known_as == *name) {
            (Now::Named(there), false) if there == *name && !followed => {
                self.follow(&known_as, schema).await?;
                Ok(Some(Place { name: there, identity: member.replica_table }))
            }
            (Now::Named(there), false) if there == known_as && !followed => Err(not_renamed(&known_as, name, here.is_some())),
            (Now::Named(there), true) if here.is_some() && !is_others => Err(replaced(name, &there)),
            (Now::Named(there), _) => {
                // By a batch that did not come to its end and followed already; or by hand, and the log will say so.
                tracing::warn!(table = %name, %there, "changes are written to a table that is called otherwise on the replica");
                Ok(Some(Place { name: there, identity: member.replica_table }))
            }
            (Now::Gone, _) if member.leaves => Ok(None),
            (Now::Gone, false) if here.is_some() && !is_others => Err(made_anew(name, &known_as)),
            (Now::Gone | Now::Unknown, false) => {
                if here.is_none() || self.members.contains_key(name) || self.is_there(&known_as).await? {
                    return Err(not_renamed(&known_as, name, here.is_some()));
                }
                self.follow(&known_as, schema).await?;
                self.keep(schema, here.as_deref()).await?;
                Ok(Some(Place { name: name.clone(), identity: here }))
            }
            (Now::Gone | Now::Unknown, true) if here.is_none() => Err(catalog::missing(name)),
            (Now::Gone | Now::Unknown, true) if is_others => Err(of_another(name)),
            (Now::Gone, true) if member.state != CopyState::Live => Err(replaced_while_copied(name)),
            (Now::Gone, true) => Err(made_anew(name, &known_as)),
            (Now::Unknown, true) => {
                self.keep(schema, here.as_deref()).await?;
                Ok(Some(Place { name: name.clone(), identity: here }))
            }
        }
    }

    /// Where changes of a version go that the log has passed: names that it had then say nothing, and the ledger has followed every renaming since.
    async fn place_of_kept(&mut self, known_as: TableName, member: &Member) -> Result<Place> {
        let name = match self.now(member).await? {
            Now::Named(there) => there,
            Now::Gone => return Err(made_anew(&known_as, &known_as)),
            Now::Unknown => known_as,
        };
        let there = self.catalog_of(&name).await?.ok_or_else(|| catalog::missing(&name))?;
        Ok(Place { name, identity: Some(there.identity.clone()) })
    }

    /// The ledger's name of a version's table. `None` where changes are dropped.
    async fn known_as(&mut self, schema: &TableSchema) -> Result<Option<TableName>> {
        let table = &schema.table;
        let settled = |member: &Member| match member.state {
            CopyState::Pending | CopyState::Leaving => false,
            CopyState::Apart => true,
            CopyState::Copying | CopyState::CatchingUp | CopyState::Live => member.source_oid == Some(schema.source_oid),
        };
        if !self.members.get(table).is_some_and(settled) {
            self.read_members().await?;
        }
        let named = self.members.get_key_value(table);
        let same = |member: &Member| member.source_oid == Some(schema.source_oid);
        let leaving = |member: &Member| member.leaves || member.state == CopyState::Leaving;
        // A table that was renamed and came to the replica anew is there twice until the old one has left.
        let found = named
            .filter(|(_, member)| same(member))
            .or_else(|| self.members.iter().find(|(_, member)| same(member) && !leaving(member)))
            .or_else(|| named.filter(|(_, member)| member.source_oid.is_none()))
            .or_else(|| self.members.iter().find(|(_, member)| same(member)));
        if let Some((name, member)) = found {
            return match member.state {
                CopyState::Leaving | CopyState::Apart => Ok(None),
                CopyState::Live if member.leaves && name != table => Ok(None),
                CopyState::Pending => {
                    let message = format!("table {table} has come to the replica and is to be copied first");
                    Err(Error::new(ErrorKind::Busy, message))
                }
                CopyState::Copying | CopyState::CatchingUp if name != table => {
                    let message = format!(
                        "table {name} was renamed to {table} on the source while it was copied; run `millstream init`, which copies it under its new name"
                    );
                    Err(Error::halt(HaltCode::SchemaMismatch, message))
                }
                CopyState::Copying | CopyState::CatchingUp | CopyState::Live => Ok(Some(name.clone())),
            };
        }
        match named {
            // It goes, and what comes under its name does not come here.
            Some((_, member)) if member.leaves || matches!(member.state, CopyState::Leaving | CopyState::Apart) => Ok(None),
            Some(_) => Err(another(table)),
            None if self.is_added() => Ok(None),
            None => {
                let message = format!(
                    "table {table} is in the log but not among the tables of replica '{}'; run `millstream init` to copy it, or exclude it \
                     from the source's tables",
                    self.name
                );
                Err(Error::halt(HaltCode::SchemaMismatch, message))
            }
        }
    }

    /// Keeps which table it is on both sides, where the ledger does not have it.
    async fn keep(&mut self, schema: &TableSchema, identity: Option<&str>) -> Result<()> {
        let table = &schema.table;
        let Some(member) = self.members.get_mut(table) else { return Ok(()) };
        if member.source_oid.is_some() && member.replica_table.as_deref() == identity {
            return Ok(());
        }
        let query = sqlx::query(
            "UPDATE millstream.copied_table SET source_oid = coalesce(source_oid, $4), replica_table = $5 \
             WHERE replica = $1 AND table_schema = $2 AND table_name = $3 \
             AND EXISTS (SELECT FROM millstream.replica WHERE name = $1 AND apply_epoch = $6)",
        );
        let query = query.bind(&self.name).bind(&table.schema).bind(&table.name).bind(i64::from(schema.source_oid));
        let query = query.bind(identity).bind(self.epoch.0.cast_signed());
        within(SHORT_WAIT, "keeping a table's number", query.execute(&mut self.connection)).await?;
        member.source_oid.get_or_insert(schema.source_oid);
        member.replica_table = identity.map(str::to_owned);
        Ok(())
    }

    /// The ledger's names follow a table that was renamed, and whoever's name it takes.
    async fn follow(&mut self, from: &TableName, schema: &TableSchema) -> Result<()> {
        let to = &schema.table;
        let mut moves = vec![(from.clone(), Some(to.clone()))];
        let mut name = to.clone();
        while name != *from
            && let Some(member) = self.members.get(&name).cloned()
        {
            let next = match self.now(&member).await? {
                _ if member.state != CopyState::Live => return Err(not_renamed(from, to, true)),
                Now::Named(next) if next != name && moves.len() < self.members.len() => Some(next),
                Now::Gone => None,
                Now::Named(_) | Now::Unknown => return Err(not_renamed(from, to, true)),
            };
            moves.push((name, next.clone()));
            let Some(next) = next else { break };
            name = next;
        }
        // One request, and so one transaction; by way of names that nothing has, because two may change places.
        let row = quote_literal(&self.name);
        let held = format!(
            "EXISTS (SELECT FROM millstream.replica r WHERE r.name = {row} AND r.apply_epoch = {})",
            self.epoch.0.cast_signed()
        );
        let pair = |table: &TableName| format!("{}, {}", quote_literal(&table.schema), quote_literal(&table.name));
        let of = |table: &TableName| format!("replica = {row} AND (table_schema, table_name) = ({}) AND {held}", pair(table));
        let set =
            |table: &TableName| format!("UPDATE millstream.copied_table SET (table_schema, table_name) = ({})", pair(table));
        let aside = |n: usize| TableName::new("", format!("#{n}"));
        let mut statements = Vec::new();
        for (n, (old, new)) in moves.iter().enumerate() {
            statements.push(match new {
                Some(_) => format!("{} WHERE {}", set(&aside(n)), of(old)),
                None => format!("DELETE FROM millstream.copied_table WHERE {}", of(old)),
            });
        }
        let last = moves.iter().enumerate().filter_map(|(n, (_, new))| Some((n, new.as_ref()?)));
        statements.extend(last.map(|(n, new)| format!("{}, named_by = {} WHERE {}", set(new), schema.id.0, of(&aside(n)))));
        let statements = statements.join("; ");
        within(SHORT_WAIT, "following renamed tables", self.connection.execute(AssertSqlSafe(statements.as_str()))).await?;
        for (old, new) in moves {
            let new = new.map_or_else(|| "nothing: it was dropped".to_owned(), |new| new.to_string());
            tracing::info!(table = %old, to = %new, "the ledger follows what was renamed on both sides");
        }
        self.read_members().await
    }

    /// Where a table is on the replica.
    async fn now(&mut self, member: &Member) -> Result<Now> {
        let sql = format!(
            "SELECT pg_catalog.starts_with($1, {IDENTITY}), (SELECT ARRAY[n.nspname::text, c.relname::text] FROM pg_catalog.pg_class c \
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE {IDENTITY} || c.oid = $1)"
        );
        let query = sqlx::query_as::<_, (Option<bool>, Option<Vec<String>>)>(AssertSqlSafe(sql)).bind(&member.replica_table);
        let row = within(SHORT_WAIT, "looking for a table", query.fetch_one(&mut self.connection)).await?;
        Ok(match row {
            (_, Some(name)) => {
                let mut parts = name.into_iter();
                Now::Named(TableName::new(parts.next().unwrap_or_default(), parts.next().unwrap_or_default()))
            }
            (Some(true), None) => Now::Gone,
            _ => Now::Unknown,
        })
    }

    /// Where the table that the ledger has under a name is on the replica.
    pub(super) async fn whereabouts(&mut self, table: &TableName) -> Result<Now> {
        match self.members.get(table).cloned() {
            Some(member) => self.now(&member).await,
            None => Ok(Now::Unknown),
        }
    }

    /// Before a schema change is made by name.
    ///
    /// # Errors
    /// A halt where the name is not the table's on the replica.
    pub(super) async fn is_called(&mut self, table: &TableName) -> Result<()> {
        match self.whereabouts(table).await? {
            Now::Named(there) if there != *table => {
                let message = format!(
                    "the replica's table {table} was renamed to {there} by hand; undo it there, the source's own renaming comes in its place"
                );
                Err(Error::halt(HaltCode::SchemaMismatch, message))
            }
            _ => Ok(()),
        }
    }

    async fn is_there(&mut self, table: &TableName) -> Result<bool> {
        let query = sqlx::query_scalar("SELECT pg_catalog.to_regclass($1) IS NOT NULL").bind(quote_table(table));
        within(SHORT_WAIT, "looking for a table", query.fetch_one(&mut self.connection)).await
    }
}

/// Another table than the one that was copied has its name.
pub(super) fn another(table: &TableName) -> Error {
    let message = format!(
        "the source's {table} is not the table that was copied: that one was dropped, or renamed away, and this one has its name. Copy it: take \
         {table} out of the source's tables, run `millstream init` until it has left, empty or drop it on the replica, put it back, `millstream init`"
    );
    Error::halt(HaltCode::SchemaMismatch, message)
}

fn replaced(table: &TableName, there: &TableName) -> Error {
    let message = format!(
        "the replica's table {table} was renamed to {there} by hand, and another table has its name, before the source said so; undo it there, or, where \
         {table} was rebuilt with every row of it, drop {there} and say so there: {}",
        rebuilt(table)
    );
    Error::halt(HaltCode::SchemaMismatch, message)
}

/// SQL that says, on the replica, that the table of a name holds what the one had that the ledger knows.
pub(crate) fn rebuilt(known_as: &TableName) -> String {
    format!(
        "UPDATE millstream.copied_table SET replica_table = NULL WHERE (table_schema, table_name) = ({}, {})",
        quote_literal(&known_as.schema),
        quote_literal(&known_as.name)
    )
}

/// A live table is gone, and another has its name, with or without its rows.
fn made_anew(table: &TableName, known_as: &TableName) -> Error {
    let message = format!(
        "the replica's table {table} is not the one that was copied: that was dropped there, and its rows with it. Copy it: take {table} out of the source's \
         tables, run `millstream init` until it has left, empty or drop it on the replica, put it back, `millstream init`; or, where it was rebuilt with \
         every row, say so there: {}",
        rebuilt(known_as)
    );
    Error::halt(HaltCode::SchemaMismatch, message)
}

/// The replica's table of a name is one that the ledger has under another.
pub(crate) fn of_another(table: &TableName) -> Error {
    let message = format!(
        "the replica's {table} is another of its tables, renamed by hand; rename it back, the source's own renaming comes in its place"
    );
    Error::halt(HaltCode::SchemaMismatch, message)
}

/// Whether what has a name on the replica is a table that the ledger has under another.
///
/// # Errors
/// The server's.
pub(crate) async fn is_anothers(connection: &mut PgConnection, table: &TableName) -> Result<bool> {
    let sql = format!(
        "SELECT EXISTS (SELECT FROM millstream.copied_table WHERE replica_table = {} AND (table_schema, table_name) <> ($1, $2))",
        ledger::identity_of("$1", "$2")
    );
    let query = sqlx::query_scalar(AssertSqlSafe(sql)).bind(&table.schema).bind(&table.name);
    within(SHORT_WAIT, "looking whose a table is", query.fetch_one(connection)).await
}

/// Rows of a copy are in a table that has its name no more.
pub(crate) fn replaced_while_copied(table: &TableName) -> Error {
    let message = format!("the replica's table {table} was replaced while it was copied; its copy starts again");
    Error::new(ErrorKind::Busy, message)
}

/// Statements that give a table another name.
pub(crate) fn renaming(from: &TableName, to: &TableName) -> Vec<String> {
    let mut statements = Vec::new();
    if from.schema != to.schema {
        statements.push(format!("ALTER TABLE {} SET SCHEMA {}", quote_table(from), quote_ident(&to.schema)));
    }
    if from.name != to.name {
        let moved = quote_table(&TableName::new(&to.schema, &from.name));
        statements.push(format!("ALTER TABLE {moved} RENAME TO {}", quote_ident(&to.name)));
    }
    statements
}

/// What gives a table its new name, where it does not have it yet.
fn not_renamed(from: &TableName, to: &TableName, taken: bool) -> Error {
    let statements = renaming(from, to).into_iter().map(|statement| format!("{statement};")).collect::<Vec<_>>().join(" ");
    let first = if taken {
        format!(
            "first give the replica's {} the name that it has on the source now, or drop it if the source did, then ",
            quote_table(to)
        )
    } else {
        String::new()
    };
    let message = format!("table {from} is {to} on the source now; run there what was run on the source: {first}{statements}");
    Error::halt(HaltCode::SchemaMismatch, message)
}
