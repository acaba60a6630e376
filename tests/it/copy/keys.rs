//! Keys that are taken off while a table is loaded are there at the end, whatever came between.

use std::os::unix::process::ExitStatusExt as _;

use super::first::{COPIED, databases, live, same_keys, site};
use crate::support::compare;
use crate::support::daemon::Site;
use crate::support::wait::until;

async fn die_at(site: &Site, name: &str) {
    let daemon = site.start_with(&[("FAILPOINTS", &format!("{name}=return(kill)"))]);
    let ended = daemon.wait(COPIED).await;
    assert_eq!(ended.and_then(|status| status.signal()), Some(9), "{name} was not reached: {ended:?}\n{}", daemon.log_tail());
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_come_back_on_tables_that_lost_their_rows_their_definition_or_their_loader_before_a_chunk_was_loaded() {
    let (source, replica) = databases().await;
    for table in ["deleted", "emptied", "altered", "kept"] {
        let make = format!(
            "CREATE TABLE {table} (id int PRIMARY KEY, v varchar(40)); INSERT INTO {table} SELECT n, md5(n::text) FROM generate_series(1, 400) n; ANALYZE {table}"
        );
        source.execute(&make).await;
    }
    let site = site(&source, &replica, "");
    site.must(&["init"]).await;
    // Every plan is stored before the first chunk is read.
    die_at(&site, "copy.chunk_loaded").await;
    let off = "SELECT count(*) FROM millstream.deferred_ddl WHERE kind = 'key'";
    let keys = "SELECT count(*) FROM pg_constraint WHERE contype = 'p' AND connamespace = 'public'::regnamespace";
    assert_eq!((replica.value(off).await, replica.value(keys).await), ("4".to_owned(), "0".to_owned()));
    assert_eq!(replica.value("SELECT count(*) FROM millstream.copy_chunk WHERE state = 'loaded'").await, "0");

    source.execute("DELETE FROM deleted; TRUNCATE emptied; ALTER TABLE altered ALTER v TYPE varchar(50)").await;
    replica.execute("ALTER TABLE altered ALTER v TYPE varchar(50)").await;
    // Killed as the key is built, and once more behind it.
    die_at(&site, "copy.finishing_key").await;
    die_at(&site, "copy.indexes_built").await;
    let daemon = site.start();
    until("the tables to be live", COPIED, async || live(&replica).await).await;
    compare::equal(&source, &replica, COPIED).await;
    same_keys(&source, &replica).await;
    assert_eq!((replica.value(off).await, replica.value(keys).await), ("0".to_owned(), "4".to_owned()));
    assert!(site.all_logs().contains("first copy starts again"), "no table was begun anew: {}", site.all_logs());
    // A key that is not there would take it.
    for table in ["deleted", "emptied", "altered", "kept"] {
        replica.execute(&format!("INSERT INTO {table} VALUES (-1, 'x')")).await;
        let twice = replica.query(&format!("INSERT INTO {table} VALUES (-1, 'x')")).await;
        assert!(twice.is_err(), "{table} takes a key twice");
        replica.execute(&format!("DELETE FROM {table} WHERE id = -1")).await;
    }
    daemon.terminate().await;
}
