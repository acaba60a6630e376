//! `init` and `teardown` killed at each of their named places: the next run completes the work, and nothing is left standing on the
//! source that nobody reads (I7).

use std::os::unix::process::ExitStatusExt as _;

use super::CATCH_UP;
use super::failpoints::{Killed, places};
use crate::support::compare;
use crate::support::daemon::Site;
use crate::support::postgres::{PgDatabase, shared, shared_replica};

const TABLE: &str =
    "CREATE TABLE orders (id int PRIMARY KEY, paid bool); INSERT INTO orders SELECT n, true FROM generate_series(1, 50) n";

struct Pair {
    source: PgDatabase<'static>,
    replica: PgDatabase<'static>,
    site: Site,
}

impl Pair {
    async fn new() -> Self {
        let (source, replica) = (shared().await.new_database().await, shared_replica().await.new_database().await);
        source.execute(TABLE).await;
        let site = Site::pair(&source, &replica);
        Self { source, replica, site }
    }

    /// Runs a command that dies at a place.
    async fn die_at(&self, arguments: &[&str], name: &str) {
        let mut command = self.site.command(arguments);
        command.env("FAILPOINTS", format!("{name}=return(kill)"));
        let output = tokio::task::spawn_blocking(move || command.output()).await.expect("join").expect("millstream");
        let said = [output.stdout, output.stderr].concat();
        assert_eq!(output.status.signal(), Some(9), "{name} was not reached: {}", String::from_utf8_lossy(&said));
    }

    /// Slots and publications on the source.
    async fn standing(&self) -> [String; 2] {
        let slots = format!("SELECT count(*) FROM pg_replication_slots WHERE database = '{}'", self.source.name);
        [self.source.value(&slots).await, self.source.value("SELECT count(*) FROM pg_publication").await]
    }

    async fn nothing_is_left(&self, after: &str) {
        assert_eq!(self.standing().await, ["0", "0"], "after {after}");
        let ledger = "SELECT count(*) FROM pg_namespace WHERE nspname = 'millstream'";
        assert_eq!(self.replica.value(ledger).await, "0", "after {after}");
        let stream = self.site.folder().join("queue/shop");
        assert!(!stream.exists(), "{} is left after {after}", stream.display());
    }

    /// One slot, one publication, and rows come by.
    async fn works(&self, after: &str) {
        assert_eq!(self.standing().await, ["1", "1"], "after {after}");
        let daemon = self.site.start();
        self.source.execute("UPDATE orders SET paid = NOT paid; INSERT INTO orders SELECT max(id) + 1 FROM orders").await;
        compare::equal(&self.source, &self.replica, CATCH_UP).await;
        assert_eq!(daemon.terminate().await.code(), Some(0), "after {after}");
    }

    /// An empty replica, as `init` wants it.
    async fn empty_replica(&self) {
        self.replica.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_init_killed_at_any_named_place_is_completed_by_the_next_or_taken_away() {
    let names = places(Killed::Init);
    assert!(names.len() >= 6, "{names:?}");
    let pair = Pair::new().await;
    for name in &names {
        pair.die_at(&["init"], name).await;
        pair.site.must(&["teardown", "--yes"]).await;
        pair.nothing_is_left(&format!("an init killed at {name} and a teardown")).await;
        pair.empty_replica().await;

        pair.die_at(&["init"], name).await;
        // Twice at the same place is no worse, where the place is come by again.
        pair.site.must(&["init"]).await;
        let again = pair.site.must(&["init"]).await;
        assert!(!again.contains("created slot"), "{name}: {again}");
        pair.works(name).await;
        pair.site.must(&["teardown", "--yes"]).await;
        pair.nothing_is_left(name).await;
        pair.empty_replica().await;
    }
}

/// The pair works all the while; what is new is copied once the next `init` is through.
#[tokio::test(flavor = "multi_thread")]
async fn an_init_that_adds_a_table_to_a_live_pair_may_be_killed_at_any_place_on_its_way() {
    let pair = Pair::new().await;
    pair.site.must(&["init"]).await;
    let daemon = pair.site.start();
    compare::equal(&pair.source, &pair.replica, CATCH_UP).await;
    // Slot and stream are there: the other places are not come by.
    let passed = ["init.known_replicas_done", "init.published", "init.stream_begun"];
    for (number, name) in passed.into_iter().enumerate() {
        assert!(places(Killed::Init).contains(name), "{name} is no place");
        let table = format!("added_{number}");
        let create = format!("CREATE TABLE {table} (id int PRIMARY KEY); INSERT INTO {table} SELECT generate_series(1, 20)");
        pair.source.execute(&create).await;
        pair.die_at(&["init"], name).await;
        // Written to between the two, when it may be published already.
        pair.source.execute(&format!("DELETE FROM {table} WHERE id = 3; UPDATE {table} SET id = -id WHERE id < 6")).await;
        pair.source.execute("UPDATE orders SET paid = NOT paid").await;
        pair.site.must(&["init"]).await;
        compare::equal(&pair.source, &pair.replica, CATCH_UP).await;
        assert!(daemon.exited().is_none(), "{}", daemon.log_tail());
    }
    assert_eq!(daemon.terminate().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_teardown_killed_at_any_named_place_is_completed_by_the_next() {
    let names = places(Killed::Teardown);
    assert!(names.len() >= 2, "{names:?}");
    let pair = Pair::new().await;
    for name in &names {
        pair.site.must(&["init"]).await;
        pair.works(name).await;
        pair.die_at(&["teardown", "--yes"], name).await;
        assert_eq!(pair.standing().await, ["0", "0"], "the slot goes first: {name}");
        pair.site.must(&["teardown", "--yes"]).await;
        pair.nothing_is_left(name).await;
        pair.empty_replica().await;
    }
    pair.site.must(&["init"]).await;
    pair.works("both").await;
}
