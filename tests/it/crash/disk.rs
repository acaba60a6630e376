//! FAULTS 26: a full disk halts with `no_space`, health red, and the pair goes on by itself when there is room again, or when it can make some.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{CATCH_UP, Pair, Servers};
use crate::support::files::{Folder, give_to_server_user};
use crate::support::postgres::PgServer;
use crate::support::skip;
use crate::support::wait::until;
use crate::support::workload::Plan;

/// A small file system of its own, unmounted in the end.
struct SmallDisk(Folder);

impl SmallDisk {
    fn mount(mib: u32) -> Option<Self> {
        let folder = Folder::new("tmpfs");
        let size = format!("size={mib}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder.path()).output();
        if !mounted.is_ok_and(|output| output.status.success()) {
            skip("a full disk: mounting a tmpfs needs root and CAP_SYS_ADMIN");
            return None;
        }
        give_to_server_user(folder.path());
        Some(Self(folder))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Fills it but for so many bytes; the file to remove for room.
    fn fill_but(&self, bytes: u64) -> PathBuf {
        let file = self.path().join("ballast");
        let stat = rustix::fs::statvfs(self.path()).expect("statvfs");
        let ballast = (stat.f_bavail * stat.f_frsize).saturating_sub(bytes);
        match std::fs::write(&file, vec![7; usize::try_from(ballast).expect("small")]) {
            // Others write meanwhile: then it is full all the sooner.
            Err(error) if error.kind() != std::io::ErrorKind::StorageFull => panic!("ballast: {error}"),
            _ => file,
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(self.path()).status());
    }
}

const FILLER: &str = "CREATE TABLE filler (id int PRIMARY KEY, v text)";

/// So many rows of 10 kB behind an id.
fn fill(behind: u32, rows: u32) -> String {
    format!("INSERT INTO filler SELECT {behind} + i, repeat('x', 10000) FROM generate_series(1, {rows}) i")
}

/// A pair whose queue lies on a small disk, with more tables.
async fn queue_on<'s>(disk: &SmallDisk, servers: &'s Servers, tables: &str) -> Pair<'s> {
    let pair = Pair::new(servers).await;
    let text = std::fs::read_to_string(pair.site.configuration()).expect("millstream.toml");
    let queue = format!("{}/queue", pair.site.folder().display());
    pair.site.must(&["teardown", "--yes"]).await;
    pair.site.configure(&text.replace(&queue, &disk.path().join("queue").display().to_string()));
    pair.replica.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public").await;
    pair.source.execute(tables).await;
    pair.site.must(&["init"]).await;
    pair
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_the_queue_halts_capture_until_there_is_room() {
    let Some(disk) = SmallDisk::mount(256) else { return };
    let servers = Servers::start().await;
    let pair = queue_on(&disk, &servers, "").await;
    let _daemon = pair.site.start();
    pair.site.ready(CATCH_UP).await;
    let reader = pair.reader();
    let workload = pair.load(&Plan { large_rows: 10_000, ..Plan::default() });
    pair.replica.server.freeze();
    let ballast = disk.fill_but(2 << 20);
    pair.halted("no_space").await;
    std::fs::remove_file(ballast).expect("ballast");
    pair.replica.server.thaw();
    pair.verdict(workload, &reader).await;
}

/// Only a running capture trimmed, and capture did not run for want of room: a disk that the log alone had filled stayed full.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_the_log_has_filled_is_drained_by_the_replica_that_comes_back() {
    let Some(disk) = SmallDisk::mount(150) else { return };
    let servers = Servers::start().await;
    let pair = queue_on(&disk, &servers, FILLER).await;
    let _daemon = pair.site.start();
    pair.site.ready(CATCH_UP).await;
    servers.replica.stop().await;
    // More than the disk holds.
    for round in 0..32 {
        pair.source.execute(&fill(round * 500, 500)).await;
    }
    pair.halted("no_space").await;
    // What a large batch left is room enough for a fence: gone as well, to stay.
    disk.fill_but(4 << 20);
    servers.replica.restart().await;
    pair.caught_up().await;
    assert_eq!(pair.replica.value("SELECT count(*)::text FROM filler").await, "16000");
    assert!(!pair.site.all_logs().contains("panicked"));
}

/// Everything that was consumed lay in the one segment in use, which no trimming gives back, and capture waited for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_smaller_than_a_segment_is_used_again_and_again() {
    let Some(disk) = SmallDisk::mount(48) else { return };
    let servers = Servers::start().await;
    let pair = queue_on(&disk, &servers, FILLER).await;
    let _daemon = pair.site.start();
    pair.site.ready(CATCH_UP).await;
    for round in 0..30 {
        // Large transactions and small ones: about six times the disk.
        for (first, rows) in [(0, 500), (500, 10), (510, 10)] {
            pair.source.execute(&fill(round * 1000 + first, rows)).await;
        }
        if round % 5 == 4 {
            pair.caught_up().await;
        }
    }
    pair.caught_up().await;
    assert_eq!(pair.replica.value("SELECT count(*)::text FROM filler").await, "15600");
    assert!(!pair.site.all_logs().contains("panicked"));
}

/// Others fill the disk while the segment in use is full of what every replica has.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_others_have_filled_gets_back_what_was_consumed() {
    let Some(disk) = SmallDisk::mount(150) else { return };
    let servers = Servers::start().await;
    let pair = queue_on(&disk, &servers, FILLER).await;
    let _daemon = pair.site.start();
    pair.site.ready(CATCH_UP).await;
    for round in 0..3 {
        pair.source.execute(&fill(round * 500, 500)).await;
    }
    pair.caught_up().await;
    // What is free from here on is less than the queue leaves.
    disk.fill_but(5 << 20);
    pair.halted("no_space").await;
    pair.caught_up().await;
    pair.source.execute(&fill(2000, 500)).await;
    pair.caught_up().await;
    assert_eq!(pair.replica.value("SELECT count(*)::text FROM filler").await, "2000");
    assert!(!pair.site.all_logs().contains("panicked"));
}

/// The queue has room: only what does not fit into memory has none.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_the_spill_alone_halts_capture_until_there_is_room() {
    let Some(disk) = SmallDisk::mount(64) else { return };
    let servers = Servers::start().await;
    let spill = format!("spill_dir = \"{}\"\nmemory_bytes = \"1MiB\"", disk.path().join("spill").display());
    let pair = Pair::with(&servers, false, &[("[source.shop]", &spill)]).await;
    pair.source.execute("CREATE TABLE filler (id int PRIMARY KEY, v text)").await;
    pair.site.must(&["init"]).await;
    let _daemon = pair.site.start();
    pair.site.ready(CATCH_UP).await;
    let reader = pair.reader();
    let workload = pair.load(&Plan::default());
    let ballast = disk.fill_but(2 << 20);
    pair.source.execute("INSERT INTO filler SELECT i, repeat(md5(i::text), 100) FROM generate_series(1, 3000) i").await;
    pair.halted("no_space").await;
    std::fs::remove_file(ballast).expect("ballast");
    pair.verdict(workload, &reader).await;
    assert_eq!(pair.replica.value("SELECT count(*)::text FROM filler").await, "3000");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_the_replica_is_waited_out() {
    let Some(disk) = SmallDisk::mount(700) else { return };
    let servers =
        Servers::start_with(PgServer::builder(), PgServer::builder().data_in(disk.path()).set("max_wal_size", "64MB")).await;
    let pair = Pair::new(&servers).await;
    let _daemon = pair.site.start();
    pair.site.ready(CATCH_UP).await;
    let reader = pair.reader();
    let workload = pair.load(&Plan { large_rows: 10_000, ..Plan::default() });
    let ballast = disk.fill_but(1 << 20);
    until("/readyz to turn red", CATCH_UP, async || pair.site.get("/readyz").await.is_ok_and(|(code, _)| code == 503)).await;
    std::fs::remove_file(ballast).expect("ballast");
    // A server that ran out of room for its own log ends itself.
    pair.replica.server.restart().await;
    pair.verdict(workload, &reader).await;
}
