//! Where large transactions spill: whichever the queue is, this is on the daemon's own disk.

use crate::config::{QueueKind, SourceConfig};

use super::finding::{Findings, Place, Remedy, Side};
use super::queue::shell_quote;
use super::room::{Asked, Room, nearest, spill_key};

/// Checks a source's `spill_dir`.
#[must_use]
pub fn check_spill(source: &SourceConfig, queue: &QueueKind, room: &Room) -> Findings {
    let mut findings = Findings::new(Side::Source, &source.name).at(&source.connect);
    let folder = &source.spill_dir;
    // The queue's folder has a check of its own.
    let beneath_queue = matches!(queue, QueueKind::Embedded { folder: queue } if folder.starts_with(queue));
    let Some(nearest) = nearest(folder) else { return findings };
    if !beneath_queue && let Err(error) = tempfile::tempfile_in(nearest) {
        let remedy = Remedy::at(Place::Shell, format!("install -d -m 0750 -o millstream -g millstream {}", shell_quote(folder)));
        let what = format!("cannot write into {}: {error}", nearest.display());
        findings.error("spill_dir", what, "a transaction larger than memory_bytes waits there for its end", Some(remedy));
        return findings;
    }
    let (key, why) = (spill_key(&source.name), "a huge transaction fills the disk before the spill's own limit halts capture");
    room.look(&mut findings, &Asked { check: "spill_room", folder: nearest, key: &key, why });
    findings
}
