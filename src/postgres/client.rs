//! One session: connect, query, copy.
//!
//! Progression of a session: *ready* → a query, a copy out or a copy in is *unanswered* → its `ReadyForQuery` → *ready*. A future that is dropped leaves the
//! session unanswered; the next call settles it first: it reads and drops what is left, or fails an unfinished copy in.

use std::time::Duration;

use postgres_protocol::message::frontend;
use tokio::time::{Instant, timeout_at};

use super::connection::Connection;
use super::frame::Frame;
use super::socket::Socket;
use super::sqlstate::Side;
use super::{auth, refusal, tls};
use crate::config::{PgConnect, PgHost};
use crate::error::{Context, Error, ErrorKind, Result};

/// Time for connecting when the configuration says none.
const CONNECT_WAIT: Duration = Duration::from_secs(30);
/// Time for what an abandoned statement still has to say.
const SETTLE_WAIT: Duration = Duration::from_secs(10);

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// SQL.
    Sql,
    /// Replication commands, and simple queries (`replication=database`).
    Replication,
}

/// A session with a PostgreSQL server.
#[derive(Debug)]
pub struct PgClient {
    pub(super) connection: Connection,
    /// Queries whose `ReadyForQuery` has not come.
    pub(super) unanswered: u32,
    /// The server waits for our copy data.
    pub(super) copying_in: bool,
    backend_pid: i32,
    in_transaction: bool,
}

impl PgClient {
    /// Connects, encrypts, authenticates and sets the session up, all within the configured time.
    ///
    /// # Errors
    /// [`ErrorKind::Connection`], [`ErrorKind::Busy`], a denial by side, [`ErrorKind::Config`] when TLS fails.
    pub async fn connect(to: &PgConnect, mode: Mode, side: Side) -> Result<Self> {
        Self::connect_with(to, mode, side, &[]).await
    }

    /// The same with more session settings, which win over ours.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub async fn connect_with(to: &PgConnect, mode: Mode, side: Side, settings: &[(&str, &str)]) -> Result<Self> {
        let wait = if to.connect_timeout.is_zero() { CONNECT_WAIT } else { to.connect_timeout };
        let deadline = Instant::now() + wait;
        let connecting = async {
            let socket = match &to.host {
                PgHost::Unix(folder) => Socket::unix(folder, to.port, deadline).await?,
                PgHost::Tcp(host) => tls::negotiate(Socket::tcp(host, to.port, deadline).await?, to, host).await?,
            };
            let mut connection = Connection::new(socket, side);
            let backend_pid = auth::start(&mut connection, to, mode, settings).await?;
            Ok(Self { connection, unanswered: 0, copying_in: false, backend_pid, in_transaction: false })
        };
        let connected = match timeout_at(deadline, Box::pin(connecting)).await {
            Ok(Err(error)) => Err(refusal::explain(error, to).await),
            Ok(connected) => connected,
            Err(_) => Err(Error::new(ErrorKind::Connection, format!("no session within {wait:?}"))),
        };
        connected.at(|| format!("{} {}", side.as_str(), to.place()))
    }

    /// A parameter that the server reported: `server_version`, `TimeZone`, …
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.connection.parameter(name)
    }

    /// Process id of the backend, as in `pg_stat_activity`.
    #[must_use]
    pub fn backend_pid(&self) -> i32 {
        self.backend_pid
    }

    /// True when the last statement left a transaction open (or failed).
    #[must_use]
    pub fn in_transaction(&self) -> bool {
        self.in_transaction
    }

    /// Which side it is to.
    #[must_use]
    pub fn side(&self) -> Side {
        self.connection.side()
    }

    /// Brings an abandoned statement to its end.
    pub(super) async fn settle(&mut self) -> Result<()> {
        if self.unanswered == 0 {
            return Ok(());
        }
        timeout_at(Instant::now() + SETTLE_WAIT, async {
            self.fail_copy_in("abandoned")?;
            while self.unanswered > 0 {
                match self.connection.receive().await {
                    Ok(frame) if frame.tag == b'Z' => self.ready(&frame)?,
                    // The begin of a copy in whose future was dropped before.
                    Ok(frame) if frame.tag == b'G' => {
                        self.copying_in = true;
                        self.fail_copy_in("abandoned")?;
                    }
                    Ok(_) => {}
                    Err(error) if super::ServerError::find(&error).is_some_and(|e| e.severity == "ERROR") => {
                        self.copying_in = false
                    }
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        })
        .await
        .map_err(|_| Error::new(ErrorKind::Connection, "an abandoned statement did not end in time"))?
    }

    /// After an `ErrorResponse` the server goes on to `ReadyForQuery`; gives the error when it is there.
    pub(super) async fn after_error(&mut self, error: Error) -> Error {
        self.copying_in = false;
        let goes_on = super::ServerError::find(&error).is_some_and(|e| e.severity == "ERROR");
        if goes_on && let Err(second) = self.settle().await {
            tracing::debug!(error = %second, "the session did not survive an error");
        }
        error
    }

    pub(super) fn fail_copy_in(&mut self, why: &str) -> Result<()> {
        if std::mem::take(&mut self.copying_in) {
            auth::put(&mut self.connection, |out| frontend::copy_fail(why, out))?;
        }
        Ok(())
    }

    /// Takes note of a `ReadyForQuery`.
    pub(super) fn ready(&mut self, frame: &Frame) -> Result<()> {
        self.unanswered = self.unanswered.saturating_sub(1);
        match frame.payload.as_ref() {
            [b'I'] => self.in_transaction = false,
            [b'T' | b'E'] => self.in_transaction = true,
            _ => return Err(frame.unexpected("a statement ended")),
        }
        Ok(())
    }
}
