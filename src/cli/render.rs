//! `millstream status` for people: 80 columns.

use std::fmt::Write as _;

use super::explain::wrap;
use crate::config::{ByteSize, ConfigFile};
use crate::control::model::{Copy, Halt, Quarantine, Rate, Replica, Source, Status};

const WIDTH: usize = 80;
const LABEL: usize = 15;
/// A budget that lasts longer is not worth a word.
const FAR_SECONDS: u64 = 30 * 86400;

/// The document as text. Commands in it name the configuration's file.
#[must_use]
pub fn status(status: &Status, file: &ConfigFile) -> String {
    let mut page = Page { file: file.clone(), ..Page::default() };
    let daemon = &status.daemon;
    let roles = daemon.roles.join(" and ");
    let who = format!("millstream {}, pid {} on {} ({roles})", daemon.version, daemon.pid, daemon.host);
    page.heading(&who, if status.ready { "READY" } else { "NOT READY" });
    for reason in &status.not_ready {
        page.text("", reason);
    }
    if daemon.configuration_changed == Some(true) {
        page.text("", "the configuration file has changed since this daemon read it: `millstream reload` takes it up, and says what it changes");
    }
    if let Some(why) = &daemon.reload_refused {
        page.text("", &format!("the last reload was refused, and what was in force still is: {why}"));
    }
    for (name, source) in &status.sources {
        of_source(&mut page, name, source);
    }
    for (name, replica) in &status.replicas {
        of_replica(&mut page, name, replica);
    }
    page.text
}

#[derive(Default)]
struct Page {
    text: String,
    file: ConfigFile,
}

impl Page {
    fn heading(&mut self, left: &str, right: &str) {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        let gap = WIDTH.saturating_sub(left.chars().count() + right.chars().count()).max(1);
        self.line(&format!("{left}{}{right}", " ".repeat(gap)));
    }

    fn line(&mut self, text: &str) {
        self.text.push_str(text.trim_end());
        self.text.push('\n');
    }

    /// A command on a line of its own, unbroken, to be copied.
    fn command(&mut self, text: &str) {
        let text = self.file.name_in_commands(text);
        self.line(&format!("{:LABEL$}{text}", ""));
    }

    /// A label and a text, broken at the page's width.
    fn text(&mut self, label: &str, text: &str) {
        let indent = " ".repeat(if label.is_empty() { 2 } else { LABEL });
        let wrapped = wrap(&self.file.name_in_commands(text), WIDTH, &indent);
        let first = if label.is_empty() { String::new() } else { format!("  {label:width$}", width = LABEL - 2) };
        match label {
            "" => self.line(&wrapped),
            _ => self.line(&format!("{first}{}", wrapped.trim_start())),
        }
    }
}

/// Gives up the place in the queue of a consumer that nobody has configured.
fn release_command(source: &str, consumer: &str) -> String {
    format!("millstream teardown --source {source} --consumer {consumer}")
}

fn of_source(page: &mut Page, name: &str, source: &Source) {
    page.heading(&format!("source {name}"), &words(&source.state));
    paused(page, name, source.paused_since.as_deref());
    if let Some(holder) = &source.held_by {
        page.text("held by", holder);
    }
    let places =
        [("source", &source.positions.source), ("queue", &source.positions.queue), ("confirmed", &source.positions.confirmed)];
    let known: Vec<_> = places.iter().filter_map(|(what, at)| at.as_ref().map(|at| format!("{what} {at}"))).collect();
    if !known.is_empty() {
        page.text("position", &known.join(", "));
    }
    if source.state != "elsewhere" {
        page.text("rate", &rate(&source.rate));
    }
    let stream = &source.stream;
    if let Some(bytes) = stream.queued_bytes {
        let changes = stream.queued_changes.map_or(String::new(), |n| format!("{} changes, ", number(n)));
        let holder = stream.slowest_consumer.as_ref().map_or(String::new(), |name| format!("; held by {name}"));
        page.text("queue", &format!("{changes}{} of {}{holder}", ByteSize(bytes), ByteSize(stream.max_bytes)));
    }
    for (stranger, _) in stream.consumers.iter().filter(|(_, consumer)| !consumer.configured) {
        page.text(
            "consumers",
            &format!("{stranger} not in this daemon's configuration, and may hold the queue; if it is given up:"),
        );
        page.command(&release_command(name, stranger));
    }
    if let Some(bytes) = source.retained.bytes {
        let left = match (source.retained.exceeded, source.retained.budget_seconds) {
            (true, _) => "; THE BUDGET HAS ENDED".to_owned(),
            (false, Some(seconds)) if seconds < FAR_SECONDS => format!("; ends in {} at this rate", duration(seconds as f64)),
            (false, _) => String::new(),
        };
        page.text("retained", &format!("{} of {} at the source{left}", ByteSize(bytes), ByteSize(source.retained.budget_bytes)));
    }
    if source.buffered_bytes + source.spilled_bytes > 0 {
        let text = format!("{} in memory, {} on disk", ByteSize(source.buffered_bytes), ByteSize(source.spilled_bytes));
        page.text("in progress", &text);
    }
    if !source.tables_not_captured.is_empty() {
        let shown: Vec<_> = source.tables_not_captured.iter().take(5).map(String::as_str).collect();
        let more = source.tables_not_captured.len().saturating_sub(shown.len());
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        page.text("not captured", &format!("{}{more} (run `millstream init`)", shown.join(", ")));
        if let Some((table, remedy)) = source.tables_to_mend.first_key_value() {
            page.text("", &format!("first, on the source, {}, {table}: {remedy}", source.at));
        }
    }
    if let Some(why) = &source.heartbeat_error {
        page.text("heartbeat", why);
    }
    trouble(page, &source.at, source.halt.as_ref(), source.error.as_deref(), source.remedy.as_deref());
}

fn of_replica(page: &mut Page, name: &str, replica: &Replica) {
    page.heading(&format!("replica {name} of {}", replica.source), &words(&replica.state));
    paused(page, name, replica.paused_since.as_deref());
    if let Some(position) = &replica.position {
        page.text("position", position);
    }
    if replica.state != "elsewhere" {
        let lag = replica.lag_seconds.map_or("not known yet".to_owned(), |lag| format!("{lag:.1} s"));
        let bytes = replica.lag_bytes.map_or(String::new(), |bytes| format!(", {}", ByteSize(bytes)));
        page.text("lag", &format!("{lag}{bytes}"));
        page.text("rate", &rate(&replica.rate));
    }
    match (replica.queued_changes, replica.drain_seconds) {
        (Some(0) | None, _) => {}
        (Some(queued), Some(seconds)) => {
            page.text("to drain", &format!("{} changes, {}", number(queued), about(seconds)));
        }
        (Some(queued), None) => page.text("to drain", &format!("{} changes; nothing moves", number(queued))),
    }
    if let Some(copy) = &replica.copy {
        // What has halted does not copy: this is how far it came.
        let then = match &replica.halt {
            None => "",
            Some(halt) if halt.mendable => "in the last attempt, ",
            Some(_) => "stands still, ",
        };
        let title = if copy.again.is_empty() { "first copy" } else { "copy" };
        page.text(title, &format!("{then}{}", copying(copy)));
        if !copy.again.is_empty() {
            page.text("copied again", &format!("{} (older than the others until it is live)", copy.again.join(", ")));
        }
    }
    if let Some(why) = &replica.not_validated {
        page.text("not valid", why);
    }
    if let Some(quarantine) = &replica.quarantine {
        of_quarantine(page, name, quarantine);
    }
    if let Some(first) = replica.sequences.as_ref().and_then(|sequences| sequences.not_carried.first()) {
        let more = match replica.sequences.as_ref().map_or(0, |sequences| sequences.not_carried.len() - 1) {
            0 => String::new(),
            more => format!(" ({more} more in --json)"),
        };
        page.text("sequences", &format!("{} is not carried: {}{more}", first.name, first.reason));
    }
    if let Some(why) = replica.sequences.as_ref().and_then(|sequences| sequences.error.as_ref()) {
        page.text("sequences", &format!("not carried: {why}"));
    }
    trouble(page, &replica.at, replica.halt.as_ref(), replica.error.as_deref(), replica.remedy.as_deref());
}

/// Every account, for ever: a line of what became of it, one for each table.
fn of_quarantine(page: &mut Page, replica: &str, quarantine: &Quarantine) {
    if quarantine.is_missing_something() {
        let since = quarantine.whole_through.as_deref().unwrap_or("the first transaction");
        page.text("NOT WHOLE", &format!("since {since}: {} in quarantine, {} cleared", quarantine.kept, quarantine.cleared));
    }
    for account in &quarantine.transactions {
        page.text("quarantine", &super::quarantine::line(account));
        for table in &account.tables {
            page.text("", &format!("             {}", super::quarantine::table_line(table)));
        }
    }
    if quarantine.kept > 0 {
        page.command(&format!("millstream quarantine retry {replica}"));
    }
}

fn paused(page: &mut Page, name: &str, since: Option<&str>) {
    if let Some(since) = since {
        page.text("paused", &format!("since {since}; to go on:"));
        page.command(&format!("millstream resume {name}"));
    }
}

/// `at`: where statements are meant for, unless they say otherwise.
fn trouble(page: &mut Page, at: &str, halt: Option<&Halt>, error: Option<&str>, remedy: Option<&str>) {
    if let Some(halt) = halt {
        page.text("HALTED", &halt.code);
    }
    if !at.is_empty() && (halt.is_some() || error.is_some()) {
        page.text("where", at);
    }
    if let Some(error) = error {
        page.text(if halt.is_some() { "why" } else { "last error" }, error);
    }
    if let Some(remedy) = halt.map(|halt| halt.remedy.as_str()).or(remedy) {
        page.text("what to do", remedy);
    }
    if let Some(halt) = halt {
        let after = if halt.mendable { "tried again every 10 s" } else { "stays until a new copy" };
        page.text("", &format!("            ({after}; millstream explain {})", halt.code));
    }
}

fn copying(copy: &Copy) -> String {
    let mut out = copy.phase.clone();
    // Once every chunk is loaded the rows are known, and an estimate beside them would look like rows that are missing.
    let estimated = copy.rows_estimated.filter(|all| *all > copy.rows && copy.tables_done < copy.tables);
    let of = estimated.map_or(String::new(), |all| format!(" of about {}", number(all)));
    let _ = write!(out, "{}{}{of} rows, {}", if out.is_empty() { "" } else { ": " }, number(copy.rows), ByteSize(copy.bytes));
    let _ = write!(out, ", {} of {} tables, {} rows/s", copy.tables_done, copy.tables, number(copy.rows_per_second as u64));
    if let Some(eta) = copy.eta_seconds {
        let _ = write!(out, ", {} left", about(eta));
    }
    out
}

fn words(state: &str) -> String {
    match state {
        "halted" => "HALTED".to_owned(),
        "paused" => "PAUSED".to_owned(),
        "queue_full" => "QUEUE FULL".to_owned(),
        other => other.replace('_', " "),
    }
}

fn rate(rate: &Rate) -> String {
    format!(
        "{} changes/s, {} transactions/s, {}/s",
        number(rate.changes_per_second.round() as u64),
        number(rate.transactions_per_second.round() as u64),
        ByteSize(rate.bytes_per_second as u64)
    )
}

/// 1234567 as `1,234,567`.
fn number(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// An estimate.
fn about(seconds: f64) -> String {
    if seconds < 1.0 { "less than 1 s".to_owned() } else { format!("about {}", duration(seconds)) }
}

fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0 => "less than 1 s".to_owned(),
        1..120 => format!("{whole} s"),
        120..7200 => format!("{} min", whole / 60),
        7200..172_800 => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
        _ => format!("{} days", whole / 86400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_times_read_well() {
        assert_eq!(["0", "999", "1,000", "1,234,567"], [0, 999, 1000, 1_234_567].map(number).each_ref().map(String::as_str));
        assert_eq!(
            ["less than 1 s", "about 1 s", "about 90 s", "about 2 min", "about 2 h 30 min", "about 3 days"],
            [0.7, 1.2, 90.0, 120.0, 9000.0, 259_200.0].map(about).each_ref().map(String::as_str)
        );
    }

    #[test]
    fn the_copy_of_a_halted_replica_is_not_shown_at_work() {
        let copy = Some(Copy { phase: "loading".to_owned(), rows: 900, ..Copy::default() });
        let shown = |halt: Option<Halt>| {
            let mut page = Page::default();
            of_replica(&mut page, "reports", &Replica { copy: copy.clone(), halt, ..Replica::default() });
            page.text.lines().find(|line| line.contains("first copy")).expect("a line").trim().to_owned()
        };
        let halt = |mendable| Some(Halt { code: "any".to_owned(), mendable, ..Halt::default() });
        assert!(shown(None).starts_with("first copy   loading: 900 rows"), "{}", shown(None));
        assert!(shown(halt(true)).contains("in the last attempt, loading: 900 rows"), "{}", shown(halt(true)));
        assert!(shown(halt(false)).contains("stands still, loading: 900 rows"), "{}", shown(halt(false)));
    }

    #[test]
    fn rows_that_are_all_loaded_are_not_measured_against_an_estimate() {
        let copy =
            |rows, tables_done| copying(&Copy { rows, rows_estimated: Some(1000), tables_done, tables: 2, ..Copy::default() });
        assert!(copy(900, 1).starts_with("900 of about 1,000 rows"), "{}", copy(900, 1));
        assert!(copy(900, 2).starts_with("900 rows"), "{}", copy(900, 2));
        assert!(copy(1001, 1).starts_with("1,001 rows"), "{}", copy(1001, 1));
    }
}
