//! The replication slot: making it, and what must hold on every connection before it is read (I1, I5).
//!
//! | seen | verdict |
//! |---|---|
//! | no slot of the name | halt `slot_missing` |
//! | another plugin or database | halt `slot_unknown` |
//! | invalidated | halt `slot_invalidated` |
//! | active under another backend | held: wait, saying whose |
//! | another system identifier | halt `history_changed` |
//! | the same timeline, its WAL ends before the queue's end | halt `history_changed`: rewound |
//! | a later timeline that left ours at or past the queue's end | goes on, with a new History in the log |
//! | any other timeline | halt `history_changed` |
//! | `confirmed_flush_lsn` past the queue's end | halt `slot_ahead` |
//!
//! The slot is held before the fence is written (I8), by starting to stream from the slot's own confirmed place: what the log
//! has already is sent again and dropped. While it is held nobody else moves it, so the checks stay true.
//!
//! Rejected: starting at the queue's end. It is known only behind the fence, and then another writer's end may lie further: the
//! connection would have to be dropped and made again until both agree.

use std::time::Duration;

use super::catalog::{major_version, one};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{History, Lsn};
use crate::halt::HaltCode;
use crate::postgres::{PgClient, SimpleRow, quote_literal};

/// The output plugin.
pub const PLUGIN: &str = "pgoutput";
/// First version whose slots can be synchronised to standbys.
const FAILOVER_SINCE: u32 = 17;
/// How often whoever waits for a slot looks at what it waits for.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A slot as `pg_replication_slots` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotRow {
    /// Output plugin.
    pub plugin: String,
    /// Database it decodes.
    pub database: String,
    /// Backend that reads it.
    pub active_pid: Option<i32>,
    /// Everything before is confirmed.
    pub confirmed_flush: Option<Lsn>,
    /// Why it can be read no longer.
    pub invalidated: Option<String>,
}

/// Reads a slot; `None` when there is none of the name.
///
/// # Errors
/// Those of the server.
pub async fn read(client: &mut PgClient, slot: &str) -> Result<Option<SlotRow>> {
    let reason = match major_version(client)? {
        ..=15 => "NULL",
        16 => "CASE WHEN conflicting THEN 'conflict with recovery' END",
        _ => "invalidation_reason",
    };
    let sql = format!(
        "SELECT plugin, database, active_pid, confirmed_flush_lsn, \
                coalesce({reason}, CASE WHEN wal_status = 'lost' THEN 'WAL removed (max_slot_wal_keep_size)' END) AS invalidated \
         FROM pg_catalog.pg_replication_slots WHERE slot_name = {} AND slot_type = 'logical'",
        quote_literal(slot)
    );
    client.simple_query(&sql).await?.first().map(row).transpose()
}

fn row(row: &SimpleRow) -> Result<SlotRow> {
    let optional_lsn = |name| row.optional(name)?.map(str::parse).transpose();
    let pid = row.optional("active_pid")?.map(|text| text.parse::<i32>()).transpose();
    Ok(SlotRow {
        plugin: row.text("plugin")?.to_owned(),
        database: row.text("database")?.to_owned(),
        active_pid: pid.map_err(|e| Error::new(ErrorKind::Malformed, "an active_pid that is no number").with_source(e))?,
        confirmed_flush: optional_lsn("confirmed_flush_lsn")?,
        invalidated: row.optional("invalidated")?.map(str::to_owned),
    })
}

/// Judges what can be judged before the slot is held.
///
/// # Errors
/// Halts as the table above; [`ErrorKind::Held`] without the holder's name ([`holder`] finds it).
pub fn check_usable(row: Option<SlotRow>, history: &History) -> Result<SlotRow> {
    let slot = &history.slot;
    let row = row.ok_or_else(|| Error::halt(HaltCode::SlotMissing, format!("the source has no slot '{slot}'")))?;
    if row.plugin != PLUGIN || row.database != history.database {
        let message = format!(
            "slot '{slot}' decodes database '{}' with {}, not '{}' with {PLUGIN}",
            row.database, row.plugin, history.database
        );
        return Err(Error::halt(HaltCode::SlotUnknown, message));
    }
    if let Some(reason) = &row.invalidated {
        return Err(Error::halt(HaltCode::SlotInvalidated, format!("slot '{slot}' was invalidated: {reason}")));
    }
    Ok(row)
}

/// Judges, while the slot is held, whether the log can be continued from it.
///
/// # Errors
/// A halt with `slot_ahead`.
pub fn check_confirmed(row: &SlotRow, slot: &str, end: Lsn) -> Result<()> {
    match row.confirmed_flush {
        Some(confirmed) if confirmed <= end => Ok(()),
        Some(confirmed) => {
            let message =
                format!("slot '{slot}' is confirmed up to {confirmed}, the queue ends at {end}: what lies between is lost");
            Err(Error::halt(HaltCode::SlotAhead, message))
        }
        None => Err(Error::halt(HaltCode::SlotInvalidated, format!("slot '{slot}' has no confirmed_flush_lsn"))),
    }
}

/// Who a backend is: for people, and to know ourselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Backend.
    pub pid: i32,
    /// Its `application_name`.
    pub application_name: String,
    /// Where it comes from.
    pub client: String,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "pid {}, application_name '{}', client {}", self.pid, self.application_name, self.client)
    }
}

/// Finds out who a backend is; `None` when it has gone.
///
/// # Errors
/// Those of the server.
pub async fn holder(client: &mut PgClient, pid: i32) -> Result<Option<Holder>> {
    let sql = format!(
        "SELECT coalesce(application_name, '') AS name, \
                coalesce(client_hostname, host(client_addr), CASE WHEN client_port = -1 THEN 'local socket' ELSE 'unknown' END) AS client \
         FROM pg_catalog.pg_stat_activity WHERE pid = {pid}"
    );
    let rows = client.simple_query(&sql).await?;
    rows.first()
        .map(|row| Ok(Holder { pid, application_name: row.text("name")?.to_owned(), client: row.text("client")?.to_owned() }))
        .transpose()
}

/// What `IDENTIFY_SYSTEM` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Server {
    /// The cluster.
    pub system_identifier: u64,
    /// Its timeline.
    pub timeline: u32,
    /// How far its WAL is flushed.
    pub flushed: Lsn,
}

/// Asks a server who it is, on a replication connection.
///
/// # Errors
/// Those of the server.
pub async fn identify(replication: &mut PgClient) -> Result<Server> {
    let row = one(replication.simple_query("IDENTIFY_SYSTEM").await?)?;
    Ok(Server { system_identifier: row.parse("systemid")?, timeline: row.parse("timeline")?, flushed: row.parse("xlogpos")? })
}

/// The server's timelines before its present one, oldest first, each with the LSN at which the next one left it.
///
/// # Errors
/// Those of the server; [`ErrorKind::Malformed`] for a history file that is not understood.
pub async fn lineage(replication: &mut PgClient, timeline: u32) -> Result<Vec<(u32, u64)>> {
    if timeline <= 1 {
        return Ok(Vec::new());
    }
    let row = one(replication.simple_query(&format!("TIMELINE_HISTORY {timeline}")).await?)?;
    parse_lineage(row.text("content")?)
}

/// Reads a timeline's history file. Source of the format: PostgreSQL's `timeline.c`: number, switch point and reason, separated by tabs; `#` begins a comment.
///
/// # Errors
/// [`ErrorKind::Malformed`] for a line that is none.
pub fn parse_lineage(content: &str) -> Result<Vec<(u32, u64)>> {
    let bad = |line: &str| Error::new(ErrorKind::Malformed, format!("a line of the timeline's history: '{line}'"));
    let mut lineage = Vec::new();
    for line in content.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let mut fields = line.split_whitespace();
        let (Some(timeline), Some(switch)) = (fields.next(), fields.next()) else { return Err(bad(line)) };
        let switch: Lsn = switch.parse()?;
        lineage.push((timeline.parse().map_err(|_| bad(line))?, switch.0));
    }
    Ok(lineage)
}

/// Judges whether the server continues the log's history. Gives the history to record when it is a later timeline of it.
///
/// # Errors
/// A halt with `history_changed`.
pub fn check_history(known: &History, server: Server, lineage: Vec<(u32, u64)>, end: Lsn) -> Result<Option<History>> {
    let changed = |what: String| Err(Error::halt(HaltCode::HistoryChanged, what));
    if server.system_identifier != known.system_identifier {
        return changed(format!(
            "the source is cluster {}, the log was captured from cluster {}",
            server.system_identifier, known.system_identifier
        ));
    }
    if server.flushed < end {
        return changed(format!(
            "the source's log ends at {}, the queue holds changes up to {end}: the source was restored to the past",
            server.flushed
        ));
    }
    if server.timeline == known.timeline {
        return Ok(None);
    }
    let left = lineage.iter().find(|(timeline, _)| *timeline == known.timeline).map(|(_, switch)| Lsn(*switch));
    match left {
        Some(switch) if switch >= end => Ok(Some(History { timeline: server.timeline, lineage, ..known.clone() })),
        Some(switch) => changed(format!(
            "the source is on timeline {}, which left timeline {} at {switch}, before the queue's end {end}: the queue holds changes that the source lost",
            server.timeline, known.timeline
        )),
        None => changed(format!(
            "the source is on timeline {}, which does not descend from timeline {}",
            server.timeline, known.timeline
        )),
    }
}

/// Makes a slot and gives its start. Waits for every transaction in progress; `waiting` is told each second for whom.
/// `look` is a second connection.
///
/// # Errors
/// Those of the server.
pub async fn create(client: &mut PgClient, look: &mut PgClient, slot: &str, mut waiting: impl FnMut(&str)) -> Result<Lsn> {
    let failover = if major_version(client)? >= FAILOVER_SINCE { ", true" } else { "" };
    let sql = format!(
        "SELECT lsn FROM pg_catalog.pg_create_logical_replication_slot({}, '{PLUGIN}', false, false{failover})",
        quote_literal(slot)
    );
    let pid = client.backend_pid();
    let mut creating = std::pin::pin!(client.simple_query_within(&sql, Duration::MAX / 4));
    loop {
        tokio::select! {
            rows = &mut creating => return one(rows?)?.parse("lsn"),
            () = tokio::time::sleep(LOOK_EVERY) => if let Some(blocker) = blocker(look, pid).await? {
                waiting(&blocker);
            },
        }
    }
}

/// Whom a backend waits for: pid, age and the statement, without values that PostgreSQL does not show to this role anyway.
async fn blocker(look: &mut PgClient, pid: i32) -> Result<Option<String>> {
    let sql = format!(
        "SELECT a.pid, coalesce(extract(epoch FROM now() - a.xact_start)::int8, 0) AS age, coalesce(a.state, '') AS state, \
                coalesce(a.usename, '') AS who, coalesce(a.application_name, '') AS name, coalesce(left(a.query, 120), '') AS query \
         FROM unnest(pg_catalog.pg_blocking_pids({pid})) AS b (pid) JOIN pg_catalog.pg_stat_activity a ON a.pid = b.pid \
         ORDER BY a.xact_start LIMIT 1"
    );
    let rows = look.simple_query(&sql).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    Ok(Some(format!(
        "pid {} of {} ('{}'), {} for {} s, in: {}",
        row.text("pid")?,
        row.text("who")?,
        row.text("name")?,
        row.text("state")?,
        row.text("age")?,
        row.text("query")?
    )))
}

/// Drops a slot if it is there, ending the walsender that reads it. True when there was one.
///
/// # Errors
/// Those of the server.
pub async fn drop(client: &mut PgClient, slot: &str) -> Result<bool> {
    let name = quote_literal(slot);
    for _ in 0..50 {
        let Some(row) = read(client, slot).await? else { return Ok(false) };
        if let Some(pid) = row.active_pid {
            client.simple_query(&format!("SELECT pg_catalog.pg_terminate_backend({pid})")).await?;
        }
        match client.simple_query(&format!("SELECT pg_catalog.pg_drop_replication_slot({name})")).await {
            Ok(_) => return Ok(true),
            // Still active: it takes the walsender a moment to let go.
            Err(error) if error.kind() == ErrorKind::Held => tokio::time::sleep(Duration::from_millis(100)).await,
            Err(error) => return Err(error),
        }
    }
    Err(Error::new(ErrorKind::Held, format!("slot '{slot}' is still being read")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn history() -> History {
        History { system_identifier: 7, timeline: 2, lineage: vec![(1, 0x100)], database: "shop".into(), slot: "s".into() }
    }

    fn verdict(system_identifier: u64, timeline: u32, flushed: u64, lineage: &[(u32, u64)], end: u64) -> Result<Option<History>> {
        let server = Server { system_identifier, timeline, flushed: Lsn(flushed) };
        check_history(&history(), server, lineage.to_vec(), Lsn(end))
    }

    #[test]
    fn only_the_same_or_a_continued_history_is_followed() {
        assert_eq!(verdict(7, 2, 0x500, &[(1, 0x100)], 0x400).unwrap(), None);
        let followed = verdict(7, 3, 0x900, &[(1, 0x100), (2, 0x400)], 0x400).unwrap().unwrap();
        assert_eq!((followed.timeline, followed.lineage.len(), followed.slot.as_str()), (3, 2, "s"));
        let lost = |verdict: Result<Option<History>>| verdict.unwrap_err().kind() == ErrorKind::Halt(HaltCode::HistoryChanged);
        assert!(lost(verdict(8, 2, 0x500, &[], 0x400)), "another cluster");
        assert!(lost(verdict(7, 2, 0x300, &[], 0x400)), "rewound");
        assert!(lost(verdict(7, 3, 0x900, &[(1, 0x100), (2, 0x3FF)], 0x400)), "left before the queue's end");
        assert!(lost(verdict(7, 3, 0x900, &[(1, 0x100)], 0x400)), "not a descendant");
        assert!(lost(verdict(7, 1, 0x900, &[], 0x400)), "an ancestor");
    }

    #[test]
    fn reads_a_timelines_history() {
        let content = "1\t0/3000148\tno recovery target specified\n\n# a comment\n2\t1/A0\tbefore 2000-01-01 00:00:00+00\n";
        assert_eq!(parse_lineage(content).unwrap(), [(1, 0x0300_0148), (2, 0x1_0000_00A0)]);
        assert!(parse_lineage("one two").is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_a_history_or_malformed(content in "([0-9]{0,3}[\\t ][0-9A-F]{0,9}/?[0-9A-F]{0,9}[\\t ]?.{0,5}\n|.{0,20}\n?){0,4}") {
            if let Err(error) = parse_lineage(&content) {
                prop_assert_eq!(error.kind(), ErrorKind::Malformed);
            }
        }

        #[test]
        fn a_history_reads_back(lineage in proptest::collection::vec(any::<(u32, u64)>(), 0..6), reason in "[^\n\r]{0,30}") {
            let line = |(timeline, switch): &(u32, u64)| format!("{timeline}\t{}\t{reason}\n# a comment\n\n", Lsn(*switch));
            let content: String = lineage.iter().map(line).collect();
            prop_assert_eq!(parse_lineage(&content).unwrap(), lineage);
        }
    }

    #[test]
    fn a_slot_that_others_moved_is_ahead() {
        let row = |confirmed| SlotRow {
            plugin: PLUGIN.into(),
            database: "shop".into(),
            active_pid: None,
            confirmed_flush: confirmed,
            invalidated: None,
        };
        assert!(check_confirmed(&row(Some(Lsn(5))), "s", Lsn(5)).is_ok());
        let ahead = check_confirmed(&row(Some(Lsn(6))), "s", Lsn(5)).unwrap_err();
        assert_eq!(ahead.kind(), ErrorKind::Halt(HaltCode::SlotAhead));
        assert!(check_usable(None, &history()).unwrap_err().kind() == ErrorKind::Halt(HaltCode::SlotMissing));
        let other = SlotRow { plugin: "test_decoding".into(), ..row(None) };
        assert!(check_usable(Some(other), &history()).unwrap_err().kind() == ErrorKind::Halt(HaltCode::SlotUnknown));
    }
}
