//! FAULTS 8: a stream with nothing to say acknowledges all the same, so that the source can recycle its log (I1, I7).

use super::{CATCH_UP, Lane};
use crate::support::wait::until;

const DDL: &str = "CREATE TABLE t (id int PRIMARY KEY)";

#[tokio::test(flavor = "multi_thread")]
async fn writes_to_other_tables_and_databases_do_not_pin_the_log() {
    let lane = Lane::new(DDL).await;
    let _daemon = lane.start().await;
    lane.source.execute("CREATE SCHEMA apart; CREATE TABLE apart.noise (v text)").await;
    for _ in 0..3 {
        lane.source.execute("INSERT INTO apart.noise SELECT repeat('x', 500) FROM generate_series(1, 20000)").await;
        let written = lane.source.value("SELECT pg_current_wal_lsn()").await;
        let confirmed =
            format!("SELECT confirmed_flush_lsn >= '{written}' FROM pg_replication_slots WHERE database = current_database()");
        until("the slot to pass what was written", CATCH_UP, async || lane.source.value(&confirmed).await == "t").await;
    }
    let lag = lane.site.metric("millstream_replica_lag_seconds").await.expect("the metric");
    assert!(lag < 5.0, "an idle pair is not behind: {lag} s");
}
