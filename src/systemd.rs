//! What systemd hears of a daemon (sd_notify(3)): ready, watchdog, a status line, stopping. Nothing without `NOTIFY_SOCKET`.

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;

use crate::control::{Control, Status};
use crate::error::Result;

/// Pause between two status lines.
const STATUS_EVERY: Duration = Duration::from_secs(5);

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd could not be told");
    }
}

/// The configuration is valid and work has begun; databases may still be down.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The configuration is read again; [`ready`] says that it is done.
pub fn reloading() {
    let now = NotifyState::monotonic_usec_now();
    tell(&[NotifyState::Reloading].into_iter().chain(now.ok()).collect::<Vec<_>>());
}

/// The end has begun.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Feeds the watchdog and the status line until cancelled. It runs among the daemon's other tasks: threads that are stuck
/// keep it from running, and systemd starts the daemon anew.
///
/// # Errors
/// None; the type is that of a task.
pub async fn run(control: Arc<Control>, cancel: CancellationToken) -> Result<()> {
    let watchdog = sd_notify::watchdog_enabled().map_or(STATUS_EVERY, |limit| limit / 3);
    let mut feed = tokio::time::interval(watchdog.clamp(Duration::from_millis(100), STATUS_EVERY));
    let mut said = String::new();
    loop {
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            _ = feed.tick() => {}
        }
        tell(&[NotifyState::Watchdog]);
        let line = line(&control.status());
        if line != said {
            tell(&[NotifyState::Status(&line)]);
            said = line;
        }
    }
}

/// One line: the first reason for not being ready, or the largest lag.
fn line(status: &Status) -> String {
    let others = status.not_ready.len().saturating_sub(1);
    match status.not_ready.first() {
        Some(reason) if others > 0 => format!("{reason} (and {others} more)"),
        Some(reason) => reason.clone(),
        None => {
            let lag = status.replicas.values().filter_map(|replica| replica.lag_seconds).fold(0.0, f64::max);
            // In whole seconds, so that the line changes only when somebody would care.
            format!("{} sources, {} replicas, lag {lag:.0} s", status.sources.len(), status.replicas.len())
        }
    }
}
