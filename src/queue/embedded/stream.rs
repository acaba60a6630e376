//! One stream: what this process knows of it, its folder, how it is made and measured.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::lock::FolderLock;
use super::storage::{DiskFolder, Folder, replace};
use super::{REGISTRY_LOCK, append, format, registry, segment, trim};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::QueueOffset;
use crate::queue::Bounds;

/// What this process knows of a stream.
pub(super) struct Stream {
    pub(super) name: String,
    pub(super) id: u64,
    pub(super) folder: DiskFolder,
    pub(super) progress: watch::Sender<Progress>,
}

/// What the writer of this process has said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// Records before this offset are durable.
    pub(super) durable: u64,
    /// A writer of this process has the lock.
    pub(super) live: bool,
    /// Its owner has dropped it; it writes what it has accepted.
    pub(super) closing: bool,
    /// It died: what the files hold past `durable` may not be on disk.
    pub(super) failed: bool,
    /// The stream was removed.
    pub(super) gone: bool,
}

/// The same, as a reader of the files needs it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Known {
    /// Records before this offset are durable.
    pub(super) durable: u64,
    /// A writer of this process has the lock: nothing but `durable` counts.
    pub(super) live: bool,
    /// Marks in the files may be believed past `durable`.
    pub(super) trust_files: bool,
}

impl Progress {
    pub(super) fn known(self) -> Known {
        Known { durable: self.durable, live: self.live, trust_files: !self.live && !self.failed }
    }
}

impl Stream {
    pub(super) fn update(&self, change: impl FnOnce(&mut Progress)) {
        self.progress.send_modify(change);
    }

    pub(super) fn known(&self) -> Known {
        self.progress.borrow().known()
    }
}

/// Contents of `stream.json`.
#[derive(Serialize, Deserialize)]
struct StreamFile {
    version: u32,
    name: String,
    folder_id: String,
}

const STREAM_FILE: &str = "stream.json";
const STREAM_VERSION: u32 = 1;

/// The folder's id; `None` when the folder is no stream.
pub(super) fn read_stream_file(folder: &DiskFolder) -> Result<Option<u64>> {
    let Some(bytes) = registry::read_small(folder, STREAM_FILE)? else { return Ok(None) };
    let corrupt = || Error::new(ErrorKind::Corrupt, format!("{STREAM_FILE} in {} cannot be read", folder.path().display()));
    let file: StreamFile = serde_json::from_slice(&bytes).map_err(|e| corrupt().with_source(e))?;
    if file.version > STREAM_VERSION {
        let message = format!("stream folder format {}; this Millstream reads up to {STREAM_VERSION}", file.version);
        return Err(Error::new(ErrorKind::TooNew, message));
    }
    u64::from_str_radix(&file.folder_id, 16).map(Some).map_err(|e| corrupt().with_source(e))
}

/// Makes a stream's folder. What a killed attempt left is used or replaced; only the last step makes it a stream.
pub(super) fn create(path: &Path, name: &str) -> Result<()> {
    let disk = DiskFolder::new(path);
    disk.make().at(|| path.display().to_string())?;
    let _lock = FolderLock::wait(&path.join(REGISTRY_LOCK))?;
    if read_stream_file(&disk)?.is_some() {
        return Ok(());
    }
    for first in segment::list(&disk)? {
        // A killed `create` leaves an empty first segment; anything else is somebody's data.
        let length = disk.open(&format::segment_name(first), false)?.len()?;
        if first != 0 || length > format::SEGMENT_HEADER {
            let message = format!("{} holds records from offset {first} on and no {STREAM_FILE}", path.display());
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
    }
    let folder: Arc<dyn Folder> = Arc::new(disk);
    let id = rand::random::<u64>();
    append::create(&folder, id, 0)?;
    let file = StreamFile { version: STREAM_VERSION, name: name.to_owned(), folder_id: format!("{id:016x}") };
    let json = serde_json::to_vec_pretty(&file)
        .map_err(|e| Error::new(ErrorKind::Unexpected, "the stream's file cannot be written as JSON").with_source(e))?;
    replace(&*folder, STREAM_FILE, &json, || Ok(()))
}

/// What the folder holds.
pub(super) fn bounds(stream: &Stream) -> Result<Bounds> {
    let (folder, known) = (&stream.folder, stream.known());
    let firsts = segment::list(folder)?;
    let stored_bytes = segment::stored_bytes(folder)?;
    let end = if known.trust_files {
        let last = segment::last(folder, stream.id, false)?;
        let tail = last.scan_beside_writer()?;
        if tail.unsealed.is_some() {
            // Whole but in doubt: no crash takes it back after this.
            last.file.sync_data().at(|| last.name())?;
        }
        tail.end
    } else {
        known.durable
    };
    let start = firsts.first().copied().unwrap_or(end).max(trim::start(folder)?);
    Ok(Bounds { start: QueueOffset(start.min(end)), end: QueueOffset(end), stored_bytes: Some(stored_bytes) })
}
