//! The walsender is kept alive while the queue is claimed, and told of nothing that the queue does not hold (I1).

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use millstream::Result;
use millstream::capture::CaptureState;
use millstream::event::QueueOffset;
use millstream::queue::{Bounds, Queue, QueueReader, QueueWriter};
use tokio::sync::watch;

use super::rig::Rig;
use crate::support::postgres::PgServer;
use crate::support::wait::{LONG, eventually, until};

/// A queue that lets nobody write before its gate opens: a broker that takes its time.
struct Gated {
    queue: Arc<dyn Queue>,
    gate: watch::Receiver<bool>,
}

#[async_trait]
impl Queue for Gated {
    async fn writer(&self, stream: &str) -> Result<Box<dyn QueueWriter>> {
        self.gate.clone().wait_for(|open| *open).await.expect("the test's end of the gate");
        self.queue.writer(stream).await
    }

    async fn create(&self, stream: &str) -> Result<()> {
        self.queue.create(stream).await
    }

    async fn bounds(&self, stream: &str) -> Result<Option<Bounds>> {
        self.queue.bounds(stream).await
    }

    async fn reader(&self, stream: &str, from: QueueOffset) -> Result<Box<dyn QueueReader>> {
        self.queue.reader(stream, from).await
    }

    async fn trim(&self, stream: &str, below: QueueOffset) -> Result<()> {
        self.queue.trim(stream, below).await
    }

    async fn registry_put(&self, stream: &str, key: &str, value: Option<Bytes>) -> Result<()> {
        self.queue.registry_put(stream, key, value).await
    }

    async fn registry(&self, stream: &str) -> Result<BTreeMap<String, Bytes>> {
        self.queue.registry(stream).await
    }

    async fn destroy(&self, stream: &str) -> Result<()> {
        self.queue.destroy(stream).await
    }

    fn max_record_bytes(&self) -> usize {
        self.queue.max_record_bytes()
    }
}

/// The server asks for a sign of life with the end of its log, and an answer that repeated that end would let it forget what nobody has.
#[tokio::test(flavor = "multi_thread")]
async fn what_comes_while_the_queue_is_claimed_is_not_confirmed_before_it_is_durable() {
    let server = PgServer::builder().set("wal_sender_timeout", "8s").start().await;
    let rig = Rig::new(&server, "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE unpublished (v text)").await;
    let capture = rig.start();
    rig.db.execute("INSERT INTO t VALUES (1)").await;
    rig.log_after_marker().await;
    capture.stop().await;

    let (gate, waits) = watch::channel(false);
    let gated: Arc<dyn Queue> = Arc::new(Gated { queue: Arc::clone(&rig.queue), gate: waits });
    let confirmed = "SELECT confirmed_flush_lsn FROM pg_replication_slots";
    let before = rig.db.value(confirmed).await;
    rig.db
        .execute("INSERT INTO t VALUES (2); INSERT INTO unpublished SELECT repeat('x', 1000) FROM generate_series(1, 1000)")
        .await;
    let capture = rig.start_with(rig.source.clone(), gated);
    capture.reaches(CaptureState::TakingOver).await;
    let walsender = rig.db.value("SELECT coalesce(max(active_pid), 0) FROM pg_replication_slots").await;
    assert_ne!(walsender, "0", "the slot is taken before the queue is claimed");
    let replies = format!("SELECT reply_time, flush_lsn FROM pg_stat_replication WHERE pid = {walsender}");
    let mut times = Vec::new();
    until("three signs of life", LONG, async || {
        let rows = rig.db.query(&replies).await.unwrap();
        assert_eq!(rows.len(), 1, "the walsender has ended");
        if let Some(time) = rows[0][0].clone().filter(|time| times.last() != Some(time)) {
            times.push(time);
        }
        times.len() >= 3
    })
    .await;
    assert_eq!(rig.db.value(confirmed).await, before, "nothing of it is in the queue");
    assert_eq!(capture.status.borrow().state, CaptureState::TakingOver);

    gate.send_replace(true);
    assert_eq!(rig.log_after_marker().await.changes(), ["+t (id=1)", "+t (id=2)"]);
    eventually("the slot to be confirmed", LONG, async || {
        let now = rig.db.value(&format!("SELECT (confirmed_flush_lsn > '{before}')::text FROM pg_replication_slots")).await;
        if now == "true" { Ok(()) } else { Err(now) }
    })
    .await;
    assert_eq!(rig.db.value("SELECT max(active_pid) FROM pg_replication_slots").await, walsender, "the same connection");
    capture.stop().await;
}
