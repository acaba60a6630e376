//! The Kafka queue under the suite, on the process's common broker. What is its own is in `tests/it/kafka`.

use std::sync::Arc;

use async_trait::async_trait;
use millstream::queue::Queue;
use millstream::queue::kafka::{KafkaQueue, KafkaSettings};

use super::queue::{Ground, queue_conforms};
use crate::support::kafka;

struct Broker(KafkaSettings);

#[async_trait]
impl Ground for Broker {
    async fn open(&self) -> Arc<dyn Queue> {
        KafkaQueue::open(self.0.clone()).unwrap()
    }
}

queue_conforms!(Broker(kafka::shared().await.settings("suite")));
