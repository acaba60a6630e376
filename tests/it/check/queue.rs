//! Findings about the embedded queue's folder.

use millstream::config::{QueueConfig, QueueKind, SourceConfig};
use millstream::preflight::check::{Room, Severity, check_embedded, check_spill, table};

use super::{gone, problem, source_config};
use crate::support::files::Folder;
use crate::support::postgres;

#[test]
fn a_missing_folder_a_small_disk_and_the_table_that_shows_them() {
    let folder = Folder::new("check");
    let queue = |sub: &str, max_bytes| QueueConfig { kind: QueueKind::Embedded { folder: folder.path().join(sub) }, max_bytes };
    let judged = |queue: &QueueConfig| check_embedded(queue, &Room::of(queue, [])).expect("embedded").into_list();
    let look = |sub: &str, max| judged(&queue(sub, max));
    gone(&look("not-here", 1), "folder");
    let nowhere = QueueConfig { kind: QueueKind::Embedded { folder: "/proc/none".into() }, max_bytes: 1 };
    assert_eq!(problem(&judged(&nowhere), "folder").severity, Severity::Error);
    let small = look("not-here", u64::MAX);
    let remedy = problem(&small, "disk_room").remedy.expect("a remedy");
    assert!(remedy.steps[0].starts_with("in [queue]: max_bytes = \""), "{remedy:?}");
    // As printed, without the unit's help.
    let printed = remedy.steps[0].trim_start_matches("in [queue]: max_bytes = \"").trim_end_matches("MiB\"");
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
        let source = SourceConfig { spill_dir: dir, spill_max_bytes: max, ..source_config(source.clone()) };
        let queue = QueueConfig { kind: kafka.clone(), max_bytes: u64::MAX };
        check_spill(&source, &kafka, &Room::of(&queue, [&source])).into_list()
    };
    assert_eq!(problem(&look("/proc/none".into(), 1), "spill_dir").severity, Severity::Error);
    let remedy = problem(&look(folder.path().join("spill"), u64::MAX), "spill_room").remedy.expect("a remedy");
    assert!(remedy.steps[0].starts_with("in [source.shop]: spill_max_bytes = \""), "{remedy:?}");
    let fine = look(folder.path().join("spill"), 1);
    gone(&fine, "spill_room");
    gone(&fine, "spill_dir");
}

/// Each was promised the whole disk: the queue filled it before its own limit, because a spill had taken its part.
#[tokio::test]
async fn a_queue_and_a_spill_on_one_file_system_share_its_room() {
    let folder = Folder::new("shared");
    let queue = |max_bytes| QueueConfig { kind: QueueKind::Embedded { folder: folder.path().join("queue") }, max_bytes };
    let connect = postgres::shared().await.new_database().await.connect();
    let source =
        SourceConfig { spill_dir: folder.path().join("queue/spill"), spill_max_bytes: u64::MAX / 2, ..source_config(connect) };
    let look = |max_bytes| {
        let (queue, room) = (queue(max_bytes), Room::of(&queue(max_bytes), [&source]));
        let mut all = check_embedded(&queue, &room).expect("embedded").into_list();
        all.extend(check_spill(&source, &queue.kind, &room).into_list());
        all
    };
    // Alone it fits.
    gone(&check_embedded(&queue(1 << 20), &Room::of(&queue(1 << 20), [])).expect("embedded").into_list(), "disk_room");
    let found = problem(&look(1 << 20), "disk_room");
    assert!(found.what.contains("on one file system: queue.max_bytes 1 MiB + source.shop.spill_max_bytes"), "{found:?}");
    assert_eq!(found.remedy.expect("a remedy").steps.len(), 2);
    let spill = look(1 << 20).into_iter().find(|f| f.check == "spill_room").expect("spill_room");
    assert!(spill.severity == Severity::Ok && spill.what.contains("counted there"), "{spill:?}");
}

#[test]
fn a_folder_in_memory_is_warned_of() {
    use std::path::Path;
    if !Path::new("/dev/shm").is_dir() {
        return crate::support::skip("a folder in memory: there is no /dev/shm");
    }
    let look = |folder: &Path| {
        let queue = QueueConfig { kind: QueueKind::Embedded { folder: folder.to_owned() }, max_bytes: 1 };
        check_embedded(&queue, &Room::of(&queue, [])).expect("embedded").into_list()
    };
    assert_eq!(problem(&look(Path::new("/dev/shm/not-here")), "file_system").severity, Severity::Warning);
    // The remedy: a folder on a disk, as the repository is on.
    gone(&look(Path::new(env!("CARGO_MANIFEST_DIR"))), "file_system");
}
