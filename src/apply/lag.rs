//! Freshness, measured: how far behind the source's clock the replica's rows are.
//!
//! The source time of the last commit or heartbeat applied is what the replica shows; until the next one is applied, its age
//! grows: silence counts as lag. A source whose clock runs ahead of ours would give negative ages; the largest lead seen so
//! far is taken as the difference of the clocks. A clock that runs behind cannot be told from latency and is not adjusted; one
//! that is set back can: the log's order goes on while its times go back.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Commits' times are taken before their places in the log are, so neighbours may be out of order by a little; more is a clock set back.
const DISORDER_US: i64 = 5_000_000;

/// Estimates a replica's freshness.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lag {
    source_time_us: Option<i64>,
    /// When that was applied, by our clock.
    applied_at_us: i64,
    /// How much the source's clock is known to run ahead of ours.
    source_ahead_us: i64,
}

impl Lag {
    /// Something with this source time, behind everything before it in the log, was applied at `now_us`.
    pub fn applied(&mut self, source_time_us: i64, now_us: i64) {
        match self.source_time_us {
            Some(before) if source_time_us < before - DISORDER_US => {
                // As much time has passed there as here, and the rest is what the clock was set back by.
                self.source_ahead_us += source_time_us - (before + (now_us - self.applied_at_us).max(0));
                self.source_time_us = Some(source_time_us);
            }
            before => self.source_time_us = before.max(Some(source_time_us)),
        }
        self.source_ahead_us = self.source_ahead_us.max(source_time_us - now_us);
        self.applied_at_us = now_us;
    }

    /// The source's clock, as of what the replica shows.
    #[must_use]
    pub fn source_time_us(&self) -> Option<i64> {
        self.source_time_us
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
        lag.applied(59_000_000, 2_000_000);
        assert_eq!(lag.at(2_000_000), Some(Duration::from_secs(2)));
    }

    /// FAULTS 35: the lag grew by the hour that the clock was set back, until it had caught up with itself.
    #[test]
    fn a_source_clock_that_is_set_back_raises_no_alarm() {
        const HOUR: i64 = 3_600_000_000;
        const SECOND: i64 = 1_000_000;
        for ahead in [0, HOUR] {
            let mut lag = Lag::default();
            for second in 0..60 {
                let back = if second < 30 { ahead } else { ahead - HOUR };
                let now = 10 * HOUR + second * SECOND;
                lag.applied(now + back - SECOND / 10, now);
                assert!(lag.at(now).unwrap() <= Duration::from_millis(100), "{ahead} {second}: {lag:?}");
            }
            let now = 10 * HOUR + 60 * SECOND;
            assert!(lag.at(now + 9 * SECOND).unwrap() >= Duration::from_secs(10), "silence still counts: {lag:?}");
        }
    }
}
