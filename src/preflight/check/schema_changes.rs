//! Whether the source's schema changes are carried, when they are asked for, and what is missing for it.

use sqlx::PgConnection;

use super::finding::{Findings, Place, Remedy};
use crate::capture::publication_name;
use crate::config::{SchemaChanges, SourceConfig};
use crate::error::Result;
use crate::preflight::init::publication;
use crate::preflight::schema_changes::{self, Installed};
use crate::preflight::tables::TablePatterns;

const CHECK: &str = "schema_changes";
const WHY: &str = "a replica halts at each schema change until its table is changed by hand";

/// Checks it; nothing here is an error, because a replica that halts loses nothing.
pub(super) async fn check(
    findings: &mut Findings,
    source: &SourceConfig,
    patterns: &TablePatterns,
    connection: &mut PgConnection,
) -> Result<()> {
    let publication = publication_name(&source.name);
    let begun = publication::read(connection, &publication).await?.is_some();
    if begun {
        findings.keep_published(publication::captured(connection, &publication).await?);
    }
    let state = schema_changes::read(connection, &publication, patterns).await?;
    let init = || Remedy::at(Place::Shell, format!("millstream init --source {}", source.name));
    if source.schema_changes == SchemaChanges::Halt {
        if state.lingers() && state.installed != Installed::Closed {
            let why = "they write for a publication that does not ask for it";
            findings.warn(CHECK, "schema_changes = \"halt\", and event triggers are there", why, Some(init()));
        } else {
            findings.ok(CHECK, "a replica halts at each, as configured");
        }
        return Ok(());
    }
    if !state.can_carry() {
        let what = state.trouble().unwrap_or_else(|| format!("role {} may not create event triggers", state.role));
        // The script is long, and a superuser reads it before it runs.
        let script = format!(
            "millstream init --source {} --superuser-sql | psql -X -v ON_ERROR_STOP=1 -h {} -p {} -U postgres {}",
            source.name, source.connect.host, source.connect.port, source.connect.database
        );
        let remedy = Remedy::at(Place::Shell, script);
        let remedy = if begun { remedy.then(format!("millstream init --source {}", source.name)) } else { remedy };
        findings.warn(CHECK, format!("schema changes are not carried: {what}"), WHY, Some(remedy));
        return Ok(());
    }
    if state.trouble().is_none() && begun && state.has_other_patterns() {
        findings.keep_carrying();
        let what = "schema changes are carried, and tables that are made join by the patterns that `init` found last, which are not those of the file";
        let why = "a new table that only the file's patterns name stays out, and one that they no longer name comes in";
        findings.warn(CHECK, what, why, Some(init()));
        return Ok(());
    }
    let missing = match state.trouble() {
        Some(trouble) => Some(trouble),
        None if !begun => None,
        None if !state.is_enrolled() => Some("nothing is installed for this source".to_owned()),
        None if state.untold > 0 => {
            Some(format!("{} tables were changed while its event triggers were not at work", state.untold))
        }
        None => None,
    };
    if missing.is_none() {
        findings.keep_carrying();
    }
    match missing {
        Some(what) => findings.warn(CHECK, format!("schema changes are not carried: {what}"), WHY, Some(init())),
        None if begun => findings.ok(CHECK, "carried by event triggers"),
        None => findings.ok(CHECK, "carried, by event triggers that init installs"),
    }
    Ok(())
}
