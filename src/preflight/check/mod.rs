//! `millstream check`: what must hold on source, queue and replica before a pair runs, and what mends it.
//!
//! Checks only look; nothing here changes a database, a topic or a file. Each finding that is not fine carries why it matters
//! and the exact step that mends it; tests carry the steps out and see the finding vanish. What could not be looked at is
//! *unknown*, which is not *fine*.

mod connect;
mod drift;
mod finding;
mod live_tables;
mod queue;
mod render;
mod replica;
mod replica_fit;
mod replica_tables;
mod room;
mod schema_changes;
mod server;
mod source;
mod source_tables;
mod spill;
mod standbys;
mod trust;

pub use finding::{Finding, Findings, Place, Remedy, Report, Severity, Side};
pub use queue::check_embedded;
pub use render::table;
pub use replica::{SourceSide, check as check_replica};
pub use room::Room;
pub use server::{ServerFacts, TESTED_MAJORS};
pub use source::{check as check_source, check_with as check_source_with};
pub use spill::check_spill;

use crate::config::Config;
use crate::queue::kafka::{self, KafkaSettings};

/// Checks every source, the queue and every replica of a configuration.
pub async fn run(config: &Config) -> Report {
    let mut report = Report { version: 1, findings: Vec::new() };
    let room = Room::of(&config.queue, config.sources.values());
    let mut replicas = Vec::new();
    for source in config.sources.values() {
        let (findings, facts) = check_source(source).await;
        let side = SourceSide::of(source, facts.as_ref(), &findings);
        for replica in config.replicas.values().filter(|r| r.source == source.name) {
            replicas.extend(check_replica(replica, &side).await.into_list());
        }
        report.findings.extend(findings.into_list());
        report.findings.extend(check_spill(source, &config.queue.kind, &room).into_list());
    }
    report.findings.extend(check_embedded(&config.queue, &room).map(Findings::into_list).unwrap_or_default());
    if let Some(settings) = KafkaSettings::of(&config.queue.kind) {
        let streams: Vec<&str> = config.sources.keys().map(String::as_str).collect();
        report.findings.extend(kafka::check(&settings, &streams).await.into_list());
    }
    report.findings.extend(replicas);
    report
}
