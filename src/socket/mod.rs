//! The daemon's local socket: orders of the operator, one a connection. Status is read over HTTP; nothing can be changed there.
//!
//! A connection carries one line of JSON each way ([`protocol`]). Who may give orders is settled twice: the socket's file is its owner's alone (0600), and the kernel
//! says who is at the other end: root, or the daemon's own user (`may_order`).
//!
//! The data path does not depend on it: a socket that cannot be had is tried again and said (`bind`).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::UCred;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::control::Control;
use crate::error::{Error, ErrorKind, Result};
use crate::telemetry::{Repeating, Say};

mod bind;
pub mod client;
pub mod protocol;

use bind::Listener;
use protocol::{Answer, Request};

/// Connections at once; further ones wait in the kernel.
const MAX_CONNECTIONS: usize = 16;
/// An order must have come within this time.
const ORDER_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest order.
const MAX_ORDER_BYTES: u64 = 64 << 10;
/// Pause before a socket that could not be had is tried again.
const BIND_AGAIN: Duration = Duration::from_secs(2);

/// Takes orders until cancelled.
///
/// # Errors
/// None; the type is that of a task.
pub async fn serve(path: PathBuf, control: Arc<Control>, cancel: CancellationToken) -> Result<()> {
    let Some(listener) = listen(path, &cancel).await else { return Ok(()) };
    tracing::info!(socket = %listener.path().display(), "taking orders");
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let permit = tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            permit = Arc::clone(&permits).acquire_owned() => permit,
        };
        let accepted = tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(stream) => {
                // Not ended with this task: an order may be to take orders elsewhere, and is answered all the same.
                let control = Arc::clone(&control);
                tokio::spawn(async move {
                    connection(stream, &control).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "a connection to the control socket could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn listen(path: PathBuf, cancel: &CancellationToken) -> Option<Listener> {
    let warnings = Repeating::default();
    loop {
        match Listener::bind(&path) {
            Ok(listener) => return Some(listener),
            Err(error) => {
                if warnings.failed("bind", &error.to_string()) != Say::Nothing {
                    tracing::warn!(%error, "no control socket (control.socket): `millstream pause` and `resume` do not reach this daemon; trying again");
                }
            }
        }
        tokio::select! {
            () = cancel.cancelled() => return None,
            () = tokio::time::sleep(BIND_AGAIN) => {}
        }
    }
}

async fn connection(mut stream: UnixStream, control: &Control) {
    let answer = match order(&mut stream).await {
        Ok((who, request)) => carry_out(request, who.uid(), control).await,
        Err(error) => Answer::refused(&error),
    };
    let Ok(mut line) = serde_json::to_vec(&answer) else { return };
    line.push(b'\n');
    if let Err(error) = stream.write_all(&line).await {
        tracing::debug!(%error, "whoever gave an order did not wait for the answer");
    }
}

/// The order, and who gives it.
async fn order(stream: &mut UnixStream) -> Result<(UCred, Request)> {
    let who = stream.peer_cred()?;
    let mut line = Vec::new();
    let mut reader = BufReader::new((&mut *stream).take(MAX_ORDER_BYTES));
    let read = tokio::time::timeout(ORDER_TIMEOUT, reader.read_until(b'\n', &mut line)).await;
    read.map_err(|_| Error::new(ErrorKind::Connection, "no order came in time"))??;
    // Not before it is read: whoever is still writing would not hear why.
    if !may_order(who.uid()) {
        let message =
            format!("user {} may not give this daemon orders; run the command as root or as the daemon's user", who.uid());
        return Err(Error::new(ErrorKind::Config, message));
    }
    let request = serde_json::from_slice(&line).map_err(|error| {
        let message = format!(
            "this daemon (millstream {}) does not know that order ({error}); restart it with the version that the command has",
            env!("CARGO_PKG_VERSION")
        );
        Error::new(ErrorKind::TooNew, message)
    })?;
    Ok((who, request))
}

/// root, and whoever the daemon runs as.
fn may_order(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}

async fn carry_out(request: Request, uid: u32, control: &Control) -> Answer {
    tracing::info!(?request, uid, "an order came over the control socket");
    let answer = control.carry_out(request).await;
    if let Answer::Refused { message, .. } = &answer {
        tracing::warn!(why = message, "the order was not carried out");
    }
    answer
}
