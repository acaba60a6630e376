//! What the publication leaves out. pgoutput drops in silence what a row filter, a column list or `publish` excludes, and with
//! `publish_via_partition_root` a TRUNCATE of one partition; PostgreSQL 18 streams without a publication that is not there (PostgreSQL documentation,
//! "Logical Replication", "Row Filters", "Column Lists"; `CREATE PUBLICATION`). Whoever alters Millstream's own publication loses changes, and has to be told (I5).

use std::time::Duration;

use crate::error::{Error, Result};
use crate::halt::HaltCode;
use crate::postgres::{PgClient, quote_literal};

/// How every publication of ours is.
pub const OPTIONS: &str = "publish = 'insert, update, delete, truncate', publish_via_partition_root = false";

const QUERY_WAIT: Duration = Duration::from_secs(10);

/// SQL for what a publication leaves out, a row each: `what`, and the statement that `mends` it, empty where there is none.
///
/// The columns of filters and lists are there from PostgreSQL 15 on, which is why rows are read as JSON.
#[must_use]
pub fn left_out(publication: &str) -> String {
    let name = quote_literal(publication);
    format!(
        "SELECT 'it is not there' AS what, '' AS mends WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_publication WHERE pubname = {name}) \
         UNION ALL SELECT 'it leaves out kinds of changes', pg_catalog.format('ALTER PUBLICATION %I SET ({options})', pubname) \
           FROM pg_catalog.pg_publication WHERE pubname = {name} AND NOT (pubinsert AND pubupdate AND pubdelete AND pubtruncate AND NOT pubviaroot) \
         UNION ALL SELECT pg_catalog.format('it has a row filter or a column list for table %s.%s', n.nspname, c.relname), \
           pg_catalog.format('BEGIN; ALTER PUBLICATION %1$I DROP TABLE %2$I.%3$I; ALTER PUBLICATION %1$I ADD TABLE ONLY %2$I.%3$I; COMMIT', \
             p.pubname, n.nspname, c.relname) \
           FROM pg_catalog.pg_publication p JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid JOIN pg_catalog.pg_class c ON c.oid = r.prrelid \
           JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
           WHERE p.pubname = {name} AND (pg_catalog.to_jsonb(r) ->> 'prqual' IS NOT NULL OR pg_catalog.to_jsonb(r) ->> 'prattrs' IS NOT NULL)",
        options = OPTIONS.replace('\'', "''"),
    )
}

/// Looks at it.
///
/// # Errors
/// A halt with `source_misconfigured` for one that leaves something out; those of the server.
pub async fn check(client: &mut PgClient, publication: &str) -> Result<()> {
    let rows = client.simple_query_within(&left_out(publication), QUERY_WAIT).await?;
    let Some(row) = rows.first() else { return Ok(()) };
    let way = match row.text("mends")? {
        "" => "run `millstream teardown` and `millstream init`, which copy every table again".to_owned(),
        statement => format!("run {statement}; and copy those tables again"),
    };
    let message = format!(
        "publication {publication} was altered: {}. What it leaves out is in no log, so that replicas miss it from then on: {way}",
        row.text("what")?
    );
    Err(Error::halt(HaltCode::SourceMisconfigured, message))
}
