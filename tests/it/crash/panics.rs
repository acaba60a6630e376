//! A defect in Millstream: work panics with what it had in its hands in the panic's text. The text reaches no log, no status and no metric (threat 4).
//! A task of the daemon ends it with exit code 1, for systemd to start it again; work that a task waits for is that task's error.

use std::time::Duration;

use super::{CATCH_UP, Pair, Servers};
use crate::support::compare;
use crate::support::wait::until;

/// What no log may hold.
const CANARY: &str = "canary-4111111111111111";

/// The task that ends the daemon.
const ENDS: &[(&str, &str)] = &[("apply.before_commit", "apply reports"), ("capture.appended", "capture shop")];
/// Work that others wait for: a loader of the first copy, the queue's own thread, a file of the queue's.
const GOES_ON: &[&str] = &["copy.chunk_loaded", "queue.after_sync", "queue.registry_renamed"];

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_tells_its_place_and_nothing_of_what_was_at_work() {
    let servers = Servers::start().await;
    for (number, place) in GOES_ON.iter().enumerate() {
        let pair = Pair::new(&servers).await;
        change(&pair, 0).await;
        let daemon = pair.site.start_with(&[("FAILPOINTS", &format!("{place}=1*panic({CANARY})"))]);
        until(&format!("the panic at {place}"), CATCH_UP, async || {
            // Every place is passed by a first copy or by changes.
            change(&pair, number).await;
            daemon.log().contains("a task panicked")
        })
        .await;
        said_nothing(&pair, place).await;
        compare::equal(&pair.source, &pair.replica, CATCH_UP).await;
        pair.site.ready(CATCH_UP).await;
        said_nothing(&pair, place).await;
        assert_eq!(daemon.terminate().await.code(), Some(0), "{place}: {}", pair.site.last_log());
    }

    let pair = Pair::new(&servers).await;
    let daemon = pair.site.start();
    pair.site.ready(CATCH_UP).await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
    for (number, (place, task)) in ENDS.iter().enumerate() {
        let daemon = pair.site.start_with(&[("FAILPOINTS", &format!("{place}=1*panic({CANARY})"))]);
        change(&pair, number).await;
        let ended = daemon.wait(CATCH_UP).await.unwrap_or_else(|| panic!("{place}: it runs on\n{}", daemon.log_tail()));
        assert_eq!(ended.code(), Some(1), "{place}");
        let log = daemon.log();
        assert!(log.contains("a task panicked") && log.contains(&format!("task '{task}': panicked")), "{place}: {log}");
        said_nothing(&pair, place).await;
    }
    let daemon = pair.site.start();
    compare::equal(&pair.source, &pair.replica, CATCH_UP).await;
    pair.site.ready(Duration::from_secs(60)).await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
}

async fn change(pair: &Pair<'_>, number: usize) {
    let insert = format!("INSERT INTO bulk SELECT coalesce(max(id), 0) + 1, {number}, 'x' FROM bulk");
    pair.source.execute(&insert).await;
}

async fn said_nothing(pair: &Pair<'_>, place: &str) {
    let log = pair.site.all_logs();
    assert!(!log.contains(CANARY), "{place}: {}", crate::scenarios::around(&log, CANARY));
    for path in ["/status", "/metrics", "/readyz"] {
        if let Ok((_, body)) = pair.site.get(path).await {
            assert!(!body.contains(CANARY), "{place}: {path}: {body}");
        }
    }
}
