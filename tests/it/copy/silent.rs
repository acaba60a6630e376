//! A first copy whose servers fall silent: nothing closes and nothing comes. What takes minutes in earnest is divided here (`DEADLINES`).

use super::first::{COPIED, databases, live, same_keys};
use crate::support::compare;
use crate::support::daemon::{Daemon, Site, pair_configuration};
use crate::support::postgres::PgDatabase;
use crate::support::proxy::{Mode, Proxy, Strike};
use crate::support::wait::{LONG, until};

/// A pair whose connections go through proxies, with a table that is copied in one chunk of 40 MB.
struct Pair {
    source: PgDatabase<'static>,
    replica: PgDatabase<'static>,
    to_source: Proxy,
    to_replica: Proxy,
    site: Site,
}

impl Pair {
    async fn new() -> Self {
        let (source, replica) = databases().await;
        source
            .execute("CREATE TABLE a (id int PRIMARY KEY, v text); INSERT INTO a SELECT n, repeat(md5(n::text), 30) FROM generate_series(1, 40000) n")
            .await;
        let (to_source, to_replica) = (Proxy::start(source.server.port()).await, Proxy::start(replica.server.port()).await);
        let settings = "tables = [\"public.*\"]\ncopy_workers = 1\ncopy_max_bytes_per_second = \"8MiB\"";
        let (from, to) = (source.url_at(to_source.port()), replica.url_at(to_replica.port()));
        let configuration = pair_configuration(&from, &to, "embedded:{folder}/queue")
            .replace("tables = [\"public.*\"]", settings)
            .replace("sslmode=disable", "sslmode=disable&connect_timeout=1");
        let site = Site::new(&configuration);
        site.must(&["init"]).await;
        Self { source, replica, to_source, to_replica, site }
    }

    fn start(&self) -> Daemon<'_> {
        self.site.start_with(&[("DEADLINES", "40")])
    }

    /// Waits until rows have come out of the source, and not all.
    async fn half_way(&self) {
        until("rows to be on their way", COPIED, async || {
            let status = self.site.status().await.unwrap_or_default();
            status["replicas"]["reports"]["copy"]["bytes"].as_f64().is_some_and(|bytes| bytes > 1e6)
        })
        .await;
    }

    /// The copy ends with an error that says this, and a later one completes.
    async fn goes_on(&self, daemon: Daemon<'_>, because: &str, mend: impl FnOnce()) {
        until(&format!("the copy to say '{because}'"), LONG, async || daemon.log().contains(because)).await;
        assert_eq!(daemon.exited(), None, "{}", daemon.log_tail());
        mend();
        until("the tables to be live", COPIED, async || live(&self.replica).await).await;
        compare::equal(&self.source, &self.replica, COPIED).await;
        same_keys(&self.source, &self.replica).await;
        assert!(!daemon.log().contains("halted"), "{}", daemon.log());
        daemon.terminate().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_falls_silent_in_the_middle_of_a_chunk_does_not_hold_the_copy_for_ever() {
    let pair = Pair::new().await;
    let daemon = pair.start();
    pair.half_way().await;
    pair.to_source.set(Mode::Stall);
    // In the middle of the data, or of an answer before it.
    let mend = || {
        pair.to_source.set(Mode::Pass);
        pair.to_source.reset();
    };
    pair.goes_on(daemon, "first copy: table public.a, chunk 0: ", mend).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_falls_silent_does_not_hold_the_copy_for_ever() {
    let pair = Pair::new().await;
    let daemon = pair.start();
    pair.half_way().await;
    pair.to_replica.set(Mode::Stall);
    // Whichever looks first: the applier's session, or whoever watches the loader's.
    pair.goes_on(daemon, "interrupted and goes on by itself error=replica 'reports': first copy: ", || {
        pair.to_replica.set(Mode::Pass)
    })
    .await;
}

/// The server lives and answers; only the session that loads is gone, and nobody told us.
#[tokio::test(flavor = "multi_thread")]
async fn a_loaders_session_that_is_gone_without_a_word_is_missed() {
    let pair = Pair::new().await;
    pair.to_replica.strike_on(b"COPY \"public\".\"a\"", Strike::Muted, 1);
    let daemon = pair.start();
    until("the loader's session to fall silent", COPIED, async || pair.to_replica.strikes() == 1).await;
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
               WHERE application_name = 'millstream copy' AND state = 'idle in transaction' AND datname = current_database()";
    until("the server to end it", LONG, async || pair.replica.value(end).await == "1").await;
    pair.goes_on(daemon, "on the replica is gone", || ()).await;
}
