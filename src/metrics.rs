//! Metrics in Prometheus' conventions. Every name and label stands here; `docs/operations.md` explains them.
//!
//! Gauges and counters are made from a [`Status`] whenever somebody scrapes, into a recorder of their own: a label that is gone
//! (a halt that was mended) is gone from the next answer.

use metrics::{counter, describe_counter, describe_gauge, gauge};
use metrics_exporter_prometheus::PrometheusBuilder;

use crate::control::Status;
use crate::control::model::{Replica, Source};

/// Label: name of a source.
pub const SOURCE: &str = "source";
/// Label: name of a replica.
pub const REPLICA: &str = "replica";
/// Label: a halt's code.
pub const CODE: &str = "code";
/// Label: what halted: `source` or `replica`.
pub const SIDE: &str = "side";
/// Label: name of what halted, or is in a state.
pub const NAME: &str = "name";
/// Label: a state.
pub const STATE: &str = "state";
/// Label: a consumer of a stream.
pub const CONSUMER: &str = "consumer";
/// Label: Millstream's version.
pub const VERSION: &str = "version";

macro_rules! names {
    ($($(#[$doc:meta])* $kind:ident $constant:ident = $name:literal, $help:literal;)*) => {
        $(#[doc = $help] pub const $constant: &str = $name;)*

        /// Every metric: name, `gauge` or `counter`, meaning.
        pub const ALL: &[(&str, &str, &str)] = &[$(($name, stringify!($kind), $help),)*];
    };
}

names! {
    gauge BUILD_INFO = "millstream_build_info", "Always 1; the label says the version.";
    gauge READY = "millstream_ready", "1 when /readyz answers 200.";
    gauge STREAM_HALTED = "millstream_stream_halted", "1 for each source or replica that is halted, with its code. Absent when nothing is.";
    gauge STATE_INFO = "millstream_state", "1 for the state that a source or replica is in.";
    gauge REPLICA_LAG_SECONDS = "millstream_replica_lag_seconds", "Age of what the replica shows, by heartbeats through the whole log; silence counts.";
    gauge REPLICA_LAG_BYTES = "millstream_replica_lag_bytes", "Bytes of log that the replica has not applied.";
    gauge REPLICA_QUEUED_CHANGES = "millstream_replica_queued_changes", "Changes in the queue that the replica has not applied.";
    gauge REPLICA_DRAIN_SECONDS = "millstream_replica_drain_seconds", "Time to apply what is queued, at the present rate. Absent when nothing moves.";
    gauge REPLICA_PAUSED = "millstream_replica_paused", "1 while the replica is paused (`millstream pause`).";
    gauge REPLICA_LIVE = "millstream_replica_live", "1 when every table is live.";
    counter APPLIED_TRANSACTIONS = "millstream_applied_transactions_total", "Source transactions applied by this process.";
    counter APPLIED_CHANGES = "millstream_applied_changes_total", "Changes applied by this process.";
    counter APPLIED_BYTES = "millstream_applied_bytes_total", "Bytes of log applied by this process.";
    counter APPLIED_BATCHES = "millstream_applied_batches_total", "Replica transactions committed by this process.";
    counter CAPTURED_TRANSACTIONS = "millstream_captured_transactions_total", "Source transactions captured by this process.";
    counter CAPTURED_CHANGES = "millstream_captured_changes_total", "Changes captured by this process.";
    counter CAPTURED_BYTES = "millstream_captured_bytes_total", "Bytes of log written by this process.";
    gauge SOURCE_PAUSED = "millstream_source_paused", "1 while the source is paused: it is not read, and keeps its WAL.";
    gauge SOURCE_LAG_BYTES = "millstream_source_lag_bytes", "Bytes of the source's log that are not durable in the queue.";
    gauge SOURCE_RETAINED_WAL_BYTES = "millstream_source_retained_wal_bytes", "WAL that the slot retains at the source.";
    gauge SOURCE_RETAIN_BUDGET_BYTES = "millstream_source_retain_budget_bytes", "retain_max_bytes.";
    gauge SOURCE_UNCONFIRMED_SECONDS = "millstream_source_unconfirmed_seconds", "Time for which the slot was not confirmed further while the source's log went on.";
    gauge SOURCE_RETAIN_BUDGET_SECONDS = "millstream_source_retain_budget_seconds", "Time until retain_max_bytes or retain_max_age ends at the present rate. Absent while nothing grows.";
    gauge SOURCE_TABLES_NOT_CAPTURED = "millstream_source_tables_not_captured", "Tables that match and are not captured until `millstream init` runs again.";
    gauge SOURCE_BUFFERED_BYTES = "millstream_source_buffered_bytes", "Transactions in progress, in memory.";
    gauge SOURCE_SPILLED_BYTES = "millstream_source_spilled_bytes", "Transactions in progress, on disk.";
    gauge HEARTBEAT_FAILING = "millstream_source_heartbeat_failing", "1 while heartbeats cannot be written to the source.";
    gauge QUEUE_BYTES = "millstream_queue_bytes", "Bytes from the slowest consumer to the stream's end.";
    gauge QUEUE_MAX_BYTES = "millstream_queue_max_bytes", "queue.max_bytes.";
    gauge QUEUE_STORED_BYTES = "millstream_queue_stored_bytes", "Bytes of the stream on disk, where the queue can tell.";
    gauge CONSUMER_BEHIND_BYTES = "millstream_consumer_behind_bytes", "Bytes from a registered consumer to the stream's end.";
    gauge REPLICA_SEQUENCES_NOT_CARRIED = "millstream_replica_sequences_not_carried", "Sequences that could not be set on the replica.";
    gauge REPLICA_SEQUENCES_CARRIED_AT = "millstream_replica_sequences_carried_timestamp_seconds", "When sequences were last carried, seconds since 1970-01-01 UTC. Absent before the first time.";
    gauge REPLICA_QUARANTINED = "millstream_replica_quarantined", "Source transactions that the replica lacks: kept in quarantine (`kept`), or cleared and not copied again since (`cleared`). Absent before the first look.";
    gauge COPY_ROWS = "millstream_copy_rows", "Rows loaded by the first copy in progress.";
    gauge COPY_ROWS_ESTIMATED = "millstream_copy_rows_estimated", "Rows that the first copy in progress expects.";
    gauge COPY_ETA_SECONDS = "millstream_copy_eta_seconds", "Time that the first copy in progress still needs.";
    gauge PROCESS_RSS = "process_resident_memory_bytes", "Resident memory of the process.";
    gauge PROCESS_RSS_PEAK = "process_resident_memory_peak_bytes", "Highest resident memory of the process.";
    counter PROCESS_CPU = "process_cpu_seconds_total", "User and system CPU time of the process.";
    gauge PROCESS_FDS = "process_open_fds", "Open file descriptors.";
    gauge PROCESS_START = "process_start_time_seconds", "Start of the process, seconds since 1970-01-01 UTC.";
}

/// The answer to a scrape.
#[must_use]
pub fn render(status: &Status) -> String {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    metrics::with_local_recorder(&recorder, || {
        for (name, kind, help) in ALL {
            match *kind {
                "counter" => describe_counter!(*name, *help),
                _ => describe_gauge!(*name, *help),
            }
        }
        gauge!(BUILD_INFO, VERSION => status.daemon.version.clone()).set(1.0);
        gauge!(READY).set(flag(status.ready));
        for (name, source) in &status.sources {
            of_source(name, source);
        }
        for (name, replica) in &status.replicas {
            of_replica(name, replica);
        }
        of_process(status);
    });
    handle.render()
}

fn flag(value: bool) -> f64 {
    f64::from(u8::from(value))
}

fn of_source(name: &str, source: &Source) {
    let label = || name.to_owned();
    gauge!(STATE_INFO, SIDE => "source", NAME => label(), STATE => source.state.clone()).set(1.0);
    if let Some(halt) = &source.halt {
        gauge!(STREAM_HALTED, SIDE => "source", NAME => label(), CODE => halt.code.clone()).set(1.0);
    }
    gauge!(SOURCE_TABLES_NOT_CAPTURED, SOURCE => label()).set(source.tables_not_captured.len() as f64);
    gauge!(QUEUE_MAX_BYTES, SOURCE => label()).set(source.stream.max_bytes as f64);
    gauge!(SOURCE_RETAIN_BUDGET_BYTES, SOURCE => label()).set(source.retained.budget_bytes as f64);
    let optional = |metric: &'static str, value: Option<u64>| {
        if let Some(value) = value {
            gauge!(metric, SOURCE => label()).set(value as f64);
        }
    };
    optional(SOURCE_LAG_BYTES, source.lag_bytes);
    gauge!(SOURCE_UNCONFIRMED_SECONDS, SOURCE => label()).set(source.retained.unconfirmed_seconds as f64);
    optional(SOURCE_RETAINED_WAL_BYTES, source.retained.bytes);
    optional(SOURCE_RETAIN_BUDGET_SECONDS, source.retained.budget_seconds);
    optional(QUEUE_BYTES, source.stream.queued_bytes);
    optional(QUEUE_STORED_BYTES, source.stream.stored_bytes);
    for (consumer, state) in &source.stream.consumers {
        if let Some(bytes) = state.behind_bytes {
            gauge!(CONSUMER_BEHIND_BYTES, SOURCE => label(), CONSUMER => consumer.clone()).set(bytes as f64);
        }
    }
    if source.state == "elsewhere" {
        return;
    }
    gauge!(SOURCE_PAUSED, SOURCE => label()).set(flag(source.paused_since.is_some()));
    gauge!(SOURCE_BUFFERED_BYTES, SOURCE => label()).set(source.buffered_bytes as f64);
    gauge!(SOURCE_SPILLED_BYTES, SOURCE => label()).set(source.spilled_bytes as f64);
    gauge!(HEARTBEAT_FAILING, SOURCE => label()).set(flag(source.heartbeat_error.is_some()));
    counter!(CAPTURED_TRANSACTIONS, SOURCE => label()).absolute(source.transactions);
    counter!(CAPTURED_CHANGES, SOURCE => label()).absolute(source.changes);
    counter!(CAPTURED_BYTES, SOURCE => label()).absolute(source.bytes);
}

fn of_replica(name: &str, replica: &Replica) {
    let label = || name.to_owned();
    gauge!(STATE_INFO, SIDE => "replica", NAME => label(), STATE => replica.state.clone()).set(1.0);
    if replica.state == "elsewhere" {
        return;
    }
    if let Some(halt) = &replica.halt {
        gauge!(STREAM_HALTED, SIDE => "replica", NAME => label(), CODE => halt.code.clone()).set(1.0);
    }
    let optional = |metric: &'static str, value: Option<f64>| {
        if let Some(value) = value {
            gauge!(metric, REPLICA => label(), SOURCE => replica.source.clone()).set(value);
        }
    };
    optional(REPLICA_LAG_SECONDS, replica.lag_seconds);
    optional(REPLICA_LAG_BYTES, replica.lag_bytes.map(|n| n as f64));
    optional(REPLICA_QUEUED_CHANGES, replica.queued_changes.map(|n| n as f64));
    optional(REPLICA_DRAIN_SECONDS, replica.drain_seconds);
    optional(REPLICA_PAUSED, Some(flag(replica.paused_since.is_some())));
    optional(REPLICA_LIVE, Some(flag(replica.state == "live")));
    if let Some(sequences) = &replica.sequences {
        optional(REPLICA_SEQUENCES_NOT_CARRIED, Some(sequences.not_carried.len() as f64));
        let at = sequences.carried_at.as_ref().and_then(|at| at.parse::<jiff::Timestamp>().ok());
        optional(REPLICA_SEQUENCES_CARRIED_AT, at.map(|at| at.as_second() as f64));
    }
    if let Some(quarantine) = &replica.quarantine {
        for (state, count) in [("kept", quarantine.kept), ("cleared", quarantine.cleared)] {
            gauge!(REPLICA_QUARANTINED, REPLICA => label(), SOURCE => replica.source.clone(), STATE => state).set(count as f64);
        }
    }
    if let Some(copy) = &replica.copy {
        optional(COPY_ROWS, Some(copy.rows as f64));
        optional(COPY_ROWS_ESTIMATED, copy.rows_estimated.map(|n| n as f64));
        optional(COPY_ETA_SECONDS, copy.eta_seconds);
    }
    let total = |metric: &'static str, value| {
        counter!(metric, REPLICA => label(), SOURCE => replica.source.clone()).absolute(value);
    };
    total(APPLIED_TRANSACTIONS, replica.transactions);
    total(APPLIED_CHANGES, replica.changes);
    total(APPLIED_BYTES, replica.bytes);
    total(APPLIED_BATCHES, replica.batches);
}

/// From `/proc/self` (proc(5)); what cannot be read is left out.
fn of_process(status: &Status) {
    if let Ok(text) = std::fs::read_to_string("/proc/self/status") {
        let kib = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key))?;
            line.trim_start_matches(':').split_whitespace().next()?.parse::<f64>().ok()
        };
        if let Some(rss) = kib("VmRSS") {
            gauge!(PROCESS_RSS).set(rss * 1024.0);
        }
        if let Some(peak) = kib("VmHWM") {
            gauge!(PROCESS_RSS_PEAK).set(peak * 1024.0);
        }
    }
    if let Some(ticks) = cpu_ticks() {
        // Linux reports in USER_HZ, 100 a second (time(7)); a counter of the recorder holds whole numbers.
        counter!(PROCESS_CPU).absolute(ticks / 100);
    }
    if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
        gauge!(PROCESS_FDS).set(entries.count() as f64);
    }
    if let Ok(started) = status.daemon.started_at.parse::<jiff::Timestamp>() {
        gauge!(PROCESS_START).set(started.as_second() as f64);
    }
}

/// Fields 14 and 15 of `/proc/self/stat`; the command's name before them may hold anything up to the last `)`.
fn cpu_ticks() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}
