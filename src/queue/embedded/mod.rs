//! The embedded queue: one folder per stream on a local disk, for one machine.
//!
//! # Invariants
//!
//! 1. A record that was reported durable is read back by everybody, after any crash, until it is trimmed.
//! 2. Everything before a batch mark was durable when the mark was written. So damage in front of a mark is damage to
//!    durable records and halts; damage behind the last mark is what a crash left of a batch that nobody was told of, and is cut.
//! 3. Offsets are contiguous, over segments too: a missing frame or segment is found by its number.
//! 4. After a write or fsync failed, the writer does nothing more. An fsync is never tried again: the kernel may have marked
//!    the pages clean. The next writer writes the batch in doubt again before it syncs.
//! 5. One process writes (`writer.lock`); any number read.
//! 6. The writer leaves the last of the disk to registry and trimming, so that a full disk can be drained. Half of that is for the fence and the
//!    base behind which everything else can be trimmed, once every consumer is through.
//! 7. A file or a name counts only when file and folder were synced.
//!
//! # On disk
//!
//! ```text
//! FOLDER/daemon.lock                    held by `millstream run`
//! FOLDER/STREAM/stream.json             name, folder id; the last thing that `create` writes
//! FOLDER/STREAM/writer.lock             held by the writer; says who
//! FOLDER/STREAM/registry.json, .lock    consumers and hints
//! FOLDER/STREAM/start.json              where the stream begins, once it was trimmed
//! FOLDER/STREAM/00000000000000000000.seg, 00000000000000081234.seg, …   named by their first offset
//! ```
//!
//! STREAM is the stream's name; bytes other than letters, digits, `-` and `_` are percent-encoded. All numbers are little-endian,
//! all checksums CRC-32C.
//!
//! ```text
//! segment  = header  batch*  seal?
//! header   = "MILLSEG\n"  version:u16=1  header_bytes:u16=48  0:u32  folder_id:u64  first_offset:u64  made_at_us:u64  0:u32  crc:u32
//! batch    = mark  frame{records}
//! seal     = mark with records = bytes = 0
//! mark     = "MSBM"  records:u32  at:u64  first_offset:u64  bytes:u32  crc:u32      crc over folder_id ‖ the bytes before it
//! frame    = length:u32  crc:u32  offset:u64  record                              crc over length ‖ offset ‖ record
//! ```
//!
//! A mark names its own place (`at`) and the folder's random id is in its checksum: a record that holds a copy of a queue's
//! file cannot be taken for one.
//!
//! # Operations
//!
//! *Append.* The writer's thread takes what has arrived, writes mark and frames with one write, syncs, tells readers and
//! tickets. When nothing more has arrived, it writes a *seal* behind the batch, unsynced: it says "durable up to here" to other
//! processes and to the next recovery. The next mark takes the seal's place, so nothing is ever valid behind a seal.
//! *Roll.* A batch that would pass the segment's size, and the first of what makes room on a full disk, seals and syncs the segment, makes the next one under a
//! temporary name, syncs, renames, syncs the folder. Every segment but the last so ends with a seal that holds the next one's first offset. Trimming gives back
//! whole segments: one is at most an eighth of `max_bytes` and of what the queue may take of its disk, and bases come as often.
//! *Read.* In this process up to what the writer reported; elsewhere up to the last mark. When nobody has sealed the last batch
//! for a whole pause (its writer was killed in between), a reader that finds it whole syncs it itself and takes it: recovery
//! keeps whole batches, so both agree.
//! *Trim* writes `start.json`, from then on the stream begins there; then it removes whole segments, oldest first, each durably
//! before the next. The last durable record stays.
//!
//! # Recovery
//!
//! Checks the seals of all segments but the last against the next one's name, walks the last: marks, frames, numbers,
//! checksums. Where that ends, any valid mark at or behind it means damage to durable records ([`crate::ErrorKind::Corrupt`]).
//! Otherwise the batch there is cut whole. A last batch with nothing behind it is written again. Then sync, then seal.
//!
//! # A crash, worked
//!
//! ```text
//! append #7 #8   mark(at 900, first 7, 2 records) written, synced, reported; seal at 1300
//! append #9      mark(at 1300, first 9) written over the seal with its frame up to byte 9000; power fails in fdatasync
//! disk           the page with bytes 4096-8191 did not make it, those before and after did
//! recovery       mark at 900 sound, #7 #8 sound; mark at 1300 sound: so #8 was durable; #9 fails its checksum;
//!                no mark behind 1300: #9 was never reported. Cut at 1300, sync, seal. Next offset 9.
//! bit rot        had the damage been in #8, the mark at 1300 would stand behind it: corrupt, nothing is cut.
//! ```
//!
//! What this cannot tell apart: bit rot in the very last batch when power failed before its seal reached the disk. It is cut like a torn
//! one; capture then finds the slot's confirmed position beyond the queue's end and halts (I1).
//!
//! # Rejected
//!
//! A synced sidecar with the durable end: a second fsync per batch. Cutting at the first bad frame wherever it is: silent loss. Salvaging
//! the sound frames of a torn batch: nobody was promised them. Preallocation: `fdatasync` of unwritten extents commits metadata
//! as well. LSM stores and SQLite: slower by half at equal durability, and their recovery cannot tell damage from a torn tail.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::append::Appender;
use self::read::Place;
use self::reader::EmbeddedReader;
use self::storage::{DiskFolder, sync_folder};
use self::stream::{Known, Progress, Stream, bounds, create, read_stream_file};
use self::writer::EmbeddedWriter;
use super::{Bounds, Queue, QueueReader, QueueWriter};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::QueueOffset;
use crate::halt::HaltCode;
use crate::task::ended_early;

mod append;
mod format;
mod lock;
mod read;
mod reader;
mod registry;
mod segment;
mod storage;
mod stream;
#[cfg(test)]
mod tests;
mod trim;
mod writer;

pub use lock::FolderLock;

/// Sizes. The defaults are right outside of tests.
#[derive(Clone, Debug)]
pub struct Options {
    /// A segment is ended before the batch that would make it larger. On a small disk it is ended earlier.
    pub segment_bytes: u64,
    /// Largest record taken.
    pub max_record_bytes: usize,
    /// Accepted records that are not durable yet, in bytes (I6).
    pub in_flight_bytes: usize,
    /// About how much one batch holds.
    pub batch_bytes: usize,
}

impl Options {
    /// For a queue that holds about so many bytes.
    #[must_use]
    pub fn within(max_bytes: u64) -> Self {
        let this = Self::default();
        Self { segment_bytes: append::segment_bytes(this.segment_bytes, max_bytes), ..this }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self { segment_bytes: 64 << 20, max_record_bytes: 1 << 20, in_flight_bytes: 16 << 20, batch_bytes: 4 << 20 }
    }
}

/// The embedded queue.
pub struct EmbeddedQueue {
    folder: PathBuf,
    options: Options,
    streams: Mutex<HashMap<String, Arc<Stream>>>,
}

const WRITER_LOCK: &str = "writer.lock";
const REGISTRY_LOCK: &str = "registry.lock";
/// Names of folders that are being removed begin so; no stream's does.
const REMOVED: &str = "!";
/// How long a writer waits for another of this process that was dropped and is finishing, and for locks held for a moment.
const LOCK_WAIT: Duration = Duration::from_secs(10);
const LOCK_TRIES: u32 = 5;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    tokio::task::spawn_blocking(work)
}

async fn run<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    blocking(work).await.map_err(|e| ended_early("work on the queue's files", &e))?
}

impl EmbeddedQueue {
    /// Opens the queue in a folder, which is made if it is not there.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(folder: &Path) -> Result<Arc<Self>> {
        Self::open_with(folder, Options::default())
    }

    /// The same with other sizes.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open_with(folder: &Path, options: Options) -> Result<Arc<Self>> {
        DiskFolder::new(folder).make().at(|| folder.display().to_string())?;
        Ok(Arc::new(Self { folder: folder.to_owned(), options, streams: Mutex::default() }))
    }

    /// Takes the folder for one daemon; the lock is held until it is dropped.
    ///
    /// # Errors
    /// [`ErrorKind::Held`] when another daemon has it, saying which.
    pub fn lock_daemon(folder: &Path) -> Result<FolderLock> {
        DiskFolder::new(folder).make().at(|| folder.display().to_string())?;
        let lock = FolderLock::try_take(&folder.join("daemon.lock"), &format!("the queue folder {}", folder.display()))?;
        remove_leftovers(folder).at(|| folder.display().to_string())?;
        Ok(lock)
    }

    fn path_of(&self, stream: &str) -> PathBuf {
        const KEPT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_');
        self.folder.join(utf8_percent_encode(stream, KEPT).to_string())
    }

    /// What is known of a stream; `None` when it was never created.
    async fn stream(&self, name: &str) -> Result<Option<Arc<Stream>>> {
        let folder = DiskFolder::new(self.path_of(name));
        let (folder, id) = run(move || read_stream_file(&folder).map(|id| (folder, id))).await?;
        let Some(id) = id else { return Ok(None) };
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stream) = streams.get(name) {
            if stream.id == id {
                return Ok(Some(Arc::clone(stream)));
            }
            // Removed and made again by another process.
            stream.update(|p| p.gone = true);
        }
        let progress = watch::Sender::new(Progress::default());
        let stream = Arc::new(Stream { name: name.to_owned(), id, folder, progress });
        streams.insert(name.to_owned(), Arc::clone(&stream));
        Ok(Some(stream))
    }

    async fn known_stream(&self, name: &str) -> Result<Arc<Stream>> {
        self.stream(name).await?.ok_or_else(|| {
            Error::halt(HaltCode::NotInitialized, format!("the queue has no stream '{name}'; run `millstream init`"))
        })
    }

    async fn lock_writer(stream: &Arc<Stream>) -> Result<FolderLock> {
        let mut progress = stream.progress.subscribe();
        if progress.borrow().closing {
            let finished = tokio::time::timeout(LOCK_WAIT, progress.wait_for(|p| !p.closing)).await;
            if finished.is_err() {
                let message = format!("the last writer of stream '{}' is still finishing in this process", stream.name);
                return Err(Error::new(ErrorKind::Held, message));
            }
        }
        let path = stream.folder.path().join(WRITER_LOCK);
        let what = format!("writing to stream '{}'", stream.name);
        for _ in 1..LOCK_TRIES {
            match FolderLock::try_take(&path, &what) {
                Err(error) if error.kind() == ErrorKind::Held => tokio::time::sleep(LOCK_PAUSE).await,
                other => return other,
            }
        }
        FolderLock::try_take(&path, &what)
    }
}

/// Folders of streams whose removal was killed half way.
fn remove_leftovers(folder: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(REMOVED) {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

#[async_trait]
impl Queue for EmbeddedQueue {
    async fn create(&self, stream: &str) -> Result<()> {
        let (path, name) = (self.path_of(stream), stream.to_owned());
        run(move || create(&path, &name)).await.at(|| format!("stream '{stream}'"))
    }

    async fn bounds(&self, stream: &str) -> Result<Option<Bounds>> {
        let Some(known_stream) = self.stream(stream).await? else { return Ok(None) };
        run(move || bounds(&known_stream).map(Some)).await.at(|| format!("stream '{stream}'"))
    }

    async fn writer(&self, stream: &str) -> Result<Box<dyn QueueWriter>> {
        let stream = self.known_stream(stream).await?;
        let lock = Self::lock_writer(&stream).await?;
        let options = self.options.clone();
        let place = format!("stream '{}'", stream.name);
        let open = move || {
            let appender = Appender::open(Arc::new(stream.folder.clone()), stream.id, &options)?;
            EmbeddedWriter::start(appender, lock, &stream, &options)
        };
        let writer = run(open).await.at(|| place)?;
        Ok(Box::new(writer))
    }

    async fn reader(&self, stream: &str, from: QueueOffset) -> Result<Box<dyn QueueReader>> {
        let stream = self.known_stream(stream).await?;
        let place = format!("stream '{}'", stream.name);
        let find = move || {
            let found = Place::find(Arc::new(stream.folder.clone()), stream.id, from.0, stream.known())?;
            Ok(EmbeddedReader::new(stream, found))
        };
        let reader = run(find).await.at(|| place)?;
        Ok(Box::new(reader))
    }

    async fn trim(&self, stream: &str, below: QueueOffset) -> Result<()> {
        let stream = self.known_stream(stream).await?;
        let place = format!("stream '{}'", stream.name);
        let trim = move || {
            let _lock = FolderLock::wait(&stream.folder.path().join(REGISTRY_LOCK))?;
            trim::trim(&stream.folder, stream.id, below.0, stream.known())
        };
        run(trim).await.at(|| place)
    }

    async fn registry_put(&self, stream: &str, key: &str, value: Option<Bytes>) -> Result<()> {
        let stream = self.known_stream(stream).await?;
        let (place, key) = (format!("registry of stream '{}'", stream.name), key.to_owned());
        let put = move || {
            let _lock = FolderLock::wait(&stream.folder.path().join(REGISTRY_LOCK))?;
            registry::put(&stream.folder, &key, value)
        };
        run(put).await.at(|| place)
    }

    async fn registry(&self, stream: &str) -> Result<BTreeMap<String, Bytes>> {
        let Some(known_stream) = self.stream(stream).await? else { return Ok(BTreeMap::new()) };
        run(move || registry::load(&known_stream.folder)).await.at(|| format!("registry of stream '{stream}'"))
    }

    async fn destroy(&self, stream: &str) -> Result<()> {
        let Some(known_stream) = self.stream(stream).await? else { return Ok(()) };
        let lock = Self::lock_writer(&known_stream).await?;
        known_stream.update(|p| p.gone = true);
        self.streams.lock().unwrap_or_else(PoisonError::into_inner).remove(stream);
        let (root, path) = (self.folder.clone(), known_stream.folder.path().to_owned());
        let remove = move || {
            // Gone at once by its name, then in pieces; what a crash leaves of it is nobody's stream.
            let gone = root.join(format!("{REMOVED}{:016x}", rand::random::<u64>()));
            std::fs::rename(&path, &gone)?;
            sync_folder(&root)?;
            std::fs::remove_dir_all(&gone)?;
            drop(lock);
            Ok(())
        };
        run(remove).await.at(|| format!("stream '{stream}'"))
    }

    fn max_record_bytes(&self) -> usize {
        self.options.max_record_bytes
    }
}
