//! Who may write: advisory locks (`flock`) that the kernel drops with the process, however it ends.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use crate::error::{Context, Error, ErrorKind, Result};

/// How long to wait for a lock that is held for moments.
const WAIT: Duration = Duration::from_secs(10);

/// A lock that is held until it is dropped. The file stays: removing it would let two hold it.
#[derive(Debug)]
pub struct FolderLock {
    _file: File,
}

fn open(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.open(path).at(|| path.display().to_string())
}

fn name_holder(file: &mut File) -> std::io::Result<()> {
    let host = rustix::system::uname();
    let holder = format!("process {} on {}\n", std::process::id(), host.nodename().to_string_lossy());
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(holder.as_bytes())
}

impl FolderLock {
    /// Takes the lock at once or says who has it.
    ///
    /// # Errors
    /// [`ErrorKind::Held`] with the holder's process and host.
    pub(super) fn try_take(path: &Path, what: &str) -> Result<Self> {
        let mut file = open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                file.read_to_string(&mut holder).at(|| path.display().to_string())?;
                let holder = if holder.is_empty() { "another process" } else { holder.trim() };
                return Err(Error::new(ErrorKind::Held, format!("{what} is held by {holder}")));
            }
            Err(errno) => return Err(std::io::Error::from(errno)).at(|| path.display().to_string()),
        }
        if let Err(error) = name_holder(&mut file) {
            // The lock holds all the same: a full disk must not keep a daemon from draining it.
            tracing::debug!(%error, lock = %path.display(), "the holder's name was not written");
        }
        Ok(Self { _file: file })
    }

    /// Takes a lock that is only ever held for moments, waiting for it. Blocks.
    ///
    /// # Errors
    /// [`ErrorKind::Held`] when it is not free for long: its holder was stopped.
    pub(super) fn wait(path: &Path) -> Result<Self> {
        let file = open(path)?;
        let deadline = Instant::now() + WAIT;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Self { _file: file }),
                Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    let message = format!("{} has been held by another process for {WAIT:?}", path.display());
                    return Err(Error::new(ErrorKind::Held, message));
                }
                Err(errno) => return Err(std::io::Error::from(errno)).at(|| path.display().to_string()),
            }
        }
    }
}
