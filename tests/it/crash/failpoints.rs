//! Every named place in the code where a test can kill the process: each is killed at, and the pair is equal afterwards. Those of the
//! daemon here, under load, over either queue; those of `init` and `teardown` in [`super::commands`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

use rand::Rng;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::storm::seed;
use super::{CATCH_UP, Pair, Servers};
use crate::support::kafka;
use crate::support::workload::Plan;

/// Who kills at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Killed {
    /// The daemon over the embedded queue.
    Pair,
    /// The daemon over Kafka.
    Kafka,
    /// `millstream init`.
    Init,
    /// `millstream teardown`.
    Teardown,
    /// The daemon and `millstream quarantine`, in `operate::quarantine`.
    Quarantine,
}

/// By the file that names it: every file with such a place must be in exactly one of these.
const PLACES: &[(&str, Killed)] = &[
    ("apply/", Killed::Pair),
    ("capture/", Killed::Pair),
    ("replica/postgres/added.rs", Killed::Pair),
    ("replica/postgres/replica.rs", Killed::Pair),
    ("replica/postgres/quarantine/", Killed::Quarantine),
    ("queue/embedded/", Killed::Pair),
    ("queue/kafka/", Killed::Kafka),
    ("preflight/init/", Killed::Init),
    ("preflight/teardown.rs", Killed::Teardown),
];
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
    let names = places(Killed::Pair);
    assert!(names.len() >= 5, "{names:?}");
    let mut random = StdRng::seed_from_u64(seed());
    let servers = Servers::start().await;
    let small = [("[source.shop]", "memory_bytes = \"1MiB\"\ncopy_chunk_rows = 10000")];
    let pair = Pair::with(&servers, false, &small).await;
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
        if name.starts_with("added.") {
            // Passed when a table is added, and when it meets the others.
            let table = name.replace('.', "_");
            let create = format!(
                "CREATE TABLE {table} (id int PRIMARY KEY, n int); INSERT INTO {table} SELECT n, n FROM generate_series(1, 500) n"
            );
            pair.source.execute(&create).await;
            pair.site.must(&["init"]).await;
        }
        // Each is passed once while a table is copied again.
        let again = [("recopy.in_place", "item"), ("recopy.live", "event"), ("recopy.planned", "account")];
        if let Some((_, table)) = again.iter().find(|(place, _)| *place == name) {
            pair.site.must(&["table", "recopy", "reports", &format!("public.{table}")]).await;
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

/// Kafka's writer passes each place once a record: killed at the first, and on the way.
#[tokio::test(flavor = "multi_thread")]
async fn over_kafka_a_kill_at_every_named_place_of_the_queue_loses_and_doubles_nothing() {
    let names = places(Killed::Kafka);
    assert!(names.len() >= 2, "{names:?}");
    let mut random = StdRng::seed_from_u64(seed());
    let (servers, kafka) = tokio::join!(Servers::start(), kafka::shared());
    let pair = Pair::over_kafka(&servers, kafka).await;
    let workload = pair.load(&Plan::default());
    let daemon = pair.site.start();
    pair.site.ready(CATCH_UP).await;
    let reader = pair.reader();
    daemon.kill();
    for name in &names {
        for passed in [0, random.random_range(1..60)] {
            die_at(&pair, name, passed).await;
        }
    }
    let daemon = pair.site.start();
    pair.site.ready(CATCH_UP).await;
    pair.verdict(workload, &reader).await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
}

#[test]
fn every_named_place_is_on_one_list_and_no_list_names_what_is_not_there() {
    let found = collected();
    assert!(found.len() >= 10, "{found:?}");
    for (file, names) in &found {
        let lists: Vec<Killed> = PLACES.iter().filter(|(prefix, _)| file.starts_with(prefix)).map(|(_, by)| *by).collect();
        assert_eq!(lists.len(), 1, "{names:?} of {file}: a test must kill there; lists: {lists:?}");
    }
    for (prefix, by) in PLACES {
        assert!(found.keys().any(|file| file.starts_with(prefix)), "{by:?}: nothing is named under {prefix}");
    }
    let running = places(Killed::Pair);
    for name in BUSY {
        assert!(running.contains(*name), "{name} is no place");
    }
}

/// From the sources themselves, so that none is forgotten.
pub fn places(by: Killed) -> BTreeSet<String> {
    let list = |file: &str| PLACES.iter().any(|(prefix, killed)| *killed == by && file.starts_with(prefix));
    collected().into_iter().filter(|(file, _)| list(file)).flat_map(|(_, names)| names).collect()
}

/// Names by file, below `src`.
fn collected() -> BTreeMap<String, Vec<String>> {
    let mut found = BTreeMap::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    collect(&root, &root, &mut found);
    found
}

fn collect(root: &Path, folder: &Path, found: &mut BTreeMap<String, Vec<String>>) {
    for entry in fs::read_dir(folder).expect("src").flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(root, &path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("a source file");
            let file = path.strip_prefix(root).expect("below src").display().to_string();
            let names: Vec<String> =
                text.split("failpoint::hit(\"").skip(1).filter_map(|rest| rest.split('"').next()).map(str::to_owned).collect();
            let calls = text.matches("failpoint::hit").count() + text.matches("fail_point!").count();
            if file != "failpoint.rs" {
                assert_eq!(calls, names.len(), "{file} passes a place whose name cannot be read here");
            }
            if !names.is_empty() {
                found.insert(file, names);
            }
        }
    }
}
