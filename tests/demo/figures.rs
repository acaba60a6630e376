//! The figures at the end.

use std::time::Duration;

use crate::grouped;
use crate::probe::Latencies;
use crate::support::compare::Compared;

/// What the demo measured.
#[derive(Default)]
pub struct Figures {
    pub transactions: u64,
    pub changes: u64,
    pub seconds: f64,
    pub kills: u64,
    pub peak_rss_bytes: u64,
    pub latencies: Latencies,
    pub looks: u64,
    pub violations: Vec<String>,
    pub compared: Compared,
    pub clean_stop: bool,
}

impl Figures {
    /// Zero kills or zero changes prove nothing.
    pub fn proves_something(&self) -> bool {
        self.kills > 0 && self.changes > 0 && self.looks > 0 && self.clean_stop && self.compared.rows > 0
    }

    pub fn table(&self) -> String {
        let per_second = self.changes as f64 / self.seconds.max(0.001);
        let ms = |time: Option<Duration>| time.map_or("-".into(), |time| format!("{:.1} ms", time.as_secs_f64() * 1000.0));
        let lines = [
            ("source transactions", grouped(self.transactions)),
            ("row changes", format!("{} ({per_second:.0} a second under load)", grouped(self.changes))),
            ("daemon killed (SIGKILL)", format!("{} times", self.kills)),
            (
                "commit to visible, p50",
                format!("{}   ({} probes away from kills)", ms(self.latencies.quantile(0.5)), self.latencies.steady()),
            ),
            ("commit to visible, p99", ms(self.latencies.quantile(0.99))),
            ("longest, kills included", ms(self.latencies.longest())),
            ("peak memory of the daemon", format!("{:.1} MiB", self.peak_rss_bytes as f64 / 1_048_576.0)),
            ("consistent looks at the replica", grouped(self.looks)),
            ("last daemon stopped cleanly", if self.clean_stop { "yes".into() } else { "NO".into() }),
        ];
        let rows: Vec<String> = lines.iter().map(|(name, value)| format!("  {name:<32} {value}")).collect();
        format!("\n{}\n", rows.join("\n"))
    }
}
