//! Freshness, measured: how far behind the source's clock the replica's rows are.
//!
//! The source time of the last commit or heartbeat applied is what the replica shows; until the next one is applied, its age
//! grows: silence counts as lag. A source whose clock runs ahead of ours would give negative ages; the largest lead seen so
//! far is taken as the difference of the clocks. A clock that runs behind cannot be told from latency and is not adjusted.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Estimates a replica's freshness.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lag {
    source_time_us: Option<i64>,
    /// How much the source's clock is known to run ahead of ours.
    source_ahead_us: i64,
}

impl Lag {
    /// Something with this source time was applied at `now_us`.
    pub fn applied(&mut self, source_time_us: i64, now_us: i64) {
        self.source_time_us = self.source_time_us.max(Some(source_time_us));
        self.source_ahead_us = self.source_ahead_us.max(source_time_us - now_us);
    }

    /// The lag at `now_us`; `None` before anything was applied.
    #[must_use]
    pub fn at(&self, now_us: i64) -> Option<Duration> {
        self.source_time_us.map(|then| behind(then, self.source_ahead_us, now_us))
    }
}

/// Age of a source time, by clocks that differ by `source_ahead_us`.
#[must_use]
pub fn behind(source_time_us: i64, source_ahead_us: i64, now_us: i64) -> Duration {
    let age = now_us.saturating_add(source_ahead_us).saturating_sub(source_time_us);
    Duration::from_micros(u64::try_from(age).unwrap_or(0))
}

/// This host's clock, microseconds since 1970-01-01 UTC.
#[must_use]
pub fn now_us() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_counts() {
        let mut lag = Lag::default();
        assert_eq!(lag.at(5), None);
        lag.applied(1_000_000, 1_500_000);
        assert_eq!(lag.at(1_500_000), Some(Duration::from_millis(500)));
        assert_eq!(lag.at(9_000_000), Some(Duration::from_secs(8)));
    }

    #[test]
    fn a_source_clock_ahead_of_ours_is_allowed_for() {
        let mut lag = Lag::default();
        lag.applied(60_000_000, 0);
        assert_eq!(lag.at(0), Some(Duration::ZERO));
        assert_eq!(lag.at(2_000_000), Some(Duration::from_secs(2)));
        // An older commit applied later makes nothing fresher.
        lag.applied(50_000_000, 2_000_000);
        assert_eq!(lag.at(2_000_000), Some(Duration::from_secs(2)));
    }
}
