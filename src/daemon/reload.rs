//! A reload: the configuration is read again, checked whole, and refused whole or carried.
//!
//! ```text
//! read, check ─► difference ─► a key that needs a restart? ─► said, line by line ─► what changed or left ends ─► what changed or came begins
//!      │ invalid                    │ yes
//!      └────────────────────────────┴──► refused: nothing has changed, `/status` says why
//! ```
//!
//! Only tasks that read a changed key are started anew. A replica or a source that is not configured any more stops, and nothing of it is taken away: its place in
//! the queue, its slot and its ledger stay, so that a name that was misspelt costs nothing but time. Giving them up takes a command of its own
//! (`millstream teardown`), which asks.

use super::fleet::{Fleet, Stops};
use crate::config::difference::{Changed, Parts};
use crate::config::{Config, Difference};
use crate::error::{Error, ErrorKind, Result};
use crate::socket::protocol::ReloadReport;
use crate::systemd;
use crate::task::Tasks;
use crate::telemetry;

impl Fleet {
    /// Reads the configuration again and carries it; a dry run only says what it would do.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for a configuration that is invalid, or that needs a restart; nothing has changed then.
    pub(super) async fn reload(&mut self, dry_run: bool, tasks: &mut Tasks) -> Result<ReloadReport> {
        if dry_run {
            return self.look().map(|(_, _, _, report)| report);
        }
        systemd::reloading();
        let outcome = self.carry(tasks).await;
        if let Err(error) = &outcome {
            self.control.refused_reload(error.to_string());
            tracing::error!(%error, "the reload was refused; what was in force before still is");
        }
        systemd::ready();
        outcome
    }

    /// What is configured now, how that differs, whom it stops, and all of it in words.
    fn look(&self) -> Result<(Config, Difference, Stops, ReloadReport)> {
        let next = Config::load(self.config.file.path())?;
        let difference = Difference::between(&self.config, &next);
        refuse_what_needs_a_restart(&difference)?;
        let stops = stops(&self.config, &next, &difference);
        let report = ReloadReport {
            done: false,
            changes: difference.lines(),
            restarts: restarts(&stops, &next, &difference),
            notes: self.notes(&difference),
        };
        Ok((next, difference, stops, report))
    }

    async fn carry(&mut self, tasks: &mut Tasks) -> Result<ReloadReport> {
        let (next, difference, stops, report) = self.look()?;
        next.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        report.changes.iter().for_each(|change| tracing::info!(change, "reload"));
        report.notes.iter().for_each(|note| tracing::warn!("{note}"));
        if !difference.log.is_empty() {
            telemetry::set_level(&next.log)?;
        }
        self.stop(&stops).await;
        self.config = next;
        self.forget();
        self.control.reloaded(&self.config);
        self.enlist();
        self.start_missing(tasks);
        if !difference.http.is_empty() {
            self.restart_http(tasks).await;
        }
        if !difference.control.is_empty() {
            self.restart_socket(tasks);
        }
        tracing::info!(changes = report.changes.len(), restarts = report.restarts.join(", "), "reloaded");
        Ok(ReloadReport { done: true, ..report })
    }

    fn notes(&self, difference: &Difference) -> Vec<String> {
        let mut notes = Vec::new();
        for name in &difference.sources.removed {
            let slot = self.slot(name).map_or_else(|| "its slot".to_owned(), |slot| format!("its slot {slot}"));
            notes.push(format!(
                "source {name} is not captured any more, and {slot} stays: it retains WAL there, and nobody watches how much. Configured again, it goes on where it was; \
                 to give it up, configure it again, stop the daemon and run `millstream teardown --source {name}`"
            ));
        }
        for name in &difference.replicas.removed {
            let source = self.config.replicas.get(name).map(|replica| replica.source.as_str()).unwrap_or_default();
            notes.push(format!(
                "replica {name} is not applied to any more. If its place in the queue was not given up before, it is kept, with everything from there on: configured again, it goes on where it \
                 was; to give it up: `millstream teardown --source {source} --consumer {name}`"
            ));
        }
        notes.extend(difference.sources.added.iter().map(|name| {
            format!("source {name} is new here: `millstream init --source {name}` makes what it lacks, and it goes on by itself after that")
        }));
        notes.extend(difference.replicas.added.iter().map(|name| {
            format!("replica {name} is new here: `millstream init --replica {name}` makes what it lacks, and it goes on by itself after that, or at once where it has a ledger and a place in the queue")
        }));
        for name in difference.replicas.changed.iter().filter(|(_, keys)| keys.contains_key("source")).map(|(name, _)| name) {
            let source = self.config.replicas.get(name).map(|replica| replica.source.as_str()).unwrap_or_default();
            notes.push(format!(
                "replica {name} follows another source from here on: its place in the queue of {source} is kept (`millstream teardown --source {source} --consumer {name}` gives it \
                 up), and a pause does not come along"
            ));
        }
        for (name, keys) in &difference.sources.changed {
            for key in keys.keys().filter(|key| matches!(**key, "tables" | "schema_changes")) {
                notes.push(format!("source.{name}.{key} is taken up by `millstream init --source {name}`"));
            }
        }
        notes
    }
}

/// The queue is open under everybody's feet, and the log has its shape.
fn refuse_what_needs_a_restart(difference: &Difference) -> Result<()> {
    let queue = difference.queue.iter().filter(|(key, _)| **key != "max_bytes");
    let log = difference.log.iter().filter(|(key, _)| **key == "format");
    let keys: Vec<String> = queue.chain(log).map(|(_, change)| change.to_string()).collect();
    if keys.is_empty() {
        return Ok(());
    }
    let message = format!(
        "a reload does not change this, and has changed nothing: {}. Restart the daemon (systemctl restart millstream), or put it back",
        keys.join("; ")
    );
    Err(Error::new(ErrorKind::Config, message))
}

/// How to reach a database.
fn is_connection(key: &str) -> bool {
    key.starts_with("url") || key.starts_with("password")
}

/// Only a first copy reads it.
fn is_copy(key: &str) -> bool {
    key.starts_with("copy_")
}

/// Only `init`, and who looks for tables that it has not taken in yet.
fn is_selection(key: &str) -> bool {
    matches!(key, "tables" | "schema_changes")
}

fn stops(before: &Config, after: &Config, difference: &Difference) -> Stops {
    let sources_with = |wanted: fn(&str) -> bool| -> Vec<String> {
        let changed = difference.sources.changed.iter().filter(|(_, keys)| has(keys, wanted)).map(|(name, _)| name.clone());
        difference.sources.removed.iter().cloned().chain(changed).collect()
    };
    let captures = match difference.queue.contains_key("max_bytes") {
        true => before.sources.keys().cloned().collect(),
        false => sources_with(|key| !is_copy(key) && !is_selection(key)),
    };
    let read_by_copies = sources_with(|key| is_copy(key) || is_connection(key));
    let Parts { removed, changed, .. } = &difference.replicas;
    let replicas = before.replicas.keys().filter(|name| {
        let follows = after.replicas.get(*name).is_some_and(|replica| read_by_copies.contains(&replica.source));
        removed.contains(*name) || changed.contains_key(*name) || follows
    });
    Stops { captures, looks: sources_with(|key| is_connection(key) || is_selection(key)), replicas: replicas.cloned().collect() }
}

fn has(keys: &Changed, wanted: fn(&str) -> bool) -> bool {
    keys.keys().any(|key| wanted(key))
}

fn restarts(stops: &Stops, after: &Config, difference: &Difference) -> Vec<String> {
    let word = |stays: bool| if stays { "starts anew" } else { "stops" };
    let captures = stops.captures.iter().map(|name| format!("capture of {name} {}", word(after.sources.contains_key(name))));
    let replicas = stops.replicas.iter().map(|name| format!("apply to {name} {}", word(after.replicas.contains_key(name))));
    let begun = difference.sources.added.iter().map(|name| format!("capture of {name} starts"));
    let begun = begun.chain(difference.replicas.added.iter().map(|name| format!("apply to {name} starts")));
    captures.chain(replicas).chain(begun).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Environment;

    const TWO: &str = r#"
[source.shop]
url = "postgres://ms@db1/shop"
tables = ["public.*"]
[source.crm]
url = "postgres://ms@db1/crm"
tables = ["public.*"]
[queue]
url = "embedded:/q"
[replica.reports]
source = "shop"
url = "postgres://ms@db2/shop"
[replica.contacts]
source = "crm"
url = "postgres://ms@db2/crm"
"#;

    fn config(text: &str) -> Config {
        Config::parse(Path::new("x.toml"), text, &Environment::default()).expect("a configuration")
    }

    /// Captures, looks, replicas that a change stops.
    fn stopped(from: &str, to: &str) -> (Vec<String>, Vec<String>, Vec<String>) {
        let (before, after) = (config(TWO), config(&TWO.replacen(from, to, 1)));
        let Stops { captures, looks, replicas } = stops(&before, &after, &Difference::between(&before, &after));
        (captures, looks, replicas)
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn only_who_reads_a_key_is_started_anew() {
        let (shop, reports, none) = (names(&["shop"]), names(&["reports"]), names(&[]));
        let first = "tables = [\"public.*\"]";
        assert_eq!(stopped("db1/shop", "db9/shop"), (shop.clone(), shop.clone(), reports.clone()));
        assert_eq!(stopped(first, "tables = [\"a.*\"]"), (none.clone(), shop.clone(), none.clone()));
        let with = |key: &str| format!("{first}\n{key}");
        assert_eq!(stopped(first, &with("copy_workers = 9")), (none.clone(), none.clone(), reports.clone()));
        assert_eq!(stopped(first, &with("retain_max_bytes = \"1GiB\"")), (shop, none.clone(), none.clone()));
        assert_eq!(stopped("db2/shop", "db2/shop2"), (none.clone(), none.clone(), reports));
        let all = names(&["crm", "shop"]);
        assert_eq!(stopped("[queue]", "[queue]\nmax_bytes = \"1GiB\""), (all, none.clone(), none.clone()));
        assert_eq!(stopped("[queue]", "[http]\nlisten = \"off\"\n[queue]"), (none.clone(), none.clone(), none));
    }

    #[test]
    fn the_queue_and_the_shape_of_the_log_need_a_restart() {
        let refused = |from: &str, to: &str| {
            let difference = Difference::between(&config(TWO), &config(&TWO.replacen(from, to, 1)));
            refuse_what_needs_a_restart(&difference).err().map(|error| error.to_string())
        };
        assert!(refused("embedded:/q", "embedded:/r").is_some_and(|said| said.contains("queue.url: embedded:/q -> embedded:/r")));
        assert!(refused("[queue]", "[log]\nformat = \"json\"\n[queue]").is_some_and(|said| said.contains("log.format")));
        assert_eq!(refused("[queue]", "[log]\nlevel = \"debug\"\n[queue]\nmax_bytes = \"1GiB\""), None);
    }
}
