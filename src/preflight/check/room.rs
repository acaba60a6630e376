//! Room on disks: what the queue and the sources' spills may write, added up where they share a file system, since each of them alone would be promised all of it.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::finding::{Findings, Place, Remedy};
use crate::config::{ByteSize, QueueConfig, QueueKind, SourceConfig};

/// What may be written into one folder, by one key of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Claim {
    key: String,
    bytes: u64,
    device: u64,
}

/// What may be written to the disks of this host.
#[derive(Clone, Debug, Default)]
pub struct Room {
    /// The queue's first, if it is on a disk of this host.
    claims: Vec<Claim>,
}

/// Whose room is looked at.
pub(super) struct Asked<'a> {
    pub(super) check: &'static str,
    pub(super) folder: &'a Path,
    pub(super) key: &'a str,
    pub(super) why: &'static str,
}

/// The key of a source's spill.
pub(super) fn spill_key(source: &str) -> String {
    format!("source.{source}.spill_max_bytes")
}

/// The queue's key.
pub(super) const QUEUE_KEY: &str = "queue.max_bytes";

impl Room {
    /// Of a configuration.
    #[must_use]
    pub fn of<'a>(queue: &QueueConfig, sources: impl IntoIterator<Item = &'a SourceConfig>) -> Self {
        let mut room = Self::default();
        if let QueueKind::Embedded { folder } = &queue.kind {
            room.claim(folder, QUEUE_KEY.to_owned(), queue.max_bytes);
        }
        for source in sources {
            room.claim(&source.spill_dir, spill_key(&source.name), source.spill_max_bytes);
        }
        room
    }

    fn claim(&mut self, folder: &Path, key: String, bytes: u64) {
        if let Some(device) = nearest(folder).and_then(|folder| folder.metadata().ok()).map(|meta| meta.dev()) {
            self.claims.push(Claim { key, bytes, device });
        }
    }

    /// The finding about one of them. Of several on one file system the first has it for all, and the others refer to it.
    pub(super) fn look(&self, findings: &mut Findings, asked: &Asked<'_>) {
        let Some(stat) = nearest(asked.folder).and_then(|folder| rustix::fs::statvfs(folder).ok()) else { return };
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let Some(device) = self.claims.iter().find(|claim| claim.key == asked.key).map(|claim| claim.device) else { return };
        let here: Vec<&Claim> = self.claims.iter().filter(|claim| claim.device == device).collect();
        match here.as_slice() {
            [first, ..] if first.key != asked.key => {
                findings.ok(asked.check, format!("on the same file system as that of {}, and counted there", first.key));
            }
            all => judge(findings, asked, free, all),
        }
    }
}

fn judge(findings: &mut Findings, asked: &Asked<'_>, free: u64, claims: &[&Claim]) {
    let wanted = claims.iter().fold(0_u64, |sum, claim| sum.saturating_add(claim.bytes));
    let parts: Vec<String> = claims.iter().map(|claim| format!("{} {}", claim.key, ByteSize(claim.bytes))).collect();
    let sum = match parts.as_slice() {
        [one] => one.clone(),
        several => format!("{} together, on one file system: {}", ByteSize(wanted), several.join(" + ")),
    };
    if free >= wanted {
        findings.ok(asked.check, format!("{} free; {sum}", ByteSize(free)));
        return;
    }
    // A tenth stays for everybody else; each gives way by the same part.
    let share =
        |bytes: u64| u64::try_from(u128::from(free / 10 * 9) * u128::from(bytes) / u128::from(wanted.max(1))).unwrap_or(free);
    let mut steps = claims.iter().map(|claim| {
        let (table, key) = claim.key.rsplit_once('.').unwrap_or(("", &claim.key));
        format!("in [{table}]: {key} = \"{}MiB\"", (share(claim.bytes) >> 20).max(1))
    });
    let remedy = Remedy::at(Place::Configuration, steps.next().unwrap_or_default());
    let remedy = steps.fold(remedy, Remedy::then);
    findings.warn(asked.check, format!("{} free, below {sum}", ByteSize(free)), asked.why, Some(remedy));
}

/// The folder, or what is there of the path to it: it is made when it is needed.
pub(super) fn nearest(folder: &Path) -> Option<&Path> {
    folder.ancestors().find(|path| path.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::check::{Finding, Severity, Side};

    fn look(free: u64, claims: &[(&str, u64)]) -> Finding {
        let claims: Vec<Claim> =
            claims.iter().map(|(key, bytes)| Claim { key: (*key).to_owned(), bytes: bytes << 20, device: 1 }).collect();
        let mut findings = Findings::new(Side::Queue, "embedded");
        let asked = Asked { check: "disk_room", folder: Path::new("/"), key: QUEUE_KEY, why: "it fills" };
        judge(&mut findings, &asked, free << 20, &claims.iter().collect::<Vec<_>>());
        findings.into_list().pop().expect("a finding")
    }

    #[test]
    fn what_fits_alone_and_not_together_is_named_with_both_and_given_its_share() {
        assert_eq!(look(1000, &[(QUEUE_KEY, 800)]).severity, Severity::Ok);
        let both = [(QUEUE_KEY, 800), ("source.shop.spill_max_bytes", 400)];
        let found = look(1000, &both);
        assert_eq!(found.severity, Severity::Warning);
        assert_eq!(
            found.what,
            "1000 MiB free, below 1.2 GiB together, on one file system: queue.max_bytes 800 MiB + source.shop.spill_max_bytes 400 MiB"
        );
        let steps = found.remedy.expect("a remedy").steps;
        assert_eq!(steps, ["in [queue]: max_bytes = \"600MiB\"", "in [source.shop]: spill_max_bytes = \"300MiB\""]);
        assert_eq!(look(1200, &both).severity, Severity::Ok);
    }
}
