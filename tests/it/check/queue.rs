//! Findings about the embedded queue's folder.

use millstream::config::{QueueConfig, QueueKind, SourceConfig};
use millstream::preflight::check::{Severity, check_embedded, check_spill, table};

use super::{gone, problem, source_config};
use crate::support::files::Folder;
use crate::support::postgres;

#[test]
fn a_missing_folder_a_small_disk_and_the_table_that_shows_them() {
    let folder = Folder::new("check");
    let queue = |sub: &str, max_bytes| QueueConfig { kind: QueueKind::Embedded { folder: folder.path().join(sub) }, max_bytes };
    let look = |sub: &str, max| check_embedded(&queue(sub, max)).expect("embedded").into_list();
    gone(&look("not-here", 1), "folder");
    assert_eq!(
        check_embedded(&QueueConfig { kind: QueueKind::Embedded { folder: "/proc/none".into() }, max_bytes: 1 })
            .map(|f| problem(&f.into_list(), "folder").severity),
        Some(Severity::Error)
    );
    let small = look("not-here", u64::MAX);
    let remedy = problem(&small, "disk_room").remedy.expect("a remedy");
    assert!(remedy.steps[0].starts_with("queue.max_bytes = \""), "{remedy:?}");
    // As printed, without the unit's help.
    let printed = remedy.steps[0].trim_start_matches("queue.max_bytes = \"").trim_end_matches("MiB\"");
    gone(&look("not-here", printed.parse::<u64>().expect("MiB") << 20), "disk_room");
    let text = table(&millstream::preflight::check::Report { version: 1, findings: small });
    assert!(text.contains("to think about"), "{text}");
    let long =
        text.lines().filter(|line| !line.contains(&*folder.path().to_string_lossy())).find(|line| line.chars().count() > 80);
    assert_eq!(long, None, "wider than 80 columns");
}

/// Large transactions spill on the daemon's own disk with Kafka too.
#[tokio::test]
async fn where_transactions_spill() {
    let folder = Folder::new("spill");
    let source = postgres::shared().await.new_database().await.connect();
    let kafka = QueueKind::Kafka {
        brokers: "127.0.0.1:1".into(),
        settings: std::collections::BTreeMap::new(),
        topic_prefix: "x.".into(),
        replication_factor: 3,
    };
    let look = |dir: std::path::PathBuf, max| {
        check_spill(&SourceConfig { spill_dir: dir, spill_max_bytes: max, ..source_config(source.clone()) }, &kafka).into_list()
    };
    assert_eq!(problem(&look("/proc/none".into(), 1), "spill_dir").severity, Severity::Error);
    let remedy = problem(&look(folder.path().join("spill"), u64::MAX), "spill_room").remedy.expect("a remedy");
    assert!(remedy.steps[0].starts_with("source.shop.spill_max_bytes = \""), "{remedy:?}");
    let fine = look(folder.path().join("spill"), 1);
    gone(&fine, "spill_room");
    gone(&fine, "spill_dir");
}

#[test]
fn a_folder_in_memory_is_warned_of() {
    use std::path::Path;
    if !Path::new("/dev/shm").is_dir() {
        return crate::support::skip("a folder in memory: there is no /dev/shm");
    }
    let look = |folder: &Path| {
        let queue = QueueConfig { kind: QueueKind::Embedded { folder: folder.to_owned() }, max_bytes: 1 };
        check_embedded(&queue).expect("embedded").into_list()
    };
    assert_eq!(problem(&look(Path::new("/dev/shm/not-here")), "file_system").severity, Severity::Warning);
    // The remedy: a folder on a disk, as the repository is on.
    gone(&look(Path::new(env!("CARGO_MANIFEST_DIR"))), "file_system");
}
