//! A slot whose reader's host died.

use std::sync::Arc;
use std::time::{Duration, Instant};

use millstream::capture::CaptureState;

use super::rig::Rig;
use crate::support::postgres::PgServer;
use crate::support::proxy::{Mode, Proxy};
use crate::support::wait::{LONG, until};

/// The server would believe in the dead connection for 30 s. A reader that lives is left alone, however long somebody waits beside it.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_fell_silent_is_ended_by_the_one_that_stands_by() {
    let server = PgServer::start().await;
    let rig = Rig::new(&server, "CREATE TABLE t (id int PRIMARY KEY)").await;
    let proxy = Proxy::start(server.port()).await;
    let mut far = rig.source.clone();
    far.connect = rig.db.connect_tcp();
    far.connect.port = proxy.port();
    let first = rig.start_with(far, Arc::clone(&rig.queue));
    first.reaches(CaptureState::Streaming).await;
    let second = rig.start();
    second.reaches(CaptureState::Held).await;
    let reader = format!("SELECT coalesce(max(active_pid), 0) FROM pg_replication_slots WHERE slot_name = '{}'", rig.slot);
    let alive = rig.db.value(&reader).await;
    tokio::time::sleep(Duration::from_secs(17)).await;
    assert_eq!(rig.db.value(&reader).await, alive, "an idle reader that replies is not silent");

    proxy.set(Mode::Stall);
    let since = Instant::now();
    until("the second to take over", LONG, async || second.status.borrow().state == CaptureState::Streaming).await;
    let took = since.elapsed();
    assert!((Duration::from_secs(14)..Duration::from_secs(25)).contains(&took), "{took:?}");
    rig.db.execute("INSERT INTO t VALUES (1)").await;
    assert_eq!(rig.log_after_marker().await.changes(), ["+t (id=1)"]);
    second.stop().await;
    drop(first);
    rig.end().await;
}
