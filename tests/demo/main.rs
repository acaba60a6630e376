//! `make demo`: two throw-away servers, a live workload, a daemon that is killed again and again, and the proof at the end.
//!
//! No part of Millstream's own code decides the verdict: both sides are compared by plain SQL, and a reader of the replica checks
//! all the while that it sees only prefixes of the source's commit order. Exit code 0 only when both hold and there was
//! something to prove.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "../it/support/mod.rs"]
mod support;

mod figures;
mod probe;

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use figures::Figures;
use probe::Probe;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use support::compare::compare;
use support::daemon::{Daemon, Site, pair_configuration};
use support::kafka::Kafka;
use support::postgres::{Builder, PgDatabase, PgServer};
use support::prefix::PrefixReader;
use support::wait::until;
use support::workload::{Plan, Workload};
use support::workload_ops::SCHEMA;

/// Each wait's limit: the whole must stay under two minutes.
const PATIENCE: Duration = Duration::from_secs(40);

#[tokio::main]
async fn main() -> ExitCode {
    let wish = match Wish::read() {
        Ok(wish) => wish,
        Err(text) => {
            eprintln!("demo: {text}\nusage: demo [--queue embedded|kafka] [--seconds N] [--seed N]");
            return ExitCode::from(2);
        }
    };
    tokio::spawn(interrupted());
    if demo(&wish).await { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

struct Wish {
    kafka: bool,
    seconds: u64,
    seed: u64,
}

impl Wish {
    fn read() -> Result<Self, String> {
        let mut wish = Self { kafka: false, seconds: 60, seed: rand::random_range(1..1_000_000) };
        let mut arguments = std::env::args().skip(1);
        while let Some(name) = arguments.next() {
            let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
            let number = || value.parse::<u64>().map_err(|_| format!("{name} {value}: not a number"));
            match (name.as_str(), value.as_str()) {
                ("--queue", "embedded") => wish.kafka = false,
                ("--queue", "kafka") => wish.kafka = true,
                ("--seconds", _) => wish.seconds = number()?,
                ("--seed", _) => wish.seed = number()?,
                _ => return Err(format!("unknown argument {name} {value}")),
            }
        }
        Ok(wish)
    }
}

/// Ctrl-C and SIGTERM leave nothing behind either: exit hooks end the servers and remove their folders.
async fn interrupted() {
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).expect("a signal handler");
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = term.recv() => {}
    }
    eprintln!("\ninterrupted");
    std::process::exit(130);
}

async fn demo(wish: &Wish) -> bool {
    let began = Instant::now();
    say(&format!(
        "Millstream demo, seed {}: source → {} queue → replica",
        wish.seed,
        if wish.kafka { "Kafka" } else { "embedded" }
    ));
    let (source_server, replica_server) = tokio::join!(durable().start(), durable().start());
    let source = source_server.new_database().await;
    let replica = replica_server.new_database().await;
    let version = source.value("SHOW server_version").await;
    say(&format!("Two PostgreSQL {version} servers on ports {} and {}", source_server.port(), replica_server.port()));

    source.execute(SCHEMA).await;
    source.execute(probe::TABLE).await;
    source.execute("INSERT INTO bulk SELECT n, 9, md5(n::text) FROM generate_series(90000000, 90020000) n").await;
    let queue = Queue::start(wish.kafka).await;
    let site = Site::new(&(pair_configuration(&source.url(), &replica.url(), &queue.url) + &queue.more));
    prepare(&site).await;

    let plan = Plan { seed: wish.seed, writers: 4, chains: 2, pause: Duration::from_millis(15), large_rows: 20_000 };
    let workload = Workload::start(&source_server.options(&source.name), &plan);
    let daemon = site.start();
    say("$ millstream run      (under load from here on; first copy of the tables)");
    site.ready(PATIENCE).await;
    say(&format!("Tables are live {:.1} s after the start of the demo\n", began.elapsed().as_secs_f32()));

    let mut figures = storm(wish, &site, daemon, &source, &replica, workload).await;
    let verdict = verdict(&source, &replica, &mut figures).await;
    say(&figures.table());
    say(&format!("{verdict}  ({:.0} s in all)", began.elapsed().as_secs_f32()));
    verdict.starts_with("EQUAL") && figures.proves_something()
}

/// A server as one would run it, not as most tests do: what is committed is on the disk.
fn durable() -> Builder {
    PgServer::builder().set("fsync", "on")
}

/// The real commands, as a user would type them.
async fn prepare(site: &Site) {
    for command in ["check", "init"] {
        say(&format!("$ millstream {command}"));
        let outcome = site.run(&[command]).await;
        let text = format!("{}{}", outcome.stdout, outcome.stderr);
        text.lines().filter(|line| !line.starts_with("  ok ")).for_each(|line| say(&format!("  {line}")));
        // `check` before `init` may have remarks about what init is about to make.
        assert!(command == "check" || outcome.code == Some(0), "millstream {command} ended with {:?}", outcome.code);
    }
}

/// Load and kills for the time asked.
async fn storm<'s>(
    wish: &Wish,
    site: &'s Site,
    first: Daemon<'s>,
    source: &PgDatabase<'_>,
    replica: &PgDatabase<'_>,
    workload: Workload,
) -> Figures {
    let mut random = StdRng::seed_from_u64(wish.seed);
    let mut figures = Figures::default();
    let reader = PrefixReader::start(&replica.server.options(&replica.name), Duration::from_millis(20));
    let probe = Probe::start(source, replica);
    let began = Instant::now();
    let end = began + Duration::from_secs(wish.seconds);
    let mut daemon = Some(first);
    let mut next_kill = began + Duration::from_secs(6);
    let mut last = (0, Instant::now());
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    tick.tick().await;
    while Instant::now() < end {
        tick.tick().await;
        if Instant::now() > next_kill && Instant::now() + Duration::from_secs(4) < end {
            if let Some(running) = daemon.take() {
                probe.disturbed();
                assert!(running.exited().is_none(), "the daemon ended by itself:\n{}", running.log_tail());
                figures.peak_rss_bytes = figures.peak_rss_bytes.max(running.kill());
                figures.kills += 1;
                say(&format!("{:>4.0} s  kill -9, number {}; started again", began.elapsed().as_secs_f32(), figures.kills));
                // Between at once and a while in which a backlog grows.
                tokio::time::sleep(Duration::from_millis(random.random_range(0..1500))).await;
                daemon = Some(site.start());
                probe.disturbed();
            }
            next_kill = Instant::now() + Duration::from_millis(random.random_range(3000..8000));
        }
        let changes = workload.tally.changes();
        let rate = (changes - last.0) as f64 / last.1.elapsed().as_secs_f64();
        last = (changes, Instant::now());
        let lag = site.metric("millstream_replica_lag_seconds").await;
        let lag = lag.map_or("      -".into(), |lag| format!("{lag:7.3}"));
        say(&format!(
            "{:>4.0} s  {:>9} changes  {:>7.0}/s   lag {lag} s   kills {}   looks at the replica {}, all consistent: {}",
            began.elapsed().as_secs_f32(),
            grouped(changes),
            rate,
            figures.kills,
            reader.seen.looks.load(Ordering::Relaxed),
            if reader.violations().is_empty() { "yes" } else { "NO" },
        ));
    }
    figures.seconds = began.elapsed().as_secs_f64();
    figures.latencies = probe.stop().await;
    let tally = workload.stop().await;
    figures.transactions = tally.transactions();
    figures.changes = tally.changes();
    say("\nThe writers have stopped; the replica catches up");
    source.execute(&format!("INSERT INTO probe VALUES ({}, now())", i64::MAX)).await;
    let caught_up =
        async || replica.query(&format!("SELECT FROM probe WHERE id = {}", i64::MAX)).await.is_ok_and(|rows| !rows.is_empty());
    until("the replica to catch up", PATIENCE, caught_up).await;
    figures.looks = reader.seen.looks.load(Ordering::Relaxed);
    figures.violations = reader.violations();
    let last_daemon = daemon.expect("a daemon");
    figures.peak_rss_bytes = figures.peak_rss_bytes.max(last_daemon.peak_rss_bytes());
    figures.clean_stop = last_daemon.terminate().await.code() == Some(0);
    figures
}

async fn verdict(source: &PgDatabase<'_>, replica: &PgDatabase<'_>, figures: &mut Figures) -> String {
    if !figures.violations.is_empty() {
        return format!("NOT CONSISTENT: a reader saw no prefix of the commit order:\n{}", figures.violations.join("\n"));
    }
    match compare(source, replica).await {
        Ok(compared) => {
            figures.compared = compared;
            let empty =
                if figures.proves_something() { "" } else { ", but nothing was proved: no kills, no changes, or no clean stop" };
            format!("EQUAL: {} rows in {} tables, compared by md5 in plain SQL{empty}", grouped(compared.rows), compared.tables)
        }
        Err(text) => format!("DIFFERENT:\n{text}"),
    }
}

/// Where the log waits; a broker of its own ends with it.
struct Queue {
    url: String,
    more: String,
    _broker: Option<Kafka>,
}

impl Queue {
    async fn start(kafka: bool) -> Self {
        if !kafka {
            return Self { url: "embedded:{folder}/queue".into(), more: String::new(), _broker: None };
        }
        let broker = Kafka::builder().start().await;
        say("An Apache Kafka broker of its own");
        let more = "\n[queue.kafka]\nreplication_factor = 1\n".into();
        Self { url: format!("kafka://{}", broker.brokers()), more, _broker: Some(broker) }
    }
}

fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    // Nobody reads any more (`| head`): the demo goes on, and its exit code tells.
    drop(writeln!(out, "{text}").and_then(|()| out.flush()));
}

/// 1234567 as 1 234 567.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let parts: Vec<&str> = digits.as_bytes().rchunks(3).rev().map(|part| std::str::from_utf8(part).expect("digits")).collect();
    parts.join(" ")
}
