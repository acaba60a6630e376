//! A reader of the replica that checks, all the while, that it sees only prefixes of the source's commit order (I4).
//!
//! Chain writers are serialised by one row's lock, so their counter is their commit order. In one snapshot every table must name the
//! same counter, sums across tables must hold, and from look to look the counter must not go back, not even over a crash.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sqlx::Connection;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use tokio::task::JoinHandle;

use super::sql;
use super::workload_ops::TOTAL_BALANCE;

const LOOK: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
SELECT (SELECT n FROM chain), (SELECT max(n) FROM chain_left), (SELECT max(n) FROM chain_right), (SELECT coalesce(max(n), 0) FROM chain_log),
  (SELECT sum(amount) FROM chain_left) + (SELECT sum(amount) FROM chain_right),
  (SELECT count(*) - least(200, (SELECT n FROM chain)) FROM chain_log),
  (SELECT sum(balance) FROM account),
  (SELECT count(*) FROM child c WHERE NOT EXISTS (SELECT FROM parent p WHERE p.id = c.parent)),
  (SELECT count(*) FROM shift) * 100 + (SELECT count(*) FROM seat WHERE code LIKE 'moving%');
COMMIT";

/// What the reader has seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// Looks that were answered.
    pub looks: AtomicU64,
    /// Looks that showed another counter than the one before.
    pub steps: AtomicU64,
    wrong: Mutex<Vec<String>>,
}

/// A running reader.
pub struct PrefixReader {
    /// What it has seen so far.
    pub seen: Arc<Seen>,
    task: JoinHandle<()>,
}

impl PrefixReader {
    /// Starts it on a replica whose tables are live.
    pub fn start(options: &PgConnectOptions, pause: Duration) -> Self {
        let seen = Arc::new(Seen::default());
        let task = tokio::spawn(watch(options.clone(), Arc::clone(&seen), pause));
        Self { seen, task }
    }

    /// Panics when it has seen what it must not.
    #[track_caller]
    pub fn verdict(&self) {
        let wrong = self.seen.wrong.lock().expect("lock");
        assert!(wrong.is_empty(), "a reader of the replica saw no prefix of the source's commit order:\n{}", wrong.join("\n"));
    }

    /// What it has seen wrong.
    pub fn violations(&self) -> Vec<String> {
        self.seen.wrong.lock().expect("lock").clone()
    }
}

impl Drop for PrefixReader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn watch(options: PgConnectOptions, seen: Arc<Seen>, pause: Duration) {
    let mut connection: Option<PgConnection> = None;
    let mut last = -1;
    loop {
        match look(&mut connection, &options).await {
            Ok(row) => {
                seen.looks.fetch_add(1, Ordering::Relaxed);
                if let Some(text) = judge(&row, last) {
                    seen.wrong.lock().expect("lock").push(text);
                }
                if row[0] != last {
                    seen.steps.fetch_add(1, Ordering::Relaxed);
                }
                last = row[0];
            }
            Err(sqlx::Error::Database(e))
                if !e.code().is_some_and(|code| code.starts_with("57") || code.starts_with("08") || code == "53300") =>
            {
                seen.wrong.lock().expect("lock").push(format!("the look itself failed: {e}"));
                connection = None;
            }
            Err(_) => connection = None,
        }
        tokio::time::sleep(pause).await;
    }
}

async fn look(connection: &mut Option<PgConnection>, options: &PgConnectOptions) -> Result<Vec<i64>, sqlx::Error> {
    let open = match connection {
        Some(open) => open,
        None => connection.insert(PgConnection::connect_with(options).await?),
    };
    let rows = sql::query(open, LOOK).await?;
    let row = rows.into_iter().next().unwrap_or_default();
    Ok(row.into_iter().map(|value| value.and_then(|value| value.parse().ok()).unwrap_or(i64::MIN)).collect())
}

fn judge(row: &[i64], last: i64) -> Option<String> {
    let &[n, left, right, log, sum, log_count, balance, orphans, places] = row else { return Some(format!("no row: {row:?}")) };
    let good = n >= last
        && left == n
        && right == n
        && log == n
        && sum == 0
        && log_count == 0
        && balance == TOTAL_BALANCE
        && orphans == 0
        && places == 6000;
    (!good).then(|| {
        format!(
            "after counter {last}: counter {n}, left {left}, right {right}, log {log}, sum {sum}, log rows off by {log_count}, balances {balance}, \
             orphans {orphans}, shift rows*100 + seats in motion {places}"
        )
    })
}
