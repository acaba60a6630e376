//! What the embedded queue's folder must have. Kafka's checks are [`crate::queue::kafka::check`]'s.

use std::path::Path;

use super::finding::{Findings, Place, Remedy, Side};
use crate::config::{QueueConfig, QueueKind};

/// File systems whose fsync promises nothing, or whose locks do not hold between hosts (`statfs(2)`, `linux/magic.h`).
const UNSAFE_FILE_SYSTEMS: &[(i64, &str)] =
    &[(0x0102_1994, "tmpfs"), (0x6969, "NFS"), (0x8584_58f6, "ramfs"), (0xFF53_4D42, "CIFS")];

/// Checks the embedded queue's folder; `None` for another queue.
#[must_use]
pub fn check_embedded(queue: &QueueConfig) -> Option<Findings> {
    let QueueKind::Embedded { folder } = &queue.kind else { return None };
    let mut findings = Findings::new(Side::Queue, "embedded");
    if !folder.is_dir() {
        let remedy = Remedy::at(Place::Shell, format!("install -d -m 0750 -o millstream -g millstream {}", shell_quote(folder)));
        findings.error("folder", format!("there is no folder {}", folder.display()), "the log waits in it", Some(remedy));
        return Some(findings);
    }
    if let Err(error) = tempfile::tempfile_in(folder) {
        let remedy = Remedy::at(Place::Shell, format!("chown -R millstream:millstream {}", shell_quote(folder)));
        findings.error("folder", format!("cannot write into {}: {error}", folder.display()), "the log waits in it", Some(remedy));
        return Some(findings);
    }
    findings.ok("folder", folder.display().to_string());
    file_system(&mut findings, folder);
    room(&mut findings, folder, queue.max_bytes);
    Some(findings)
}

fn file_system(findings: &mut Findings, folder: &Path) {
    let Ok(stat) = rustix::fs::statfs(folder) else { return };
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

fn room(findings: &mut Findings, folder: &Path, max_bytes: u64) {
    let Ok(stat) = rustix::fs::statvfs(folder) else { return };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let megabytes = |n: u64| n >> 20;
    if free < max_bytes {
        let what = format!("{} MB free, below queue.max_bytes ({} MB)", megabytes(free), megabytes(max_bytes));
        let remedy = Remedy::at(Place::Configuration, format!("queue.max_bytes = \"{}MiB\"", megabytes(free / 10 * 9)));
        findings.warn(
            "disk_room",
            what,
            "a replica that stands still for long fills the disk before the queue's own limit stops capture",
            Some(remedy),
        );
    } else {
        findings.ok("disk_room", format!("{} MB free, queue.max_bytes is {} MB", megabytes(free), megabytes(max_bytes)));
    }
}

fn shell_quote(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', "'\\''"))
}
