//! Reading a stream's topic, by `assign` at an offset.
//!
//! Invariant: what [`Reader::read`] returns are the topic's records from the place given on, in order, each once. Nobody else's
//! offsets matter: there is no group to join and nothing is committed. An offset that the topic no longer has is an error
//! (`auto.offset.reset=error`), never another place.
//!
//! Bounded: librdkafka holds about 4 MiB that was fetched and not yet read.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::{Offset, TopicPartitionList};
use tokio::time::Instant;

use super::absent::Absences;
use super::client::{Context, Reaped, blocking};
use super::errors;
use super::settings::{Client, KafkaSettings};
use super::topics::{look_up, to_i64, to_u64, watermarks};
use crate::error::{Error, ErrorKind, Result};
use crate::event::QueueOffset;
use crate::halt::HaltCode;
use crate::queue::{QueueReader, StoredRecord};

/// A topic that metadata do not know is asked for again for so long by one call.
const WAIT_FOR_TOPIC: Duration = Duration::from_secs(4);

/// A reader of one topic.
pub(super) struct Reader {
    consumer: Reaped<StreamConsumer<Context>>,
    topic: String,
    /// The next record's offset is at least this.
    next: u64,
    /// Came and did not fit.
    held: Option<StoredRecord>,
    /// Came behind records that were returned first.
    failed: Option<KafkaError>,
    /// When a record came, or a question was answered.
    heard: Instant,
    /// The place at which the last question found records that had not come.
    behind: Option<u64>,
    absences: Arc<Absences>,
    settings: KafkaSettings,
}

impl Reader {
    /// At the first record at or after an offset.
    pub(super) async fn open(settings: &KafkaSettings, topic: &str, from: QueueOffset, absences: Arc<Absences>) -> Result<Self> {
        let (config, name, known) = (settings.clone(), topic.to_owned(), Arc::clone(&absences));
        let consumer = blocking(move || {
            let context = Context::new(format!("reader of {name}"));
            let consumer: StreamConsumer<Context> = config
                .client(Client::Reader(&name))
                .create_with_context(context)
                .map_err(|e| errors::error("connecting to Kafka", &e))?;
            let consumer = Reaped::new(consumer);
            check_place(&consumer, &name, from.0, &known, config.answer_within)?;
            let mut place = TopicPartitionList::new();
            let doing = || format!("reading topic '{name}' from offset {from}");
            place.add_partition_offset(&name, 0, Offset::Offset(to_i64(from.0))).map_err(|e| errors::error(&doing(), &e))?;
            consumer.assign(&place).map_err(|e| errors::error(&doing(), &e))?;
            Ok(consumer)
        });
        Ok(Self {
            consumer: consumer.await?,
            topic: topic.to_owned(),
            next: from.0,
            held: None,
            failed: None,
            heard: Instant::now(),
            behind: None,
            absences,
            settings: settings.clone(),
        })
    }

    fn take(&mut self, stored: StoredRecord, records: &mut Vec<StoredRecord>) -> usize {
        self.next = stored.offset.0 + 1;
        let size = stored.bytes.len();
        records.push(stored);
        size
    }

    /// What an error means. One that passes is waited out.
    async fn judge(&mut self, error: KafkaError) -> Result<()> {
        let code = errors::code_of(&error);
        if code.is_some_and(errors::passes) {
            return Ok(());
        }
        if code.is_some_and(errors::no_topic) {
            // Kept until the answer is known, should the caller stop waiting.
            self.failed = Some(error);
            let answer = self.probe().await;
            self.failed = None;
            return answer;
        }
        Err(errors::error(&format!("reading topic '{}' from offset {}", self.topic, self.next), &error))
    }

    /// Asks whether the place is still there.
    async fn probe(&mut self) -> Result<()> {
        let (consumer, topic, next, within) = (self.consumer.share(), self.topic.clone(), self.next, self.settings.answer_within);
        let absences = Arc::clone(&self.absences);
        let high = blocking(move || check_place(&consumer, &topic, next, &absences, within)).await?;
        self.heard = Instant::now();
        // Found behind once may be a record that is on its way.
        let before = std::mem::replace(&mut self.behind, (high > self.next).then_some(self.next));
        if before.is_some() && before == self.behind {
            let message = format!("topic '{}' has records from offset {} on, but they do not come", self.topic, self.next);
            return Err(Error::new(ErrorKind::Connection, message));
        }
        Ok(())
    }

    /// The first record: held back, or waited for.
    async fn first(&mut self, wait: Duration) -> Result<Option<StoredRecord>> {
        if let Some(held) = self.held.take() {
            return Ok(Some(held));
        }
        let deadline = Instant::now() + wait;
        loop {
            if let Some(error) = self.failed.take() {
                self.judge(error).await?;
            }
            let came = tokio::time::timeout_at(deadline, self.consumer.recv()).await.map(|came| came.map(|m| stored(&m)));
            match came {
                Ok(Ok(record)) => return Ok(Some(record)),
                Ok(Err(error)) => self.failed = Some(error),
                Err(_) => break,
            }
        }
        if self.heard.elapsed() >= self.settings.stall_after {
            self.probe().await?;
        }
        Ok(None)
    }
}

#[async_trait]
impl QueueReader for Reader {
    async fn read(&mut self, max_bytes: usize, wait: Duration) -> Result<Vec<StoredRecord>> {
        let mut records = Vec::new();
        let Some(first) = self.first(wait).await? else { return Ok(records) };
        // From here on nothing is awaited: what was taken is returned.
        self.heard = Instant::now();
        self.consumer.client().context().events().answered();
        let mut bytes = self.take(first, &mut records);
        while bytes < max_bytes {
            match self.consumer.recv().now_or_never().map(|came| came.map(|m| stored(&m))) {
                Some(Ok(record)) if bytes + record.bytes.len() > max_bytes => {
                    self.held = Some(record);
                    break;
                }
                Some(Ok(record)) => bytes += self.take(record, &mut records),
                Some(Err(error)) => {
                    self.failed = Some(error);
                    break;
                }
                None => break,
            }
        }
        Ok(records)
    }
}

fn stored(message: &BorrowedMessage<'_>) -> StoredRecord {
    let bytes = message.payload().map_or_else(Bytes::new, Bytes::copy_from_slice);
    StoredRecord { offset: QueueOffset(to_u64(message.offset())), bytes }
}

/// Checks that the topic is there and has the place; gives its end. Blocking.
fn check_place(consumer: &StreamConsumer<Context>, topic: &str, next: u64, absences: &Absences, within: Duration) -> Result<u64> {
    let client = consumer.client();
    let events = client.context().events();
    let begin = std::time::Instant::now();
    while look_up(client, events, topic, within)?.is_none() {
        let error = absences.error(topic, "");
        if error.kind() != ErrorKind::Connection || begin.elapsed() >= WAIT_FOR_TOPIC {
            return Err(error);
        }
        std::thread::sleep(Duration::from_millis(250));
    }
    absences.seen(topic);
    let (low, high) = watermarks(client, events, topic, within)?;
    let lost = |why: String| Err(Error::halt(HaltCode::QueueLost, format!("topic '{topic}', offset {next}: {why}")));
    if next < low {
        return lost(format!("deleted; the first record kept has offset {low}"));
    }
    if next > high {
        return lost(format!("beyond the end, which is {high}; the topic was made anew or lost its tail"));
    }
    Ok(high)
}
