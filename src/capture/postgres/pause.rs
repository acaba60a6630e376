//! Short pauses: shorter than tokio's timer, which counts milliseconds.

use std::io;
use std::time::Duration;

use tokio::time::sleep;

/// Sleeps for less than a millisecond, or a few.
#[derive(Debug)]
pub(super) struct Pause {
    /// A timerfd. What tokio calls a pipe's end is any descriptor that becomes readable and is read: the safe way to wait for one.
    #[cfg(target_os = "linux")]
    timer: tokio::net::unix::pipe::Receiver,
}

#[cfg(target_os = "linux")]
impl Pause {
    pub(super) fn new() -> io::Result<Self> {
        use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        Ok(Self { timer: tokio::net::unix::pipe::Receiver::from_owned_fd_unchecked(timer)? })
    }

    /// Cancel-safe: the next call starts anew.
    pub(super) async fn sleep(&self, time: Duration) {
        if self.try_sleep(time).await.is_err() {
            sleep(time).await;
        }
    }

    async fn try_sleep(&self, time: Duration) -> io::Result<()> {
        use rustix::time::{Itimerspec, TimerfdTimerFlags, Timespec, timerfd_settime};
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value = Timespec { tv_sec: time.as_secs().cast_signed(), tv_nsec: time.subsec_nanos().into() };
        // Setting it again takes back an expiry that a cancelled call left behind.
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &Itimerspec { it_interval: zero, it_value: value })?;
        loop {
            self.timer.readable().await?;
            match self.timer.try_read(&mut [0; 8]) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                read => return read.map(drop),
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
impl Pause {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {})
    }

    pub(super) async fn sleep(&self, time: Duration) {
        sleep(time).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::{Instant, timeout};

    #[tokio::test]
    async fn pauses_are_short_and_survive_cancelling() {
        let pause = Pause::new().unwrap();
        let begun = Instant::now();
        for _ in 0..5 {
            pause.sleep(Duration::from_micros(200)).await;
        }
        assert!(begun.elapsed() >= Duration::from_millis(1));
        assert!(timeout(Duration::from_millis(5), pause.sleep(Duration::from_secs(60))).await.is_err());
        timeout(Duration::from_secs(10), pause.sleep(Duration::from_micros(200))).await.unwrap();
    }
}
