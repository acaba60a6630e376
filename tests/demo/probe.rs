//! How long a commit on the source takes to be visible on the replica: measured from outside, by a row.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sqlx::Connection;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::support::postgres::PgDatabase;
use crate::support::sql;

pub const TABLE: &str = "CREATE TABLE probe (id bigint PRIMARY KEY, at timestamptz)";
/// After a kill or a start, samples do not count as steady for so long.
const SETTLE: Duration = Duration::from_secs(2);
/// Between two looks at the replica: the grain of the figures.
const GRAIN: Duration = Duration::from_millis(1);

/// Samples, sorted.
#[derive(Default)]
pub struct Latencies {
    steady: Vec<Duration>,
    all: Vec<Duration>,
}

impl Latencies {
    pub fn steady(&self) -> usize {
        self.steady.len()
    }

    pub fn quantile(&self, q: f64) -> Option<Duration> {
        let last = self.steady.len().checked_sub(1)?;
        Some(self.steady[(last as f64 * q).round() as usize])
    }

    pub fn longest(&self) -> Option<Duration> {
        self.all.last().copied()
    }
}

/// A running probe.
pub struct Probe {
    disturbances: Arc<AtomicU64>,
    stop: watch::Sender<bool>,
    task: JoinHandle<Latencies>,
}

impl Probe {
    pub fn start(source: &PgDatabase<'_>, replica: &PgDatabase<'_>) -> Self {
        let disturbances = Arc::new(AtomicU64::new(0));
        let stop = watch::channel(false).0;
        let sides = (source.server.options(&source.name), replica.server.options(&replica.name));
        let task = tokio::spawn(run(sides, Arc::clone(&disturbances), stop.subscribe()));
        Self { disturbances, stop, task }
    }

    /// The daemon was killed or started.
    pub fn disturbed(&self) {
        self.disturbances.fetch_add(1, Ordering::Relaxed);
    }

    pub async fn stop(self) -> Latencies {
        self.stop.send_replace(true);
        let mut found = self.task.await.expect("the probe");
        found.steady.sort_unstable();
        found.all.sort_unstable();
        found
    }
}

async fn run(
    sides: (PgConnectOptions, PgConnectOptions),
    disturbances: Arc<AtomicU64>,
    stop: watch::Receiver<bool>,
) -> Latencies {
    let mut source = PgConnection::connect_with(&sides.0).await.expect("the source");
    let mut replica = PgConnection::connect_with(&sides.1).await.expect("the replica");
    let mut found = Latencies::default();
    let (mut seen, mut calm_since) = (disturbances.load(Ordering::Relaxed), Instant::now());
    for id in 1_i64.. {
        sql::query(&mut source, &format!("INSERT INTO probe VALUES ({id}, now())")).await.expect("a probe");
        let committed = Instant::now();
        let look = format!("SELECT FROM probe WHERE id = {id}");
        while sql::query(&mut replica, &look).await.expect("a look").is_empty() {
            if *stop.borrow() {
                return found;
            }
            tokio::time::sleep(GRAIN).await;
        }
        let took = committed.elapsed();
        found.all.push(took);
        let now = disturbances.load(Ordering::Relaxed);
        if now != seen {
            (seen, calm_since) = (now, Instant::now());
        } else if calm_since.elapsed() > SETTLE + took {
            found.steady.push(took);
        }
        if *stop.borrow() {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    found
}
