//! What the embedded queue's folder must have. Kafka's checks are [`crate::queue::kafka::check`]'s.

use std::path::Path;

use super::finding::{Findings, Place, Remedy, Side};
use super::room::{Asked, QUEUE_KEY, Room, nearest};
use crate::config::{QueueConfig, QueueKind};

/// File systems whose fsync promises nothing, or whose locks do not hold between hosts (`statfs(2)`, `linux/magic.h`).
const UNSAFE_FILE_SYSTEMS: &[(i64, &str)] =
    &[(0x0102_1994, "tmpfs"), (0x6969, "NFS"), (0x8584_58f6, "ramfs"), (0xFF53_4D42, "CIFS")];

/// Checks the embedded queue's folder; `None` for another queue.
#[must_use]
pub fn check_embedded(queue: &QueueConfig, room: &Room) -> Option<Findings> {
    let QueueKind::Embedded { folder } = &queue.kind else { return None };
    let mut findings = Findings::new(Side::Queue, "embedded");
    // What is not there yet is made by init, in the nearest folder above that is.
    let Some(nearest) = nearest(folder) else { return Some(findings) };
    if let Err(error) = tempfile::tempfile_in(nearest) {
        let path = shell_quote(folder);
        let remedy = Remedy::at(Place::Shell, format!("install -d -m 0750 -o millstream -g millstream {path}"));
        findings.error(
            "folder",
            format!("cannot write into {}: {error}", nearest.display()),
            "the log waits in it",
            Some(remedy),
        );
        return Some(findings);
    }
    let folder = nearest;
    findings.ok("folder", queue_folder(queue));
    file_system(&mut findings, folder);
    let why = "a replica that stands still for long fills the disk before the queue's own limit stops capture";
    room.look(&mut findings, &Asked { check: "disk_room", folder, key: QUEUE_KEY, why });
    Some(findings)
}

fn queue_folder(queue: &QueueConfig) -> String {
    match &queue.kind {
        QueueKind::Embedded { folder } if folder.is_dir() => folder.display().to_string(),
        QueueKind::Embedded { folder } => format!("{} (init makes it)", folder.display()),
        QueueKind::Kafka { brokers, .. } => brokers.clone(),
    }
}

fn file_system(findings: &mut Findings, folder: &Path) {
    let Ok(stat) = rustix::fs::statfs(folder) else { return };
    #[allow(clippy::unnecessary_cast, reason = "another type on other platforms")]
    let kind = stat.f_type as i64;
    if let Some((_, name)) = UNSAFE_FILE_SYSTEMS.iter().find(|(magic, _)| *magic == kind) {
        let remedy = Remedy::at(Place::Configuration, "queue.url: a folder on a local disk (ext4, xfs, btrfs, zfs)");
        findings.warn(
            "file_system",
            format!("{} is on {name}", folder.display()),
            "what the queue calls durable may be gone after a crash of the host",
            Some(remedy),
        );
    }
}

pub(super) fn shell_quote(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', "'\\''"))
}
