//! `make bench`: Millstream against PostgreSQL's own subscription, on the same two servers, in the same run.
//!
//! Every figure is a ratio between two things that were measured one after the other here; whole-table checksums are compared
//! after every round, and a round whose sides differ is void and fails the run. fsync is on everywhere.
//! `docs/benchmarks.md` has the method.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "../../tests/it/support/mod.rs"]
mod support;

mod added;
mod copy;
mod drain;
mod latency;
mod memory;
mod pair;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;

use report::Report;

/// What was asked for.
pub struct Wish {
    pub rounds: usize,
    /// Changes of a backlog of one-row transactions; of 1,000-row ones there are five times as many.
    pub drain_changes: u32,
    pub latency_samples: u32,
    pub memory_rows: u32,
    pub copy_rows: u32,
    pub only: Option<String>,
    pub json: Option<PathBuf>,
    pub markdown: Option<PathBuf>,
}

impl Wish {
    const FULL: Self = Self {
        rounds: 3,
        drain_changes: 200_000,
        latency_samples: 1_000,
        memory_rows: 5_000_000,
        copy_rows: 5_000_000,
        only: None,
        json: None,
        markdown: None,
    };
    const QUICK: Self =
        Self { rounds: 2, drain_changes: 50_000, latency_samples: 200, memory_rows: 1_000_000, copy_rows: 500_000, ..Self::FULL };

    fn read() -> Result<Self, String> {
        let mut wish = Self::FULL;
        let mut arguments = std::env::args().skip(1);
        while let Some(name) = arguments.next() {
            match name.as_str() {
                // Cargo adds this one.
                "--bench" => continue,
                "--quick" => {
                    wish = Self { only: wish.only, json: wish.json, markdown: wish.markdown, ..Self::QUICK };
                    continue;
                }
                _ => {}
            }
            let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
            match name.as_str() {
                "--changes" => wish.drain_changes = value.parse().map_err(|_| format!("{value}: not a number"))?,
                "--rounds" => wish.rounds = value.parse().map_err(|_| format!("{value}: not a number"))?,
                "--only" => wish.only = Some(value),
                "--json" => wish.json = Some(value.into()),
                "--markdown" => wish.markdown = Some(value.into()),
                _ => return Err(format!("{name}: unknown")),
            }
        }
        Ok(wish)
    }

    fn wants(&self, part: &str) -> bool {
        self.only.as_deref().is_none_or(|only| only == part)
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let wish = match Wish::read() {
        Ok(wish) => wish,
        Err(text) => {
            eprintln!(
                "bench: {text}\nusage: [--quick] [--rounds N] [--changes N] [--only drain|latency|added|memory|copy] [--json FILE] [--markdown FILE]"
            );
            return ExitCode::from(2);
        }
    };
    let mut report = Report::default();
    if wish.wants("drain") {
        drain::run(&wish, &mut report).await;
    }
    if wish.wants("latency") {
        latency::run(&wish, &mut report).await;
    }
    if wish.wants("added") {
        added::run(&wish, &mut report).await;
    }
    if wish.wants("memory") {
        memory::run(&wish, &mut report).await;
    }
    if wish.wants("copy") {
        copy::run(&wish, &mut report).await;
    }
    report.print();
    report.write(&wish);
    ExitCode::SUCCESS
}
