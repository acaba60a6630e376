//! What the publication leaves out. pgoutput judges each change by the publication as it stood then, and drops in silence what a row filter, a column
//! list or `publish` excludes, and with `publish_via_partition_root` a TRUNCATE of one partition; PostgreSQL 18 streams without a publication that is not there
//! (PostgreSQL documentation, "Logical Replication", "Row Filters", "Column Lists"; `CREATE PUBLICATION`). Whoever alters Millstream's own publication loses
//! changes for good, also when it is put back, and has to be told (I5).
//!
//! So the publication carries a mark, its comment: the transaction that wrote its row in `pg_publication`, and of each table the row in
//! `pg_publication_rel` that put it there. Other options and a publication made anew do not agree with the first; a table that was taken out, also one that is back, and
//! a row filter or a column list that came and went (from PostgreSQL 15 on those make another row, documentation of `ALTER PUBLICATION`) not with the second:
//! whoever looks and whenever. `init` writes the mark anew with each change of its own, in one transaction with it, and what was there keeps the row that it had. The
//! event triggers, which publish tables that are made, keep their rows in their own memory (`millstream.known_table`): the comment is nothing that the application's transactions may wait
//! for. A table that was dropped is nobody's alteration, whatever has its number by now. What is found is written into the mark.

use std::time::Duration;

use super::catalog::{major_version, one};
use crate::capture::begin::publication_name;
use crate::error::{Error, Result};
use crate::halt::HaltCode;
use crate::postgres::{PgClient, ServerError, quote_ident, quote_literal};

/// How every publication of ours is.
pub const OPTIONS: &str = "publish = 'insert, update, delete, truncate', publish_via_partition_root = false";

/// True where the event triggers of schema changes are there to be asked which tables were published.
pub const CARRIES: &str = "SELECT pg_catalog.count(*) = 2 AS carries FROM pg_catalog.pg_namespace n JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid \
     JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND (c.relname, a.attname) IN (('known_table', 'entries'), ('captured', 'entry')) \
     WHERE n.nspname = 'millstream' AND pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND pg_catalog.has_table_privilege(c.oid, 'SELECT')";

const MARK: &str = "Millstream: made in transaction ";
/// Behind the transaction: `table:row table:row …`, numbers of `pg_class` and `pg_publication_rel`.
const TABLES: &str = "; its tables: ";
const SPOILED: &str = "Millstream: left changes out: ";
/// Of a table `c` in schema `n`, whose row should be there, and the row `r` that is.
const OUT: &str = "pg_catalog.format('table %s.%s was taken out of it', n.nspname, c.relname) || CASE WHEN r.oid IS NULL THEN '' ELSE ' and put back' END";
const FILTERS_SINCE: u32 = 15;
const QUERY_WAIT: Duration = Duration::from_secs(10);

/// The tables of a mark, a row each: `relation` and `entry`.
fn entries(mark: &str) -> String {
    format!(
        "(SELECT (CASE WHEN e ~ '^[0-9]+:[0-9]+$' THEN pg_catalog.split_part(e, ':', 1) END)::oid AS relation, pg_catalog.split_part(e, ':', 2) AS entry \
         FROM pg_catalog.regexp_split_to_table(pg_catalog.substr({mark}, pg_catalog.length('{TABLES}') + nullif(pg_catalog.strpos({mark}, '{TABLES}'), 0)), ' ') e)"
    )
}

/// SQL that marks a publication that was just made or changed. In one transaction with that.
#[must_use]
pub fn mark(publication: &str) -> String {
    format!(
        "DO $$ DECLARE said text; BEGIN FOR said IN SELECT pg_catalog.format('COMMENT ON PUBLICATION %I IS %L', m.pubname, \
           coalesce(pg_catalog.substring(m.mark, '^{MARK}[0-9]+'), '{MARK}' || m.made) || '{TABLES}' || coalesce(( \
             SELECT pg_catalog.string_agg(r.prrelid::text || ':' || coalesce(k.entry, r.oid::text), ' ' ORDER BY r.prrelid) \
             FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_class c ON c.oid = r.prrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             LEFT JOIN {} k ON k.relation = r.prrelid WHERE r.prpubid = m.oid AND n.nspname <> 'millstream'), '')) \
         FROM (SELECT p.oid, p.pubname, p.xmin::text AS made, pg_catalog.obj_description(p.oid, 'pg_publication') AS mark FROM pg_catalog.pg_publication p) m \
         WHERE m.pubname = {} AND coalesce(m.mark, '') NOT LIKE '{SPOILED}%' LOOP EXECUTE said; END LOOP; END $$",
        entries("m.mark"),
        quote_literal(publication)
    )
}

/// SQL for what a publication leaves out or has left out, a row each: `what`. `carries` is what [`CARRIES`] says.
#[must_use]
pub fn left_out(publication: &str, major: u32, carries: bool) -> String {
    let name = quote_literal(publication);
    let mut sql = format!(
        "SELECT 'it is not there' AS what WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_publication WHERE pubname = {name}) \
         UNION ALL SELECT 'it leaves out kinds of changes' FROM pg_catalog.pg_publication \
           WHERE pubname = {name} AND NOT (pubinsert AND pubupdate AND pubdelete AND pubtruncate AND NOT pubviaroot) \
         UNION ALL SELECT CASE WHEN m.mark LIKE '{SPOILED}%' THEN pg_catalog.substr(m.mark, pg_catalog.length('{SPOILED}') + 1) \
             WHEN m.mark IS NULL THEN 'somebody made it anew, or took its comment' \
             WHEN m.mark NOT LIKE '{MARK}%' THEN 'somebody changed its comment, which says how it was made' ELSE 'somebody changed its options or its owner' END \
           FROM (SELECT pg_catalog.obj_description(p.oid, 'pg_publication') AS mark, p.xmin::text AS made FROM pg_catalog.pg_publication p \
             WHERE p.pubname = {name}) m WHERE pg_catalog.split_part(m.mark, '{TABLES}', 1) IS DISTINCT FROM '{MARK}' || m.made \
         UNION ALL SELECT {OUT} FROM pg_catalog.pg_publication p \
           CROSS JOIN LATERAL {} k JOIN pg_catalog.pg_class c ON c.oid = k.relation AND c.relkind IN ('r', 'p') AND c.relpersistence = 'p' JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
           LEFT JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = c.oid \
           WHERE p.pubname = {name} AND r.oid::text IS DISTINCT FROM k.entry",
        entries("pg_catalog.obj_description(p.oid, 'pg_publication')")
    );
    if major >= FILTERS_SINCE {
        sql += &format!(
            " UNION ALL SELECT pg_catalog.format('it has a row filter or a column list for table %s.%s', n.nspname, c.relname) \
             FROM pg_catalog.pg_publication p JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid JOIN pg_catalog.pg_class c ON c.oid = r.prrelid \
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE p.pubname = {name} AND (r.prqual IS NOT NULL OR r.prattrs IS NOT NULL)"
        );
    }
    if carries {
        sql += &format!(
            " UNION ALL SELECT {OUT} FROM (SELECT k.relation, k.entries ->> {name} AS entry FROM millstream.known_table k WHERE k.entries ? {name}) k \
             JOIN pg_catalog.pg_publication p ON p.pubname = {name} \
             JOIN pg_catalog.pg_class c ON c.oid = k.relation AND c.relkind IN ('r', 'p') AND c.relpersistence = 'p' \
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = c.oid \
             WHERE EXISTS (SELECT FROM millstream.captured WHERE publication = {name}) AND r.oid::text IS DISTINCT FROM k.entry \
             UNION ALL SELECT {OUT} FROM millstream.captured m JOIN pg_catalog.pg_publication p ON p.pubname = m.publication \
             JOIN pg_catalog.pg_class c ON c.relname = 'schema_change' JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'millstream' \
             LEFT JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = c.oid \
             WHERE m.publication = {name} AND r.oid IS DISTINCT FROM m.entry"
        );
    }
    sql
}

/// What it leaves out, or has left out at some time, if anything. What is found is written into the publication's mark.
///
/// # Errors
/// Those of the server.
pub async fn look(client: &mut PgClient, publication: &str) -> Result<Option<String>> {
    let major = major_version(client)?;
    let carries = one(client.simple_query_within(CARRIES, QUERY_WAIT).await?)?.text("carries")? == "t";
    let rows = client.simple_query_within(&left_out(publication, major, carries), QUERY_WAIT).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let what = row.text("what")?.to_owned();
    let spoil = format!("COMMENT ON PUBLICATION {} IS {}", quote_ident(publication), quote_literal(&format!("{SPOILED}{what}")));
    // Best effort: a source that takes no writes was not altered just now, and one without the publication has nothing to mark.
    if let Err(error) = client.simple_query_within(&spoil, QUERY_WAIT).await {
        tracing::debug!(%error, "the publication could not be marked");
    }
    Ok(Some(what))
}

/// The halt for what [`look`] found.
#[must_use]
pub fn altered(source: &str, what: &str) -> Error {
    let message = format!(
        "publication {} was altered: {what}. What it left out is in no log, and replicas miss it also when it is put back: \
         stop the daemon, run `millstream teardown --source {source}` and `millstream init`, and start it; every table is copied again",
        publication_name(source)
    );
    Error::halt(HaltCode::PublicationAltered, message)
}

/// Until PostgreSQL 17 pgoutput refuses a change that was made while there was no publication of the name, at every attempt (42704 undefined_object).
#[must_use]
pub fn of_stream(source: &str, error: Error) -> Error {
    let of_it = |said: &ServerError| said.sqlstate == "42704" && said.message.contains(&publication_name(source));
    if ServerError::find(&error).is_some_and(of_it) {
        return altered(source, &format!("it was not there for a time ({error})"));
    }
    error
}
