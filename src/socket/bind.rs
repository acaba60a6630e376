//! Having the socket's file: one daemon at a time, whatever a killed one left there.
//!
//! Whoever holds the lock on `SOCKET.lock` has the socket; the kernel drops the lock with the process, however it ended. So a file that is found under the
//! lock is nobody's, and is replaced; a file that is no socket, and a socket that answers, are left alone. The new socket is made under another name, given its
//! rights and renamed: nobody can connect before it has them.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use tokio::net::{UnixListener, UnixStream};

use crate::error::{Context, Error, ErrorKind, Result};

/// Its owner's alone; root may anyway.
const MODE: u32 = 0o600;

/// The daemon's end of the socket. The file goes when this is dropped.
pub(super) struct Listener {
    path: PathBuf,
    listener: UnixListener,
    /// Held, not read.
    _lock: File,
}

impl Listener {
    /// Takes the path.
    ///
    /// # Errors
    /// [`ErrorKind::Held`] when another daemon has it; those of the file system.
    pub(super) fn bind(path: &Path) -> Result<Self> {
        let lock = lock(path)?;
        check_free(path)?;
        let made = beside(path, &format!(".{}", std::process::id()));
        remove(&made)?;
        let listener = UnixListener::bind(&made).at(|| format!("the control socket {}", made.display()))?;
        let ready = fs::set_permissions(&made, Permissions::from_mode(MODE)).and_then(|()| fs::rename(&made, path));
        if let Err(error) = ready {
            remove(&made)?;
            return Err(error).at(|| format!("the control socket {}", path.display()));
        }
        Ok(Self { path: path.to_owned(), listener, _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            tracing::debug!(%error, "the control socket's file stays");
        }
    }
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(ending);
    name.into()
}

fn lock(path: &Path) -> Result<File> {
    let file = beside(path, ".lock");
    let place = || format!("the control socket's lock {}", file.display());
    let mut options = OpenOptions::new();
    let lock = options.write(true).create(true).truncate(false).mode(MODE).open(&file).at(place)?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let message =
                format!("the control socket {} is another daemon's; give each daemon its own (control.socket)", path.display());
            Err(Error::new(ErrorKind::Held, message))
        }
        Err(errno) => Err(io::Error::from(errno)).at(place),
    }
}

/// Only what a daemon that is gone left behind may be replaced.
fn check_free(path: &Path) -> Result<()> {
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.at(|| path.display().to_string())?,
    };
    if !found.file_type().is_socket() {
        let message = format!("{} is there and is no socket; remove it, or name another place (control.socket)", path.display());
        return Err(Error::new(ErrorKind::Config, message));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => {
            let message = format!("another program answers at {}; name another place (control.socket)", path.display());
            Err(Error::new(ErrorKind::Held, message))
        }
        Err(_) => Ok(()),
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).at(|| path.display().to_string()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_daemon_has_it_and_what_is_left_of_a_killed_one_is_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("ms.sock");
        // As a killed daemon leaves it: the file is there, nobody listens.
        drop(std::os::unix::net::UnixListener::bind(&path).expect("a socket"));
        let ours = Listener::bind(&path).expect("the socket");
        assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o777, MODE);
        let theirs = Listener::bind(&path).err().expect("a refusal");
        assert_eq!(theirs.kind(), ErrorKind::Held);
        assert!(theirs.to_string().contains("another daemon's"), "{theirs}");
        drop(ours);
        assert!(!path.exists());
        drop(Listener::bind(&path).expect("the socket"));
    }

    #[tokio::test]
    async fn what_is_somebody_elses_is_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("ms.sock");
        fs::write(&path, "mine").expect("a file");
        assert_eq!(Listener::bind(&path).err().map(|e| e.kind()), Some(ErrorKind::Config));
        assert_eq!(fs::read_to_string(&path).expect("a file"), "mine");
        fs::remove_file(&path).expect("removed");
        let _program = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
        let refused = Listener::bind(&path).err().expect("a refusal");
        assert!(refused.kind() == ErrorKind::Held && refused.to_string().contains("another program"), "{refused}");
    }
}
