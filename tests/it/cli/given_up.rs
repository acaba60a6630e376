//! A replica that the configuration no longer names, and codes in what commands say as they end.

use std::time::Duration;

use millstream::Error;
use millstream::cli::exit;
use millstream::halt::HaltCode;

use crate::support::daemon::Site;
use crate::support::postgres::{shared, shared_replica};
use crate::support::wait::until;

const WAIT: Duration = Duration::from_secs(60);

/// Its place kept the queue for ever: `status` named it, `teardown` refused its name, and without it takes the whole source away.
#[tokio::test(flavor = "multi_thread")]
async fn the_command_that_status_prints_gives_a_consumer_up() {
    let source = shared().await.new_database().await;
    let (replica, other) = (shared_replica().await.new_database().await, shared_replica().await.new_database().await);
    source.execute("CREATE TABLE a (id int PRIMARY KEY)").await;
    let site = Site::pair(&source, &replica);
    let with_both = std::fs::read_to_string(site.configuration()).unwrap();
    let without = with_both.clone();
    site.configure(&format!("{with_both}\n[replica.old_one]\nsource = \"shop\"\nurl = \"{}\"\n", other.url()));
    site.must(&["init"]).await;
    let refused = site.run(&["teardown", "--consumer", "old_one", "--yes"]).await;
    assert_eq!(refused.code, Some(78), "{refused:?}");
    let program = format!("millstream -c {}", site.configuration().display());
    assert!(refused.stderr.contains(&format!("{program} teardown --replica old_one")), "{refused:?}");

    site.configure(&without);
    let daemon = site.start();
    site.ready(WAIT).await;
    let listed = async || {
        let status = site.status().await?;
        Some(status["sources"]["shop"]["stream"]["consumers"].get("old_one").is_some())
    };
    until("the stranger to be seen", WAIT, async || listed().await == Some(true)).await;
    let page = site.run(&["status"]).await.stdout;
    let command =
        page.lines().find_map(|line| line.trim().strip_prefix(&format!("{program} teardown "))).expect("a command on a line");
    assert_eq!(command, "--source shop --consumer old_one", "{page}");
    let words: Vec<&str> = ["teardown"].into_iter().chain(command.split(' ')).chain(["--yes"]).collect();
    let said = site.must(&words).await;
    assert!(said.contains("its place in the queue is given up") && said.contains("DROP SCHEMA millstream CASCADE"), "{said}");
    until("the stranger to be gone", WAIT, async || listed().await == Some(false)).await;
    assert!(site.must(&words).await.contains("Nothing is there"));
    site.ready(WAIT).await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_ends_by_a_halt_says_its_code() {
    let source = shared().await.new_database().await;
    let replica = shared_replica().await.new_database().await;
    source.execute("CREATE TABLE a (id int PRIMARY KEY)").await;
    let site = Site::pair(&source, &replica);
    let says = async |arguments: &[&str], code: HaltCode| {
        let outcome = site.run(arguments).await;
        assert_eq!(outcome.code, Some(1), "{outcome:?}");
        let ends = format!("; see `millstream explain {code}`");
        assert!(outcome.stderr.starts_with(&format!("millstream: [{code}] ")), "{outcome:?}");
        assert!(outcome.stderr.trim_end().ends_with(&ends), "{outcome:?}");
    };
    says(&["log", "tail", "shop"], HaltCode::NotInitialized).await;
    site.must(&["init"]).await;
    let drop = format!("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = '{}'", source.name);
    source.query(&drop).await.unwrap();
    says(&["init"], HaltCode::SlotMissing).await;
    site.must(&["teardown", "--yes"]).await;
}

#[test]
fn every_code_is_in_its_exit_message() {
    for code in HaltCode::ALL {
        let message = exit::message(&Error::halt(*code, "words"));
        let wanted =
            if *code == HaltCode::Misconfigured { "millstream: words".to_owned() } else { format!("millstream: [{code}] words") };
        assert!(message.starts_with(&wanted), "{message}");
    }
}
