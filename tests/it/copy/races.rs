//! `init --adopt` beside others: what happens between its counting of rows and its ledger.

use std::sync::Arc;

use millstream::preflight::init::{Adopt, InitOptions, Line, Outcome, init};
use millstream::{Error, ErrorKind};

use super::Pair;
use crate::support::compare;
use crate::support::daemon::Site;
use crate::support::postgres::{PgServer, shared_replica};
use crate::support::wait::LONG;

const TABLE: &str = "CREATE TABLE a (id int PRIMARY KEY, v text); INSERT INTO a SELECT n, 'x' FROM generate_series(1, 100) n";

fn adopt() -> InitOptions {
    InitOptions { adopt: Some(Adopt { at: None }), ..InitOptions::default() }
}

/// Adopts the replica, and does something else right after the rows have been counted.
async fn adopt_and(pair: &Pair, meanwhile: impl Future<Output = ()> + Send) -> Result<Outcome, Error> {
    let (counted, mut told) = tokio::sync::mpsc::unbounded_channel();
    let (go_on, wait) = std::sync::mpsc::channel();
    let options = adopt();
    let adopting = async {
        let mut report = move |line: Line| {
            if matches!(&line, Line::Note(text) if text.contains("counted alike while writers stand still")) {
                counted.send(()).expect("the other side");
                // Holds init up where it is.
                wait.recv_timeout(LONG).expect("the other side");
            }
        };
        init(&pair.config, &pair.queue, &options, &mut report).await
    };
    let others = async {
        told.recv().await.expect("the rows were counted");
        meanwhile.await;
        go_on.send(()).expect("init");
    };
    // On threads of their own: init stands still in the middle.
    std::thread::scope(|scope| {
        let handle = tokio::runtime::Handle::current();
        let adopting = scope.spawn(move || handle.block_on(adopting));
        let handle = tokio::runtime::Handle::current();
        scope.spawn(move || handle.block_on(others));
        tokio::task::block_in_place(|| adopting.join().expect("init"))
    })
}

async fn pair_of(source: &'static PgServer) -> Pair {
    let (source, replica) = (source.new_database().await, shared_replica().await.new_database().await);
    source.execute(TABLE).await;
    replica.execute(TABLE).await;
    Pair::of(source, replica)
}

/// On a shared server other tests' writers never stand still.
async fn quiet_source() -> &'static PgServer {
    static QUIET: tokio::sync::OnceCell<PgServer> = tokio::sync::OnceCell::const_new();
    QUIET.get_or_init(|| PgServer::builder().set("autovacuum", "off").start()).await
}

/// An installation over the pair's queue, for a daemon.
fn site(pair: &Pair) -> Site {
    Site::new(&format!(
        "[source.{name}]\nurl = \"{}\"\ntables = [\"public.*\", \"other.*\"]\n[queue]\nurl = \"embedded:{}\"\n[replica.reports]\nsource = \"{name}\"\nurl = \"{}\"\n\
         [http]\nlisten = \"{{http}}\"\n",
        pair.source.url(),
        pair.folder().display(),
        pair.replica.url(),
        name = pair.shop().name,
    ))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn writers_that_come_back_after_the_count_lose_nothing_and_a_stranger_on_the_replica_is_a_conflict() {
    let _alone = ALONE.lock().await;
    let pair = pair_of(quiet_source().await).await;
    let meanwhile = async {
        pair.source
            .execute("UPDATE a SET v = 'y' WHERE id <= 10; DELETE FROM a WHERE id = 50; INSERT INTO a VALUES (200, 'new')")
            .await;
    };
    assert_eq!(adopt_and(&pair, meanwhile).await.unwrap(), Outcome::Changed);
    let site = site(&pair);
    let daemon = site.start();
    compare::equal(&pair.source, &pair.replica, LONG).await;
    daemon.terminate().await;

    let pair = pair_of(quiet_source().await).await;
    let meanwhile = async { pair.replica.execute("DELETE FROM a WHERE id = 7").await };
    assert_eq!(adopt_and(&pair, meanwhile).await.unwrap(), Outcome::Changed, "nobody can know of it yet");
    let site = self::site(&pair);
    let daemon = site.start();
    pair.source.execute("UPDATE a SET v = 'y' WHERE id = 7").await;
    crate::support::wait::until("a halt with replica_conflict", LONG, async || {
        site.get("/status").await.is_ok_and(|(_, body)| body.contains("\"replica_conflict\""))
    })
    .await;
    daemon.terminate().await;
}

/// The second one found a ledger, wrote nothing into it, said that it had adopted the replica, and left the queue's registration where it stood itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_two_adoptions_at_once_the_later_one_is_told_and_changes_nothing() {
    let _alone = ALONE.lock().await;
    let pair = pair_of(quiet_source().await).await;
    let meanwhile = async {
        let (outcome, lines) = pair.init_with(adopt()).await;
        assert_eq!(outcome.unwrap(), Outcome::Changed, "{lines:?}");
    };
    let error = adopt_and(&pair, meanwhile).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Held, "{error}");
    assert!(error.to_string().contains("another init has made the ledger of replica 'reports'"), "{error}");
    assert_eq!(pair.replica.value("SELECT count(*) FROM millstream.replica").await, "1");
    let registry = Arc::clone(&pair.queue).registry(&pair.shop().name).await.unwrap();
    let registered: millstream::queue::ConsumerProgress = serde_json::from_slice(&registry["consumer/reports"]).unwrap();
    let ledger = pair.replica.value("SELECT cursor ->> 'number' FROM millstream.replica").await;
    assert_eq!(registered.number.0.to_string(), ledger);
    let site = site(&pair);
    pair.source.execute("UPDATE a SET v = 'z'").await;
    let daemon = site.start();
    compare::equal(&pair.source, &pair.replica, LONG).await;
    daemon.terminate().await;
}

/// The tests here need each a moment in which nobody writes on the quiet server.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
