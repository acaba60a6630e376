//! Counts per second over a sliding window.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Samples older than this are forgotten.
const WINDOW: Duration = Duration::from_secs(10);

/// Samples of some counters that grow together.
#[derive(Clone, Debug)]
pub struct Window<const N: usize> {
    samples: VecDeque<(Instant, [u64; N])>,
}

impl<const N: usize> Default for Window<N> {
    fn default() -> Self {
        Self { samples: VecDeque::new() }
    }
}

impl<const N: usize> Window<N> {
    /// The counters as they are at a time.
    pub fn sample(&mut self, at: Instant, counters: [u64; N]) {
        let went_back = self.samples.back().is_some_and(|(_, last)| last.iter().zip(&counters).any(|(last, now)| now < last));
        if went_back {
            self.samples.clear();
        }
        self.samples.push_back((at, counters));
        // One sample at or before the window's start is kept: the rate is over the whole window.
        while self.samples.len() > 2 && at.saturating_duration_since(self.samples[1].0) >= WINDOW {
            self.samples.pop_front();
        }
    }

    /// Growth per second of each counter.
    #[must_use]
    pub fn per_second(&self) -> [f64; N] {
        let (Some((from, first)), Some((to, last))) = (self.samples.front(), self.samples.back()) else { return [0.0; N] };
        let seconds = to.saturating_duration_since(*from).as_secs_f64();
        if seconds <= 0.0 {
            return [0.0; N];
        }
        std::array::from_fn(|i| last[i].saturating_sub(first[i]) as f64 / seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_growth_over_the_window() {
        let start = Instant::now();
        let mut window = Window::default();
        assert_eq!(window.per_second(), [0.0]);
        for second in 0..=30_u64 {
            let count = if second < 20 { second * 100 } else { 2000 + (second - 20) * 10 };
            window.sample(start + Duration::from_secs(second), [count]);
        }
        assert_eq!(window.per_second(), [10.0]);
    }

    #[test]
    fn a_counter_that_went_back_starts_over() {
        let start = Instant::now();
        let mut window = Window::default();
        window.sample(start, [100]);
        window.sample(start + Duration::from_secs(1), [0]);
        window.sample(start + Duration::from_secs(2), [50]);
        assert_eq!(window.per_second(), [50.0]);
    }
}
