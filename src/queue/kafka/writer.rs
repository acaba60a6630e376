//! Appending to a stream's topic.
//!
//! Invariant: tickets become durable in the order in which they were accepted, without a gap. The producer is idempotent, asks
//! for `acks=all`, gives up on no record (`message.timeout.ms=0`) and stops at the first that fails for good
//! (`enable.gapless.guarantee`). The first failure, of whatever kind, ends the writer: every later call returns it again.
//!
//! Bounded: at most [`IN_FLIGHT_BYTES`] are with librdkafka. A caller that wants to append more waits; one that stops waiting
//! has appended nothing.
//!
//! A writer that Kafka has not answered for `stall_after` ends as well, with [`ErrorKind::Connection`], so that somebody hears
//! of it. What was in flight may still arrive; the fence of the next writer voids it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseRecord, ProducerContext, ThreadedProducer};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::client::{Context, Events, Reaped};
use super::errors;
use super::settings::{Client, KafkaSettings};
use super::topics::to_u64;
use crate::error::{Error, ErrorKind, Result};
use crate::event::QueueOffset;
use crate::failpoint;
use crate::halt::HaltCode;
use crate::queue::{Durable, QueueWriter, Ticket};

/// Most bytes accepted and not yet durable.
const IN_FLIGHT_BYTES: usize = 8 << 20;
/// What librdkafka keeps of a record beside its bytes; also bounds the number of small records.
const PER_RECORD_BYTES: usize = 512;

/// A writer of one topic.
pub(super) struct Writer {
    producer: Reaped<ThreadedProducer<DeliveryContext>>,
    shared: Arc<Shared>,
    progress: watch::Receiver<Progress>,
    topic: String,
    accepted: Ticket,
    max_record_bytes: usize,
    capacity: usize,
    stall_after: Duration,
    /// When the oldest record in flight was accepted, if none was acknowledged since.
    waiting_since: Instant,
}

/// Between the delivery reports' thread and the writer.
struct Shared {
    progress: watch::Sender<Progress>,
    room: Semaphore,
    failure: Mutex<Option<(ErrorKind, String)>>,
    events: Arc<Events>,
}

#[derive(Clone, Copy)]
struct Progress {
    durable: Durable,
    /// The last record acknowledged, with or without an offset.
    acknowledged: Ticket,
    at: Instant,
    failed: bool,
}

/// What comes back with a delivery report.
struct InFlight {
    ticket: Ticket,
    permits: usize,
}

impl Shared {
    fn fail(&self, kind: ErrorKind, message: String) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert((kind, message));
        self.progress.send_modify(|progress| progress.failed = true);
        self.room.close();
    }

    fn failure(&self) -> Error {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (kind, message) = failure.unwrap_or((ErrorKind::Unexpected, "the writer ended".into()));
        Error::new(kind, message)
    }

    /// A record is stored. One whose own answer was lost comes without an offset, when the answer to a later one proved that it
    /// is there (librdkafka's implicit acknowledgement): it counts with that later one.
    fn delivered(&self, ticket: Ticket, offset: i64) {
        let before = *self.progress.borrow();
        if before.failed {
            return;
        }
        if ticket != Ticket(before.acknowledged.0 + 1) {
            let message = format!("record {} was acknowledged behind record {}", ticket.0, before.acknowledged.0);
            return self.fail(ErrorKind::Connection, message);
        }
        if offset < 0 {
            self.progress.send_replace(Progress { acknowledged: ticket, ..before });
            return;
        }
        let first = before.durable.ticket == Ticket(0);
        let offset = QueueOffset(to_u64(offset));
        if !first && offset <= before.durable.offset {
            let message = format!(
                "record {} was stored at offset {offset}, behind one at {}: the topic was made anew",
                ticket.0, before.durable.offset
            );
            return self.fail(ErrorKind::Halt(HaltCode::QueueLost), message);
        }
        if let Err(error) = failpoint::hit("queue.after_sync") {
            return self.fail(error.kind(), error.message().to_owned());
        }
        self.events.answered();
        let durable = Durable { ticket, offset };
        self.progress.send_replace(Progress { durable, acknowledged: ticket, at: Instant::now(), failed: false });
    }
}

struct DeliveryContext {
    base: Context,
    shared: Arc<Shared>,
    topic: String,
}

impl ClientContext for DeliveryContext {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, log_message: &str) {
        self.base.log(level, fac, log_message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if errors::code_of(&error) == Some(Code::Fatal) {
            self.shared.fail(ErrorKind::Connection, format!("the producer of topic '{}' ended: {reason}", self.topic));
        }
        self.base.error(error, reason);
    }
}

impl ProducerContext for DeliveryContext {
    type DeliveryOpaque = Box<InFlight>;

    fn delivery(&self, result: &DeliveryResult<'_>, sent: Box<InFlight>) {
        match result {
            Ok(message) => self.shared.delivered(sent.ticket, message.offset()),
            Err((error, _)) => {
                let mut failure = errors::error(&format!("appending to topic '{}'", self.topic), error);
                // Whether it is gone for good is for the next writer to find out.
                if errors::code_of(error).is_some_and(errors::no_topic) {
                    failure = failure.with_kind(ErrorKind::Connection);
                }
                let reason = self.shared.events.trouble().map_or_else(String::new, |(_, reason)| format!(" ({reason})"));
                self.shared.fail(failure.kind(), format!("{}{reason}", failure.message()));
            }
        }
        self.shared.room.add_permits(sent.permits);
    }
}

impl Writer {
    /// Of a topic that is there and takes records of this size.
    pub(super) fn open(settings: &KafkaSettings, topic: &str, max_record_bytes: usize) -> Result<Self> {
        let capacity = IN_FLIGHT_BYTES.max(2 * (max_record_bytes + PER_RECORD_BYTES));
        let none = Durable { ticket: Ticket(0), offset: QueueOffset(0) };
        let (sender, progress) =
            watch::channel(Progress { durable: none, acknowledged: none.ticket, at: Instant::now(), failed: false });
        let base = Context::new(format!("writer of {topic}"));
        let shared = Arc::new(Shared {
            progress: sender,
            room: Semaphore::new(capacity),
            failure: Mutex::default(),
            events: Arc::clone(base.events()),
        });
        let context = DeliveryContext { base, shared: Arc::clone(&shared), topic: topic.to_owned() };
        let producer =
            settings.client(Client::Writer).create_with_context(context).map_err(|e| errors::error("connecting to Kafka", &e))?;
        Ok(Self {
            producer: Reaped::new(producer),
            shared,
            progress,
            topic: topic.to_owned(),
            accepted: Ticket(0),
            max_record_bytes,
            capacity,
            stall_after: settings.stall_after,
            waiting_since: Instant::now(),
        })
    }

    fn in_flight(&self) -> bool {
        self.progress.borrow().durable.ticket < self.accepted
    }

    /// When Kafka will have been silent for too long; far away when nothing is in flight.
    fn stalls_at(&self) -> Instant {
        let since = self.waiting_since.max(self.progress.borrow().at);
        if self.in_flight() { since + self.stall_after } else { Instant::now() + Duration::from_secs(86_400) }
    }

    /// Waits until the deadline may have passed; an error when it has.
    async fn stalled(&self) -> Error {
        loop {
            let at = self.stalls_at();
            if at <= Instant::now() {
                let error = self.shared.events.no_answer(&format!("appending to topic '{}'", self.topic), self.stall_after);
                self.shared.fail(error.kind(), error.message().to_owned());
                return self.shared.failure();
            }
            tokio::time::sleep_until(at).await;
        }
    }

    /// Hands a record to librdkafka; `false` when its queue is full.
    fn send(&mut self, record: &Bytes, permits: usize) -> Result<bool> {
        failpoint::hit("queue.before_sync")?;
        let ticket = Ticket(self.accepted.0 + 1);
        let idle = !self.in_flight();
        let message = BaseRecord::<(), [u8], _>::with_opaque_to(&self.topic, Box::new(InFlight { ticket, permits }))
            .partition(0)
            .payload(record);
        match self.producer.send(message) {
            Ok(()) => {
                if idle {
                    self.waiting_since = Instant::now();
                }
                self.accepted = ticket;
                Ok(true)
            }
            Err((KafkaError::MessageProduction(Code::QueueFull), _)) => Ok(false),
            Err((error, _)) => {
                let error = errors::error(&format!("appending to topic '{}'", self.topic), &error);
                self.shared.fail(error.kind(), error.message().to_owned());
                Err(self.shared.failure())
            }
        }
    }
}

#[async_trait]
impl QueueWriter for Writer {
    async fn append(&mut self, record: Bytes) -> Result<Ticket> {
        if record.len() > self.max_record_bytes {
            // FAULTS 44: whoever cuts records must have cut this one; Kafka never sees it.
            let message = format!(
                "a record of {} bytes is larger than topic '{}' takes ({})",
                record.len(),
                self.topic,
                self.max_record_bytes
            );
            return Err(Error::new(ErrorKind::Unexpected, message));
        }
        let permits = (record.len() + PER_RECORD_BYTES).min(self.capacity);
        loop {
            let room = self.shared.room.acquire_many(u32::try_from(permits).unwrap_or(u32::MAX));
            let permit = tokio::select! {
                permit = room => permit.map_err(|_| self.shared.failure())?,
                error = self.stalled() => return Err(error),
            };
            // Given back by the delivery report. Nothing is awaited from here to the return.
            permit.forget();
            if self.progress.borrow().failed {
                return Err(self.shared.failure());
            }
            if self.send(&record, permits)? {
                return Ok(self.accepted);
            }
            self.shared.room.add_permits(permits);
            let seen = self.progress.borrow().durable.ticket;
            self.durable_past(seen).await?;
        }
    }

    async fn durable_past(&mut self, seen: Ticket) -> Result<Durable> {
        let mut progress = self.progress.clone();
        loop {
            let now = *progress.borrow_and_update();
            if now.durable.ticket > seen {
                return Ok(now.durable);
            }
            if now.failed {
                return Err(self.shared.failure());
            }
            tokio::select! {
                // The sender lives in `shared`.
                _ = progress.changed() => {}
                error = self.stalled() => return Err(error),
            }
        }
    }
}
