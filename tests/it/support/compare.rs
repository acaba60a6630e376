//! Source against replica by plain SQL, independent of Millstream's code.
//!
//! Both sides must stand still, or be read in snapshots that are known to be equal.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use super::postgres::PgDatabase;
use super::sql::ident;
use super::wait::eventually;

/// Rows shown of each side of a difference.
const SHOWN: usize = 5;

/// What was compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// Tables.
    pub tables: u64,
    /// Rows of them all.
    pub rows: u64,
}

/// Compares every user table of the source; the differences as text when there are any.
pub async fn compare(source: &PgDatabase<'_>, replica: &PgDatabase<'_>) -> Result<Compared, String> {
    let mut done = Compared::default();
    let mut wrong = String::new();
    let tables = tables(source).await?;
    assert!(!tables.is_empty(), "the source has no tables to compare");
    for (table, columns) in tables {
        done.tables += 1;
        match compare_table(source, replica, &table, &columns).await {
            Ok(rows) => done.rows += rows,
            Err(text) => writeln!(wrong, "{table}: {text}").expect("a string"),
        }
    }
    if wrong.is_empty() { Ok(done) } else { Err(wrong) }
}

/// Waits for both sides to be equal; panics with the difference when they do not become so.
#[track_caller]
pub fn equal(source: &PgDatabase<'_>, replica: &PgDatabase<'_>, deadline: Duration) -> impl Future<Output = Compared> {
    eventually("source and replica to be equal", deadline, async || match compare(source, replica).await {
        Ok(done) => Ok(done),
        // Shown unescaped, line by line.
        Err(text) => Err(Shown(text)),
    })
}

struct Shown(String);

impl std::fmt::Debug for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Tables with the expression that prints a row, columns by name.
async fn tables(source: &PgDatabase<'_>) -> Result<BTreeMap<String, String>, String> {
    let sql = "SELECT n.nspname, c.relname, a.attname
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname NOT IN ('information_schema', 'millstream')
        ORDER BY 1, 2, a.attname";
    let rows = source.query(sql).await.map_err(|e| format!("source: {e}"))?;
    let mut tables: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for row in rows {
        let [Some(schema), Some(table), Some(column)] = <[_; 3]>::try_from(row).expect("three columns") else { continue };
        tables.entry(format!("{}.{}", ident(&schema), ident(&table))).or_default().push(ident(&column));
    }
    Ok(tables.into_iter().map(|(table, columns)| (table, format!("ROW({})::text", columns.join(", ")))).collect())
}

async fn compare_table(source: &PgDatabase<'_>, replica: &PgDatabase<'_>, table: &str, row: &str) -> Result<u64, String> {
    // Equal settings on both sides, so that equal values print alike.
    let sql = format!(
        "SET datestyle = 'ISO'; SET timezone = 'UTC'; SET extra_float_digits = 3; SET bytea_output = 'hex';
         SELECT count(*), md5(string_agg(h, '' ORDER BY h COLLATE \"C\")) FROM (SELECT md5({row}) AS h FROM {table}) rows"
    );
    let (left, right) = tokio::join!(source.query(&sql), replica.query(&sql));
    let left = left.map_err(|e| format!("source: {e}"))?;
    let right = right.map_err(|e| format!("replica: {e}"))?;
    let count = |rows: &[Vec<Option<String>>]| rows[0][0].clone().expect("a count");
    if left == right {
        return Ok(count(&left).parse().expect("a number"));
    }
    let (left_count, right_count) = (count(&left), count(&right));
    Err(format!(
        "{left_count} rows on the source, {right_count} on the replica\n{}",
        difference(source, replica, table, row).await?
    ))
}

async fn difference(source: &PgDatabase<'_>, replica: &PgDatabase<'_>, table: &str, row: &str) -> Result<String, String> {
    // Equal rows are told apart by their number, so that a missing duplicate shows.
    let sql = format!(
        "SELECT row_number() OVER (PARTITION BY r) || ' of ' || left(r, 200) || ' ' || md5(r) FROM (SELECT {row} AS r FROM {table}) x"
    );
    let set = async |db: &PgDatabase<'_>| -> Result<BTreeSet<String>, String> {
        let rows = db.query(&sql).await.map_err(|e| e.to_string())?;
        Ok(rows.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect())
    };
    let (left, right) = (set(source).await?, set(replica).await?);
    let mut text = String::new();
    for (side, rows) in [("only on the source", left.difference(&right)), ("only on the replica", right.difference(&left))] {
        let rows: Vec<&String> = rows.collect();
        writeln!(text, "  {} {side}", rows.len()).expect("a string");
        rows.iter().take(SHOWN).for_each(|row| writeln!(text, "    {row}").expect("a string"));
    }
    Ok(text)
}
