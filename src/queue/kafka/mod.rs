//! The log on Kafka: one topic per stream, one partition, and the rules of [`super::log`] above it.
//!
//! Invariants:
//!
//! - A stream's records lie in partition 0 of topic `PREFIX STREAM`, in the order of the broker's offsets. An offset grows with
//!   every record, not necessarily by one (a transaction marker of somebody else's takes one).
//! - A ticket is durable when the broker acknowledged it with `acks=all`: every in-sync replica has it, `min.insync.replicas` of
//!   them at least. Nothing else is reported as durable (I1).
//! - Nothing is dropped by Millstream or librdkafka: a record waits until Kafka takes it (FAULTS 23), and
//!   only [`KafkaQueue`]'s `trim` deletes (`retention.ms` and `retention.bytes` of the topics are -1). Somebody else's deletion is
//!   noticed, never read over: `auto.offset.reset=error`, offsets checked against the topic's bounds, topics never made by asking
//!   for them. [`super::log`] checks by record number and stream identity what offsets cannot tell (FAULTS 19, 20).
//! - Consumer groups and their offsets decide nothing (FAULTS 21): readers `assign`, the ledger says from where.
//!
//! Two producers can append to one topic at any time; the fence rule voids what the older one writes (I8). The idempotent
//! producer is there against duplicates and disorder of one writer's retries, not for fencing.
//!
//! Worked timeline, a broker is killed under a writer and comes back:
//!
//! ```text
//! append #7, #8 ──► librdkafka ──► broker            tickets 7, 8 accepted
//!                                  stores #7         answer lost, broker gone
//! append #9                                          accepted, waits in memory (8 MiB at most, then `append` waits)
//! ... 12 s ...                     back              librdkafka sends #7, #8 again with their sequence numbers
//!                                  #7 is known       answered with its offset, not stored twice
//!                                  stores #8, #9     tickets 7, 8, 9 durable, in order
//! ```
//!
//! After `stall_after` (30 s) of silence the writer would have ended with an error of kind `Connection`, to be seen in status; its
//! successor would have written a fence and read the log up to it.
//!
//! In memory only: what is in flight, the registry as read so far. Durable: the topics.
//!
//! Rejected: *transactions* (a fenced producer's last writes still have to be judged by readers, and readers of committed data
//! wait for the slowest transaction); *subscribe* (a rebalance takes seconds, and a group's generation protects nothing that the
//! ledger does not); *a topic per table* (no order between tables, so no prefix of the commit order, I4); *the registry as group
//! offsets or metadata* (bounded in size, expire after seven days).

mod absent;
mod authorized;
mod check;
mod check_rights;
mod client;
mod errors;
mod groups;
mod reader;
mod registry;
mod settings;
mod topics;
mod writer;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rdkafka::admin::ResourceSpecifier;
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};

pub use check::check;
pub use settings::{FIXED_PROPERTIES, KafkaSettings};

use self::absent::Absences;
use self::client::{Context, Reaped, blocking};
use self::groups::Groups;
use self::reader::Reader;
use self::registry::View;
use self::settings::{Client, RECORD_OVERHEAD};
use self::topics::{Admin, look_up, settle, watermarks};
use self::writer::Writer;
use super::{Bounds, Queue, QueueReader, QueueWriter};
use crate::error::{Error, ErrorKind, Result};
use crate::event::QueueOffset;
use crate::halt::HaltCode;

type Control = FutureProducer<Context>;

/// Streams kept on Kafka.
pub struct KafkaQueue {
    settings: KafkaSettings,
    /// Writes registry entries and asks questions. Replaced when it ends with a fatal error.
    control: Mutex<(Arc<Reaped<Control>>, Context)>,
    registries: Mutex<HashMap<String, Arc<Mutex<View>>>>,
    groups: Groups,
    absences: Arc<Absences>,
    max_record_bytes: AtomicUsize,
}

impl KafkaQueue {
    /// Checks the settings; connects when it is used, so that a daemon can start before its Kafka.
    ///
    /// # Errors
    /// [`ErrorKind::Config`].
    pub fn open(settings: KafkaSettings) -> Result<Arc<Self>> {
        settings.validate()?;
        let max_record_bytes = AtomicUsize::new(settings.message_max_bytes()? - RECORD_OVERHEAD);
        let control = Mutex::new(connect(&settings)?);
        let (registries, groups) = (Mutex::default(), Groups::default());
        let absences = Arc::new(Absences::new(settings.gone_after));
        Ok(Arc::new(Self { settings, control, registries, groups, absences, max_record_bytes }))
    }

    fn control(&self) -> Result<(Arc<Reaped<Control>>, Context)> {
        let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        if control.0.client().fatal_error().is_some() {
            *control = connect(&self.settings)?;
        }
        Ok(control.clone())
    }

    /// Asks something of the cluster, off the async threads.
    async fn question<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Control, &client::Events, Duration) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let ((control, context), within) = (self.control()?, self.settings.answer_within);
        blocking(move || question(&control, context.events(), within)).await
    }

    /// Checks a stream's topic and learns the largest record that it takes.
    async fn check_topic(&self, topic: &str) -> Result<bool> {
        let name = topic.to_owned();
        let found = self.question(move |control, events, within| look_up(control.client(), events, &name, within)).await?;
        let Some(found) = found else { return Ok(false) };
        if found.partitions != 1 {
            let message = format!(
                "topic '{topic}' has {} partitions and must have one, or there is no order; delete it and run `millstream init`",
                found.partitions
            );
            return Err(Error::new(ErrorKind::Config, message));
        }
        let settings = match Admin::new(&self.settings)?.settings_of(ResourceSpecifier::Topic(topic)).await {
            Ok(settings) => settings,
            Err(error) if error.kind() == ErrorKind::Halt(HaltCode::QueueDenied) => {
                tracing::warn!(topic, %error, "cannot see the topic's settings, so they are not checked");
                return Ok(true);
            }
            Err(error) => return Err(error),
        };
        for (name, value) in settings {
            match name.as_str() {
                "cleanup.policy" if value != "delete" => {
                    let message = format!(
                        "topic '{topic}' has cleanup.policy={value} and must have delete, or records are lost; `millstream check` prints the command"
                    );
                    return Err(Error::new(ErrorKind::Config, message));
                }
                "retention.ms" | "retention.bytes" if value != "-1" => {
                    tracing::warn!(topic, %name, %value, "Kafka may delete records that were not read; set it to -1");
                }
                "max.message.bytes" => {
                    let limit = value.parse::<usize>().unwrap_or(0).saturating_sub(RECORD_OVERHEAD);
                    self.max_record_bytes.fetch_min(limit.max(RECORD_OVERHEAD), Ordering::Relaxed);
                }
                _ => {}
            }
        }
        Ok(true)
    }

    fn view(&self, log: &str, topic: &str) -> Result<Arc<Mutex<View>>> {
        let mut views = self.registries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(view) = views.get(topic) {
            return Ok(Arc::clone(view));
        }
        let view = Arc::new(Mutex::new(View::open(&self.settings, log, topic, Arc::clone(&self.absences))?));
        views.insert(topic.to_owned(), Arc::clone(&view));
        Ok(view)
    }

    fn forget_view(&self, topic: &str) {
        self.registries.lock().unwrap_or_else(PoisonError::into_inner).remove(topic);
    }
}

fn connect(settings: &KafkaSettings) -> Result<(Arc<Reaped<Control>>, Context)> {
    let context = Context::new("control");
    let control = settings
        .client(Client::Control)
        .create_with_context(context.clone())
        .map_err(|e| errors::error("connecting to Kafka", &e))?;
    Ok((Arc::new(Reaped::new(control)), context))
}

#[async_trait]
impl Queue for KafkaQueue {
    async fn create(&self, stream: &str) -> Result<()> {
        let (log, registry) = (self.settings.topic(stream)?, self.settings.registry_topic(stream)?);
        let names = [log.clone(), registry.clone()];
        let there = self.question(move |control, events, within| {
            let mut there = 0;
            for name in &names {
                there += usize::from(look_up(control.client(), events, name, within)?.is_some());
            }
            Ok(there)
        });
        // Topics that an administrator made need no right to create any.
        if there.await? < 2 {
            Admin::new(&self.settings)?.create(&self.settings, &log, &registry).await?;
            let names = [log.clone(), registry];
            self.question(move |control, events, within| {
                names.iter().try_for_each(|name| settle(control.client(), events, name, true, within).map(drop))
            })
            .await?;
        }
        self.check_topic(&log).await.map(drop)
    }

    async fn bounds(&self, stream: &str) -> Result<Option<Bounds>> {
        let (topic, registry) = (self.settings.topic(stream)?, self.settings.registry_topic(stream)?);
        let absences = Arc::clone(&self.absences);
        let question = move |control: &Control, events: &client::Events, within| {
            if look_up(control.client(), events, &topic, within)?.is_none() {
                // One topic without the other is no stream that was never created: a broker may know one sooner than the other.
                let beside = look_up(control.client(), events, &registry, within)?.is_some();
                if beside && !absences.missed(&topic) {
                    let message = format!("Kafka does not know topic '{topic}' at present, though '{registry}' is there");
                    return Err(Error::new(ErrorKind::Connection, message));
                }
                return Ok(None);
            }
            absences.seen(&topic);
            let (low, high) = watermarks(control.client(), events, &topic, within)?;
            Ok(Some(Bounds { start: QueueOffset(low), end: QueueOffset(high), stored_bytes: None }))
        };
        self.question(question).await
    }

    async fn writer(&self, stream: &str) -> Result<Box<dyn QueueWriter>> {
        let topic = self.settings.topic(stream)?;
        if !self.check_topic(&topic).await? {
            let message = format!("topic '{topic}' is not there; run `millstream init`");
            return Err(Error::halt(HaltCode::NotInitialized, message));
        }
        Ok(Box::new(Writer::open(&self.settings, &topic, self.max_record_bytes())?))
    }

    async fn reader(&self, stream: &str, from: QueueOffset) -> Result<Box<dyn QueueReader>> {
        let absences = Arc::clone(&self.absences);
        Ok(Box::new(Reader::open(&self.settings, &self.settings.topic(stream)?, from, absences).await?))
    }

    async fn trim(&self, stream: &str, below: QueueOffset) -> Result<()> {
        let topic = self.settings.topic(stream)?;
        let name = topic.clone();
        let (low, high) =
            self.question(move |control, events, within| watermarks(control.client(), events, &name, within)).await?;
        // The last record stays: the tail is the state.
        let below = below.0.min(high.saturating_sub(1));
        if below <= low {
            return Ok(());
        }
        Admin::new(&self.settings)?.delete_records(&topic, below).await
    }

    async fn registry_put(&self, stream: &str, key: &str, value: Option<Bytes>) -> Result<()> {
        let topic = self.settings.registry_topic(stream)?;
        let (control, context) = self.control()?;
        let doing = format!("writing '{key}' to topic '{topic}'");
        let mut record = FutureRecord::<str, [u8]>::to(&topic).key(key).partition(0);
        if let Some(value) = &value {
            record = record.payload(value);
        }
        let delivery = control.send_result(record).map_err(|(e, _)| errors::error(&doing, &e))?;
        // librdkafka ends it by `message.timeout.ms`; the deadline here is for the case that it does not.
        match tokio::time::timeout(2 * self.settings.answer_within, delivery).await {
            Ok(Ok(Ok(_))) => Ok(()),
            Ok(Ok(Err((error, _)))) if errors::code_of(&error).is_some_and(errors::passes) => {
                Err(context.events().no_answer(&doing, self.settings.answer_within))
            }
            Ok(Ok(Err((error, _)))) => Err(errors::error(&doing, &error)),
            Ok(Err(_)) | Err(_) => Err(context.events().no_answer(&doing, self.settings.answer_within)),
        }
    }

    async fn registry(&self, stream: &str) -> Result<BTreeMap<String, Bytes>> {
        let (log, topic) = (self.settings.topic(stream)?, self.settings.registry_topic(stream)?);
        let view = self.view(&log, &topic)?;
        let entries = blocking(move || view.lock().unwrap_or_else(PoisonError::into_inner).read()).await;
        if entries.is_err() {
            self.forget_view(&topic);
        }
        entries
    }

    async fn publish_progress(&self, stream: &str, consumer: &str, taken: QueueOffset) -> Result<()> {
        let topic = self.settings.topic(stream)?;
        self.groups.commit(&self.settings, &format!("{topic}.{consumer}"), &topic, taken.0)
    }

    async fn destroy(&self, stream: &str) -> Result<()> {
        let (log, registry) = (self.settings.topic(stream)?, self.settings.registry_topic(stream)?);
        self.forget_view(&registry);
        self.groups.forget(&format!("{log}."));
        Admin::new(&self.settings)?.delete(&[&log, &registry]).await?;
        self.question(move |control, events, within| {
            [log, registry].iter().try_for_each(|name| settle(control.client(), events, name, false, within).map(drop))
        })
        .await
    }

    fn max_record_bytes(&self) -> usize {
        self.max_record_bytes.load(Ordering::Relaxed)
    }
}
