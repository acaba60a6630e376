//! Random SIGKILLs of the daemon, the source server, the replica server and the broker under load. Everything random follows from one
//! seed, also over which queue a round of the soak runs.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{CATCH_UP, Pair, Servers};
use crate::support::daemon::Daemon;
use crate::support::kafka::Kafka;
use crate::support::workload::Plan;

/// When a storm is over.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    Kills(u64),
    Elapsed(Duration),
}

/// What was done to the pair.
#[derive(Debug, Default)]
pub struct Blows {
    pub daemon_kills: u64,
    pub source_crashes: u64,
    pub replica_crashes: u64,
    pub backend_kills: u64,
    pub broker_kills: u64,
    pub broker_pauses: u64,
    pub clean_stops: u64,
    pub tables_added: u64,
    pub schema_changes: u64,
    pub copied_again: u64,
}

impl Blows {
    pub fn kills(&self) -> u64 {
        self.daemon_kills + self.source_crashes + self.replica_crashes + self.backend_kills + self.broker_kills
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pair_survives_kills_of_the_daemon_and_of_both_servers() {
    let seed = seed();
    let blows = storm(seed, Until::Kills(30), Over::Embedded).await;
    assert!(blows.daemon_kills > 5, "{blows:?}");
}

/// `SOAK_SEED` replays a run.
pub fn seed() -> u64 {
    let seed =
        std::env::var("SOAK_SEED").map_or_else(|_| rand::random_range(1..1_000_000_000), |text| text.parse().expect("SOAK_SEED"));
    println!("SOAK_SEED={seed}");
    seed
}

/// The queue between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    Embedded,
    Kafka,
}

impl Over {
    /// `QUEUE` asks for one; otherwise every third seed goes over Kafka.
    pub fn of(seed: u64) -> Self {
        match std::env::var("QUEUE").as_deref() {
            Ok("kafka") => Self::Kafka,
            Ok("embedded") => Self::Embedded,
            Ok(other) => panic!("QUEUE is kafka or embedded, not '{other}'"),
            Err(_) if seed.is_multiple_of(3) => Self::Kafka,
            Err(_) => Self::Embedded,
        }
    }
}

/// One storm on servers of its own.
pub async fn storm(seed: u64, until: Until, over: Over) -> Blows {
    let mut random = StdRng::seed_from_u64(seed);
    let servers = Servers::start().await;
    let kafka = if over == Over::Kafka { Some(Kafka::builder().start().await) } else { None };
    let pair = match &kafka {
        Some(kafka) => Pair::over_kafka(&servers, kafka).await,
        None if seed.is_multiple_of(2) => Pair::new(&servers).await,
        None => Pair::with(&servers, false, &[("[source.shop]", "schema_changes = \"halt\"")]).await,
    };
    // Over Kafka, and with every other seed, the source's event triggers carry new tables and columns; otherwise `init` takes tables in.
    let carried = kafka.is_some() || seed.is_multiple_of(2);
    let plan = Plan { seed, large_rows: random.random_range(1_000..30_000), ..Plan::default() };
    let workload = pair.load(&plan);
    let first = pair.site.start();
    pair.site.ready(CATCH_UP).await;
    let reader = pair.reader();

    let began = Instant::now();
    let mut blows = Blows::default();
    let mut daemon = Some(first);
    let ended = |blows: &Blows| match until {
        Until::Kills(kills) => blows.kills() >= kills,
        Until::Elapsed(time) => began.elapsed() >= time,
    };
    while !ended(&blows) {
        if random.random_ratio(1, 6) {
            add_a_table(&mut random, &pair, carried, &mut blows).await;
        }
        if random.random_ratio(1, 8) {
            copy_a_table_again(&mut random, &pair, &mut blows).await;
        }
        // Often in the middle of a start, now and then after a quiet while.
        let calm = if random.random_ratio(1, 4) { 1500 } else { 400 };
        tokio::time::sleep(Duration::from_millis(random.random_range(5..calm))).await;
        match &kafka {
            Some(kafka) if random.random_ratio(1, 10) => blow_at_the_broker(&mut random, kafka, &mut blows).await,
            _ => daemon = Some(blow(&mut random, &pair, daemon.expect("a daemon"), &mut blows).await),
        }
        if blows.kills().is_multiple_of(15) {
            // Alive, not only unharmed.
            pair.caught_up().await;
            reader.verdict();
        }
    }
    pair.site.must(&["init"]).await;
    println!("{blows:?} in {:.0} s, {} transactions", began.elapsed().as_secs_f32(), workload.tally.transactions());
    pair.verdict(workload, &reader).await;
    let rows = "SELECT count(*) FROM millstream.replica";
    crate::support::wait::until("tables that were added to be one with the others", CATCH_UP, async || {
        pair.replica.value(rows).await == "1"
    })
    .await;
    assert!(reader.seen.steps.load(Ordering::Relaxed) > 3, "the reader saw no progress: {:?}", reader.seen);
    let last = daemon.expect("a daemon");
    assert_eq!(last.terminate().await.code(), Some(0));
    blows
}

/// A table with rows joins the pair, and those before it change: of a copy, of a meeting, in between. Servers may be down: what does not come now
/// comes with the next.
async fn add_a_table(random: &mut StdRng, pair: &Pair<'_>, carried: bool, blows: &mut Blows) {
    const MOST: u64 = 10;
    let (rows, part) = (random.random_range(1..20_000), random.random_range(0..5));
    let number = blows.tables_added;
    for other in 0..number {
        let change = format!(
            "UPDATE more_{other} SET n = n + 1 WHERE id % 5 = {part}; DELETE FROM more_{other} WHERE id = {rows} AND id > 1; \
             INSERT INTO more_{other} VALUES ({rows}, 7) ON CONFLICT DO NOTHING"
        );
        drop(pair.source.query(&change).await);
    }
    for _ in 0..if carried && number > 0 { 4 } else { 0 } {
        let other = random.random_range(0..number);
        let column = format!("c{}", random.random_range(0..4));
        let change = match random.random_range(0..3) {
            0 => format!("ALTER TABLE more_{other} ADD COLUMN {column} int DEFAULT {rows}"),
            1 => format!("UPDATE more_{other} SET n = 3 WHERE id = 1; ALTER TABLE more_{other} DROP COLUMN {column}"),
            _ => format!("ALTER TABLE more_{other} RENAME COLUMN {column} TO d{part}"),
        };
        // While it is copied, a change of its definition halts.
        let live = format!("SELECT 1 FROM millstream.copied_table WHERE table_name = 'more_{other}' AND state = 'live'");
        let is_live = pair.replica.query(&live).await.is_ok_and(|rows| !rows.is_empty());
        if is_live && pair.source.query(&change).await.is_ok() {
            blows.schema_changes += 1;
        }
    }
    if number < MOST {
        let parent = number.checked_sub(1).map_or_else(String::new, |before| format!("REFERENCES more_{before}"));
        let create = format!(
            "CREATE TABLE more_{number} (id int PRIMARY KEY, n int, up int DEFAULT 1 {parent}); CREATE INDEX ON more_{number} (n); \
             INSERT INTO more_{number} SELECT i, i FROM generate_series(1, {rows}) i"
        );
        if pair.source.query(&create).await.is_ok() {
            blows.tables_added += 1;
        }
    }
    pair.site.run(&["init"]).await;
}

/// Beside everything else. It may be at it already, and servers may be down.
async fn copy_a_table_again(random: &mut StdRng, pair: &Pair<'_>, blows: &mut Blows) {
    const TABLES: [&str; 7] = ["item", "document", "bulk", "event", "account", "seat", "shift"];
    let table = format!("public.{}", TABLES[random.random_range(0..TABLES.len())]);
    let asked = pair.site.run(&["table", "recopy", "reports", &table]).await;
    assert!(matches!(asked.code, Some(0 | 1 | 3 | 75)), "{asked:?}");
    blows.copied_again += u64::from(asked.code == Some(0));
}

async fn blow_at_the_broker(random: &mut StdRng, kafka: &Kafka, blows: &mut Blows) {
    let pause = Duration::from_millis(random.random_range(0..2000));
    let node = kafka.node(1);
    if random.random_ratio(1, 2) {
        node.kill();
        tokio::time::sleep(pause).await;
        node.start();
        kafka.ready().await;
        blows.broker_kills += 1;
    } else {
        node.pause();
        tokio::time::sleep(pause).await;
        node.resume();
        blows.broker_pauses += 1;
    }
}

async fn blow<'s>(random: &mut StdRng, pair: &'s Pair<'_>, daemon: Daemon<'s>, blows: &mut Blows) -> Daemon<'s> {
    assert!(daemon.exited().is_none(), "the daemon ended by itself:\n{}", daemon.log_tail());
    let pause = Duration::from_millis(if random.random_ratio(1, 2) { 0 } else { random.random_range(0..600) });
    match random.random_range(0..100) {
        0..55 => {
            daemon.kill();
            blows.daemon_kills += 1;
            tokio::time::sleep(pause).await;
            pair.site.start()
        }
        55..65 => {
            pair.source.server.crash();
            blows.source_crashes += 1;
            tokio::time::sleep(pause).await;
            pair.source.server.restart().await;
            daemon
        }
        65..75 => {
            pair.replica.server.crash();
            blows.replica_crashes += 1;
            tokio::time::sleep(pause).await;
            pair.replica.server.restart().await;
            daemon
        }
        75..80 => {
            daemon.kill();
            pair.replica.server.crash();
            pair.source.server.crash();
            blows.daemon_kills += 1;
            blows.source_crashes += 1;
            blows.replica_crashes += 1;
            let daemon = pair.site.start();
            tokio::join!(pair.source.server.restart(), pair.replica.server.restart());
            daemon
        }
        80..94 => {
            // Only our own sessions go: the servers and everybody else stay.
            let side = if random.random_ratio(1, 2) { &pair.source } else { &pair.replica };
            let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name LIKE 'millstream%'";
            if side.query(sql).await.is_ok() {
                blows.backend_kills += 1;
            }
            daemon
        }
        _ => {
            // Asked before it has said a word, it ends as any program does that has just been started.
            let newborn = daemon.log().is_empty();
            let code = daemon.terminate().await.code();
            assert!(code == Some(0) || newborn, "SIGTERM: {code:?}\n{}", pair.site.last_log());
            blows.clean_stops += 1;
            pair.site.start()
        }
    }
}
