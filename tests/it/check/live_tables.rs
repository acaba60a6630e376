//! Live tables that the replica has no more as the ledger knows them. The halt sent to `check`, and `check` said nothing.

use std::time::Duration;

use serde_json::Value;

use crate::support::compare;
use crate::support::daemon::{Site, pair_configuration};
use crate::support::postgres::{PgDatabase, shared, shared_replica};
use crate::support::wait::{LONG, until};

const CATCH_UP: Duration = Duration::from_secs(60);

struct Live {
    source: PgDatabase<'static>,
    replica: PgDatabase<'static>,
    site: Site,
}

impl Live {
    /// Without event triggers.
    async fn new(ddl: &str) -> Self {
        let (source, replica) = (shared().await.new_database().await, shared_replica().await.new_database().await);
        source.execute(ddl).await;
        let configuration = pair_configuration(&source.url(), &replica.url(), "embedded:{folder}/queue");
        let site = Site::new(&configuration.replacen("[source.shop]", "[source.shop]\nschema_changes = \"halt\"", 1));
        site.must(&["init"]).await;
        Self { source, replica, site }
    }

    async fn equal(&self) {
        compare::equal(&self.source, &self.replica, CATCH_UP).await;
    }

    /// The findings of a check that are not fine.
    async fn found(&self, check: &str) -> Vec<Value> {
        let report: Value = serde_json::from_str(&self.site.run(&["check", "--json"]).await.stdout).expect("JSON");
        let all = report["findings"].as_array().expect("findings").iter();
        all.filter(|f| f["check"] == check && f["severity"] != "ok").cloned().collect()
    }

    async fn one(&self, check: &str, place: &str) -> (String, Vec<String>) {
        let found = self.found(check).await;
        assert!(found.len() == 1 && found[0]["remedy"]["place"] == place, "{found:#?}");
        let steps = found[0]["remedy"]["steps"].as_array().expect("steps").iter().map(|step| step.as_str().unwrap().to_owned());
        (found[0]["what"].as_str().unwrap().to_owned(), steps.collect())
    }

    /// Out of the tables that are captured, and in again; `meanwhile` comes when `init` has run without it.
    async fn out_and_in(&self, pattern: &str, meanwhile: &str) {
        let with = std::fs::read_to_string(self.site.configuration()).expect("configuration");
        self.site.configure(&with.replacen("\"public.*\"", &format!("\"public.*\", \"{pattern}\""), 1));
        self.site.run(&["init"]).await;
        self.replica.execute(meanwhile).await;
        let left = format!("SELECT count(*) FROM millstream.copied_table WHERE '!public.' || table_name = '{pattern}'");
        until("it to leave", CATCH_UP, async || {
            self.site.run(&["init"]).await;
            self.replica.value(&left).await == "0"
        })
        .await;
        self.site.configure(&with);
        self.site.must(&["init"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_table_that_was_renamed_or_dropped_is_named_with_what_mends_it() {
    let live = Live::new(
        "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY); CREATE TABLE v (id int PRIMARY KEY); \
         INSERT INTO v VALUES (1), (2)",
    )
    .await;
    let daemon = live.site.start();
    live.site.ready(CATCH_UP).await;
    live.source.execute("INSERT INTO t VALUES (3); INSERT INTO u VALUES (3); INSERT INTO v VALUES (3)").await;
    live.equal().await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
    assert_eq!(live.found("live_table").await, [Value::Null; 0]);

    live.replica.execute("ALTER TABLE t RENAME TO t_old").await;
    let (what, steps) = live.one("live_table", "replica_sql").await;
    assert_eq!(what, "it was renamed to public.t_old here");
    live.replica.execute(&steps[0]).await;
    assert_eq!(live.found("live_table").await, [Value::Null; 0]);

    live.replica.execute("ALTER TABLE t RENAME TO t_old; CREATE TABLE t (id int PRIMARY KEY)").await;
    let (_, steps) = live.one("live_table", "person").await;
    assert!(steps[0].contains("give the table that is called public.t here the name"), "{steps:?}");
    live.replica.execute(&format!("DROP TABLE t; {}", steps[1])).await;
    assert_eq!(live.found("live_table").await, [Value::Null; 0]);

    live.source.execute("ALTER TABLE u RENAME TO u2; INSERT INTO u2 VALUES (4)").await;
    let (what, steps) = live.one("live_table", "replica_sql").await;
    assert_eq!(what, "it is public.u2 on the source now");
    live.replica.execute(&steps[0]).await;
    assert_eq!(live.found("live_table").await, [Value::Null; 0]);

    live.replica.execute("DROP TABLE v").await;
    let (what, steps) = live.one("live_table", "person").await;
    assert!(what == "the replica has it no more" && steps[0].contains("\"!public.v\""), "{what} {steps:?}");
    let _daemon = live.site.start();
    live.out_and_in("!public.v", "SELECT 1").await;
    live.equal().await;
    assert_eq!(live.found("live_table").await, [Value::Null; 0]);

    live.replica.execute("DROP TABLE v; CREATE TABLE v (id int PRIMARY KEY)").await;
    let (what, steps) = live.one("live_table", "person").await;
    assert!(
        what.contains("is not the table that was copied") && steps[2].contains("UPDATE millstream.copied_table"),
        "{steps:?}"
    );
    live.out_and_in("!public.v", "SELECT 1").await;
    live.equal().await;
}

/// `check` printed a default from a sequence that was not there; and had it been, each row would have got the number of another.
#[tokio::test(flavor = "multi_thread")]
async fn a_serial_column_that_a_live_table_lacks_comes_by_a_new_copy() {
    let live =
        Live::new("CREATE TABLE other (id int PRIMARY KEY); CREATE TABLE w (id int PRIMARY KEY, v text); INSERT INTO w SELECT n, 'v' FROM generate_series(9, 1, -1) n")
            .await;
    let _daemon = live.site.start();
    live.site.ready(CATCH_UP).await;
    live.source
        .execute("UPDATE w SET v = 'moved' WHERE id = 9; ALTER TABLE w ADD COLUMN n serial; INSERT INTO w VALUES (10, 'v')")
        .await;
    until("it to halt", LONG, async || {
        live.site.status().await.is_some_and(|status| status["replicas"]["reports"]["halt"]["code"] == "schema_mismatch")
    })
    .await;
    let (what, steps) = live.one("table_fit", "person").await;
    assert!(what.contains("\"n\" is missing") && steps[0].contains("\"!public.w\""), "{what} {steps:?}");
    let drop = steps[0].split_once("drop it here (").and_then(|(_, rest)| rest.split_once(')')).expect("a statement").0;
    live.out_and_in("!public.w", drop).await;
    live.equal().await;
    live.site.ready(CATCH_UP).await;
}

/// The file names other tables than `init` found last: what is installed is at work all the same, and `init` takes the new patterns up.
#[tokio::test(flavor = "multi_thread")]
async fn other_patterns_than_those_installed_are_not_taken_for_nothing_installed() {
    let source = crate::support::postgres::shared().await.new_database().await;
    let replica = crate::support::postgres::shared_replica().await.new_database().await;
    source.execute("CREATE TABLE t (id int PRIMARY KEY)").await;
    let site = Site::pair(&source, &replica);
    site.must(&["init"]).await;
    let configuration = std::fs::read_to_string(site.configuration()).expect("millstream.toml");
    site.configure(&configuration.replace("[\"public.*\"]", "[\"public.*\", \"audit.*\"]"));
    let page = site.run(&["check"]).await.stdout;
    assert!(page.contains("join by the patterns that `init` found last") && !page.contains("changes are not carried"), "{page}");
    site.must(&["init"]).await;
    let page = site.run(&["check"]).await.stdout;
    assert!(!page.contains("found last") && !page.contains("changes are not carried"), "{page}");
}
