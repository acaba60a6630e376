//! Consumer groups as a courtesy to other tools: `kafka-consumer-groups.sh --describe` and lag exporters see how far a consumer
//! is. Millstream itself never reads them back (I3); deleting them changes nothing.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::{Offset, TopicPartitionList};

use super::client::{Context, Reaped};
use super::errors;
use super::settings::{Client, KafkaSettings};
use super::topics::to_i64;
use crate::error::Result;

/// One client per group that is reported.
#[derive(Default)]
pub(super) struct Groups(Mutex<HashMap<String, Reaped<BaseConsumer<Context>>>>);

impl Groups {
    /// Commits the offset behind the last record taken, without waiting for the answer: the next report makes up for a lost one.
    pub(super) fn commit(&self, settings: &KafkaSettings, group: &str, topic: &str, taken: u64) -> Result<()> {
        let doing = format!("committing an offset of group '{group}'");
        let mut place = TopicPartitionList::new();
        place.add_partition_offset(topic, 0, Offset::Offset(to_i64(taken + 1))).map_err(|e| errors::error(&doing, &e))?;
        let mut groups = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !groups.contains_key(group) {
            let client = settings
                .client(Client::Group(group))
                .create_with_context(Context::new(format!("group {group}")))
                .map_err(|e| errors::error("connecting to Kafka", &e))?;
            groups.insert(group.to_owned(), Reaped::new(client));
        }
        let Some(client) = groups.get(group) else { return Ok(()) };
        // Serves what came since the last time: answers, logs, errors.
        while client.poll(Duration::ZERO).is_some() {}
        client.commit(&place, CommitMode::Async).map_err(|e| errors::error(&doing, &e))
    }

    /// Ends the clients of a stream's groups.
    pub(super) fn forget(&self, prefix: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|group, _| !group.starts_with(prefix));
    }
}
