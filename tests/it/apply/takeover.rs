//! Kills, zombies, lost answers: every change has its effect exactly once (FAULTS 2, 3, 4).

use std::sync::Arc;
use std::time::Duration;

use millstream::ErrorKind;
use millstream::apply::ApplyState;
use millstream::apply::merge::{Batch, Mark};
use millstream::event::{Epoch, Nonce, QueueOffset, RecordNumber};
use millstream::queue::log::Cursor;
use millstream::replica::{Applied, ReplicaTarget};

use super::rig::{Rig, STREAM, WAIT, insert, update, v};
use crate::support::proxy::Proxy;
use crate::support::wait::until;

const ITEM: &str = "CREATE TABLE item (id int PRIMARY KEY, n int)";

#[tokio::test(flavor = "multi_thread")]
async fn an_applier_that_is_dropped_anywhere_neither_loses_nor_doubles() {
    let mut rig = Rig::new(ITEM).await;
    rig.config.merge_max_changes = 50;
    let t = rig.table("item").await;
    rig.log.transaction(vec![insert(&t, &[v("1"), v("0")])]).await;
    let mut end = rig.log.position();
    for round in 0..40 {
        let rows: Vec<_> = (0..25)
            .map(|i| {
                vec![
                    insert(&t, &[v(&format!("{}", 1000 + round * 25 + i)), v("1")]),
                    update(&t, &[v("1"), v(&format!("{}", round * 25 + i))]),
                ]
            })
            .collect();
        end = rig.log.transactions(&rows).await;
    }
    for pause_ms in [1, 3, 5, 8, 13, 21, 34, 55] {
        rig.start();
        // The instant of the kill is what varies here; nothing is waited for.
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        rig.kill();
    }
    rig.drain(end).await;
    assert_eq!(rig.rows("SELECT count(*), max(n) FROM item").await, "1001|999");
    assert_eq!(rig.rows("SELECT transactions, changes FROM millstream.replica").await, "1001|2001");
}

/// FAULTS 2.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_is_lost_is_not_applied_twice() {
    let mut rig = Rig::new(ITEM).await;
    let proxy = Proxy::start(rig.replica.server.port()).await;
    rig.config.connect = rig.replica.connect_tcp();
    rig.config.connect.port = proxy.port();
    let t = rig.table("item").await;
    let first = rig.log.transaction(vec![insert(&t, &[v("1"), v("0")])]).await;
    rig.start();
    rig.applied(first).await;
    for round in 0..3 {
        proxy.lose_answer_to(b"COMMIT");
        let end = rig.log.transaction(vec![insert(&t, &[v(&format!("{}", 10 + round)), v("0")])]).await;
        rig.applied(end).await;
        until("the answer to be lost", WAIT, async || proxy.strikes() == round + 1).await;
    }
    let end = rig.log.transaction(vec![insert(&t, &[v("2"), v("0")])]).await;
    rig.applied(end).await;
    rig.stop().await;
    assert_eq!(rig.rows("SELECT count(*) FROM item").await, "5");
    assert_eq!(rig.rows("SELECT transactions, changes, apply_epoch FROM millstream.replica").await, "5|5|4");
}

fn batch(t: &millstream::event::TableSchema, id: &str, number: u64, header: millstream::event::TransactionHeader) -> Batch {
    let place = Cursor {
        stream: STREAM,
        number: RecordNumber(number),
        offset: QueueOffset(0),
        epoch: Epoch(1),
        nonce: Nonce(5),
        base: RecordNumber(1),
        base_offset: QueueOffset(0),
        position: None,
        bytes_so_far: 0,
        changes_so_far: 0,
    };
    Batch::of(
        vec![insert(t, &[v(id), v("0")])],
        vec![Mark { header, end: 1, place: Arc::new(place), bytes_so_far: 0, changes_so_far: 0 }],
    )
}

/// FAULTS 4: a stopped applier wakes up after another has taken over.
#[tokio::test(flavor = "multi_thread")]
async fn a_zombie_is_fenced_by_the_ledger() {
    let mut rig = Rig::new(ITEM).await;
    let t = rig.table("item").await;
    let schemas = [(t.id, Arc::new(t.clone()))].into_iter().collect();
    let (mut zombie, row) = rig.target().claim().await.unwrap();
    zombie.apply(&batch(&t, "1", 5, rig.log.next_header()), &schemas, &mut Applied::default()).await.unwrap();
    let Err(held) = rig.target().claim().await else { panic!("the lock was given twice") };
    assert_eq!(held.kind(), ErrorKind::Held);
    assert!(held.to_string().contains("millstream apply reports"), "{held}");
    // Its connection hangs somewhere, and its lock was taken from it.
    rig.replica.execute("SELECT pg_advisory_unlock_all(); UPDATE millstream.replica SET apply_epoch = apply_epoch + 1").await;
    let error = zombie.apply(&batch(&t, "2", 6, rig.log.next_header()), &schemas, &mut Applied::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced, "{error}");
    drop(zombie);
    assert_eq!(rig.rows("SELECT count(*), max(id) FROM item").await, "1|1");
    let next = crate::support::wait::eventually("the lock", WAIT, async || rig.target().claim().await.map(|(_, row)| row)).await;
    assert_eq!(next.apply_epoch.0, row.apply_epoch.0 + 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_applier_waits_and_says_for_whom() {
    let mut rig = Rig::new(ITEM).await;
    let t = rig.table("item").await;
    let first = rig.log.transaction(vec![insert(&t, &[v("1"), v("0")])]).await;
    let (holder, _) = rig.target().claim().await.unwrap();
    rig.start();
    rig.status.wait_for(|status| status.state == ApplyState::Held).await.unwrap();
    let error = rig.status.borrow().error.clone().unwrap();
    assert!(error.contains("'millstream apply reports'") && error.contains("backend"), "{error}");
    drop(holder);
    rig.applied(first).await;
    rig.stop().await;
}

/// Behind a proxy that keeps its connection, a dead daemon's session held the lock for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_without_a_sign_of_life_is_taken_over_from_and_an_idle_applier_is_not() {
    let (mut orphaned, mut idle) = (Rig::new(ITEM).await, Rig::new(ITEM).await);
    idle.start();
    idle.status.wait_for(|status| status.state == ApplyState::Live).await.unwrap();
    let (orphan, _) = orphaned.target().claim().await.unwrap();
    let t = orphaned.table("item").await;
    let end = orphaned.log.transaction(vec![insert(&t, &[v("1"), v("0")])]).await;
    orphaned.start();
    let taken = "SELECT count(*) FROM millstream.replica WHERE apply_epoch > 1";
    crate::support::wait::until("the orphan to be ended", 2 * WAIT, async || orphaned.rows(taken).await == "1").await;
    orphaned.applied(end).await;
    orphaned.stop().await;
    drop(orphan);
    // As old by now, with nothing to write.
    let Err(held) = idle.target().claim().await else { panic!("a live applier was taken over from") };
    assert_eq!(held.kind(), ErrorKind::Held);
    assert_eq!(idle.rows("SELECT apply_epoch FROM millstream.replica").await, "1");
    idle.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_of_another_stream_is_refused() {
    let mut rig = Rig::new(ITEM).await;
    let end = rig.log.progress(5).await;
    rig.drain(end).await;
    rig.replica.execute("UPDATE millstream.replica SET stream = '12'").await;
    rig.start();
    let message = rig.halted("ledger_damaged").await;
    assert!(message.contains("12"), "{message}");
}
