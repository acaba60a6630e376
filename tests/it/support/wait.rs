//! Waiters with a deadline: tests wait for what they need, never for a time.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(15);
/// Long enough for a slow machine that does three things at once.
pub const LONG: Duration = Duration::from_secs(60);

/// Asks again until the answer is `Ok`; past the deadline it panics with the last reason.
#[track_caller]
pub fn eventually<T, E: Debug>(
    what: &str,
    deadline: Duration,
    mut ask: impl AsyncFnMut() -> Result<T, E>,
) -> impl Future<Output = T> {
    let place = std::panic::Location::caller();
    async move {
        let end = Instant::now() + deadline;
        let mut last: Option<E> = None;
        loop {
            match tokio::time::timeout(end.saturating_duration_since(Instant::now()) + PAUSE, ask()).await {
                Ok(Ok(answer)) => return answer,
                Ok(Err(reason)) => last = Some(reason),
                Err(_) => {}
            }
            assert!(Instant::now() < end, "{place}: waited {deadline:?} in vain for {what}; last seen: {last:?}");
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Asks again until the answer is yes.
#[track_caller]
pub fn until(what: &str, deadline: Duration, mut ask: impl AsyncFnMut() -> bool) -> impl Future<Output = ()> {
    eventually(what, deadline, async move || if ask().await { Ok(()) } else { Err("no") })
}
