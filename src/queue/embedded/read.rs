//! The reader's half on disk: a place in a stream that moves over durable records. Blocking; [`super::reader`] runs it off the async threads.

use std::sync::Arc;

use super::Known;
use super::format::{self, FRAME_HEADER, Mark, SEGMENT_HEADER};
use super::segment::{self, Segment, Window};
use super::storage::Folder;
use super::trim;
use crate::error::{Context, Error, Result};
use crate::event::QueueOffset;
use crate::halt::HaltCode;
use crate::queue::StoredRecord;

/// Bounds of one read from a file.
const READ_BYTES: std::ops::RangeInclusive<usize> = (64 << 10)..=(1 << 20);

/// A place in a stream.
pub(super) struct Place {
    folder: Arc<dyn Folder>,
    id: u64,
    segment: Segment,
    /// Byte of the next mark, or of the next frame while `batch` is set.
    at: u64,
    /// Offset of the next record.
    next: u64,
    /// Records before this one are passed over.
    from: u64,
    /// The batch being read.
    batch: Option<Mark>,
    /// Place of a last batch that nothing said to be durable when it was met before.
    doubtful: Option<u64>,
}

/// What is behind a place.
enum Ahead {
    /// A batch whose records are durable.
    Batch(Mark),
    /// The next segment was opened.
    Rolled,
    /// Nothing durable yet.
    Nothing,
}

impl Place {
    /// Finds the first record at or after `from`.
    ///
    /// # Errors
    /// A halt with `queue_lost` when `from` lies outside of what is there.
    pub(super) fn find(folder: Arc<dyn Folder>, id: u64, from: u64, known: Known) -> Result<Self> {
        loop {
            let start = trim::start(&*folder)?;
            if from < start {
                return Err(lost(format!("offset {from} is asked for, the first kept is {start}")));
            }
            let firsts = segment::list(&*folder)?;
            let outside = |what: String| Err(lost(format!("offset {from} is asked for, {what}")));
            let Some(&first) = firsts.iter().rev().find(|first| **first <= from) else {
                return outside(
                    firsts.first().map_or("and no segment is there".into(), |first| format!("the first kept is {first}")),
                );
            };
            // Trimmed since it was listed: look again.
            let Some(segment) = Segment::open(&*folder, id, first, false)? else { continue };
            let place = SEGMENT_HEADER;
            let mut this = Self { folder, id, segment, at: place, next: first, from, batch: None, doubtful: None };
            this.skip_batches()?;
            if this.next < from && known.durable < from && firsts.last() == Some(&first) {
                let end = this.segment.scan_beside_writer()?.end;
                if end < from {
                    return outside(format!("the end is {end}"));
                }
            }
            return Ok(this);
        }
    }

    /// Offset of the next record that it would give.
    pub(super) fn next(&self) -> u64 {
        self.next.max(self.from)
    }

    /// Batches that end at or before the record asked for are not looked into.
    fn skip_batches(&mut self) -> Result<()> {
        let mut window = Window::new(self.segment.file.clone(), *READ_BYTES.start());
        while let Some(mark) = self.segment.mark(&mut window, self.at)? {
            if mark.is_seal() || mark.first != self.next || mark.end() > self.from {
                break;
            }
            (self.at, self.next) = (mark.next(), mark.end());
        }
        Ok(())
    }

    /// Durable records from here, about `max_bytes` of them; none when none is there yet.
    pub(super) fn read(&mut self, known: Known, max_bytes: usize) -> Result<Vec<StoredRecord>> {
        let chunk = max_bytes.clamp(*READ_BYTES.start(), *READ_BYTES.end());
        let mut window = Window::new(self.segment.file.clone(), chunk);
        let (mut records, mut bytes) = (Vec::new(), 0);
        loop {
            let Some(batch) = self.batch else {
                match self.look_ahead(&mut window, known)? {
                    Ahead::Batch(mark) => (self.batch, self.at) = (Some(mark), mark.body()),
                    Ahead::Rolled => window = Window::new(self.segment.file.clone(), chunk),
                    Ahead::Nothing => return Ok(records),
                }
                continue;
            };
            if bytes >= max_bytes && !records.is_empty() {
                return Ok(records);
            }
            let frame = self.segment.frame(&mut window, self.at, self.next, batch.next() - self.at)?;
            let Some(frame) = frame else {
                // Give what is sound first; the next call meets the damage again.
                return if records.is_empty() { Err(self.segment.corrupt(self.at, self.next)) } else { Ok(records) };
            };
            let record = frame.slice(FRAME_HEADER as usize..);
            let fits = records.is_empty() || bytes + record.len() <= max_bytes;
            if self.next >= self.from {
                if !fits {
                    return Ok(records);
                }
                bytes += record.len();
                records.push(StoredRecord { offset: QueueOffset(self.next), bytes: record });
            }
            self.at += frame.len() as u64;
            self.next += 1;
            if self.next == batch.end() {
                self.batch = None;
            }
        }
    }

    fn look_ahead(&mut self, window: &mut Window, known: Known) -> Result<Ahead> {
        let mark = self.segment.mark(window, self.at)?;
        match mark.filter(|m| !m.is_seal()) {
            Some(mark) if mark.first != self.next => Err(self.segment.corrupt(self.at, self.next)),
            Some(mark) => self.judge_batch(window, mark, known),
            None => self.look_past_end(mark.is_some(), known),
        }
    }

    /// At the last mark of the segment, or where one should be.
    fn look_past_end(&mut self, sealed: bool, known: Known) -> Result<Ahead> {
        if self.next > self.segment.header.first
            && let Some(segment) = Segment::open(&*self.folder, self.id, self.next, false)?
        {
            self.segment = segment;
            (self.at, self.doubtful) = (SEGMENT_HEADER, None);
            return Ok(Ahead::Rolled);
        }
        if known.durable <= self.next && known.live {
            return Ok(Ahead::Nothing);
        }
        let firsts = segment::list(&*self.folder)?;
        if firsts.first().is_none_or(|first| *first > self.next) {
            return Err(lost(format!("the record of offset {} was deleted before it was read", self.next)));
        }
        let later = firsts.last().is_some_and(|last| *last > self.next);
        let damaged = !sealed && self.segment.mark_from(self.at)?;
        if later || damaged || known.durable > self.next {
            // The file is read before these facts are known, and a writer may be at work: look once more.
            let mut window = Window::new(self.segment.file.clone(), 0);
            return match self.segment.mark(&mut window, self.at)? {
                Some(mark) if !mark.is_seal() || !later && known.durable <= self.next => Ok(Ahead::Nothing),
                _ if Segment::open(&*self.folder, self.id, self.next, false)?
                    .is_some_and(|s| s.header.first > self.segment.header.first) =>
                {
                    Ok(Ahead::Nothing)
                }
                _ => Err(self.segment.corrupt(self.at, self.next)),
            };
        }
        Ok(Ahead::Nothing)
    }

    /// Gives a batch when it is known to be durable: the writer in this process says so, or what stands behind it does. When
    /// nobody says so for a whole pause (a crash came between the two), its being whole and a sync of our own do.
    fn judge_batch(&mut self, window: &mut Window, mark: Mark, known: Known) -> Result<Ahead> {
        if known.durable >= mark.end() {
            return Ok(Ahead::Batch(mark));
        }
        if !known.trust_files {
            return Ok(Ahead::Nothing);
        }
        let followed = self.segment.mark(window, mark.next())?.is_some_and(|next| next.first == mark.end());
        if followed || Segment::open(&*self.folder, self.id, mark.end(), false)?.is_some() {
            return Ok(Ahead::Batch(mark));
        }
        if self.doubtful.replace(mark.at) != Some(mark.at) {
            return Ok(Ahead::Nothing);
        }
        if !self.segment.batch_sound(window, mark)? {
            if self.segment.mark_from(mark.next())? {
                return Err(self.segment.corrupt(mark.at, mark.first));
            }
            return Ok(Ahead::Nothing);
        }
        self.segment.file.sync_data().at(|| format!("fsync of {}", format::segment_name(self.segment.header.first)))?;
        Ok(Ahead::Batch(mark))
    }
}

/// What a reader is told when its place is gone.
pub(super) fn lost(message: impl Into<String>) -> Error {
    Error::halt(HaltCode::QueueLost, message)
}
