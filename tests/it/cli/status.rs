//! `millstream status` in 80 columns.

use std::path::Path;

use millstream::cli::render;
use millstream::config::ConfigFile;
use millstream::control::model::{
    Consumer, Copy, Daemon, Halt, NotCarried, Positions, Queue, Rate, Replica, Retained, Sequences, Source, Status, Stream,
};

fn shop() -> Source {
    let text = |text: &str| Some(text.to_owned());
    Source {
        at: "db1:5432/shop".to_owned(),
        state: "streaming".to_owned(),
        positions: Positions {
            source: text("16/B374D848"),
            queue: text("16/B374D000"),
            confirmed: text("16/B374C000"),
            ..Positions::default()
        },
        rate: Rate { transactions_per_second: 56.4, changes_per_second: 12_345.6, bytes_per_second: 1_300_000.0 },
        stream: Stream {
            queued_bytes: Some(36 << 20),
            queued_changes: Some(1_234_567),
            max_bytes: 100 << 30,
            slowest_consumer: text("reports"),
            consumers: [("old_one".to_owned(), Consumer::default())].into(),
            ..Stream::default()
        },
        retained: Retained { bytes: Some(3 << 29), budget_bytes: 50 << 30, budget_seconds: Some(9000), ..Retained::default() },
        tables_not_captured: vec!["public.brand_new".to_owned()],
        tables_to_mend: [("public.brand_new".to_owned(), "ALTER TABLE …".to_owned())].into(),
        ..Source::default()
    }
}

fn replicas() -> Vec<(String, Replica)> {
    let error = "replica 'reports': public.orders: the row with key (id) = (42) to update is not there (transaction 777, position 16/B374D000)";
    let halted = Replica {
        source: "shop".to_owned(),
        at: "db2:5432/shop".to_owned(),
        state: "halted".to_owned(),
        position: Some("16/B3740000".to_owned()),
        lag_seconds: Some(93.25),
        lag_bytes: Some(36 << 20),
        queued_changes: Some(1_234_567),
        halt: Some(Halt {
            code: "replica_conflict".to_owned(),
            mendable: true,
            remedy: millstream::halt::HaltCode::ReplicaConflict.explain().remedy.to_owned(),
        }),
        error: Some(error.to_owned()),
        sequences: Some(Sequences {
            not_carried: ["public.orders_id_seq", "public.s"]
                .map(|name| NotCarried { name: name.to_owned(), reason: "the replica has no sequence of this name".to_owned() })
                .into(),
            ..Sequences::default()
        }),
        ..Replica::default()
    };
    let copying = Replica {
        source: "shop".to_owned(),
        state: "copying".to_owned(),
        queued_changes: Some(500),
        drain_seconds: Some(12.0),
        copy: Some(Copy {
            phase: "loading".to_owned(),
            tables_done: 3,
            tables: 12,
            rows: 1_234_567,
            rows_estimated: Some(2_700_000),
            bytes: 5 << 28,
            rows_per_second: 81_000.0,
            eta_seconds: Some(18.0),
            again: Vec::new(),
        }),
        ..Replica::default()
    };
    vec![("reports".to_owned(), halted), ("search".to_owned(), copying)]
}

fn status() -> Status {
    Status {
        version: 1,
        not_ready: vec!["replica reports is halted: replica_conflict".to_owned(), "replica search is copying".to_owned()],
        daemon: Daemon {
            version: "0.1.0".to_owned(),
            pid: 4711,
            host: "db-relay-1".to_owned(),
            roles: vec!["capture".to_owned(), "apply".to_owned()],
            ..Daemon::default()
        },
        queue: Queue { kind: "embedded".to_owned(), place: "/var/lib/millstream".to_owned(), max_bytes: 100 << 30 },
        sources: [("shop".to_owned(), shop())].into(),
        replicas: replicas().into_iter().collect(),
        ..Status::default()
    }
}

#[test]
fn a_page_says_everything_in_80_columns() {
    let page = render::status(&status(), &ConfigFile::default());
    for line in page.lines() {
        assert!(line.chars().count() <= 80, "{} columns: {line}", line.chars().count());
    }
    for part in [
        "NOT READY",
        "replica reports is halted: replica_conflict",
        "streaming",
        "source 16/B374D848",
        "12,346 changes/s, 56 transactions/s",
        "1,234,567 changes, 36 MiB of 100 GiB; held by reports",
        "old_one not in this daemon's configuration",
        "millstream teardown --source shop --consumer old_one",
        "public.orders_id_seq is not carried: the replica has no sequence of this name (1 more in --json)",
        "1.5 GiB of 50 GiB at the source; ends in 2 h 30 min at this rate",
        "public.brand_new (run `millstream init`)",
        "first, on the source, db1:5432/shop, public.brand_new: ALTER TABLE …",
        "where db2:5432/shop",
        "HALTED",
        "key (id) = (42)",
        "tried again every 10 s",
        "93.2 s",
        "500 changes, about 12 s",
        "loading: 1,234,567 of about 2,700,000 rows",
        "3 of 12 tables",
        "18 s left",
    ] {
        let plain = page.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(plain.contains(part), "'{part}' is not in:\n{page}");
    }
}

#[test]
fn commands_name_a_configuration_that_is_not_the_default_one() {
    let page = render::status(&status(), &ConfigFile::named(Path::new("/srv/m.toml")));
    let plain = page.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in [
        "millstream -c /srv/m.toml teardown --source shop --consumer old_one",
        "public.brand_new (run `millstream -c /srv/m.toml init`)",
    ] {
        assert!(plain.contains(part), "'{part}' is not in:\n{page}");
    }
}

#[test]
fn a_document_with_fields_of_a_later_version_is_read() {
    let mut json = serde_json::to_value(status()).unwrap();
    json["weather"] = "fine".into();
    json["sources"]["shop"]["moon"] = 3.into();
    let read: Status = serde_json::from_value(json).unwrap();
    assert_eq!(read.sources["shop"], shop());
}
