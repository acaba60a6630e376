//! The writer: accepts records into a channel bounded in bytes, and a thread of its own makes them durable in batches.
//!
//! Accepted is not durable: a record is in memory until the thread has written and synced its batch; whatever arrives
//! meanwhile is the next batch (group commit). The first error ends the thread, and every later call returns that error.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

use super::append::{Appender, RESERVE_BYTES};
use super::lock::FolderLock;
use super::storage::Folder;
use super::{Options, Progress, Stream};
use crate::error::{Error, ErrorKind, Result};
use crate::event::QueueOffset;
use crate::queue::{Durable, QueueWriter, Room, Ticket};

/// A record on its way, with the memory that it may take.
struct Accepted {
    record: Bytes,
    _permit: OwnedSemaphorePermit,
}

/// What the thread has achieved.
#[derive(Clone, Debug, Default)]
struct Outcome {
    durable: Option<Durable>,
    failed: Option<Failure>,
}

/// An error that can be told again.
#[derive(Clone, Debug)]
struct Failure {
    kind: ErrorKind,
    text: String,
}

impl Failure {
    fn error(&self) -> Error {
        Error::new(self.kind, self.text.clone()).context("the queue's writer is dead")
    }
}

/// The embedded queue's writer.
pub(super) struct EmbeddedWriter {
    records: Option<mpsc::UnboundedSender<Accepted>>,
    room: Arc<Semaphore>,
    room_bytes: u32,
    max_record_bytes: usize,
    last: Ticket,
    outcome: watch::Receiver<Outcome>,
    /// The thread reads it before each batch.
    makes_room: Arc<AtomicBool>,
    step_bytes: u64,
    stream: Arc<Stream>,
}

impl EmbeddedWriter {
    /// Starts the thread. It keeps the lock until it has ended.
    ///
    /// Nobody joins the thread: how it ended, by a panic too, is in the stream's progress and in its own report.
    pub(super) fn start(appender: Appender, lock: FolderLock, stream: &Arc<Stream>, options: &Options) -> Result<Self> {
        let (records, incoming) = mpsc::unbounded_channel();
        let (report, outcome) = watch::channel(Outcome::default());
        let step_bytes = appender.segment_bytes();
        let makes_room = Arc::new(AtomicBool::new(false));
        let room_bytes = u32::try_from(options.in_flight_bytes).unwrap_or(u32::MAX).clamp(1, Semaphore::MAX_PERMITS as u32);
        let room = Arc::new(Semaphore::new(room_bytes as usize));
        let mut thread = Thread {
            appender,
            incoming,
            report,
            stream: Arc::clone(stream),
            _lock: lock,
            room: Arc::clone(&room),
            batch_bytes: options.batch_bytes,
            written: Ticket(0),
            makes_room: Arc::clone(&makes_room),
        };
        thread.stream.update(|p| *p = Progress { durable: thread.appender.end(), live: true, ..Progress::default() });
        std::thread::Builder::new().name(format!("queue-{}", stream.name)).spawn(move || thread.run())?;
        Ok(Self {
            records: Some(records),
            room,
            room_bytes,
            max_record_bytes: options.max_record_bytes,
            last: Ticket(0),
            outcome,
            makes_room,
            step_bytes,
            stream: Arc::clone(stream),
        })
    }

    fn failure(&self) -> Error {
        let outcome = self.outcome.borrow();
        match &outcome.failed {
            Some(failure) => failure.error(),
            None => Error::new(ErrorKind::Unexpected, "the queue's writer thread has ended"),
        }
    }
}

#[async_trait]
impl QueueWriter for EmbeddedWriter {
    async fn append(&mut self, record: Bytes) -> Result<Ticket> {
        if record.len() > self.max_record_bytes {
            let message = format!("a record of {} bytes; the queue takes at most {}", record.len(), self.max_record_bytes);
            return Err(Error::new(ErrorKind::Unexpected, message));
        }
        let bytes = u32::try_from(record.len()).unwrap_or(u32::MAX).clamp(1, self.room_bytes);
        let permit = Arc::clone(&self.room).acquire_many_owned(bytes).await.map_err(|_| self.failure())?;
        // From here on nothing waits: either the record is accepted or an error says that it is not.
        let records = self.records.as_ref().ok_or_else(|| self.failure())?;
        records.send(Accepted { record, _permit: permit }).map_err(|_| self.failure())?;
        self.last = Ticket(self.last.0 + 1);
        Ok(self.last)
    }

    async fn durable_past(&mut self, seen: Ticket) -> Result<Durable> {
        let past = |o: &Outcome| o.failed.is_some() || o.durable.is_some_and(|d| d.ticket > seen);
        let Ok(outcome) = self.outcome.wait_for(past).await.map(|o| o.clone()) else { return Err(self.failure()) };
        match (outcome.durable.filter(|d| d.ticket > seen), outcome.failed) {
            (Some(durable), _) => Ok(durable),
            (None, Some(failure)) => Err(failure.error()),
            (None, None) => Err(self.failure()),
        }
    }

    fn room(&self) -> Room {
        // A disk that cannot be asked says so at the next batch.
        let free = self.stream.folder.free_bytes().unwrap_or(u64::MAX);
        Room { step_bytes: self.step_bytes, free_bytes: free.saturating_sub(RESERVE_BYTES) }
    }

    fn make_room(&mut self, on: bool) {
        self.makes_room.store(on, Ordering::Relaxed);
    }
}

impl Drop for EmbeddedWriter {
    fn drop(&mut self) {
        // What was accepted is still written; then the thread ends and gives up the lock.
        self.stream.update(|p| p.closing = p.live);
        self.records = None;
        self.room.close();
    }
}

struct Thread {
    appender: Appender,
    incoming: mpsc::UnboundedReceiver<Accepted>,
    report: watch::Sender<Outcome>,
    stream: Arc<Stream>,
    room: Arc<Semaphore>,
    batch_bytes: usize,
    written: Ticket,
    makes_room: Arc<AtomicBool>,
    /// Released when everything else of this is done.
    _lock: FolderLock,
}

impl Thread {
    fn run(&mut self) {
        while let Some(first) = self.incoming.blocking_recv() {
            if let Err(error) = self.write(first) {
                let failure = Failure { kind: error.kind(), text: error.to_string() };
                self.stream.update(|p| p.failed = true);
                self.report.send_modify(|o| o.failed = Some(failure));
                return;
            }
        }
    }

    fn write(&mut self, first: Accepted) -> Result<()> {
        let mut bytes = first.record.len();
        let mut batch = vec![first];
        while bytes < self.batch_bytes {
            let Ok(more) = self.incoming.try_recv() else { break };
            bytes += more.record.len();
            batch.push(more);
        }
        self.appender.make_room(self.makes_room.load(Ordering::Relaxed));
        self.appender.write_batch(batch.iter().map(|a| &a.record))?;
        let end = self.appender.end();
        self.written = Ticket(self.written.0 + batch.len() as u64);
        let durable = Durable { ticket: self.written, offset: QueueOffset(end - 1) };
        self.stream.update(|p| p.durable = end);
        self.report.send_modify(|o| o.durable = Some(durable));
        drop(batch);
        if self.incoming.is_empty() { self.appender.seal() } else { Ok(()) }
    }
}

impl Drop for Thread {
    /// Also when the thread panics: readers go back to what the files say, and the writer's calls fail.
    fn drop(&mut self) {
        let panicked = std::thread::panicking();
        self.stream.update(|p| {
            (p.live, p.closing) = (false, false);
            p.failed |= panicked;
        });
        self.room.close();
    }
}
