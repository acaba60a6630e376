//! The tables of a replica's ledger: does the source still publish each, and does the replica still have it under its name?

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::finding::{Findings, Place, Remedy, Side};
use super::replica::{Picks, SourceSide};
use super::source::copy_again;
use crate::event::TableName;
use crate::postgres::sql::quote_table;
use crate::preflight::tables::exactly;
use crate::replica::postgres::ledger::{self, IDENTITY};
use crate::replica::postgres::members::{rebuilt, renaming};

/// Every table that the ledger has, with what the replica's catalog says of it. A ledger that the daemon has not upgraded yet lacks some columns.
const TABLES: &str = "\
SELECT t.table_schema, t.table_name, t.replica = $1 AND t.state = 'live' AND to_jsonb(t) ->> 'live_after_lsn' IS NULL, (to_jsonb(t) ->> 'source_oid')::int8, \
  (SELECT ARRAY[n.nspname::text, c.relname::text] FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
    WHERE $identity || c.oid = to_jsonb(t) ->> 'replica_table'), \
  coalesce(pg_catalog.starts_with(to_jsonb(t) ->> 'replica_table', $identity), false) \
FROM millstream.copied_table t WHERE t.replica IN ($1, $2) ORDER BY 1, 2";

const NAMES: &str = "SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
     WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')";

/// A table of the ledger.
struct Known {
    table: TableName,
    /// It is complete, and stays.
    live: bool,
    /// `pg_class.oid` on the source.
    source_oid: Option<u32>,
    /// What it is called here; `None` where it is gone, or the ledger does not know which it is.
    called: Option<TableName>,
    /// The ledger knows which table of this database it is, or was.
    identified: bool,
}

/// The tables that a replica's ledger has.
#[derive(Default)]
pub(super) struct LedgerTables {
    list: Vec<Known>,
    /// Every relation that the replica has.
    names: BTreeSet<TableName>,
}

impl LedgerTables {
    /// Reads them.
    pub(super) async fn read(connection: &mut PgConnection, replica: &str) -> sqlx::Result<Self> {
        let sql = AssertSqlSafe(TABLES.replace("$identity", IDENTITY));
        let rows = sqlx::query(sql).bind(replica).bind(ledger::added(replica)).fetch_all(&mut *connection).await?;
        let known = |row: &sqlx::postgres::PgRow| Known {
            table: TableName::new(row.get::<String, _>(0), row.get::<String, _>(1)),
            live: row.get(2),
            source_oid: row.get::<Option<i64>, _>(3).and_then(|oid| u32::try_from(oid).ok()),
            called: row.get::<Option<Vec<String>>, _>(4).and_then(|name| Some(TableName::new(name.first()?, name.get(1)?))),
            identified: row.get(5),
        };
        let names: Vec<(String, String)> = sqlx::query_as(NAMES).fetch_all(connection).await?;
        Ok(Self {
            list: rows.iter().map(known).collect(),
            names: names.into_iter().map(|(schema, name)| TableName::new(schema, name)).collect(),
        })
    }

    /// Names of all of them.
    pub(super) fn all(&self) -> BTreeSet<TableName> {
        self.list.iter().map(|known| known.table.clone()).collect()
    }

    /// Names of those whose rows are complete.
    pub(super) fn live(&self) -> BTreeSet<TableName> {
        self.list.iter().filter(|known| known.live).map(|known| known.table.clone()).collect()
    }
}

/// Compares what is live with what the source publishes, and with what the replica has.
pub(super) fn check(
    findings: &mut Findings,
    tables: &LedgerTables,
    source: &SourceSide<'_>,
    published: &BTreeMap<u32, TableName>,
    picks: &Picks<'_>,
    behind: Option<Duration>,
) {
    let names: BTreeSet<&TableName> = published.values().collect();
    for known in tables.list.iter().filter(|known| known.live) {
        // The ledger's name of a table follows a renaming at its next change: the number tells.
        let is_captured = known.source_oid.map_or(names.contains(&known.table), |oid| published.contains_key(&oid));
        if is_captured {
            let at_source = known.source_oid.and_then(|oid| published.get(&oid));
            named(findings, tables, known, at_source, source.carries);
        } else if source.altered {
            let why = "its changes are in no log, and init does not take it up again beside a publication that was altered: every table is to be copied again";
            let remedy = copy_again(source.name);
            findings.error("captured", "it is live here, and the source's publication has it no more", why, Some(remedy));
            findings.about(known.table.to_string());
        } else {
            not_captured(findings, &known.table, picks.has(&known.table), behind);
        }
    }
}

/// A live table that the source publishes no more, because it was dropped and made anew there or taken out by hand, stays as it is for ever.
fn not_captured(findings: &mut Findings, table: &TableName, wanted: bool, behind: Option<Duration>) {
    let what = "it is live here, and the source's publication has it no more";
    let why = "its changes are in no log: what is here grows old";
    match behind {
        Some(behind) => {
            let why =
                format!("{why}; the replica is {} s behind, and what became of it may still come with the log", behind.as_secs());
            let step = "mend what holds the replica up (`millstream status`), and check again once it has caught up";
            findings.warn("captured", what, why, Some(Remedy::at(Place::Person, step)));
        }
        None if !wanted => {
            let what = "it is live here, and the source's tables have it no more";
            findings.warn("captured", what, why, Some(Remedy::at(Place::Shell, "millstream init")));
        }
        None => findings.error("captured", what, why, Some(copy_table_again(table))),
    }
    findings.about(table.to_string());
}

/// A live table beside replicas that go on.
pub(super) fn copy_table_again(table: &TableName) -> Remedy {
    let first = format!(
        "add {:?} to the source's tables, then `millstream init` until it has left, then empty or drop it here",
        format!("!{}", exactly(table))
    );
    Remedy::at(Place::Person, first).then("take that out again, and `millstream init` copies it, where the source still has it")
}

/// A live table at whose next change the replica halts: it leaves only where that finds no table.
pub(super) fn copy_misfit_again(table: &TableName) -> Remedy {
    let first = format!(
        "add {:?} to the source's tables, then `millstream init`, then drop it here ({}), then `millstream init` until it has left",
        format!("!{}", exactly(table)),
        format_args!("DROP TABLE {}", quote_table(table))
    );
    Remedy::at(Place::Person, first).then("take that out again, and `millstream init` makes and copies it")
}

/// A live table that the replica has under another name than it should, or not at all. `at_source`: its name there, once the log has told its number.
fn named(findings: &mut Findings, tables: &LedgerTables, known: &Known, at_source: Option<&TableName>, carries: bool) {
    let table = &known.table;
    let halts = "the replica halts with schema_mismatch, at its next change at the latest";
    match &known.called {
        Some(here) if here == table => {
            // With event triggers the renaming comes with the log.
            let Some(there) = at_source.filter(|there| *there != table && !carries) else { return };
            let what = format!("it is {there} on the source now");
            findings.error("live_table", what, halts, Some(give_name(tables, here, there)));
        }
        Some(here) if at_source == Some(here) => return,
        Some(here) => {
            let wanted = at_source.filter(|_| !carries).unwrap_or(table);
            let why = "who reads it by its name finds nothing or another table, and the replica halts with schema_mismatch when it comes to that";
            findings.error("live_table", format!("it was renamed to {here} here"), why, Some(give_name(tables, here, wanted)));
        }
        None if !tables.names.contains(table) => {
            let why = format!("its rows are gone, and {halts}");
            findings.error("live_table", "the replica has it no more", why, Some(copy_table_again(table)));
        }
        None if known.identified => {
            let why = format!("the rows of that one went with it, and {halts}");
            let remedy = copy_table_again(table)
                .then(format!("or, where it was rebuilt with every row of it, say so here: {}", rebuilt(table)));
            findings.error("live_table", "what has its name here is not the table that was copied", why, Some(remedy));
        }
        None => return,
    }
    findings.about(table.to_string());
}

/// Renames a table, to a name that may be another's.
fn give_name(tables: &LedgerTables, from: &TableName, to: &TableName) -> Remedy {
    let mut statements = renaming(from, to).into_iter();
    if tables.names.contains(to) {
        let first = format!(
            "first give the table that is called {to} here the name that is meant for it, or any other where it is none of the replicated ones; where two have each \
             other's names, give one a third name in between"
        );
        return statements.map(|statement| format!("{statement};")).fold(Remedy::at(Place::Person, first), Remedy::then);
    }
    let first = Remedy::sql(Side::Replica, statements.next().unwrap_or_default());
    statements.fold(first, Remedy::then)
}
