//! The report as a table for people, readable in 80 columns.

use std::fmt::Write as _;

use super::finding::{Finding, Place, Remedy, Report, Severity, Side};

const WIDTH: usize = 80;
const INDENT: &str = "              ";

/// Renders the report: a line per finding, and under each that is not fine why it matters and what mends it.
#[must_use]
pub fn table(report: &Report) -> String {
    let mut out = String::new();
    let mut heading = String::new();
    for group in grouped(&report.findings) {
        let finding = group[0];
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
        row(&mut out, &group);
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

/// Findings that say the same of several objects, together at the place of the first: a schema of a hundred tables without keys is one thing to mend.
fn grouped(findings: &[Finding]) -> Vec<Vec<&Finding>> {
    let mut groups: Vec<Vec<&Finding>> = Vec::new();
    for finding in findings {
        match groups.iter_mut().find(|group| says_the_same(group[0], finding)) {
            Some(group) => group.push(finding),
            None => groups.push(vec![finding]),
        }
    }
    groups
}

fn says_the_same(a: &Finding, b: &Finding) -> bool {
    let words = |f: &Finding| (f.severity, f.what.clone(), f.why.clone());
    let place = |f: &Finding| f.remedy.as_ref().map(|remedy| (remedy.place, remedy.role, remedy.restart));
    let of = |f: &Finding| (f.side, f.name.clone(), f.check);
    a.object.is_some() && b.object.is_some() && of(a) == of(b) && words(a) == words(b) && place(a) == place(b)
}

/// The objects of a group: all of them, unless the steps of their remedies are printed and name them.
fn objects(group: &[&Finding]) -> String {
    let names: Vec<&str> = group.iter().filter_map(|finding| finding.object.as_deref()).collect();
    let printed = group[0].remedy.as_ref().is_some_and(|remedy| remedy.place != Place::Person);
    match names.as_slice() {
        [first, second, third, _, _, ..] if printed => format!("{first}, {second}, {third} and {} more", names.len() - 3),
        all => all.join(", "),
    }
}

fn row(out: &mut String, group: &[&Finding]) {
    let finding = group[0];
    let what = match &finding.object {
        Some(_) => format!("{}: {}", objects(group), finding.what),
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
    let remedies: Vec<&Remedy> = group.iter().filter_map(|finding| finding.remedy.as_ref()).collect();
    let Some(remedy) = remedies.first() else { return };
    let at = finding.at.as_ref().map(|at| format!(", {at}")).unwrap_or_default();
    let who = remedy.role.map(|role| format!(", as {role}")).unwrap_or_default();
    let place = match remedy.place {
        Place::SourceSql => format!("on the source{at}{who}"),
        Place::ReplicaSql => format!("on the replica{at}{who}"),
        Place::SourceHba => format!("in pg_hba.conf of the source{at}, then SELECT pg_reload_conf()"),
        Place::ReplicaHba => format!("in pg_hba.conf of the replica{at}, then SELECT pg_reload_conf()"),
        Place::Shell => "in a shell".to_owned(),
        Place::Configuration => "in Millstream's configuration".to_owned(),
        Place::Person => "by hand".to_owned(),
    };
    let restart = if remedy.restart { ", then restart that server" } else { "" };
    wrap(out, &format!("         do   {place}{restart}:"), INDENT);
    let mut steps: Vec<&str> = Vec::new();
    for step in remedies.iter().flat_map(|remedy| &remedy.steps) {
        if !steps.contains(&step.as_str()) {
            steps.push(step);
        }
    }
    // What is said to a person is an example; what is to be run is whole.
    let shown = if remedy.place == Place::Person && group.len() > 3 { 2 } else { steps.len() };
    let end = if matches!(remedy.place, Place::SourceSql | Place::ReplicaSql) { ";" } else { "" };
    for step in steps.iter().take(shown) {
        // Never wrapped, and statements with their ends: they are to be copied.
        let step = format!("{}{end}", step.strip_suffix(end).unwrap_or(step));
        step.lines().for_each(|text| line(out, &format!("{INDENT}{text}")));
    }
    if shown < steps.len() {
        line(out, &format!("{INDENT}and so on for the others"));
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

#[cfg(test)]
mod tests {
    use super::super::finding::Findings;
    use super::*;

    fn rendered(place: Place) -> String {
        let mut findings = Findings::new(Side::Source, "shop");
        for table in ["a", "b", "c", "d", "e"] {
            findings.error("replica_identity", "no key", "refused", Some(Remedy::at(place, format!("ALTER TABLE {table} …"))));
            findings.about(table);
            findings.ok("other", "fine");
        }
        findings.error("replica_identity", "another", "refused", None);
        findings.about("f");
        table(&Report { version: 1, findings: findings.into_list() })
    }

    #[test]
    fn what_is_the_same_of_many_tables_is_said_once_with_every_statement() {
        let text = rendered(Place::SourceSql);
        assert_eq!(text.matches("no key").count(), 1, "{text}");
        assert_eq!(text.matches("ALTER TABLE").count(), 5, "{text}");
        assert!(text.contains("ERROR  replica_identity: a, b, c and 2 more: no key"), "{text}");
        assert!(text.contains("ERROR  replica_identity: f: another") && text.contains("6 wrong, 5 fine"), "{text}");
    }

    #[test]
    fn what_a_person_has_to_think_about_names_every_table_and_shows_the_way_by_example() {
        let text = rendered(Place::Person);
        assert!(text.contains("ERROR  replica_identity: a, b, c, d, e: no key"), "{text}");
        assert_eq!(text.matches("ALTER TABLE").count(), 2, "{text}");
        assert!(text.contains("and so on for the others"), "{text}");
    }
}
