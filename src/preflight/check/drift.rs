//! Drift: indexes and constraints that the source has and a live replica lacks. They come with the first copy; what is made later is not carried.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sqlx::PgConnection;

use super::finding::{Findings, Remedy, Side};
use super::replica_fit::why;
use crate::error::Result;
use crate::event::TableName;
use crate::postgres::sql::{self, quote_ident, quote_table};
use crate::preflight::init::Blueprint;
use crate::preflight::init::definition::{self, ConstraintDefinition, IndexDefinition, TableDefinition};

/// Compares tables that are complete: of those in `building` the copy has still to make something.
pub(super) async fn check(
    findings: &mut Findings,
    connection: &mut PgConnection,
    blueprint: &Blueprint,
    here: &BTreeMap<&TableName, u32>,
    building: &BTreeSet<TableName>,
    late: Option<Duration>,
) -> Result<()> {
    let oids: Vec<u32> = here.values().copied().collect();
    let definitions = definition::read(connection, sql::Side::Replica, &oids).await?;
    for source in blueprint.all().filter(|table| !building.contains(&table.table)) {
        let Some(theirs) = here.get(&source.table).and_then(|oid| definitions.get(oid)) else { continue };
        let lacks = lacking(source, theirs, |table| here.contains_key(table));
        let mut statements = lacks.iter().map(|(_, statement)| statement.clone());
        let Some(first) = statements.next() else { continue };
        let remedy = statements.fold(Remedy::sql(Side::Replica, first), Remedy::then);
        let names: Vec<&str> = lacks.iter().map(|(name, _)| name.as_str()).collect();
        let reason = "the source has it: the replica's readers may be slower, and rows written here after a switch-over are held to less; \
             a replica may be meant so";
        findings.warn("drift", format!("it lacks {}", names.join(", ")), why(reason, late), Some(remedy));
        findings.about(source.table.to_string());
    }
    Ok(())
}

/// What is lacking, each with the statement that makes it. What has its name or is the same counts as it: PostgreSQL prints some definitions otherwise on a
/// table that was made from the print (`IN` over `varchar`), and storage settings are the replica's own.
fn lacking(source: &TableDefinition, replica: &TableDefinition, known: impl Fn(&TableName) -> bool) -> Vec<(String, String)> {
    let taken: BTreeSet<&String> =
        replica.indexes.iter().map(|index| &index.name).chain(replica.constraints.iter().map(|key| &key.name)).collect();
    let has_index = |index: &IndexDefinition| {
        taken.contains(&index.name) || replica.indexes.iter().any(|other| nameless(&other.text) == nameless(&index.text))
    };
    let has = |key: &ConstraintDefinition| {
        let same = |other: &ConstraintDefinition| other.kind == key.kind && valid(&other.text) == valid(&key.text);
        taken.contains(&key.name) || replica.constraints.iter().any(same)
    };
    let partitioned = source.partition_key.is_some();
    let indexes = source.indexes.iter().filter(|index| !index.from_parent && !has_index(index)).map(|index| {
        // Not for a partitioned table (PostgreSQL documentation, "CREATE INDEX").
        let statement = if partitioned { index.text.clone() } else { index.text.replacen("INDEX ", "INDEX CONCURRENTLY ", 1) };
        (format!("index {}", index.name), statement)
    });
    let name = quote_table(&source.table);
    let wanted = |key: &&ConstraintDefinition| {
        matches!(key.kind, 'p' | 'u' | 'x' | 'f' | 'c') && !key.from_parent && key.refers_to.as_ref().is_none_or(&known)
    };
    let constraints = source.constraints.iter().filter(wanted).filter(|key| !has(key)).map(|key| {
        (format!("constraint {}", key.name), format!("ALTER TABLE {name} ADD CONSTRAINT {} {}", quote_ident(&key.name), key.text))
    });
    indexes.chain(constraints).collect()
}

/// A constraint, validated or not.
fn valid(text: &str) -> &str {
    text.trim_end_matches(" NOT VALID")
}

/// An index without its name: `CREATE [UNIQUE] INDEX name ON …`, as `pg_get_indexdef` prints it.
fn nameless(text: &str) -> (bool, &str) {
    (text.starts_with("CREATE UNIQUE "), text.find(" ON ").map_or(text, |at| &text[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_what_stands_behind_its_name() {
        let one = "CREATE INDEX a ON public.t USING btree (x)";
        assert_eq!(nameless(one), nameless("CREATE INDEX \"b c\" ON public.t USING btree (x)"));
        assert_ne!(nameless(one), nameless("CREATE UNIQUE INDEX a ON public.t USING btree (x)"));
        assert_ne!(nameless(one), nameless("CREATE INDEX a ON public.t USING btree (y)"));
    }
}
