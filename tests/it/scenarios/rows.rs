//! FAULTS 18, 29-32, 39, 42, 44 and friends: each script's transactions on the source, and both sides equal.

use super::rows_sql::SCRIPTS;
use super::{CATCH_UP, Lane};
use crate::support::compare;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_done_on_the_source_is_what_the_replica_holds() {
    let ddl: String = SCRIPTS.iter().map(|script| script.ddl).collect();
    let lane = Lane::new(&ddl).await;
    let daemon = lane.start().await;
    for script in SCRIPTS {
        for transaction in script.transactions {
            lane.source.execute(transaction).await;
        }
        compare::equal(&lane.source, &lane.replica, CATCH_UP).await;
    }
    // And all of it as one backlog, so that transactions are merged, over rows that are there already.
    daemon.kill();
    for script in SCRIPTS {
        for transaction in script.again {
            lane.source.execute(transaction).await;
        }
    }
    let daemon = lane.start().await;
    lane.equal().await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_were_there_before_are_copied_as_they_are() {
    let ddl: String = SCRIPTS.iter().map(|script| script.ddl).collect();
    let lane = Lane::new(&ddl).await;
    for transaction in SCRIPTS.iter().flat_map(|script| script.transactions) {
        lane.source.execute(transaction).await;
    }
    let _daemon = lane.start().await;
    let compared = lane.equal().await;
    assert!(compared.rows > 100, "{compared:?}");
}
