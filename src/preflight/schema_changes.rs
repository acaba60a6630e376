//! The source's side of schema changes: the event triggers of `migrations/source_postgres`, made, looked at and removed.
//!
//! One installation serves every source of a database. Whoever may create event triggers installs it; a role that may not uses what a
//! superuser installed, through two functions that run with the superuser's rights and ask for no more than a publication of the role's
//! own: `millstream.enrol` and `millstream.withdraw`. The last publication that withdraws takes everything with it.
//!
//! `check` and `init` read the same [`State`]; what differs from the [`SchemaChanges`] asked for is [`State::statements`].

use sqlx::{AssertSqlSafe, Executor, PgConnection, Row};

use super::tables::TablePatterns;
use crate::capture::postgres::publication::mark;
use crate::config::{SchemaChanges, SourceConfig};
use crate::error::Result;
use crate::event::TableName;
use crate::postgres::sql::{Side, classify, quote_ident, quote_literal};

const INSTALL: &str = include_str!("../../migrations/source_postgres/0001_schema_changes.sql");
const REMOVE: &str = include_str!("../../migrations/source_postgres/remove.sql");

/// What `migrations/source_postgres` makes, as the catalog has it: a change by hand shows. Whether triggers are enabled is asked apart.
const FINGERPRINT: &str = "SELECT pg_catalog.md5(pg_catalog.string_agg(x.line, ' ' ORDER BY x.line COLLATE \"C\")) FROM (\
     SELECT p.proname || ' ' || p.prosecdef::text || coalesce(p.proconfig::text, '') || pg_catalog.md5(p.prosrc) AS line \
     FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = 'millstream' \
     UNION ALL SELECT c.relname || ' ' || a.attname || ' ' || t.typname || ' ' || a.attnotnull::text FROM pg_catalog.pg_class c \
     JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid \
     JOIN pg_catalog.pg_type t ON t.oid = a.atttypid WHERE n.nspname = 'millstream' AND a.attnum > 0 AND NOT a.attisdropped \
     AND c.relname IN ('schema_change', 'known_table', 'captured') \
     UNION ALL SELECT c.relname || ' ' || g.tgname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
     JOIN pg_catalog.pg_trigger g ON g.tgrelid = c.oid WHERE n.nspname = 'millstream' AND NOT g.tgisinternal \
     AND c.relname IN ('schema_change', 'known_table', 'captured') \
     UNION ALL SELECT e.evtname || ' ' || e.evtevent || ' ' || p.proname FROM pg_catalog.pg_event_trigger e \
     JOIN pg_catalog.pg_proc p ON p.oid = e.evtfoid WHERE e.evtname LIKE 'millstream\\_%') x";

/// The right to create event triggers cannot be asked for: superusers have it, and the administrators' roles of managed services.
const LOOK: &str = "SELECT \
     EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE pg_catalog.pg_has_role(r.oid, 'USAGE') AND (r.rolsuper AND r.rolname = current_user \
        OR r.rolname IN ('rds_superuser', 'azure_pg_admin', 'cloudsqlsuperuser'))), \
     EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.relnamespace = n.oid AND c.relname = 'installed') \
        OR EXISTS (SELECT FROM pg_catalog.pg_event_trigger WHERE evtname LIKE 'millstream\\_%'), \
     coalesce(pg_catalog.has_schema_privilege(n.oid, 'USAGE'), false) AND (SELECT count(*) = 2 AND bool_and(pg_catalog.has_function_privilege(p.oid, 'EXECUTE')) \
        FROM pg_catalog.pg_proc p WHERE p.pronamespace = n.oid AND p.proname IN ('enrol', 'withdraw')) \
        AND (SELECT count(*) = 3 AND bool_and(pg_catalog.has_table_privilege(c.oid, 'SELECT')) \
        FROM pg_catalog.pg_class c WHERE c.relnamespace = n.oid AND c.relname IN ('installed', 'captured', 'known_table')), \
     current_user::text, \
     ARRAY(SELECT e.evtname::text FROM pg_catalog.pg_event_trigger e WHERE e.evtname LIKE 'millstream\\_%' AND e.evtenabled <> 'A' ORDER BY 1) \
     FROM (SELECT 1) one LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = 'millstream'";

/// Tables of a publication whose facts are not what the log was last told.
const UNTOLD: &str = "SELECT count(*) FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid \
     LEFT JOIN millstream.known_table k ON k.relation = r.prrelid \
     WHERE p.pubname = $1 AND r.prrelid <> 'millstream.schema_change'::regclass AND k.facts IS DISTINCT FROM millstream.facts(r.prrelid)";

/// What is there of the triggers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Installed {
    /// Nothing.
    No,
    /// As this version makes it.
    Yes,
    /// Of another version, incomplete, or changed by hand.
    Altered,
    /// Something, and this role may not use it.
    Closed,
}

/// How things stand for one publication.
#[derive(Clone, Debug)]
pub struct State {
    /// The triggers.
    pub installed: Installed,
    /// Triggers that do not fire in every session.
    pub disabled: Vec<String>,
    /// This role may create event triggers.
    pub may_install: bool,
    /// The role that asked.
    pub role: String,
    publication: String,
    wanted: Vec<String>,
    /// Patterns of the publications enrolled, by name.
    enrolled: Vec<(String, Vec<String>)>,
    /// The publication carries what the triggers say.
    published: bool,
    /// Its tables that the triggers' memory does not have as they are.
    pub untold: i64,
}

/// Reads it.
///
/// # Errors
/// The server's.
pub async fn read(source: &mut PgConnection, publication: &str, patterns: &TablePatterns) -> Result<State> {
    let fail = |e| classify(e, Side::Source);
    let row = sqlx::query(LOOK).fetch_one(&mut *source).await.map_err(fail)?;
    let (there, may_use): (bool, bool) = (row.get(1), row.get(2));
    let mut state = State {
        installed: if there { Installed::Closed } else { Installed::No },
        disabled: row.get(4),
        may_install: row.get(0),
        role: row.get(3),
        publication: publication.to_owned(),
        wanted: patterns.regexes(),
        enrolled: Vec::new(),
        published: false,
        untold: 0,
    };
    if !there || !may_use {
        // What is broken so far that it cannot be used is for its owner to make anew.
        if there && state.may_install {
            state.installed = Installed::Altered;
        }
        return Ok(state);
    }
    let sound = format!(
        "SELECT count(*) = 1 AND bool_and(version = {} AND fingerprint = ({FINGERPRINT})) FROM millstream.installed",
        quote_literal(&version())
    );
    let sound: Option<bool> = sqlx::query_scalar(AssertSqlSafe(sound)).fetch_one(&mut *source).await.map_err(fail)?;
    state.installed = if sound == Some(true) { Installed::Yes } else { Installed::Altered };
    state.enrolled = sqlx::query_as("SELECT publication::text, patterns FROM millstream.captured ORDER BY 1")
        .fetch_all(&mut *source)
        .await
        .map_err(fail)?;
    if state.installed == Installed::Yes {
        let told = "SELECT EXISTS (SELECT FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid \
             WHERE p.pubname = $1 AND r.prrelid = 'millstream.schema_change'::regclass)";
        state.published = sqlx::query_scalar(told).bind(publication).fetch_one(&mut *source).await.map_err(fail)?;
        state.untold = sqlx::query_scalar(UNTOLD).bind(publication).fetch_one(&mut *source).await.map_err(fail)?;
    }
    Ok(state)
}

impl State {
    /// The publication is enrolled, and with the patterns of the configuration.
    #[must_use]
    pub fn is_enrolled(&self) -> bool {
        self.published && self.enrolled.iter().any(|(name, patterns)| *name == self.publication && *patterns == self.wanted)
    }

    /// The publication is enrolled, and with other patterns than those of the configuration.
    #[must_use]
    pub fn has_other_patterns(&self) -> bool {
        self.published && !self.is_enrolled() && self.enrolled.iter().any(|(name, _)| *name == self.publication)
    }

    /// Something is left of what this publication enrolled to.
    #[must_use]
    pub fn lingers(&self) -> bool {
        let others = self.enrolled.iter().any(|(name, _)| *name != self.publication);
        self.installed != Installed::No && (!others || self.enrolled.iter().any(|(name, _)| *name == self.publication))
    }

    /// The triggers are there and at work, or `init` may make them so.
    #[must_use]
    pub fn can_carry(&self) -> bool {
        self.may_install || (self.installed == Installed::Yes && self.disabled.is_empty())
    }

    /// What is wrong with what is installed, in words; `None` when nothing is, or nothing is installed.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        match self.installed {
            Installed::Altered => Some("its event triggers are of another version, incomplete or changed by hand".to_owned()),
            Installed::Closed => Some(format!("role {} may not use its event triggers", self.role)),
            _ if !self.disabled.is_empty() => Some(format!("not at work in every session: {}", self.disabled.join(", "))),
            _ => None,
        }
    }

    /// Why tables cannot leave the publication: the triggers' memory would still have them, as if somebody else had taken them out.
    #[must_use]
    pub fn cannot_let_go(&self, source: &SourceConfig, leaving: &[TableName]) -> Option<String> {
        let trouble = self.trouble().filter(|_| !self.can_carry() && source.schema_changes == SchemaChanges::Carry)?;
        let first = leaving.first()?;
        Some(format!(
            "{first} and whatever else leaves the publication: {trouble}, so they cannot be told; have a superuser run what \
             `millstream init --source {} --superuser-sql` prints, then run init again",
            source.name
        ))
    }

    /// What makes it as it is asked for, in one transaction, behind the statements that make the publication. `changing`: there are such.
    #[must_use]
    pub fn statements(&self, wanted: SchemaChanges, changing: bool) -> Vec<String> {
        match wanted {
            // From then on the mark alone knows the tables that the triggers took in.
            SchemaChanges::Halt if self.lingers() => vec![self.withdraw(), mark(&self.publication)],
            SchemaChanges::Carry if self.can_carry() => {
                let mut statements = self.install();
                if !statements.is_empty() || changing || !self.is_enrolled() || self.untold > 0 {
                    statements.push(self.enrol());
                }
                statements
            }
            SchemaChanges::Halt | SchemaChanges::Carry => Vec::new(),
        }
    }

    /// What brings the triggers to this version and switches them on; the other publications stay enrolled.
    #[must_use]
    pub fn install(&self) -> Vec<String> {
        match self.installed {
            Installed::No => vec![install()],
            Installed::Yes => self.enable(),
            Installed::Altered => {
                let others = self.enrolled.iter().filter(|(name, _)| *name != self.publication);
                let again = others.map(|(name, patterns)| enrol(name, patterns));
                [self.lock(), remove(), install()].into_iter().chain(again).collect()
            }
            // What others enrolled is not to be seen, and is not to be lost: this role is let in first.
            Installed::Closed => Vec::new(),
        }
    }

    /// What a superuser runs, who may read it first: one transaction.
    #[must_use]
    pub fn script(&self) -> String {
        let mut parts = self.install();
        parts.push(self.grants());
        if self.installed == Installed::Altered {
            // Until `init` brings other patterns, the old ones: no change falls between.
            let own = self.enrolled.iter().filter(|(name, _)| *name == self.publication);
            parts.extend(own.map(|(name, patterns)| enrol(name, patterns)));
        }
        format!("BEGIN;\n{};\nCOMMIT", parts.join(";\n"))
    }

    /// Keeps published tables from being changed while no trigger stands.
    fn lock(&self) -> String {
        let names = self.enrolled.iter().map(|(name, _)| name).chain([&self.publication]);
        let names: Vec<String> = names.map(|name| quote_literal(name)).collect();
        format!(
            "DO $lock$ DECLARE published oid; BEGIN\n    FOR published IN SELECT r.prrelid FROM pg_catalog.pg_publication_rel r\n        \
             JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid WHERE p.pubname IN ({}) ORDER BY 1\n    LOOP\n        \
             EXECUTE pg_catalog.format('LOCK TABLE ONLY %s IN ACCESS SHARE MODE', published::pg_catalog.regclass);\n    END LOOP;\nEND $lock$",
            names.join(", ")
        )
    }

    /// What lets this role use what somebody else installed.
    #[must_use]
    pub fn grants(&self) -> String {
        let role = quote_ident(&self.role);
        format!(
            "GRANT USAGE ON SCHEMA millstream TO {role};\n\
             GRANT SELECT ON millstream.installed, millstream.captured, millstream.known_table TO {role};\n\
             GRANT EXECUTE ON FUNCTION millstream.enrol(name, text[]), millstream.withdraw(name) TO {role}"
        )
    }

    /// Has every trigger fire in every session.
    #[must_use]
    pub fn enable(&self) -> Vec<String> {
        self.disabled.iter().map(|name| format!("ALTER EVENT TRIGGER {} ENABLE ALWAYS", quote_ident(name))).collect()
    }

    /// Enrols the publication.
    #[must_use]
    pub fn enrol(&self) -> String {
        enrol(&self.publication, &self.wanted)
    }

    fn withdraw(&self) -> String {
        match self.installed {
            Installed::Altered if self.may_install && self.enrolled.iter().all(|(name, _)| *name == self.publication) => remove(),
            _ => format!("SELECT millstream.withdraw({})", quote_literal(&self.publication)),
        }
    }
}

/// Takes a publication out of it, and everything away when it was the last. True when something was there.
///
/// # Errors
/// The server's: a role that may not is told so, and nothing is left half done.
pub async fn withdraw(source: &mut PgConnection, publication: &str) -> Result<bool> {
    let state = read(source, publication, &TablePatterns::parse::<&str>(&[])?).await?;
    if !state.lingers() {
        return Ok(false);
    }
    let statement = state.withdraw();
    let run = source.execute(AssertSqlSafe(statement.as_str())).await;
    run.map(|_| true).map_err(|e| classify(e, Side::Source).context(statement.lines().next().unwrap_or_default().to_owned()))
}

fn enrol(publication: &str, patterns: &[String]) -> String {
    let patterns: Vec<String> = patterns.iter().map(|pattern| quote_literal(pattern)).collect();
    format!("SELECT millstream.enrol({}, ARRAY[{}]::text[])", quote_literal(publication), patterns.join(", "))
}

fn install() -> String {
    let script = INSTALL.replace("{remove}\n", REMOVE);
    format!("{}\nINSERT INTO millstream.installed SELECT {}, ({FINGERPRINT})", script.trim_end(), quote_literal(&version()))
}

fn remove() -> String {
    format!("DO $remove$ BEGIN\n{REMOVE}END $remove$")
}

/// Of the scripts: whatever changes in them makes another.
fn version() -> String {
    format!("{:08x}", crc32c::crc32c_append(crc32c::crc32c(INSTALL.as_bytes()), REMOVE.as_bytes()))
}
