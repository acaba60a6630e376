//! Where secrets come from: a variable, a file, a systemd credential; a URL or the file itself only with a warning.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use secrecy::{ExposeSecret as _, SecretString};

use super::layers::{RawConfig, variable_name};
use super::{Build, PathBuf, unopened};
use crate::error::{Error, Result};

/// The places where one secret may be.
pub(super) struct Places<'a> {
    /// The table that it belongs to: `["source", "shop"]`.
    pub table: &'a [&'a str],
    /// Name of the key that holds it: `password`. `KEY_file` names a file.
    pub key: &'a str,
    /// Name of the systemd credential.
    pub credential: &'a str,
    /// Value of the key.
    pub value: Option<SecretString>,
    /// Value of `KEY_file`.
    pub file: Option<PathBuf>,
    /// What a URL said.
    pub in_url: Option<SecretString>,
}

impl Build<'_> {
    /// The secret, if there is one. Order: variable, file, credential, the key in the file, URL.
    pub fn secret(&mut self, places: Places<'_>) -> Result<Option<SecretString>> {
        let value_key: Vec<&str> = places.table.iter().copied().chain([places.key]).collect();
        let file_name = format!("{}_file", places.key);
        let file_key: Vec<&str> = places.table.iter().copied().chain([file_name.as_str()]).collect();
        if self.environment.has(&variable_name(&value_key)) {
            return Ok(places.value);
        }
        if let Some(path) = places.file {
            if places.value.is_some() || places.in_url.is_some() {
                let message =
                    format!("there is another {} beside it (in the URL or as '{}'); remove one", places.key, places.key);
                return Err(self.error(&file_key, message));
            }
            return self.secret_file(&file_key, &path).map(Some);
        }
        if let Some(path) = self.environment.credential(places.credential) {
            let error = |e: Error| self.error(places.table, format!("systemd credential {}: {e}", places.credential));
            return read(&path).map(Some).map_err(error);
        }
        Ok(places.value.or(places.in_url))
    }

    /// What is wrong with a database's password file.
    pub fn unread(&self, table: &[&str; 2], path: Option<&Path>) -> Option<String> {
        let error = read(path?).err()?;
        Some(self.error(&[table[0], table[1], "password_file"], error.to_string()).message().to_owned())
    }

    fn secret_file(&mut self, key: &[&str], path: &Path) -> Result<SecretString> {
        let secret = read(path).map_err(|error| self.error(key, error.to_string()))?;
        let (mode, root) =
            std::fs::metadata(path).map_or((0, false), |meta| (meta.permissions().mode() & 0o777, meta.uid() == 0));
        // root's own may be shared with a group, as libpq has it for keys: that is how the daemon and commands run by hand both read it.
        let (allowed, right) = if root { (0o740, "0640") } else { (0o700, "0600") };
        if mode & !allowed != 0 {
            let shown = path.display();
            self.warnings.push(format!("{shown} holds a secret and others may read it (mode {mode:04o}): chmod {right} {shown}"));
        }
        Ok(secret)
    }

    /// Secrets in the file itself: accepted, but said.
    pub fn cleartext_warnings(&mut self, file: &RawConfig) {
        let at = self.document.path().display().to_string();
        let mut warn = |place: String, way: &str| {
            self.warnings.push(format!("{at}: {place} holds a secret in clear text; move it to {way} (mode 0600)"));
        };
        for (name, raw) in &file.source {
            if raw.password.is_some() {
                warn(format!("source.{name}.password"), "a file and name it with password_file");
            } else if in_url(&raw.url) {
                warn(format!("source.{name}.url"), "a file and name it with password_file");
            }
        }
        for (name, raw) in &file.replica {
            if raw.password.is_some() {
                warn(format!("replica.{name}.password"), "a file and name it with password_file");
            } else if in_url(&raw.url) {
                warn(format!("replica.{name}.url"), "a file and name it with password_file");
            }
        }
        if file.http.as_ref().is_some_and(|http| http.token.is_some()) {
            warn("http.token".to_owned(), "a file and name it with token_file");
        }
        if file.queue.as_ref().is_some_and(super::queue::RawQueue::has_cleartext_password) {
            warn("queue.kafka".to_owned(), "a file and name it with password_file");
        }
    }
}

fn in_url(url: &Option<SecretString>) -> bool {
    url.as_ref().is_some_and(|url| super::url::holds_password(url.expose_secret()))
}

/// A secret's file: its content without the line end.
pub(super) fn read(path: &Path) -> Result<SecretString> {
    use crate::error::ErrorKind::Config;
    let bytes = std::fs::read(path).map_err(|error| Error::new(Config, unopened(path, &error)))?;
    let text = String::from_utf8(bytes).map_err(|_| Error::new(Config, format!("{} is not UTF-8", path.display())))?;
    let text = text.strip_suffix('\n').map_or(text.as_str(), |t| t.strip_suffix('\r').unwrap_or(t));
    if text.is_empty() {
        return Err(Error::new(Config, format!("{} is empty", path.display())));
    }
    Ok(SecretString::from(text))
}
