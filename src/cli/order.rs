//! Orders to the running daemon: over its socket, and what came of them.

use serde::Serialize;

use super::Exit;
use super::output::{complain, print, print_line};
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::socket::client::ask;
use crate::socket::protocol::{Answer, Request};

/// Gives an order to the daemon of a configuration. A refusal is said here; then there is only its exit code.
pub(super) async fn give(config: &Config, request: &Request) -> Result<Result<Answer, Exit>> {
    let off = || {
        Error::new(ErrorKind::Config, "control.socket is \"off\", so the daemon takes no orders; remove that key and restart it")
    };
    match ask(config.control.socket.as_deref().ok_or_else(off)?, request).await? {
        Answer::Refused { exit, message } => {
            complain(&message);
            Ok(Err(Exit::from_code(exit)))
        }
        answer => Ok(Ok(answer)),
    }
}

/// An answer that belongs to another order.
pub(super) fn strange() -> Error {
    Error::new(ErrorKind::Unexpected, "the daemon answered something else than what it was asked")
}

/// Prints what came of an order.
pub(super) fn show(report: &impl Serialize, json: bool, words: impl FnOnce() -> String) -> Result<()> {
    if !json {
        return print(&words());
    }
    let text = serde_json::to_string(report)
        .map_err(|error| Error::new(ErrorKind::Unexpected, "the answer cannot be written as JSON").with_source(error))?;
    print_line(&text)
}
