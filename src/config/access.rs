//! What to say of a file that this user may not read: which one it is, who may, and as whom to run the command.

use std::fs::Metadata;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

/// The sentence about a file that could not be opened for want of a right. Of a path whose folders may not be entered it names the first that may not.
#[must_use]
pub fn refused(path: &Path) -> String {
    let Some((blamed, meta)) = path.ancestors().find_map(|above| Some((above, above.metadata().ok()?))) else {
        return format!("{}: this user may not read it", path.display());
    };
    let (owner, group) = (name_in("/etc/passwd", meta.uid()), name_in("/etc/group", meta.gid()));
    let kind = if blamed == path { "" } else { "a folder, " };
    let me = name_in("/etc/passwd", rustix::process::geteuid().as_raw());
    format!(
        "{} ({kind}owner {owner}, group {group}, mode {:04o}): user {me} may not {} it; {}",
        blamed.display(),
        meta.permissions().mode() & 0o7777,
        if blamed == path { "read" } else { "enter" },
        remedy(blamed, &meta, &owner, &group)
    )
}

/// As whom to run the command, if somebody but root may.
fn remedy(path: &Path, meta: &Metadata, owner: &str, group: &str) -> String {
    let shared = meta.gid() != 0 && meta.mode() & 0o040 != 0 && id_of("/etc/passwd", group).is_some();
    if meta.uid() != 0 {
        format!("run the command as that user: sudo -u {owner} millstream …")
    } else if shared {
        format!("run the command as the daemon's user: sudo -u {group} millstream …")
    } else {
        let quoted = path.display();
        format!("let the daemon's group read it: chgrp millstream {quoted} && chmod g+r {quoted}")
    }
}

/// The name behind a number in passwd(5) or group(5); the number itself where neither has it.
fn name_in(file: &str, id: u32) -> String {
    let found = lines(file).find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(id)).then(|| name.to_owned())
    });
    found.unwrap_or_else(|| id.to_string())
}

fn id_of(file: &str, name: &str) -> Option<u32> {
    lines(file).find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.split(':').nth(1)?.parse().ok())
}

fn lines(file: &str) -> impl Iterator<Item = String> {
    std::fs::read_to_string(file).unwrap_or_default().lines().map(str::to_owned).collect::<Vec<_>>().into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        assert_eq!(name_in("/etc/passwd", 0), "root");
        assert_eq!(id_of("/etc/passwd", "root"), Some(0));
        assert_eq!(name_in("/etc/passwd", 4_000_000_000), "4000000000");
        assert_eq!(id_of("/etc/passwd", "roo"), None);
    }
}
