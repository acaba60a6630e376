//! A stream's registry: a compacted topic beside the log, the last value of a key counts, a tombstone deletes it.
//!
//! Invariant: [`View::read`] gives the registry as of a moment after the call began: it asks for the high watermark and reads up
//! to it, on from where it was the last time. An entry that was acknowledged before lies below that watermark, because
//! `acks=all` is answered only once the watermark has passed the record. A registry that is missing beside its log is never empty: that would
//! say that nobody reads, and everything might be trimmed (I6).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};

use super::absent::Absences;
use super::client::{Context, Reaped};
use super::errors;
use super::settings::{Client, KafkaSettings};
use super::topics::{look_up, to_i64, to_u64, watermarks};
use crate::error::{Error, ErrorKind, Result};

/// What was read of a registry so far.
pub(super) struct View {
    consumer: Reaped<BaseConsumer<Context>>,
    log: String,
    topic: String,
    absences: Arc<Absences>,
    within: Duration,
    next: u64,
    entries: BTreeMap<String, Bytes>,
}

impl View {
    pub(super) fn open(settings: &KafkaSettings, log: &str, topic: &str, absences: Arc<Absences>) -> Result<Self> {
        let consumer = settings
            .client(Client::Registry(topic))
            .create_with_context(Context::new(format!("registry {topic}")))
            .map_err(|e| errors::error("connecting to Kafka", &e))?;
        let consumer = Reaped::new(consumer);
        let (log, topic) = (log.to_owned(), topic.to_owned());
        Ok(Self { consumer, log, topic, absences, within: settings.answer_within, next: 0, entries: BTreeMap::new() })
    }

    /// The registry as it is now; empty where there is no such stream. Blocking.
    ///
    /// # Errors
    /// When the log is there and its registry is not, [`ErrorKind::Connection`], later a halt with `queue_lost`; those of Kafka.
    pub(super) fn read(&mut self) -> Result<BTreeMap<String, Bytes>> {
        let client = self.consumer.client();
        let events = client.context().events();
        if look_up(client, events, &self.topic, self.within)?.is_none() {
            self.entries.clear();
            self.next = 0;
            if look_up(client, events, &self.log, self.within)?.is_none() {
                return Ok(BTreeMap::new());
            }
            return Err(self.absences.error(&self.topic, &format!(", which says what of '{}' is still needed", self.log)));
        }
        self.absences.seen(&self.topic);
        let (low, high) = watermarks(client, events, &self.topic, self.within)?;
        if self.next < low || self.next > high {
            // Never read, or made anew.
            self.entries.clear();
            self.next = low;
        }
        if self.next < high {
            self.read_to(high)?;
        }
        Ok(self.entries.clone())
    }

    fn read_to(&mut self, high: u64) -> Result<()> {
        let doing = format!("reading topic '{}'", self.topic);
        // Assigned anew each time, so that an end-of-partition event is one of this pass.
        let mut place = TopicPartitionList::new();
        place.add_partition_offset(&self.topic, 0, Offset::Offset(to_i64(self.next))).map_err(|e| errors::error(&doing, &e))?;
        self.consumer.assign(&place).map_err(|e| errors::error(&doing, &e))?;
        let read = self.poll_to(high, &doing);
        self.consumer.unassign().map_err(|e| errors::error(&doing, &e))?;
        read
    }

    fn poll_to(&mut self, high: u64, doing: &str) -> Result<()> {
        let begin = Instant::now();
        while self.next < high {
            let message = match self.consumer.poll(Duration::from_millis(200)) {
                Some(Ok(message)) => message,
                // Compaction may have removed the last records below the watermark.
                Some(Err(KafkaError::PartitionEOF(_))) => {
                    self.next = high;
                    break;
                }
                Some(Err(error)) if !errors::code_of(&error).is_some_and(errors::passes) => {
                    return Err(errors::error(doing, &error));
                }
                Some(Err(_)) | None if begin.elapsed() >= self.within => {
                    return Err(self.consumer.client().context().events().no_answer(doing, begin.elapsed()));
                }
                Some(Err(_)) | None => continue,
            };
            let offset = to_u64(message.offset());
            let key = message.key().and_then(|key| std::str::from_utf8(key).ok());
            let key = key.ok_or_else(|| Error::new(ErrorKind::Malformed, format!("{doing}: no key at offset {offset}")))?;
            match message.payload() {
                Some(value) => drop(self.entries.insert(key.to_owned(), Bytes::copy_from_slice(value))),
                None => drop(self.entries.remove(key)),
            }
            self.next = offset + 1;
        }
        Ok(())
    }
}
