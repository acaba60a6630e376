//! A source with physical standbys: will the stream survive a failover?
//!
//! PostgreSQL documentation 17, "Logical Replication Failover" and "synchronized_standby_slots".

use sqlx::{PgConnection, Row};

use super::finding::{Findings, Place, Remedy, Side};
use super::server::{RELOAD, ServerFacts};
use crate::postgres::sql::quote_literal;

/// Slots that a standby keeps a copy of.
const FAILOVER_SLOTS_SINCE: i32 = 17;

/// Says what a failover would do, where there is somebody to fail over to.
pub(super) async fn check(findings: &mut Findings, connection: &mut PgConnection, facts: &ServerFacts) -> sqlx::Result<()> {
    // Without pg_read_all_stats the state of every sender is NULL, our own that is ending among them (PostgreSQL source, walsender.c,
    // `pg_stat_get_wal_senders`): then only a physical slot tells a standby. Backups stream as standbys do, and this check's own look at the
    // replication right is a sender that does not stream.
    let row = sqlx::query(
        "WITH senders AS (SELECT r.pid, r.state IS NULL AS hidden, \
                                 (r.application_name ~ 'receive_?wal|basebackup') IS TRUE OR (r.state IN ('backup', 'startup')) IS TRUE AS other \
                          FROM pg_stat_replication r), \
              slots AS (SELECT slot_name::text AS name, slot_type, active_pid, temporary FROM pg_replication_slots) \
         SELECT (SELECT count(*) FROM senders LEFT JOIN slots ON active_pid = pid WHERE NOT other \
                  AND CASE WHEN hidden THEN slot_type = 'physical' ELSE slot_type IS DISTINCT FROM 'logical' END), \
                array(SELECT name FROM slots JOIN senders ON pid = active_pid \
                      WHERE slot_type = 'physical' AND NOT temporary AND NOT other ORDER BY name), \
                coalesce(current_setting('synchronized_standby_slots', true), ''), \
                array(SELECT trim(awaited) FROM unnest(string_to_array(current_setting('synchronized_standby_slots', true), ',')) awaited \
                      WHERE trim(awaited) NOT IN (SELECT name FROM slots WHERE slot_type = 'physical' AND active_pid IS NOT NULL))",
    )
    .fetch_one(connection)
    .await?;
    let (senders, slots, awaited): (i64, Vec<String>, String) = (row.get(0), row.get(1), row.get(2));
    let absent: Vec<String> = row.get(3);
    if !absent.is_empty() {
        findings.error(
            "failover",
            format!("no standby streams by {}, which synchronized_standby_slots names", absent.join(", ")),
            "the server hands the stream nothing until that standby has it",
            Some(awaiting(&slots, &absent)),
        );
        return Ok(());
    }
    if senders == 0 {
        return Ok(());
    }
    if facts.major < FAILOVER_SLOTS_SINCE {
        findings.warn(
            "failover",
            format!("there is a standby, and PostgreSQL {} keeps no copy of logical slots there", facts.major),
            "after a failover the stream halts with slot_missing, and the replicas are copied again",
            Some(Remedy::at(
                Place::Person,
                "upgrade to PostgreSQL 17 or later, or let your cluster manager carry the slot (Patroni: slots)",
            )),
        );
    } else if awaited.trim().is_empty() {
        let why =
            "at a failover a replica may hold what the standby has not received; the stream then halts with history_changed";
        let remedy = if slots.is_empty() {
            Remedy::at(
                Place::Person,
                "give the standby a slot (pg_create_physical_replication_slot, primary_slot_name), then name it in synchronized_standby_slots",
            )
        } else {
            awaiting(&slots, &[])
        };
        findings.warn("failover", "there is a standby, and synchronized_standby_slots is empty", why, Some(remedy));
    } else {
        findings.ok("failover", format!("waits for standby {awaited}; there sync_replication_slots must be on"));
    }
    Ok(())
}

/// Has the server wait for these standbys, without some of them.
fn awaiting(slots: &[String], without: &[String]) -> Remedy {
    let left: Vec<&str> = slots.iter().filter(|slot| !without.contains(slot)).map(String::as_str).collect();
    let statement = if left.is_empty() {
        "ALTER SYSTEM RESET synchronized_standby_slots".to_owned()
    } else {
        format!("ALTER SYSTEM SET synchronized_standby_slots = {}", quote_literal(&left.join(", ")))
    };
    Remedy::sql(Side::Source, statement).then(RELOAD)
}
