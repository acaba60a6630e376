//! The report as a table for people, readable in 80 columns.

use std::fmt::Write as _;

use super::finding::{Finding, Place, Report, Severity, Side};

const WIDTH: usize = 80;
const INDENT: &str = "              ";

/// Renders the report: a line per finding, and under each that is not fine why it matters and what mends it.
#[must_use]
pub fn table(report: &Report) -> String {
    let mut out = String::new();
    let mut heading = String::new();
    for finding in &report.findings {
        let side = match finding.side {
            Side::Source => "source",
            Side::Queue => "queue",
            Side::Replica => "replica",
        };
        let now = if finding.name.is_empty() { side.to_owned() } else { format!("{side} {}", finding.name) };
        if now != heading {
            line(&mut out, &format!("{}{now}", if heading.is_empty() { "" } else { "\n" }));
            heading = now;
        }
        row(&mut out, finding);
    }
    line(&mut out, "");
    line(&mut out, &verdict(report));
    out
}

fn verdict(report: &Report) -> String {
    let counts = [
        (Severity::Error, "wrong"),
        (Severity::Unknown, "could not be checked"),
        (Severity::Warning, "to think about"),
        (Severity::Ok, "fine"),
    ];
    let parts = counts.iter().map(|(severity, word)| (report.count(*severity), word)).filter(|(n, _)| *n > 0);
    parts.map(|(n, word)| format!("{n} {word}")).collect::<Vec<_>>().join(", ")
}

fn row(out: &mut String, finding: &Finding) {
    let what = match &finding.object {
        Some(object) => format!("{object}: {}", finding.what),
        None => finding.what.clone(),
    };
    let first = format!("  {:<6} {}: {what}", finding.severity.label(), finding.check);
    wrap(out, &first, "         ");
    if finding.severity == Severity::Ok {
        return;
    }
    if !finding.why.is_empty() {
        wrap(out, &format!("         why  {}", finding.why), INDENT);
    }
    let Some(remedy) = &finding.remedy else { return };
    let place = match remedy.place {
        Place::SourceSql => "on the source",
        Place::ReplicaSql => "on the replica",
        Place::SourceHba => "in pg_hba.conf of the source, then SELECT pg_reload_conf()",
        Place::ReplicaHba => "in pg_hba.conf of the replica, then SELECT pg_reload_conf()",
        Place::Shell => "in a shell",
        Place::Configuration => "in Millstream's configuration",
        Place::Person => "by hand",
    };
    let restart = if remedy.restart { ", then restart that server" } else { "" };
    wrap(out, &format!("         do   {place}{restart}:"), INDENT);
    for step in &remedy.steps {
        // Never wrapped: it is to be copied.
        step.lines().for_each(|text| line(out, &format!("{INDENT}{text}")));
    }
}

fn line(out: &mut String, text: &str) {
    // Writing to a String cannot fail.
    writeln!(out, "{text}").unwrap_or_default();
}

/// Breaks a long line between words.
fn wrap(out: &mut String, text: &str, indent: &str) {
    let mut current = String::new();
    let lead = text.len() - text.trim_start().len();
    current.push_str(&text[..lead]);
    let mut fresh = true;
    for word in text[lead..].split(' ') {
        if !fresh && current.chars().count() + 1 + word.chars().count() > WIDTH {
            line(out, &current);
            current = indent.to_owned();
            fresh = true;
        }
        if !fresh {
            current.push(' ');
        }
        current.push_str(word);
        fresh = false;
    }
    line(out, &current);
}
