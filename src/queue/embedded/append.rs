//! The writer's half on disk: recovery, batches, rolling. Blocking; [`super::writer`] runs it on a thread of its own.
//!
//! Progression: `open` (recovers) → `write_batch` … → `seal` when idle → `write_batch` … After an error the value is dead and is
//! dropped: only `open` knows what is on disk.

use std::sync::Arc;

use bytes::Bytes;

use super::Options;
use super::format::{self, FRAME_HEADER, MARK, Mark, SEGMENT_HEADER, SegmentHeader};
use super::segment::{self, CHUNK, Segment, Tail, Window};
use super::storage::{Folder, TEMPORARY, write_all};
use crate::config::ByteSize;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::failpoint;

/// The writer leaves so much of the disk: consumers say in the registry how far they are and trimming writes where the stream begins, and
/// without those a full disk would stay full. docs/operations.md names it.
pub(super) const RESERVE_BYTES: u64 = 8 << 20;
/// So much of that is left even by the fence and the base that let a full segment go.
const LAST_BYTES: u64 = 4 << 20;
/// Trimming gives back whole segments, so one is at most this share of what the queue may take of the disk …
const SEGMENTS: u64 = 8;
/// … and at least so large.
const SMALLEST_SEGMENT: u64 = 1 << 20;

/// The largest segment of a queue that may hold so many bytes.
pub(super) fn segment_bytes(wanted: u64, most: u64) -> u64 {
    wanted.min((most / SEGMENTS).max(SMALLEST_SEGMENT))
}

/// Appends batches to a stream's last segment.
pub(super) struct Appender {
    folder: Arc<dyn Folder>,
    segment: Segment,
    /// Where the next mark goes.
    at: u64,
    /// Offset of the next record.
    end: u64,
    segment_bytes: u64,
    /// What is written makes room.
    makes_room: bool,
    /// The next batch begins a segment.
    apart: bool,
    buffer: Vec<u8>,
}

impl Appender {
    /// Recovers the stream: cuts a torn tail, makes the rest durable.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Corrupt`] for damage that is no torn tail, and for a missing segment.
    pub(super) fn open(folder: Arc<dyn Folder>, id: u64, options: &Options) -> Result<Self> {
        for name in folder.list()? {
            if name.strip_suffix(TEMPORARY).and_then(format::parse_segment_name).is_some() {
                folder.remove(&name)?;
            }
        }
        segment::check_chain(&*folder, id)?;
        let segment = segment::last(&*folder, id, true)?;
        let tail = segment.scan()?;
        recover(&segment, tail).at(|| segment.name())?;
        // A roll may have been killed, or have failed, before the name was durable.
        folder.sync()?;
        let most = folder.free_bytes()?.saturating_sub(RESERVE_BYTES).saturating_add(segment::stored_bytes(&*folder)?);
        let mut this = Self {
            folder,
            segment,
            at: tail.at,
            end: tail.end,
            segment_bytes: segment_bytes(options.segment_bytes, most),
            makes_room: false,
            apart: false,
            buffer: Vec::new(),
        };
        this.seal()?;
        Ok(this)
    }

    /// A segment is ended before it gets larger.
    pub(super) fn segment_bytes(&self) -> u64 {
        self.segment_bytes
    }

    /// Begins or ends what makes room: the fence and the base behind which everything can be trimmed. They begin a segment, so that the one before can go
    /// whole, and may take of the reserve.
    pub(super) fn make_room(&mut self, on: bool) {
        self.apart |= on && !self.makes_room;
        self.makes_room = on;
    }

    /// Offset that the next record gets.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Writes records; when it returns they are durable.
    pub(super) fn write_batch<'a>(&mut self, records: impl ExactSizeIterator<Item = &'a Bytes> + Clone) -> Result<()> {
        let bytes: u64 = records.clone().map(|r| FRAME_HEADER + r.len() as u64).sum();
        let free = self.folder.free_bytes()?;
        let kept = if self.makes_room { LAST_BYTES } else { RESERVE_BYTES };
        if free < kept + bytes {
            let message = format!(
                "{} are free on the queue's disk, {} are to be written, and the last {} are kept for what makes room",
                ByteSize(free),
                ByteSize(bytes),
                ByteSize(kept)
            );
            return Err(Error::new(ErrorKind::NoSpace, message));
        }
        let full = self.at + MARK + bytes > self.segment_bytes;
        if (full || self.apart) && self.end > self.segment.header.first {
            self.roll()?;
        }
        self.apart = false;
        let mark = Mark { at: self.at, first: self.end, records: records.len() as u32, bytes: bytes as u32 };
        self.buffer.clear();
        self.buffer.extend_from_slice(&mark.encode(self.segment.header.folder));
        for (offset, record) in (self.end..).zip(records) {
            format::put_frame(&mut self.buffer, offset, record);
        }
        write_all(&*self.segment.file, &self.buffer, self.at).at(|| self.segment.name())?;
        failpoint::hit("queue.before_sync")?;
        self.segment.file.sync_data().at(|| format!("fsync of {}", self.segment.name()))?;
        failpoint::hit("queue.after_sync")?;
        (self.at, self.end) = (mark.next(), mark.end());
        Ok(())
    }

    /// Says in the file that everything is durable. Not synced itself: the next mark takes its place, or the kernel writes it.
    pub(super) fn seal(&mut self) -> Result<()> {
        let seal = Mark { at: self.at, first: self.end, records: 0, bytes: 0 };
        write_all(&*self.segment.file, &seal.encode(self.segment.header.folder), self.at).at(|| self.segment.name())
    }

    fn roll(&mut self) -> Result<()> {
        self.seal()?;
        self.segment.file.sync_data().at(|| format!("fsync of {}", self.segment.name()))?;
        self.segment = create(&self.folder, self.segment.header.folder, self.end)?;
        self.at = SEGMENT_HEADER;
        failpoint::hit("queue.segment_rolled")
    }
}

/// Makes an empty segment, durably: no name without a whole header.
pub(super) fn create(folder: &Arc<dyn Folder>, id: u64, first: u64) -> Result<Segment> {
    let name = format::segment_name(first);
    let header = SegmentHeader { folder: id, first };
    let temporary = format!("{name}{TEMPORARY}");
    let file = folder.create(&temporary).at(|| name.clone())?;
    write_all(&*file, &header.encode(), 0).at(|| name.clone())?;
    file.sync_data().at(|| format!("fsync of {name}"))?;
    folder.rename(&temporary, &name).at(|| name.clone())?;
    folder.sync().at(|| format!("fsync of the folder of {name}"))?;
    Ok(Segment { file, header })
}

/// Writes the last batch again when nothing says that it is durable: after a failed fsync the kernel may hold pages as clean
/// that never reached the disk, and only writing them again makes the next fsync mean something.
fn recover(segment: &Segment, tail: Tail) -> Result<()> {
    if let Some(mark) = tail.unsealed {
        let mut window = Window::new(segment.file.clone(), CHUNK);
        let mut at = mark.at;
        while at < tail.at {
            let step = (CHUNK as u64).min(tail.at - at);
            let bytes = window.get(at, step)?.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::InvalidData))?;
            write_all(&*segment.file, &bytes, at)?;
            at += step;
        }
    }
    if segment.file.len()? > tail.at {
        segment.file.set_len(tail.at)?;
    }
    segment.file.sync_data()?;
    Ok(())
}
