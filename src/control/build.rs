//! From the stages' own words to the document, and whether all of it is well.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::model::{self, Consumer, Copy, Halt, Positions, Replica, Retained, Source, Status, Stream};
use super::survey::End;
use super::{Control, ReplicaView, SourceView, rate_of};
use crate::apply::ApplyStatus;
use crate::apply::copy::{CopyPhase, CopyProgress};
use crate::apply::lag::Now;
use crate::capture::CaptureStatus;
use crate::event::Position;
use crate::halt::HaltCode;
use crate::replica::postgres::ledger::whole;

impl Control {
    /// The document, as of now.
    #[must_use]
    pub fn status(&self) -> Status {
        let sources: BTreeMap<_, _> = self.sources.iter().map(|(name, view)| (name.clone(), self.source_status(view))).collect();
        let replicas: BTreeMap<_, _> =
            self.replicas.iter().map(|(name, view)| (name.clone(), self.replica_status(name, view))).collect();
        let mut daemon = self.daemon.clone();
        daemon.waiting_for.clone_from(&self.waiting_for.borrow());
        daemon.configuration_changed = self.file.has_changed();
        let mut status = Status {
            version: model::VERSION,
            at: jiff::Timestamp::now().to_string(),
            ready: false,
            not_ready: Vec::new(),
            daemon,
            queue: self.queue.clone(),
            sources,
            replicas,
        };
        status.not_ready = reasons(&status, self.ready_max_lag);
        status.ready = status.not_ready.is_empty();
        status
    }

    fn source_status(&self, view: &SourceView) -> Source {
        let survey = view.survey.borrow().clone();
        let mut source = Source {
            state: "elsewhere".to_owned(),
            tables_not_captured: survey.not_captured,
            tables_to_mend: survey.to_mend,
            sequences_not_carried: survey.sequences,
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
                configured: self.replicas.contains_key(whole(&name)),
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
        let Some(apply) = &view.apply else {
            let survey = self.sources.get(&view.source).map(|source| source.survey.borrow().clone()).unwrap_or_default();
            let position = survey.consumers.get(name).and_then(|progress| progress.position).map(|p| p.to_string());
            return Replica { source: view.source.clone(), state: "elsewhere".to_owned(), position, ..Replica::default() };
        };
        let apply = apply.borrow().clone();
        let rate = rate_of(&view.rate);
        let surveyed = self.sources.get(&view.source).and_then(|source| source.survey.borrow().end);
        let added = apply.added.as_ref();
        let error =
            apply.error.clone().or_else(|| added.map(|(_, error)| format!("tables that are copied beside the others: {error}")));
        let (lag_bytes, queued_changes) = backlog(&apply, end.as_ref(), surveyed);
        Replica {
            source: view.source.clone(),
            state: word(&apply.state),
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
            halt: apply.halt.map(halt),
            remedy: remedy(apply.halt.or(added.and_then(|(halt, _)| *halt)), error.as_ref()),
            error,
        }
    }
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
            (_, Some(halt)) => reasons.push(format!("source {name} is halted: {}", halt.code)),
            (state, None) => reasons.push(format!("source {name} is {}", state.replace('_', " "))),
        }
        if source.retained.exceeded {
            reasons.push(format!("source {name} retains more WAL, or for longer, than its budget allows"));
        }
    }
    for (name, replica) in &status.replicas {
        match (replica.state.as_str(), &replica.halt, replica.lag_seconds) {
            ("elsewhere", ..) => {}
            (_, Some(halt), _) => reasons.push(format!("replica {name} is halted: {}", halt.code)),
            ("live", None, Some(lag)) if lag > max_lag.as_secs_f64() => {
                reasons.push(format!("replica {name} is {lag:.1} s behind (ready_max_lag is {:.1} s)", max_lag.as_secs_f64()));
            }
            ("live", None, Some(_)) => reasons.extend(replica.copy.as_ref().map(|copy| beside(name, copy))),
            ("live", None, None) => reasons.push(format!("replica {name} has not applied anything yet")),
            (state, None, _) => reasons.push(format!("replica {name} is {}", state.replace('_', " "))),
        }
    }
    reasons
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

fn time(us: i64) -> String {
    jiff::Timestamp::from_microsecond(us).map(|time| time.to_string()).unwrap_or_default()
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
    fn what_another_daemon_does_is_not_this_ones_to_judge() {
        let elsewhere = with(|_, source, replica| {
            (source.state, replica.state) = ("elsewhere".to_owned(), "elsewhere".to_owned());
            replica.lag_seconds = None;
        });
        assert!(elsewhere.is_empty(), "{elsewhere:?}");
    }
}
