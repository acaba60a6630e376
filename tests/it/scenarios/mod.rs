//! A pair through the real program, from SQL on the source to SQL on the replica: what rows become, what must halt, what goes on.

mod ddl;
mod documented;
mod encodings;
mod halts;
mod histories;
mod hostile;
mod idle;
mod locks;
mod rows;
mod rows_sql;

use std::time::Duration;

use crate::support::compare::{self, Compared};
use crate::support::daemon::{Daemon, Site, pair_configuration};
use crate::support::postgres::{PgDatabase, PgServer, shared, shared_replica};
use crate::support::wait::until;

/// For a pair to become equal, a mendable halt's next attempt included.
const CATCH_UP: Duration = Duration::from_secs(60);

/// A pair of databases with an installation between them that has been initialised.
struct Lane<'s> {
    source: PgDatabase<'s>,
    replica: PgDatabase<'s>,
    site: Site,
}

impl Lane<'static> {
    /// On the common servers.
    async fn new(ddl: &str) -> Self {
        Self::on(shared().await, shared_replica().await, ddl).await
    }

    /// On the common servers, with more lines for the source's table of the configuration.
    async fn with(ddl: &str, lines: &str) -> Self {
        let (source, replica) = (shared().await.new_database().await, shared_replica().await.new_database().await);
        source.execute(ddl).await;
        let configuration = pair_configuration(&source.url(), &replica.url(), "embedded:{folder}/queue");
        let site = Site::new(&configuration.replacen("[source.shop]", &format!("[source.shop]\n{lines}"), 1));
        site.must(&["init"]).await;
        Self { source, replica, site }
    }
}

impl<'s> Lane<'s> {
    /// On servers of the test's own.
    async fn on(source: &'s PgServer, replica: &'s PgServer, ddl: &str) -> Self {
        let source = source.new_database().await;
        let replica = replica.new_database().await;
        source.execute(ddl).await;
        let site = Site::pair(&source, &replica);
        site.must(&["init"]).await;
        Self { source, replica, site }
    }

    /// Starts the daemon and waits until the tables are live.
    async fn start(&self) -> Daemon<'_> {
        let daemon = self.site.start();
        self.site.ready(CATCH_UP).await;
        daemon
    }

    #[track_caller]
    fn equal(&self) -> impl Future<Output = Compared> {
        compare::equal(&self.source, &self.replica, CATCH_UP)
    }

    /// Waits until `/status` names one of these codes. Health must be green (the process works) and readiness red.
    #[track_caller]
    fn halted<'a>(&'a self, codes: &'a [&'a str]) -> impl Future<Output = String> + 'a {
        let place = std::panic::Location::caller();
        async move {
            let named = |body: &str| codes.iter().any(|code| body.contains(&format!("\"{code}\"")));
            let what = format!("a halt with one of {codes:?} ({place})");
            until(&what, CATCH_UP, async || self.site.get("/status").await.is_ok_and(|(_, body)| named(&body))).await;
            assert_eq!(self.site.get("/readyz").await.expect("HTTP").0, 503);
            assert_eq!(self.site.get("/healthz").await.expect("HTTP").0, 200);
            self.site.get("/status").await.expect("HTTP").1
        }
    }

    /// The slot's name: the source has one.
    async fn slot(&self) -> String {
        let sql = format!("SELECT slot_name FROM pg_replication_slots WHERE database = '{}'", self.source.name);
        self.source.value(&sql).await
    }
}

/// The lines around the first that holds a word.
pub fn around<'a>(text: &'a str, word: &str) -> String {
    let lines: Vec<&'a str> = text.lines().collect();
    let at = lines.iter().position(|line| line.contains(word)).unwrap_or(0);
    lines[at.saturating_sub(3)..lines.len().min(at + 3)].join("\n")
}
