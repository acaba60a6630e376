//! A stream's supervisor: connects again, halts, waits, by the one table ([`crate::halt::disposition`]).
//!
//! While the source is paused there is no connection: what was given to the queue is durable and confirmed, the slot is free, and the source keeps what comes
//! after. That is watched against its budget all the same, and dropped past it where `on_retain_limit` asks for that: a pause is no reason to endanger
//! the source (I7). Rejected: *keeping the connection and not reading*: the walsender would hold a half-sent transaction, and a source that shuts down waits for it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::connect::Site;
use super::postgres::slot;
use super::retention;
use super::silent::Silence;
use super::status::{CaptureState, CaptureStatus};
use super::worker::Owned;
use crate::config::{OnRetainLimit, SourceConfig};
use crate::error::{Error, ErrorKind, Result};
use crate::halt::{Disposition, HaltCode, RETRY_HALTED_SECONDS, disposition};
use crate::pause::Gate;
use crate::postgres::{Mode, PgClient, Side};
use crate::queue::Queue;

/// First pause after a failure; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// While somebody else has the slot: soon enough to take over, not so often as to disturb.
const HELD_PAUSE: Duration = Duration::from_secs(1);
/// A connection that lived so long begins the pauses anew.
const LIVED: Duration = Duration::from_secs(10);
/// Loss stays until a new copy: only the end ends the wait.
const LASTING: Duration = Duration::from_secs(u64::MAX / 8);
/// Time to let go of the slot in order.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

/// Captures a source until cancelled, but for the time in which its gate is closed. Failures are retried, or halt the stream and show in the status; they never come out of here.
///
/// # Errors
/// [`ErrorKind::Unexpected`] when a task beside the stream ended early.
pub async fn run_capture(
    source: SourceConfig,
    queue_max_bytes: u64,
    queue: Arc<dyn Queue>,
    gate: Arc<Gate>,
    cancel: CancellationToken,
    status: watch::Sender<CaptureStatus>,
) -> Result<()> {
    let status = Arc::new(status);
    status.send_modify(|s| {
        (s.source, s.queue_max_bytes) = (source.name.clone(), queue_max_bytes);
        // What a configuration before this one allowed is no reason to drop a slot: it is measured anew.
        s.retention.exceeded = false;
        if s.halt.is_some() {
            s.state = CaptureState::Halted;
        }
    });
    let application_name = application_name(&source.name);
    let site = Site { source, queue, queue_max_bytes, application_name, silence: Silence::default(), status };
    let mut supervisor = Supervisor { site, gate, retention: None, pause: FIRST_PAUSE };
    while !cancel.is_cancelled() {
        let began = Instant::now();
        let error = supervisor.turn(&cancel).await;
        if began.elapsed() > LIVED {
            supervisor.pause = FIRST_PAUSE;
        }
        if let Some(pause) = supervisor.judge(&error) {
            let paused = supervisor.gate.paused().is_some();
            tokio::select! {
                () = cancel.cancelled() => {}
                () = tokio::time::sleep(pause) => {}
                () = supervisor.past_budget() => drop(supervisor.drop_slot().await),
                // What loss has halted stays halted over a pause.
                () = supervisor.gate.closed(), if !paused && pause < LASTING => {}
            }
        }
    }
    super::set_state(&supervisor.site.status, CaptureState::Stopped);
    Ok(())
}

/// Ended by the daemon's end, or by the beginning or end of a pause.
fn asked() -> Error {
    Error::new(ErrorKind::Cancelled, "capture was asked to end")
}

/// Shown in `pg_stat_activity`; at most 63 bytes of ASCII, as PostgreSQL keeps it.
fn application_name(source: &str) -> String {
    let name = format!("millstream {:08x} {source} {}", rand::random::<u32>(), super::begin::holder());
    name.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).take(63).collect()
}

struct Supervisor {
    site: Site,
    gate: Arc<Gate>,
    retention: Option<Owned<Result<()>>>,
    pause: Duration,
}

impl Supervisor {
    /// A pause or a connection, from its beginning to its end.
    async fn turn(&mut self, cancel: &CancellationToken) -> Error {
        self.watch_retention();
        let gate = Arc::clone(&self.gate);
        let paused = tokio::select! {
            () = cancel.cancelled() => return asked(),
            paused = gate.check() => match paused {
                Ok(paused) => paused.is_some(),
                Err(error) => return error,
            },
            () = self.past_budget() => return self.drop_slot_for_budget().await,
        };
        if paused {
            return self.stand_still(&gate, cancel).await;
        }
        let _at_work = gate.work();
        let connection = cancel.child_token();
        let attempt = self.attempt(&connection);
        tokio::pin!(attempt);
        tokio::select! {
            error = &mut attempt => error,
            () = gate.closed() => {
                connection.cancel();
                attempt.await
            }
        }
    }

    /// Until it is resumed.
    async fn stand_still(&mut self, gate: &Gate, cancel: &CancellationToken) -> Error {
        self.site.status.send_modify(|status| {
            if status.halt.is_none() {
                super::enter(status, CaptureState::Paused);
            }
            status.held_by = None;
        });
        tracing::info!(
            source = self.site.source.name,
            "paused: not read until it is resumed, and the source keeps its log meanwhile"
        );
        tokio::select! {
            () = cancel.cancelled() => return asked(),
            () = gate.opened() => {}
            () = self.past_budget() => return self.drop_slot_for_budget().await,
        }
        tracing::info!(source = self.site.source.name, "resumed");
        self.pause = FIRST_PAUSE;
        asked()
    }

    /// One connection, from its beginning to its end.
    async fn attempt(&mut self, cancel: &CancellationToken) -> Error {
        super::set_state(&self.site.status, CaptureState::Waiting);
        let opened = tokio::select! {
            () = cancel.cancelled() => return asked(),
            opened = self.site.open() => opened,
            () = self.past_budget() => return self.drop_slot_for_budget().await,
        };
        let mut streaming = match opened {
            Ok(streaming) => streaming,
            Err(error) => return error,
        };
        self.pause = FIRST_PAUSE;
        let ended = tokio::select! {
            ended = streaming.worker.run(&mut streaming.upkeep, cancel) => ended,
            () = self.past_budget() => {
                drop(streaming);
                return self.drop_slot_for_budget().await;
            }
        };
        let error = ended.err().unwrap_or_else(|| Error::new(ErrorKind::Unexpected, "the stream ended without a reason"));
        // The slot is free for others at once when the walsender hears it from us; after a failure its connection tells it.
        if error.kind() != ErrorKind::Connection
            && let Ok(Err(closing)) = tokio::time::timeout(CLOSE_WAIT, streaming.worker.close()).await
        {
            tracing::debug!(error = %closing, "the stream's end");
        }
        error
    }

    /// What to do about an error, and how long to wait before the next attempt. `None` to go on at once.
    fn judge(&mut self, error: &Error) -> Option<Duration> {
        let source = self.site.source.name.as_str();
        let text = error.to_string();
        let seen = self.site.status.borrow().error.as_ref() == Some(&text);
        let (state, halt, pause) = match disposition(error) {
            Disposition::Stop => return None,
            Disposition::Retry if error.kind() == ErrorKind::Held => (CaptureState::Held, None, HELD_PAUSE),
            Disposition::Retry => {
                let pause = self.pause;
                self.pause = (pause * 2).min(LONGEST_PAUSE);
                (CaptureState::Waiting, None, pause)
            }
            Disposition::Halt(code) if code.mendable() => {
                (CaptureState::Halted, Some(code), Duration::from_secs(RETRY_HALTED_SECONDS))
            }
            Disposition::Halt(code) => (CaptureState::Halted, Some(code), LASTING),
        };
        match (halt, seen) {
            (_, true) => tracing::debug!(source, error = %text, "again"),
            (Some(code), false) => tracing::error!(source, %code, error = %text, remedy = code.explain().remedy, "halted"),
            (None, false) => tracing::warn!(source, error = %text, "trying again"),
        }
        self.site.status.send_modify(|status| {
            super::enter(status, state);
            status.halt = halt;
            status.error = Some(text);
            if state != CaptureState::Held {
                status.held_by = None;
            }
        });
        Some(pause)
    }

    /// Looks at what the slot retains, whatever becomes of stream and queue (I7).
    fn watch_retention(&mut self) {
        if self.retention.as_ref().is_none_or(|task| task.0.is_finished()) {
            let Site { source, queue, application_name, status, .. } = &self.site;
            let look = retention::run(source.clone(), Arc::clone(queue), application_name.clone(), Arc::clone(status));
            self.retention = Some(Owned(tokio::spawn(look)));
        }
    }

    /// Comes back when the slot must be dropped to save the source; never when only an alarm was asked for.
    fn past_budget(&self) -> impl Future<Output = ()> + use<> {
        let mut status = self.site.status.subscribe();
        let drops = self.site.source.on_retain_limit == OnRetainLimit::DropSlot;
        async move {
            if !drops || status.wait_for(|s| s.retention.exceeded).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    async fn drop_slot_for_budget(&self) -> Error {
        let retention = self.site.status.borrow().retention;
        let why = format!("the slot retained too much of the source's log ({})", retention.excess());
        match self.drop_slot().await {
            Ok(()) => Error::halt(HaltCode::SlotMissing, format!("{why}, and was dropped as on_retain_limit asks")),
            Err(error) => Error::new(ErrorKind::Connection, format!("{why}, and could not be dropped yet")).with_source(error),
        }
    }

    /// Drops it, and asks again only when it is measured again.
    async fn drop_slot(&self) -> Result<()> {
        let dropped = self.try_to_drop_slot().await;
        self.site.status.send_modify(|status| status.retention.exceeded = false);
        match &dropped {
            Ok(slot) => tracing::error!(slot, "dropped the slot: it retained more than its budget"),
            Err(error) => tracing::error!(%error, "the slot retains more than its budget and could not be dropped"),
        }
        dropped.map(drop)
    }

    async fn try_to_drop_slot(&self) -> Result<String> {
        let known = self.site.status.borrow().slot.clone();
        let slot = known.ok_or_else(|| Error::new(ErrorKind::Unexpected, "a slot over its budget that nobody named"))?;
        let settings = [("application_name", self.site.application_name.as_str())];
        let mut client = PgClient::connect_with(&self.site.source.connect, Mode::Sql, Side::Source, &settings).await?;
        slot::drop(&mut client, &slot).await?;
        Ok(slot)
    }
}
