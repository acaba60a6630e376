//! The command's end of the socket.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

use super::protocol::{Answer, Request};
use crate::config::access;
use crate::error::{Error, ErrorKind, Result};

/// Longer than the daemon takes over any order: a slow queue, then work that ends.
const DEADLINE: Duration = Duration::from_secs(90);
/// Largest answer.
const MAX_ANSWER_BYTES: u64 = 16 << 20;

/// Gives an order and waits for the answer.
///
/// # Errors
/// [`ErrorKind::Connection`] when no daemon answers; [`ErrorKind::Config`] when this user may not ask.
pub async fn ask(path: &Path, request: &Request) -> Result<Answer> {
    let unreachable = |why: &dyn std::fmt::Display| {
        let message = format!("no daemon answers at {} ({why}); is it running with this configuration?", path.display());
        Error::new(ErrorKind::Connection, message)
    };
    let mut stream = UnixStream::connect(path).await.map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => Error::new(ErrorKind::Config, access::refused(path)),
        _ => unreachable(&error),
    })?;
    let exchange = async {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        stream.write_all(&line).await?;
        let mut answer = Vec::new();
        BufReader::new((&mut stream).take(MAX_ANSWER_BYTES)).read_until(b'\n', &mut answer).await?;
        io::Result::Ok(answer)
    };
    let answer = tokio::time::timeout(DEADLINE, exchange).await;
    let answer = answer.map_err(|_| unreachable(&"no answer in time"))?.map_err(|error| unreachable(&error))?;
    if answer.is_empty() {
        return Err(unreachable(&"it went away before it had answered; whether the order was carried out is not known"));
    }
    serde_json::from_slice(&answer).map_err(|error| unreachable(&format!("not an answer: {error}")))
}
