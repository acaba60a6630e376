//! Every named place in the code where a test can kill the process: each is killed at, under load, and the pair is equal afterwards.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

use rand::Rng;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::storm::seed;
use super::{CATCH_UP, Pair, Servers};
use crate::support::workload::Plan;

/// Reached only by commands or by other queues; their own tests kill there.
const ELSEWHERE: &[&str] = &["kafka.", "init.", "teardown."];
/// Passed many times a second: killed at somewhere on the way, the others at their first time.
const BUSY: &[&str] = &[
    "apply.before_commit",
    "apply.committed",
    "apply.ledger_moved",
    "capture.appended",
    "capture.before_feedback",
    "capture.after_feedback",
    "queue.before_sync",
    "queue.after_sync",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_every_named_place_loses_and_doubles_nothing() {
    let names = names();
    assert!(names.len() >= 5, "{names:?}");
    let mut random = StdRng::seed_from_u64(seed());
    let servers = Servers::start().await;
    let pair = Pair::with(&servers, false, &[("[source.shop]", "memory_bytes = \"1MiB\"")]).await;
    // Places of the first copy come first, while there is one.
    let (copying, running): (Vec<&String>, Vec<&String>) = names.iter().partition(|name| name.starts_with("copy."));
    pair.source.execute("INSERT INTO bulk SELECT n, 9, md5(n::text) FROM generate_series(90000000, 90050000) n").await;
    let workload = pair.load(&Plan::default());
    for name in copying {
        // Chunks are many; every other place is passed once.
        let passed = if name.starts_with("copy.chunk") { random.random_range(0..2) } else { 0 };
        die_at(&pair, name, passed).await;
    }
    let daemon = pair.site.start();
    pair.site.ready(CATCH_UP).await;
    let reader = pair.reader();
    daemon.kill();
    for name in running {
        if name == "capture.spilled" {
            // More than the memory given above.
            pair.source.execute("INSERT INTO bulk SELECT n, 9, md5(n::text) FROM generate_series(100000000, 100050000) n").await;
        }
        let passed = if BUSY.contains(&name.as_str()) { random.random_range(0..30) } else { 0 };
        die_at(&pair, name, passed).await;
    }
    let daemon = pair.site.start();
    pair.site.ready(CATCH_UP).await;
    pair.verdict(workload, &reader).await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
}

async fn die_at(pair: &Pair<'_>, name: &str, times_passed: u64) {
    let action = if times_passed == 0 { "return(kill)".to_owned() } else { format!("{times_passed}*off->return(kill)") };
    let daemon = pair.site.start_with(&[("FAILPOINTS", &format!("{name}={action}"))]);
    let ended = daemon.wait(CATCH_UP).await;
    let signal = ended.and_then(|status| status.signal());
    assert_eq!(
        signal,
        Some(9),
        "{name}={action} was not reached, or the daemon ended otherwise: {ended:?}\n{}",
        daemon.log_tail()
    );
}

/// From the sources themselves, so that none is forgotten.
fn names() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    found.retain(|name| !ELSEWHERE.iter().any(|prefix| name.starts_with(prefix)));
    found
}

fn collect(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).expect("src").flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("a source file");
            let hits = text.split("failpoint::hit(\"").skip(1).filter_map(|rest| rest.split('"').next());
            found.extend(hits.map(str::to_owned));
        }
    }
}
