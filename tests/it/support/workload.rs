//! A live workload: concurrent writers whose statements follow from a seed.
//!
//! What a transaction *does* follows from seed, writer and turn; how writers interleave does not. Writers reconnect for ever, so the
//! source may be killed underneath them. Two kinds run side by side:
//! - free writers, each turn one of [`super::workload_ops`]: what is compared at the end;
//! - chain writers, serialised by one row's lock, so that their counter *is* the commit order: what [`super::prefix`] checks on the
//!   replica all the while.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, Connection, Executor};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::workload_ops;

/// How much, how fast, how odd.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Everything follows from it.
    pub seed: u64,
    /// Free writers.
    pub writers: u64,
    /// Chain writers.
    pub chains: u64,
    /// Pause between a writer's turns.
    pub pause: Duration,
    /// Rows of the largest transactions.
    pub large_rows: u64,
}

impl Default for Plan {
    fn default() -> Self {
        Self { seed: 1, writers: 3, chains: 2, pause: Duration::from_millis(4), large_rows: 5_000 }
    }
}

/// What was done.
#[derive(Debug, Default)]
pub struct Tally {
    /// Transactions whose COMMIT was answered.
    pub transactions: AtomicU64,
    /// Rows that they touched, as the server counts.
    pub changes: AtomicU64,
    /// Turns that failed: the server was away, a deadlock, a unique value taken.
    pub failures: AtomicU64,
}

impl Tally {
    /// Transactions so far.
    pub fn transactions(&self) -> u64 {
        self.transactions.load(Ordering::Relaxed)
    }

    /// Changes so far.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }
}

/// Running writers.
pub struct Workload {
    /// What they have done so far.
    pub tally: Arc<Tally>,
    stop: watch::Sender<bool>,
    writers: JoinSet<()>,
}

impl Workload {
    /// Starts the writers on a database that has [`workload_ops::SCHEMA`].
    pub fn start(options: &PgConnectOptions, plan: &Plan) -> Self {
        let stop = watch::channel(false).0;
        let tally = Arc::new(Tally::default());
        let mut writers = JoinSet::new();
        for number in 0..plan.writers + plan.chains {
            let writer = Writer {
                options: options.clone(),
                random: StdRng::seed_from_u64(plan.seed ^ (number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)),
                chain: number >= plan.writers,
                plan: plan.clone(),
                tally: Arc::clone(&tally),
                stop: stop.subscribe(),
            };
            writers.spawn(writer.run());
        }
        Self { tally, stop, writers }
    }

    /// Ends after the transactions in progress; no writer is left when this returns.
    pub async fn stop(mut self) -> Arc<Tally> {
        self.stop.send_replace(true);
        while let Some(ended) = self.writers.join_next().await {
            ended.expect("a writer");
        }
        self.tally
    }
}

struct Writer {
    options: PgConnectOptions,
    random: StdRng,
    chain: bool,
    plan: Plan,
    tally: Arc<Tally>,
    stop: watch::Receiver<bool>,
}

impl Writer {
    async fn run(mut self) {
        let mut connection = None;
        while !*self.stop.borrow() {
            let statements = if self.chain {
                workload_ops::chain(&mut self.random)
            } else {
                workload_ops::free(&mut self.random, self.plan.large_rows)
            };
            // Statement by statement transactions interleave; one message at once is fast.
            let in_steps = self.random.random_ratio(1, 4);
            match self.turn(&mut connection, &statements, in_steps).await {
                Ok(changes) => {
                    self.tally.transactions.fetch_add(1, Ordering::Relaxed);
                    self.tally.changes.fetch_add(changes, Ordering::Relaxed);
                }
                Err(sqlx::Error::Database(_)) => {
                    self.tally.failures.fetch_add(1, Ordering::Relaxed);
                    let rolled_back = match connection.as_mut() {
                        Some(open) => sqlx::raw_sql("ROLLBACK").execute(open).await.is_ok(),
                        None => false,
                    };
                    if !rolled_back {
                        connection = None;
                    }
                }
                Err(_) => {
                    self.tally.failures.fetch_add(1, Ordering::Relaxed);
                    connection = None;
                }
            }
            if connection.is_none() || !self.plan.pause.is_zero() {
                let pause = if connection.is_none() { Duration::from_millis(50) } else { self.plan.pause };
                drop(tokio::time::timeout(pause, self.stop.wait_for(|stop| *stop)).await);
            }
        }
    }

    async fn turn(
        &self,
        connection: &mut Option<PgConnection>,
        statements: &[String],
        in_steps: bool,
    ) -> Result<u64, sqlx::Error> {
        let open = match connection {
            Some(open) => open,
            None => connection.insert(PgConnection::connect_with(&self.options).await?),
        };
        let mut changes = 0;
        if in_steps {
            for statement in statements {
                changes += open.execute(sqlx::raw_sql(AssertSqlSafe(statement.clone()))).await?.rows_affected();
            }
        } else {
            changes = open.execute(sqlx::raw_sql(AssertSqlSafe(statements.join(";\n")))).await?.rows_affected();
        }
        Ok(changes)
    }
}
