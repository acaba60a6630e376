//! Heartbeats: a transactional logical message on the source each interval, so that silence can be told from idleness and the
//! delay of the whole log is measured (DESIGN decision 8).
//!
//! Beside them goes a look at the publication, which somebody may alter: changes that it leaves out are not seen on the stream.
//!
//! A failure never stops capture: what it means for the stream is seen on the stream. A source that cannot be written
//! to (a standby, or read-only) has no heartbeats; that is said once.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, timeout};

use super::postgres::publication;
use crate::config::PgConnect;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::{Mode, PgClient, ServerError, Side};

/// Prefix of our own logical messages.
pub const PREFIX: &str = "millstream";
/// Pause after a failure, when the interval is shorter.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(1);
/// The source may be slow without being broken.
const ANSWER_WAIT: Duration = Duration::from_secs(10);
/// A look at the publication reads a few catalog rows a table.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How heartbeats fare.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Pulse {
    /// None has been sent yet.
    #[default]
    Starting,
    /// The last one was written to the source's log.
    Beating,
    /// The source takes no writes: a standby, or `default_transaction_read_only`.
    ReadOnly,
    /// The source lets nobody in because it is shutting down, or starting.
    ShuttingDown,
    /// The publication leaves these changes out.
    LeavesOut(String),
    /// The last one failed.
    Failing(String),
}

/// Sends heartbeats until it is dropped.
pub async fn run(
    to: PgConnect,
    application_name: String,
    publication: String,
    interval: Duration,
    pulse: watch::Sender<Pulse>,
) -> Result<()> {
    let mut ticks = tokio::time::interval(interval.max(Duration::from_millis(10)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heart = Heart { to, application_name, publication, client: None, next_look: Instant::now() };
    loop {
        ticks.tick().await;
        let next = match heart.beat(ANSWER_WAIT.max(interval)).await {
            Ok(None) => Pulse::Beating,
            Ok(Some(left_out)) => Pulse::LeavesOut(left_out),
            Err(error) => {
                heart.client = None;
                why(&error)
            }
        };
        tell(&pulse.send_replace(next.clone()), &next);
        if next != Pulse::Beating {
            tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
        }
    }
}

/// One line when it changes, none while it stays.
fn tell(before: &Pulse, now: &Pulse) {
    match (before, now) {
        (Pulse::Failing(_), Pulse::Failing(_)) => {}
        (before, now) if before == now => {}
        (_, Pulse::Failing(error)) => tracing::warn!(%error, "heartbeat failed"),
        (_, Pulse::LeavesOut(error)) => tracing::error!(%error, "the publication leaves changes out"),
        (_, Pulse::ShuttingDown) => tracing::warn!("the source is shutting down"),
        (_, Pulse::ReadOnly) => {
            tracing::warn!("the source takes no writes, so no heartbeats: lag is known only while it changes")
        }
        (Pulse::Starting, _) => {}
        (_, _) => tracing::info!("heartbeats again"),
    }
}

struct Heart {
    to: PgConnect,
    application_name: String,
    publication: String,
    client: Option<PgClient>,
    next_look: Instant,
}

impl Heart {
    async fn beat(&mut self, within: Duration) -> Result<Option<String>> {
        let late = || Err(Error::new(ErrorKind::Connection, format!("the source did not answer within {within:?}")));
        timeout(within, self.send()).await.unwrap_or_else(|_| late())
    }

    /// A source that takes no heartbeats may still leave changes out.
    async fn send(&mut self) -> Result<Option<String>> {
        let client = match &mut self.client {
            Some(client) => client,
            empty => {
                // A commit that waits for a synchronous standby is in the source's log already, which is all that is wanted.
                let settings = [("application_name", self.application_name.as_str()), ("synchronous_commit", "local")];
                empty.insert(PgClient::connect_with(&self.to, Mode::Sql, Side::Source, &settings).await?)
            }
        };
        let sent = client.simple_query(&statement()).await;
        let refused = sent.as_ref().is_err_and(|error| ServerError::find(error).is_some());
        if Instant::now() >= self.next_look && (sent.is_ok() || refused) {
            let left_out = publication::look(client, &self.publication).await?;
            if left_out.is_some() {
                return Ok(left_out);
            }
            self.next_look = Instant::now() + LOOK_EVERY;
        }
        sent.map(|_| None)
    }
}

/// Writes one heartbeat.
#[must_use]
pub fn statement() -> String {
    format!(
        "SELECT pg_catalog.pg_logical_emit_message(true, '{PREFIX}', \
         pg_catalog.json_build_object('t', (extract(epoch FROM clock_timestamp()) * 1000000)::int8)::text)"
    )
}

/// 25006 read_only_sql_transaction; 55000 is what a standby says to a function that writes WAL; 57P03 cannot_connect_now. Not 57P01: a single session may be
/// ended by hand, and the next beat finds out.
fn why(error: &Error) -> Pulse {
    match ServerError::find(error).map(|said| said.sqlstate.as_str()) {
        Some("25006" | "55000") => Pulse::ReadOnly,
        Some("57P03") => Pulse::ShuttingDown,
        _ => Pulse::Failing(error.to_string()),
    }
}
