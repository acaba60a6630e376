//! SIGHUP and `millstream reload`: refused whole or carried, and who is not concerned goes on.

use std::fs;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use super::{CATCH_UP, order, ordered, shows};
use crate::support::compare;
use crate::support::daemon::{Daemon, Site};
use crate::support::postgres::{PgDatabase, shared, shared_replica};
use crate::support::prefix::PrefixReader;
use crate::support::wait::{LONG, until};
use crate::support::workload::{Plan, Workload};
use crate::support::workload_ops::SCHEMA;

async fn databases() -> (PgDatabase<'static>, PgDatabase<'static>) {
    (shared().await.new_database().await, shared_replica().await.new_database().await)
}

/// How often a replica was claimed.
async fn claims(replica: &PgDatabase<'_>, name: &str) -> String {
    replica.value(&format!("SELECT apply_epoch FROM millstream.replica WHERE name = '{name}'")).await
}

async fn at(site: &Site, pointer: &str) -> Value {
    site.status().await.unwrap_or_default().pointer(pointer).cloned().unwrap_or_default()
}

fn text(site: &Site) -> String {
    fs::read_to_string(site.configuration()).unwrap()
}

async fn hang_up(daemon: &Daemon<'_>, says: &str) {
    let before = daemon.log().matches(says).count();
    daemon.signal(Signal::HUP);
    until(&format!("'{says}' in the log"), LONG, async || daemon.log().matches(says).count() > before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_is_not_valid_is_refused_whole_and_the_old_one_goes_on() {
    let (source, replica) = databases().await;
    source.execute("CREATE TABLE a (id int PRIMARY KEY)").await;
    let site = Site::pair(&source, &replica);
    site.must(&["init"]).await;
    let daemon = site.start();
    site.ready(CATCH_UP).await;
    let (good, epoch, claimed) = (text(&site), at(&site, "/sources/shop/epoch").await, claims(&replica, "reports").await);
    let refused = "the reload was refused; what was in force before still is";

    // The first half of it is fine, and is not taken either.
    site.configure(&good.replace("tables =", "copy_workers = 2\ntables =").replace("source = \"shop\"", "source = \"shpo\""));
    hang_up(&daemon, refused).await;
    let why = at(&site, "/daemon/reload_refused").await;
    assert!(why.as_str().is_some_and(|why| why.contains("there is no [source.shpo]")), "{why}");
    let outcome = site.run(&["reload"]).await;
    assert!(outcome.code == Some(78) && outcome.stderr.contains("there is no [source.shpo]"), "{outcome:?}");

    // Valid, and not to be had without a restart.
    let place = "embedded:";
    site.configure(&good.replace(place, "embedded:/nowhere"));
    hang_up(&daemon, refused).await;
    assert!(at(&site, "/daemon/reload_refused").await.as_str().unwrap().contains("queue.url: embedded:"));
    let page = site.run(&["status"]).await.stdout;
    assert!(page.contains("the last reload was refused"), "{page}");
    site.configure(&format!("{}\n[log]\nformat = \"json\"\n", good.replace("tables =", "copy_workers = 2\ntables =")));
    let outcome = site.run(&["reload"]).await;
    assert!(outcome.code == Some(78) && outcome.stderr.contains("log.format: text -> json"), "{outcome:?}");
    assert!(outcome.stderr.contains("Restart the daemon"), "{outcome:?}");

    source.execute("INSERT INTO a VALUES (1)").await;
    compare::equal(&source, &replica, CATCH_UP).await;
    assert_eq!(at(&site, "/daemon/configuration_changed").await, true);
    site.configure(&good);
    hang_up(&daemon, "reloaded").await;
    shows(&site, "/daemon/reload_refused", Value::Null).await;
    assert_eq!(at(&site, "/daemon/configuration_changed").await, false);
    // Nobody was started anew by all that.
    assert_eq!((at(&site, "/sources/shop/epoch").await, claims(&replica, "reports").await), (epoch, claimed));
    assert_eq!(daemon.terminate().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_comes_and_goes_and_comes_back_while_the_other_goes_on_under_load() {
    let (source, replica) = databases().await;
    let second = shared_replica().await.new_database().await;
    source.execute(SCHEMA).await;
    let site = Site::pair(&source, &replica);
    site.must(&["init"]).await;
    let daemon = site.start();
    site.ready(CATCH_UP).await;
    let load = Workload::start(&source.server.options(&source.name), &Plan { seed: 21, ..Plan::default() });
    let reader = PrefixReader::start(&replica.server.options(&replica.name), Duration::from_millis(10));
    let undisturbed = async || (at(&site, "/sources/shop/epoch").await, claims(&replica, "reports").await);
    let before = undisturbed().await;

    let alone = text(&site);
    let both = format!("{alone}\n[replica.second]\nsource = \"shop\"\nurl = \"{}\"\n", second.url());
    site.configure(&both);
    let dry = ordered(&site, &["reload", "--dry-run"]).await;
    assert_eq!((&dry["done"], &dry["changes"]), (&false.into(), &serde_json::json!(["replica.second: added"])));
    assert_eq!(at(&site, "/replicas/second").await, Value::Null, "a dry run changes nothing");
    let done = order(&site, &["reload"]).await;
    assert!(done.code == Some(0) && done.stdout.contains("millstream init --replica second"), "{done:?}");
    shows(&site, "/replicas/second/halt/code", "not_initialized").await;
    site.must(&["init", "--replica", "second"]).await;
    shows(&site, "/replicas/second/state", "live").await;

    // It goes, and what comes meanwhile is kept for it.
    site.configure(&alone);
    let done = ordered(&site, &["reload"]).await;
    assert!(done["notes"][0].as_str().unwrap().contains("millstream teardown --source shop --consumer second"), "{done}");
    assert_eq!(at(&site, "/replicas/second").await, Value::Null);
    let stood = second.value("SELECT cursor::text FROM millstream.replica WHERE name = 'second'").await;
    let applied = at(&site, "/replicas/reports/transactions").await.as_u64().unwrap();
    until("the other to go on", LONG, async || at(&site, "/replicas/reports/transactions").await.as_u64() > Some(applied + 200))
        .await;
    shows(&site, "/sources/shop/stream/consumers/second/configured", false).await;
    assert_eq!(second.value("SELECT cursor::text FROM millstream.replica WHERE name = 'second'").await, stood);

    // As after a typo: it goes on where it was, without a copy.
    site.configure(&both);
    ordered(&site, &["reload"]).await;
    let tally = load.stop().await;
    compare::equal(&source, &second, CATCH_UP).await;
    compare::equal(&source, &replica, CATCH_UP).await;
    assert!(tally.changes() > 0);
    reader.verdict();
    site.ready(CATCH_UP).await;
    assert_eq!(undisturbed().await, before, "the other replica and capture were not started anew");

    // Given up for good, by a command that says so.
    site.configure(&alone);
    ordered(&site, &["reload"]).await;
    site.must(&["teardown", "--source", "shop", "--consumer", "second", "--yes"]).await;
    shows(&site, "/sources/shop/stream/consumers/second", Value::Null).await;
    source.execute("DELETE FROM bulk").await;
    compare::equal(&source, &replica, CATCH_UP).await;
    assert_eq!(undisturbed().await, before);
    assert_eq!(daemon.terminate().await.code(), Some(0));
    assert!(!site.all_logs().contains("panicked"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_comes_and_goes_and_changed_keys_start_anew_who_reads_them() {
    let (source, replica) = databases().await;
    let (crm, contacts) = databases().await;
    for database in [&source, &crm] {
        database.execute("CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1)").await;
    }
    let site = Site::pair(&source, &replica);
    site.must(&["init"]).await;
    let daemon = site.start();
    compare::equal(&source, &replica, CATCH_UP).await;
    site.ready(CATCH_UP).await;
    let alone = text(&site);
    let both = format!(
        "{alone}\n[source.crm]\nurl = \"{}\"\ntables = [\"public.*\"]\n[replica.contacts]\nsource = \"crm\"\nurl = \"{}\"\n",
        crm.url(),
        contacts.url()
    );
    site.configure(&both);
    site.must(&["init", "--source", "crm"]).await;
    hang_up(&daemon, "reloaded").await;
    compare::equal(&crm, &contacts, CATCH_UP).await;
    site.ready(CATCH_UP).await;
    let epochs = async || {
        let capture = async |name: &str| at(&site, &format!("/sources/{name}/epoch")).await.as_u64().unwrap();
        (capture("shop").await, capture("crm").await, claims(&replica, "reports").await, claims(&contacts, "contacts").await)
    };
    let before = epochs().await;

    // Of capture alone; its counters go on.
    let captured = at(&site, "/sources/shop/transactions").await.as_u64().unwrap();
    site.configure(&both.replacen("tables =", "retain_max_bytes = \"1GiB\"\ntables =", 1));
    let done = ordered(&site, &["reload"]).await;
    assert_eq!(done["changes"], serde_json::json!(["source.shop.retain_max_bytes: 50 GiB -> 1 GiB"]));
    assert_eq!(done["restarts"], serde_json::json!(["capture of shop starts anew"]));
    shows(&site, "/sources/shop/retained/budget_bytes", 1_u64 << 30).await;
    until("capture to go on", LONG, async || at(&site, "/sources/shop/epoch").await.as_u64() == Some(before.0 + 1)).await;
    site.ready(CATCH_UP).await;
    assert!(at(&site, "/sources/shop/transactions").await.as_u64().unwrap() >= captured);
    // Of one replica alone.
    site.configure(&text(&site).replace("[replica.contacts]\n", "[replica.contacts]\nmerge_max_changes = 7\n"));
    let done = ordered(&site, &["reload"]).await;
    assert_eq!(done["restarts"], serde_json::json!(["apply to contacts starts anew"]));
    crm.execute("INSERT INTO a SELECT generate_series(2, 50)").await;
    source.execute("INSERT INTO a SELECT generate_series(2, 50)").await;
    compare::equal(&crm, &contacts, CATCH_UP).await;
    compare::equal(&source, &replica, CATCH_UP).await;
    let after = epochs().await;
    assert_eq!((after.0, after.1, &after.2), (before.0 + 1, before.1, &before.2));
    assert_eq!(after.3.parse::<u64>().unwrap(), before.3.parse::<u64>().unwrap() + 1);

    // It goes, and what it leaves at the source is said.
    site.configure(&alone);
    let done = ordered(&site, &["reload"]).await;
    let notes = done["notes"].to_string();
    assert!(notes.contains("source crm is not captured any more, and its slot millstream_crm_"), "{notes}");
    let slot = format!("SELECT count(*) FROM pg_replication_slots WHERE NOT active AND database = '{}'", crm.name);
    until("its slot to be free", LONG, async || crm.value(&slot).await == "1").await;
    crm.execute("INSERT INTO a VALUES (100)").await;
    site.configure(&both);
    ordered(&site, &["reload"]).await;
    compare::equal(&crm, &contacts, CATCH_UP).await;
    assert_eq!(claims(&replica, "reports").await, before.2);
    assert_eq!(daemon.terminate().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_told_and_where_orders_come_by_change_with_it() {
    let (source, replica) = databases().await;
    source.execute("CREATE TABLE a (id int PRIMARY KEY)").await;
    let site = Site::pair(&source, &replica);
    site.must(&["init"]).await;
    let daemon = site.start();
    site.ready(CATCH_UP).await;
    let good = text(&site);
    let socket = site.folder().join("orders.sock");
    site.configure(&format!(
        "{}\n[control]\nsocket = \"{}\"\n[log]\nlevel = \"warn,millstream::control=debug\"\n",
        good.replace("listen =", "ready_max_lag = \"1ms\"\nlisten ="),
        socket.display()
    ));
    hang_up(&daemon, "http.ready_max_lag: 30s -> 1ms").await;
    let late = async || site.get("/readyz").await.is_ok_and(|(code, why)| code == 503 && why.contains("ready_max_lag is 0.0 s"));
    until("another limit", LONG, late).await;
    assert!(order(&site, &["reload"]).await.stdout.contains("nothing differs"));
    assert!(!daemon.log().contains("an order came over the control socket"), "log.level: {}", daemon.log_tail());
    site.configure(&good.replace("[http]", &format!("[control]\nsocket = \"{}\"\n[http]", socket.display())));
    assert_eq!(ordered(&site, &["reload"]).await["done"], true);
    site.ready(CATCH_UP).await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
}
