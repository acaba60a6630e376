//! `init --dry-run`: the statements that `init` would run, in its order. What is only known while it runs stands in angle brackets.

use std::collections::BTreeSet;
use std::sync::Arc;

use sqlx::PgConnection;

use super::ddl::Deferred;
use super::publication::PublicationPlan;
use super::{Line, Outcome, Report, Target};
use crate::capture::begin::{Beginning, beginning, publication_name};
use crate::config::SourceConfig;
use crate::error::Result;
use crate::event::TableName;
use crate::postgres::sql::{Side, classify, quote_literal};
use crate::queue::Queue;
use crate::replica::postgres::ledger::{CopyState, MIGRATIONS, identity_of};

/// Where sqlx keeps which migrations have run, as it makes it (sqlx-postgres, `ensure_migrations_table`).
const SCHEMA_VERSION: &str = "CREATE TABLE IF NOT EXISTS millstream.schema_version (version bigint PRIMARY KEY, description text NOT NULL, \
     installed_on timestamptz NOT NULL DEFAULT now(), success boolean NOT NULL, checksum bytea NOT NULL, execution_time bigint NOT NULL)";

/// Says everything and does nothing.
pub(super) async fn say(
    config: &SourceConfig,
    queue: &Arc<dyn Queue>,
    (published, triggers): (&PublicationPlan, &[String]),
    targets: &mut [Target<'_>],
    adopt: bool,
    report: Report<'_>,
) -> Result<Outcome> {
    let mut lines = Vec::new();
    let place = format!("source {}, {}", config.name, config.connect);
    lines.extend(published.statements.iter().chain(triggers).map(|statement| sql(&place, statement)));
    if !matches!(beginning(queue, &config.name).await?, Beginning::Begun(_)) {
        let name = publication_name(&config.name);
        lines.push(Line::Note(format!(
            "queue: stream {} is begun, with a record of the slot's name before the slot and one of its start after it",
            config.name
        )));
        lines.push(sql(&place, &format!("SELECT pg_create_logical_replication_slot('{name}_<random>', 'pgoutput')")));
    }
    for target in targets {
        of_replica(config, target, adopt, &mut lines).await?;
    }
    let outcome = if lines.is_empty() { Outcome::Unchanged } else { Outcome::Changed };
    lines.into_iter().for_each(report);
    Ok(outcome)
}

fn sql(place: &str, statement: &str) -> Line {
    Line::Sql { place: place.to_owned(), statement: statement.to_owned() }
}

async fn of_replica(config: &SourceConfig, target: &mut Target<'_>, adopt: bool, lines: &mut Vec<Line>) -> Result<()> {
    let (name, plan) = (&target.config.name, &target.plan);
    let place = format!("replica {name}, {}", target.config.connect);
    if !target.known {
        lines.push(Line::Note(format!("queue: consumer {name} of stream {} is registered at the log's end", config.name)));
    }
    lines.extend(ledger(&mut target.connection).await?.iter().map(|statement| sql(&place, statement)));
    lines.extend(plan.statements.iter().map(|statement| sql(&place, statement)));
    let quoted = quote_literal(name);
    if !target.known {
        let source = quote_literal(&config.name);
        lines.push(sql(
            &place,
            &format!(
                "INSERT INTO millstream.replica (name, source, stream, history, cursor, position)\n  \
                 VALUES ({quoted}, {source}, '<the stream''s id>', '<the source''s identity>', '<its place in the log>', '<that as an LSN>')"
            ),
        ));
    }
    let state = if adopt && !target.known { CopyState::Live } else { CopyState::Pending };
    if !plan.tables.is_empty() {
        lines.push(sql(&place, &register(&quoted, &plan.tables, state)));
    }
    lines.extend(plan.deferred.iter().map(|later| sql(&place, &put_off(&quoted, later))));
    lines.extend(plan.gone.iter().map(|table| sql(&place, &forget(&quoted, table))));
    let later = format!("{place}, once it has passed the last change to the table");
    lines.extend(plan.leaving.iter().map(|table| sql(&later, &forget(&quoted, table))));
    let later = format!("{place}, when the copy has caught up");
    lines.extend(plan.deferred.iter().map(|deferred| sql(&later, &deferred.statement)));
    Ok(())
}

fn register(replica: &str, tables: &[TableName], state: CopyState) -> String {
    let rows: Vec<String> = tables.iter().map(|table| format!("({})", pair(table))).collect();
    let live_at = if state == CopyState::Live { "clock_timestamp()" } else { "NULL::timestamptz" };
    format!(
        "INSERT INTO millstream.copied_table (replica, table_schema, table_name, state, copy_group, live_at, replica_table)\n  \
         SELECT {replica}, s, t, {}, coalesce((SELECT max(copy_group) + 1 FROM millstream.copied_table WHERE replica = {replica}), 0), {live_at}, {}\n  \
         FROM (VALUES {}) v(s, t)",
        quote_literal(state.as_str()),
        identity_of("s", "t"),
        rows.join(", ")
    )
}

fn put_off(replica: &str, later: &Deferred) -> String {
    format!(
        "INSERT INTO millstream.deferred_ddl (replica, ordinal, table_schema, table_name, kind, statement)\n  \
         SELECT {replica}, coalesce(max(ordinal), 0) + 1, {}, {}, {} FROM millstream.deferred_ddl WHERE replica = {replica}",
        pair(&later.table),
        quote_literal(later.kind.as_str()),
        quote_literal(&later.statement)
    )
}

fn pair(table: &TableName) -> String {
    format!("{}, {}", quote_literal(&table.schema), quote_literal(&table.name))
}

fn forget(replica: &str, table: &TableName) -> String {
    format!("DELETE FROM millstream.copied_table WHERE (replica, table_schema, table_name) = ({replica}, {})", pair(table))
}

/// The ledger's migrations that are not there yet.
async fn ledger(replica: &mut PgConnection) -> Result<Vec<String>> {
    let fail = |e| classify(e, Side::Replica);
    let there: bool = sqlx::query_scalar("SELECT pg_catalog.to_regclass('millstream.schema_version') IS NOT NULL")
        .fetch_one(&mut *replica)
        .await
        .map_err(fail)?;
    let mut done = BTreeSet::new();
    let mut statements = Vec::new();
    if there {
        let versions: Vec<i64> =
            sqlx::query_scalar("SELECT version FROM millstream.schema_version").fetch_all(replica).await.map_err(fail)?;
        done.extend(versions);
    } else {
        statements.push("CREATE SCHEMA IF NOT EXISTS millstream".to_owned());
        statements.push(SCHEMA_VERSION.to_owned());
    }
    let missing = MIGRATIONS.iter().filter(|migration| !done.contains(&migration.version));
    statements.extend(missing.map(|migration| migration.sql.as_str().trim_end().trim_end_matches(';').to_owned()));
    Ok(statements)
}
