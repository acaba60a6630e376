//! Bytes held back until their transaction commits: in memory, past a budget in a file.
//!
//! Invariant: what is read back is what was pushed, in order, wherever it lay; a file never outlives its process, because it
//! has no name (`O_TMPFILE`, or unlinked at once). Nothing here is durable: what was not committed to the queue is sent
//! again by the source.
//!
//! Disk is bounded by `spill_max_bytes` (I6). Past it bytes are counted and no longer kept, so that a transaction that is rolled
//! back costs nothing, and one that commits halts with the size that it needs.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::error::{Context, Error, Result};
use crate::failpoint;
use crate::task::ended_early;

/// A chunk of memory has this size when it is full: what is allocated is what is counted, but for the last chunk's slack.
const CHUNK_BYTES: usize = 256 << 10;
/// What has a file is written to it from this size on: a transaction that outgrew its memory once does not fill it again and again,
/// and has next to nothing of it left when it commits and the apply workers need theirs.
const SPILL_AGAIN_BYTES: usize = 4 << 20;
/// Read back at once from a file.
const READ_BYTES: usize = 512 << 10;

/// Where transactions spill, and how much they may.
#[derive(Debug)]
pub struct SpillSpace {
    folder: PathBuf,
    max_bytes: u64,
    used_bytes: u64,
}

impl SpillSpace {
    /// Makes the folder. Files in it have no names, so there is nothing left from earlier to remove.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Io`], [`crate::ErrorKind::NoSpace`].
    pub fn open(folder: &Path, max_bytes: u64) -> Result<Self> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).at(|| format!("spill_dir {}", folder.display()))?;
        Ok(Self { folder: folder.to_owned(), max_bytes, used_bytes: 0 })
    }

    /// Bytes in files now.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes
    }

    /// The configured limit.
    #[must_use]
    pub fn max_bytes(&self) -> u64 {
        self.max_bytes
    }
}

/// One transaction's bytes.
#[derive(Debug, Default)]
pub struct HeldBytes {
    file: Option<(Arc<File>, u64)>,
    chunks: Vec<Bytes>,
    chunk_bytes: usize,
    current: Vec<u8>,
    /// Counted, and not kept: the spill space was full.
    lost_bytes: u64,
}

impl HeldBytes {
    /// Appends bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.lost_bytes > 0 {
            self.lost_bytes += bytes.len() as u64;
            return;
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(CHUNK_BYTES - self.current.len()));
            let needed = self.current.len() + now.len();
            if needed > self.current.capacity() {
                // Doubled as a vector would be, and never beyond a chunk.
                let capacity = needed.max(2 * self.current.capacity()).min(CHUNK_BYTES);
                self.current.reserve_exact(capacity - self.current.len());
            }
            self.current.extend_from_slice(now);
            if self.current.len() == CHUNK_BYTES {
                self.close_chunk();
            }
            rest = later;
        }
    }

    fn close_chunk(&mut self) {
        self.chunk_bytes += self.current.len();
        self.chunks.push(std::mem::take(&mut self.current).into());
    }

    /// Everything pushed.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.file_bytes() + self.memory_bytes() as u64 + self.lost_bytes
    }

    /// True when nothing was pushed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes in memory.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.chunk_bytes + self.current.len()
    }

    /// True when it has a file and enough beside it to be worth a write.
    #[must_use]
    pub fn spills_again(&self) -> bool {
        self.file.is_some() && self.memory_bytes() >= SPILL_AGAIN_BYTES
    }

    /// Bytes in the file.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.file.as_ref().map_or(0, |(_, bytes)| *bytes)
    }

    /// True when the spill space was full and what was pushed cannot be read back.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.lost_bytes > 0
    }

    /// The bytes, when all of them lie in one piece of memory.
    #[must_use]
    pub fn in_one_piece(&self) -> Option<&[u8]> {
        (self.file.is_none() && self.chunks.is_empty() && self.lost_bytes == 0).then_some(&self.current)
    }

    /// Moves what is in memory to the file; past the space's limit forgets all but the count.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NoSpace`] when the disk is full, [`crate::ErrorKind::Io`].
    pub async fn spill(&mut self, space: &mut SpillSpace) -> Result<()> {
        let bytes = self.memory_bytes() as u64;
        if bytes == 0 {
            return Ok(());
        }
        if space.used_bytes + bytes > space.max_bytes {
            self.lost_bytes = self.len();
            self.forget(space);
            return Ok(());
        }
        let mut chunks = std::mem::take(&mut self.chunks);
        chunks.push(std::mem::take(&mut self.current).into());
        self.chunk_bytes = 0;
        let (file, written) = match self.file.take() {
            Some(found) => found,
            None => (Arc::new(tempfile::tempfile_in(&space.folder).map_err(|e| in_folder(e, &space.folder))?), 0),
        };
        let target = Arc::clone(&file);
        blocking(move || chunks.iter().try_for_each(|chunk| (&*target).write_all(chunk)).map_err(Error::from))
            .await
            .at(|| format!("spill_dir {}", space.folder.display()))?;
        self.file = Some((file, written + bytes));
        space.used_bytes += bytes;
        failpoint::hit("capture.spilled")
    }

    /// Gives up what is held.
    pub fn release(mut self, space: &mut SpillSpace) {
        self.forget(space);
    }

    fn forget(&mut self, space: &mut SpillSpace) {
        space.used_bytes = space.used_bytes.saturating_sub(self.file_bytes());
        self.file = None;
        self.chunks = Vec::new();
        self.chunk_bytes = 0;
        self.current = Vec::new();
    }

    /// Reads everything from the beginning; nothing more is pushed meanwhile.
    #[must_use]
    pub fn reader(&mut self) -> HeldReader {
        if !self.current.is_empty() {
            self.close_chunk();
        }
        let memory = self.chunks.clone().into_iter();
        HeldReader { file: self.file.clone(), at: 0, memory }
    }
}

fn in_folder(error: std::io::Error, folder: &Path) -> Error {
    Error::from(error).context(format!("spill_dir {}", folder.display()))
}

/// Reads held bytes chunk by chunk.
#[derive(Debug)]
pub struct HeldReader {
    file: Option<(Arc<File>, u64)>,
    at: u64,
    memory: std::vec::IntoIter<Bytes>,
}

impl HeldReader {
    /// The next chunk, `None` at the end.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Io`].
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        if let Some((file, length)) = &self.file
            && self.at < *length
        {
            let (file, at) = (Arc::clone(file), self.at);
            let count = usize::try_from(length - at).unwrap_or(READ_BYTES).min(READ_BYTES);
            let chunk = blocking(move || {
                let mut chunk = BytesMut::zeroed(count);
                file.read_exact_at(&mut chunk, at)?;
                Ok(chunk.freeze())
            })
            .await
            .at(|| "a spill file")?;
            self.at += count as u64;
            return Ok(Some(chunk));
        }
        Ok(self.memory.next())
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| ended_early("a task for the spill file", &e))?
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(held: &mut HeldBytes) -> Vec<u8> {
        let (mut reader, mut all) = (held.reader(), Vec::new());
        while let Some(chunk) = reader.next().await.unwrap() {
            all.extend_from_slice(&chunk);
        }
        all
    }

    #[tokio::test]
    async fn gives_back_what_was_pushed_wherever_it_lay() {
        let folder = tempfile::tempdir().unwrap();
        let mut space = SpillSpace::open(&folder.path().join("shop"), 10 << 20).unwrap();
        let (mut held, mut expected) = (HeldBytes::default(), Vec::new());
        for round in 0..40_u32 {
            let piece: Vec<u8> = (0..50_000_u32).map(|i| (i ^ round) as u8).collect();
            held.push(&piece);
            expected.extend_from_slice(&piece);
            if round % 13 == 12 {
                held.spill(&mut space).await.unwrap();
                assert_eq!(held.memory_bytes(), 0);
            }
        }
        assert_eq!(held.len(), expected.len() as u64);
        assert!(read(&mut held).await == expected && read(&mut held).await == expected);
        assert_eq!(std::fs::read_dir(folder.path().join("shop")).unwrap().count(), 0, "the file has no name");
        held.release(&mut space);
        assert_eq!(space.used_bytes(), 0);
    }

    /// As an allocator sees it: bytes allocated, not bytes used.
    #[test]
    fn allocates_what_it_counts() {
        for piece in [1, 77, 3004, 100_000, 300_000, 1 << 20] {
            let mut held = HeldBytes::default();
            for _ in 0..(3 << 20) / piece {
                held.push(&vec![7; piece]);
                assert!(held.current.capacity() <= CHUNK_BYTES.min(2 * held.current.len().max(piece)), "pieces of {piece}");
            }
            assert!(held.chunks.iter().all(|chunk| chunk.len() == CHUNK_BYTES));
            let allocated: Vec<_> = held.chunks.into_iter().map(|chunk| Vec::from(chunk).capacity()).collect();
            assert!(!allocated.is_empty() && allocated.iter().all(|capacity| *capacity == CHUNK_BYTES), "pieces of {piece}");
        }
    }

    #[tokio::test]
    async fn past_the_limit_only_the_size_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let mut space = SpillSpace::open(folder.path(), 1000).unwrap();
        let mut held = HeldBytes::default();
        held.push(&[1; 800]);
        held.spill(&mut space).await.unwrap();
        held.push(&[2; 800]);
        held.spill(&mut space).await.unwrap();
        held.push(&[3; 800]);
        assert!(held.is_lost());
        assert_eq!((held.len(), held.memory_bytes(), space.used_bytes()), (2400, 0, 0));
    }
}
