//! A replica's table that somebody replaces while it is copied: rows of its chunks are in the other one, and it went live without them.

use super::first::{COPIED, databases, live, same_keys, site};
use crate::support::compare;
use crate::support::daemon::Site;
use crate::support::postgres::PgDatabase;
use crate::support::wait::{LONG, until};

const SLOWLY: &str = "copy_max_bytes_per_second = \"2KiB\"";
const MADE_ANEW: &str =
    "DROP TABLE a; CREATE TABLE a (id int PRIMARY KEY, v text UNIQUE); CREATE INDEX a_length ON a (length(v))";

/// A pair whose table has a second unique key and an index, with an installation that has been initialised.
async fn pair(more: &str) -> (PgDatabase<'static>, PgDatabase<'static>, Site) {
    let (source, replica) = databases().await;
    source
        .execute(
            "CREATE TABLE a (id int PRIMARY KEY, v text UNIQUE); CREATE INDEX a_length ON a (length(v)); \
             INSERT INTO a SELECT n, md5(n::text) FROM generate_series(1, 600) n; ANALYZE a",
        )
        .await;
    let site = site(&source, &replica, more);
    site.must(&["init"]).await;
    (source, replica, site)
}

async fn complete(source: &PgDatabase<'_>, replica: &PgDatabase<'_>) {
    until("the tables to be live", COPIED, async || live(replica).await).await;
    compare::equal(source, replica, LONG).await;
    source.execute("UPDATE a SET v = v || 'x' WHERE id % 3 = 0; DELETE FROM a WHERE id % 5 = 0").await;
    compare::equal(source, replica, LONG).await;
}

async fn some_loaded(replica: &PgDatabase<'_>) {
    let some = "SELECT count(*) > 0 FROM millstream.copy_chunk WHERE state = 'loaded'";
    until("a chunk to be loaded", LONG, async || replica.value(some).await == "t").await;
}

fn quickly(site: &Site) {
    site.configure(&std::fs::read_to_string(site.configuration()).unwrap().replace("\"2KiB\"", "\"1GiB\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_made_anew_under_its_copy_is_copied_from_its_first_chunk() {
    let (source, replica, site) = pair(SLOWLY).await;
    let daemon = site.start();
    some_loaded(&replica).await;
    // Under loaders that are at work.
    replica.execute(MADE_ANEW).await;
    until("the copy to begin anew", LONG, async || daemon.log().contains("its table on the replica was replaced")).await;
    daemon.terminate().await;
    quickly(&site);
    let daemon = site.start();
    complete(&source, &replica).await;
    same_keys(&source, &replica).await;
    assert!(!site.all_logs().contains("halted"), "{}", site.all_logs());
    daemon.terminate().await;
}

/// What has the name then may hold somebody's rows, and is not emptied.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_with_rows_that_takes_its_name_is_left_alone() {
    let (source, replica, site) = pair(SLOWLY).await;
    let daemon = site.start();
    some_loaded(&replica).await;
    daemon.terminate().await;
    quickly(&site);
    replica
        .execute("ALTER TABLE a RENAME TO mine; CREATE TABLE a (id int PRIMARY KEY, v text); INSERT INTO a VALUES (1, 'mine')")
        .await;
    let daemon = site.start();
    until("the halt", LONG, async || daemon.log().contains("holds rows now; empty it")).await;
    assert_eq!(replica.value("SELECT v FROM a").await, "mine");
    replica.execute("DELETE FROM a").await;
    complete(&source, &replica).await;
    daemon.terminate().await;
}

/// `init` saw another table, which the first change went by: a halt that said to drop it.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_put_aside_before_its_copy_begins_is_not_asked_for_again() {
    let (source, replica, site) = pair("").await;
    replica.execute("INSERT INTO a VALUES (1, 'mine')").await;
    let daemon = site.start();
    until("the halt", LONG, async || daemon.log().contains("holds rows now; empty it")).await;
    replica.execute("ALTER TABLE a RENAME TO mine; CREATE TABLE a (LIKE mine INCLUDING ALL)").await;
    complete(&source, &replica).await;
    assert!(!site.all_logs().contains("schema_mismatch"), "{}", site.all_logs());
    daemon.terminate().await;
}

#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_made_anew_before_it_is_live_does_not_go_live_empty() {
    use std::os::unix::process::ExitStatusExt as _;
    let (source, replica, site) = pair("").await;
    let killed = site.start_with(&[("FAILPOINTS", "copy.going_live=return(kill)")]);
    let ended = killed.wait(COPIED).await;
    assert_eq!(ended.and_then(|status| status.signal()), Some(9), "{}", killed.log_tail());
    replica.execute(MADE_ANEW).await;
    let daemon = site.start();
    complete(&source, &replica).await;
    same_keys(&source, &replica).await;
    daemon.terminate().await;
}
