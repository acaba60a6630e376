//! `init`, first copy, `teardown`, `--adopt`.

mod added;
mod adopt;
mod dry_run;
mod first;
mod init;
#[cfg(feature = "failpoints")]
mod keys;
mod load;
mod races;
mod recopy;
mod replaced;
#[cfg(feature = "failpoints")]
mod silent;
mod teardown;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use millstream::config::{Config, OnRetainLimit, QueueConfig, QueueKind, ReplicaConfig, SchemaChanges, SourceConfig};
use millstream::preflight::init::{InitOptions, Line, Outcome, init};
use millstream::queue::Queue;
use millstream::queue::embedded::EmbeddedQueue;

use crate::support::files::Folder;
use crate::support::postgres::{PgDatabase, shared, shared_replica};

/// A source `shop` and a replica `reports`, each a database of its own, and a queue.
pub struct Pair {
    pub source: PgDatabase<'static>,
    pub replica: PgDatabase<'static>,
    pub config: Config,
    pub queue: Arc<dyn Queue>,
    folder: Folder,
}

impl Pair {
    pub async fn new() -> Self {
        let source = shared().await.new_database().await;
        let replica = shared_replica().await.new_database().await;
        Self::of(source, replica)
    }

    pub fn of(source: PgDatabase<'static>, replica: PgDatabase<'static>) -> Self {
        let folder = Folder::new("queue");
        // Slots are the server's, not the database's: each pair has a source name of its own.
        let name = format!("shop_{:06x}", rand::random_range(0..0x00ff_ffff));
        let shop = SourceConfig {
            name: name.clone(),
            connect: source.connect(),
            tables: vec!["public.*".into(), "other.*".into()],
            // Tables come by `init` alone here.
            schema_changes: SchemaChanges::Halt,
            retain_max_bytes: 1 << 30,
            retain_max_age: Duration::from_secs(7 * 86_400),
            on_retain_limit: OnRetainLimit::Alarm,
            memory_bytes: 16 << 20,
            spill_max_bytes: 1 << 30,
            spill_dir: folder.path().join("spill"),
            heartbeat_interval: Duration::from_millis(200),
            copy_workers: 3,
            copy_max_bytes_per_second: None,
            copy_chunk_rows: 100,
        };
        let reports = ReplicaConfig {
            name: "reports".into(),
            source: name.clone(),
            connect: replica.connect(),
            merge_max_bytes: 1 << 20,
            merge_max_changes: 10_000,
            sequences_interval: Duration::ZERO,
        };
        let queue = EmbeddedQueue::open(folder.path()).expect("a queue");
        let config = Config {
            sources: BTreeMap::from([(name, shop)]),
            queue: QueueConfig { kind: QueueKind::Embedded { folder: folder.path().to_owned() }, max_bytes: 1 << 30 },
            replicas: BTreeMap::from([("reports".into(), reports)]),
            http: None,
            control: millstream::config::ControlConfig { socket: None },
            log: millstream::config::LogConfig::default(),
            warnings: Vec::new(),
            file: millstream::config::ConfigFile::default(),
        };
        Self { source, replica, config, queue, folder }
    }

    pub fn shop(&self) -> &SourceConfig {
        self.config.sources.values().next().expect("a source")
    }

    /// Where the queue lies.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Runs `init` and gives what it said.
    pub async fn init_with(&self, options: InitOptions) -> (millstream::Result<Outcome>, Vec<Line>) {
        let mut lines = Vec::new();
        let outcome = init(&self.config, &self.queue, &options, &mut |line| lines.push(line)).await;
        (outcome, lines)
    }

    #[track_caller]
    pub fn init(&self) -> impl Future<Output = Vec<Line>> {
        let place = std::panic::Location::caller();
        async move {
            let (outcome, lines) = self.init_with(InitOptions::default()).await;
            match outcome {
                Ok(Outcome::Changed) => lines,
                other => panic!("{place}: init ended with {other:?}: {lines:#?}"),
            }
        }
    }
}
