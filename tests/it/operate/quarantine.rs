//! `millstream quarantine`: past a transaction that the replica refuses, at somebody's word, with an account for ever.

use serde_json::Value;

use super::{CATCH_UP, shows};
use crate::support::compare;
use crate::support::daemon::{Daemon, Outcome, Site};
use crate::support::postgres::{PgDatabase, shared, shared_replica};
use crate::support::wait::{LONG, eventually, until};

const TABLES: &str = "CREATE TABLE t (id int PRIMARY KEY, v text, n int NOT NULL); INSERT INTO t SELECT n, 'v', n FROM generate_series(1, 10) n; \
    CREATE TABLE u (a int, b text, n int NOT NULL, PRIMARY KEY (a, b)); INSERT INTO u SELECT n, 'k' || n, n FROM generate_series(1, 10) n";
/// The replica takes no larger number in `t`.
const SMALL: &str = "ALTER TABLE t ADD CONSTRAINT small CHECK (n < 1000)";
const NOT_SMALL: &str = "ALTER TABLE t DROP CONSTRAINT small";

struct Pair {
    source: PgDatabase<'static>,
    replica: PgDatabase<'static>,
    site: Site,
}

impl Pair {
    async fn new(ddl: &str) -> Self {
        let (source, replica) = (shared().await.new_database().await, shared_replica().await.new_database().await);
        source.execute(ddl).await;
        let site = Site::pair(&source, &replica);
        site.must(&["init"]).await;
        Self { source, replica, site }
    }

    async fn start(&self) -> Daemon<'_> {
        let daemon = self.site.start();
        self.site.ready(CATCH_UP).await;
        daemon
    }

    /// Waits for a halt with a code at another transaction than `before`; gives the position and the whole error.
    #[track_caller]
    fn halted<'a>(&'a self, code: &'a str, before: &'a str) -> impl Future<Output = (String, String)> + 'a {
        eventually("a halt", LONG, async move || {
            let status = self.site.status().await.unwrap_or_default();
            let reports = &status["replicas"]["reports"];
            let error = reports["error"].as_str().unwrap_or_default().to_owned();
            let position = position_in(&error);
            if reports["halt"]["code"] == code && !position.is_empty() && position != before {
                Ok((position, error))
            } else {
                Err(reports.clone())
            }
        })
    }

    async fn run(&self, arguments: &[&str]) -> Outcome {
        self.site.run(&[&["quarantine"], arguments].concat()).await
    }

    /// Keeps the transaction at a position.
    async fn keep(&self, position: &str) -> Value {
        let outcome = self.run(&["add", "reports", position, "--json"]).await;
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        let answer: Value = serde_json::from_str(&outcome.stdout).unwrap();
        assert_eq!(answer["state"], "kept", "{answer}");
        answer
    }

    async fn refused(&self, arguments: &[&str]) -> String {
        let outcome = self.run(arguments).await;
        assert!(outcome.code == Some(1) && outcome.stdout.starts_with("Refused: "), "{arguments:?}: {outcome:?}");
        outcome.stdout
    }

    #[track_caller]
    fn seen<'a>(&'a self, sql: &'a str, value: &'a str) -> impl Future<Output = ()> + 'a {
        eventually(sql, LONG, async move || {
            // A table may be there only once its schema change is.
            let found = self.replica.query(sql).await.map_err(|e| e.to_string())?;
            let found = found[0][0].clone().unwrap_or_default();
            if found == value { Ok(()) } else { Err(found) }
        })
    }

    #[track_caller]
    fn equal(&self) -> impl Future<Output = compare::Compared> {
        compare::equal(&self.source, &self.replica, CATCH_UP)
    }

    async fn states(&self) -> String {
        let sql = "SELECT coalesce(string_agg(state, ' ' ORDER BY ordinal), '') FROM millstream.quarantine";
        self.replica.value(sql).await
    }
}

/// Of `source transaction XID at POSITION: …`.
fn position_in(error: &str) -> String {
    let at = error.split("source transaction ").nth(1).and_then(|rest| rest.split(" at ").nth(1));
    at.and_then(|rest| rest.split(':').next()).unwrap_or_default().to_owned()
}

/// The metric of what is kept; that of what was cleared stands beside it in any order.
async fn kept(site: &Site) -> Option<f64> {
    let (_, body) = site.get("/metrics").await.ok()?;
    let of_kept = |line: &&str| line.starts_with("millstream_replica_quarantined{") && line.contains("state=\"kept\"");
    body.lines().find(of_kept)?.rsplit(' ').next()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_is_refused_is_kept_whole_and_applied_once_by_retry() {
    let pair = Pair::new(TABLES).await;
    let daemon = pair.start().await;
    pair.replica.execute(SMALL).await;
    pair.source.execute("INSERT INTO t VALUES (20, 'before', 1)").await;
    pair.source
        .execute(
            "BEGIN; UPDATE u SET n = 77 WHERE a = 3; INSERT INTO t VALUES (21, 'sesame', 5000); DELETE FROM t WHERE id = 9; \
             UPDATE u SET b = 'moved' WHERE a = 4; COMMIT",
        )
        .await;
    pair.source.execute("UPDATE u SET n = 50 WHERE a = 5; INSERT INTO t VALUES (22, 'after', 2)").await;
    let (position, error) = pair.halted("replica_constraint", "").await;
    assert!(error.contains("small"), "{error}");
    let wrong = pair.refused(&["add", "reports", "0/1F"]).await;
    assert!(wrong.contains(&format!("stands at the transaction at {position}, not at 0/1F")), "{wrong}");
    assert_eq!(pair.states().await, "");

    let answer = pair.keep(&position).await;
    assert_eq!(
        (&answer["account"]["changes"], &answer["account"]["code"]),
        (&4.into(), &"replica_constraint".into()),
        "{answer}"
    );
    // What came behind it is there; of the transaction nothing is, not even what the replica would have taken.
    pair.seen("SELECT count(*) FROM t WHERE id IN (20, 22)", "2").await;
    let of_it = "SELECT (SELECT count(*) FROM t WHERE id = 21) || ' ' || (SELECT count(*) FROM t WHERE id = 9) || ' ' || \
        (SELECT string_agg(b || n, ',' ORDER BY a) FROM u WHERE a IN (3, 4, 5))";
    assert_eq!(pair.replica.value(of_it).await, "0 1 k33,k44,k550");
    let status = shows(&pair.site, "/replicas/reports/quarantine/kept", 1).await;
    let account = &status["replicas"]["reports"]["quarantine"]["transactions"][0];
    assert_eq!(account["position"], position.as_str(), "{account}");
    assert_eq!((&account["tables"][0]["table"], &account["tables"][1]["table"]), (&"public.t".into(), &"public.u".into()));
    assert_eq!(account["tables"][0]["keys"], serde_json::json!([["21"], ["9"]]), "{account}");
    assert_eq!(account["tables"][1]["keys"], serde_json::json!([["3", "k3"], ["4", "k4"], ["4", "moved"]]), "{account}");
    let (code, why) = pair.site.get("/readyz").await.unwrap();
    assert!(
        code == 503 && why.contains("replica reports has 1 transaction in quarantine, and is not whole since"),
        "{code} {why}"
    );
    assert_eq!(kept(&pair.site).await, Some(1.0));

    // Keys, never values: but where they are asked for.
    let page = pair.site.run(&["status"]).await.stdout;
    assert!(page.contains("NOT WHOLE") && page.contains("(21), (9)") && page.contains("quarantine retry reports"), "{page}");
    let (list, show) = (pair.run(&["list", "reports"]).await.stdout, pair.run(&["show", "reports", &position]).await.stdout);
    assert!(list.contains(&position) && list.contains("public.u: (a, b) = (3, k3), (4, k4), (4, moved)"), "{list}");
    let told = [status.to_string(), page, list, show, pair.site.all_logs()].concat();
    assert!(!told.contains("sesame"), "{told}");
    let values = pair.run(&["show", "reports", &position, "--values"]).await.stdout;
    assert!(values.contains("sesame") && values.lines().filter(|line| line.contains("\"op\"")).count() == 4, "{values}");
    let values = pair.run(&["show", "reports", &position, "--values", "--json"]).await.stdout;
    let values: Value = serde_json::from_str(&values).unwrap();
    assert_eq!(values["changes"][1]["new"], serde_json::json!({ "id": "21", "v": "sesame", "n": "5000" }), "{values}");

    // A later change of a row of it halts, also where it is moved to; others of the same batch go in.
    pair.source.execute("INSERT INTO t VALUES (23, 'fine', 1)").await;
    pair.source.execute("BEGIN; INSERT INTO t VALUES (24, 'fine', 1); UPDATE u SET n = 9 WHERE a = 4; COMMIT").await;
    let (later, error) = pair.halted("quarantined_key", &position).await;
    assert!(error.contains(&position) && error.contains("public.u") && error.contains("key (a, b)=(4, moved)"), "{error}");
    assert_eq!(pair.replica.value("SELECT string_agg(id::text, ',' ORDER BY id) FROM t WHERE id > 20").await, "22,23");

    // As long as the replica refuses it, retry changes nothing.
    let refused = pair.refused(&["retry", "reports"]).await;
    assert!(refused.contains("small") && refused.contains(&position), "{refused}");
    assert_eq!((pair.states().await.as_str(), pair.replica.value(of_it).await.as_str()), ("kept", "0 1 k33,k44,k550"));
    pair.replica.execute(NOT_SMALL).await;
    let done = pair.run(&["retry", "reports"]).await;
    assert!(
        done.code == Some(0)
            && done.stdout.contains(&format!("applied on replica reports: the transaction at {position}, 4 changes")),
        "{done:?}"
    );
    pair.equal().await;
    pair.site.ready(CATCH_UP).await;
    shows(&pair.site, "/replicas/reports/quarantine/transactions/0/state", "applied").await;
    assert_eq!(kept(&pair.site).await, Some(0.0));
    let again = pair.run(&["retry", "reports"]).await;
    assert!(again.code == Some(0) && again.stdout.contains("nothing is kept"), "{again:?}");
    assert_eq!(pair.replica.value("SELECT count(*) FROM millstream.quarantined_piece").await, "0");
    assert_ne!(later, position);

    // The account is the ledger's.
    assert_eq!(daemon.terminate().await.code(), Some(0));
    let _daemon = pair.start().await;
    shows(&pair.site, "/replicas/reports/quarantine/transactions/0/position", position.as_str()).await;
}

/// The order is given while no daemon runs; the next transaction is poison as well, and about the same row.
#[tokio::test(flavor = "multi_thread")]
async fn two_poisons_in_a_row_are_kept_and_applied_in_their_order() {
    let pair = Pair::new(TABLES).await;
    let daemon = pair.start().await;
    pair.replica.execute(SMALL).await;
    pair.source.execute("INSERT INTO t VALUES (30, 'first', 2000)").await;
    pair.source.execute("UPDATE t SET n = 3000, v = 'second' WHERE id = 30").await;
    pair.source.execute("INSERT INTO t VALUES (31, 'third', 4000)").await;
    let (first, _) = pair.halted("replica_constraint", "").await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
    let ordered = pair.run(&["add", "reports", &first]).await;
    assert!(ordered.code == Some(0) && ordered.stdout.starts_with("ordered: "), "{ordered:?}");
    assert_eq!(pair.states().await, "");
    let daemon = pair.site.start();
    let (second, error) = pair.halted("quarantined_key", &first).await;
    assert!(error.contains(&first), "{error}");
    pair.keep(&second).await;
    let (third, error) = pair.halted("replica_constraint", &second).await;
    assert!(error.contains("key (id)=(31)"), "{error}");
    pair.keep(&third).await;
    pair.source.execute("INSERT INTO t VALUES (32, 'fourth', 1)").await;
    pair.seen("SELECT count(*) FROM t WHERE id = 32", "1").await;
    assert_eq!(pair.states().await, "kept kept kept");

    // The later one of two that share a row was cleared: what it did would be lost under the earlier one.
    pair.replica.execute(NOT_SMALL).await;
    let cleared = pair.run(&["clear", "reports", &second]).await;
    assert_eq!(cleared.code, Some(0), "{cleared:?}");
    let refused = pair.refused(&["retry", "reports"]).await;
    assert!(refused.contains(&format!("({second})")) && refused.contains("table recopy reports public.t"), "{refused}");
    assert_eq!(pair.states().await, "kept cleared kept");
    // What the refusal says.
    pair.site.must(&["table", "recopy", "reports", "public.t"]).await;
    until("the table to be copied", LONG, async || pair.states().await == "cured cured cured").await;
    pair.equal().await;
    pair.site.ready(CATCH_UP).await;

    pair.replica.execute(&format!("{SMALL} NOT VALID")).await;
    pair.source.execute("INSERT INTO t VALUES (40, 'first', 2000)").await;
    let (first, _) = pair.halted("replica_constraint", &third).await;
    pair.keep(&first).await;
    pair.source.execute("UPDATE t SET n = 3000, v = 'second' WHERE id = 40").await;
    let (second, _) = pair.halted("quarantined_key", &first).await;
    pair.keep(&second).await;
    pair.source.execute("DELETE FROM t WHERE id = 40; INSERT INTO t VALUES (40, 'again', 6000)").await;
    let (third, _) = pair.halted("quarantined_key", &second).await;
    pair.keep(&third).await;
    pair.replica.execute(NOT_SMALL).await;
    let done = pair.run(&["retry", "reports", "--json"]).await;
    let done: Value = serde_json::from_str(&done.stdout).unwrap();
    let positions: Vec<_> = done["applied"].as_array().unwrap().iter().map(|one| one["position"].as_str().unwrap()).collect();
    assert_eq!(positions, [&*first, &*second, &*third], "{done}");
    pair.equal().await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn clear_drops_the_values_and_lets_the_rows_go_while_the_account_stays() {
    let pair = Pair::new(TABLES).await;
    let _daemon = pair.start().await;
    pair.replica.execute(SMALL).await;
    pair.source.execute("UPDATE t SET n = 5000 WHERE id = 3").await;
    let (position, _) = pair.halted("replica_constraint", "").await;
    pair.keep(&position).await;
    pair.source.execute("UPDATE t SET n = 33 WHERE id = 3").await;
    pair.halted("quarantined_key", &position).await;
    let unknown = pair.refused(&["clear", "reports", "0/1F"]).await;
    assert!(unknown.contains("has no transaction at 0/1F"), "{unknown}");
    assert_eq!(pair.run(&["clear", "reports", &position]).await.code, Some(0));
    pair.seen("SELECT n FROM t WHERE id = 3", "33").await;
    let status = shows(&pair.site, "/replicas/reports/quarantine/cleared", 1).await;
    let quarantine = &status["replicas"]["reports"]["quarantine"];
    assert_eq!(quarantine["transactions"][0]["tables"][0]["keys"], serde_json::json!([["3"]]), "{quarantine}");
    assert!(quarantine["whole_through"].is_string(), "{quarantine}");
    pair.site.ready(CATCH_UP).await;
    let page = pair.site.run(&["status"]).await.stdout;
    assert!(page.contains("NOT WHOLE") && page.contains("0 in quarantine, 1 cleared"), "{page}");
    let show = pair.run(&["show", "reports", &position, "--values"]).await.stdout;
    assert!(show.contains("not kept any more"), "{show}");
    let twice = pair.refused(&["clear", "reports", &position]).await;
    assert!(twice.contains("it is cleared"), "{twice}");
    // Copied again, the replica is whole, whatever was cleared.
    pair.site.must(&["table", "recopy", "reports", "public.t"]).await;
    let status = shows(&pair.site, "/replicas/reports/quarantine/cleared", 0).await;
    let account = &status["replicas"]["reports"]["quarantine"]["transactions"][0];
    assert!(account["state"] == "cured" && account["tables"][0]["cured_at"].is_string(), "{account}");
    pair.equal().await;
}

/// One of two tables is copied again while the replica is halted by its row; retry applies the other's part alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_copied_again_is_cured_and_retry_applies_the_rest() {
    let pair = Pair::new(TABLES).await;
    let _daemon = pair.start().await;
    pair.replica.execute(SMALL).await;
    pair.source.execute("BEGIN; UPDATE u SET n = 7 WHERE a = 3; INSERT INTO t VALUES (21, 'x', 5000); COMMIT").await;
    let (position, _) = pair.halted("replica_constraint", "").await;
    pair.keep(&position).await;
    pair.source.execute("UPDATE u SET n = 8 WHERE a = 3").await;
    pair.halted("quarantined_key", &position).await;
    pair.site.must(&["table", "recopy", "reports", "public.u"]).await;
    pair.seen("SELECT n FROM u WHERE a = 3", "8").await;
    let status = shows(&pair.site, "/replicas/reports/quarantine/transactions/0/tables/0/cured_at", Value::Null).await;
    let account = &status["replicas"]["reports"]["quarantine"]["transactions"][0];
    assert_eq!(account["state"], "kept", "{account}");
    pair.replica.execute(NOT_SMALL).await;
    let retried = async || pair.run(&["retry", "reports"]).await;
    // Until the copy has met the others, it says so.
    let done = eventually("the rest to be applied", LONG, async || {
        let done = retried().await;
        if done.code == Some(0) { Ok(done) } else { Err(done) }
    })
    .await;
    assert!(done.stdout.contains("1 change"), "{done:?}");
    pair.equal().await;
    pair.site.ready(CATCH_UP).await;
}

/// Equality is the server's or stricter: here every row of a table counts.
#[tokio::test(flavor = "multi_thread")]
async fn where_text_does_not_tell_rows_apart_every_row_of_the_table_counts() {
    let pair = Pair::new(
        "CREATE TABLE bare (n int NOT NULL, v text); ALTER TABLE bare REPLICA IDENTITY FULL; INSERT INTO bare VALUES (1, 'a'), (2, 'b'); \
         CREATE TABLE money (id numeric PRIMARY KEY, n int NOT NULL); INSERT INTO money VALUES (1.0, 1), (2, 2); \
         CREATE TABLE other (id int PRIMARY KEY, n int); INSERT INTO other VALUES (1, 1), (2, 2)",
    )
    .await;
    let _daemon = pair.start().await;
    let mut last = String::new();
    for (table, poison, later) in [
        ("bare", "INSERT INTO bare VALUES (5000, 'c')", "UPDATE bare SET v = 'z' WHERE n = 1"),
        ("money", "INSERT INTO money VALUES (3.0, 5000)", "UPDATE money SET n = 3 WHERE id = 2"),
        // A later TRUNCATE is about every row, whoever's key is kept.
        ("other", "INSERT INTO other VALUES (3, 5000)", "TRUNCATE other"),
    ] {
        pair.replica.execute(&format!("ALTER TABLE {table} ADD CONSTRAINT small CHECK (n < 1000)")).await;
        pair.source.execute(poison).await;
        let (position, _) = pair.halted("replica_constraint", &last).await;
        let answer = pair.keep(&position).await;
        let whole = &answer["account"]["tables"][0]["whole"];
        assert_eq!(whole.is_string(), table != "other", "{answer}");
        pair.source.execute(later).await;
        let (touching, error) = pair.halted("quarantined_key", &position).await;
        assert!(error.contains(&position) && error.contains(&format!("public.{table}")), "{error}");
        pair.replica.execute(&format!("ALTER TABLE {table} DROP CONSTRAINT small")).await;
        assert_eq!(pair.run(&["retry", "reports"]).await.code, Some(0));
        pair.equal().await;
        last = touching;
    }
    // A kept TRUNCATE counts for every row as well. Here a table of the replica's own refuses it.
    pair.replica.execute("CREATE TABLE mine (id int REFERENCES other)").await;
    pair.source.execute("INSERT INTO other VALUES (8, 8)").await;
    pair.source.execute("TRUNCATE other").await;
    let (position, _) = pair.halted("replica_constraint", &last).await;
    pair.keep(&position).await;
    pair.source.execute("INSERT INTO other VALUES (9, 9)").await;
    pair.halted("quarantined_key", &position).await;
    pair.replica.execute("DROP TABLE mine").await;
    assert_eq!(pair.run(&["retry", "reports"]).await.code, Some(0));
    pair.equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_kept_is_refused_with_the_reason() {
    let pair = Pair::new(TABLES).await;
    let _daemon = pair.start().await;
    let nothing = pair.refused(&["add", "reports", "0/1F"]).await;
    assert!(nothing.contains("does not stand at a transaction whose rows it refused"), "{nothing}");
    assert_eq!(pair.run(&["list", "nobody"]).await.code, Some(78));
    assert_eq!(pair.run(&["add", "reports", "nonsense"]).await.code, Some(2));
    let none = pair.run(&["list", "reports"]).await;
    assert!(none.code == Some(0) && none.stdout.contains("nothing in quarantine"), "{none:?}");
    assert_eq!(pair.run(&["show", "reports", "0/1F"]).await.code, Some(1));

    // A schema change in it: what comes later needs it.
    pair.replica.execute(SMALL).await;
    pair.source.execute("BEGIN; ALTER TABLE t ADD COLUMN more text; INSERT INTO t VALUES (50, 'x', 5000, 'y'); COMMIT").await;
    let (position, _) = pair.halted("replica_constraint", "").await;
    let refused = pair.refused(&["add", "reports", &position]).await;
    assert!(refused.contains("changes the schema as well"), "{refused}");
    pair.replica.execute(NOT_SMALL).await;
    pair.equal().await;

    // What is mended before it is tried again is applied, not kept.
    pair.site.ready(CATCH_UP).await;
    pair.replica.execute("DELETE FROM t WHERE id = 4").await;
    pair.source.execute("UPDATE t SET n = 44 WHERE id = 4").await;
    let (position, _) = pair.halted("replica_conflict", &position).await;
    pair.replica.execute("INSERT INTO t VALUES (4, 'v', 4)").await;
    let outcome = pair.run(&["add", "reports", &position]).await;
    let taken = outcome.stdout.contains("took the transaction") || outcome.stdout.contains("does not stand at");
    assert!(taken, "{outcome:?}");
    assert_eq!(pair.states().await, "");
    pair.equal().await;

    // Columns that came since were filled with something that is not kept.
    pair.replica.execute(&format!("{SMALL} NOT VALID")).await;
    pair.source.execute("INSERT INTO t VALUES (60, 'x', 7000)").await;
    let (position, _) = pair.halted("replica_constraint", &position).await;
    pair.keep(&position).await;
    pair.source.execute("ALTER TABLE t ADD COLUMN filled int DEFAULT 1; ALTER TABLE t ALTER COLUMN filled SET DEFAULT 2").await;
    let there = "SELECT count(*) FROM pg_attribute WHERE attrelid = 't'::regclass AND attname = 'filled'";
    pair.seen(there, "1").await;
    pair.replica.execute(NOT_SMALL).await;
    let refused = pair.refused(&["retry", "reports"]).await;
    assert!(refused.contains("columns of public.t are others") && refused.contains("table recopy reports public.t"), "{refused}");
    pair.site.must(&["table", "recopy", "reports", "public.t"]).await;
    until("the table to be copied", LONG, async || pair.states().await == "cured").await;
    pair.equal().await;
    assert_eq!(pair.replica.value("SELECT filled FROM t WHERE id = 60").await, "1");
}

/// A renaming that was carried since, and two tables that changed names: what is kept goes where its table is now.
#[tokio::test(flavor = "multi_thread")]
async fn retry_follows_tables_that_were_renamed_since() {
    let pair = Pair::new(TABLES).await;
    let _daemon = pair.start().await;
    pair.replica.execute(SMALL).await;
    pair.source.execute("BEGIN; UPDATE u SET n = 7 WHERE a = 3; INSERT INTO t VALUES (21, 'x', 5000); COMMIT").await;
    let (position, _) = pair.halted("replica_constraint", "").await;
    pair.keep(&position).await;
    pair.source.execute("ALTER TABLE t RENAME TO renamed").await;
    pair.source.execute("INSERT INTO renamed VALUES (22, 'y', 5)").await;
    pair.seen("SELECT count(*) FROM renamed WHERE id = 22", "1").await;
    pair.replica.execute("ALTER TABLE renamed DROP CONSTRAINT small").await;
    let done = pair.run(&["retry", "reports"]).await;
    assert!(done.code == Some(0) && done.stdout.contains(&position), "{done:?}");
    pair.equal().await;

    pair.replica.execute("ALTER TABLE renamed ADD CONSTRAINT small CHECK (n < 1000) NOT VALID").await;
    pair.source.execute("BEGIN; UPDATE u SET n = 8 WHERE a = 3; INSERT INTO renamed VALUES (31, 'x', 6000); COMMIT").await;
    let (position, _) = pair.halted("replica_constraint", &position).await;
    pair.keep(&position).await;
    let swap =
        "BEGIN; ALTER TABLE u RENAME TO aside; ALTER TABLE renamed RENAME TO u; ALTER TABLE aside RENAME TO renamed; COMMIT";
    pair.source.execute(swap).await;
    pair.source.execute("INSERT INTO u VALUES (32, 'y', 5)").await;
    pair.seen("SELECT count(*) FROM pg_attribute WHERE attrelid = 'u'::regclass AND attname = 'id'", "1").await;
    pair.seen("SELECT count(*) FROM u WHERE n = 5 AND v = 'y'", "2").await;
    pair.replica.execute("ALTER TABLE u DROP CONSTRAINT small").await;
    let done = pair.run(&["retry", "reports"]).await;
    assert!(done.code == Some(0) && done.stdout.contains(&position), "{done:?}");
    pair.equal().await;
    pair.site.ready(CATCH_UP).await;
}

/// What a transaction did to a table that is gone nobody sees; the rest of it, and of the account, goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_dropped_ends_its_part_and_retry_applies_the_rest() {
    let pair = Pair::new(&format!("{TABLES}; CREATE TABLE w (id int PRIMARY KEY, n int NOT NULL)")).await;
    let _daemon = pair.start().await;
    pair.replica.execute(SMALL).await;
    pair.source.execute("BEGIN; UPDATE u SET n = 7 WHERE a = 3; INSERT INTO t VALUES (21, 'x', 5000); COMMIT").await;
    let (position, _) = pair.halted("replica_constraint", "").await;
    pair.keep(&position).await;
    pair.source.execute("INSERT INTO t VALUES (22, 'x', 5000)").await;
    let (second, _) = pair.halted("replica_constraint", &position).await;
    pair.keep(&second).await;
    pair.source.execute("DROP TABLE t").await;
    pair.seen("SELECT to_regclass('public.t') IS NULL", "t").await;
    // One that had nothing but the table is over.
    assert_eq!(pair.states().await, "kept dropped");
    assert_eq!(pair.replica.value("SELECT count(DISTINCT ordinal) FROM millstream.quarantined_piece").await, "1");
    let status = shows(&pair.site, "/replicas/reports/quarantine/transactions/1/state", "dropped").await;
    let tables = &status["replicas"]["reports"]["quarantine"]["transactions"][0]["tables"];
    assert!(tables[0]["dropped_at"].is_string() && tables[1]["dropped_at"].is_null(), "{tables}");
    let done = pair.run(&["retry", "reports"]).await;
    assert!(done.code == Some(0) && done.stdout.contains(&format!("the transaction at {position}, 1 change")), "{done:?}");
    assert_eq!(pair.states().await, "applied dropped");
    pair.equal().await;
    pair.site.ready(CATCH_UP).await;
}

/// A schema change that only what is kept stands in the way of says so, and what it says works.
#[tokio::test(flavor = "multi_thread")]
async fn a_schema_change_that_is_refused_for_what_is_kept_names_it() {
    let pair = Pair::new(TABLES).await;
    pair.source.execute("UPDATE t SET v = NULL WHERE id = 3").await;
    let _daemon = pair.start().await;
    pair.replica.execute(SMALL).await;
    pair.source.execute("UPDATE t SET v = 'filled', n = 5000 WHERE id = 3").await;
    let (position, _) = pair.halted("replica_constraint", "").await;
    pair.keep(&position).await;
    pair.source.execute("ALTER TABLE t ALTER COLUMN v SET NOT NULL").await;
    let (_, error) = pair.halted("schema_change_refused", &position).await;
    assert!(error.contains(&position) && error.contains("`millstream quarantine retry reports` first"), "{error}");
    pair.replica.execute(NOT_SMALL).await;
    let done = pair.run(&["retry", "reports"]).await;
    assert_eq!(done.code, Some(0), "{done:?}");
    pair.seen("SELECT attnotnull FROM pg_attribute WHERE attrelid = 't'::regclass AND attname = 'v'", "t").await;
    pair.equal().await;
    pair.site.ready(CATCH_UP).await;
}

/// The refusal quotes a key that the replica cannot store.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_the_replicas_encoding_lacks_is_kept() {
    let (source, server) = (shared().await.new_database().await, shared_replica().await);
    let name = format!("latin_{:06x}", rand::random_range(0..0x00ff_ffff));
    let create = format!("CREATE DATABASE {name} ENCODING 'LATIN1' TEMPLATE template0 LOCALE 'C'");
    server.database("postgres").execute(&create).await;
    let replica = server.database(&name);
    source.execute("CREATE TABLE t (v text PRIMARY KEY, n int NOT NULL)").await;
    let site = Site::pair(&source, &replica);
    site.must(&["init"]).await;
    let pair = Pair { source, replica, site };
    let _daemon = pair.start().await;
    pair.source.execute("INSERT INTO t VALUES ('€', 1)").await;
    pair.source.execute("INSERT INTO t VALUES ('ä', 2)").await;
    let (position, _) = pair.halted("replica_constraint", "").await;
    let answer = pair.keep(&position).await;
    assert_eq!(answer["account"]["tables"][0]["keys"], serde_json::json!([["€"]]), "{answer}");
    pair.seen("SELECT n FROM t WHERE v = 'ä'", "2").await;
}

/// Written by a later version, which this one cannot know.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_later_version_kept_is_left_alone() {
    let pair = Pair::new(TABLES).await;
    let _daemon = pair.start().await;
    pair.replica.execute(SMALL).await;
    pair.source.execute("INSERT INTO t VALUES (21, 'x', 5000)").await;
    let (position, _) = pair.halted("replica_constraint", "").await;
    pair.keep(&position).await;
    pair.replica.execute(NOT_SMALL).await;
    pair.replica.execute("UPDATE millstream.quarantine SET format = format + 1").await;
    for order in [&["retry", "reports"][..], &["show", "reports", &position, "--values"]] {
        let ended = pair.run(order).await;
        assert!(ended.code != Some(0) && ended.stderr.contains("record format 2"), "{ended:?}");
    }
    assert_eq!(pair.states().await, "kept");
    pair.replica.execute("UPDATE millstream.quarantine SET format = format - 1").await;
    assert_eq!(pair.run(&["retry", "reports"]).await.code, Some(0));
    pair.equal().await;
}

/// The daemon is killed before and behind the COMMIT of what is kept, the command before and behind that of `retry`.
#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn a_kill_on_the_way_to_quarantine_or_out_of_it_loses_and_doubles_nothing() {
    use crate::crash::failpoints::{Killed, places};
    let pair = Pair::new(TABLES).await;
    let daemon = pair.start().await;
    pair.replica.execute(SMALL).await;
    daemon.kill();
    let mut last = String::new();
    for (n, place) in places(Killed::Quarantine).iter().enumerate() {
        pair.source
            .execute(&format!(
                "BEGIN; INSERT INTO t VALUES ({0}, 'x', 5000); UPDATE u SET n = n + 1 WHERE a = 1; COMMIT",
                100 + n
            ))
            .await;
        pair.source.execute(&format!("INSERT INTO t VALUES ({}, 'x', 5)", 200 + n)).await;
        let kill = format!("{place}=return(kill)");
        let keeping = ["quarantine.keeping", "quarantine.kept"].contains(&place.as_str());
        let daemon = if keeping { pair.site.start_with(&[("FAILPOINTS", &kill)]) } else { pair.site.start() };
        let (position, _) = pair.halted("replica_constraint", &last).await;
        if keeping {
            let order = ["add", "reports", &position];
            let (_, ended) = tokio::join!(pair.run(&order), daemon.wait(LONG));
            assert!(ended.is_some(), "{place} was not reached");
            let _daemon = pair.site.start();
            until("it to be kept", LONG, async || pair.states().await.ends_with("kept")).await;
        } else {
            pair.keep(&position).await;
            pair.seen(&format!("SELECT count(*) FROM t WHERE id = {}", 200 + n), "1").await;
            pair.replica.execute(NOT_SMALL).await;
            let ended = pair.site.run_with(&["quarantine", "retry", "reports"], &[("FAILPOINTS", &kill)]).await;
            assert_eq!(ended.code, None, "{place} was not reached: {ended:?}");
            drop(daemon);
        }
        last.clone_from(&position);
        assert_eq!(pair.states().await.split(' ').count(), n + 1);
        let _daemon = pair.site.start();
        pair.seen(&format!("SELECT count(*) FROM t WHERE id = {}", 200 + n), "1").await;
        pair.replica.execute("ALTER TABLE t DROP CONSTRAINT IF EXISTS small").await;
        assert_eq!(pair.run(&["retry", "reports"]).await.code, Some(0), "{place}");
        pair.equal().await;
        pair.replica.execute(&format!("{SMALL} NOT VALID")).await;
    }
}
