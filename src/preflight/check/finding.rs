//! What a check found: what is wrong, why it matters, and the exact statement or setting that mends it.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::event::TableName;
use crate::preflight::init::Blueprint;

/// How a finding bears on the verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Works, but somebody will be sorry later. Exit code 0, or 1 with `--strict`.
    Warning,
    /// Could not be looked at. Exit code 3 unless something is wrong as well.
    Unknown,
    /// Will not work, or would lose or damage something. Exit code 1.
    Error,
}

impl Severity {
    /// Six letters at most, for a table.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warn",
            Self::Unknown => "?",
            Self::Error => "ERROR",
        }
    }
}

/// Where a remedy is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// SQL on the source database.
    SourceSql,
    /// SQL on the replica database.
    ReplicaSql,
    /// A line of `pg_hba.conf` on the source's server, then a reload.
    SourceHba,
    /// A line of `pg_hba.conf` on the replica's server, then a reload.
    ReplicaHba,
    /// A shell command.
    Shell,
    /// A key of Millstream's configuration.
    Configuration,
    /// Something that only a person can decide or do.
    Person,
}

/// What mends a finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Remedy {
    /// Where.
    pub place: Place,
    /// Statements, lines, commands: exactly as they are to be given.
    pub steps: Vec<String>,
    /// The server must be restarted after that.
    pub restart: bool,
}

impl Remedy {
    /// SQL to run on one side.
    #[must_use]
    pub fn sql(side: Side, statement: impl Into<String>) -> Self {
        let place = match side {
            Side::Source => Place::SourceSql,
            Side::Replica | Side::Queue => Place::ReplicaSql,
        };
        Self { place, steps: vec![statement.into()], restart: false }
    }

    /// The same, with another step behind it. Steps are carried out one by one: ALTER SYSTEM shares no transaction.
    #[must_use]
    pub fn then(mut self, step: impl Into<String>) -> Self {
        self.steps.push(step.into());
        self
    }

    /// A remedy elsewhere.
    #[must_use]
    pub fn at(place: Place, step: impl Into<String>) -> Self {
        Self { place, steps: vec![step.into()], restart: false }
    }

    /// The same, with a restart of the server behind it.
    #[must_use]
    pub fn and_restart(mut self) -> Self {
        self.restart = true;
        self
    }
}

/// What was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The captured database.
    Source,
    /// Where the log waits.
    Queue,
    /// The database applied to.
    Replica,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Stable name of the check, such as `wal_level`.
    pub check: &'static str,
    /// Where.
    pub side: Side,
    /// Name of the source, queue or replica in the configuration.
    pub name: String,
    /// Table, role or setting that it is about, where there is one.
    pub object: Option<String>,
    /// How bad.
    pub severity: Severity,
    /// What is so.
    pub what: String,
    /// Why it matters; empty when all is well.
    pub why: String,
    /// What mends it.
    pub remedy: Option<Remedy>,
}

/// Collects the findings about one side.
#[derive(Debug)]
pub struct Findings {
    side: Side,
    name: String,
    list: Vec<Finding>,
    blueprint: Option<Blueprint>,
    carries: bool,
    published: Option<BTreeMap<u32, TableName>>,
}

impl Findings {
    /// For one source, queue or replica.
    pub fn new(side: Side, name: impl Into<String>) -> Self {
        Self { side, name: name.into(), list: Vec::new(), blueprint: None, carries: false, published: None }
    }

    /// Which side.
    #[must_use]
    pub fn side(&self) -> Side {
        self.side
    }

    /// Name of the source, queue or replica in the configuration.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All is well with this.
    pub fn ok(&mut self, check: &'static str, what: impl Into<String>) {
        self.push(check, Severity::Ok, what.into(), String::new(), None);
    }

    /// Works, but.
    pub fn warn(&mut self, check: &'static str, what: impl Into<String>, why: impl Into<String>, remedy: Option<Remedy>) {
        self.push(check, Severity::Warning, what.into(), why.into(), remedy);
    }

    /// Does not work.
    pub fn error(&mut self, check: &'static str, what: impl Into<String>, why: impl Into<String>, remedy: Option<Remedy>) {
        self.push(check, Severity::Error, what.into(), why.into(), remedy);
    }

    /// Could not be looked at. Without a remedy that is known, it is for a person to see to what was said.
    pub fn unknown(&mut self, check: &'static str, what: impl Into<String>, why: impl Into<String>, remedy: Option<Remedy>) {
        let otherwise = || Remedy::at(Place::Person, "see to what it says, and run `millstream check` again");
        self.push(check, Severity::Unknown, what.into(), why.into(), Some(remedy.unwrap_or_else(otherwise)));
    }

    /// Says what the last finding is about.
    pub fn about(&mut self, object: impl Into<String>) {
        if let Some(last) = self.list.last_mut() {
            last.object = Some(object.into());
        }
    }

    /// How many findings so far are not fine.
    #[must_use]
    pub fn problems(&self) -> usize {
        self.list.iter().filter(|f| f.severity != Severity::Ok).count()
    }

    /// Keeps which tables a source's publication has, by `pg_class.oid`.
    pub fn keep_published(&mut self, tables: BTreeMap<u32, TableName>) {
        self.published = Some(tables);
    }

    /// Tables of a source's publication, when there is one.
    #[must_use]
    pub fn published(&self) -> Option<&BTreeMap<u32, TableName>> {
        self.published.as_ref()
    }

    /// True when a check of this name found an error.
    #[must_use]
    pub fn has_error(&self, check: &str) -> bool {
        self.list.iter().any(|finding| finding.check == check && finding.severity == Severity::Error)
    }

    /// Keeps that a source's schema changes are carried.
    pub fn keep_carrying(&mut self) {
        self.carries = true;
    }

    /// A source's schema changes are carried to its replicas.
    #[must_use]
    pub fn carries(&self) -> bool {
        self.carries
    }

    /// Keeps what a replica has to hold: the replicas are compared with it later.
    pub fn keep_blueprint(&mut self, blueprint: Blueprint) {
        self.blueprint = Some(blueprint);
    }

    /// What a replica has to hold, when that is known.
    #[must_use]
    pub fn blueprint(&self) -> Option<&Blueprint> {
        self.blueprint.as_ref()
    }

    /// The findings.
    #[must_use]
    pub fn into_list(self) -> Vec<Finding> {
        self.list
    }

    fn push(&mut self, check: &'static str, severity: Severity, what: String, why: String, remedy: Option<Remedy>) {
        self.list.push(Finding { check, side: self.side, name: self.name.clone(), object: None, severity, what, why, remedy });
    }
}

/// All findings and the verdict over them.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Version of this JSON shape.
    pub version: u32,
    /// Everything that was looked at.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Worst first matters for the verdict: an error, else something unknown, else a warning, else fine.
    #[must_use]
    pub fn worst(&self) -> Severity {
        self.findings.iter().map(|f| f.severity).max().unwrap_or(Severity::Ok)
    }

    /// How many findings have a severity.
    #[must_use]
    pub fn count(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|f| f.severity == severity).count()
    }
}
