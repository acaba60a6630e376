//! A stream's valid records, from a queue.

use std::sync::Arc;
use std::time::Duration;

use super::resume::{Resume, mismatch};
use super::{Entry, Start};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::halt::HaltCode;
use crate::queue::{Queue, QueueReader};

/// Reads a stream's valid records.
pub struct LogReader {
    stream: String,
    source: Box<dyn QueueReader>,
    resume: Resume,
    failed: Failed,
}

/// What ended the reading, so that nobody reads on past it.
enum Failed {
    No,
    /// To be told by the next call: what came before it was handed on first.
    Pending(Error),
    Told(ErrorKind),
}

impl LogReader {
    /// Opens a stream.
    ///
    /// # Errors
    /// As [`Queue::reader`]; a halt with `queue_lost` when the stream ends before the cursor's record.
    pub async fn open(queue: &Arc<dyn Queue>, stream: &str, start: Start) -> Result<Self> {
        let bounds = queue.bounds(stream).await?;
        let (from, after) = match (start, bounds) {
            // Who holds a cursor has read the stream: that it is not there is loss, if the queue says so again when it opens a reader.
            (Start::After(cursor), _) => (cursor.base_offset, Some(cursor)),
            (Start::First, Some(bounds)) => (bounds.start, None),
            (Start::Base(offset), Some(_)) => (offset, None),
            (_, None) => {
                let message = format!("the queue has no stream '{stream}'; run `millstream init`");
                return Err(Error::halt(HaltCode::NotInitialized, message));
            }
        };
        if let (Some(cursor), Some(bounds)) = (&after, bounds)
            && cursor.offset >= bounds.end
        {
            return Err(mismatch(cursor, &format!("the stream ends at {}", bounds.end))).at(|| format!("stream '{stream}'"));
        }
        let source = match (queue.reader(stream, from).await, &after) {
            (Err(error), Some(cursor)) if error.kind() == ErrorKind::Halt(HaltCode::NotInitialized) => {
                Err(mismatch(cursor, "it has no such stream"))
            }
            (source, _) => source,
        };
        let source = source.at(|| format!("stream '{stream}'"))?;
        Ok(Self { stream: stream.to_owned(), source, resume: Resume::new(after), failed: Failed::No })
    }

    /// Some valid records, in order; empty when none came within `wait`. Cancel-safe.
    ///
    /// A resumed reader first hands on the schemas between base and cursor, then the cursor's own record (of which the
    /// consumer drops what its position covers; a part is not handed on again), then the rest.
    ///
    /// # Errors
    /// Those of the queue and of [`super::FenceFilter::judge`]; a halt with `queue_lost` when the cursor's record is not in its
    /// place. An error of the rules ends the reader: every later call fails.
    pub async fn read(&mut self, max_bytes: usize, wait: Duration) -> Result<Vec<Entry>> {
        match std::mem::replace(&mut self.failed, Failed::No) {
            Failed::No => {}
            Failed::Pending(error) => {
                self.failed = Failed::Told(error.kind());
                return Err(error);
            }
            Failed::Told(kind) => {
                self.failed = Failed::Told(kind);
                return Err(Error::new(kind, "the reader has ended with an error before"))
                    .at(|| format!("stream '{}'", self.stream));
            }
        }
        let mut entries = Vec::new();
        for stored in self.source.read(max_bytes, wait).await? {
            if let Err(error) = self.resume.take(stored, &mut entries) {
                let error = error.context(format!("stream '{}'", self.stream));
                if entries.is_empty() {
                    self.failed = Failed::Told(error.kind());
                    return Err(error);
                }
                self.failed = Failed::Pending(error);
                break;
            }
        }
        Ok(entries)
    }
}
