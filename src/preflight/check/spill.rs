//! Where large transactions spill: whichever the queue is, this is on the daemon's own disk.

use crate::config::{QueueKind, SourceConfig};

use super::finding::{Findings, Place, Remedy, Side};
use super::queue::{Limit, room, shell_quote};

/// Checks a source's `spill_dir`.
#[must_use]
pub fn check_spill(source: &SourceConfig, queue: &QueueKind) -> Findings {
    let mut findings = Findings::new(Side::Source, &source.name);
    let folder = &source.spill_dir;
    // The queue's folder has a check of its own.
    let beneath_queue = matches!(queue, QueueKind::Embedded { folder: queue } if folder.starts_with(queue));
    let Some(nearest) = folder.ancestors().find(|path| path.is_dir()) else { return findings };
    if !beneath_queue && let Err(error) = tempfile::tempfile_in(nearest) {
        let remedy = Remedy::at(Place::Shell, format!("install -d -m 0750 -o millstream -g millstream {}", shell_quote(folder)));
        let what = format!("cannot write into {}: {error}", nearest.display());
        findings.error("spill_dir", what, "a transaction larger than memory_bytes waits there for its end", Some(remedy));
        return findings;
    }
    let limit = Limit {
        check: "spill_room",
        bytes: source.spill_max_bytes,
        name: "spill_max_bytes",
        key: format!("source.{}.spill_max_bytes", source.name),
        why: "a huge transaction fills the disk before the spill's own limit halts capture",
    };
    room(&mut findings, nearest, &limit);
    findings
}
