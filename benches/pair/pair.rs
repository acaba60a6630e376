//! The two servers, and the two competitors between them: PostgreSQL's own subscription, and Millstream.

use std::time::{Duration, Instant};

use crate::support::daemon::{Daemon, Site, pair_configuration};
use crate::support::postgres::{PgDatabase, PgServer};
use crate::support::wait::eventually;

/// Longest that anything here may take.
pub const PATIENCE: Duration = Duration::from_secs(900);

/// Settings of both servers: a small real server's, durable.
pub async fn server() -> PgServer {
    let settings = [
        ("fsync", "on"),
        ("shared_buffers", "512MB"),
        ("max_wal_size", "8GB"),
        ("checkpoint_timeout", "30min"),
        ("max_connections", "60"),
        ("autovacuum", "off"),
        // By default a subscription's worker that was stopped waits up to 5 s for its next start, which is no part of its speed.
        ("wal_retrieve_retry_interval", "10ms"),
    ];
    settings.iter().fold(PgServer::builder(), |builder, (name, value)| builder.set(name, value)).start().await
}

/// Which competitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Competitor {
    /// Subscription with its default, `synchronous_commit = off`.
    Native,
    /// Subscription with `synchronous_commit = on`: equal durability.
    NativeDurable,
    /// Millstream with the embedded queue.
    Millstream,
}

impl Competitor {
    pub const ALL: [Self; 3] = [Self::Native, Self::Millstream, Self::NativeDurable];

    pub fn label(self) -> &'static str {
        match self {
            Self::Native => "subscription (default)",
            Self::NativeDurable => "subscription (synchronous_commit=on)",
            Self::Millstream => "Millstream",
        }
    }
}

/// A source with a schema, and a target database for each competitor; all of them stopped.
pub struct Arena<'s> {
    pub source: PgDatabase<'s>,
    pub native: PgDatabase<'s>,
    pub durable: PgDatabase<'s>,
    pub ours: PgDatabase<'s>,
    pub site: Site,
}

impl<'s> Arena<'s> {
    /// Makes the schema on the source and its copies, a subscription on each native target, and initializes Millstream.
    pub async fn new(source: &'s PgServer, replica: &'s PgServer, schema: &str) -> Self {
        let arena = Self {
            source: source.new_database().await,
            native: replica.new_database().await,
            durable: replica.new_database().await,
            ours: replica.new_database().await,
            site: Site::new(""),
        };
        arena.source.execute(schema).await;
        // Not FOR ALL TABLES: that has Millstream's own tables on the source as well, which the subscriber lacks.
        let publish = "CREATE TABLE marker (n int PRIMARY KEY); CREATE PUBLICATION native FOR TABLES IN SCHEMA public";
        arena.source.execute(publish).await;
        for (target, commit) in [(&arena.native, "off"), (&arena.durable, "on")] {
            target.execute(schema).await;
            target.execute("CREATE TABLE marker (n int PRIMARY KEY)").await;
            let port = source.port();
            let subscribe = format!(
                "CREATE SUBSCRIPTION {0} CONNECTION 'host=127.0.0.1 port={port} user=postgres dbname={1}' PUBLICATION native \
                 WITH (copy_data = false, enabled = false, create_slot = false, slot_name = '{0}', synchronous_commit = '{commit}')",
                target.name, arena.source.name
            );
            arena.source.value(&format!("SELECT pg_create_logical_replication_slot('{}', 'pgoutput')", target.name)).await;
            target.execute(&subscribe).await;
        }
        arena.site.configure(&pair_configuration(&arena.source.url(), &arena.ours.url(), "embedded:{folder}/queue"));
        arena.site.must(&["init"]).await;
        let daemon = arena.site.start();
        arena.site.ready(PATIENCE).await;
        assert!(daemon.terminate().await.success(), "the daemon ends cleanly");
        arena
    }

    pub fn target(&self, who: Competitor) -> &PgDatabase<'s> {
        match who {
            Competitor::Native => &self.native,
            Competitor::NativeDurable => &self.durable,
            Competitor::Millstream => &self.ours,
        }
    }

    pub async fn start(&self, who: Competitor) -> Option<Daemon<'_>> {
        match who {
            Competitor::Millstream => Some(self.site.start()),
            Competitor::Native | Competitor::NativeDurable => {
                let target = self.target(who);
                target.execute(&format!("ALTER SUBSCRIPTION {} ENABLE", target.name)).await;
                None
            }
        }
    }

    pub async fn stop(&self, who: Competitor, daemon: Option<Daemon<'_>>) {
        if let Some(daemon) = daemon {
            assert!(daemon.terminate().await.success(), "the daemon ends cleanly");
            return;
        }
        let target = self.target(who);
        target.execute(&format!("ALTER SUBSCRIPTION {} DISABLE", target.name)).await;
        let gone =
            format!("SELECT count(*)::text FROM pg_stat_subscription WHERE subname = '{}' AND pid IS NOT NULL", target.name);
        eventually("the subscription's worker to end", PATIENCE, async || match target.value(&gone).await.as_str() {
            "0" => Ok(()),
            n => Err(n.to_owned()),
        })
        .await;
    }

    /// Waits until a marker is visible at a target; time since `since`.
    pub async fn visible(&self, who: Competitor, marker: u32, since: Instant) -> Duration {
        let ask = format!("SELECT count(*)::text FROM marker WHERE n = {marker}");
        eventually("the marker", PATIENCE, async || match self.target(who).value(&ask).await.as_str() {
            "1" => Ok(since.elapsed()),
            n => Err(format!("{n}\n{}", if who == Competitor::Millstream { self.site.last_log() } else { String::new() })),
        })
        .await
    }

    /// Compares whole tables of the source with every target's; panics when a round is void.
    pub async fn verify(&self, tables: &[&str]) {
        for table in tables {
            let sum = format!(
                "SELECT count(*)::text || ' rows, sum ' || coalesce(sum(hashtextextended(t::text, 0)), 0)::text FROM {table} t"
            );
            let expected = self.source.value(&sum).await;
            for who in Competitor::ALL {
                let seen = self.target(who).value(&sum).await;
                assert_eq!(seen, expected, "{} of {}: the round is void", table, who.label());
            }
        }
    }

    /// Brings every target's files into the same state before a measurement.
    pub async fn settle(&self) {
        for database in [&self.source, &self.native, &self.durable, &self.ours] {
            database.execute("VACUUM ANALYZE").await;
        }
        self.source.execute("CHECKPOINT").await;
        self.ours.execute("CHECKPOINT").await;
    }
}
