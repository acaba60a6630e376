//! Tells the queue what the replica has committed (I2), at most once a second.
//!
//! Only committed cursors are handed in, so a late or repeated report never frees what is still needed: at worst the queue
//! keeps more. A queue that cannot be told is said so in the log and told again; capture stops at its limit meanwhile (I6).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::lag::now_us;
use crate::error::{Error, ErrorKind, Result};
use crate::queue::log::Cursor;
use crate::queue::{CONSUMER_PREFIX, ConsumerProgress, Queue};

const INTERVAL: Duration = Duration::from_secs(1);
const DEADLINE: Duration = Duration::from_secs(30);

/// What a cursor means to the queue.
#[must_use]
pub fn of_cursor(cursor: &Cursor) -> ConsumerProgress {
    ConsumerProgress {
        keep_from: cursor.base_offset,
        number: cursor.number,
        position: cursor.position,
        bytes_so_far: cursor.bytes_so_far,
        changes_so_far: cursor.changes_so_far,
        at_us: now_us(),
    }
}

/// Writes a consumer's entry in the stream's registry.
///
/// # Errors
/// Those of the queue.
pub async fn put(queue: &Arc<dyn Queue>, stream: &str, consumer: &str, progress: &ConsumerProgress) -> Result<()> {
    let json = serde_json::to_vec(progress)
        .map_err(|e| Error::new(ErrorKind::Unexpected, "a consumer's progress does not serialize").with_source(e))?;
    let key = format!("{CONSUMER_PREFIX}{consumer}");
    let write = queue.registry_put(stream, &key, Some(Bytes::from(json)));
    tokio::time::timeout(DEADLINE, write)
        .await
        .map_err(|_| Error::new(ErrorKind::Connection, format!("the queue did not answer within {} s", DEADLINE.as_secs())))?
}

/// Reports in a task of its own.
#[derive(Debug)]
pub struct Reporter {
    committed: watch::Sender<Option<Cursor>>,
    _task: AbortOnDropHandle<()>,
}

impl Reporter {
    /// Begins, for a consumer of a stream.
    #[must_use]
    pub fn spawn(queue: Arc<dyn Queue>, stream: String, consumer: String) -> Self {
        let (committed, cursors) = watch::channel(None);
        let task = tokio::spawn(report(queue, stream, consumer, cursors));
        Self { committed, _task: AbortOnDropHandle::new(task) }
    }

    /// The replica has committed up to here.
    pub fn committed(&self, cursor: Cursor) {
        self.committed.send_replace(Some(cursor));
    }
}

async fn report(queue: Arc<dyn Queue>, stream: String, consumer: String, mut cursors: watch::Receiver<Option<Cursor>>) {
    let mut failing = false;
    while cursors.changed().await.is_ok() {
        let Some(cursor) = cursors.borrow_and_update().clone() else { continue };
        match put(&queue, &stream, &consumer, &of_cursor(&cursor)).await {
            Ok(()) => {
                if let Err(error) = queue.publish_progress(&stream, &consumer, cursor.offset).await {
                    tracing::debug!(replica = consumer, %error, "the queue's own tools do not see the replica's progress");
                }
                if std::mem::take(&mut failing) {
                    tracing::info!(replica = consumer, "the queue takes the replica's progress again");
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(replica = consumer, %error, "the queue did not take the replica's progress");
                }
                cursors.mark_changed();
            }
        }
        tokio::time::sleep(INTERVAL).await;
    }
}
