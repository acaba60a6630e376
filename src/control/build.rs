//! From the stages' own words to the document, and whether all of it is well.

use std::time::Duration;

use serde::Serialize;

use super::model::{
    self, Consumer, Copy, Halt, NotCarried, Positions, Quarantine, Replica, Retained, Sequences, Source, Status, Stream,
};
use super::survey::End;
use super::{Control, ReplicaView, SourceView, Views, rate_of};
use crate::apply::ApplyStatus;
use crate::apply::copy::{CopyPhase, CopyProgress};
use crate::apply::lag::Now;
use crate::apply::sequences::Carried;
use crate::capture::CaptureStatus;
use crate::config::ConfigFile;
use crate::event::Position;
use crate::halt::HaltCode;
use crate::pause::Gate;
use crate::replica::postgres::ledger::whole;

impl Control {
    /// The document, as of now.
    #[must_use]
    pub fn status(&self) -> Status {
        let mut daemon = self.daemon.clone();
        daemon.waiting_for.clone_from(&self.waiting_for.borrow());
        daemon.reload_refused.clone_from(&self.reload_refused.borrow());
        let views = self.views();
        daemon.configuration_changed = views.file.has_changed();
        let mut status = Status {
            version: model::VERSION,
            at: jiff::Timestamp::now().to_string(),
            ready: false,
            not_ready: Vec::new(),
            daemon,
            queue: views.queue.clone(),
            sources: views.sources.iter().map(|(name, view)| (name.clone(), views.source_status(view))).collect(),
            replicas: views.replicas.iter().map(|(name, view)| (name.clone(), views.replica_status(name, view))).collect(),
        };
        for source in status.sources.values_mut() {
            name_in_commands(&views.file, &mut source.halt, &mut source.error, &mut source.remedy);
        }
        for replica in status.replicas.values_mut() {
            name_in_commands(&views.file, &mut replica.halt, &mut replica.error, &mut replica.remedy);
        }
        status.not_ready = reasons(&status, views.ready_max_lag);
        status.ready = status.not_ready.is_empty();
        status
    }
}

/// Commands are for whoever reads this, wherever that is: they name this daemon's configuration.
fn name_in_commands(file: &ConfigFile, halt: &mut Option<Halt>, error: &mut Option<String>, remedy: &mut Option<String>) {
    for text in halt.iter_mut().map(|halt| &mut halt.remedy).chain(error).chain(remedy) {
        *text = file.name_in_commands(text);
    }
}

impl Views {
    fn source_status(&self, view: &SourceView) -> Source {
        let survey = view.survey.borrow().clone();
        let mut source = Source {
            at: view.at.clone(),
            state: "elsewhere".to_owned(),
            paused_since: paused_since(&view.gate),
            tables_not_captured: survey.not_captured,
            tables_to_mend: survey.to_mend,
            sequences: survey.sequences,
            ..Source::default()
        };
        source.retained.budget_bytes = view.retain_max_bytes;
        source.stream = Stream { max_bytes: self.queue.max_bytes, stored_bytes: survey.stored_bytes, ..Stream::default() };
        let end = view.capture.as_ref().map(|capture| capture.borrow().clone());
        for (name, progress) in survey.consumers {
            let behind = |total: fn(&CaptureStatus) -> u64, before: u64| {
                end.as_ref().filter(|end| end.number.is_some()).map(|end| total(end).saturating_sub(before))
            };
            let caught_up = end.as_ref().is_some_and(|end| is_caught_up(progress.position, end));
            let consumer = Consumer {
                position: progress.position.map(|p| p.to_string()),
                record: progress.number.0,
                behind_bytes: if caught_up { Some(0) } else { behind(|end| end.bytes_total, progress.bytes_so_far) },
                behind_changes: if caught_up { Some(0) } else { behind(|end| end.changes_total, progress.changes_so_far) },
                said_at: time(progress.at_us),
                configured: self.replicas.get(whole(&name)).is_some_and(|replica| replica.source == view.name),
            };
            source.stream.consumers.insert(name, consumer);
        }
        if let Some(capture) = &end {
            captured(&mut source, capture);
            source.rate = rate_of(&view.rate);
        }
        source
    }

    fn replica_status(&self, name: &str, view: &ReplicaView) -> Replica {
        let end =
            self.sources.get(&view.source).and_then(|source| source.capture.as_ref()).map(|capture| capture.borrow().clone());
        let survey = self.sources.get(&view.source).map(|source| source.survey.borrow().clone()).unwrap_or_default();
        let told = survey.consumers.get(name);
        let Some(apply) = &view.apply else {
            let position = told.and_then(|progress| progress.position).map(|p| p.to_string());
            let (source, at, paused_since) = (view.source.clone(), view.at.clone(), paused_since(&view.gate));
            return Replica { source, at, state: "elsewhere".to_owned(), paused_since, position, ..Replica::default() };
        };
        let mut apply = apply.borrow().clone();
        if let (None, Some(told)) = (apply.number, told) {
            // Not claimed since the daemon started: paused, or not to be reached. What it told the queue last is true of it at least.
            (apply.number, apply.position) = (Some(told.number), told.position);
            (apply.bytes_so_far, apply.changes_so_far) = (told.bytes_so_far, told.changes_so_far);
        }
        let rate = rate_of(&view.rate);
        let added = apply.added.as_ref();
        let error =
            apply.error.clone().or_else(|| added.map(|(_, error)| format!("tables that are copied beside the others: {error}")));
        let (lag_bytes, queued_changes) = backlog(&apply, end.as_ref(), survey.end);
        Replica {
            source: view.source.clone(),
            at: view.at.clone(),
            state: word(&apply.state),
            paused_since: paused_since(&view.gate),
            position: apply.position.map(|p| p.to_string()),
            record: apply.number.map(|n| n.0),
            lag_seconds: apply.lag.at(Now::read()).map(|lag| lag.as_secs_f64()),
            lag_bytes,
            queued_changes,
            drain_seconds: drain_seconds(queued_changes, rate.changes_per_second),
            rate,
            transactions: apply.transactions,
            changes: apply.changes,
            bytes: apply.bytes,
            batches: apply.batches,
            copy: view.copy.as_ref().and_then(|copy| copying(&copy.borrow())),
            not_validated: apply.not_validated,
            quarantine: apply.quarantine,
            sequences: view.sequences.as_ref().map(|carried| sequences(&carried.borrow())),
            halt: apply.halt.map(halt),
            remedy: remedy(apply.halt.or(added.and_then(|(halt, _)| *halt)), error.as_ref()),
            error,
        }
    }
}

fn paused_since(gate: &Gate) -> Option<String> {
    gate.paused().map(|paused| time(paused.since_us))
}

fn captured(source: &mut Source, capture: &CaptureStatus) {
    let durable = capture.durable;
    let end = capture.retention.source_position.max(capture.received);
    source.state = word(&capture.state);
    source.since = Some(capture.since_us).filter(|us| *us > 0).map(time);
    source.slot.clone_from(&capture.slot);
    source.epoch = capture.epoch.map(|epoch| epoch.0);
    source.held_by.clone_from(&capture.held_by);
    source.positions = Positions {
        source: end.map(|p| p.to_string()),
        received: capture.received.map(|p| p.to_string()),
        appended: capture.appended.map(|p| p.to_string()),
        queue: durable.map(|p| p.to_string()),
        confirmed: capture.confirmed.map(|p| p.to_string()),
    };
    let lsn = |position: Option<Position>| position.and_then(|position| position.lsn().ok());
    source.lag_bytes = lsn(end).zip(lsn(durable)).map(|(end, durable)| end.0.saturating_sub(durable.0));
    source.stream.slowest_consumer.clone_from(&capture.slowest);
    if capture.number.is_some() {
        source.stream.queued_bytes = Some(capture.queued_bytes);
        let slowest = capture.slowest.as_ref().and_then(|name| source.stream.consumers.get(name));
        source.stream.queued_changes = slowest.and_then(|consumer| consumer.behind_changes);
    }
    source.retained = Retained {
        bytes: capture.retention.source_position.map(|_| capture.retention.retained_bytes),
        budget_bytes: source.retained.budget_bytes,
        unconfirmed_seconds: capture.retention.unconfirmed_seconds,
        budget_age_seconds: capture.retention.budget_age_seconds,
        budget_seconds: capture.retention.budget_seconds,
        safe_bytes: capture.retention.safe_bytes,
        exceeded: capture.retention.exceeded,
    };
    source.transactions = capture.transactions;
    source.changes = capture.changes;
    source.bytes = capture.bytes;
    source.buffered_bytes = capture.buffered_bytes;
    source.spilled_bytes = capture.spilled_bytes;
    source.heartbeat_error.clone_from(&capture.heartbeat_error);
    source.halt = capture.halt.map(halt);
    source.error.clone_from(&capture.error);
    source.remedy = remedy(capture.halt, capture.error.as_ref());
}

/// A consumer that stands at the stream's last position has nothing before it; its last record's own size does not count.
fn is_caught_up(position: Option<Position>, end: &CaptureStatus) -> bool {
    end.appended.is_some() && position >= end.appended
}

fn backlog(apply: &ApplyStatus, end: Option<&CaptureStatus>, surveyed: Option<End>) -> (Option<u64>, Option<u64>) {
    let (bytes, changes) = (apply.bytes_so_far, apply.changes_so_far);
    let to =
        |end_bytes: u64, end_changes: u64| (Some(end_bytes.saturating_sub(bytes)), Some(end_changes.saturating_sub(changes)));
    match end {
        Some(end) if is_caught_up(apply.position, end) => (Some(0), Some(0)),
        Some(end) if end.number.is_some() && apply.number.is_some() => to(end.bytes_total, end.changes_total),
        _ => match surveyed {
            Some(end) if apply.number >= Some(end.number) => (Some(0), Some(0)),
            Some(end) if apply.number.is_some() => to(end.bytes_total, end.changes_total),
            _ => (None, None),
        },
    }
}

/// Messages in the queue over the rate at which they are worked off.
fn drain_seconds(queued: Option<u64>, per_second: f64) -> Option<f64> {
    match queued? {
        0 => Some(0.0),
        _ if per_second < 0.01 => None,
        queued => Some(queued as f64 / per_second),
    }
}

/// Everything that keeps `/readyz` red.
fn reasons(status: &Status, max_lag: Duration) -> Vec<String> {
    let mut reasons = Vec::new();
    if let Some(what) = &status.daemon.waiting_for {
        reasons.push(format!("waiting for {what}"));
    }
    for (name, source) in &status.sources {
        match (source.state.as_str(), &source.halt) {
            ("streaming" | "elsewhere", _) => {}
            // Said below.
            ("paused", None) if source.paused_since.is_some() => {}
            (_, Some(halt)) => reasons.push(format!("source {name} is halted: {}", halt.code)),
            (state, None) => reasons.push(format!("source {name} is {}", state.replace('_', " "))),
        }
        if let Some(since) = source.paused_since.as_ref().filter(|_| source.state != "elsewhere") {
            reasons.push(format!("source {name} is paused since {since}"));
        }
        if source.retained.exceeded {
            reasons.push(format!("source {name} retains more WAL, or for longer, than its budget allows"));
        }
    }
    for (name, replica) in &status.replicas {
        match (replica.state.as_str(), &replica.halt, replica.lag_seconds) {
            ("elsewhere", ..) => {}
            // Said below.
            (_, None, _) if replica.paused_since.is_some() => {}
            (_, Some(halt), _) => reasons.push(format!("replica {name} is halted: {}", halt.code)),
            ("live", None, Some(lag)) if lag > max_lag.as_secs_f64() => {
                reasons.push(format!("replica {name} is {lag:.1} s behind (ready_max_lag is {:.1} s)", max_lag.as_secs_f64()));
            }
            ("live", None, Some(_)) => reasons.extend(replica.copy.as_ref().map(|copy| beside(name, copy))),
            ("live", None, None) => reasons.push(format!("replica {name} has not applied anything yet")),
            (state, None, _) => reasons.push(format!("replica {name} is {}", state.replace('_', " "))),
        }
        reasons.extend(replica.quarantine.as_ref().and_then(|quarantine| not_whole(name, quarantine)));
        if let Some(since) = replica.paused_since.as_ref().filter(|_| replica.state != "elsewhere") {
            reasons.push(format!("replica {name} is paused since {since}"));
        }
    }
    reasons
}

/// What was cleared is its operator's to answer for, and the document's to show.
fn not_whole(replica: &str, quarantine: &Quarantine) -> Option<String> {
    let since = quarantine.whole_through.as_deref().unwrap_or("its first transaction");
    let many = if quarantine.kept == 1 { "1 transaction".to_owned() } else { format!("{} transactions", quarantine.kept) };
    (quarantine.kept > 0).then(|| format!("replica {replica} has {many} in quarantine, and is not whole since {since}"))
}

/// A copy beside tables that are live.
fn beside(replica: &str, copy: &Copy) -> String {
    let again = copy.again.join(", ");
    match copy.again.len() as u64 {
        0 => format!("replica {replica} is copying tables that were added"),
        all if all >= copy.tables => format!("replica {replica} is copying again: {again}"),
        _ => format!("replica {replica} is copying tables that were added, and again: {again}"),
    }
}

fn halt(code: HaltCode) -> Halt {
    Halt { code: code.as_str().to_owned(), mendable: code.mendable(), remedy: code.explain().remedy.to_owned() }
}

/// A halt's own; what is retried mends itself, or is for `check` to explain.
fn remedy(halt: Option<HaltCode>, error: Option<&String>) -> Option<String> {
    let retried = "It is tried again by itself. If it lasts, `millstream check` says what is wrong.";
    halt.map(|code| code.explain().remedy).or(error.map(|_| retried)).map(str::to_owned)
}

/// An enum's name as the document writes it.
fn word<T: Serialize>(state: &T) -> String {
    serde_json::to_value(state).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

pub(super) fn time(us: i64) -> String {
    jiff::Timestamp::from_microsecond(us).map(|time| time.to_string()).unwrap_or_default()
}

fn sequences(carried: &Carried) -> Sequences {
    let not_carried = carried.left.iter().map(|(name, reason)| NotCarried { name: name.clone(), reason: reason.clone() });
    Sequences {
        carried: carried.count,
        carried_at: carried.at_us.map(time),
        not_carried: not_carried.collect(),
        error: carried.error.clone(),
    }
}

/// A first copy in progress.
fn copying(progress: &CopyProgress) -> Option<Copy> {
    if progress.phase == CopyPhase::None {
        return None;
    }
    let mut phase = progress.phase.as_str().to_owned();
    if let Some(whom) = &progress.waiting_for {
        phase = format!("{phase}: {whom}");
    }
    if progress.indexes > 0 {
        phase = format!("{phase} ({} of {})", progress.indexes_built, progress.indexes);
    }
    Some(Copy {
        phase,
        tables_done: progress.tables_loaded,
        tables: progress.tables,
        rows: progress.rows,
        rows_estimated: Some(progress.rows_estimated),
        bytes: progress.bytes,
        rows_per_second: progress.rows_per_second,
        eta_seconds: progress.eta_seconds,
        again: progress.again.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_LAG: Duration = Duration::from_secs(30);

    /// A pair as it should be.
    fn well() -> Status {
        let source = Source { state: "streaming".to_owned(), ..Source::default() };
        let replica = Replica { state: "live".to_owned(), lag_seconds: Some(0.2), ..Replica::default() };
        let mut status = Status::default();
        status.sources.insert("shop".to_owned(), source);
        status.replicas.insert("reports".to_owned(), replica);
        status
    }

    /// The reasons of a pair in which something was changed.
    fn with(change: impl FnOnce(&mut Status, &mut Source, &mut Replica)) -> Vec<String> {
        let mut status = well();
        let (mut source, mut replica) = (status.sources["shop"].clone(), status.replicas["reports"].clone());
        change(&mut status, &mut source, &mut replica);
        status.sources.insert("shop".to_owned(), source);
        status.replicas.insert("reports".to_owned(), replica);
        reasons(&status, MAX_LAG)
    }

    #[test]
    fn a_replica_that_is_too_late_turns_readyz_red_and_one_at_the_limit_does_not() {
        assert!(reasons(&well(), MAX_LAG).is_empty());
        assert!(with(|_, _, replica| replica.lag_seconds = Some(30.0)).is_empty());
        let late = with(|_, _, replica| replica.lag_seconds = Some(30.1));
        assert_eq!(late, ["replica reports is 30.1 s behind (ready_max_lag is 30.0 s)"]);
    }

    #[test]
    fn whatever_is_halted_copying_or_silent_turns_readyz_red() {
        let nothing = with(|_, _, replica| replica.lag_seconds = None);
        assert_eq!(nothing, ["replica reports has not applied anything yet"]);
        assert_eq!(with(|_, _, replica| replica.state = "copying".to_owned()), ["replica reports is copying"]);
        assert_eq!(with(|_, source, _| source.state = "taking_over".to_owned()), ["source shop is taking over"]);
        let halted = with(|_, source, replica| {
            (source.state, source.halt) = ("halted".to_owned(), Some(halt(HaltCode::QueueLost)));
            (replica.state, replica.halt) = ("halted".to_owned(), Some(halt(HaltCode::ReplicaConflict)));
        });
        assert_eq!(halted, ["source shop is halted: queue_lost", "replica reports is halted: replica_conflict"]);
        let over = with(|_, source, _| source.retained.exceeded = true);
        assert_eq!(over, ["source shop retains more WAL, or for longer, than its budget allows"]);
        let paused = with(|_, source, replica| {
            (source.state, replica.state) = ("paused".to_owned(), "halted".to_owned());
            replica.halt = Some(halt(HaltCode::ReplicaConflict));
            (source.paused_since, replica.paused_since) = (Some("noon".to_owned()), Some("one".to_owned()));
        });
        let both = ["replica reports is halted: replica_conflict", "replica reports is paused since one"];
        assert_eq!(paused, [&["source shop is paused since noon"][..], &both].concat());
        let again = |tables, names: &[&str]| {
            let again = names.iter().map(|name| (*name).to_owned()).collect();
            with(|_, _, replica| replica.copy = Some(Copy { tables, again, ..Copy::default() }))
        };
        assert_eq!(again(1, &[]), ["replica reports is copying tables that were added"]);
        assert_eq!(again(1, &["public.a"]), ["replica reports is copying again: public.a"]);
        assert_eq!(again(2, &["public.a"]), ["replica reports is copying tables that were added, and again: public.a"]);
        let waiting = with(|status, _, _| status.daemon.waiting_for = Some("process 7".to_owned()));
        assert_eq!(waiting, ["waiting for process 7"]);
    }

    #[test]
    fn a_transaction_in_quarantine_keeps_readyz_red_until_it_is_applied_or_cleared() {
        let quarantine =
            |kept, cleared| Some(Quarantine { kept, cleared, whole_through: Some("0/1F".to_owned()), ..Quarantine::default() });
        let kept = with(|_, _, replica| replica.quarantine = quarantine(2, 1));
        assert_eq!(kept, ["replica reports has 2 transactions in quarantine, and is not whole since 0/1F"]);
        assert!(with(|_, _, replica| replica.quarantine = quarantine(0, 1)).is_empty());
    }

    #[test]
    fn what_another_daemon_does_is_not_this_ones_to_judge() {
        let elsewhere = with(|_, source, replica| {
            (source.state, replica.state) = ("elsewhere".to_owned(), "elsewhere".to_owned());
            replica.lag_seconds = None;
            replica.paused_since = Some("noon".to_owned());
        });
        assert!(elsewhere.is_empty(), "{elsewhere:?}");
    }
}
