//! Segments of one stream: finding, opening, walking, trimming.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::format::{self, FRAME_HEADER, MARK, MARK_MAGIC, Mark, SEGMENT_HEADER, SegmentHeader};
use super::storage::{File, Folder, read_full};
use crate::error::{Context, Error, ErrorKind, Result};

/// Bytes read at once where nothing says otherwise.
pub(super) const CHUNK: usize = 256 << 10;

/// An open segment.
#[derive(Clone)]
pub(super) struct Segment {
    pub(super) file: Arc<dyn File>,
    pub(super) header: SegmentHeader,
}

impl Segment {
    /// Opens the segment whose first offset is `first`; `None` when there is none.
    pub(super) fn open(folder: &dyn Folder, id: u64, first: u64, write: bool) -> Result<Option<Self>> {
        let name = format::segment_name(first);
        let file = match folder.open(&name, write) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.at(|| name.clone())?,
        };
        let mut bytes = [0; SEGMENT_HEADER as usize];
        let read = read_full(&*file, &mut bytes, 0).at(|| name.clone())?;
        let header = SegmentHeader::decode(&bytes[..read]).at(|| name.clone())?;
        if header.folder != id || header.first != first {
            let message = format!("the segment belongs elsewhere: folder {:016x}, first offset {}", header.folder, header.first);
            return Err(Error::new(ErrorKind::Corrupt, message).context(name));
        }
        Ok(Some(Self { file, header }))
    }

    pub(super) fn name(&self) -> String {
        format::segment_name(self.header.first)
    }

    /// The mark at a place; `None` when the bytes there are none.
    pub(super) fn mark(&self, window: &mut Window, at: u64) -> Result<Option<Mark>> {
        let bytes = window.get(at, MARK).at(|| self.name())?;
        Ok(bytes.and_then(|b| Mark::decode(&b, self.header.folder, at)))
    }

    /// True when every frame of a batch is whole and matches its checksum.
    pub(super) fn batch_sound(&self, window: &mut Window, mark: Mark) -> Result<bool> {
        let (mut at, mut offset) = (mark.body(), mark.first);
        while offset < mark.end() {
            match self.frame(window, at, offset, mark.next() - at)? {
                Some(frame) => at += frame.len() as u64,
                None => return Ok(false),
            }
            offset += 1;
        }
        Ok(at == mark.next())
    }

    /// A whole frame that matches its checksum; `None` when there is none at this place.
    pub(super) fn frame(&self, window: &mut Window, at: u64, offset: u64, room: u64) -> Result<Option<Bytes>> {
        if room < FRAME_HEADER {
            return Ok(None);
        }
        let Some(header) = window.get(at, FRAME_HEADER).at(|| self.name())? else { return Ok(None) };
        let Some(length) = format::frame_length(&header, offset, room) else { return Ok(None) };
        let frame = window.get(at, FRAME_HEADER + length).at(|| self.name())?;
        Ok(frame.filter(|f| format::frame_sound(f)))
    }

    /// True when a valid mark stands at or behind a place. What stands before a mark was durable when the mark was written.
    pub(super) fn mark_from(&self, from: u64) -> Result<bool> {
        let mut window = Window::new(self.file.clone(), CHUNK);
        let length = self.file.len().at(|| self.name())?;
        let mut at = from;
        while at + MARK <= length {
            let step = (CHUNK as u64).min(length - at);
            let Some(bytes) = window.get(at, step).at(|| self.name())? else { return Ok(false) };
            for place in 0..bytes.len() - (MARK as usize - 1) {
                if bytes[place..].starts_with(&MARK_MAGIC)
                    && Mark::decode(&bytes[place..], self.header.folder, at + place as u64).is_some()
                {
                    return Ok(true);
                }
            }
            at += step - (MARK - 1);
        }
        Ok(false)
    }

    /// Walks the whole segment.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] for damage before the last batch: a batch that another mark follows was durable.
    pub(super) fn scan(&self) -> Result<Tail> {
        match self.walk()? {
            (tail, false) => Ok(tail),
            (tail, true) => Err(self.corrupt(tail.at, tail.end)),
        }
    }

    /// The same for who does not hold the writer's lock. A batch that comes between two reads of the file looks like damage, once.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when the same place looks so twice.
    pub(super) fn scan_beside_writer(&self) -> Result<Tail> {
        let mut suspected = None;
        loop {
            match self.walk()? {
                (tail, false) => return Ok(tail),
                (tail, true) if suspected == Some(tail.at) => return Err(self.corrupt(tail.at, tail.end)),
                (tail, true) => suspected = Some(tail.at),
            }
        }
    }

    /// The end as it looks, and whether a mark stands behind it: damage, if nobody is writing.
    fn walk(&self) -> Result<(Tail, bool)> {
        let mut window = Window::new(self.file.clone(), CHUNK);
        let mut tail = Tail { at: SEGMENT_HEADER, end: self.header.first, unsealed: None };
        let mut damage_from = tail.at;
        while let Some(mark) = self.mark(&mut window, tail.at)?.filter(|m| m.first == tail.end) {
            tail.unsealed = None;
            damage_from = tail.at + 1;
            if mark.is_seal() || !self.batch_sound(&mut window, mark)? {
                break;
            }
            tail = Tail { at: mark.next(), end: mark.end(), unsealed: Some(mark) };
            damage_from = tail.at;
        }
        Ok((tail, self.mark_from(damage_from)?))
    }

    pub(super) fn corrupt(&self, at: u64, offset: u64) -> Error {
        let message = format!("damage at byte {at}, where the record of offset {offset} should be");
        Error::new(ErrorKind::Corrupt, message).context(self.name())
    }
}

/// Where a segment ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tail {
    /// Where the next mark belongs. A seal may stand there, or what a torn write left.
    pub(super) at: u64,
    /// Offset of the next record.
    pub(super) end: u64,
    /// The last batch, when nothing says that it is durable. It is whole.
    pub(super) unsealed: Option<Mark>,
}

/// Reads a file in chunks, going forward.
pub(super) struct Window {
    file: Arc<dyn File>,
    chunk: usize,
    bytes: Bytes,
    start: u64,
}

impl Window {
    pub(super) fn new(file: Arc<dyn File>, chunk: usize) -> Self {
        Self { file, chunk, bytes: Bytes::new(), start: 0 }
    }

    /// So many bytes from a place, shared; `None` when the file ends before.
    pub(super) fn get(&mut self, at: u64, length: u64) -> io::Result<Option<Bytes>> {
        let held = self.start..self.start + self.bytes.len() as u64;
        if at < held.start || at + length > held.end {
            let left = self.file.len()?.saturating_sub(at);
            if left < length {
                return Ok(None);
            }
            let size = left.min(length.max(self.chunk as u64)) as usize;
            let mut bytes = vec![0; size];
            let read = read_full(&*self.file, &mut bytes, at)?;
            bytes.truncate(read);
            (self.bytes, self.start) = (bytes.into(), at);
            if (self.bytes.len() as u64) < length {
                return Ok(None);
            }
        }
        let from = (at - self.start) as usize;
        Ok(Some(self.bytes.slice(from..from + length as usize)))
    }
}

/// First offsets of the segments that are there, ascending.
pub(super) fn list(folder: &dyn Folder) -> Result<Vec<u64>> {
    let names = match folder.list() {
        // The stream was removed.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        other => other?,
    };
    let mut firsts: Vec<u64> = names.iter().filter_map(|name| format::parse_segment_name(name)).collect();
    firsts.sort_unstable();
    Ok(firsts)
}

/// Bytes that the segments take.
pub(super) fn stored_bytes(folder: &dyn Folder) -> Result<u64> {
    let mut bytes = 0;
    for first in list(folder)? {
        let name = format::segment_name(first);
        match folder.open(&name, false) {
            Ok(file) => bytes += file.len().at(|| name)?,
            // Trimmed since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).at(|| name),
        }
    }
    Ok(bytes)
}

/// The last segment.
///
/// # Errors
/// [`ErrorKind::Corrupt`] when there is none: a stream always has one.
pub(super) fn last(folder: &dyn Folder, id: u64, write: bool) -> Result<Segment> {
    let last = list(folder)?.last().copied();
    let open = last.map(|first| Segment::open(folder, id, first, write)).transpose()?.flatten();
    open.ok_or_else(|| Error::new(ErrorKind::Corrupt, "the stream's folder holds no segment"))
}

/// Checks that no segment is missing or cut: each but the last ends with a seal that names the next one's first offset.
pub(super) fn check_chain(folder: &dyn Folder, id: u64) -> Result<()> {
    let firsts = list(folder)?;
    for pair in firsts.windows(2) {
        // One that was trimmed in the meantime is no gap.
        let Some(segment) = Segment::open(folder, id, pair[0], false)? else { continue };
        let at = segment.file.len()?.saturating_sub(MARK);
        let seal = segment.mark(&mut Window::new(segment.file.clone(), MARK as usize), at)?;
        if seal.is_none_or(|m| !m.is_seal() || m.first != pair[1]) {
            let message = format!("the segment does not end where the next one, {}, begins", format::segment_name(pair[1]));
            return Err(Error::new(ErrorKind::Corrupt, message).context(segment.name()));
        }
    }
    Ok(())
}
