//! The reader: moves a [`Place`] over the files, off the async threads, woken by the writer of this process or by polling.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::read::{Place, lost};
use super::{Progress, Stream, blocking};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::queue::{QueueReader, StoredRecord};

/// How often a reader looks when no writer of this process wakes it.
const POLL: Duration = Duration::from_millis(20);

/// A read under way: the place comes back with what it gave.
type Reading = JoinHandle<(Box<Place>, Result<Vec<StoredRecord>>)>;

/// The embedded queue's reader.
pub(super) struct EmbeddedReader {
    stream: Arc<Stream>,
    progress: watch::Receiver<Progress>,
    state: State,
    /// Offset of the next record.
    next: u64,
}

enum State {
    Idle(Box<Place>),
    /// Kept here, so that a read which was cancelled goes on with the next call and loses nothing.
    Reading(Reading),
    /// A read panicked.
    Broken,
}

impl EmbeddedReader {
    pub(super) fn new(stream: Arc<Stream>, place: Place) -> Self {
        let (progress, next) = (stream.progress.subscribe(), place.next());
        Self { stream, progress, state: State::Idle(Box::new(place)), next }
    }

    async fn read_files(&mut self, progress: Progress, max_bytes: usize) -> Result<Vec<StoredRecord>> {
        self.state = match std::mem::replace(&mut self.state, State::Broken) {
            State::Idle(mut place) => State::Reading(blocking(move || {
                let records = place.read(progress.known(), max_bytes);
                (place, records)
            })),
            other => other,
        };
        let State::Reading(reading) = &mut self.state else {
            return Err(Error::new(ErrorKind::Unexpected, "the reader ended in a panic before"));
        };
        let joined = reading.await;
        let (place, records) = match joined {
            Ok(done) => done,
            Err(error) => {
                self.state = State::Broken;
                return Err(Error::new(ErrorKind::Unexpected, "reading the queue ended early").with_source(error));
            }
        };
        self.next = place.next();
        self.state = State::Idle(place);
        records.at(|| format!("stream '{}'", self.stream.name))
    }
}

#[async_trait]
impl QueueReader for EmbeddedReader {
    async fn read(&mut self, max_bytes: usize, wait: Duration) -> Result<Vec<StoredRecord>> {
        let deadline = Instant::now() + wait;
        loop {
            let progress = *self.progress.borrow_and_update();
            if progress.gone {
                return Err(lost(format!("stream '{}' was removed", self.stream.name)));
            }
            let nothing_new = progress.live && progress.durable <= self.next && matches!(self.state, State::Idle(_));
            if !nothing_new {
                let records = self.read_files(progress, max_bytes).await?;
                if !records.is_empty() {
                    return Ok(records);
                }
            }
            let until = if progress.live { deadline } else { deadline.min(Instant::now() + POLL) };
            let woken = timeout_at(until, self.progress.changed()).await;
            if woken.is_err() && Instant::now() >= deadline {
                return Ok(Vec::new());
            }
        }
    }
}
