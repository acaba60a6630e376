//! The configuration's file: whether it has changed, and how printed commands name it.

use std::path::{Path, PathBuf};

use super::DEFAULT_PATH;

/// What precedes a command of ours in a text.
const PROGRAM: &str = "millstream ";
/// The commands that read a configuration.
const COMMANDS: [&str; 11] =
    ["run", "check", "init", "teardown", "status", "log tail", "pause", "resume", "reload", "sequences", "table"];

/// A configuration file, and what it said when it was read.
#[derive(Clone, Debug, Default)]
pub struct ConfigFile {
    path: PathBuf,
    checksum: u32,
}

impl ConfigFile {
    pub(super) fn new(path: &Path, text: &str) -> Self {
        Self { path: path.to_owned(), checksum: crc32c::crc32c(text.as_bytes()) }
    }

    /// One that need not be there.
    #[must_use]
    pub fn named(path: &Path) -> Self {
        Self::new(path, "")
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// True when it says something else by now; `None` when it cannot be read.
    #[must_use]
    pub fn has_changed(&self) -> Option<bool> {
        std::fs::read(&self.path).ok().map(|bytes| crc32c::crc32c(&bytes) != self.checksum)
    }

    /// A text for people, in which commands of ours name the file where it is not the default one: they are to be copied. A name in single quotes is a
    /// session's, and no command.
    #[must_use]
    pub fn name_in_commands(&self, text: &str) -> String {
        let Some(argument) = self.argument() else { return text.to_owned() };
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find(PROGRAM) {
            let begins = !rest[..at].ends_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '/' | '.' | '\''));
            let (before, behind) = rest.split_at(at + PROGRAM.len());
            let ends = |rest: &str| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_');
            out.push_str(before);
            if begins && COMMANDS.iter().any(|command| behind.strip_prefix(command).is_some_and(ends)) {
                out.push_str(&argument);
            }
            rest = behind;
        }
        out.push_str(rest);
        out
    }

    fn argument(&self) -> Option<String> {
        if self.path.as_os_str().is_empty() || self.path == Path::new(DEFAULT_PATH) {
            return None;
        }
        let path = std::path::absolute(&self.path).unwrap_or_else(|_| self.path.clone()).display().to_string();
        let plain = path.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+@:,".contains(c));
        let quoted = if plain { path } else { format!("'{}'", path.replace('\'', "'\\''")) };
        Some(format!("-c {quoted} "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_name_the_file_and_nothing_else_does() {
        let file = ConfigFile::named(Path::new("/srv/m.toml"));
        let commands = |text: &str| file.name_in_commands(text);
        assert_eq!(
            commands("stop it, `millstream teardown`, `millstream init`"),
            "stop it, `millstream -c /srv/m.toml teardown`, `millstream -c /srv/m.toml init`"
        );
        assert_eq!(
            commands("sudo -u millstream millstream log tail shop"),
            "sudo -u millstream millstream -c /srv/m.toml log tail shop"
        );
        let twice = commands("millstream init --source shop");
        assert_eq!(commands(&twice), twice, "once");
        for text in [
            "`millstream explain no_space`",
            "systemctl restart millstream",
            "applied to by 'millstream init'",
            "install -o millstream -g millstream /var/lib/millstream",
            "sudo -u millstream millstream …",
            "DROP SCHEMA millstream CASCADE",
            "role millstream checks nothing",
        ] {
            assert_eq!(commands(text), text);
        }
        for default in [ConfigFile::default(), ConfigFile::named(Path::new(DEFAULT_PATH))] {
            assert_eq!(default.name_in_commands("millstream init"), "millstream init");
        }
        let odd = ConfigFile::named(Path::new("/srv/it's mine.toml"));
        assert_eq!(odd.name_in_commands("millstream init"), "millstream -c '/srv/it'\\''s mine.toml' init");
    }
}
