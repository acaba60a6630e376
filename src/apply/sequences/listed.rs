//! The sequences of captured tables, as the source's catalog knows them.

use sqlx::{PgConnection, Row};

use crate::capture::publication_name;
use crate::error::{Error, ErrorKind, Result};
use crate::event::TableName;
use crate::postgres::sql::{quote_ident, quote_literal, quote_table};

/// Sequences behind the columns of published tables and of the partitioned ones above them (owned, of an identity, or used by a default), the columns, and whether these hold plain numbers.
const SEQUENCES: &str = "
    WITH published AS (
        SELECT c.oid, n.nspname, c.relname
          FROM (SELECT r.prrelid AS oid FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid WHERE p.pubname = $1
                UNION SELECT a.relid::oid FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid,
                     LATERAL pg_catalog.pg_partition_ancestors(r.prrelid) a (relid) WHERE p.pubname = $1) t
          JOIN pg_catalog.pg_class c ON c.oid = t.oid
          JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname <> 'millstream'),
    used AS (
        SELECT d.refobjid AS tab, d.refobjsubid::int AS col, d.objid AS seq
          FROM pg_catalog.pg_depend d JOIN published p ON p.oid = d.refobjid
         WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.refclassid = 'pg_catalog.pg_class'::regclass
           AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i')
        UNION
        SELECT f.adrelid, f.adnum::int, d.refobjid
          FROM pg_catalog.pg_attrdef f
          JOIN published p ON p.oid = f.adrelid
          JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_attrdef'::regclass AND d.objid = f.oid
           AND d.refclassid = 'pg_catalog.pg_class'::regclass)
    SELECT n.nspname::text, c.relname::text, s.seqincrement > 0, p.nspname::text, p.relname::text, a.attname::text,
           a.atttypid IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype, 'numeric'::regtype),
           pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND pg_catalog.has_sequence_privilege(c.oid, 'SELECT')
      FROM used u
      JOIN pg_catalog.pg_class c ON c.oid = u.seq AND c.relkind = 'S'
      JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
      JOIN pg_catalog.pg_sequence s ON s.seqrelid = c.oid
      JOIN published p ON p.oid = u.tab
      JOIN pg_catalog.pg_attribute a ON a.attrelid = u.tab AND a.attnum = u.col
     ORDER BY 1, 2, 4, 5, 6";

/// A sequence of a captured table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: TableName,
    /// Its numbers grow.
    pub ascends: bool,
    /// The capturing role may read its value.
    pub readable: bool,
    /// What sets it from a replica's own rows; `None` where no column holds its plain numbers.
    pub statement: Option<String>,
}

/// The sequences of a source's published tables, by name.
///
/// # Errors
/// The server's.
pub async fn list(connection: &mut PgConnection, source: &str) -> Result<Vec<Listed>> {
    let failed = |error: sqlx::Error| Error::new(ErrorKind::Connection, "cannot list the source's sequences").with_source(error);
    let rows = sqlx::query(SEQUENCES).bind(publication_name(source)).fetch_all(connection).await.map_err(failed)?;
    let mut found: Vec<(Listed, Vec<String>)> = Vec::new();
    for row in &rows {
        let text = |index| row.try_get::<String, _>(index).map_err(failed);
        let flag = |index| row.try_get::<bool, _>(index).map_err(failed);
        let (name, table, column) = (TableName::new(text(0)?, text(1)?), TableName::new(text(3)?, text(4)?), text(5)?);
        let (ascends, number, readable) = (flag(2)?, flag(6)?, flag(7)?);
        if found.last().is_none_or(|(last, _)| last.name != name) {
            found.push((Listed { name, ascends, readable, statement: None }, Vec::new()));
        }
        if let (Some((_, columns)), true) = (found.last_mut(), number) {
            let last = if ascends { "max" } else { "min" };
            columns.push(format!("SELECT {last}({}) AS v FROM {}", quote_ident(&column), quote_table(&table)));
        }
    }
    let with_statement = |(listed, columns): (Listed, Vec<String>)| Listed {
        statement: statement(&listed.name, listed.ascends, &columns),
        ..listed
    };
    Ok(found.into_iter().map(with_statement).collect())
}

/// Sets a sequence behind the last number that a column holds, never back: numbers of rows that are gone are not given out again. `None` where no column holds
/// plain numbers.
fn statement(sequence: &TableName, ascends: bool, columns: &[String]) -> Option<String> {
    let (last, behind) = if ascends { ("max", ">= last_value +") } else { ("min", "<= last_value -") };
    let (from, name) = (quote_table(sequence), quote_literal(&quote_table(sequence)));
    let rows = columns.join(" UNION ALL ");
    (!columns.is_empty())
        .then(|| format!("SELECT pg_catalog.setval({name}, {last}(v)::bigint) FROM ({rows}) u HAVING (SELECT {last}(v) {behind} is_called::int FROM {from});"))
}
