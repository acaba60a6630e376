//! FAULTS 12: failover to a physical standby. From PostgreSQL 17 on the slot comes along; before that its absence halts and is never a gap.

use millstream::capture::CaptureState;
use millstream::halt::HaltCode;
use millstream::preflight::check::{Severity, check_source};

use super::rig::Rig;
use crate::support::postgres::PgServer;
use crate::support::template::major_version;
use crate::support::wait::{LONG, eventually, until};

/// Failover slots: PostgreSQL documentation 17, "Logical Replication Failover".
const FAILOVER_SLOTS_SINCE: u32 = 17;

#[tokio::test(flavor = "multi_thread")]
async fn the_stream_goes_on_at_a_promoted_standby_that_has_the_slot_and_halts_at_one_that_has_not() {
    let carried = major_version() >= FAILOVER_SLOTS_SINCE;
    let primary = PgServer::start().await;
    let mut rig = Rig::new(&primary, "CREATE TABLE t (id int PRIMARY KEY, v text)").await;
    rig.db.execute("SELECT pg_create_physical_replication_slot('standby')").await;
    if carried {
        rig.db.execute("ALTER SYSTEM SET synchronized_standby_slots = 'standby'").await;
    }
    let sync = if carried { "sync_replication_slots = on\n" } else { "" };
    let settings = format!("primary_slot_name = 'standby'\nhot_standby_feedback = on\n{sync}");
    let standby = primary.cold_standby_with(&settings).await;

    let capture = rig.start();
    capture.reaches(CaptureState::Streaming).await;
    let there = standby.database(&rig.db.name);
    if carried {
        let query = format!(
            "SELECT count(*)::text FROM pg_replication_slots WHERE slot_name = '{}' AND synced AND NOT temporary AND invalidation_reason IS NULL",
            rig.slot
        );
        until("the slot on the standby", LONG, async || there.value(&query).await == "1").await;
    }
    rig.db.execute("INSERT INTO t VALUES (1, 'before')").await;
    rig.log_after_marker().await;
    primary.crash();
    capture.reaches(CaptureState::Waiting).await;
    until("the row on the standby", LONG, async || there.value("SELECT count(*)::text FROM t").await == "1").await;
    there.value("SELECT pg_promote()::text").await;
    until("the promotion", LONG, async || there.value("SELECT pg_is_in_recovery()::text").await == "false").await;
    capture.stop().await;

    there.execute("INSERT INTO t VALUES (2, 'after')").await;
    rig.source.connect = there.connect();
    let capture = rig.start();
    if carried {
        // The setting came along with the copied folder, and here nobody has that slot: `check` names it, and what mends it is done.
        let (findings, _) = check_source(&rig.source).await;
        let found = findings.into_list().into_iter().find(|finding| finding.check == "failover").unwrap();
        assert!(found.severity == Severity::Error && found.what.contains("standby"), "{found:?}");
        for step in found.remedy.unwrap().steps {
            there.execute(&step).await;
        }
        let log = eventually("the new primary's row", LONG, async || {
            let log = rig.log().await;
            if log.changes().len() >= 2 { Ok(log) } else { Err(log.transactions) }
        })
        .await;
        assert_eq!(log.changes(), ["+t (id=1,v=before)", "+t (id=2,v=after)"]);
        assert_eq!(log.histories.last().unwrap().timeline, 2);
    } else {
        let (code, error) = capture.halts().await;
        assert_eq!(code, HaltCode::SlotMissing, "{error}");
    }
    capture.stop().await;
}
