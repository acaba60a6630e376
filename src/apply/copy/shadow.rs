//! A live table that is copied again: its rows are collected in a table beside it, the shadow, while it shows its old content.
//!
//! # Invariant
//!
//! The table itself is not written before its new content is complete. Then, in the replica transaction that makes it live under its row of the ledger, it
//! gets that content whole, at one commit boundary: no reader's snapshot has a mixture of both.
//!
//! ```text
//!  pending ──plan──► copying ──► catching_up ────────────────► live at I ──────────► one with the others at M
//!     │                └──── chunks, replay: into the shadow ───┘  │ log: into the table
//!     │  the table: as it was when it was set apart (C)            └ the difference goes from the shadow into the table, the shadow goes
//! ```
//!
//! C ≤ I ≤ M are places in the log. From C on the other tables are ahead of this one: first by everything since C, then, until the two rows of the ledger
//! meet, by what its own session has not applied yet. `status` and readiness say so; at every moment the table is the source's as of some commit, but for
//! what made somebody ask for the copy.
//!
//! # Why by difference, in place
//!
//! Rows that the shadow lacks or has otherwise are deleted, rows that the table lacks are inserted. So whatever hangs on the table stays and is
//! not even looked at (privileges, views, foreign keys, triggers, policies, indexes, comments, publications, columns of the replica's own); no lock that a reader meets
//! is taken, and no right is needed that applying does not need; snapshots taken before go on to see the old rows; and a copy that is mostly
//! equal writes little. The memory is the server's `work_mem`. It costs disk: in the worst case the rows are there three times until the next vacuum.
//!
//! Rejected: *renaming the shadow* (views, functions, foreign keys and publications follow the old table; each kind of dependency has to be known, and made
//! again with rights that the role may not have). *TRUNCATE and INSERT* (an ACCESS EXCLUSIVE lock for its length, and a snapshot that is older sees no rows at all:
//! TRUNCATE is not MVCC-safe). *In the transaction in which the rows meet* (the others would wait for as long as it takes).

use std::sync::Arc;

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use super::state::{self, CopyTable};
use super::wait::{backend, watched};
use super::{PostgresCopy, connect_replica};
use crate::capture::snapshot::TableShape;
use crate::error::{Context, Error, Result};
use crate::event::{ApplyEpoch, TableName};
use crate::failpoint;
use crate::halt::HaltCode;
use crate::postgres::sql::{Side, classify, quote_ident, quote_table};
use crate::replica::postgres::catalog::{self, Catalog};
use crate::replica::postgres::ledger::{CopyState, hold_epoch};
use crate::replica::postgres::members::{is_anothers, of_another};
use crate::replica::postgres::tables::Table;

/// Makes an empty shadow, in the transaction that stores its table's plan: the table's columns and nothing else.
///
/// # Errors
/// A halt with `schema_mismatch` where the table does not fit the source's; the server's.
pub(super) async fn make(transaction: &mut PgConnection, shadow: &TableName, shape: &TableShape) -> Result<()> {
    let table = &shape.schema.table;
    let catalog = catalog::read(transaction, table).await?.ok_or_else(|| catalog::missing(table))?;
    Table::fit(&Arc::new(shape.schema.clone()), table, &catalog)?;
    drop_table(transaction, shadow).await?;
    let make = format!("CREATE TABLE {} AS SELECT * FROM ONLY {} WITH NO DATA", quote_table(shadow), quote_table(table));
    execute(transaction, &make).await
}

/// Holds a shadow to the transaction's end; false where it is gone.
pub(super) async fn hold(transaction: &mut PgConnection, shadow: &TableName) -> Result<bool> {
    let query = sqlx::query_scalar("SELECT pg_catalog.to_regclass($1) IS NOT NULL").bind(quote_table(shadow));
    if !query.fetch_one(&mut *transaction).await.map_err(fail)? {
        return Ok(false);
    }
    execute(transaction, &format!("LOCK TABLE {} IN ROW EXCLUSIVE MODE", quote_table(shadow))).await.map(|()| true)
}

/// Takes a shadow away.
pub(super) async fn drop_table(transaction: &mut PgConnection, shadow: &TableName) -> Result<()> {
    execute(transaction, &format!("DROP TABLE IF EXISTS {}", quote_table(shadow))).await
}

/// Takes shadows away that no table of the ledger has: their tables have left, or were dropped.
///
/// # Errors
/// The server's.
pub(crate) async fn sweep(replica: &mut PgConnection) -> Result<()> {
    let orphans = "SELECT c.relname::text FROM pg_catalog.pg_class c WHERE c.relnamespace = 'millstream'::pg_catalog.regnamespace AND c.relkind = 'r' \
         AND c.relname ~ '^recopy_[0-9]+$' AND NOT EXISTS (SELECT FROM millstream.copied_table t WHERE t.shadow = c.relname AND t.state <> 'leaving')";
    let names: Vec<String> = sqlx::query_scalar(orphans).fetch_all(&mut *replica).await.map_err(fail)?;
    if names.is_empty() {
        return Ok(());
    }
    execute(replica, "SET lock_timeout = '1s'").await?;
    for name in names {
        let shadow = crate::replica::postgres::ledger::shadow(name);
        if let Err(error) = drop_table(replica, &shadow).await {
            // Somebody reads it, or it is gone: the next start looks again.
            tracing::debug!(%error, table = %shadow, "what a copy left stays for now");
        }
    }
    execute(replica, "RESET lock_timeout").await
}

/// Gives loaded shadows the key that the replay finds their rows by. What is there already stays.
///
/// # Errors
/// The server's.
pub(super) async fn build_keys(copy: &PostgresCopy, replica: &mut PgConnection, epoch: ApplyEpoch) -> Result<()> {
    for table in state::tables(replica, &copy.replica.name).await? {
        let Some(shadow) = table.shadow.as_ref().filter(|_| table.state == CopyState::Copying && !table.key().is_empty()) else {
            continue;
        };
        let there = "SELECT EXISTS (SELECT FROM pg_catalog.pg_index WHERE indrelid = pg_catalog.to_regclass($1))";
        let there = sqlx::query_scalar(there).bind(quote_table(shadow));
        if there.fetch_one(&mut *replica).await.map_err(fail)? {
            continue;
        }
        let catalog = catalog::read(replica, &table.table).await?.ok_or_else(|| catalog::missing(&table.table))?;
        let key = format!("ALTER TABLE {} ADD {}", quote_table(shadow), key_of(table.key(), &catalog));
        copy.meter.building(0, 1);
        build(copy, epoch, &key).await.at(|| format!("table {}", table.table))?;
    }
    Ok(())
}

/// A key that is deferrable where the table's own is: rows may share it for a moment then.
fn key_of(columns: &[String], catalog: &Catalog) -> String {
    let same = |index: &&catalog::CatalogIndex| {
        index.whole
            && !index.exclusion
            && index.columns.len() == columns.len()
            && columns.iter().all(|c| index.columns.contains(c))
    };
    let deferrable = catalog.indexes.iter().find(same).is_some_and(|index| !index.immediate);
    let list = columns.iter().map(|name| quote_ident(name)).collect::<Vec<_>>().join(", ");
    format!("PRIMARY KEY ({list}){}", if deferrable { " DEFERRABLE INITIALLY DEFERRED" } else { "" })
}

async fn build(copy: &PostgresCopy, epoch: ApplyEpoch, statement: &str) -> Result<()> {
    let mut replica = connect_replica(&copy.replica).await?;
    let backend = backend(&mut replica).await?;
    let work = async move {
        let mut transaction = replica.begin().await.map_err(fail)?;
        hold_epoch(&mut transaction, &copy.replica.name, epoch).await?;
        execute(&mut transaction, statement).await?;
        transaction.commit().await.map_err(fail)
    };
    watched(&copy.replica.connect, backend, work).await
}

/// Puts a shadow's content into its table, in the transaction that makes the table live.
///
/// # Errors
/// A halt where the table is not there, does not fit or refuses a row; the server's. The table is as it was then.
pub(super) async fn put_in_place(transaction: &mut PgConnection, table: &CopyTable, shadow: &TableName) -> Result<()> {
    let (name, quoted) = (&table.table, quote_table(&table.table));
    // Rows that a policy hides would be left out in silence.
    execute(transaction, "SET LOCAL row_security = off; SET LOCAL lock_timeout = '10s'").await?;
    let there = sqlx::query_scalar("SELECT pg_catalog.to_regclass($1) IS NOT NULL").bind(&quoted);
    if !there.fetch_one(&mut *transaction).await.map_err(fail)? {
        return Err(catalog::missing(name));
    }
    execute(transaction, &format!("LOCK TABLE ONLY {quoted} IN ROW EXCLUSIVE MODE")).await?;
    if is_anothers(transaction, name).await? {
        return Err(of_another(name));
    }
    // It goes at the end: who reads it (a dump of the whole database) is better waited for now.
    execute(transaction, &format!("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE", quote_table(shadow))).await?;
    let catalog = catalog::read(transaction, name).await?.ok_or_else(|| catalog::missing(name))?;
    let version =
        table.version().ok_or_else(|| Error::halt(HaltCode::LedgerDamaged, format!("{name} is copied without a version")))?;
    let fitted = Table::fit(&Arc::new(version.clone()), name, &catalog)?;
    take_role(transaction, name, &fitted).await?;
    let difference = Difference { table: &fitted, shadow };
    for statement in difference.statements() {
        execute(transaction, &statement).await?;
    }
    failpoint::hit("recopy.in_place")?;
    let counts = format!("SELECT (SELECT count(*) FROM {}) = (SELECT count(*) FROM {})", fitted.alone(), quote_table(shadow));
    if !sqlx::query_scalar::<_, bool>(AssertSqlSafe(counts)).fetch_one(&mut *transaction).await.map_err(fail)? {
        let message =
            "it does not hold as many rows as were copied: a trigger or rule on the replica changes what is written to it";
        return Err(Error::halt(HaltCode::ReplicaConstraint, message));
    }
    drop_table(transaction, shadow).await
}

/// Deferrable constraints are only checked under the ordinary role, and foreign keys must not be: their other tables stand elsewhere.
async fn take_role(transaction: &mut PgConnection, name: &TableName, table: &Table) -> Result<()> {
    if table.deferrable {
        execute(transaction, "SET LOCAL session_replication_role = origin; SET CONSTRAINTS ALL DEFERRED").await?;
    }
    let enforced = "SELECT pg_catalog.current_setting('session_replication_role') <> 'replica' AND EXISTS (SELECT FROM pg_catalog.pg_constraint \
         WHERE contype = 'f' AND pg_catalog.to_regclass($1) IN (conrelid, confrelid))";
    if sqlx::query_scalar(enforced).bind(quote_table(name)).fetch_one(&mut *transaction).await.map_err(fail)? {
        let message = "its foreign keys are enforced while it is written, and its rows and those of the other tables are of different moments; drop \
                       them on the replica, and add them again once the table is live";
        return Err(Error::halt(HaltCode::ReplicaConstraint, message));
    }
    Ok(())
}

/// What makes a table's rows those of its shadow.
struct Difference<'a> {
    table: &'a Table,
    shadow: &'a TableName,
}

impl Difference<'_> {
    fn statements(&self) -> Vec<String> {
        let (place, shadow) = (self.table.alone(), quote_table(self.shadow));
        let columns = self.columns(|name, _| name.to_owned());
        let insert = format!("INSERT INTO {} ({columns}", self.table.name);
        let into = |extra: &str| {
            format!("{insert}{extra}) OVERRIDING SYSTEM VALUE SELECT {}", self.columns(|name, _| format!("s.{name}")))
        };
        if !self.table.rules.keyed {
            // Equal rows are told apart by their number alone.
            return vec![format!("DELETE FROM {place}"), format!("{} FROM {shadow} s", into(""))];
        }
        let (key, row) = (self.key(), self.row());
        let gone = format!("DELETE FROM {place} AS t WHERE NOT EXISTS (SELECT FROM {shadow} s WHERE {key} AND {row})");
        let come = format!("{} FROM {shadow} s WHERE NOT EXISTS (SELECT FROM {place} AS t WHERE {key})", into(""));
        if self.table.extra.is_empty() {
            return vec![gone, come];
        }
        // Columns of the replica's own keep their values under the same key.
        let kept = quote_table(&TableName::new(&self.shadow.schema, format!("{}_kept", self.shadow.name)));
        let own = |prefix: &str| self.table.extra.iter().map(|name| format!("{prefix}{name}")).collect::<Vec<_>>().join(", ");
        let key_columns: Vec<_> = self.table.rules.finders.iter().map(|&i| format!("t.{}", self.table.columns[i].name)).collect();
        vec![
            format!(
                "CREATE TABLE {kept} AS SELECT {}, {} FROM {place} AS t JOIN {shadow} s ON {key} WHERE NOT {row}",
                key_columns.join(", "),
                own("t.")
            ),
            gone,
            format!("{}, {} FROM {shadow} s JOIN {kept} AS t ON {key}", into(&format!(", {}", own(""))), own("t.")),
            come,
            format!("DROP TABLE {kept}"),
        ]
    }

    fn columns(&self, each: impl Fn(&str, &str) -> String) -> String {
        let written = self.table.columns.iter().filter(|column| column.written);
        written.map(|column| each(&column.name, &column.cast)).collect::<Vec<_>>().join(", ")
    }

    /// `t` and `s` have the same key.
    fn key(&self) -> String {
        let finders = self.table.rules.finders.iter().zip(&self.table.operators);
        let equal = finders.map(|(&index, operator)| {
            let column = &self.table.columns[index];
            format!("t.{0} {operator} s.{0}::{1}", column.name, column.cast)
        });
        equal.collect::<Vec<_>>().join(" AND ")
    }

    /// `t` and `s` are the same to the byte, whatever their types call equal.
    fn row(&self) -> String {
        let t = self.columns(|name, _| format!("t.{name}"));
        let s = self.columns(|name, cast| format!("s.{name}::{cast}"));
        // As records: between two row constructors the operator would be looked for column by column.
        format!("ROW({t})::record OPERATOR(pg_catalog.*=) ROW({s})::record")
    }
}

async fn execute(connection: &mut PgConnection, sql: &str) -> Result<()> {
    connection.execute(AssertSqlSafe(sql.to_owned())).await.map(drop).map_err(fail)
}

fn fail(error: sqlx::Error) -> Error {
    classify(error, Side::Replica)
}
