//! Writers that make a first copy hard: every key moves between chunks, commits become visible in another order than their LSNs,
//! values are too wide to travel with a key change, equal rows come and go, tables are emptied.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tokio::task::JoinSet;

pub const SCHEMA: &str = r#"
CREATE TABLE ints (id bigint PRIMARY KEY, u bigint UNIQUE, n int NOT NULL DEFAULT 0, wide text);
ALTER TABLE ints ALTER wide SET STORAGE EXTERNAL;
CREATE TABLE kids (id bigint PRIMARY KEY, parent bigint REFERENCES ints ON UPDATE CASCADE ON DELETE CASCADE);
CREATE INDEX kids_parent ON kids (parent);
CREATE TABLE texts (k text COLLATE "de-x-icu" PRIMARY KEY, n int NOT NULL DEFAULT 0);
CREATE TABLE pairs (a int, b text COLLATE "de-x-icu", n int NOT NULL DEFAULT 0, PRIMARY KEY (a, b));
CREATE TABLE uuids (n int NOT NULL DEFAULT 0, id uuid PRIMARY KEY);
CREATE TABLE full_rows (id int PRIMARY KEY, n int NOT NULL DEFAULT 0, wide text);
ALTER TABLE full_rows ALTER wide SET STORAGE EXTERNAL, REPLICA IDENTITY FULL;
CREATE TABLE by_index (id int PRIMARY KEY, a int NOT NULL, n int NOT NULL DEFAULT 0);
CREATE UNIQUE INDEX by_index_a ON by_index (a);
ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_a;
CREATE TABLE bare (a int, b text);
ALTER TABLE bare REPLICA IDENTITY FULL;
CREATE TABLE emptied (id int PRIMARY KEY, n int);
"#;

pub const ROWS: &str = r#"
INSERT INTO ints SELECT n, n, 0, CASE WHEN n % 3 = 0 THEN repeat(md5(n::text), 90) END FROM generate_series(1, 3000) n;
INSERT INTO kids SELECT n, n FROM generate_series(1, 1500) n;
INSERT INTO texts SELECT CASE n % 3 WHEN 0 THEN 'ä' WHEN 1 THEN 'Z' ELSE 'a-' END || md5(n::text) FROM generate_series(1, 1500) n;
INSERT INTO pairs SELECT n % 7, 'k' || md5(n::text) FROM generate_series(1, 1500) n;
INSERT INTO uuids SELECT 0, md5(n::text)::uuid FROM generate_series(1, 1500) n;
INSERT INTO full_rows SELECT n, 0, repeat(md5(n::text), 90) FROM generate_series(1, 600) n;
INSERT INTO by_index SELECT n, -n FROM generate_series(1, 1000) n;
INSERT INTO bare SELECT n % 50, 'x' FROM generate_series(1, 400) n;
INSERT INTO emptied SELECT n FROM generate_series(1, 500) n;
"#;

pub struct Writers {
    stop: Arc<AtomicBool>,
    pub done: Arc<AtomicU64>,
    tasks: JoinSet<()>,
}

impl Writers {
    pub fn start(options: &PgConnectOptions, seed: u64, count: u64) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut tasks = JoinSet::new();
        for writer in 0..count {
            let random = StdRng::seed_from_u64(seed.wrapping_mul(31).wrapping_add(writer));
            tasks.spawn(write(options.clone(), random, Arc::clone(&stop), Arc::clone(&done)));
        }
        Self { stop, done, tasks }
    }

    pub async fn stop(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("a writer");
        }
        self.done.load(Ordering::Relaxed)
    }
}

async fn write(options: PgConnectOptions, mut random: StdRng, stop: Arc<AtomicBool>, done: Arc<AtomicU64>) {
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut connection) = PgConnection::connect_with(&options).await else { continue };
        // Visible before it is durable.
        let lazy = if random.random_bool(0.5) { "SET synchronous_commit = off" } else { "SELECT 1" };
        if connection.execute(lazy).await.is_err() {
            continue;
        }
        while !stop.load(Ordering::Relaxed) {
            let statements = turn(&mut random);
            match connection.execute(AssertSqlSafe(statements)).await {
                Ok(_) => drop(done.fetch_add(1, Ordering::Relaxed)),
                Err(sqlx::Error::Database(_)) if connection.execute("ROLLBACK").await.is_ok() => {}
                Err(_) => break,
            }
        }
    }
}

fn turn(random: &mut StdRng) -> String {
    match random.random_range(0..100) {
        // A transaction that stays open between its changes to two tables.
        0..15 => {
            let (first, second, pause) = (change(random), change(random), random.random_range(0..60));
            format!("BEGIN; {first}; SELECT pg_sleep({pause} / 1000.0); {second}; COMMIT")
        }
        15..20 => {
            let (kept, undone, again) = (change(random), change(random), change(random));
            format!("BEGIN; {kept}; SAVEPOINT s; {undone}; ROLLBACK TO s; {again}; COMMIT")
        }
        20 => "BEGIN; TRUNCATE emptied; INSERT INTO emptied SELECT n FROM generate_series(1, 500) n; COMMIT".to_owned(),
        _ => change(random),
    }
}

fn change(random: &mut StdRng) -> String {
    let id = random.random_range(1..3100);
    let some = random.random_range(0..1500);
    match random.random_range(0..20) {
        0 | 1 => format!("UPDATE ints SET n = n + 1 WHERE id = {id}"),
        2 => format!("INSERT INTO ints VALUES ({id}, {id}, 7, repeat('w', 2500)) ON CONFLICT DO NOTHING"),
        3 => format!("DELETE FROM ints WHERE id = {id}"),
        // To the other end of the key's range, without its wide value.
        4 | 5 => format!(
            "UPDATE ints SET id = CASE WHEN id > 1000000 THEN id - 1000000 ELSE id + 1000000 END, n = n + 1 WHERE id % 1000000 = {id}"
        ),
        // The unique value moves to another row.
        6 => format!(
            "WITH gone AS (DELETE FROM ints WHERE id = {id} RETURNING u) INSERT INTO ints SELECT {id} + 5000000 + {some}, u FROM gone"
        ),
        7 => format!("INSERT INTO kids SELECT {some} + 100000, id FROM ints WHERE id = {id} ON CONFLICT DO NOTHING"),
        8 => format!("UPDATE texts SET n = n + 1 WHERE k = (SELECT k FROM texts OFFSET {some} LIMIT 1)"),
        9 => format!(
            "UPDATE texts SET k = 'Ö' || md5(n::text || k), n = n + 1 WHERE k = (SELECT k FROM texts OFFSET {some} LIMIT 1)"
        ),
        10 => format!("DELETE FROM texts WHERE k = (SELECT k FROM texts OFFSET {some} LIMIT 1)"),
        11 => format!("INSERT INTO texts VALUES ('q{}')", random.random_range(0..1_000_000_000)),
        12 => {
            format!("UPDATE pairs SET a = (a + 3) % 7, n = n + 1 WHERE (a, b) = (SELECT a, b FROM pairs OFFSET {some} LIMIT 1)")
        }
        13 => format!("INSERT INTO pairs VALUES ({id} % 7, 'N{some}', 1) ON CONFLICT (a, b) DO UPDATE SET n = pairs.n + 1"),
        14 => format!(
            "UPDATE uuids SET id = md5(id::text)::uuid, n = n + 1 WHERE id = (SELECT id FROM uuids OFFSET {some} LIMIT 1)"
        ),
        15 => format!("UPDATE full_rows SET id = id + CASE WHEN id > 10000 THEN -10000 ELSE 10000 END WHERE id % 10000 = {some}"),
        16 => format!("UPDATE by_index SET a = -a, n = n + 1 WHERE id = {some}"),
        17 => format!("UPDATE by_index SET id = id + CASE WHEN id > 10000 THEN -10000 ELSE 10000 END WHERE id % 10000 = {some}"),
        18 => format!("INSERT INTO bare SELECT {id} % 50, 'x' FROM generate_series(1, 2)"),
        _ => format!("DELETE FROM bare WHERE ctid = (SELECT ctid FROM bare WHERE a = {id} % 50 LIMIT 1)"),
    }
}
