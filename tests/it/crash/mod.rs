//! Whole pairs under load while something is killed, frozen, cut off or filled up.
//!
//! Every test ends alike: the writers stop, what was broken is mended, both sides become equal by plain SQL, the reader of the
//! replica saw only prefixes, and no daemon panicked.

mod clock;
#[cfg(feature = "failpoints")]
mod commands;
mod disk;
#[cfg(feature = "failpoints")]
pub mod failpoints;
mod fsync;
mod network;
#[cfg(feature = "failpoints")]
mod panics;
mod soak;
mod stalls;
mod storm;
mod terminate;
mod two;

use std::time::Duration;

use rand::Rng;

use crate::support::compare::{self, Compared};
use crate::support::daemon::{Site, pair_configuration};
use crate::support::kafka::Kafka;
use crate::support::postgres::{Builder, PgDatabase, PgServer};
use crate::support::prefix::PrefixReader;
use crate::support::proxy::Proxy;
use crate::support::wait::until;
use crate::support::workload::{Plan, Workload};
use crate::support::workload_ops::SCHEMA;

/// For a pair to become equal again after the worst.
const CATCH_UP: Duration = Duration::from_secs(120);
/// Table whose row shows that the replica has everything before it.
const MARKER: &str = "CREATE TABLE marker (id bigint PRIMARY KEY)";

/// Two servers of a test's own.
struct Servers {
    source: PgServer,
    replica: PgServer,
}

impl Servers {
    async fn start() -> Self {
        Self::start_with(PgServer::builder(), PgServer::builder()).await
    }

    async fn start_with(source: Builder, replica: Builder) -> Self {
        let (source, replica) = tokio::join!(source.start(), replica.start());
        Self { source, replica }
    }
}

/// A source with the workload's tables, an empty replica, and an installation between them that `init` has prepared.
struct Pair<'s> {
    source: PgDatabase<'s>,
    replica: PgDatabase<'s>,
    site: Site,
    to_source: Proxy,
    to_replica: Proxy,
}

impl<'s> Pair<'s> {
    /// Straight connections.
    async fn new(servers: &'s Servers) -> Self {
        Self::with(servers, false, &[]).await
    }

    /// Through the proxies.
    async fn proxied(servers: &'s Servers) -> Self {
        Self::with(servers, true, &[]).await
    }

    /// Through a broker, under a topic prefix of its own.
    async fn over_kafka(servers: &'s Servers, kafka: &Kafka) -> Self {
        let queue = format!("kafka://{}", kafka.brokers());
        let spill = ("[source.shop]", "spill_dir = \"{folder}/spill\"");
        let limit = ("[queue]", "max_bytes = \"1GiB\"");
        let section = format!("[queue.kafka]\ntopic_prefix = \"{}\"\nreplication_factor = 1\n", kafka.prefix("crash"));
        Self::over(servers, false, &queue, &[spill, limit, ("", &section)]).await
    }

    /// With more lines of configuration, each in its section.
    async fn with(servers: &'s Servers, proxied: bool, more: &[(&str, &str)]) -> Self {
        Self::over(servers, proxied, "embedded:{folder}/queue", more).await
    }

    /// A line without a section goes to the end.
    async fn over(servers: &'s Servers, proxied: bool, queue: &str, more: &[(&str, &str)]) -> Self {
        let source = servers.source.new_database().await;
        let replica = servers.replica.new_database().await;
        source.execute(SCHEMA).await;
        source.execute(MARKER).await;
        let to_source = Proxy::start(source.server.port()).await;
        let to_replica = Proxy::start(replica.server.port()).await;
        let (source_url, replica_url) = if proxied {
            (source.url_at(to_source.port()), replica.url_at(to_replica.port()))
        } else {
            (source.url(), replica.url())
        };
        let mut configuration = pair_configuration(&source_url, &replica_url, queue);
        for (section, line) in more {
            if section.is_empty() {
                configuration = format!("{configuration}\n{line}");
                continue;
            }
            configuration = configuration.replacen(&format!("{section}\n"), &format!("{section}\n{line}\n"), 1);
        }
        let site = Site::new(&configuration);
        site.must(&["init"]).await;
        Self { source, replica, site, to_source, to_replica }
    }

    fn load(&self, plan: &Plan) -> Workload {
        Workload::start(&self.source.server.options(&self.source.name), plan)
    }

    fn reader(&self) -> PrefixReader {
        PrefixReader::start(&self.replica.server.options(&self.replica.name), Duration::from_millis(10))
    }

    /// Waits until the replica shows everything that is committed on the source now.
    #[track_caller]
    fn caught_up(&self) -> impl Future<Output = ()> {
        let id: i64 = rand::rng().random();
        let look = format!("SELECT 1 FROM marker WHERE id = {id}");
        let place = std::panic::Location::caller();
        async move {
            let put = format!("INSERT INTO marker VALUES ({id}) ON CONFLICT DO NOTHING");
            until("the source to take a row", CATCH_UP, async || self.source.query(&put).await.is_ok()).await;
            let seen = async || self.replica.query(&look).await.is_ok_and(|rows| !rows.is_empty());
            let what = format!("the replica to catch up ({place}); status: {:?}", self.site.get("/status").await);
            until(&what, CATCH_UP, seen).await;
        }
    }

    /// The end of every test here; a daemon must be running.
    async fn verdict(&self, workload: Workload, reader: &PrefixReader) -> Compared {
        let tally = workload.stop().await;
        self.caught_up().await;
        let compared = compare::equal(&self.source, &self.replica, CATCH_UP).await;
        reader.verdict();
        let looks = reader.seen.looks.load(std::sync::atomic::Ordering::Relaxed);
        assert!(
            tally.changes() > 0 && compared.rows > 0 && looks > 0,
            "nothing was proved: {tally:?} {compared:?} {looks} looks"
        );
        let logs = self.site.all_logs();
        assert!(!logs.contains("panicked"), "a daemon panicked:\n{}", crate::scenarios::around(&logs, "panicked"));
        compared
    }

    /// Waits until `/status` shows a code.
    #[track_caller]
    fn halted(&self, code: &str) -> impl Future<Output = ()> {
        let quoted = format!("\"{code}\"");
        async move {
            until(&format!("a halt with {code}"), CATCH_UP, async || {
                self.site.get("/status").await.is_ok_and(|(_, body)| body.contains(&quoted))
            })
            .await;
        }
    }
}
