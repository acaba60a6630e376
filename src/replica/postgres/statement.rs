//! The SQL of set statements. Names are quoted by one function ([`crate::postgres::sql`]), values are parameters.
//!
//! A set statement takes one `text[]` per column and casts in SQL: sqlx's parameters are always binary, and the log holds text.
//! The casts name types without length, precision and scale; assignment to the column enforces those.

use std::fmt::Write as _;

use super::tables::Table;
use crate::event::Cell;

/// A column of the parameters: which cell it comes from, and what it is cast to.
struct Parameters {
    cells: Vec<usize>,
}

impl Parameters {
    fn add(&mut self, cell: usize) -> usize {
        self.cells.push(cell);
        self.cells.len() - 1
    }

    fn from(&self) -> String {
        from(self.cells.len())
    }

    fn statement(self, sql: String) -> Statement {
        Statement { sql, cells: self.cells, masks: Vec::new() }
    }
}

/// `unnest` of several arrays is grammar, not a function: it cannot be qualified. An empty search_path makes it ours.
fn from(parameters: usize) -> String {
    let arrays: Vec<_> = (1..=parameters).map(|n| format!("${n}::text[]")).collect();
    let names: Vec<_> = (0..parameters).map(|n| format!("a{n}")).collect();
    format!("unnest({}) AS u({})", arrays.join(","), names.join(","))
}

/// SQL, and the cells that its parameters take in order.
#[derive(Debug, PartialEq, Eq)]
pub struct Statement {
    /// The text.
    pub sql: String,
    /// Indexes into the rows: new cells, then finding cells.
    pub cells: Vec<usize>,
    /// New cells of which a parameter each, behind all others, says in which rows they are known.
    pub masks: Vec<usize>,
}

/// Inserts whole rows.
#[must_use]
pub fn insert(table: &Table) -> Statement {
    let mut parameters = Parameters { cells: Vec::new() };
    let (mut names, mut values) = (Vec::new(), Vec::new());
    for (index, column) in table.columns.iter().enumerate().filter(|(_, column)| column.written) {
        names.push(column.name.as_str());
        values.push(format!("u.a{}::{}", parameters.add(index), column.cast));
    }
    let sql = format!(
        "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {}",
        table.name,
        names.join(","),
        values.join(","),
        parameters.from()
    );
    parameters.statement(sql)
}

/// COPY of whole rows: its parameters are the columns of its text.
#[must_use]
pub fn copy(table: &Table) -> Statement {
    let written = || table.columns.iter().enumerate().filter(|(_, column)| column.written);
    let names: Vec<_> = written().map(|(_, column)| column.name.as_str()).collect();
    let sql = format!("COPY {} ({}) FROM STDIN", table.name, names.join(","));
    Statement { sql, cells: written().map(|(index, _)| index).collect(), masks: Vec::new() }
}

/// Deletes rows by key.
#[must_use]
pub fn delete(table: &Table) -> Statement {
    let mut parameters = Parameters { cells: Vec::new() };
    let key = by_key(table, &mut parameters);
    let sql = format!("DELETE FROM {} AS t USING {} WHERE {key}", table.alone(), parameters.from());
    parameters.statement(sql)
}

/// Updates rows by key; `None` when there is nothing that can be set.
///
/// GENERATED ALWAYS identity columns cannot be set; they are compared instead, so that a row where one changed is not found.
#[must_use]
pub fn update(table: &Table, set: &[usize]) -> Option<Statement> {
    let mut parameters = Parameters { cells: Vec::new() };
    let mut key = by_key(table, &mut parameters);
    let mut assignments = Vec::new();
    for &index in set {
        let column = &table.columns[index];
        if !column.written {
            continue;
        }
        let value = format!("u.a{}::{}", parameters.add(index), column.cast);
        if column.identity_always {
            let _infallible = write!(key, " AND t.{} IS NOT DISTINCT FROM {value}", column.name);
        } else {
            assignments.push(format!("{} = {value}", column.name));
        }
    }
    if assignments.is_empty() {
        let any = table.columns.iter().find(|column| column.written && !column.identity_always)?;
        assignments.push(format!("{0} = t.{0}", any.name));
    }
    let sql = format!("UPDATE {} AS t SET {} FROM {} WHERE {key}", table.alone(), assignments.join(", "), parameters.from());
    Some(parameters.statement(sql))
}

/// Updates rows of which some take unique values that others of them give up: every row is deleted before the first is inserted
/// again. A row that the own transaction has deleted, in the same command too, no longer counts for unique and exclusion
/// constraints (src/backend/access/heap/heapam_visibility.c, `HeapTupleSatisfiesDirty`).
///
/// `partial` are columns whose cells are unchanged in some rows; a mask as one more parameter each says in which.
#[must_use]
pub fn remake_together(table: &Table, partial: &[usize]) -> Statement {
    let mut parameters = Parameters { cells: Vec::new() };
    let key = by_key(table, &mut parameters);
    let written = || table.columns.iter().enumerate().filter(|(_, column)| column.written);
    let taken: Vec<_> = written().filter(|(index, _)| !table.shape.key.contains(index)).collect();
    let places: Vec<_> = taken.iter().map(|(index, _)| parameters.add(*index)).collect();
    let mut masks = Vec::new();
    let mut values: Vec<_> = table
        .shape
        .key
        .iter()
        .map(|&index| &table.columns[index])
        .filter(|column| column.written)
        .map(|c| format!("t.{}", c.name))
        .collect();
    let mut names: Vec<_> =
        table.shape.key.iter().map(|&index| &table.columns[index]).filter(|c| c.written).map(|c| c.name.clone()).collect();
    for ((index, column), place) in taken.iter().zip(places) {
        names.push(column.name.clone());
        let value = format!("u.a{place}::{}", column.cast);
        values.push(if partial.contains(index) {
            masks.push(*index);
            let mask = parameters.cells.len() + masks.len() - 1;
            format!("CASE WHEN u.a{mask}::boolean THEN {value} ELSE t.{} END", column.name)
        } else {
            value
        });
    }
    for name in &table.extra {
        names.push(name.clone());
        values.push(format!("t.{name}"));
    }
    let returned: Vec<_> = values.iter().enumerate().map(|(n, value)| format!("{value} AS v{n}")).collect();
    let inserted: Vec<_> = (0..values.len()).map(|n| format!("v{n}")).collect();
    // The count is wanted before the first row is, so that all of them are deleted by then.
    let sql = format!(
        "WITH gone AS (DELETE FROM {alone} AS t USING {from} WHERE {key} RETURNING {returned}) \
         INSERT INTO {name} ({names}) OVERRIDING SYSTEM VALUE SELECT {inserted} FROM gone \
         WHERE (SELECT pg_catalog.count(*) FROM gone) > 0",
        name = table.name,
        alone = table.alone(),
        from = from(parameters.cells.len() + masks.len()),
        returned = returned.join(","),
        names = names.join(","),
        inserted = inserted.join(","),
    );
    Statement { sql, cells: parameters.cells, masks }
}

/// Makes one row anew from what it was and what is set: for columns that cannot be updated.
#[must_use]
pub fn remake(table: &Table, set: &[usize]) -> Statement {
    let mut parameters = Parameters { cells: Vec::new() };
    let key = by_key(table, &mut parameters);
    let (mut names, mut values) = (Vec::new(), Vec::new());
    for (index, column) in table.columns.iter().enumerate().filter(|(_, column)| column.written) {
        names.push(column.name.clone());
        values.push(if set.contains(&index) {
            format!("(SELECT u.a{}::{} FROM u)", parameters.add(index), column.cast)
        } else {
            format!("gone.{}", column.name)
        });
    }
    for name in &table.extra {
        names.push(name.clone());
        values.push(format!("gone.{name}"));
    }
    let sql = format!(
        "WITH u AS (SELECT * FROM {}), gone AS (DELETE FROM {} AS t USING u WHERE {key} RETURNING t.*) \
         INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM gone",
        parameters.from(),
        table.alone(),
        table.name,
        names.join(","),
        values.join(",")
    );
    parameters.statement(sql)
}

fn by_key(table: &Table, parameters: &mut Parameters) -> String {
    let columns = table.columns.len();
    let mut terms = Vec::new();
    for (nth, (&index, operator)) in table.shape.key.iter().zip(&table.operators).enumerate() {
        let column = &table.columns[index];
        terms.push(format!("t.{} {operator} u.a{}::{}", column.name, parameters.add(columns + nth), column.cast));
    }
    terms.join(" AND ")
}

/// Deletes one of the rows that equal an old image, for a table without a key. Parameters are single values.
#[must_use]
pub fn delete_one(table: &Table, finders: &[Cell<'_>]) -> Statement {
    let mut parameters = Parameters { cells: Vec::new() };
    let one = one_row(table, finders, &mut parameters);
    parameters.statement(format!("DELETE FROM {} AS t USING {one}", table.alone()))
}

/// Updates one of the rows that equal an old image; `None` when there is nothing that can be set.
#[must_use]
pub fn update_one(table: &Table, set: &[usize], finders: &[Cell<'_>]) -> Option<Statement> {
    let mut parameters = Parameters { cells: Vec::new() };
    let mut assignments = Vec::new();
    for &index in set {
        let column = &table.columns[index];
        if column.written && !column.identity_always {
            assignments.push(format!("{} = ${}::{}", column.name, parameters.add(index) + 1, column.cast));
        }
    }
    if assignments.is_empty() {
        return None;
    }
    let one = one_row(table, finders, &mut parameters);
    let sql = format!("UPDATE {} AS t SET {} FROM {one}", table.alone(), assignments.join(", "));
    Some(parameters.statement(sql))
}

/// Exactly one of equal rows. Where equality is coarser than the text (numeric scale, negative zero) or does not exist (json,
/// xml), the text is compared, cast on both sides alike.
fn one_row(table: &Table, finders: &[Cell<'_>], parameters: &mut Parameters) -> String {
    let mut terms = vec!["true".to_owned()];
    for (index, (column, cell)) in table.columns.iter().zip(finders).enumerate().filter(|(_, (column, _))| column.written) {
        let (name, cast) = (&column.name, &column.cast);
        if *cell == Cell::Null {
            terms.push(format!("s.{name} IS NULL"));
            continue;
        }
        let value = format!("(${}::text)::{cast}", parameters.add(table.columns.len() + index) + 1);
        terms.push(if column.exact {
            format!("s.{name} OPERATOR(pg_catalog.=) {value}")
        } else {
            format!("(s.{name})::text OPERATOR(pg_catalog.=) ({value})::text")
        });
    }
    format!(
        "(SELECT s.tableoid, s.ctid FROM {} AS s WHERE {} LIMIT 1) AS x WHERE t.ctid = x.ctid AND t.tableoid = x.tableoid",
        table.alone(),
        terms.join(" AND ")
    )
}

/// Empties tables together. Tables that the replica has more, and that refer to these, make it fail.
pub fn truncate<'t>(tables: impl Iterator<Item = &'t Table>, restart_identity: bool) -> String {
    let names: Vec<_> = tables.map(Table::alone).collect();
    let identity = if restart_identity { "RESTART" } else { "CONTINUE" };
    format!("TRUNCATE TABLE {} {identity} IDENTITY RESTRICT", names.join(", "))
}
