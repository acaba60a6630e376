//! Freshness, measured: how far behind the source's clock the replica's rows are.
//!
//! The source time of the last commit or heartbeat applied is what the replica shows; until the next one is applied, its age
//! grows: silence counts as lag. A source whose clock runs ahead of ours would give negative ages; the largest lead seen so
//! far is taken as the difference of the clocks. A clock that runs behind cannot be told from latency and is not adjusted; one
//! that is set back can: the log's order goes on while its times go back.
//!
//! Our own clock may be set as well. A clock that only counts tells by how much, and time that passes is taken from that one.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// Commits' times are taken before their places in the log are, so neighbours may be out of order by a little; more is a clock set back.
const DISORDER_US: i64 = 5_000_000;
/// Clocks that are disciplined drift by less between two commits or heartbeats; more is a clock that was set.
const SET_US: i64 = 1_000_000;

/// A moment, by two clocks of this host, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Since 1970-01-01 UTC; may be set.
    pub wall_us: i64,
    /// Since the host started, while it sleeps as well (`CLOCK_BOOTTIME`); never set.
    pub steady_us: i64,
}

impl Now {
    /// This moment.
    #[must_use]
    pub fn read() -> Self {
        let steady = clock_gettime(ClockId::Boottime);
        Self { wall_us: now_us(), steady_us: steady.tv_sec * 1_000_000 + steady.tv_nsec / 1_000 }
    }
}

/// Estimates a replica's freshness.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lag {
    source_time_us: Option<i64>,
    /// When that was applied.
    applied_at: Now,
    /// How much the source's clock is known to run ahead of ours; negative when ours was seen to be set ahead.
    source_ahead_us: i64,
}

impl Lag {
    /// Something with this source time, behind everything before it in the log, was applied.
    pub fn applied(&mut self, source_time_us: i64, now: Now) {
        let passed = now.steady_us - self.applied_at.steady_us;
        if self.source_time_us.is_some() {
            self.clock_set(now.wall_us - self.applied_at.wall_us - passed);
        }
        match self.source_time_us {
            Some(before) if source_time_us < before - DISORDER_US => {
                // As much time has passed there as here, and the rest is what the clock was set back by.
                self.source_ahead_us += source_time_us - (before + passed.max(0));
                self.source_time_us = Some(source_time_us);
            }
            before => self.source_time_us = before.max(Some(source_time_us)),
        }
        self.source_ahead_us = self.source_ahead_us.max(source_time_us - now.wall_us);
        self.applied_at = now;
    }

    /// Our clock was set by so much. Whether it was right before or is so now cannot be known: set ahead, what was known of the two clocks still holds;
    /// set back, the source shows by itself when it is ahead.
    fn clock_set(&mut self, by_us: i64) {
        if by_us > SET_US {
            self.source_ahead_us -= by_us;
        } else if by_us < -SET_US {
            self.source_ahead_us = 0;
        }
    }

    /// The source's clock, as of what the replica shows.
    #[must_use]
    pub fn source_time_us(&self) -> Option<i64> {
        self.source_time_us
    }

    /// How long nothing was applied; `None` before anything was.
    #[must_use]
    pub fn silence(&self, now: Now) -> Option<Duration> {
        self.source_time_us.map(|_| duration(now.steady_us - self.applied_at.steady_us))
    }

    /// The lag; `None` before anything was applied.
    #[must_use]
    pub fn at(&self, now: Now) -> Option<Duration> {
        let then = self.source_time_us?;
        let age = self.applied_at.wall_us.saturating_add(self.source_ahead_us).saturating_sub(then);
        Some(duration(age) + self.silence(now)?)
    }
}

fn duration(us: i64) -> Duration {
    Duration::from_micros(u64::try_from(us).unwrap_or(0))
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

    const HOUR: i64 = 3_600_000_000;
    const SECOND: i64 = 1_000_000;

    /// Nobody sets the clock.
    fn at(us: i64) -> Now {
        Now { wall_us: us, steady_us: us }
    }

    #[test]
    fn silence_counts() {
        let mut lag = Lag::default();
        assert_eq!(lag.at(at(5)), None);
        lag.applied(1_000_000, at(1_500_000));
        assert_eq!(lag.at(at(1_500_000)), Some(Duration::from_millis(500)));
        assert_eq!(lag.at(at(9_000_000)), Some(Duration::from_secs(8)));
        assert_eq!(lag.silence(at(9_000_000)), Some(Duration::from_millis(7500)));
    }

    #[test]
    fn a_source_clock_ahead_of_ours_is_allowed_for() {
        let mut lag = Lag::default();
        lag.applied(60_000_000, at(0));
        assert_eq!(lag.at(at(0)), Some(Duration::ZERO));
        assert_eq!(lag.at(at(2_000_000)), Some(Duration::from_secs(2)));
        // An older commit applied later makes nothing fresher.
        lag.applied(59_000_000, at(2_000_000));
        assert_eq!(lag.at(at(2_000_000)), Some(Duration::from_secs(2)));
    }

    /// FAULTS 35: the lag grew by the hour that the clock was set back, until it had caught up with itself.
    #[test]
    fn a_source_clock_that_is_set_back_raises_no_alarm() {
        for ahead in [0, HOUR] {
            let mut lag = Lag::default();
            for second in 0..60 {
                let back = if second < 30 { ahead } else { ahead - HOUR };
                let now = 10 * HOUR + second * SECOND;
                lag.applied(now + back - SECOND / 10, at(now));
                assert!(lag.at(at(now)).unwrap() <= Duration::from_millis(100), "{ahead} {second}: {lag:?}");
            }
            let now = 10 * HOUR + 60 * SECOND;
            assert!(lag.at(at(now + 9 * SECOND)).unwrap() >= Duration::from_secs(10), "silence still counts: {lag:?}");
        }
    }

    /// FAULTS 35, our own clock: what it was wrong by once was lag for ever.
    #[test]
    fn our_clock_that_is_set_and_set_right_again_raises_no_alarm() {
        for (first, then) in [(-HOUR, 0), (HOUR, 0), (0, HOUR), (0, -HOUR)] {
            let mut lag = Lag::default();
            for second in 0..90 {
                let wrong = if (30..60).contains(&second) { first } else { then };
                let steady = 10 * HOUR + second * SECOND;
                let now = Now { wall_us: steady + wrong, steady_us: steady };
                lag.applied(steady + then - SECOND / 10, now);
                let later = Now { steady_us: steady + SECOND / 2, ..now };
                let shown = [lag.at(now), lag.at(later)].map(Option::unwrap);
                assert!(shown[0] <= Duration::from_millis(100), "{first} {then} {second}: {lag:?}");
                assert_eq!(
                    shown[1] - shown[0],
                    Duration::from_millis(500),
                    "time that passes is not read from a clock that may be set"
                );
            }
        }
    }
}
